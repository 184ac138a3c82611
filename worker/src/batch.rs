//! Batches: jobs of one kind that are run together, by one call of their handler.
//! In: how large a batch is and how long it is waited for. Out: when one that is filling begins,
//! pure; the files below gather jobs, run them, and let each be settled on its own.

mod context;
mod function;
mod gathering;
mod member;
mod results;

use std::time::Duration;

pub use self::context::{BatchContext, Item};
pub(crate) use self::function::Together;
pub(crate) use self::gathering::{Gathering, gatherings};
#[cfg(feature = "testing")]
pub(crate) use self::member::Wait;
pub use self::results::{BatchResult, Results};

/// How a batch is gathered: how many jobs, and for how long at most.
///
/// A batch begins as soon as one of its handler's places is free and it is full, or its first job
/// has waited for the window. While no place is free it goes on filling. A place is one of
/// [`HandlerOptions::concurrency`](crate::HandlerOptions::concurrency), which counts batches here
/// and is 1 unless set, and one of the queue's.
///
/// ```
/// use forebay_worker::BatchOptions;
/// use std::time::Duration;
///
/// let rows = BatchOptions::new().size(500).window(Duration::from_millis(50));
/// # let _ = rows;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct BatchOptions {
    pub(crate) size: usize,
    pub(crate) window: Duration,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { size: Self::SIZE, window: Self::WINDOW }
    }
}

impl BatchOptions {
    /// How many jobs a batch has at most if nothing else is said: 100.
    pub const SIZE: usize = 100;

    /// How long the first job of a batch waits for others if nothing else is said: 200 ms.
    pub const WINDOW: Duration = Duration::from_millis(200);

    /// 100 jobs, 200 ms.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many jobs a batch has at most, at least 1. Default: [`SIZE`](Self::SIZE). The
    /// queue's prefetch must hold as many for each batch that runs; its default does.
    pub fn size(mut self, jobs: usize) -> Self {
        self.size = jobs;
        self
    }

    /// Sets how long the first job of a batch waits for others while a place is free. Default:
    /// [`WINDOW`](Self::WINDOW). Zero: not at all, a batch is what has come in while no place was
    /// free.
    pub fn window(mut self, longest: Duration) -> Self {
        self.window = longest;
        self
    }

    /// How much longer a batch that fills waits for more jobs; zero: it begins. `hurried`: no more
    /// will come, the consumer ends.
    pub(crate) fn wait(&self, jobs: usize, age: Duration, hurried: bool) -> Duration {
        if hurried || jobs >= self.size { Duration::ZERO } else { self.window.saturating_sub(age) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_begins_when_it_is_full_its_window_is_over_or_no_more_will_come() {
        let ms = Duration::from_millis;
        let options = BatchOptions::new().size(3).window(ms(200));
        // (jobs, age, hurried, wait)
        let table = [
            (1, 0, false, 200),
            (2, 150, false, 50),
            (2, 200, false, 0),
            (1, 900, false, 0),
            (3, 0, false, 0),
            (4, 0, false, 0),
            (1, 0, true, 0),
        ];
        for (jobs, age, hurried, wait) in table {
            assert_eq!(options.wait(jobs, ms(age), hurried), ms(wait), "{jobs} {age} {hurried}");
        }
        assert!(options.window(Duration::ZERO).wait(1, Duration::ZERO, false).is_zero());
        let longest = options.window(Duration::MAX);
        assert_eq!(longest.wait(1, ms(1), false), Duration::MAX - ms(1));
    }
}
