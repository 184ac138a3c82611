//! Whether a queue is consumed, and what is known of its jobs.
//! In: what consumer, intake and backlog note. Out: [`QueueStatus`], for operators and autoscalers.

use std::sync::{Arc, Mutex, PoisonError};

use forebay_producer::wire::envelope::now_ms;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::backlog::Sizes;
use crate::intake::Intake;
use crate::load::Load;

/// Why a paused queue is not consumed.
pub(crate) const PAUSED: &str = "paused";

/// Whether a queue is consumed, and if not, why; what this worker has of its jobs, and what waits
/// at the broker.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct QueueStatus {
    /// Queue.
    pub queue: String,
    /// Deliveries are coming in, or would if there were any.
    pub consuming: bool,
    /// Why not.
    pub because: Option<String>,
    /// For how long it has not been consumed, in seconds.
    pub idle_seconds: u64,
    /// How often its consumer ended while nobody asked it to; each is restored.
    pub losses: u64,
    /// Why that happened the last time, however soon it was restored; `None` if it never did.
    pub last_loss: Option<String>,
    /// Jobs that this worker may run at once.
    pub concurrency: usize,
    /// Jobs that run now: each has a permit, which it keeps until it is settled.
    pub running: usize,
    /// Deliveries that wait here for a permit; the broker counts them as unacknowledged.
    pub held: usize,
    /// Jobs settled per second over about the last minute, or since the start while that is
    /// shorter: done, retried, put off, moved as suspects or dead, but not given back.
    pub rate: f64,
    /// Age in seconds of the oldest job that is here, running or held; `None` when there is none.
    /// It counts from the moment the job was published; for a delayed, retried or put off one from
    /// the second it came off the delay ladder; from its delivery where neither is known, such as
    /// after a redrive.
    pub oldest_seconds: Option<f64>,
    /// Jobs ready at the broker, not yet delivered to anybody, at the last look; `None` when that
    /// is not known. A worker looks every 30 seconds, and every 5 while all its permits are taken.
    pub ready: Option<u32>,
    /// Dead letters of the queue at the last look; `None` when that is not known.
    pub dead: Option<u32>,
    /// How long ago that look was, in seconds; `None` before the first.
    pub seen_seconds: Option<u64>,
}

/// Where everything about one queue comes together.
#[derive(Debug, Clone)]
pub(crate) struct QueueView {
    pub(crate) queue: String,
    pub(crate) concurrency: usize,
    pub(crate) status: Arc<Mutex<Status>>,
    pub(crate) load: Arc<Load>,
    pub(crate) sizes: Arc<Mutex<Sizes>>,
    /// The generation of the consumer that the broker turned out not to have.
    pub(crate) absent: watch::Sender<u64>,
}

/// Whether a queue is consumed.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) consuming: bool,
    pub(crate) because: Option<String>,
    /// The generation that is up, or was last.
    generation: u64,
    losses: u64,
    last_loss: Option<String>,
    since: Instant,
}

impl QueueView {
    pub(crate) fn new<S>(intake: &Intake<S>) -> Self {
        Self {
            queue: intake.queue.clone(),
            concurrency: intake.options.concurrency,
            status: Arc::new(Mutex::new(Status::new())),
            load: Arc::clone(&intake.load),
            sizes: Arc::default(),
            absent: watch::Sender::new(0),
        }
    }

    pub(crate) fn look(&self) -> QueueStatus {
        let load = self.load.look();
        let sizes = *self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        QueueStatus {
            queue: self.queue.clone(),
            consuming: status.consuming,
            because: status.because.clone(),
            idle_seconds: if status.consuming { 0 } else { status.since.elapsed().as_secs() },
            losses: status.losses,
            last_loss: status.last_loss.clone(),
            concurrency: self.concurrency,
            running: load.running,
            held: load.held,
            rate: load.rate,
            oldest_seconds: load.oldest_ms.map(|due| age(due, now_ms())),
            ready: sizes.ready,
            dead: sizes.dead,
            seen_seconds: sizes.at.map(|at| at.elapsed().as_secs()),
        }
    }
}

fn age(due_ms: u64, now_ms: u64) -> f64 {
    now_ms.saturating_sub(due_ms) as f64 / 1_000.0
}

impl Status {
    fn new() -> Self {
        let because = Some("starting".to_owned());
        let since = Instant::now();
        Self { consuming: false, because, generation: 0, losses: 0, last_loss: None, since }
    }

    /// This generation consumes.
    pub(crate) fn up(&mut self, generation: u64) {
        self.generation = generation;
        self.set(true, None);
    }

    /// The generation that consumes, if one does.
    pub(crate) fn generation(&self) -> Option<u64> {
        self.consuming.then_some(self.generation)
    }

    /// It consumed until now.
    pub(crate) fn lost(&mut self, because: &str) {
        self.losses += 1;
        self.last_loss = Some(because.to_owned());
    }

    pub(crate) fn set(&mut self, consuming: bool, because: Option<String>) {
        // The time of a pause is not time in which it could not consume.
        let was_paused = self.because.as_deref() == Some(PAUSED);
        if self.consuming != consuming || was_paused {
            self.since = Instant::now();
        }
        self.consuming = consuming;
        self.because = because;
    }
}
