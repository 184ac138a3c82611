//! Forebay with all that `forebay-run` has on: retries and dead letters, metrics, spans and logs.

use std::time::{Duration, Instant};

use forebay_worker::{
    Config, Context, Job, JobResult, Producer, QueueOptions, QueueType, Worker, describe_metrics,
};
use futures_util::stream;
use metrics_exporter_prometheus::PrometheusBuilder;
use peers::{PREFETCH, Tally, Task};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Work(peers::Work);

impl Job for Work {
    const KIND: &'static str = "peers.work";
    const QUEUE: &'static str = "work";
}

async fn work(job: Work, cx: Context<&'static Tally>) -> JobResult {
    cx.state().job(&job.0);
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Quorum is Forebay's default; classic is what every other system here has too.
    let queue_type = match peers::variable("PEERS_QUEUE_TYPE")?.as_str() {
        "quorum" => QueueType::Quorum,
        _ => QueueType::Classic,
    };
    let config = Config::from_env()?.queue_type(Work::QUEUE, queue_type);
    match peers::task()? {
        Task::Publish { jobs } => publish(&config, jobs).await,
        Task::Work => run(&config, queue_type).await,
    }
}

/// Confirmed and mandatory, with up to a thousand on their way: what `publish_all` always does.
async fn publish(config: &Config, jobs: u64) -> anyhow::Result<()> {
    let producer = Producer::connect(config).await?;
    producer.declare(Work::QUEUE, config.type_of(Work::QUEUE)).await?;
    let began = Instant::now();
    producer.publish_all(stream::iter((0..jobs).map(|n| Work(peers::Work::new(n))))).await?;
    peers::published(began.elapsed());
    producer.close().await;
    Ok(())
}

async fn run(config: &Config, queue_type: QueueType) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .json()
        .with_writer(std::io::stderr)
        .with_env_filter("info,lapin=off")
        .init();
    let metrics = PrometheusBuilder::new().install_recorder()?;
    describe_metrics();
    // Stands for the scrapes, which also keep the histograms small.
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            std::hint::black_box(metrics.render());
        }
    });
    let queue = QueueOptions::new().concurrency(64).prefetch(PREFETCH).queue_type(queue_type);
    let worker = Worker::builder(Tally::begin()?).queue(Work::QUEUE, queue).handle(work).build()?;
    eprintln!("{}", worker.run(config, peers::told_to_stop()).await?);
    Ok(())
}
