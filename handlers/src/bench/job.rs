//! The jobs that are measured, and who counts them.
//! In: what a handler was given. Out: an [`Account`] of jobs, times and costs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use forebay_worker::Job;
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::time;

use super::meter::{Meter, Reading};
use super::order::{Account, Work};

/// What everything but padding takes of a job's JSON.
const FRAME: usize = 55;
const MILLISECOND: u64 = 1_000_000;
/// The longest latency that is told from longer ones: a minute, in microseconds.
const LONGEST: u64 = 60_000_000;

/// The one kind of job here.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Nothing {
    pub(crate) n: u64,
    /// When it should be sent, by the monotonic clock in nanoseconds.
    pub(crate) at: u64,
    pub(crate) padding: String,
}

impl Job for Nothing {
    const KIND: &'static str = "bench.nothing";
    const QUEUE: &'static str = "bench";
}

/// The same, and its events are wanted.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Tracked(pub(crate) Nothing);

impl Job for Tracked {
    const KIND: &'static str = Nothing::KIND;
    const QUEUE: &'static str = Nothing::QUEUE;
    const TRACK: bool = true;
}

impl Nothing {
    pub(crate) fn new(n: u64, payload: usize) -> Self {
        Self { n, at: now(), padding: "x".repeat(payload.saturating_sub(FRAME)) }
    }

    /// Whether its first run fails, where some do.
    pub(crate) fn fails(&self) -> bool {
        self.n.is_multiple_of(10)
    }
}

/// The machine's monotonic clock, in nanoseconds.
pub(crate) fn now() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// CPU time that this process has taken, in nanoseconds.
pub(crate) fn cpu() -> u64 {
    nanoseconds(ClockId::ProcessCPUTime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// Does what the handler of a job is to do, short of failing.
pub(crate) async fn carry_out(work: Work) {
    match work {
        Work::Sleep => time::sleep(Duration::from_millis(1)).await,
        Work::Compute => {
            // Of the thread's own time, or a core that is shared would do half of the work.
            let end = nanoseconds(ClockId::ThreadCPUTime) + MILLISECOND;
            while nanoseconds(ClockId::ThreadCPUTime) < end {
                std::hint::spin_loop();
            }
        }
        Work::Nothing | Work::FailTenth | Work::Latency { .. } => {}
    }
}

/// Counts what one process handles.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) work: Work,
    meter: Meter,
    handled: AtomicU64,
    began: AtomicU64,
    ended: AtomicU64,
    at_first: OnceLock<Reading>,
    latencies: Mutex<Histogram<u64>>,
}

impl Tally {
    pub(crate) fn new(work: Work, meter: Meter) -> Self {
        let latencies = Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are right");
        Self {
            work,
            meter,
            handled: AtomicU64::new(0),
            began: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            at_first: OnceLock::new(),
            latencies: Mutex::new(latencies),
        }
    }

    /// From here on it counts; else from the first job.
    pub(crate) fn begin(&self) {
        self.began.store(now(), Ordering::Relaxed);
        self.at_first.get_or_init(|| self.meter.read());
    }

    /// One more job is handled or confirmed.
    pub(crate) fn note(&self, job: &Nothing) {
        let now = now();
        if self.handled.fetch_add(1, Ordering::Relaxed) == 0 && self.at_first.get().is_none() {
            self.begin();
        }
        self.ended.store(now, Ordering::Relaxed);
        if let Work::Latency { warm_up } = self.work
            && job.n >= warm_up
        {
            let latency = now.saturating_sub(job.at) / 1_000;
            let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
            latencies.saturating_record(latency.max(1));
        }
    }

    /// Many more at once.
    pub(crate) fn note_all(&self, jobs: u64) {
        self.handled.store(jobs, Ordering::Relaxed);
        self.ended.store(now(), Ordering::Relaxed);
    }

    pub(crate) fn handled(&self) -> u64 {
        self.handled.load(Ordering::Relaxed)
    }

    /// All of it, once everything is settled and closed.
    pub(crate) fn account(&self, resident: Option<u64>) -> Account {
        let (first, last) = (self.at_first.get_or_init(|| self.meter.read()), self.meter.read());
        let latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let instructions = last.instructions.zip(first.instructions);
        Account {
            handled: self.handled(),
            began: self.began.load(Ordering::Relaxed),
            ended: self.ended.load(Ordering::Relaxed),
            cpu_ns: last.cpu_ns.saturating_sub(first.cpu_ns),
            instructions: instructions.map(|(last, first)| last.saturating_sub(first)),
            // The kernel notes a peak when memory goes, and its counts of now run ahead of that.
            peak: super::meter::peak().max(resident),
            resident,
            latencies: latencies
                .iter_recorded()
                .map(|step| (step.value_iterated_to(), step.count_at_value()))
                .collect(),
            late: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_about_as_large_as_asked_for() {
        for bytes in [100, 200, 100_000] {
            let job = serde_json::to_vec(&Nothing::new(12_345, bytes)).unwrap();
            assert!(job.len().abs_diff(bytes) <= 12, "{} of {bytes}", job.len());
        }
    }

    #[tokio::test]
    async fn computing_takes_a_millisecond_of_the_processor() {
        let before = nanoseconds(ClockId::ThreadCPUTime);
        carry_out(Work::Compute).await;
        assert!(nanoseconds(ClockId::ThreadCPUTime) - before >= MILLISECOND);
    }

    #[test]
    fn a_latency_counts_from_the_moment_the_job_should_have_been_sent() {
        let tally = Tally::new(Work::Latency { warm_up: 1 }, Meter::begin());
        let mut job = Nothing::new(0, 100);
        tally.note(&job);
        job.n = 1;
        job.at = now() - 5_000_000;
        tally.note(&job);
        let account = tally.account(None);
        assert_eq!((account.handled, account.latencies.len()), (2, 1));
        let (latency, count) = account.latencies[0];
        assert!(latency >= 4_990 && count == 1, "{latency}");
    }
}
