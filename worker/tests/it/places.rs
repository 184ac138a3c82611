//! Concurrency: places per queue and per handler, alone, paused, paced.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use forebay_producer::{Destination, Envelope};
use forebay_worker::{
    Context, HandlerOptions, Job, JobResult, PublishOptions, QueueOptions, Retry, Worker,
    WorkerBuilder,
};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::support::{Bench, Notes, PATIENCE, Work, eventually, work};

/// Handlers wait here until the test lets them go; it sees how many wait at most.
#[derive(Clone)]
struct Gate {
    inside: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    open: Arc<Semaphore>,
    notes: Notes,
}

impl Gate {
    fn new() -> Self {
        Self {
            inside: Arc::default(),
            most: Arc::default(),
            open: Arc::new(Semaphore::new(0)),
            notes: Notes::default(),
        }
    }

    async fn pass(&self, note: String) {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        self.notes.add(note);
        self.open.acquire().await.unwrap().forget();
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn through_the_gate(job: Work, cx: Context<Gate>) -> JobResult {
    cx.state().pass(format!("work {}", job.n)).await;
    Ok(())
}

/// Prefetch far above concurrency is fine here: nothing takes the five minutes it may.
fn patient(gate: &Gate) -> WorkerBuilder<Gate> {
    Worker::builder(gate.clone()).consumer_timeout(Duration::from_secs(24 * 3600))
}

#[derive(Debug, Serialize, Deserialize)]
struct Other {
    n: u64,
}

impl Job for Other {
    const KIND: &'static str = "other.do";
}

async fn other_through_the_gate(job: Other, cx: Context<Gate>) -> JobResult {
    cx.state().pass(format!("other {}", job.n)).await;
    Ok(())
}

#[tokio::test]
async fn a_queue_runs_no_more_at_once_than_its_concurrency() {
    let gate = Gate::new();
    let worker = patient(&gate)
        .queue("default", QueueOptions::new().concurrency(3).prefetch(50))
        .handle(through_the_gate);
    let bench = Bench::start(worker).await;
    for n in 0..20 {
        bench.producer.publish(&work(n)).await.unwrap();
    }
    gate.notes.wait_for(3).await;
    gate.open.add_permits(20);
    gate.notes.wait_for(20).await;
    bench.until("all are done", |summary| summary.succeeded == 20).await;
    assert_eq!(gate.most.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_handler_with_a_limit_does_not_hold_up_the_others_of_its_queue() {
    let gate = Gate::new();
    let one = HandlerOptions::new().concurrency(1);
    let worker = patient(&gate)
        .queue("default", QueueOptions::new().concurrency(4).prefetch(50))
        .handle_with(one, through_the_gate)
        .handle(other_through_the_gate);
    let bench = Bench::start(worker).await;
    for n in 0..10 {
        bench.producer.publish(&work(n)).await.unwrap();
    }
    for n in 0..3 {
        bench.producer.publish(&Other { n }).await.unwrap();
    }
    let notes = gate.notes.wait_for(4).await;
    assert_eq!(notes.iter().filter(|note| note.starts_with("work")).count(), 1, "{notes:?}");
    gate.open.add_permits(13);
    bench.until("all are done", |summary| summary.succeeded == 13).await;
}

#[tokio::test]
async fn one_worker_consumes_several_queues_each_with_places_of_its_own() {
    let gate = Gate::new();
    let worker = patient(&gate)
        .queue("default", QueueOptions::new().concurrency(1))
        .queue("urgent", QueueOptions::new().concurrency(1))
        .handle(through_the_gate);
    let bench = Bench::start(worker).await;
    bench.producer.publish(&work(1)).await.unwrap();
    gate.notes.wait_for(1).await;
    let urgent = PublishOptions::new().queue("urgent");
    bench.producer.publish_with(&work(2), urgent).await.unwrap();
    assert_eq!(gate.notes.wait_for(2).await, ["work 1", "work 2"]);
    gate.open.add_permits(2);
    bench.until("both are done", |summary| summary.succeeded == 2).await;
}

#[tokio::test]
async fn a_job_that_was_there_when_processes_died_runs_alone() {
    let gate = Gate::new();
    let worker = patient(&gate)
        .queue("default", QueueOptions::new().concurrency(4).prefetch(50))
        .handle(through_the_gate);
    let bench = Bench::start(worker).await;
    let mut suspect = Envelope::new("work.do", "default", r#"{"n":99}"#);
    suspect.crashes = 2;
    let deadline = Instant::now() + PATIENCE;
    bench.producer.send(&suspect, Destination::Queue, deadline).await.unwrap();
    assert_eq!(gate.notes.wait_for(1).await, ["work 99"]);
    for n in 0..4 {
        bench.producer.publish(&work(n)).await.unwrap();
    }
    eventually("the others wait", async || bench.ready("default").await == 0).await;
    assert_eq!(gate.notes.all(), ["work 99"]);
    gate.open.add_permits(5);
    bench.until("all are done", |summary| summary.succeeded == 5).await;
}

#[tokio::test]
async fn one_death_that_a_job_carries_along_does_not_set_it_apart() {
    let gate = Gate::new();
    let worker = patient(&gate)
        .queue("default", QueueOptions::new().concurrency(2))
        .handle(through_the_gate);
    let bench = Bench::start(worker).await;
    let mut job = Envelope::new("work.do", "default", r#"{"n":99}"#);
    job.crashes = 1;
    let deadline = Instant::now() + PATIENCE;
    bench.producer.send(&job, Destination::Queue, deadline).await.unwrap();
    bench.producer.publish(&work(1)).await.unwrap();
    gate.notes.wait_for(2).await;
    gate.open.add_permits(2);
    bench.until("both are done", |summary| summary.succeeded == 2).await;
}

#[tokio::test]
async fn a_paused_queue_gives_back_what_was_not_started_and_goes_on_when_resumed() {
    let gate = Gate::new();
    let worker = patient(&gate)
        .queue("default", QueueOptions::new().concurrency(2).prefetch(10))
        .handle(through_the_gate);
    let bench = Bench::start(worker).await;
    for n in 0..6 {
        bench.producer.publish(&work(n)).await.unwrap();
    }
    gate.notes.wait_for(2).await;
    assert!(bench.controls.pause("default"));
    eventually("four are back", async || bench.ready("default").await == 4).await;
    assert_eq!(bench.controls.queues()[0].because.as_deref(), Some("paused"));
    gate.open.add_permits(6);
    bench.until("the running ones end", |summary| summary.succeeded == 2).await;
    assert_eq!(bench.ready("default").await, 4);
    assert!(bench.controls.resume("default"));
    bench.until("the rest is done", |summary| summary.succeeded == 6).await;
    assert_eq!(bench.controls.summary().given_back, 4);
    assert!(!bench.controls.pause("no-such-queue"));
}

#[tokio::test]
async fn a_rate_limit_waits_for_its_turn_and_never_gives_back() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        cx.state().add(format!("{} {}", job.n, cx.redelivered()));
        Ok(())
    }
    let worker = Worker::builder(notes.clone())
        .queue("default", QueueOptions::new().rate(20.0))
        .handle(handler);
    let mut bench = Bench::start(worker).await;
    bench.consuming("default").await;
    let began = Instant::now();
    for n in 0..10 {
        bench.producer.publish(&work(n)).await.unwrap();
    }
    let all = notes.wait_for(10).await;
    // Ten at twenty a second take at least nine gaps of 50 ms, on however slow a machine.
    assert!(began.elapsed() >= Duration::from_millis(450));
    assert!(all.iter().all(|note| note.ends_with("false")), "{all:?}");
    let summary = bench.drain().await;
    assert_eq!((summary.succeeded, summary.given_back), (10, 0));
}

/// Enough to be taken for one whose jobs always end at once.
const SHORT_JOBS: u64 = 2_000;

/// Job 0 keeps its thread until job 1 has run.
struct Pair {
    meet: std::sync::Mutex<mpsc::Receiver<()>>,
    release: mpsc::Sender<()>,
}

async fn one_keeps_its_thread(job: Work, cx: Context<Pair>) -> JobResult {
    match job.n {
        0 => cx.state().meet.lock().unwrap().recv_timeout(PATIENCE)?,
        1 => cx.state().release.send(())?,
        _ => {}
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_job_that_keeps_its_thread_holds_up_no_other_however_short_they_were_until_then() {
    let (release, meet) = mpsc::channel();
    let pair = Pair { meet: std::sync::Mutex::new(meet), release };
    let worker = Worker::builder(pair)
        .queue("default", QueueOptions::new().concurrency(4))
        .handle_with(HandlerOptions::new().retry(Retry::never()), one_keeps_its_thread);
    let bench = Bench::start(worker).await;
    let jobs: Vec<_> = (2..SHORT_JOBS + 2).map(work).collect();
    bench.producer.publish_all(stream::iter(jobs)).await.unwrap();
    bench.until("the short ones are done", |summary| summary.succeeded == SHORT_JOBS).await;
    bench.producer.publish(&work(0)).await.unwrap();
    bench.producer.publish(&work(1)).await.unwrap();
    bench.until("both are done", |summary| summary.succeeded == SHORT_JOBS + 2).await;
}
