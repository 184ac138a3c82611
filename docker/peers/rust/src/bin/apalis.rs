//! apalis-amqp as its documentation shows it, with retries and spans on.

use std::future::poll_fn;
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use apalis::layers::retry::RetryPolicy;
use apalis::prelude::*;
use apalis_amqp::{AmqpBackend, Config};
use futures_util::stream;
use peers::{PREFETCH, Tally, WINDOW, Work};
use tracing_subscriber::EnvFilter;

async fn work(job: Work, tally: Data<&'static Tally>) -> Result<(), BoxDynError> {
    tally.job(&job);
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // The queue is durable by itself since 1.0.
    let config = Config::default().queue(peers::variable("PEERS_QUEUE")?).prefetch_count(PREFETCH);
    let backend = AmqpBackend::new_from_addr(peers::variable("AMQP_URL")?)?.with_config(config);
    match peers::task()? {
        peers::Task::Publish { jobs } => publish(backend, jobs).await,
        peers::Task::Work => run(backend).await,
    }
}

/// It never asks the broker for confirms, and has no setting for it.
async fn publish(mut backend: AmqpBackend<Work>, jobs: u64) -> anyhow::Result<()> {
    // Jobs are not persistent unless each says so.
    let mut persistent = MetadataStore::default();
    persistent.insert("delivery_mode", "2")?;
    let began = Instant::now();
    let mut next = 0;
    while next < jobs {
        let end = jobs.min(next + WINDOW as u64);
        let tasks = (next..end)
            .map(|n| TaskBuilder::new(Work::new(n)).with_metadata(persistent.clone()).build());
        backend.push_all(stream::iter(tasks)).await?;
        next = end;
    }
    peers::published(began.elapsed());
    // Without confirms nothing tells when they are at the broker, and what is not yet written when the
    // process ends is lost: the last hundred or so of 50,000 were.
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

async fn run(mut backend: AmqpBackend<Work>) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .json()
        .with_writer(std::io::stderr)
        // It logs two lines for each job at info.
        .with_env_filter(EnvFilter::from_str("warn")?)
        .init();
    // 1.0.0 panics at its first look for jobs: each call of `poll_ready` takes one of the steps channel,
    // consumer and ready, and the worker waits for the first one only.
    let context = WorkerContext::new("peers");
    for _step in 0..3 {
        poll_fn(|cx| Backend::poll_ready(&mut backend, cx, &context)).await?;
    }
    let worker = WorkerBuilder::new("peers")
        .backend(backend)
        .data(Tally::begin()?)
        .retry(RetryPolicy::retries(5))
        .enable_tracing()
        .build(work);
    tokio::select! {
        ended = worker.run() => Ok(ended?),
        () = peers::told_to_stop() => Ok(()),
    }
}
