//! The child processes of one server: kept alive, given jobs.
//! In: jobs, and the news of their children. Out: replies; children started, replaced, ended.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::ServerOptions;
use super::child::{self, Life};
use super::protocol::{self, Answer};
use super::roster::{Child, Roster, Taken};
use crate::exec::Exec;
use crate::telemetry::{End, ServerMeter};
use crate::word::Hears;

/// Between the end of a child and the start of the next, after the first failure and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A name for each run of this process.
static RUNS: AtomicU64 = AtomicU64::new(1);

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) name: Arc<str>,
    pub(super) exec: Exec,
    pub(super) options: ServerOptions,
    pub(super) stop: CancellationToken,
    roster: Mutex<Roster>,
    /// A place has become free, or a child ready. One waits for it at a time, see `turn`.
    free: Notify,
    /// Jobs get places in the order in which they asked.
    turn: Semaphore,
    waiting: AtomicUsize,
    started: AtomicBool,
    /// Made at the start, when the program has installed its recorder.
    meter: OnceLock<ServerMeter>,
    keepers: TaskTracker,
}

/// A run's place in a child. Dropping it before the reply has come cancels the run.
#[derive(Debug)]
pub(super) struct Place {
    pool: Arc<Pool>,
    pub(super) run: u64,
    pub(super) taken: Taken,
}

impl Pool {
    pub(super) fn new(name: &str, exec: Exec, options: ServerOptions) -> Self {
        Self {
            name: name.into(),
            exec,
            options,
            stop: CancellationToken::new(),
            roster: Mutex::default(),
            free: Notify::new(),
            turn: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            started: AtomicBool::new(false),
            meter: OnceLock::new(),
            keepers: TaskTracker::new(),
        }
    }

    /// Starts the children, the first time that it is called.
    pub(super) fn start(self: &Arc<Self>) {
        if !self.started.swap(true, Ordering::Relaxed) {
            self.measure(&self.roster());
            for _ in 0..self.options.processes {
                self.keepers.spawn(keep(Arc::clone(self)));
            }
        }
    }

    /// Ends the children and waits for it: at most about 8 s.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        self.keepers.close();
        self.keepers.wait().await;
    }

    pub(super) fn command(&self) -> Command {
        let mut command = self.exec.bare_command();
        command.env("FOREBAY_SERVE_PROTOCOL", protocol::VERSION.to_string());
        command.env("FOREBAY_SERVE_JOBS", self.options.jobs_per_process.to_string());
        command
    }

    pub(super) fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place. Cancel-safe: a place that nobody takes stays free.
    pub(super) async fn place(self: &Arc<Self>, hears: Hears) -> Place {
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting::new(&self.waiting);
        let _turn = self.turn.acquire().await;
        loop {
            let taken = self.change(|roster| roster.take(run, &hears));
            if let Some(taken) = taken {
                return Place { pool: Arc::clone(self), run, taken };
            }
            self.free.notified().await;
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn open(&self, pid: u32, child: Child) {
        self.change(|roster| roster.open(pid, child));
        self.free.notify_one();
    }

    /// A child takes no more jobs.
    pub(super) fn close_child(&self, pid: u32) {
        self.change(|roster| roster.close(pid));
    }

    pub(super) fn answer(&self, pid: u32, run: &str, answer: Answer) -> bool {
        let known = self.change(|roster| roster.answer(pid, run, answer));
        self.free.notify_one();
        known
    }

    pub(super) fn lose(&self, pid: u32, innocent: bool, why: impl Fn(usize) -> String) -> bool {
        self.change(|roster| roster.lose(pid, innocent, why))
    }

    /// Changes the roster, and the gauges with it: still under its lock, so that an older number
    /// never comes after a newer one.
    fn change<T>(&self, how: impl FnOnce(&mut Roster) -> T) -> T {
        let mut roster = self.roster();
        let changed = how(&mut roster);
        self.measure(&roster);
        changed
    }

    fn measure(&self, roster: &Roster) {
        let (ready, running) = roster.count();
        self.meter().show(ready, running);
    }

    fn meter(&self) -> &ServerMeter {
        self.meter.get_or_init(|| ServerMeter::new(&self.name))
    }
}

impl Place {
    /// Hands a line to the child; if it is gone, the reply says so.
    pub(super) fn send(&self, line: Vec<u8>) {
        self.taken.lines.send(line).ok();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Of no effect once the run was answered or lost.
        self.pool.roster().cancel(self.taken.child, self.run, Instant::now());
    }
}

/// One process after another.
async fn keep(pool: Arc<Pool>) {
    let server = &*pool.name;
    let mut failures = 0;
    while !pool.stop.is_cancelled() {
        let (end, why) = match child::live(&pool).await {
            Life::Stopped => break,
            Life::Finished => {
                info!(server, "child process has done its jobs and is replaced");
                pool.meter().ended(End::Finished);
                continue;
            }
            Life::Failed { end, why, healthy } => {
                failures = if healthy { 1 } else { failures + 1 };
                (end, why)
            }
        };
        pool.meter().ended(end);
        let pause = pause(failures);
        let again_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        warn!(server, failures, again_in_ms, error = why, "child process failed");
        pool.roster().trouble = Some(why);
        // Both are cancel-safe.
        tokio::select! {
            () = pool.stop.cancelled() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Before the next start, after so many failures in a row.
fn pause(failures: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
}

/// Counts who waits.
struct Waiting<'c>(&'c AtomicUsize);

impl<'c> Waiting<'c> {
    fn new(count: &'c AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_in_a_row_waits_longer_up_to_half_a_minute() {
        let seconds: Vec<_> =
            [1, 2, 3, 9, 10, 99, u32::MAX].map(|failures| pause(failures).as_secs_f64()).into();
        assert_eq!(seconds, [0.1, 0.2, 0.4, 25.6, 30.0, 30.0, 30.0]);
    }
}
