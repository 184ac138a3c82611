//! What a worker knows of its queues, and of itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_worker::{Context, JobResult, PublishOptions, QueueOptions, Worker};
use tokio::sync::Semaphore;

use crate::support::{Bench, Notes, Work, eventually, work};

struct Gate {
    open: Semaphore,
    notes: Notes,
}

async fn wait(job: Work, cx: Context<Arc<Gate>>) -> JobResult {
    cx.state().notes.add(format!("{}", job.n));
    cx.state().open.acquire().await?.forget();
    Ok(())
}

#[tokio::test]
async fn a_queue_shows_what_runs_what_is_held_and_what_waits_at_the_broker() {
    let gate = Arc::new(Gate { open: Semaphore::new(0), notes: Notes::default() });
    let queue = QueueOptions::new().concurrency(1).prefetch(3);
    let worker = Worker::builder(Arc::clone(&gate)).queue("default", queue).handle(wait);
    let mut bench = Bench::start(worker).await;
    bench.consuming("default").await;
    for n in 0..5 {
        bench.producer.publish(&work(n)).await.unwrap();
    }
    gate.notes.wait_for(1).await;
    let status = || bench.controls.queues().remove(0);
    // A full worker looks again after five seconds.
    eventually("all are seen", async || {
        let seen = status();
        (seen.running, seen.held, seen.ready, seen.dead) == (1, 2, Some(2), Some(0))
    })
    .await;
    let seen = status();
    assert_eq!((seen.concurrency, seen.rate), (1, 0.0));
    assert!(seen.oldest_seconds.is_some() && seen.seen_seconds.is_some(), "{seen:?}");
    assert!(!bench.controls.is_draining());
    gate.open.add_permits(5);
    gate.notes.wait_for(5).await;
    eventually("all are done", async || {
        let seen = status();
        (seen.running, seen.held, seen.oldest_seconds) == (0, 0, None) && seen.rate > 0.0
    })
    .await;
    assert_eq!(bench.drain().await.succeeded, 5);
    assert!(bench.controls.is_draining());
}

#[tokio::test]
async fn the_broker_notes_when_a_job_came_off_the_ladder() {
    async fn note(_: Work, cx: Context<Notes>) -> JobResult {
        let death = cx.envelope().broker.death.clone();
        cx.state().add(
            death.map_or("none".to_owned(), |(reason, _, time)| {
                format!("{reason} {}", time.is_some())
            }),
        );
        Ok(())
    }
    let notes = Notes::default();
    let queue = QueueOptions::new();
    let worker = Worker::builder(notes.clone()).queue("default", queue).handle(note);
    let mut bench = Bench::start(worker).await;
    let later = PublishOptions::new().delay(Duration::from_millis(300));
    bench.producer.publish_with(&work(1), later).await.unwrap();
    // The age of a delayed job counts from then.
    assert_eq!(notes.wait_for(1).await, ["expired true"]);
    bench.drain().await;
}

/// The test's runtime has one thread, which the handler takes for itself.
#[tokio::test]
async fn the_clock_stands_still_while_a_handler_hogs_the_runtime() {
    async fn hog(_: Work, cx: Context<Arc<AtomicBool>>) -> JobResult {
        while !cx.state().load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
    let seen = Arc::new(AtomicBool::new(false));
    let worker = Worker::builder(Arc::clone(&seen)).queue("default", QueueOptions::new());
    let mut bench = Bench::start(worker.handle(hog)).await;
    let controls = bench.controls.clone();
    let watcher = std::thread::spawn(move || {
        while controls.since_tick() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(10));
        }
        seen.store(true, Ordering::SeqCst);
    });
    bench.producer.publish(&work(1)).await.unwrap();
    eventually("it ticks again", async || {
        watcher.is_finished() && bench.controls.since_tick() < Duration::from_secs(2)
    })
    .await;
    bench.drain().await;
}
