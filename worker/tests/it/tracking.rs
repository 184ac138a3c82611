//! What happens to a tracked job is told in order and to its end, and costs no other job anything.

use std::time::Duration;

use forebay_producer::{Event, EventKind, EventLog, Events, Inspector, Read, Start};
use forebay_worker::idempotency::{Idempotency, MemoryStore};
use forebay_worker::testing::{Meddle, Proxy, broker};
use forebay_worker::{
    BatchContext, BatchOptions, BatchResult, Config, Context, HandlerOptions, JobError, JobResult,
    Producer, PublishOptions, QueueOptions, Results, Retry, Worker, WorkerBuilder,
};
use serde_json::{Value, json};
use tokio::time;

use crate::support::{Bench, Notes, PATIENCE, Work, note, work};

type Item = forebay_worker::Item<Work>;

fn quick(attempts: u32) -> HandlerOptions {
    HandlerOptions::new().retry(Retry::fixed(attempts, Duration::from_millis(100)))
}

fn on_default(notes: &Notes) -> WorkerBuilder<Notes> {
    Worker::builder(notes.clone()).queue("default", QueueOptions::new())
}

fn tracked() -> PublishOptions {
    PublishOptions::new().track(true).owner("tenant-7")
}

impl Bench {
    async fn events(&self) -> Events {
        let log = EventLog::new(&self.config());
        log.declare().await.unwrap();
        log.read(Start::First).await.unwrap()
    }
}

/// That a job is queued, or its end. A worker may be faster than the publisher, who tells the former.
fn is_first_or_last(event: &&Event) -> bool {
    event.what == EventKind::Queued || event.what.is_final()
}

/// The events of a job, by rank.
async fn until_end(events: &mut Events, job: &str) -> Vec<Event> {
    let mut all: Vec<Event> = Vec::new();
    while all.iter().filter(is_first_or_last).count() < 2 {
        let event = next(events).await;
        if event.job_id() == Some(job) {
            all.push(event);
        }
    }
    all.sort_by_key(|event| event.rank);
    all
}

async fn next(events: &mut Events) -> Event {
    let read = time::timeout(PATIENCE, events.next()).await.expect("an event in time");
    match read.unwrap() {
        Read::Event(stored) => stored.event,
        other => panic!("{other:?}"),
    }
}

fn words(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.what.word()).collect()
}

fn data(event: &Event) -> Value {
    serde_json::from_str(event.data.get()).unwrap()
}

#[tokio::test]
async fn a_tracked_job_is_told_from_its_queue_to_its_result() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult<Value> {
        cx.progress(json!({ "page": 1 }));
        Ok(json!({ "pages": job.n }))
    }
    let bench = Bench::start(on_default(&notes).handle(handler)).await;
    let mut events = bench.events().await;
    let receipt = bench.producer.publish_with(&work(3), tracked()).await.unwrap();
    let told = until_end(&mut events, &receipt.id).await;
    assert_eq!(words(&told), ["queued", "started", "progress", "succeeded"]);
    assert_eq!(data(&told[2]), json!({ "page": 1 }));
    assert_eq!(data(&told[3]), json!({ "result": { "pages": 3 } }));
    for event in &told {
        assert_eq!((event.kind.as_deref(), event.attempt), (Some("work.do"), Some(1)));
        assert_eq!(event.owner.as_deref(), Some("tenant-7"), "{event:?}");
    }
}

#[tokio::test]
async fn retries_are_told_with_their_wait_and_the_end_with_its_reason() {
    let notes = Notes::default();
    async fn handler(_: Work, cx: Context<Notes>) -> JobResult {
        Err(JobError::retry(anyhow::anyhow!("smtp is down, {}", cx.attempt())))
    }
    let bench = Bench::start(on_default(&notes).handle_with(quick(2), handler)).await;
    let mut events = bench.events().await;
    let receipt = bench.producer.publish_with(&work(1), tracked()).await.unwrap();
    let told = until_end(&mut events, &receipt.id).await;
    assert_eq!(words(&told), ["queued", "started", "retrying", "started", "dead"]);
    let attempts: Vec<_> = told.iter().map(|event| event.attempt.unwrap()).collect();
    assert_eq!(attempts, [1, 1, 1, 2, 2]);
    let retrying = json!({ "delay_ms": 100, "reason": "failed", "error": "smtp is down, 1" });
    assert_eq!(data(&told[2]), retrying);
    assert_eq!(data(&told[4]), json!({ "reason": "failed", "error": "smtp is down, 2" }));
}

#[tokio::test]
async fn of_a_job_that_is_not_tracked_only_failures_are_told() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        cx.progress(1);
        match (job.n, cx.attempt()) {
            (1, 1) => Err(anyhow::anyhow!("not yet").into()),
            (2, _) => Err(JobError::reject(anyhow::anyhow!("never"))),
            _ => Ok(()),
        }
    }
    let mut bench = Bench::start(on_default(&notes).handle_with(quick(3), handler)).await;
    let mut events = bench.events().await;
    let first = bench.producer.publish(&work(1)).await.unwrap();
    bench.until("it is done", |summary| summary.succeeded == 1).await;
    bench.producer.publish(&work(3)).await.unwrap();
    let second = bench.producer.publish(&work(2)).await.unwrap();
    let (retrying, dead) = (next(&mut events).await, next(&mut events).await);
    assert_eq!((&retrying.what, &retrying.subject), (&EventKind::Retrying, &first.id));
    assert_eq!((&dead.what, &dead.subject), (&EventKind::Dead, &second.id));
    bench.drain().await;
}

#[tokio::test]
async fn jobs_that_succeed_untracked_declare_no_stream() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        cx.progress(1);
        Ok(())
    }
    let mut bench = Bench::start(on_default(&notes).handle(handler)).await;
    bench.producer.publish(&work(1)).await.unwrap();
    notes.wait_for(1).await;
    bench.drain().await;
    let stream = bench.config().topology().events();
    assert_eq!(Inspector::new(&bench.config()).count(&stream).await.unwrap(), None);
}

#[tokio::test]
async fn a_large_result_is_told_by_its_size() {
    let notes = Notes::default();
    async fn handler(job: Work, _: Context<Notes>) -> JobResult<String> {
        Ok("x".repeat(job.n as usize))
    }
    let bench = Bench::start(on_default(&notes).handle(handler)).await;
    let mut events = bench.events().await;
    let receipt = bench.producer.publish_with(&work(20_000), tracked()).await.unwrap();
    let told = until_end(&mut events, &receipt.id).await;
    assert_eq!(data(told.last().unwrap()), json!({ "bytes": 20_002 }));
}

#[tokio::test]
async fn progress_is_told_ten_times_a_second_at_most_and_the_newest_in_any_case() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        for n in 0..=job.n {
            cx.progress(n);
        }
        // The newest is told although no other follows it, and the job goes on.
        cx.state().wait_for(1).await;
        Ok(())
    }
    let bench = Bench::start(on_default(&notes).handle(handler)).await;
    let mut events = bench.events().await;
    bench.producer.publish_with(&work(100_000), tracked()).await.unwrap();
    let mut progress = Vec::new();
    while progress.last() != Some(&json!(100_000)) {
        let event = next(&mut events).await;
        if event.what == EventKind::Progress {
            progress.push(data(&event));
        }
    }
    assert!(progress.len() < 200, "{} events", progress.len());
    notes.add("go on");
}

#[tokio::test]
async fn a_handler_tells_a_channel_and_says_who_it_is() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        cx.emit("orders", "paid", &json!({ "n": job.n })).await?;
        let refused = cx.emit("no channel", "paid", &()).await.unwrap_err();
        cx.state().add(refused.to_string());
        Ok(())
    }
    let bench = Bench::start(on_default(&notes).handle(handler)).await;
    let mut events = bench.events().await;
    let options = PublishOptions::new().owner("tenant-7");
    let receipt = bench.producer.publish_with(&work(7), options).await.unwrap();
    let event = next(&mut events).await;
    assert_eq!((event.channel(), event.event.as_deref()), (Some("orders"), Some("paid")));
    assert_eq!((event.job.as_deref(), data(&event)), (Some(&*receipt.id), json!({ "n": 7 })));
    assert_eq!(event.owner.as_deref(), Some("tenant-7"));
    let refused = notes.wait_for(1).await;
    assert!(refused[0].contains("channel `no channel`"), "{refused:?}");
}

#[tokio::test]
async fn each_job_of_a_batch_is_told_on_its_own() {
    let notes = Notes::default();
    async fn handler(items: Vec<Item>, cx: BatchContext<Notes>) -> BatchResult<u64> {
        for item in &items {
            item.progress(item.job.n);
            item.emit("orders", "seen", &item.job.n).await?;
        }
        cx.emit("orders", "batch", &items.len()).await?;
        let mut results = Results::new();
        for item in &items {
            match item.job.n {
                1 => results.fail(item, JobError::reject(anyhow::anyhow!("not this one"))),
                n => results.answer(item, n),
            }
        }
        Ok(results)
    }
    let of_two = BatchOptions::new().size(2).window(Duration::from_secs(600));
    let worker = on_default(&notes).handle_batch_with(quick(1), of_two, handler);
    let bench = Bench::start(worker).await;
    let mut events = bench.events().await;
    for n in [1, 2] {
        let options = tracked().id(n.to_string());
        bench.producer.publish_with(&work(n), options).await.unwrap();
    }
    let mut told = Vec::new();
    while told.iter().filter(is_first_or_last).count() < 4 {
        told.push(next(&mut events).await);
    }
    let of = |job: &str| {
        let mut mine: Vec<_> =
            told.iter().filter(|event| event.job_id() == Some(job)).cloned().collect();
        mine.sort_by_key(|event| event.rank);
        mine
    };
    let (first, second) = (of("1"), of("2"));
    assert_eq!(words(&first), ["channel", "queued", "started", "progress", "dead"]);
    assert_eq!(words(&second), ["channel", "queued", "started", "progress", "succeeded"]);
    assert_eq!(data(&second[4]), json!({ "result": 2 }));
    let batch = told.iter().find(|event| event.event.as_deref() == Some("batch")).unwrap();
    assert_eq!((batch.job_id(), data(batch)), (None, json!(2)));
}

#[tokio::test]
async fn a_job_whose_work_was_done_before_ends_with_the_result_of_then() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult<u64> {
        note(cx.state(), &job, &cx);
        Ok(job.n)
    }
    let rules = Idempotency::new(MemoryStore::new());
    let bench = Bench::start(on_default(&notes).idempotency(rules).handle(handler)).await;
    let mut events = bench.events().await;
    let of_key = || tracked().idempotency_key("order-7");
    let first = bench.producer.publish_with(&work(7), of_key()).await.unwrap();
    until_end(&mut events, &first.id).await;
    let second = bench.producer.publish_with(&work(7), of_key()).await.unwrap();
    // Nothing has to run: its end may be told before its publisher says that it is queued.
    let mut told = Vec::new();
    while told.len() < 2 {
        let event = next(&mut events).await;
        if event.job_id() == Some(&second.id) {
            told.push(event);
        }
    }
    told.sort_by_key(|event| event.rank);
    assert_eq!(words(&told), ["queued", "succeeded"]);
    assert_eq!(data(&told[1]), json!({ "result": 7, "duplicate": true }));
    assert_eq!(notes.all().len(), 1);
}

#[tokio::test]
async fn a_stream_that_confirms_nothing_holds_up_few_jobs() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        Ok(())
    }
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    // A worker whose jobs succeed publishes nothing but events.
    proxy.meddle(|frame| if frame.is_confirm() { Meddle::Drop } else { Meddle::Pass });
    let through = Config::new(&proxy.url()).unwrap().namespace(broker.namespace()).unwrap();
    let one_at_a_time = QueueOptions::new().concurrency(1);
    let worker = Worker::builder(notes.clone()).queue("default", one_at_a_time).handle(handler);
    let running = worker.build().unwrap().start(&through);
    let producer = Producer::new(&broker.config());
    for n in 0..60 {
        producer.publish_with(&work(n), tracked()).await.unwrap();
    }
    notes.wait_for(60).await;
    running.controls().drain();
    let summary = time::timeout(PATIENCE, running.finished()).await.expect("it ends").unwrap();
    assert_eq!(summary.succeeded, 60);
}
