//! The express way for jobs that end as soon as they are begun: a task of its own costs more than
//! such a job.
//! In: jobs, and how their first polls went. Out: each is begun by a runner that they share, and
//! goes on in a task of its own when that was not its end.

use std::collections::VecDeque;
use std::fmt;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::task::coop;
use tokio::time::{self, Instant};

/// What a first poll may take on average. A task costs a fifth of it, so there is nothing to
/// gain beyond; and one runner then holds back what several could do at once.
const QUICK: Duration = Duration::from_micros(50);
/// What a job counts for that waits for something: beyond one in four it is not worth the try.
const WAITS: Duration = Duration::from_micros(200);
/// What a job counts for at most: a thread that lost its processor for a moment says nothing.
const SLOWEST: Duration = Duration::from_millis(5);
/// The average is over about so many jobs.
const WEIGHT: u64 = 256;
/// How long a runner may be at one job before another one takes the rest.
const PATIENCE: Duration = Duration::from_millis(5);

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The express way of one queue.
#[derive(Clone, Default)]
pub(crate) struct Express {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    average: Average,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    runners: usize,
    /// How many were begun, ever.
    begun: u64,
    /// When to look next, and how many had been begun when that was decided.
    look: Option<(Instant, u64)>,
}

impl Express {
    /// Whether the next job is likely to end as soon as it is begun.
    pub(crate) fn is_worth_it(&self) -> bool {
        self.shared.average.get() <= QUICK
    }

    /// Runs a job to its end, and learns from how it begins.
    pub(crate) async fn watch(&self, mut job: Pin<&mut impl Future<Output = ()>>) {
        let began = std::time::Instant::now();
        let first = poll_fn(|cx| Poll::Ready(job.as_mut().poll(cx))).await;
        let took = if first.is_ready() { began.elapsed() } else { WAITS };
        self.shared.average.note(took);
        if first.is_pending() {
            job.await;
        }
    }

    /// Has a job begun by a runner.
    pub(crate) fn push(&self, job: Job) {
        let mut waiting = self.shared.waiting();
        waiting.jobs.push_back(job);
        if waiting.look.is_none() {
            waiting.look = Some((Instant::now() + PATIENCE, waiting.begun));
        }
        if waiting.runners == 0 {
            self.another(&mut waiting);
        }
    }

    /// Waits until the runners may have stood still for too long, if any job waits, and looks.
    pub(crate) async fn relieved(&self) {
        let look = self.shared.waiting().look;
        let Some((at, _)) = look else { return pending().await };
        time::sleep_until(at).await;
        self.relieve();
    }

    /// Starts another runner if those that there are have stood still. There are never more than
    /// places for jobs, and one: a job that finds no place waits for it in a task of its own.
    pub(crate) fn relieve(&self) {
        let mut waiting = self.shared.waiting();
        let Some((at, begun)) = waiting.look else { return };
        if Instant::now() < at {
            return;
        }
        if waiting.jobs.is_empty() {
            waiting.look = None;
            return;
        }
        if waiting.begun == begun {
            self.another(&mut waiting);
        }
        waiting.look = Some((Instant::now() + PATIENCE, waiting.begun));
    }

    fn another(&self, waiting: &mut Waiting) {
        waiting.runners += 1;
        tokio::spawn(Arc::clone(&self.shared).run());
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one job after the other until none is left.
    async fn run(self: Arc<Self>) {
        while let Some(mut job) = self.next() {
            if poll_fn(|cx| Poll::Ready(job.as_mut().poll(cx))).await.is_pending() {
                tokio::spawn(job);
            }
            // Others want this thread too.
            coop::consume_budget().await;
        }
    }

    /// The next job; `None` ends the runner, and is decided together with whether there is one.
    fn next(&self) -> Option<Job> {
        let mut waiting = self.waiting();
        let job = waiting.jobs.pop_front();
        match job {
            Some(_) => waiting.begun += 1,
            None => waiting.runners -= 1,
        }
        job
    }
}

impl fmt::Debug for Express {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.shared.waiting().jobs.len();
        f.debug_struct("Express").field("waiting", &waiting).finish_non_exhaustive()
    }
}

/// What first polls took lately, in nanoseconds: a moving average.
#[derive(Debug)]
struct Average(AtomicU64);

impl Default for Average {
    /// Nothing is known yet: as if they waited.
    fn default() -> Self {
        Self(AtomicU64::new(WAITS.as_nanos() as u64))
    }
}

impl Average {
    fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    /// Two that are noted at once may count as one.
    fn note(&self, took: Duration) {
        let took = took.min(SLOWEST).as_nanos() as u64;
        let average = self.0.load(Ordering::Relaxed);
        self.0.store((average * (WEIGHT - 1) + took) / WEIGHT, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use tokio::sync::oneshot;

    fn average_of(jobs: impl IntoIterator<Item = Duration>) -> Average {
        let average = Average::default();
        jobs.into_iter().for_each(|took| average.note(took));
        average
    }

    /// One in `n` takes so long, the others a few microseconds.
    fn now_and_then(long: Duration, n: usize) -> impl Iterator<Item = Duration> {
        (1..=10_000).map(move |i| if i % n == 0 { long } else { Duration::from_micros(8) })
    }

    #[test]
    fn it_is_for_jobs_that_are_nearly_all_quick() {
        let likely = |average: Average| average.get() <= QUICK;
        let short = Duration::from_micros(8);
        assert!(!likely(Average::default()), "of a new queue nothing is known");
        assert!(!likely(average_of(std::iter::repeat_n(short, 100))));
        assert!(likely(average_of(std::iter::repeat_n(short, 1_000))));
        // What a busy machine does to quick jobs.
        assert!(likely(average_of(now_and_then(Duration::from_millis(3), 200))));
        assert!(!likely(average_of(now_and_then(Duration::from_millis(3), 20))));
        assert!(!likely(average_of(now_and_then(WAITS, 3))));
        assert!(!likely(average_of(std::iter::repeat_n(Duration::from_micros(60), 10_000))));
    }

    #[test]
    fn a_quick_start_is_forgotten() {
        let average = average_of(std::iter::repeat_n(Duration::from_micros(8), 10_000));
        (0..100).for_each(|_| average.note(WAITS));
        assert!(average.get() > QUICK);
    }

    #[tokio::test]
    async fn every_job_is_run_once_and_the_runner_leaves() {
        let express = Express::default();
        let (done, mut jobs) = tokio::sync::mpsc::unbounded_channel();
        for i in 0..1_000 {
            let done = done.clone();
            express.push(Box::pin(async move {
                if i % 3 == 0 {
                    tokio::task::yield_now().await;
                }
                done.send(i).unwrap();
            }));
        }
        drop(done);
        let mut seen = Vec::new();
        while let Some(i) = jobs.recv().await {
            seen.push(i);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..1_000).collect::<Vec<_>>());
        let waiting = express.shared.waiting();
        assert_eq!((waiting.jobs.len(), waiting.runners, waiting.begun), (0, 0, 1_000));
    }

    /// The first job keeps its thread until the last one has run.
    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn a_job_that_keeps_its_thread_holds_up_no_other() {
        let express = Express::default();
        let (release, released) = mpsc::channel();
        let (over, ended) = oneshot::channel();
        express.push(Box::pin(async move {
            released.recv().unwrap();
            over.send(()).unwrap();
        }));
        for _ in 0..10 {
            express.push(Box::pin(async {}));
        }
        express.push(Box::pin(async move { release.send(()).unwrap() }));
        let relieve = async {
            loop {
                express.relieved().await;
            }
        };
        tokio::select! {
            () = relieve => {}
            ended = ended => ended.unwrap(),
        }
    }

    #[tokio::test]
    async fn watching_learns_from_the_first_poll_alone() {
        let express = Express::default();
        for _ in 0..1_000 {
            express.watch(std::pin::pin!(async {})).await;
        }
        assert!(express.is_worth_it());
        for _ in 0..300 {
            express.watch(std::pin::pin!(tokio::task::yield_now())).await;
        }
        assert!(!express.is_worth_it());
    }
}
