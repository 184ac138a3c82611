//! Jobs and the broker's consumer timeout. What a broker does with it depends on its version, and so
//! does what is asserted; `docker/test.sh --matrix` goes through all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_worker::testing::{OwnBroker, broker_of_its_own};
use forebay_worker::{Context, HandlerOptions, JobResult, QueueOptions, Retry, Worker};

use crate::support::{Bench, Notes, Work, eventually, eventually_within, note, work};

/// Whether a consumer may say how long its deliveries may take.
async fn takes_timeouts(own: &OwnBroker) -> bool {
    let version = own.ctl(&["version"]).await;
    let mut parts = version.trim().split('.').map(|part| part.parse::<u32>().unwrap());
    (parts.next().unwrap(), parts.next().unwrap()) >= (4, 3)
}

#[tokio::test]
async fn a_job_longer_than_the_brokers_timeout_runs_once_where_the_worker_sets_its_own() {
    async fn long(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        tokio::time::sleep(Duration::from_secs(20)).await;
        Ok(())
    }
    let own = broker_of_its_own("consumer_timeout = 5000").await;
    if !takes_timeouts(&own).await {
        println!("skipped: before RabbitMQ 4.3 only the broker's own timeout counts");
        return;
    }
    let notes = Notes::default();
    let queue = QueueOptions::new().concurrency(2);
    let worker = Worker::builder(notes.clone()).queue("default", queue).handle(long);
    let mut bench = Bench::on(own.broker(), worker);
    bench.producer.publish(&work(1)).await.unwrap();
    bench.producer.publish(&work(2)).await.unwrap();
    bench.until("both are done", |summary| summary.succeeded == 2).await;
    let status = bench.controls.queues().remove(0);
    assert_eq!((status.losses, status.last_loss), (0, None));
    assert_eq!(notes.all().len(), 2, "{:?}", notes.all());
    assert_eq!(bench.drain().await.given_back, 0);
}

/// There is no way to run it once: the broker takes back all that the channel has out.
#[tokio::test]
async fn elsewhere_it_is_stopped_comes_again_and_the_worker_says_what_to_set() {
    async fn long_at_first(job: Work, cx: Context<Notes>) -> JobResult {
        let first = cx.state().all().is_empty();
        note(cx.state(), &job, &cx);
        if first {
            cx.cancelled().await;
            cx.state().add("cancelled");
            std::future::pending::<()>().await;
        }
        Ok(())
    }
    let own = broker_of_its_own("consumer_timeout = 5000").await;
    if takes_timeouts(&own).await {
        println!("skipped: from RabbitMQ 4.3 on the worker sets the timeout of its consumers");
        return;
    }
    let notes = Notes::default();
    let queue = QueueOptions::new().concurrency(1).prefetch(1);
    let worker = Worker::builder(notes.clone()).queue("default", queue).handle(long_at_first);
    let mut bench = Bench::on(own.broker(), worker);
    bench.producer.publish(&work(1)).await.unwrap();
    // The broker looks once a minute.
    let patience = Duration::from_secs(240);
    eventually_within(patience, "it was done at the second try", async || {
        bench.controls.summary().succeeded == 1
    })
    .await;
    assert_eq!(notes.all(), ["1#1", "cancelled", "1#1"]);
    let status = bench.controls.queues().remove(0);
    assert_eq!(status.losses, 1);
    let because = status.last_loss.unwrap();
    for part in
        ["timed out", "5000 ms", "told 30m", "`consumer_timeout = 1800000` in rabbitmq.conf"]
    {
        assert!(because.contains(part), "{because}");
    }
    bench.consuming("default").await;
    assert_eq!(bench.drain().await.succeeded, 1);
    assert_eq!(bench.ready("default").await, 0);
}

/// Gives jobs two hours: by policy where there is one for it, else on the whole broker.
async fn allow_two_hours(own: &OwnBroker) {
    if own.ctl(&["version"]).await.starts_with("3.10") {
        own.ctl(&["eval", "application:set_env(rabbit, consumer_timeout, 7200000)."]).await;
    } else {
        let definition = r#"{"consumer-timeout": 7200000}"#;
        own.ctl(&["set_policy", "long-jobs", "^test-", definition, "--apply-to", "queues"]).await;
    }
}

#[tokio::test]
async fn and_once_that_is_set_it_runs_once_there_too() {
    async fn long(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        // One of the broker's looks, which are a minute apart, falls into it.
        tokio::time::sleep(Duration::from_secs(75)).await;
        Ok(())
    }
    let own = broker_of_its_own("consumer_timeout = 5000").await;
    if takes_timeouts(&own).await {
        println!("skipped: from RabbitMQ 4.3 on the worker sets the timeout of its consumers");
        return;
    }
    allow_two_hours(&own).await;
    let notes = Notes::default();
    let worker = Worker::builder(notes.clone()).queue("default", QueueOptions::new()).handle(long);
    let mut bench = Bench::on(own.broker(), worker);
    bench.producer.publish(&work(1)).await.unwrap();
    eventually_within(Duration::from_secs(150), "it is done", async || {
        bench.controls.summary().succeeded == 1
    })
    .await;
    assert_eq!(notes.all(), ["1#1"]);
    assert_eq!(bench.controls.queues().remove(0).last_loss, None);
    bench.drain().await;
}

#[tokio::test]
#[ignore = "takes an hour: -- --ignored an_hour"]
async fn a_job_of_an_hour_runs_once() {
    const HOUR: Duration = Duration::from_secs(3600);
    async fn long(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        tokio::time::sleep(HOUR).await;
        Ok(())
    }
    let own = broker_of_its_own("consumer_timeout = 5000").await;
    if !takes_timeouts(&own).await {
        allow_two_hours(&own).await;
    }
    let notes = Notes::default();
    let options = HandlerOptions::new().timeout(HOUR + Duration::from_secs(60));
    let worker = Worker::builder(notes.clone())
        .consumer_timeout(2 * HOUR)
        .queue("default", QueueOptions::new().concurrency(1))
        .handle_with(options, long);
    let mut bench = Bench::on(own.broker(), worker);
    bench.producer.publish(&work(1)).await.unwrap();
    eventually_within(HOUR + Duration::from_secs(60), "it is done", async || {
        bench.controls.summary().succeeded == 1
    })
    .await;
    assert_eq!(notes.all(), ["1#1"]);
    assert_eq!(bench.controls.queues().remove(0).last_loss, None);
    assert_eq!(bench.ready("default").await, 0);
    bench.drain().await;
}

/// A blocking handler keeps its place after its timeout for as long as its thread runs.
#[tokio::test]
async fn deliveries_that_wait_for_half_of_the_consumer_timeout_are_given_back() {
    fn stubborn(job: Work, cx: Context<Arc<AtomicBool>>) -> JobResult {
        while job.n == 0 && !cx.state().load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
    let ends = Arc::new(AtomicBool::new(false));
    let options = HandlerOptions::new().timeout(Duration::from_secs(1)).concurrency(1);
    let queue = QueueOptions::new().concurrency(4).prefetch(3);
    let worker = Worker::builder(Arc::clone(&ends)).queue("default", queue);
    let worker = worker
        .consumer_timeout(Duration::from_secs(12))
        .handle_blocking_with(options.retry(Retry::never()), stubborn);
    let mut bench = Bench::start(worker).await;
    for n in 0..3 {
        bench.producer.publish(&work(n)).await.unwrap();
    }
    bench.until("two are given back", |summary| summary.given_back >= 2).await;
    assert_eq!(bench.controls.summary().succeeded, 0);
    ends.store(true, Ordering::SeqCst);
    bench.until("they were run after all", |summary| summary.succeeded == 2).await;
    eventually("nothing is left", async || bench.ready("default").await == 0).await;
    let summary = bench.drain().await;
    assert_eq!((summary.succeeded, summary.dead), (2, 1));
}

/// What a handler may take at most leaves time to publish what becomes of its job.
#[tokio::test]
async fn a_handler_that_takes_all_the_time_it_may_is_retried_and_becomes_a_dead_letter() {
    async fn endless(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        std::future::pending().await
    }
    let notes = Notes::default();
    let retry = Retry::fixed(2, Duration::from_millis(100));
    let options = HandlerOptions::new().timeout(Duration::from_secs(8)).retry(retry);
    let worker = Worker::builder(notes.clone())
        .consumer_timeout(Duration::from_secs(10))
        .queue("default", QueueOptions::new().concurrency(1).prefetch(1))
        .handle_with(options, endless);
    let mut bench = Bench::start(worker).await;
    bench.producer.publish(&work(1)).await.unwrap();
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!((letter.reason.as_str(), letter.envelope.attempt), ("timeout", 2));
    assert!(notes.all().contains(&"1#2".to_owned()), "{:?}", notes.all());
    bench.drain().await;
}

#[test]
fn a_timeout_that_the_broker_would_cut_short_is_refused_with_the_sum() {
    let minutes = |n: u64| HandlerOptions::new().timeout(Duration::from_secs(60 * n));
    let builder = |timeout: u64, queue: QueueOptions| {
        Worker::builder(Notes::default())
            .queue("default", queue)
            .handle_with(minutes(timeout), async |_: Work, _: Context<Notes>| Ok(()))
    };
    let one = || QueueOptions::new().concurrency(1);
    let text = builder(60, one()).build().unwrap_err().to_string();
    for part in
        ["consumer timeout of 30m", "may take 1h", "RabbitMQ 4.3", "consumer_timeout = 4500000"]
    {
        assert!(text.contains(part), "{text}");
    }
    let for_ever = HandlerOptions::new().timeout(Duration::MAX);
    let worker = Worker::builder(Notes::default()).queue("default", one());
    let worker = worker.handle_with(for_ever, async |_: Work, _: Context<Notes>| Ok(()));
    assert!(worker.build().unwrap_err().to_string().contains("consumer_timeout = "));
    let text = builder(10, one().prefetch(3)).build().unwrap_err().to_string();
    assert!(text.contains("may take 30m") && text.contains("3 rounds"), "{text}");
    // Unless told otherwise the prefetch is made to fit.
    assert!(builder(10, one()).build().is_ok());
    let four_hours = Duration::from_secs(4 * 3600);
    assert!(builder(60, one().prefetch(3)).consumer_timeout(four_hours).build().is_ok());
}
