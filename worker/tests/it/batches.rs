//! Batches: gathered by size and window, run by one call, each job settled on its own.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use forebay_producer::wire::envelope::now_ms;
use forebay_producer::{CallError, Destination, Envelope};
use forebay_worker::idempotency::{Idempotency, MemoryStore};
use forebay_worker::testing::{self, Broker, Fate, Proxy, broker};
use forebay_worker::{
    BatchContext, BatchOptions, BatchResult, Config, Context, HandlerOptions, Job, JobError,
    JobResult, Next, Output, Producer, PublishOptions, QueueOptions, Results, Retry, SigningKeys,
    Worker, WorkerBuilder,
};
use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::{self, Instant};

use crate::support::{Bench, Notes, PATIENCE, Work, dead_of, eventually, work};

type Item = forebay_worker::Item<Work>;

/// Longer than any test.
const AGES: Duration = Duration::from_secs(600);
const SOON: Duration = Duration::from_millis(100);

fn quick(attempts: u32) -> HandlerOptions {
    HandlerOptions::new().retry(Retry::fixed(attempts, SOON))
}

fn of(size: usize) -> BatchOptions {
    BatchOptions::new().size(size).window(AGES)
}

fn on_default<S: Send + Sync + 'static>(state: S) -> WorkerBuilder<S> {
    Worker::builder(state).queue("default", QueueOptions::new())
}

async fn publish(bench: &Bench, jobs: u64) {
    let published = (0..jobs).map(|n| {
        let producer = bench.producer.clone();
        async move { producer.publish(&work(n)).await }
    });
    for receipt in join_all(published).await {
        receipt.unwrap();
    }
}

/// `3: 0#1 1#1 2#1`, the numbers in order.
fn listed(items: &[Item]) -> String {
    let mut jobs: Vec<_> = items.iter().map(|item| (item.job.n, item.attempt())).collect();
    jobs.sort_unstable();
    let jobs: Vec<_> = jobs.iter().map(|(n, attempt)| format!("{n}#{attempt}")).collect();
    format!("{}: {}", items.len(), jobs.join(" "))
}

async fn noting(items: Vec<Item>, cx: BatchContext<Notes>) -> BatchResult {
    cx.state().add(listed(&items));
    Ok(Results::done())
}

#[tokio::test]
async fn a_full_batch_does_not_wait_for_its_window() {
    let notes = Notes::default();
    let worker = on_default(notes.clone()).handle_batch_with(HandlerOptions::new(), of(3), noting);
    let mut bench = Bench::start(worker).await;
    publish(&bench, 6).await;
    let batches = notes.wait_for(2).await;
    assert!(batches.iter().all(|batch| batch.starts_with("3: ")), "{batches:?}");
    bench.until("all six are settled", |summary| summary.succeeded == 6).await;
    assert_eq!(bench.drain().await.given_back, 0);
    assert_eq!(bench.ready("default").await, 0);
}

#[tokio::test]
async fn a_batch_that_is_not_full_runs_when_its_window_is_over() {
    let notes = Notes::default();
    let batch = BatchOptions::new().size(1_000).window(Duration::from_millis(300));
    let worker = on_default(notes.clone()).handle_batch_with(HandlerOptions::new(), batch, noting);
    let mut bench = Bench::start(worker).await;
    publish(&bench, 2).await;
    bench.until("both are settled", |summary| summary.succeeded == 2).await;
    assert_eq!(bench.drain().await.succeeded, 2);
}

#[derive(Clone)]
struct Gate {
    notes: Notes,
    open: Arc<Semaphore>,
    inside: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Gate {
    fn new() -> Self {
        let (inside, most) = (Arc::default(), Arc::default());
        Self { notes: Notes::default(), open: Arc::new(Semaphore::new(0)), inside, most }
    }
}

async fn through_the_gate(items: Vec<Item>, cx: BatchContext<Gate>) -> BatchResult {
    let gate = cx.state();
    let inside = gate.inside.fetch_add(1, Ordering::SeqCst) + 1;
    gate.most.fetch_max(inside, Ordering::SeqCst);
    gate.notes.add(listed(&items));
    gate.open.acquire().await?.forget();
    gate.inside.fetch_sub(1, Ordering::SeqCst);
    Ok(Results::done())
}

#[tokio::test]
async fn concurrency_counts_batches_and_what_runs_is_shown_with_its_batch() {
    let gate = Gate::new();
    let two = HandlerOptions::new().concurrency(2);
    let worker = on_default(gate.clone()).handle_batch_with(two, of(2), through_the_gate);
    let mut bench = Bench::start(worker).await;
    publish(&bench, 8).await;
    gate.notes.wait_for(2).await;
    let running = bench.controls.running();
    let batches: BTreeSet<_> = running.iter().map(|job| job.batch.unwrap()).collect();
    assert_eq!((running.len(), batches.len()), (4, 2), "{running:?}");
    gate.open.add_permits(4);
    bench.until("all are done", |summary| summary.succeeded == 8).await;
    assert_eq!(gate.most.load(Ordering::SeqCst), 2);
    assert_eq!(bench.drain().await.succeeded, 8);
}

#[tokio::test]
async fn while_no_place_is_free_a_batch_goes_on_filling() {
    let gate = Gate::new();
    let batch = BatchOptions::new().size(4).window(Duration::ZERO);
    let worker =
        on_default(gate.clone()).handle_batch_with(HandlerOptions::new(), batch, through_the_gate);
    let mut bench = Bench::start(worker).await;
    bench.producer.publish(&work(100)).await.unwrap();
    gate.notes.wait_for(1).await;
    publish(&bench, 4).await;
    eventually("all are here", async || bench.controls.queues()[0].held == 4).await;
    gate.open.add_permits(2);
    assert_eq!(gate.notes.wait_for(2).await, ["1: 100#1", "4: 0#1 1#1 2#1 3#1"]);
    assert_eq!(bench.drain().await.succeeded, 5);
}

#[tokio::test]
async fn each_job_is_settled_by_what_is_said_of_it() {
    let notes = Notes::default();
    async fn handler(items: Vec<Item>, cx: BatchContext<Notes>) -> BatchResult {
        cx.state().add(listed(&items));
        let mut results = Results::done();
        for item in &items {
            match (item.job.n, item.attempt()) {
                (1, _) => results.fail(item, JobError::reject(anyhow::anyhow!("no such row"))),
                (2, 1) => results.fail(item, anyhow::anyhow!("locked")),
                (3, 1) => results.fail(item, JobError::retry_after(SOON)),
                (4, 1) if cx.state().all().len() == 1 => {
                    results.fail(item, JobError::defer(SOON));
                }
                _ => {}
            }
        }
        Ok(results)
    }
    let batch = BatchOptions::new().size(6).window(Duration::from_millis(500));
    let worker = on_default(notes.clone()).handle_batch_with(quick(5), batch, handler);
    let mut bench = Bench::start(worker).await;
    publish(&bench, 6).await;
    bench.until("five are done", |summary| summary.succeeded == 5 && summary.dead == 1).await;
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!(
        (letter.reason.as_str(), &*letter.envelope.payload),
        ("rejected", &br#"{"n":1}"#[..])
    );
    assert_eq!(letter.envelope.failures[0].message, "no such row");
    let batches = notes.all();
    assert_eq!(batches[0], "6: 0#1 1#1 2#1 3#1 4#1 5#1");
    let again: BTreeSet<_> =
        batches[1..].iter().flat_map(|batch| batch.split(' ').skip(1)).collect();
    assert_eq!(again, BTreeSet::from(["2#2", "3#2", "4#1"]));
    let summary = bench.drain().await;
    assert_eq!((summary.retried, summary.put_off), (2, 1));
}

#[tokio::test]
async fn an_error_fails_every_job_by_its_own_attempts() {
    let notes = Notes::default();
    async fn handler(items: Vec<Item>, cx: BatchContext<Notes>) -> BatchResult {
        cx.state().add(listed(&items));
        Err(JobError::retry(anyhow::anyhow!("refused").context("inserting")))
    }
    let worker = on_default(notes.clone()).handle_batch_with(quick(2), of(2), handler);
    let mut bench = Bench::start(worker).await;
    // One of them has used an attempt already.
    let mut second = Envelope::new("work.do", "default", r#"{"n":1}"#);
    second.attempt = 2;
    let deadline = Instant::now() + PATIENCE;
    bench.producer.send(&second, Destination::Queue, deadline).await.unwrap();
    bench.producer.publish(&work(0)).await.unwrap();
    assert_eq!(notes.wait_for(1).await, ["2: 0#1 1#2"]);
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!((letter.reason.as_str(), letter.envelope.attempt), ("failed", 2));
    assert_eq!(letter.envelope.failures[0].message, "inserting: refused");
    // Alone in its window now: the drain runs it.
    eventually("the other one is back", async || bench.controls.queues()[0].held == 1).await;
    let summary = bench.drain().await;
    assert_eq!((summary.retried, summary.dead), (1, 2), "{summary:?}");
    assert_eq!(notes.all()[1], "1: 0#2");
}

#[tokio::test]
async fn a_panic_and_a_timeout_fail_every_job_and_end_the_function() {
    struct Noted(Notes);
    impl Drop for Noted {
        fn drop(&mut self) {
            self.0.add("dropped");
        }
    }
    async fn handler(items: Vec<Item>, cx: BatchContext<Notes>) -> BatchResult {
        cx.state().add(listed(&items));
        match items[0].attempt() {
            1 => panic!("index out of thin air"),
            2 => {
                let _noted = Noted(cx.state().clone());
                std::future::pending().await
            }
            _ => Err(JobError::reject(anyhow::anyhow!("enough"))),
        }
    }
    let notes = Notes::default();
    let options = quick(9).timeout(Duration::from_millis(500));
    let batch = BatchOptions::new().size(2).window(Duration::from_secs(5));
    let worker = on_default(notes.clone()).handle_batch_with(options, batch, handler);
    let bench = Bench::start(worker).await;
    publish(&bench, 2).await;
    let letters = bench.dead("default", 2).await;
    for letter in letters {
        let failures = &letter.envelope.failures;
        let reasons: Vec<_> = failures.iter().map(|failure| failure.reason.as_str()).collect();
        assert_eq!(reasons, ["panic", "timeout", "rejected"]);
        assert_eq!(failures[0].message, "the handler panicked: index out of thin air");
        assert!(failures[1].message.contains("timeout of 500ms"), "{}", failures[1].message);
    }
    let expected = ["2: 0#1 1#1", "2: 0#2 1#2", "dropped", "2: 0#3 1#3"];
    assert_eq!(notes.all(), expected);
}

#[tokio::test]
async fn calls_are_answered_one_by_one() {
    async fn handler(items: Vec<Item>, _cx: BatchContext<()>) -> BatchResult<u64> {
        let odd = || JobError::reject(anyhow::anyhow!("odd"));
        let twice = |n| if n % 2 == 0 { Ok(2 * n) } else { Err(odd()) };
        Ok(items.iter().map(|item| twice(item.job.n)).collect())
    }
    let worker = on_default(()).handle_batch_with(HandlerOptions::new(), of(4), handler);
    let mut bench = Bench::start(worker).await;
    let calls = (0..4).map(|n| {
        let producer = bench.producer.clone();
        async move { producer.call::<_, u64>(&work(n), PATIENCE).await }
    });
    let answers = join_all(calls).await;
    assert_eq!((answers[0].as_ref().unwrap(), answers[2].as_ref().unwrap()), (&0, &4));
    for odd in [1, 3] {
        let error = answers[odd].as_ref().unwrap_err();
        assert!(matches!(error, CallError::Dead { .. }), "{error}");
    }
    bench.drain().await;
}

#[tokio::test]
async fn what_cannot_be_run_is_settled_before_the_batch_and_takes_no_room() {
    let notes = Notes::default();
    let worker = on_default(notes.clone()).handle_batch_with(HandlerOptions::new(), of(2), noting);
    let bench = Bench::start(worker).await;
    let send = async |payload: &str, change: fn(&mut Envelope)| {
        let mut job = Envelope::new("work.do", "default", payload.to_owned());
        change(&mut job);
        let deadline = Instant::now() + PATIENCE;
        bench.producer.send(&job, Destination::Queue, deadline).await.unwrap();
    };
    send(r#"{"n":0}"#, |_| {}).await;
    send("{oops", |_| {}).await;
    send(r#"{"n":"x"}"#, |job| job.graces = 3).await;
    send(r#"{"n":9}"#, |job| job.expires_at_ms = Some(now_ms() - 1_000)).await;
    let letters = bench.dead("default", 3).await;
    let reasons: BTreeSet<_> = letters.iter().map(|letter| letter.reason.as_str()).collect();
    assert_eq!(reasons, BTreeSet::from(["undecodable", "unknown_kind", "expired"]));
    assert!(notes.all().is_empty(), "the first still waits for a second");
    send(r#"{"n":1}"#, |_| {}).await;
    assert_eq!(notes.wait_for(1).await, ["2: 0#1 1#1"]);
}

#[tokio::test]
async fn a_drain_in_the_middle_of_a_window_runs_what_was_gathered() {
    let notes = Notes::default();
    let worker = on_default(notes.clone()).handle_batch_with(HandlerOptions::new(), of(9), noting);
    let mut bench = Bench::start(worker).await;
    publish(&bench, 3).await;
    eventually("all are here", async || bench.controls.queues()[0].held == 3).await;
    let summary = bench.drain().await;
    assert_eq!((summary.succeeded, summary.given_back), (3, 0));
    assert_eq!(notes.all(), ["3: 0#1 1#1 2#1"]);
}

#[tokio::test]
async fn a_drain_gives_back_what_waits_for_a_place_and_lets_the_running_batch_end() {
    let gate = Gate::new();
    // Otherwise the prefetch would be as small as its consumer timeout wants.
    let short = HandlerOptions::new().timeout(Duration::from_secs(60));
    let worker = on_default(gate.clone()).handle_batch_with(short, of(2), through_the_gate);
    let mut bench = Bench::start(worker).await;
    publish(&bench, 5).await;
    gate.notes.wait_for(1).await;
    eventually("all are here", async || bench.controls.queues()[0].held == 3).await;
    bench.controls.drain();
    eventually("three are back", async || bench.ready("default").await == 3).await;
    gate.open.add_permits(1);
    let summary = bench.drain().await;
    assert_eq!((summary.succeeded, summary.given_back), (2, 3));
}

#[tokio::test]
async fn what_still_runs_after_the_grace_period_goes_back() {
    let gate = Gate::new();
    let worker = on_default(gate.clone()).grace(Duration::from_millis(200)).handle_batch_with(
        HandlerOptions::new(),
        of(2),
        through_the_gate,
    );
    let mut bench = Bench::start(worker).await;
    publish(&bench, 2).await;
    gate.notes.wait_for(1).await;
    let summary = bench.drain().await;
    assert_eq!((summary.succeeded, summary.given_back), (0, 2));
    eventually("both are back", async || bench.ready("default").await == 2).await;
}

#[tokio::test]
async fn a_connection_that_is_cut_while_a_batch_runs_ends_it_and_its_jobs_come_again() {
    let gate = Gate::new();
    let shared = broker().await;
    let proxy = Proxy::to(&shared.address()).await;
    let worker =
        on_default(gate.clone()).handle_batch_with(HandlerOptions::new(), of(3), through_the_gate);
    let mut bench = Bench::on(Broker::at(&proxy.url()), worker);
    bench.consuming("default").await;
    publish(&bench, 3).await;
    gate.notes.wait_for(1).await;
    proxy.cut();
    // The first call was dropped at its gate: a place is free for the second.
    let batches = gate.notes.wait_for(2).await;
    assert_eq!(batches, ["3: 0#1 1#1 2#1"; 2]);
    gate.open.add_permits(1);
    bench.until("all are done", |summary| summary.succeeded == 3).await;
    bench.drain().await;
}

#[tokio::test]
async fn a_connection_that_is_cut_while_a_batch_is_settled_loses_none_of_its_jobs() {
    #[derive(Clone)]
    struct Shared {
        returns: Arc<Semaphore>,
        done: Notes,
    }
    // Odd ones fail at first, so that half is acked and half published again.
    async fn handler(items: Vec<Item>, cx: BatchContext<Shared>) -> BatchResult {
        let mut results = Results::done();
        for item in &items {
            if item.job.n % 2 == 1 && item.attempt() == 1 {
                results.fail(item, anyhow::anyhow!("odd"));
            } else {
                cx.state().done.add(item.job.n.to_string());
            }
        }
        cx.state().returns.add_permits(1);
        Ok(results)
    }
    let shared = Shared { returns: Arc::new(Semaphore::new(0)), done: Notes::default() };
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let batch = BatchOptions::new().size(100).window(Duration::from_secs(1));
    let worker = on_default(shared.clone()).handle_batch_with(quick(9), batch, handler);
    let mut bench = Bench::on(Broker::at(&proxy.url()), worker);
    bench.consuming("default").await;
    publish(&bench, 200).await;
    // Once: a job whose connection was lost twice is a suspect, and runs alone.
    shared.returns.acquire().await.unwrap().forget();
    proxy.cut();
    let expected: BTreeSet<_> = (0..200).map(|n: u64| n.to_string()).collect();
    eventually("each is done", async || {
        shared.done.all().into_iter().collect::<BTreeSet<_>>() == expected
    })
    .await;
    eventually("nothing is here any more", async || {
        let status = bench.controls.queues().remove(0);
        status.consuming && status.held + status.running == 0 && bench.ready("default").await == 0
    })
    .await;
    assert_eq!(bench.drain().await.dead, 0);
    assert_eq!(bench.ready("default").await, 0);
}

#[tokio::test]
async fn a_pause_runs_what_was_gathered_and_a_resumed_queue_gathers_again() {
    let notes = Notes::default();
    let worker = on_default(notes.clone()).handle_batch_with(HandlerOptions::new(), of(3), noting);
    let mut bench = Bench::start(worker).await;
    publish(&bench, 2).await;
    eventually("both are here", async || bench.controls.queues()[0].held == 2).await;
    bench.controls.pause("default");
    assert_eq!(notes.wait_for(1).await, ["2: 0#1 1#1"]);
    bench.idle("default").await;
    publish(&bench, 3).await;
    bench.controls.resume("default");
    assert_eq!(notes.wait_for(2).await[1], "3: 0#1 1#1 2#1");
    assert_eq!(bench.drain().await.succeeded, 5);
}

/// Holds a place of its queue.
#[derive(serde::Serialize, serde::Deserialize)]
struct Hog;

impl Job for Hog {
    const KIND: &'static str = "work.hog";
}

#[tokio::test]
async fn what_waits_for_a_place_for_too_long_is_given_back() {
    async fn hog(_: Hog, cx: Context<Gate>) -> JobResult {
        cx.state().notes.add("hog");
        cx.state().open.acquire().await?.forget();
        Ok(())
    }
    let gate = Gate::new();
    let within = |seconds| HandlerOptions::new().timeout(Duration::from_secs(seconds));
    let batch = BatchOptions::new().size(2).window(SOON);
    // With a timeout of 8 s a batch may wait for 1.6 s: all of it is to end within 9.6 s.
    let worker = Worker::builder(gate.clone())
        .consumer_timeout(Duration::from_secs(12))
        .queue("default", QueueOptions::new().concurrency(1).prefetch(2))
        .handle_with(within(4), hog)
        .handle_batch_with(within(8), batch, through_the_gate);
    let mut bench = Bench::start(worker).await;
    bench.producer.publish(&Hog).await.unwrap();
    gate.notes.wait_for(1).await;
    publish(&bench, 1).await;
    bench.until("it is given back", |summary| summary.given_back >= 1).await;
    assert_eq!(gate.notes.all(), ["hog"]);
    gate.open.add_permits(2);
    bench.until("it was run after all", |summary| summary.succeeded == 2).await;
    assert_eq!(gate.notes.all(), ["hog", "1: 0#1"]);
    bench.drain().await;
}

#[tokio::test]
async fn a_window_as_long_as_a_delivery_may_wait_is_run_and_not_given_back() {
    let notes = Notes::default();
    let batch = BatchOptions::new().size(9).window(Duration::from_secs(3));
    let worker = on_default(notes.clone())
        .consumer_timeout(Duration::from_secs(6))
        .handle_batch_with(HandlerOptions::new().timeout(Duration::from_secs(1)), batch, noting);
    let mut bench = Bench::start(worker).await;
    publish(&bench, 2).await;
    assert_eq!(notes.wait_for(1).await, ["2: 0#1 1#1"]);
    let summary = bench.drain().await;
    assert_eq!((summary.succeeded, summary.given_back), (2, 0));
}

#[tokio::test]
async fn a_middleware_that_leaves_a_batch_to_a_task_does_not_keep_its_place_for_ever() {
    async fn elsewhere(cx: Context<Notes>, next: Next<Notes>) -> JobResult<Output> {
        tokio::spawn(next.run(cx)).await?
    }
    async fn handler(items: Vec<Item>, cx: BatchContext<Notes>) -> BatchResult {
        cx.state().add(listed(&items));
        if items[0].attempt() == 1 {
            std::future::pending::<()>().await;
        }
        Ok(Results::done())
    }
    let notes = Notes::default();
    let options = quick(2).timeout(Duration::from_millis(300));
    let worker = on_default(notes.clone()).middleware(elsewhere);
    let mut bench = Bench::start(worker.handle_batch_with(options, of(1), handler)).await;
    bench.producer.publish(&work(0)).await.unwrap();
    bench.until("the second attempt is done", |summary| summary.succeeded == 1).await;
    assert_eq!(notes.all(), ["1: 0#1", "1: 0#2"]);
    assert_eq!(bench.drain().await.retried, 1);
}

#[tokio::test]
async fn a_middleware_that_never_hands_in_a_job_does_not_keep_the_place_of_its_batch() {
    async fn never(cx: Context<Notes>, next: Next<Notes>) -> JobResult<Output> {
        let first = cx.attempt() == 1;
        tokio::spawn(async move {
            if first {
                std::future::pending::<()>().await;
            }
            next.run(cx).await
        })
        .await?
    }
    let notes = Notes::default();
    let options = quick(2).timeout(Duration::from_millis(300));
    let worker = on_default(notes.clone()).middleware(never);
    let mut bench = Bench::start(worker.handle_batch_with(options, of(1), noting)).await;
    bench.producer.publish(&work(0)).await.unwrap();
    bench.until("the second attempt is done", |summary| summary.succeeded == 1).await;
    assert_eq!(notes.all(), ["1: 0#2"]);
    assert_eq!(bench.drain().await.retried, 1);
}

#[tokio::test]
async fn a_job_that_is_not_signed_takes_no_room_and_retries_of_a_batch_stay_signed() {
    let keys = || SigningKeys::parse("one=0123456789abcdef0123456789abcdef").unwrap();
    async fn handler(items: Vec<Item>, cx: BatchContext<Notes>) -> BatchResult {
        cx.state().add(listed(&items));
        match items[0].attempt() {
            1 => Err(anyhow::anyhow!("first").into()),
            _ => Ok(Results::done()),
        }
    }
    let notes = Notes::default();
    let batch = BatchOptions::new().size(2).window(Duration::from_secs(5));
    let worker = on_default(notes.clone()).require_signatures(keys());
    let mut bench = Bench::start(worker.handle_batch_with(quick(2), batch, handler)).await;
    let signing = Producer::new(&bench.config().signing_keys(keys()));
    signing.publish(&work(0)).await.unwrap();
    bench.producer.publish(&work(7)).await.unwrap();
    assert_eq!(bench.dead("default", 1).await[0].envelope.payload, r#"{"n":7}"#);
    assert!(notes.all().is_empty(), "the first still waits for a second");
    signing.publish(&work(1)).await.unwrap();
    assert_eq!(notes.wait_for(2).await, ["2: 0#1 1#1", "2: 0#2 1#2"]);
    assert_eq!(bench.drain().await.succeeded, 2);
}

#[tokio::test]
async fn middleware_runs_around_each_job_and_may_keep_it_out_of_the_batch() {
    async fn only_small(cx: Context<Notes>, next: Next<Notes>) -> JobResult<Output> {
        if cx.envelope().payload.len() > 8 {
            return Ok(Output::from_json("\"too large\""));
        }
        let output = next.run(cx.clone()).await?;
        cx.state().add(format!("around {}", String::from_utf8_lossy(&cx.envelope().payload)));
        Ok(output)
    }
    let notes = Notes::default();
    let worker = on_default(notes.clone()).middleware(only_small).handle_batch_with(
        HandlerOptions::new(),
        of(3),
        noting,
    );
    let mut bench = Bench::start(worker).await;
    for n in [1, 2, 100] {
        bench.producer.publish(&work(n)).await.unwrap();
    }
    bench.until("all are done", |summary| summary.succeeded == 3).await;
    let mut all = notes.all();
    all[1..].sort();
    assert_eq!(all, ["2: 1#1 2#1", "around {\"n\":1}", "around {\"n\":2}"]);
    bench.drain().await;
}

#[tokio::test]
async fn jobs_of_one_key_in_one_batch_are_run_once() {
    async fn handler(items: Vec<Item>, cx: BatchContext<Notes>) -> BatchResult<u64> {
        cx.state().add(listed(&items));
        assert!(items.iter().all(|item| item.claim_number().is_some()));
        Ok(items.iter().map(|item| Ok(item.job.n)).collect())
    }
    let notes = Notes::default();
    let batch = BatchOptions::new().size(3).window(Duration::from_millis(500));
    let worker = on_default(notes.clone())
        .idempotency(Idempotency::new(MemoryStore::new()).recheck(SOON))
        .handle_batch_with(HandlerOptions::new(), batch, handler);
    let mut bench = Bench::start(worker).await;
    let calls = [(1, "a"), (1, "a"), (2, "b")].map(|(n, key)| {
        let producer = bench.producer.clone();
        let options = PublishOptions::new().idempotency_key(key);
        async move { producer.call_with::<_, u64>(&work(n), options, PATIENCE).await.unwrap() }
    });
    assert_eq!(join_all(calls).await, [1, 1, 2]);
    let summary = bench.drain().await;
    assert_eq!((summary.succeeded, summary.duplicates), (2, 1), "{:?}", notes.all());
}

#[tokio::test]
async fn a_claim_is_released_when_its_job_is_given_back() {
    let gate = Gate::new();
    let once = Idempotency::new(MemoryStore::new());
    let worker = |state: Gate| {
        on_default(state).idempotency(once.clone()).handle_batch_with(
            HandlerOptions::new(),
            of(1),
            through_the_gate,
        )
    };
    let mut bench = Bench::start(worker(gate.clone())).await;
    publish(&bench, 2).await;
    gate.notes.wait_for(1).await;
    bench.controls.drain();
    eventually("the second is back", async || bench.ready("default").await == 1).await;
    gate.open.add_permits(2);
    assert_eq!(bench.drain().await.given_back, 1);
    // The lease would be 30 s.
    let next = worker(gate.clone()).build().unwrap().start(&bench.config());
    gate.notes.wait_for(2).await;
    next.controls().drain();
    let summary = next.finished().await.unwrap();
    assert_eq!((summary.succeeded, summary.put_off), (1, 0));
}

#[tokio::test]
async fn without_a_broker_jobs_are_run_together_and_alone() {
    async fn handler(items: Vec<Item>, _cx: BatchContext<()>) -> BatchResult<usize> {
        if items.iter().any(|item| item.job.n == 13) {
            return Ok(Results::new());
        }
        let results = Results::from_iter(items.iter().map(|_| Ok(items.len())));
        if items.iter().any(|item| item.job.n == 14) {
            Ok([Ok(1)].into_iter().collect())
        } else {
            Ok(results)
        }
    }
    let worker = on_default(()).handle_batch(handler).build().unwrap();
    assert_eq!(testing::run(&worker, &work(1)).await, Fate::Done(json!(1)));
    let jobs: Vec<_> = (0..7).map(work).collect();
    let together = testing::run_batch(&worker, &jobs).await;
    assert_eq!(together, vec![Fate::Done(json!(7)); 7]);
    let said = |fate: &Fate| match fate {
        Fate::Again { attempt: 2, message, .. } => message.clone(),
        other => panic!("{other:?}"),
    };
    let silent = testing::run_batch(&worker, &[work(13), work(1)]).await;
    assert_eq!(said(&silent[1]), "the batch handler said nothing about this job");
    let too_few = testing::run_batch(&worker, &[work(14), work(1)]).await;
    assert_eq!(said(&too_few[0]), "the batch handler returned 1 results for 2 jobs");
}

#[test]
fn batches_that_could_never_be_full_or_in_time_are_refused() {
    let faults = |queue: QueueOptions, options: HandlerOptions, batch: BatchOptions| {
        let worker = Worker::builder(Notes::default()).queue("default", queue);
        let built = worker.handle_batch_with(options, batch, noting).build();
        built.err().map(|error| error.faults.join("; ")).unwrap_or_default()
    };
    let (queue, options) = (QueueOptions::new, HandlerOptions::new);
    let minute = Duration::from_secs(60);
    for (found, words) in [
        (faults(queue().prefetch(99), options(), of(100)), "the prefetch of its queue is 99"),
        (
            faults(queue().prefetch(100), options().concurrency(2), of(100)),
            "200 jobs (size 100 × 2",
        ),
        (faults(queue().concurrency(1).prefetch(100), options().concurrency(2), of(100)), ""),
        (faults(queue(), options().concurrency(1), of(40_000)), ""),
        (
            faults(queue().concurrency(9), options().concurrency(2), of(40_000)),
            "80000 jobs at once",
        ),
        (faults(queue(), options(), of(0)), "batches of 0 jobs"),
        (faults(queue(), options(), of(2).window(16 * minute)), "has a window of 16m, and"),
        (faults(queue(), options().timeout(12 * minute), of(2).window(12 * minute)), ""),
        (
            faults(queue().prefetch(2), options().timeout(20 * minute), of(2).window(5 * minute)),
            "20m × 1 rounds of the prefetch window, and the window of a batch",
        ),
    ] {
        assert!(found.contains(words) && found.is_empty() == words.is_empty(), "{found}, {words}");
    }
    let limits = |handler: HandlerOptions| {
        let worker = Worker::builder(Notes::default()).queue("default", queue().concurrency(4));
        let worker = worker.handle_batch_with(handler, of(100), noting).build().unwrap();
        worker.limits("default").unwrap()
    };
    let short = || options().timeout(minute);
    assert_eq!((limits(short()), limits(short().concurrency(3))), ((4, 200), (4, 400)));
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn rows_that_are_inserted_in_batches_are_there_exactly_once() {
    use forebay_worker::idempotency::Inbox;

    async fn insert(items: Vec<Item>, cx: BatchContext<Inbox>) -> BatchResult {
        let numbers: Vec<_> = items.iter().map(|item| item.job.n as i64).collect();
        let database = cx.state().pool().get().await?;
        // Without `ON CONFLICT`: a second insert of one row would fail its whole batch.
        let insert = "INSERT INTO rows SELECT * FROM unnest($1::bigint[])";
        database.execute(insert, &[&numbers]).await?;
        Ok(Results::done())
    }
    let database = testing::postgres().await;
    database.sql("CREATE TABLE rows (n bigint PRIMARY KEY)").await;
    let batch = BatchOptions::new().size(64);
    let worker = on_default(Inbox::new(database.url()).unwrap());
    let worker = worker.handle_batch_with(HandlerOptions::new().concurrency(2), batch, insert);
    let mut bench = Bench::start(worker).await;
    publish(&bench, 1_000).await;
    bench.until("all are in", |summary| summary.succeeded == 1_000).await;
    assert_eq!(database.sql("SELECT count(*), sum(n) FROM rows").await.trim(), "1000|499500");
    let summary = bench.drain().await;
    assert_eq!((summary.retried, summary.dead, summary.given_back), (0, 0, 0));
}

const KILLER: u64 = 50;
const JOBS: u64 = 100;

/// Not a test of its own: the worker process that the test below starts again and again.
#[tokio::test]
async fn child() {
    let (Ok(url), Ok(namespace)) =
        (std::env::var("FOREBAY_TEST_BATCH_URL"), std::env::var("FOREBAY_TEST_BATCH_NAMESPACE"))
    else {
        return;
    };
    async fn handler(items: Vec<Item>, _cx: BatchContext<()>) -> BatchResult {
        time::sleep(Duration::from_millis(20)).await;
        for item in items.iter().filter(|item| item.crashes() > 0) {
            println!("suspect {} among {}", item.job.n, items.len());
        }
        if items.iter().any(|item| item.job.n == KILLER) {
            std::process::abort();
        }
        items.iter().for_each(|item| println!("done {}", item.job.n));
        Ok(Results::done())
    }
    let config = Config::new(&url).unwrap().namespace(&namespace).unwrap();
    let worker = Worker::builder(())
        .consumer_timeout(Duration::from_secs(24 * 3600))
        .queue("default", QueueOptions::new().concurrency(4).max_crashes(6))
        .handle_batch_with(HandlerOptions::new(), BatchOptions::new().size(20), handler)
        .build()
        .unwrap();
    worker.run(&config, std::future::pending()).await.unwrap();
}

#[tokio::test]
async fn a_job_that_kills_its_process_ends_alone_in_its_batch_and_the_others_are_done() {
    let broker = broker().await;
    broker.owns("default");
    let producer = Producer::new(&broker.config());
    for n in 0..JOBS {
        producer.publish(&work(n)).await.unwrap();
    }
    let (mut done, mut suspects) = (BTreeSet::new(), BTreeSet::new());
    let dead = broker.config().topology().dead_queue("default");
    let inspector = forebay_producer::Inspector::new(&broker.config());
    let live = async {
        loop {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["batches::child", "--exact", "--nocapture"])
                .env("FOREBAY_TEST_BATCH_URL", broker.url())
                .env("FOREBAY_TEST_BATCH_NAMESPACE", broker.namespace())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            loop {
                match time::timeout(Duration::from_secs(1), lines.next_line()).await {
                    Ok(Ok(Some(line))) => {
                        let number = |n: &str| n.parse::<u64>().ok();
                        done.extend(line.split("done ").nth(1).and_then(number));
                        let suspect = line.split("suspect ").nth(1);
                        suspects.extend(
                            suspect
                                .and_then(|text| text.split_once(" among "))
                                .map(|(n, others)| (number(n).unwrap(), number(others).unwrap())),
                        );
                    }
                    Ok(_) => break,
                    // All is quiet: it may be dead at last, and the others done.
                    Err(_) => {
                        let count = inspector.count(&dead).await.unwrap();
                        let over = count.is_some_and(|count| count.ready > 0);
                        if over && done.len() as u64 == JOBS - 1 {
                            return;
                        }
                    }
                }
            }
            child.wait().await.unwrap();
        }
    };
    let ended = time::timeout(Duration::from_secs(240), live).await;
    let missing: Vec<_> = (0..JOBS).filter(|n| !done.contains(n)).collect();
    assert!(ended.is_ok(), "not over within four minutes: {missing:?} are not done");
    let letter = dead_of(&broker.config(), "default", 1).await.remove(0);
    assert_eq!(letter.reason, "crashed");
    assert_eq!(letter.envelope.payload, format!(r#"{{"n":{KILLER}}}"#));
    let expected: BTreeSet<_> = (0..JOBS).filter(|n| *n != KILLER).collect();
    assert_eq!(done, expected);
    assert!(suspects.iter().any(|(n, _)| *n == KILLER), "{suspects:?}");
    assert!(suspects.iter().all(|(_, jobs)| *jobs == 1), "{suspects:?}");
}
