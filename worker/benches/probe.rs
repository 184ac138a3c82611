#![allow(warnings)]
//! What Forebay costs on top of the bare client library, measured side by side.
//!
//! `cargo bench -p forebay-worker --features testing --bench throughput -- [OPTIONS]` prints, from
//! rounds in alternating order on one broker, jobs per second of the bare client and of Forebay and
//! the median of their ratios; then the time from start to the first job, and the memory.
//! Options: `--rounds N` (5), `--jobs N` (50000), `--classic`, `--memory` (500,000 jobs; slow).

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay_producer::link::connection::Link;
use forebay_worker::testing::{Broker, broker};
use forebay_worker::{Config, Context, Job, JobResult, Producer, QueueOptions, QueueType, Worker};
use futures_util::{FutureExt, StreamExt, future, stream};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

const PREFETCH: u16 = 200;
const WINDOW: usize = 1_000;

#[derive(Serialize, Deserialize)]
struct Nothing {
    n: u64,
    padding: String,
}

impl Job for Nothing {
    const KIND: &'static str = "bench.nothing";
    const QUEUE: &'static str = "bench";
}

/// About 200 bytes of JSON.
fn job(n: u64) -> Nothing {
    Nothing { n, padding: "x".repeat(170) }
}

/// Counts handled jobs, and says when there are enough.
#[derive(Default)]
struct Tally {
    done: AtomicU64,
    wanted: AtomicU64,
    enough: Notify,
}

impl Tally {
    async fn wait_for(&self, wanted: u64) {
        self.wanted.store(wanted, Ordering::SeqCst);
        while self.done.load(Ordering::SeqCst) < wanted {
            _ = tokio::time::timeout(Duration::from_millis(100), self.enough.notified()).await;
        }
    }
}

async fn nothing(_job: Nothing, cx: Context<Arc<Tally>>) -> JobResult {
    let tally = cx.state();
    if tally.done.fetch_add(1, Ordering::SeqCst) + 1 == tally.wanted.load(Ordering::SeqCst) {
        tally.enough.notify_waiters();
    }
    Ok(())
}

struct Options {
    rounds: usize,
    jobs: u64,
    queue_type: QueueType,
    memory: bool,
}

fn options() -> Options {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    Options {
        rounds: number("--rounds", 5) as usize,
        jobs: number("--jobs", 50_000),
        queue_type: if has("--classic") { QueueType::Classic } else { QueueType::Quorum },
        memory: has("--memory"),
    }
}

fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let rest = stat.rsplit_once(") ").unwrap().1;
    let f: Vec<&str> = rest.split(' ').collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) * 10_000.0
}
fn beam() -> f64 {
    let Ok(pid) = std::env::var("BEAM") else { return 0.0 };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit_once(") ").unwrap().1;
    let f: Vec<&str> = rest.split(' ').collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) * 10_000.0
}
fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let arguments: Vec<String> = std::env::args().collect();
        let options = options();
        let broker = broker().await;
        let config = broker.config().queue_type("bench", options.queue_type);
        Producer::new(&config).declare("bench", options.queue_type).await.expect("declared");
        let jobs = options.jobs;
        let modes: Vec<&str> =
            arguments.iter().skip(1).filter_map(|a| a.strip_prefix("m=")).collect();
        let mut all: std::collections::BTreeMap<String, Vec<[f64; 3]>> = Default::default();
        for round in 0..options.rounds {
            let mut modes = modes.clone();
            if round % 2 == 1 {
                modes.reverse();
            }
            for mode in modes {
                // something to drain
                if mode.starts_with("d") {
                    if std::env::var("FILLBARE").is_ok() {
                        publish_bare(&config, jobs).await;
                    } else {
                        publish_forebay(&config, jobs).await;
                    }
                }
                let (c, b) = (cpu(), beam());
                let rate = match mode {
                    "pb" => publish_bare(&config, jobs).await,
                    "ph" => publish_with(&config, jobs, 3).await,
                    "p2" => publish_with(&config, jobs, 2).await,
                    "p1" => publish_with(&config, jobs, 1).await,
                    "p0" => publish_with(&config, jobs, 0).await,
                    "pf" => publish_forebay(&config, jobs).await,
                    "db" => drain_bare(&config, jobs).await,
                    "df" => drain_forebay(&config, jobs).await,
                    _ => panic!(),
                };
                let (c, b) = ((cpu() - c) / jobs as f64, (beam() - b) / jobs as f64);
                println!("{mode} {rate:>8.0}/s client {c:>6.2} us broker {b:>6.2} us");
                all.entry(mode.to_owned()).or_default().push([rate, c, b]);
                if mode.starts_with("p") {
                    drain_bare(&config, jobs).await;
                }
            }
        }
        for (mode, v) in all {
            let med = |i: usize| {
                let mut x: Vec<f64> = v.iter().map(|r| r[i]).collect();
                x.sort_by(f64::total_cmp);
                x[x.len() / 2]
            };
            println!(
                "MEDIAN {mode} {:>8.0}/s client {:>6.2} us broker {:>6.2} us",
                med(0),
                med(1),
                med(2)
            );
        }
        drop(broker);
        tokio::time::sleep(Duration::from_secs(1)).await;
    });
}
async fn bare_channel(config: &Config) -> (Link, Channel) {
    let link = Link::open(config, "bare");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let channel = link.channel(deadline).await.expect("a channel").channel;
    (link, channel)
}

/// The bare client at its best: one channel, a window of publish and confirm futures at a time.
async fn publish_bare(config: &Config, jobs: u64) -> f64 {
    let (link, channel) = bare_channel(config).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let exchange = config.topology().jobs_exchange();
    let began = Instant::now();
    let mut n = 0;
    while n < jobs {
        let window = (n..jobs.min(n + WINDOW as u64)).map(|n| {
            let payload = serde_json::to_vec(&job(n)).expect("JSON");
            let properties = BasicProperties::default()
                .with_type(Nothing::KIND.into())
                .with_message_id(n.to_string().into())
                .with_delivery_mode(2);
            let (channel, exchange) = (&channel, exchange.into());
            async move {
                let options = BasicPublishOptions { mandatory: true, ..Default::default() };
                let sent =
                    channel.basic_publish(exchange, "bench".into(), options, &payload, properties);
                assert!(sent.await.expect("written").await.expect("confirmed").is_ack());
            }
        });
        future::join_all(window).await;
        n += WINDOW as u64;
    }
    let rate = jobs as f64 / began.elapsed().as_secs_f64();
    link.close().await;
    rate
}

async fn publish_with(config: &Config, jobs: u64, headers: usize) -> f64 {
    let (link, channel) = bare_channel(config).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let exchange = config.topology().jobs_exchange();
    let began = Instant::now();
    let mut n = 0;
    while n < jobs {
        let window = (n..jobs.min(n + WINDOW as u64)).map(|n| {
            let payload = serde_json::to_vec(&job(n)).expect("JSON");
            let full =
                forebay_worker::Envelope::new(Nothing::KIND, "bench", payload.clone()).properties();
            let mut table = FieldTable::default();
            for (k, v) in full.headers().as_ref().unwrap().inner().iter().take(headers) {
                table.insert(k.clone(), v.clone());
            }
            let properties = if headers == 3 {
                full
            } else if headers > 0 {
                full.with_headers(table)
            } else {
                BasicProperties::default()
                    .with_type(Nothing::KIND.into())
                    .with_message_id(full.message_id().clone().unwrap())
                    .with_content_type("application/json".into())
                    .with_timestamp(1_700_000_000)
                    .with_delivery_mode(2)
            };
            let (channel, exchange) = (&channel, exchange.into());
            async move {
                let options = BasicPublishOptions { mandatory: true, ..Default::default() };
                let sent =
                    channel.basic_publish(exchange, "bench".into(), options, &payload, properties);
                assert!(sent.await.expect("written").await.expect("confirmed").is_ack());
            }
        });
        future::join_all(window).await;
        n += WINDOW as u64;
    }
    let rate = jobs as f64 / began.elapsed().as_secs_f64();
    link.close().await;
    rate
}

async fn publish_forebay(config: &Config, jobs: u64) -> f64 {
    let producer = Producer::connect(config).await.expect("connected");
    let began = Instant::now();
    let published = producer.publish_all(stream::iter((0..jobs).map(job))).await;
    assert_eq!(published.expect("all are published"), jobs);
    let rate = jobs as f64 / began.elapsed().as_secs_f64();
    producer.close().await;
    rate
}

/// The bare client at its best: takes what is there, decodes it, acks it with one frame.
async fn drain_bare(config: &Config, jobs: u64) -> f64 {
    let (link, channel) = bare_channel(config).await;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.expect("qos");
    let queue = config.topology().queue("bench");
    let options = BasicConsumeOptions::default();
    let began = Instant::now();
    let mut deliveries = channel
        .basic_consume(queue.as_str().into(), "bare".into(), options, FieldTable::default())
        .await
        .expect("consuming");
    let mut done = 0;
    while done < jobs {
        let mut delivery = deliveries.next().await.expect("a delivery").expect("a delivery");
        loop {
            let job: Nothing = serde_json::from_slice(&delivery.data).expect("JSON");
            std::hint::black_box(job.n);
            done += 1;
            match deliveries.next().now_or_never() {
                Some(Some(Ok(next))) => delivery = next,
                _ => break,
            }
        }
        let all = BasicAckOptions { multiple: true };
        channel.basic_ack(delivery.delivery_tag, all).await.expect("acked");
    }
    let rate = jobs as f64 / began.elapsed().as_secs_f64();
    link.close().await;
    rate
}

fn worker(tally: &Arc<Tally>) -> Worker<Arc<Tally>> {
    Worker::builder(Arc::clone(tally))
        .consumer_timeout(Duration::from_secs(24 * 3600))
        .queue("bench", QueueOptions::new().concurrency(64).prefetch(PREFETCH))
        .handle(nothing)
        .build()
        .expect("a worker without faults")
}

async fn drain_forebay(config: &Config, jobs: u64) -> f64 {
    let tally = Arc::new(Tally::default());
    let began = Instant::now();
    let running = worker(&tally).start(config);
    tally.wait_for(jobs).await;
    let rate = jobs as f64 / began.elapsed().as_secs_f64();
    running.controls().drain();
    running.finished().await.expect("drained");
    rate
}
