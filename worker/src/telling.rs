//! What a run of a tracked job tells while it runs.
//! In: its begin, and progress as often as the handler notes it. Out: events, of which progress is
//! told at most ten times a second, the newest always.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_producer::Event;
use tokio::runtime::Handle;
use tokio::time::{self, Instant};

use crate::context::LazyProducer;

/// Everybody shares the stream: a handler that counts to a million in a loop is not to fill it.
const GAP: Duration = Duration::from_millis(100);

/// One run's; none for a job that is not tracked.
pub(crate) struct Telling {
    producers: Arc<LazyProducer>,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Not before that.
    next_at: Option<Instant>,
    /// The newest that was not told yet.
    waiting: Option<Event>,
    /// It has just begun to wait: somebody must look after it.
    timer: bool,
    /// The run has ended.
    over: bool,
}

impl Telling {
    pub(crate) fn new(producers: Arc<LazyProducer>) -> Arc<Self> {
        Arc::new(Self { producers, progress: Mutex::default() })
    }

    pub(crate) fn begins(&self, event: Event) {
        self.post(event);
    }

    /// Tells it now, or as soon as it may be told.
    pub(crate) fn progress(self: &Arc<Self>, event: Event) {
        let mut progress = self.lock();
        if let Some(due) = progress.due(event, Instant::now()) {
            self.post(due);
        } else if let (Some(at), Ok(runtime)) = (progress.starts_to_wait(), Handle::try_current()) {
            let telling = Arc::clone(self);
            runtime.spawn(async move {
                time::sleep_until(at).await;
                telling.tell_waiting();
            });
        }
    }

    /// The run has ended: what comes later, from a thread that cannot be stopped, is not told.
    pub(crate) fn no_more(&self) {
        let mut progress = self.lock();
        progress.over = true;
        if let Some(event) = progress.waiting.take() {
            self.post(event);
        }
    }

    fn tell_waiting(&self) {
        let mut progress = self.lock();
        if let Some(event) = progress.waiting.take() {
            progress.next_at = Some(Instant::now() + GAP);
            self.post(event);
        }
    }

    /// Does not wait, so that it may be done under the lock, which keeps the order.
    fn post(&self, event: Event) {
        self.producers.get().post_event(event);
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    /// The event, if it may be told now; otherwise it waits in place of an older one.
    fn due(&mut self, event: Event, now: Instant) -> Option<Event> {
        if self.over {
            return None;
        }
        if self.next_at.is_none_or(|at| now >= at) {
            (self.waiting, self.next_at) = (None, Some(now + GAP));
            return Some(event);
        }
        self.timer = self.waiting.replace(event).is_none();
        None
    }

    /// When to look again, if nobody does already.
    fn starts_to_wait(&mut self) -> Option<Instant> {
        self.next_at.filter(|_| std::mem::take(&mut self.timer))
    }
}

impl fmt::Debug for Telling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telling").field("progress", &self.progress).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use forebay_producer::Envelope;

    use super::*;

    fn event() -> Event {
        Event::started(&Envelope::new("a.b", "q", "{}"))
    }

    #[test]
    fn the_first_is_told_at_once_and_of_those_close_behind_the_newest() {
        let (mut progress, begin) = (Progress::default(), Instant::now());
        let (first, second, third) = (event(), event(), event());
        assert_eq!(progress.due(first.clone(), begin).unwrap().id, first.id);
        assert!(progress.due(second, begin + GAP / 4).is_none());
        assert_eq!(progress.starts_to_wait(), Some(begin + GAP));
        assert!(progress.due(third.clone(), begin + GAP / 2).is_none());
        assert_eq!(progress.starts_to_wait(), None, "somebody looks already");
        assert_eq!(progress.waiting.as_ref().unwrap().id, third.id);
    }

    #[test]
    fn one_that_comes_later_takes_the_place_of_what_waits() {
        let (mut progress, begin) = (Progress::default(), Instant::now());
        assert!(progress.due(event(), begin).is_some());
        assert!(progress.due(event(), begin).is_none());
        assert!(progress.due(event(), begin + GAP).is_some());
        assert!(progress.waiting.is_none());
    }

    #[test]
    fn after_the_end_nothing_is_told() {
        let mut progress = Progress { over: true, ..Progress::default() };
        assert!(progress.due(event(), Instant::now()).is_none());
        assert!(progress.waiting.is_none());
    }
}
