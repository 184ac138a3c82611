//! The delay ladder under load: every job arrives, once, none early; how late, is printed.
//!
//! The long forms: `cargo test -p forebay-producer --features testing --test it -- --ignored
//! --nocapture ladder::`. `FOREBAY_LADDER_JOBS` and `FOREBAY_LADDER_RATE` (jobs a second) change
//! their load.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay_producer::link::connection::Link;
use forebay_producer::link::declare::Declarer;
use forebay_producer::testing::{Broker, OwnBroker, broker};
use forebay_producer::{Config, Delay, Inspector, Job as _, Producer, PublishOptions};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{self, Instant, MissedTickBehavior};

use crate::support::{Note, PATIENCE, kill_and_revive, own_broker, read, soon};

/// The queue's prefetch: as much as the broker gives.
const PREFETCH: u16 = 2_000;
/// How often the next few jobs are published.
const STEP: Duration = Duration::from_millis(10);

/// What is published.
#[derive(Clone, Copy)]
struct Load {
    jobs: u64,
    /// Jobs a second.
    rate: u64,
    /// Delays are spread evenly between 0.1 s and this.
    longest: Duration,
}

impl Load {
    const SHORT: Self = Self { jobs: 3_000, rate: 2_000, longest: Duration::from_secs(4) };

    fn long() -> Self {
        let given = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
        Self {
            jobs: given("FOREBAY_LADDER_JOBS").unwrap_or(100_000),
            rate: given("FOREBAY_LADDER_RATE").unwrap_or(2_000),
            longest: Duration::from_secs(30),
        }
    }

    fn takes(self) -> Duration {
        Duration::from_secs_f64(self.jobs as f64 / self.rate as f64)
    }
}

#[tokio::test]
async fn three_thousand_delayed_jobs_arrive_once_each_and_none_early() {
    let broker = broker().await;
    let tally = carry(&broker, Load::SHORT, async {}).await;
    println!("{tally}");
    tally.complete();
    assert_eq!((tally.copies, tally.redelivered), (0, 0), "{tally}");
}

#[tokio::test]
async fn delayed_jobs_outlive_a_restart_of_the_broker() {
    let (own, _place) = own_broker("").await;
    let restart = async {
        time::sleep(Load::SHORT.takes() / 2).await;
        own.stop().await;
        own.start().await;
    };
    let tally = carry(&own.broker(), Load::SHORT, restart).await;
    println!("{tally}");
    tally.complete();
}

#[tokio::test]
#[ignore = "takes minutes and a broker of its own"]
async fn a_hundred_thousand_delayed_jobs_arrive_once_each_and_none_early() {
    let (own, _place) = own_broker("").await;
    let before = processor_time(&own).await;
    let tally = carry(&own.broker(), Load::long(), async {}).await;
    let used = processor_time(&own).await - before;
    println!("{tally}broker: {:.2} ms of processor time a job", used / tally.arrived() as f64);
    tally.complete();
    assert_eq!((tally.copies, tally.redelivered), (0, 0), "{tally}");
}

#[tokio::test]
#[ignore = "takes minutes and a broker of its own"]
async fn a_hundred_thousand_delayed_jobs_outlive_a_kill_of_the_broker() {
    let (own, _place) = own_broker("").await;
    let kill = async {
        time::sleep(Load::long().takes() / 2).await;
        kill_and_revive(&own).await;
    };
    let tally = carry(&own.broker(), Load::long(), kill).await;
    println!("{tally}");
    tally.complete();
}

/// Publishes the load while something happens, and notes each arrival until all jobs are there and
/// nothing is left.
async fn carry(broker: &Broker, load: Load, meanwhile: impl Future<Output = ()>) -> Tally {
    let config = broker.config().publish_deadline(PATIENCE * 2);
    let producer = Producer::new(&config);
    producer.declare(Note::QUEUE, Default::default()).await.unwrap();
    let declarer = Declarer::new(Link::open(&config, "declare"), &config);
    // With room for what the longest delay is rounded up to.
    let top = Delay::new(load.longest * 2).unwrap().unwrap().level();
    declarer.ensure_ladder(top, soon()).await.unwrap();

    let arrivals = Arc::new(Mutex::new(Vec::new()));
    let queue = config.topology().queue(Note::QUEUE);
    let consuming = consume(broker.url().to_owned(), queue.clone(), Arc::clone(&arrivals));
    let (sent, ()) = tokio::join!(publish(&producer, load), meanwhile);
    let until = Instant::now() + load.longest + PATIENCE * 4;
    while !(distinct(&arrivals) >= sent.len() && nothing_waits(&config, &queue).await) {
        let arrived = distinct(&arrivals);
        assert!(Instant::now() < until, "of {} jobs {arrived} arrived", sent.len());
        time::sleep(Duration::from_millis(200)).await;
    }
    consuming.abort();
    let arrivals = std::mem::take(&mut *arrivals.lock().unwrap());
    Tally::new(&sent, &arrivals)
}

/// A job that was confirmed.
struct Sent {
    id: String,
    began: Instant,
    wanted: Duration,
    carried: Duration,
}

async fn publish(producer: &Producer, load: Load) -> Vec<Sent> {
    let mut tasks = JoinSet::new();
    let mut ticks = time::interval(STEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (began, mut published) = (Instant::now(), 0);
    while published < load.jobs {
        ticks.tick().await;
        let due = (began.elapsed().as_secs_f64() * load.rate as f64) as u64 + 1;
        for n in published..due.min(load.jobs) {
            let producer = producer.clone();
            let wanted =
                Duration::from_millis(fastrand::u64(100..=load.longest.as_millis() as u64));
            tasks.spawn(async move {
                let (id, began) = (n.to_string(), Instant::now());
                let options = PublishOptions::new().queue(Note::QUEUE).id(&id).delay(wanted);
                let receipt = producer.publish_raw(Note::KIND, "{}", options).await.unwrap();
                Sent { id, began, wanted, carried: receipt.delay.unwrap() }
            });
        }
        published = published.max(due.min(load.jobs));
    }
    tasks.join_all().await
}

struct Arrival {
    id: String,
    at: Instant,
    redelivered: bool,
}

/// Consumes for as long as it may, through whatever becomes of its connection.
fn consume(url: String, queue: String, arrivals: Arc<Mutex<Vec<Arrival>>>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            // The broker may be away: the next round tries again.
            _ = consume_once(&url, &queue, &arrivals).await;
            time::sleep(Duration::from_millis(50)).await;
        }
    })
}

async fn consume_once(url: &str, queue: &str, to: &Mutex<Vec<Arrival>>) -> lapin::Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
    let mut batches = consumer.await?.ready_chunks(usize::from(PREFETCH) / 4);
    while let Some(batch) = batches.next().await {
        let at = Instant::now();
        let batch: Vec<_> = batch.into_iter().collect::<lapin::Result<_>>()?;
        let Some(last) = batch.last().map(|delivery| delivery.delivery_tag) else { continue };
        to.lock().unwrap().extend(batch.iter().map(|delivery| {
            let (id, redelivered) = (read(delivery).id, delivery.redelivered);
            Arrival { id, at, redelivered }
        }));
        channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
    }
    Ok(())
}

fn distinct(arrivals: &Mutex<Vec<Arrival>>) -> usize {
    let arrivals = arrivals.lock().unwrap();
    let ids: std::collections::HashSet<_> = arrivals.iter().map(|one| one.id.as_str()).collect();
    ids.len()
}

async fn nothing_waits(config: &Config, queue: &str) -> bool {
    let inspector = Inspector::new(config);
    let levels = inspector.delayed().await.unwrap();
    let ready = inspector.count(queue).await.unwrap();
    inspector.close().await;
    levels.iter().all(|jobs| *jobs == 0) && ready.is_some_and(|count| count.ready == 0)
}

/// Milliseconds that the broker has computed since its start, on all cores together.
async fn processor_time(own: &OwnBroker) -> f64 {
    let said = own.ctl(&["eval", "element(1, erlang:statistics(runtime))."]).await;
    said.trim().parse().unwrap()
}

/// What became of the jobs.
struct Tally {
    /// Confirmed, and did not arrive.
    lost: Vec<String>,
    early: Vec<String>,
    /// Arrived a second time: their ack, or their confirm, did not.
    redelivered: usize,
    copies: usize,
    /// For each job, hops and how late it came.
    late: Vec<(u32, Lateness)>,
}

#[derive(Clone, Copy)]
struct Lateness {
    /// After what was asked for.
    wanted: Duration,
    /// After what the ladder carries.
    carried: Duration,
}

impl Tally {
    fn new(sent: &[Sent], arrivals: &[Arrival]) -> Self {
        let mut by_id: HashMap<&str, Vec<&Arrival>> = HashMap::new();
        for arrival in arrivals {
            by_id.entry(&arrival.id).or_default().push(arrival);
        }
        let mut tally =
            Self { lost: vec![], early: vec![], redelivered: 0, copies: 0, late: vec![] };
        for job in sent {
            let Some(arrivals) = by_id.get(job.id.as_str()) else {
                tally.lost.push(job.id.clone());
                continue;
            };
            let took = arrivals[0].at - job.began;
            if took < job.wanted {
                tally.early.push(format!("{} after {took:?}, not {:?}", job.id, job.wanted));
            }
            let again = arrivals[1..].iter().filter(|arrival| arrival.redelivered).count();
            tally.redelivered += again;
            tally.copies += arrivals.len() - 1 - again;
            let hops = (job.carried.as_millis() / 100).count_ones();
            let wanted = took.saturating_sub(job.wanted);
            tally.late.push((hops, Lateness { wanted, carried: took.saturating_sub(job.carried) }));
        }
        tally
    }

    fn arrived(&self) -> usize {
        self.late.len()
    }

    /// Nothing is lost and nothing early.
    fn complete(&self) {
        assert!(self.lost.is_empty(), "lost: {:?}", self.lost);
        assert!(self.early.is_empty(), "early: {:?}", self.early);
    }

    fn hops(&self) -> f64 {
        let all: u32 = self.late.iter().map(|(hops, _)| hops).sum();
        f64::from(all) / self.arrived() as f64
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (arrived, lost, early) = (self.arrived(), self.lost.len(), self.early.len());
        writeln!(
            f,
            "{arrived} arrived, {lost} lost, {early} early, {:.2} hops a job",
            self.hops()
        )?;
        let (copies, redelivered) = (self.copies, self.redelivered);
        writeln!(f, "{copies} came as a second copy, {redelivered} were delivered again")?;
        let all = || self.late.iter().map(|(_, late)| late);
        writeln!(f, "late, after what was asked for: {}", spread(all().map(|late| late.wanted)))?;
        writeln!(f, "late, after what is carried:    {}", spread(all().map(|late| late.carried)))?;
        let most = self.late.iter().map(|(hops, _)| *hops).max().unwrap_or(0);
        for hops in 1..=most {
            let those = self.late.iter().filter(|(of, _)| *of == hops);
            let late = spread(those.clone().map(|(_, late)| late.carried));
            writeln!(f, "  {hops} hops, {:6} jobs:          {late}", those.count())?;
        }
        Ok(())
    }
}

fn spread(times: impl Iterator<Item = Duration>) -> String {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    let at = |part: f64| {
        let place = ((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1));
        times.get(place).map_or(0, Duration::as_millis)
    };
    let (p50, p90, p99, max) = (at(0.5), at(0.9), at(0.99), at(1.0));
    format!("p50 {p50} ms, p90 {p90} ms, p99 {p99} ms, max {max} ms")
}
