//! The express way for jobs that end as soon as they are begun: a task of its own costs more than
//! such a job.
//! In: jobs, and how their first polls went. Out: each is begun by a runner that they share, and
//! goes on in a task of its own when that was not its end.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use forebay_producer::link::io;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{coop, yield_now};
use tokio::time;
use tokio_util::task::AbortOnDropHandle;

/// What a first poll may take on average. A task costs a fifth of it, so there is nothing to
/// gain beyond; and one runner then holds back what several could do at once.
const QUICK: Duration = Duration::from_micros(50);
/// What a job counts for that waits for something: beyond one in four it is not worth the try.
const WAITS: Duration = Duration::from_micros(200);
/// What a job counts for at most: a thread that lost its processor for a moment says nothing.
const SLOWEST: Duration = Duration::from_millis(5);
/// The average is over about so many jobs.
const WEIGHT: u64 = 256;
/// How often somebody looks whether the runner gets on.
const LOOK: Duration = Duration::from_millis(5);
/// After so many jobs the tasks that they woke have their turn.
const STRETCH: usize = 16;

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The express way of one queue.
pub(crate) struct Express {
    shared: Arc<Shared>,
    /// From the first job on.
    watch: OnceLock<AbortOnDropHandle<()>>,
}

struct Shared {
    average: Average,
    waiting: Mutex<Waiting>,
    /// A job waits, and nobody looks after it.
    unwatched: Notify,
    /// Jobs in tasks of their own that wait for a place.
    outside: AtomicUsize,
    /// That of the consumer, which pushes.
    runtime: OnceLock<Handle>,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// The runner that takes them; an earlier one, that was too long at one job, leaves.
    runner: Option<u64>,
    runners: u64,
    /// The watch made it, and it has not come to run yet: another would not either.
    fresh: bool,
    /// How many were begun, ever.
    begun: u64,
    watched: bool,
}

impl Express {
    pub(crate) fn new() -> Self {
        let shared = Arc::new(Shared {
            average: Average::default(),
            waiting: Mutex::default(),
            unwatched: Notify::new(),
            outside: AtomicUsize::new(0),
            runtime: OnceLock::new(),
        });
        Self { shared, watch: OnceLock::new() }
    }

    /// Whether the next job is likely to end as soon as it is begun.
    pub(crate) fn is_worth_it(&self) -> bool {
        self.shared.average.is_quick()
    }

    /// Runs a job to its end, and learns from how it begins.
    pub(crate) async fn learn(&self, mut job: Pin<&mut impl Future<Output = ()>>) {
        let mut first = true;
        poll_fn(|cx| {
            if !std::mem::take(&mut first) {
                return job.as_mut().poll(cx);
            }
            let began = std::time::Instant::now();
            let polled = job.as_mut().poll(cx);
            self.shared.average.note(if polled.is_ready() { began.elapsed() } else { WAITS });
            polled
        })
        .await;
    }

    /// A job outside waits for a place, until this is dropped: what the runner's jobs give back it
    /// is to have at once.
    pub(crate) fn waits(&self) -> impl Drop + use<> {
        self.shared.outside.fetch_add(1, Ordering::Relaxed);
        Outside(Arc::clone(&self.shared))
    }

    /// Has a job begun by the runner.
    ///
    /// # Panics
    /// The first time, outside of a tokio runtime.
    pub(crate) fn push(&self, job: Job) {
        self.shared.runtime.get_or_init(Handle::current);
        // Elsewhere: a job that keeps its thread may keep the timers of its runtime as well.
        self.watch.get_or_init(|| {
            AbortOnDropHandle::new(io::handle().spawn(watch(Arc::clone(&self.shared))))
        });
        let mut waiting = self.shared.waiting();
        waiting.jobs.push_back(job);
        let unwatched = !std::mem::replace(&mut waiting.watched, true);
        let runner = waiting.runner.is_none().then(|| self.shared.another(&mut waiting));
        drop(waiting);
        if let Some(runner) = runner {
            runner.start();
        }
        if unwatched {
            self.shared.unwatched.notify_one();
        }
    }
}

/// Gives the jobs another runner whenever theirs does not get on.
async fn watch(express: Arc<Shared>) {
    loop {
        express.unwatched.notified().await;
        let mut begun = None;
        while let Some(runner) = express.look(&mut begun) {
            if let Some(runner) = runner {
                runner.start();
            }
            time::sleep(LOOK).await;
        }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: no job waits. Otherwise a runner if none was begun since the last look.
    fn look(self: &Arc<Self>, begun: &mut Option<u64>) -> Option<Option<Runner>> {
        let mut waiting = self.waiting();
        if waiting.jobs.is_empty() {
            waiting.watched = false;
            return None;
        }
        let stands = begun.replace(waiting.begun) == Some(waiting.begun);
        let wanted = stands && !waiting.fresh;
        waiting.fresh |= wanted;
        Some(wanted.then(|| self.another(&mut waiting)))
    }

    /// Takes the jobs from the runner that has them. To be started without the lock: a runtime that
    /// has ended drops it at once.
    fn another(self: &Arc<Self>, waiting: &mut Waiting) -> Runner {
        waiting.runners += 1;
        waiting.runner = Some(waiting.runners);
        Runner { number: waiting.runners, shared: Arc::clone(self) }
    }
}

struct Outside(Arc<Shared>);

impl Drop for Outside {
    fn drop(&mut self) {
        self.0.outside.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Runner {
    number: u64,
    shared: Arc<Shared>,
}

impl Runner {
    fn start(self) {
        // It is known from the first push on.
        let runtime = self.shared.runtime.get().cloned();
        if let Some(runtime) = runtime {
            runtime.spawn(self.run());
        }
    }

    /// Begins one job after the other until none is left, or another runner takes them.
    async fn run(self) {
        let mut stretch = 0;
        while let Some(mut job) = self.next() {
            stretch += 1;
            if !self.shared.average.is_quick() {
                // They have become slow since it was pushed. Several at once, so that other threads
                // see them and take some.
                tokio::spawn(job);
            } else if poll_fn(|cx| Poll::Ready(job.as_mut().poll(cx))).await.is_pending() {
                tokio::spawn(job);
                stretch = STRETCH;
            } else {
                // Before anything else has this thread: whoever drains waits for it.
                drop(job);
            }
            let others_wait = self.shared.outside.load(Ordering::Relaxed) > 0;
            if stretch >= STRETCH || others_wait || !coop::has_budget_remaining() {
                stretch = 0;
                yield_now().await;
            }
        }
    }

    /// The next job. That there is none and that the runner leaves is decided in one.
    fn next(&self) -> Option<Job> {
        let mut waiting = self.shared.waiting();
        if waiting.runner != Some(self.number) {
            return None;
        }
        waiting.fresh = false;
        let job = waiting.jobs.pop_front();
        match job {
            Some(_) => waiting.begun += 1,
            None => waiting.runner = None,
        }
        job
    }
}

impl Drop for Runner {
    /// The runtime ends, and with it what its tasks would have run; jobs hold what holds them.
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting();
        if waiting.runner == Some(self.number) && !thread::panicking() {
            waiting.runner = None;
            let jobs = std::mem::take(&mut waiting.jobs);
            drop(waiting);
            drop(jobs);
        }
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
    fn is_quick(&self) -> bool {
        self.get() <= QUICK
    }

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
        let express = quick();
        let (done, mut jobs) = tokio::sync::mpsc::unbounded_channel();
        for i in 0..1_000 {
            let done = done.clone();
            express.push(Box::pin(async move {
                if i % 3 == 0 {
                    yield_now().await;
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
        // The runner's own end comes after that of the last job.
        while express.shared.waiting().runner.is_some() {
            yield_now().await;
        }
        let waiting = express.shared.waiting();
        assert_eq!((waiting.jobs.len(), waiting.begun), (0, 1_000));
    }

    /// An express whose jobs have been quick so far.
    fn quick() -> Express {
        let express = Express::new();
        (0..2_000).for_each(|_| express.shared.average.note(Duration::from_micros(8)));
        express
    }

    /// The first jobs keep their threads until the last one has run.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn jobs_that_keep_their_threads_hold_up_no_other() {
        let express = quick();
        let (mut releases, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let (release, released) = mpsc::channel();
            let (over, ended) = oneshot::channel();
            releases.push(release);
            ends.push(ended);
            express.push(Box::pin(async move {
                released.recv().unwrap();
                over.send(()).unwrap();
            }));
            express.push(Box::pin(async {}));
        }
        express.push(Box::pin(async move {
            releases.iter().for_each(|release| release.send(()).unwrap());
        }));
        for ended in ends {
            ended.await.unwrap();
        }
    }

    /// Threads that no runner gets are no reason to make ever more of them.
    #[test]
    fn a_runtime_that_stands_still_is_given_one_runner_more() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let express = quick();
        runtime.block_on(async { express.push(Box::pin(async {})) });
        let mut begun = None;
        for _ in 0..100 {
            express.shared.look(&mut begun);
        }
        assert!(express.shared.waiting().runners <= 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn jobs_that_turn_slow_while_they_wait_are_run_side_by_side() {
        let express = quick();
        let (together, done) = (Arc::new(std::sync::Barrier::new(3)), Arc::new(Notify::new()));
        // Each first poll keeps its thread for longer than the average allows.
        express.shared.average.0.store(1_000_000, Ordering::Relaxed);
        for _ in 0..3 {
            let (together, done) = (Arc::clone(&together), Arc::clone(&done));
            express.push(Box::pin(async move {
                together.wait();
                done.notify_one();
            }));
        }
        done.notified().await;
    }

    #[tokio::test]
    async fn a_job_that_panics_takes_no_other_with_it() {
        let express = quick();
        let (over, ended) = oneshot::channel();
        express.push(Box::pin(async { panic!("as no job of ours may") }));
        express.push(Box::pin(async move { over.send(()).unwrap() }));
        ended.await.unwrap();
    }

    #[test]
    fn a_runtime_that_ends_drops_what_waits() {
        let kept = Arc::new(());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let express = quick();
        let job = || {
            let kept = Arc::clone(&kept);
            Box::pin(async move { drop(kept) })
        };
        runtime.block_on(async { express.push(job()) });
        drop(runtime);
        express.push(job());
        assert_eq!(Arc::strong_count(&kept), 1);
    }

    #[tokio::test]
    async fn it_learns_from_first_polls_alone() {
        let express = Express::new();
        for _ in 0..1_000 {
            express.learn(std::pin::pin!(async {})).await;
        }
        assert!(express.is_worth_it());
        for _ in 0..300 {
            express.learn(std::pin::pin!(yield_now())).await;
        }
        assert!(!express.is_worth_it());
    }
}
