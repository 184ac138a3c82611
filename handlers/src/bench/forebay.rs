//! Forebay's side: a worker as `forebay-run` has it, and its producer.
//! In: an order. Out: jobs handled or published.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use forebay_worker::{
    Context, HandlerOptions, JobError, JobResult, Producer, QueueOptions, Retry, Worker,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time;

use super::child::{self, Job};
use super::job::{Nothing, Tally, Tracked, carry_out};
use super::order::{Account, Contestant, Event, How, Work};
use crate::arguments::LOG;
use crate::logs;
use crate::operation::{self, Operation};

/// Publishes that wait for their confirms at once, as in `publish_all`.
pub(crate) const WINDOW: usize = 1_000;
/// Long enough for every handler here, and short enough for any prefetch.
const TIMEOUT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(100);

/// Retries, log at level info, metrics kept and folded, pages answered: nothing is left out.
pub(crate) async fn consume(job: &Job<'_>) -> anyhow::Result<Account> {
    let operation = watch()?;
    let order = job.order;
    let queue = QueueOptions::new()
        .concurrency(order.concurrency)
        .prefetch(order.prefetch)
        .queue_type(order.queue_type);
    let options = HandlerOptions::new().timeout(TIMEOUT).retry(Retry::fixed(5, RETRY));
    let worker = Worker::builder(Arc::clone(&job.tally))
        .consumer_timeout(Duration::from_secs(24 * 3600))
        .queue("bench", queue)
        .handle_with(options, handle)
        .build()?;
    let running = worker.start(job.config);
    let controls = running.controls();
    let answering = operation.begin(controls.clone());
    let consuming = async {
        while !controls.queues().iter().all(|queue| queue.consuming) {
            time::sleep(Duration::from_millis(1)).await;
        }
        child::say(&Event::Working);
    };
    tokio::select! {
        // Neither loses anything; who waits for the first will wait for the second.
        () = consuming => {}
        () = job.stop.cancelled() => {}
    }
    let resident = job.stopped().await;
    controls.drain();
    running.finished().await.context("the worker did not end well")?;
    let account = job.account(resident);
    answering.end();
    Ok(account)
}

/// Log and metrics as `forebay-run` has them.
fn watch() -> anyhow::Result<Operation> {
    logs::begin(LOG, logs::LogFormat::Json, None).map_err(anyhow::Error::msg)?;
    let listen = "127.0.0.1:0".parse()?;
    operation::open(Some(&listen)).map_err(anyhow::Error::msg)
}

async fn handle(job: Nothing, cx: Context<Arc<Tally>>) -> JobResult {
    let tally = cx.state();
    carry_out(tally.work).await;
    tally.note(&job);
    if tally.work == Work::FailTenth && job.fails() && cx.attempt() == 1 {
        return Err(JobError::retry(anyhow!("every tenth job fails once")));
    }
    Ok(())
}

/// Connects first, so that the time is that of publishing.
pub(crate) async fn publish(job: &Job<'_>, how: How, jobs: u64) -> anyhow::Result<Account> {
    // It answers nothing, because that takes a worker; what is counted is kept all the same.
    let _operation = watch()?;
    let producer = Producer::connect(job.config).await?;
    let (tally, payload) = (&job.tally, job.order.payload);
    child::say(&Event::Working);
    tally.begin();
    match how {
        How::OneByOne => {
            for n in 0..jobs {
                let one = Nothing::new(n, payload);
                producer.publish(&one).await?;
                tally.note(&one);
            }
        }
        How::Windowed => {
            let publishes = (0..jobs).map(|n| {
                let producer = &producer;
                async move {
                    let one = Nothing::new(n, payload);
                    producer.publish(&one).await?;
                    tally.note(&one);
                    anyhow::Ok(())
                }
            });
            stream::iter(publishes).buffer_unordered(WINDOW).try_collect::<()>().await?;
        }
        How::Bulk if job.order.contestant == Contestant::Tracked => {
            let all = stream::iter((0..jobs).map(|n| Tracked(Nothing::new(n, payload))));
            tally.note_all(producer.publish_all(all).await?);
        }
        How::Bulk => {
            let all = stream::iter((0..jobs).map(|n| Nothing::new(n, payload)));
            tally.note_all(producer.publish_all(all).await?);
        }
    }
    let resident = super::meter::resident();
    producer.close().await;
    Ok(job.account(resident))
}
