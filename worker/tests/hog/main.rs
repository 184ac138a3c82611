//! Handlers that hog every core, for longer than the broker waits for a heartbeat: no connection is
//! lost, no job runs twice, and other workers stay ready. Alone in its process and among the tests,
//! for it leaves the others little of the machine.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]
#![expect(clippy::needless_pass_by_value, reason = "handlers take what they are given")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use std::{hint, thread};

use forebay_worker::testing::{Broker, broker};
use forebay_worker::{
    Context, Controls, HandlerOptions, Job, JobResult, Producer, QueueOptions, Running, Summary,
    Worker,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio::time;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn handlers_that_hog_every_core_cost_no_connection() {
    // With heartbeats every 10 s the broker ends a silent connection after 20 s.
    hog(Duration::from_secs(25));
}

#[test]
#[ignore = "takes two minutes of every core"]
fn handlers_that_hog_every_core_for_two_minutes_cost_no_connection() {
    hog(Duration::from_secs(120));
}

#[derive(Debug, Serialize, Deserialize)]
struct Spin {
    n: usize,
}

impl Job for Spin {
    const KIND: &'static str = "cpu.spin";
    const QUEUE: &'static str = "async";
}

#[derive(Debug, Serialize, Deserialize)]
struct Block {
    n: usize,
}

impl Job for Block {
    const KIND: &'static str = "cpu.block";
    const QUEUE: &'static str = "blocking";
}

#[derive(Debug, Serialize, Deserialize)]
struct Tick {
    n: usize,
}

impl Job for Tick {
    const KIND: &'static str = "clock.tick";
}

/// What the handlers share: until when they spin, and which runs there were.
#[derive(Clone)]
struct Floor {
    /// For as long as nothing is said: for ever.
    until: Arc<OnceLock<Instant>>,
    runs: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Floor {
    fn note(&self, job: &str) {
        *self.runs.lock().unwrap().entry(job.to_owned()).or_default() += 1;
    }

    fn spin(&self, job: &str) {
        self.note(job);
        while self.until.get().is_none_or(|until| Instant::now() < *until) {
            hint::spin_loop();
        }
    }

    fn seen(&self) -> BTreeMap<String, usize> {
        self.runs.lock().unwrap().clone()
    }

    fn wait_for(&self, what: &str, jobs: usize) {
        let begun = Instant::now();
        while self.seen().len() < jobs {
            assert!(begun.elapsed() < PATIENCE, "{what}: {:?}", self.seen());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Never yields: it takes a thread of the runtime for itself.
async fn spin(job: Spin, cx: Context<Floor>) -> JobResult {
    cx.state().spin(&format!("spin {}", job.n));
    Ok(())
}

fn block(job: Block, cx: Context<Floor>) -> JobResult {
    cx.state().spin(&format!("block {}", job.n));
    Ok(())
}

async fn tick(job: Tick, cx: Context<Floor>) -> JobResult {
    cx.state().note(&format!("tick {}", job.n));
    Ok(())
}

fn hog(duration: Duration) {
    let cores = thread::available_parallelism().unwrap().get();
    let (spinners, blockers) = (3 * cores, 2 * cores);
    let aside = runtime(1);
    let shared = aside.block_on(broker());
    let floor = Floor { until: Arc::default(), runs: Arc::default() };

    let hogged = runtime(cores);
    let (hogs, hogging) = start(&hogged, &shared, {
        let patient = || HandlerOptions::new().timeout(duration + PATIENCE);
        Worker::builder(floor.clone())
            .queue("async", QueueOptions::new().concurrency(spinners))
            .queue("blocking", QueueOptions::new().concurrency(blockers))
            .handle_with(patient(), spin)
            .handle_blocking_with(patient().concurrency(blockers), block)
    });
    let (clock, ticking) = start(&aside, &shared, {
        Worker::builder(floor.clone()).queue("default", QueueOptions::new()).handle(tick)
    });
    wait_until("all queues are consumed", || {
        [&hogs, &clock].iter().all(|controls| controls.queues().iter().all(|q| q.consuming))
    });

    let producer = Producer::new(&shared.config());
    aside.block_on(async {
        for n in 0..blockers {
            producer.publish(&Block { n }).await.unwrap();
        }
    });
    floor.wait_for("the blocking handlers spin", blockers);
    aside.block_on(async {
        for n in 0..spinners {
            producer.publish(&Spin { n }).await.unwrap();
        }
    });
    floor.wait_for("a handler has each thread of the runtime", blockers + cores);
    // What spins ends at one moment: those that only then get a thread end at once.
    let until = *floor.until.get_or_init(|| Instant::now() + duration);

    let mut ticks = 0;
    while Instant::now() < until {
        let status = clock.queues().remove(0);
        assert!(status.consuming, "the other worker is not ready: {:?}", status.because);
        aside.block_on(producer.publish(&Tick { n: ticks })).unwrap();
        ticks += 1;
        wait_until("the other worker does its job", || clock.summary().succeeded == ticks as u64);
        thread::sleep(Duration::from_millis(250));
    }

    let hogged_jobs = (spinners + blockers) as u64;
    wait_until("all are done", || hogs.summary().succeeded == hogged_jobs);
    for (controls, done) in [(&hogs, hogged_jobs), (&clock, ticks as u64)] {
        for status in controls.queues() {
            assert_eq!((status.losses, status.last_loss), (0, None), "{}", status.queue);
        }
        assert_eq!(controls.summary().succeeded, done);
    }
    let summaries = [end(&hogged, hogging), end(&aside, ticking)];
    assert_eq!(summaries.map(|summary| summary.given_back), [0, 0]);
    let runs = floor.seen();
    assert!(runs.values().all(|runs| *runs == 1), "something ran twice: {runs:?}");
    assert_eq!(runs.len(), spinners + blockers + ticks);
    println!("{spinners} async and {blockers} blocking handlers, {ticks} jobs beside them");
    aside.block_on(producer.close());
}

fn runtime(threads: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap()
}

fn start(
    runtime: &Runtime,
    shared: &Broker,
    worker: forebay_worker::WorkerBuilder<Floor>,
) -> (Controls, Running) {
    let url = shared.url();
    assert!(!url.contains('?'), "{url}");
    let config = forebay_worker::Config::new(&format!("{url}?heartbeat=10")).unwrap();
    let config = config.namespace(shared.namespace()).unwrap();
    let _inside = runtime.enter();
    let running = worker.build().unwrap().start(&config);
    (running.controls(), running)
}

fn end(runtime: &Runtime, running: Running) -> Summary {
    running.controls().drain();
    let ended = async { time::timeout(PATIENCE, running.finished()).await };
    runtime.block_on(ended).expect("it ends").expect("it ran")
}

fn wait_until(what: &str, so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
