//! A namespace on the broker that is used for nothing else.
//! In: a configuration. Out: a queue that is filled, looked at and emptied between runs, and
//! removed with everything else in the end.

use std::time::Duration;

use anyhow::Context as _;
use forebay_producer::link::remove::Remover;
use forebay_producer::wire::delay::LEVELS;
use forebay_producer::wire::topology::Declaration;
use forebay_producer::{EventLog, Inspector, link};
use forebay_worker::{Config, ConnectError, Producer, QueueType};
use futures_util::stream;
use lapin::options::QueuePurgeOptions;
use tokio::time::{self, Instant};

use super::job::{Nothing, Tracked, now};

const QUEUE: &str = "bench";
/// From here on jobs are published one after another, to hold few of them.
const LARGE: usize = 1_000_000;
const DEADLINE: Duration = Duration::from_secs(30);
/// Shorter than for a publish: somebody waits for the first figure.
const CONNECT: Duration = Duration::from_secs(10);
/// How often the backlog is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// By then the broker has counted what is on a stream.
const COUNTED: Duration = Duration::from_secs(10);

/// What a run has left on the queue is not what it should have.
#[derive(Debug, thiserror::Error)]
#[error("the queue holds {seen} jobs where there should be {jobs}; the run does not count")]
pub(crate) struct Miscount {
    seen: u64,
    jobs: u64,
}

impl Miscount {
    /// Jobs that were handled are there again: a quorum queue that has many acks to write gives back
    /// those whose channel closes before it has. The other way round jobs would be missing.
    pub(crate) fn is_surplus(&self) -> bool {
        self.seen > self.jobs
    }
}

/// One namespace with one queue.
pub(crate) struct Site {
    pub(crate) queue_type: QueueType,
    config: Config,
    producer: Producer,
    inspector: Inspector,
}

impl Site {
    pub(crate) async fn open(
        config: &Config,
        namespace: &str,
        queue_type: QueueType,
    ) -> anyhow::Result<Self> {
        let config = config.clone().namespace(namespace)?.queue_type(QUEUE, queue_type);
        let producer = Producer::new(&config);
        producer.link().connected(link::after(CONNECT)).await?;
        let inspector = Inspector::on(producer.link().clone(), &config);
        Ok(Self { queue_type, config, producer, inspector })
    }

    pub(crate) fn namespace(&self) -> &str {
        self.config.topology().namespace()
    }

    /// Queue, exchanges, dead letters: what publishing needs.
    pub(crate) async fn declare(&self) -> anyhow::Result<()> {
        let declared = self.producer.declare(QUEUE, self.queue_type).await;
        declared.context("failed to declare the queue to measure with")
    }

    /// Returns once all are confirmed.
    pub(crate) async fn fill(&self, jobs: u64, payload: usize) -> anyhow::Result<()> {
        if payload >= LARGE {
            for n in 0..jobs {
                self.producer.publish(&Nothing::new(n, payload)).await?;
            }
        } else {
            let all = (0..jobs).map(|n| Nothing::new(n, payload));
            self.producer.publish_all(stream::iter(all)).await?;
        }
        Ok(())
    }

    /// The same with jobs that are tracked.
    pub(crate) async fn fill_tracked(&self, jobs: u64, payload: usize) -> anyhow::Result<()> {
        let all = (0..jobs).map(|n| Tracked(Nothing::new(n, payload)));
        self.producer.publish_all(stream::iter(all)).await?;
        Ok(())
    }

    /// How many jobs wait.
    pub(crate) async fn waiting(&self) -> anyhow::Result<u32> {
        let name = self.config.topology().queue(QUEUE);
        let count = self.inspector.count(&name).await?;
        Ok(count.map_or(0, |count| count.ready))
    }

    /// Waits until so many jobs wait: fewer were lost, more were not settled.
    ///
    /// # Errors
    /// When it never comes to that; figures of such a run would be of something else.
    pub(crate) async fn holds(&self, jobs: u64) -> anyhow::Result<()> {
        let mut seen = 0;
        for _ in 0..50 {
            seen = u64::from(self.waiting().await?);
            if seen == jobs {
                return Ok(());
            }
            time::sleep(LOOK).await;
        }
        Err(Miscount { seen, jobs }.into())
    }

    /// Makes the stream of events anew, so that what a run tells can be counted.
    pub(crate) async fn renew_events(&self) -> anyhow::Result<()> {
        let remover = Remover::new(&self.config);
        remover.delete_queue(&self.config.topology().events()).await?;
        remover.close().await;
        let log = EventLog::new(&self.config);
        let declared = log.declare().await.context("failed to declare the stream of events");
        log.close().await;
        declared
    }

    /// How many events the stream holds. The broker counts those of a stream every few seconds: so it
    /// is asked until there are as many as there should be, or long enough.
    pub(crate) async fn events(&self, expected: u64) -> anyhow::Result<u32> {
        let stream = self.config.topology().events();
        let until = Instant::now() + COUNTED;
        loop {
            let told = self.inspector.count(&stream).await?.map_or(0, |count| count.ready);
            if u64::from(told) >= expected || Instant::now() >= until {
                return Ok(told);
            }
            time::sleep(LOOK).await;
        }
    }

    /// Notes how many jobs wait, again and again, by the seconds since `began`.
    pub(crate) async fn watch(&self, began: u64, backlog: &mut Vec<(f64, u32)>) {
        loop {
            if let Ok(waiting) = self.waiting().await {
                backlog.push((now().saturating_sub(began) as f64 / 1e9, waiting));
            }
            time::sleep(LOOK).await;
        }
    }

    /// Throws away what waits.
    pub(crate) async fn empty(&self) -> anyhow::Result<()> {
        let channel = self.producer.link().channel(link::after(DEADLINE)).await?.channel;
        let name = self.config.topology().queue(QUEUE);
        let purged = channel.queue_purge(name.into(), QueuePurgeOptions::default()).await;
        purged.context("failed to empty the queue")?;
        channel.close(200, "emptied".into()).await.context("failed to close a channel")
    }

    /// Removes the queue and the exchanges, as if nothing had ever been declared.
    pub(crate) async fn clear(&self) -> anyhow::Result<()> {
        self.delete(self.config.topology().for_queue(QUEUE, self.queue_type)).await
    }

    /// Removes everything.
    pub(crate) async fn remove(&self) -> anyhow::Result<()> {
        let topology = self.config.topology();
        let mut all = topology.for_queue(QUEUE, self.queue_type);
        all.extend(topology.for_ladder(LEVELS - 1));
        all.extend(topology.for_events(self.config.kept()));
        let removed = self.delete(all).await;
        self.producer.close().await;
        removed
    }

    async fn delete(&self, all: Vec<Declaration>) -> anyhow::Result<()> {
        let remover = Remover::new(&self.config);
        // Whatever leads into another one goes first.
        for declaration in all.into_iter().rev() {
            match declaration {
                Declaration::Queue { name, .. } => _ = remover.delete_queue(&name).await?,
                Declaration::Exchange { name, .. } => remover.delete_exchange(&name, false).await?,
                _ => {}
            }
        }
        remover.close().await;
        Ok(())
    }
}

/// Whether it is the broker that cannot be reached.
pub(crate) fn unreachable(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ConnectError>().is_some()
}
