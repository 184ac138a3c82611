//! One life of a consumer: its channel, its tags, and the task that acknowledges them.
//! In: tags as jobs are settled. Out: acknowledgements. When a generation has been lost, nothing
//! that is said on it is believed: the broker has taken its deliveries back.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_producer::link::fault::{Fault, answered};
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::acker::{Acker, How, Order};

/// How long finished jobs may stay unacknowledged behind a slow one.
const HOLD: Duration = Duration::from_millis(50);
const ANSWER: Duration = Duration::from_secs(5);
const BATCH: usize = 1_024;

/// One consumer on one channel.
pub(crate) struct Generation {
    pub(crate) channel: Channel,
    /// The jobs of this generation.
    pub(crate) jobs: TaskTracker,
    /// What was not started goes back.
    pub(crate) giving_back: CancellationToken,
    /// What runs is to stop: lost, or the grace period is over.
    pub(crate) stop: CancellationToken,
    /// The broker has taken the deliveries back.
    lost: Arc<AtomicBool>,
    settled: mpsc::UnboundedSender<(u64, How)>,
}

impl Generation {
    /// Starts the acknowledging task. `force` stops everything that runs.
    pub(crate) fn new(
        channel: Channel,
        prefetch: u16,
        force: &CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        // Bounded by the prefetch: each outstanding tag is settled once.
        let (settled, tags) = mpsc::unbounded_channel();
        let lost = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(acknowledge(channel.clone(), prefetch, tags, Arc::clone(&lost)));
        let generation = Self {
            channel,
            jobs: TaskTracker::new(),
            giving_back: CancellationToken::new(),
            stop: force.child_token(),
            lost,
            settled,
        };
        (generation, task)
    }

    /// Hands a settled tag to the acknowledging task; on a lost generation it goes nowhere.
    pub(crate) fn settle(&self, tag: u64, how: How) {
        if !self.lost.load(Ordering::Acquire) {
            _ = self.settled.send((tag, how));
        }
    }

    /// Whether what was not started is to go back.
    pub(crate) fn is_ending(&self) -> bool {
        self.giving_back.is_cancelled() || self.stop.is_cancelled()
    }

    /// Runs a future for as long as the delivery is ours to settle.
    pub(crate) async fn while_ours<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        self.stop.run_until_cancelled(future).await
    }

    /// The broker has taken everything back: stop what runs, believe nothing.
    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        self.stop.cancel();
        self.jobs.close();
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("lost", &self.lost.load(Ordering::Acquire))
            .finish_non_exhaustive()
    }
}

/// Ends when the generation is lost, or all its jobs are settled and it was dropped.
async fn acknowledge(
    channel: Channel,
    prefetch: u16,
    mut tags: mpsc::UnboundedReceiver<(u64, How)>,
    lost: Arc<AtomicBool>,
) {
    let mut acker = Acker::new(prefetch);
    let (mut batch, mut orders) = (Vec::with_capacity(BATCH), Vec::new());
    // When what is held back goes out at the latest.
    let mut due: Option<Instant> = None;
    loop {
        let taken = tags.recv_many(&mut batch, BATCH);
        let more = match due {
            None => taken.await > 0,
            Some(due) => time::timeout_at(due, taken).await.map_or(true, |taken| taken > 0),
        };
        for (tag, how) in batch.drain(..) {
            acker.settle(tag, how, &mut orders);
        }
        if !more || due.is_some_and(|due| Instant::now() >= due) {
            acker.flush_all(&mut orders);
        } else {
            acker.flush(&mut orders);
        }
        due = acker.holds_back().then(|| due.unwrap_or_else(|| Instant::now() + HOLD));
        for order in orders.drain(..) {
            if lost.load(Ordering::Acquire) {
                return;
            }
            if let Err(fault) = send(&channel, order).await {
                // The consumer's stream ends for the same reason; what is unsettled comes again.
                debug!(%fault, ?order, "acknowledgement not sent");
                return;
            }
        }
        if !more {
            return;
        }
    }
}

async fn send(channel: &Channel, order: Order) -> Result<(), Fault> {
    let sent = async {
        match order {
            Order::AckUpTo(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: true }).await,
            Order::Ack(tag) => channel.basic_ack(tag, BasicAckOptions::default()).await,
            Order::GiveBack(tag) => {
                let options = BasicNackOptions { multiple: false, requeue: true };
                channel.basic_nack(tag, options).await
            }
            Order::Reject(tag) => {
                channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await
            }
        }
    };
    answered(ANSWER, sent).await
}
