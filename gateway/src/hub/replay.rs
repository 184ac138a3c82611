//! Older events for sessions, through a few readers of the stream that all of them share.
//! In: asks. Out: pieces in the outbox of each ask.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_producer::{EventLog, Read, Start, StreamError};
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::course::{Ask, Piece};
use super::desk::{Beginning, Desk, Party};
use super::entry::{Entry, Place};
use super::hall::Hall;
use super::outbox::{Budget, Outbox};
use super::pass::{Id, Member, Pass};
use crate::telemetry::ReplayMeter;

/// Before a reader that the broker refuses tries again.
const PAUSE: Duration = Duration::from_secs(1);
/// What was told since some time comes within this time, if there is anything.
const NOTHING: Duration = Duration::from_secs(2);

/// The readers. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Replay {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    log: EventLog,
    hall: Arc<Mutex<Hall>>,
    desk: Mutex<Desk>,
    /// For each reader: somebody has left.
    left: Vec<Notify>,
    budget: Arc<Budget>,
    tasks: TaskTracker,
    stop: CancellationToken,
    meter: ReplayMeter,
}

/// An ask that was made; dropped, it is over.
#[derive(Debug)]
pub(crate) struct Asked {
    id: Id,
    outbox: Arc<Outbox>,
    shared: Arc<Shared>,
}

impl Replay {
    pub(crate) fn new(
        log: EventLog,
        hall: Arc<Mutex<Hall>>,
        (readers, budget): (usize, usize),
        (tasks, stop): (TaskTracker, CancellationToken),
    ) -> Self {
        let left = std::iter::repeat_with(Notify::new).take(readers.max(1)).collect();
        let desk = Mutex::new(Desk::new(readers));
        let budget = Arc::new(Budget::new(budget));
        let meter = ReplayMeter::new();
        let shared = Shared { log, hall, desk, left, budget, tasks, stop, meter };
        Self { shared: Arc::new(shared) }
    }

    /// Asks for older events in the name of somebody; `bell` is rung for each piece.
    pub(crate) fn ask(&self, ask: Ask, party: Party, bell: &Arc<Notify>) -> Asked {
        let shared = &self.shared;
        let outbox = Arc::new(Outbox::new(&shared.budget, bell));
        let member = Member { ask, party, outbox: Arc::clone(&outbox) };
        let (id, begins) = shared.desk().ask(member);
        shared.meter.asked();
        shared.spawn(begins);
        shared.note();
        Asked { id, outbox, shared: Arc::clone(shared) }
    }

    /// How many readers are at work, and how many asks wait for one.
    pub(crate) fn load(&self) -> (usize, usize) {
        self.shared.desk().load()
    }

    /// The stream is another one: nobody goes on with what they asked of the former. Called before
    /// any session can see it.
    pub(crate) fn reset(&self) {
        self.shared.desk().reset();
        self.shared.left.iter().for_each(Notify::notify_one);
    }
}

impl Asked {
    /// Takes what came first.
    pub(crate) fn take(&self) -> Option<Piece> {
        self.outbox.take()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.outbox.close();
        let left = self.shared.desk().abandon(self.id);
        if let Some(left) = left.and_then(|reader| self.shared.left.get(reader)) {
            left.notify_one();
        }
    }
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self) {
        let (readers, waiting) = self.desk().load();
        self.meter.note(readers, waiting, self.budget.held());
    }

    fn spawn(self: &Arc<Self>, begins: impl IntoIterator<Item = (usize, Beginning)>) {
        for (reader, beginning) in begins {
            let shared = Arc::clone(self);
            self.tasks.spawn(async move { shared.read(reader, beginning).await });
        }
    }

    /// One pass of a reader, and what begins after it.
    async fn read(self: Arc<Self>, reader: usize, beginning: Beginning) {
        debug!(reader, start = ?beginning.start, "reads older events");
        let passed = tokio::select! {
            // All arms are cancel-safe; a reader that is dropped closes its channel.
            passed = self.pass(reader, &beginning) => passed,
            () = self.left(reader) => Ok(()),
            () = self.stop.cancelled() => return,
        };
        if let Err(error) = passed {
            warn!(%error, "cannot read older events");
            time::sleep(PAUSE).await;
            if let Some(pass) = self.desk().pass(reader) {
                pass.disband();
            }
        }
        let begins = self.desk().next(reader);
        self.spawn(begins);
        self.note();
    }

    async fn pass(&self, reader: usize, beginning: &Beginning) -> Result<(), StreamError> {
        let mut events = self.log.read(beginning.start.clone()).await?;
        if matches!(beginning.start, Start::Since(_)) {
            let read = match time::timeout(NOTHING, events.next()).await {
                Ok(read) => read?,
                Err(_) => {
                    let shown = self.shows_the_last().await?;
                    let Some(read) = events.next().now_or_never() else {
                        // Nothing was told since then; or the broker is slow, and everybody asks again.
                        let end = if shown { Pass::nothing } else { Pass::disband };
                        self.desk().pass(reader).into_iter().for_each(end);
                        return Ok(());
                    };
                    read?
                }
            };
            if self.take(reader, read, &beginning.place) {
                return Ok(());
            }
        }
        loop {
            let read = events.next().await?;
            if self.take(reader, read, &beginning.place) {
                return Ok(());
            }
        }
    }

    /// Silence alone says nothing. But what was told since some time comes before what another reader
    /// begins with later: if that shows the newest events, there is nothing else.
    async fn shows_the_last(&self) -> Result<bool, StreamError> {
        let mut last = self.log.read(Start::Last).await?;
        Ok(matches!(time::timeout(NOTHING, last.next()).await, Ok(Ok(_))))
    }

    /// Gives what was read to those who want it; `true` when nobody is left.
    fn take(&self, reader: usize, read: Read, start: &Place) -> bool {
        let pass = |act: &dyn Fn(&mut Pass)| {
            let mut desk = self.desk();
            desk.pass(reader).is_none_or(|pass| {
                act(pass);
                pass.is_empty()
            })
        };
        match read {
            Read::Event(stored) => {
                let entry = Arc::new(Entry::new(stored));
                let (repeat, window) = {
                    let hall = self.hall.lock().unwrap_or_else(PoisonError::into_inner);
                    (hall.window.is_repeat(entry.offset), hall.window.first())
                };
                let mut desk = self.desk();
                let over = desk.read(reader, &entry, repeat, window);
                let left = desk.unite(reader).and_then(|ahead| self.left.get(ahead));
                left.into_iter().for_each(Notify::notify_one);
                over
            }
            Read::Resumed => pass(&|pass| pass.resumed(start)),
            Read::Gap(gap) => pass(&|pass| pass.lost(gap, start)),
            _ => false,
        }
    }

    /// Returns when nobody wants anything of a pass any more.
    async fn left(&self, reader: usize) {
        let Some(left) = self.left.get(reader) else { return };
        loop {
            left.notified().await;
            if self.desk().pass(reader).is_none_or(|pass| pass.is_empty()) {
                return;
            }
        }
    }
}
