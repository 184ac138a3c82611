//! One life of a consumer: its channel, its tags, and the task that acknowledges them.
//! In: tags as jobs are settled. Out: acknowledgements. When a generation has been lost, nothing
//! that is said on it is believed: the broker has taken its deliveries back.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_producer::link::fault::{Fault, answered};
use forebay_producer::link::io;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::acker::{Acker, How, Order};

/// How long finished jobs may stay unacknowledged behind a slow one.
const HOLD: Duration = Duration::from_millis(50);
/// How long finished jobs may wait for others to be acknowledged with.
const LINGER: Duration = Duration::from_millis(5);
const ANSWER: Duration = Duration::from_secs(5);

/// One consumer on one channel.
pub(crate) struct Generation {
    pub(crate) channel: Channel,
    /// The jobs of this generation.
    pub(crate) jobs: TaskTracker,
    /// What was not started goes back.
    pub(crate) giving_back: CancellationToken,
    /// What runs is to stop: lost, or the grace period is over.
    pub(crate) stop: CancellationToken,
    acks: Arc<Acks>,
}

/// What is settled and not yet said. The jobs keep the books themselves; the acknowledging task is
/// woken only when there is something to say, or a clock to set.
struct Acks {
    books: Mutex<Books>,
    changed: Notify,
    lost: AtomicBool,
    /// So many finished jobs are acknowledged at once.
    share: usize,
}

struct Books {
    acker: Acker,
    orders: Vec<Order>,
    /// The task knows that something waits, and for how long it may.
    timed: bool,
    over: bool,
}

impl Acks {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, tag: u64, how: How) {
        if self.lost.load(Ordering::Acquire) {
            return;
        }
        if self.books().settle(tag, how, self.share) {
            self.changed.notify_one();
        }
    }
}

impl Books {
    /// Whether the task is to look.
    fn settle(&mut self, tag: u64, how: How, share: usize) -> bool {
        let silent = self.orders.is_empty();
        self.acker.settle(tag, how, &mut self.orders);
        if self.acker.held() >= share {
            self.acker.flush(&mut self.orders);
        }
        let waits = self.acker.held() > 0 && !std::mem::replace(&mut self.timed, true);
        waits || (silent && !self.orders.is_empty())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.acks.books().over = true;
        self.acks.changed.notify_one();
    }
}

impl Generation {
    /// Starts the acknowledging task. `force` stops everything that runs.
    pub(crate) fn new(
        channel: Channel,
        prefetch: u16,
        concurrency: usize,
        force: &CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let books =
            Books { acker: Acker::new(prefetch), orders: Vec::new(), timed: false, over: false };
        let acks = Arc::new(Acks {
            books: Mutex::new(books),
            changed: Notify::new(),
            lost: AtomicBool::new(false),
            share: share(prefetch.into(), concurrency),
        });
        // Elsewhere: a job that keeps its thread holds up no acknowledgement.
        let task = io::handle().spawn(acknowledge(channel.clone(), Arc::clone(&acks)));
        let generation = Self {
            channel,
            jobs: TaskTracker::new(),
            giving_back: CancellationToken::new(),
            stop: force.child_token(),
            acks,
        };
        (generation, task)
    }

    /// Notes a settled tag; on a lost generation it goes nowhere.
    pub(crate) fn settle(&self, tag: u64, how: How) {
        self.acks.settle(tag, how);
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
        self.acks.lost.store(true, Ordering::Release);
        self.stop.cancel();
        self.jobs.close();
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("lost", &self.acks.lost.load(Ordering::Acquire))
            .finish_non_exhaustive()
    }
}

/// A quarter of the prefetch; less where that many deliveries fewer would leave places empty.
fn share(prefetch: usize, concurrency: usize) -> usize {
    (prefetch / 4).min(prefetch.saturating_sub(concurrency)).max(1)
}

/// Ends when the generation is lost, or all its jobs are settled and it was dropped.
async fn acknowledge(channel: Channel, acks: Arc<Acks>) {
    let mut orders = Vec::new();
    let mut clocks = Clocks::default();
    loop {
        let over = {
            let mut books = acks.books();
            let Books { acker, orders: said, timed, over } = &mut *books;
            let now = Instant::now();
            if *over || clocks.is_held_too_long(now) {
                acker.flush_all(said);
            } else if clocks.have_lingered(now) {
                acker.flush(said);
                *timed = false;
            }
            clocks.set(acker.held() > 0, timed, now);
            std::mem::swap(&mut orders, said);
            *over
        };
        for order in orders.drain(..) {
            if acks.lost.load(Ordering::Acquire) {
                return;
            }
            if let Err(fault) = send(&channel, order).await {
                // The consumer's stream ends for the same reason; what is unsettled comes again.
                debug!(%fault, ?order, "acknowledgement not sent");
                return;
            }
        }
        if over {
            return;
        }
        match clocks.next() {
            None => acks.changed.notified().await,
            Some(at) => _ = time::timeout_at(at, acks.changed.notified()).await,
        }
    }
}

/// Until when what is finished may wait.
#[derive(Default)]
struct Clocks {
    /// For others to go with.
    linger: Option<Instant>,
    /// Behind a slow one.
    hold: Option<Instant>,
}

impl Clocks {
    fn have_lingered(&self, now: Instant) -> bool {
        self.linger.is_some_and(|at| at <= now)
    }

    fn is_held_too_long(&self, now: Instant) -> bool {
        self.hold.is_some_and(|at| at <= now)
    }

    /// A clock that runs goes on. What is still there after it has lingered is held by a slow one.
    fn set(&mut self, waits: bool, lingers: &mut bool, now: Instant) {
        let held = self.hold.is_some() || self.have_lingered(now);
        *lingers &= waits;
        self.hold = (waits && held).then(|| self.hold.unwrap_or(now + HOLD));
        self.linger = lingers.then(|| self.linger.unwrap_or(now + LINGER));
    }

    fn next(&self) -> Option<Instant> {
        self.linger.into_iter().chain(self.hold).min()
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
