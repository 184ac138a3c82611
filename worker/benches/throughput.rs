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

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        if let Ok(count) = std::env::var("FOREBAY_BENCH_FILL") {
            return fill_as_child(count.parse().expect("a number")).await;
        }
        let options = options();
        let broker = broker().await;
        let config = broker.config().queue_type("bench", options.queue_type);
        Producer::new(&config).declare("bench", options.queue_type).await.expect("declared");
        println!(
            "{} queue, {} jobs a round, prefetch {PREFETCH}",
            options.queue_type, options.jobs
        );
        if options.memory {
            return memory(&broker, &config).await;
        }
        rounds(&options, &config).await;
        start(&config).await;
        // Lets the clean-up of the namespace run before the process ends.
        drop(broker);
        tokio::time::sleep(Duration::from_secs(1)).await;
    });
}

async fn rounds(options: &Options, config: &Config) {
    let (mut publishing, mut draining) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let forebay_first = round % 2 == 1;
        let mut publish = [0.0; 2];
        let mut drain = [0.0; 2];
        for turn in 0..2 {
            // Each publishes what the other drains.
            let forebay = (turn == 1) != forebay_first;
            let (publisher, drainer) = (usize::from(forebay), usize::from(!forebay));
            publish[publisher] = if forebay {
                publish_forebay(config, options.jobs).await
            } else {
                publish_bare(config, options.jobs).await
            };
            drain[drainer] = if forebay {
                drain_bare(config, options.jobs).await
            } else {
                drain_forebay(config, options.jobs).await
            };
        }
        report("publish", round, publish, &mut publishing);
        report("drain", round, drain, &mut draining);
    }
    println!("publish with confirms ÷ bare, median: {:.2}", median(publishing));
    println!("drain of no-op jobs   ÷ bare, median: {:.2}", median(draining));
}

fn report(what: &str, round: usize, [bare, forebay]: [f64; 2], ratios: &mut Vec<f64>) {
    println!(
        "{round:>2} {what:<8} bare {bare:>7.0}/s  forebay {forebay:>7.0}/s  {:.2}",
        forebay / bare
    );
    ratios.push(forebay / bare);
}

fn median(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
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

async fn start(config: &Config) {
    let mut times = Vec::new();
    for _ in 0..9 {
        let producer = Producer::connect(config).await.expect("connected");
        producer.publish(&job(0)).await.expect("published");
        producer.close().await;
        let tally = Arc::new(Tally::default());
        let began = Instant::now();
        let running = worker(&tally).start(config);
        while tally.done.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        running.controls().drain();
        running.finished().await.expect("drained");
    }
    println!("start to first job handled, median: {:.0} ms", median(times));
}

async fn memory(broker: &Broker, config: &Config) {
    let tally = Arc::new(Tally::default());
    let running = worker(&tally).start(config);
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("idle: {:.1} MB resident", resident_mb());
    let mut filled = 0;
    for goal in [50_000, 500_000] {
        fill(broker, goal - filled);
        tally.wait_for(goal).await;
        filled = goal;
        println!("after {goal} jobs: {:.1} MB resident", resident_mb());
    }
    running.controls().drain();
    running.finished().await.expect("drained");
}

/// A process of its own publishes, so that its memory is not counted.
fn fill(broker: &Broker, count: u64) {
    let child = Command::new(std::env::current_exe().expect("this program"))
        .env("FOREBAY_BENCH_FILL", count.to_string())
        .env("AMQP_URL", broker.url())
        .env("FOREBAY_NAMESPACE", broker.namespace())
        .stdin(Stdio::null())
        .status();
    assert!(child.expect("started").success());
}

async fn fill_as_child(count: u64) {
    let config = Config::from_env().expect("a configuration");
    let producer = Producer::connect(&config).await.expect("connected");
    producer.publish_all(stream::iter((0..count).map(job))).await.expect("published");
    std::io::stdout().flush().expect("flushed");
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kb = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kb.unwrap_or(f64::NAN) / 1024.0
}
