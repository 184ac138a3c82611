//! Shutdown: running jobs finish, the rest goes back, nothing is lost and nothing runs twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use forebay_worker::{Context, JobResult, QueueOptions, Worker};
use tokio::sync::Notify;

use crate::support::{Bench, Notes, Work, eventually, work};

#[derive(Clone, Default)]
struct App {
    notes: Notes,
    go_on: Arc<Notify>,
}

async fn slow(job: Work, cx: Context<App>) -> JobResult {
    cx.state().notes.add(format!("begin {} attempt {}", job.n, cx.attempt()));
    cx.state().go_on.notified().await;
    cx.state().notes.add(format!("end {}", job.n));
    Ok(())
}

async fn stuck(job: Work, cx: Context<App>) -> JobResult {
    cx.state().notes.add(format!("begin {} attempt {}", job.n, cx.attempt()));
    std::future::pending().await
}

#[tokio::test]
async fn a_running_job_finishes_and_the_rest_goes_back_without_using_an_attempt() {
    let app = App::default();
    let one = QueueOptions::new().concurrency(1).prefetch(10);
    let worker = Worker::builder(app.clone())
        .consumer_timeout(Duration::from_secs(24 * 3600))
        .queue("default", one)
        .handle(slow);
    let mut bench = Bench::start(worker).await;
    for n in 0..5 {
        bench.producer.publish(&work(n)).await.unwrap();
    }
    app.notes.wait_for(1).await;
    eventually("all five are delivered", async || bench.ready("default").await == 0).await;
    bench.controls.drain();
    eventually("four are back", async || bench.ready("default").await == 4).await;
    app.go_on.notify_one();
    let summary = bench.drain().await;
    assert_eq!((summary.succeeded, summary.given_back, summary.dead), (1, 4, 0));

    let notes = Notes::default();
    async fn quick(job: Work, cx: Context<Notes>) -> JobResult {
        cx.state().add(format!("{} attempt {} crashes {}", job.n, cx.attempt(), cx.crashes()));
        Ok(())
    }
    let worker = Worker::builder(notes.clone()).queue("default", QueueOptions::new()).handle(quick);
    let next = worker.build().unwrap().start(&bench.config());
    let rest: BTreeSet<_> = notes.wait_for(4).await.into_iter().collect();
    let expected = (1..5).map(|n| format!("{n} attempt 1 crashes 0")).collect();
    assert_eq!(rest, expected);
    next.controls().drain();
    assert_eq!(next.finished().await.unwrap().succeeded, 4);
}

#[tokio::test]
async fn what_still_runs_after_the_grace_period_goes_back() {
    let app = App::default();
    let worker = Worker::builder(app.clone())
        .queue("default", QueueOptions::new())
        .grace(Duration::from_millis(200))
        .handle(stuck);
    let mut bench = Bench::start(worker).await;
    bench.producer.publish(&work(1)).await.unwrap();
    app.notes.wait_for(1).await;
    let summary = bench.drain().await;
    assert_eq!((summary.succeeded, summary.given_back), (0, 1));
    assert_eq!(bench.ready("default").await, 1);
}

#[tokio::test]
async fn a_second_signal_forces_the_end() {
    let app = App::default();
    let worker = Worker::builder(app.clone())
        .queue("default", QueueOptions::new())
        .grace(Duration::from_secs(3600))
        .handle(stuck);
    let mut bench = Bench::start(worker).await;
    bench.producer.publish(&work(1)).await.unwrap();
    app.notes.wait_for(1).await;
    bench.controls.drain();
    assert_eq!(bench.controls.running()[0].kind, "work.do");
    bench.controls.force();
    assert_eq!(bench.drain().await.given_back, 1);
    assert_eq!(bench.ready("default").await, 1);
}

#[tokio::test]
async fn a_worker_that_never_reached_a_broker_ends_at_once_when_told_to() {
    let nowhere = forebay_worker::Config::new("amqp://127.0.0.1:1").unwrap();
    let worker = Worker::builder(App::default()).queue("default", QueueOptions::new()).handle(slow);
    let running = worker.build().unwrap().start(&nowhere);
    let controls = running.controls();
    eventually("it says why", async || {
        let because = controls.queues()[0].because.clone().unwrap_or_default();
        because.contains("127.0.0.1:1")
    })
    .await;
    controls.drain();
    assert_eq!(running.finished().await.unwrap().succeeded, 0);
}

#[tokio::test]
async fn run_ends_when_its_shutdown_future_does() {
    let broker = forebay_worker::testing::broker().await;
    let worker = Worker::builder(App::default()).queue("default", QueueOptions::new()).handle(slow);
    let summary = worker.build().unwrap().run(&broker.config(), async {}).await.unwrap();
    assert_eq!(summary.succeeded, 0);
}
