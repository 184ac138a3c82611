//! What one queue's deliveries are doing here: how many wait, how many run, how fast they leave.
//! In: deliveries as they come, begin and are settled. Out: counts, a rate and an age.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_producer::Envelope;
use tokio::time::Instant;

/// Bookkeeping of one queue's deliveries.
pub(crate) struct Load {
    running: AtomicUsize,
    books: Mutex<Books>,
}

struct Books {
    began: Instant,
    /// Since when each delivery that is here has been due, in milliseconds since the epoch. They
    /// are at most the prefetch, looked through once a second, and come and go for every job.
    here: Vec<Option<u64>>,
    /// The empty places among them.
    free: Vec<usize>,
    rate: Rate,
}

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Seen {
    /// Jobs with a permit.
    pub(crate) running: usize,
    /// Deliveries without one.
    pub(crate) held: usize,
    /// Jobs settled per second.
    pub(crate) rate: f64,
    /// When the oldest delivery became due, in milliseconds since the epoch.
    pub(crate) oldest_ms: Option<u64>,
}

/// A delivery that is here; it has left when this is dropped.
pub(crate) struct Here {
    load: Arc<Load>,
    place: usize,
    runs: bool,
    settled: bool,
}

impl Load {
    pub(crate) fn new() -> Self {
        let (here, free) = (Vec::new(), Vec::new());
        let books = Books { began: Instant::now(), here, free, rate: Rate::default() };
        Self { running: AtomicUsize::new(0), books: Mutex::new(books) }
    }

    /// A delivery has come, whose job has been due since then.
    pub(crate) fn deliver(self: &Arc<Self>, due_ms: u64) -> Here {
        let mut books = self.books();
        let place = match books.free.pop() {
            Some(place) => place,
            None => {
                books.here.push(None);
                books.here.len() - 1
            }
        };
        books.here[place] = Some(due_ms);
        Here { load: Arc::clone(self), place, runs: false, settled: false }
    }

    pub(crate) fn look(&self) -> Seen {
        let mut books = self.books();
        let age = books.began.elapsed();
        let running = self.running.load(Ordering::Relaxed);
        Seen {
            running,
            held: (books.here.len() - books.free.len()).saturating_sub(running),
            rate: books.rate.per_second(age),
            oldest_ms: books.here.iter().flatten().min().copied(),
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load").finish_non_exhaustive()
    }
}

impl Here {
    /// It has its permit.
    pub(crate) fn begins(&mut self) {
        self.load.running.fetch_add(usize::from(!self.runs), Ordering::Relaxed);
        self.runs = true;
    }

    /// Its job is settled: it counts for the rate when it leaves.
    pub(crate) fn settled(&mut self) {
        self.settled = true;
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.load.running.fetch_sub(usize::from(self.runs), Ordering::Relaxed);
        let mut books = self.load.books();
        books.here[self.place] = None;
        books.free.push(self.place);
        if self.settled {
            let age = books.began.elapsed();
            books.rate.count(age);
        }
    }
}

/// Since when a job could have run, in milliseconds since the epoch: since it came off the delay
/// ladder, which the broker notes to the second, else since it was published. `None` where neither
/// is known: jobs published again without a delay, and those of publishers that state no time.
pub(crate) fn due_ms(job: &Envelope) -> Option<u64> {
    match &job.broker.death {
        Some((reason, _, Some(seconds))) if reason == "expired" => seconds.checked_mul(1_000),
        _ if first_time(job) => job.published_at_ms,
        _ => None,
    }
}

/// How long a job has waited, for those whose wait is known to the millisecond: published without
/// a delay, and never run, put off or redriven since.
pub(crate) fn waited(job: &Envelope, now_ms: u64) -> Option<Duration> {
    let straight = first_time(job) && job.broker.death.is_none() && !job.broker.redelivered;
    let published = job.published_at_ms.filter(|_| straight)?;
    Some(Duration::from_millis(now_ms.saturating_sub(published)))
}

fn first_time(job: &Envelope) -> bool {
    job.attempt == 1 && [job.graces, job.deferrals, job.redrives, job.crashes] == [0; 4]
}

const SLOT: u64 = 5;
const SLOTS: usize = 12;

/// Counts events over the last minute, in slots of five seconds.
#[derive(Debug, Default)]
struct Rate {
    counts: [u32; SLOTS],
    /// The newest slot, counted from the beginning.
    newest: u64,
}

impl Rate {
    fn count(&mut self, age: Duration) {
        let slot = self.turn(age);
        self.counts[slot] = self.counts[slot].saturating_add(1);
    }

    /// Over the last minute, or over the whole time while that is shorter.
    fn per_second(&mut self, age: Duration) -> f64 {
        self.turn(age);
        let full = ((SLOTS as u64 - 1) * SLOT) as f64;
        let seconds = age.as_secs_f64().min(full + age.as_secs_f64() % SLOT as f64);
        let sum: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        sum as f64 / seconds.max(1.0)
    }

    /// Empties the slots that have passed, and returns the place of the present one.
    fn turn(&mut self, age: Duration) -> usize {
        let now = age.as_secs() / SLOT;
        let passed = now.saturating_sub(self.newest).min(SLOTS as u64);
        for slot in (now + 1).saturating_sub(passed)..=now {
            self.counts[place(slot)] = 0;
        }
        self.newest = self.newest.max(now);
        place(self.newest)
    }
}

fn place(slot: u64) -> usize {
    (slot % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_delivery_waits_runs_and_leaves() {
        let load = Arc::new(Load::new());
        let mut old = load.deliver(1_000);
        let young = load.deliver(2_000);
        let seen = |load: &Load| {
            let seen = load.look();
            (seen.held, seen.running, seen.oldest_ms)
        };
        assert_eq!(seen(&load), (2, 0, Some(1_000)));
        old.begins();
        old.begins();
        assert_eq!(seen(&load), (1, 1, Some(1_000)));
        drop(old);
        assert_eq!(seen(&load), (1, 0, Some(2_000)));
        drop(young);
        assert_eq!(seen(&load), (0, 0, None));
    }

    #[test]
    fn two_deliveries_of_one_moment_are_two() {
        let load = Arc::new(Load::new());
        let (one, two) = (load.deliver(7), load.deliver(7));
        assert_eq!(load.look().held, 2);
        drop(one);
        assert_eq!(load.look().oldest_ms, Some(7));
        drop(two);
    }

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let mut rate = Rate::default();
        for n in 0..100 {
            rate.count(after(f64::from(n) * 0.1));
        }
        // (age, per second): 100 in the first ten seconds.
        for (age, expected) in
            [(10.0, 10.0), (20.0, 5.0), (50.0, 2.0), (57.5, 100.0 / 57.5), (62.0, 50.0 / 57.0)]
        {
            let seen = rate.per_second(after(age));
            assert!((seen - expected).abs() < 0.01, "after {age} s: {seen}, not {expected}");
        }
        assert_eq!(rate.per_second(after(70.0)), 0.0);
        rate.count(after(100_000.0));
        assert!(rate.per_second(after(100_000.0)) > 0.0);
        assert_eq!(rate.per_second(after(900_000.0)), 0.0);
    }

    #[test]
    fn the_first_second_does_not_count_as_a_burst() {
        let mut rate = Rate::default();
        rate.count(after(0.001));
        assert_eq!(rate.per_second(after(0.001)), 1.0);
    }

    #[test]
    fn a_job_is_due_since_it_was_published_or_came_off_the_ladder() {
        let job = || {
            let mut job = Envelope::new("a.b", "mail", "{}");
            job.published_at_ms = Some(5_000);
            job
        };
        assert_eq!(due_ms(&job()), Some(5_000));
        assert_eq!(waited(&job(), 5_250), Some(Duration::from_millis(250)));
        assert_eq!(waited(&job(), 4_000), Some(Duration::ZERO), "another machine's clock");

        let mut delayed = job();
        delayed.broker.death = Some(("expired".into(), "forebay.delay.00".into(), Some(9)));
        assert_eq!(due_ms(&delayed), Some(9_000));
        delayed.attempt = 3;
        assert_eq!((due_ms(&delayed), waited(&delayed, 9_500)), (Some(9_000), None));

        let mut again = job();
        again.broker.redelivered = true;
        assert_eq!((due_ms(&again), waited(&again, 6_000)), (Some(5_000), None));

        for change in [
            (|job| job.attempt = 2) as fn(&mut Envelope),
            |job| job.redrives = 1,
            |job| job.graces = 1,
            |job| job.deferrals = 1,
            |job| job.crashes = 1,
            |job| job.published_at_ms = None,
            |job| (job.graces, job.deferrals) = (u32::MAX, 1),
        ] {
            let mut job = job();
            change(&mut job);
            assert_eq!((due_ms(&job), waited(&job, 6_000)), (None, None), "{job:?}");
        }
    }
}
