//! One life of a child process: started, ready, listened to, ended.
//! In: a pool's command, and the jobs that the roster gives it. Out: answers to the roster; in the
//! end, how it ended.

use std::future::Future;
use std::io;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::maybe_done;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::ears::{Ears, listen};
use super::pool::Pool;
use super::roster::Next;
use super::voice::{self, Speaker, Tail};
use crate::capture::Capture;
use crate::exec::{Ending, colon};
use crate::process::{self, Group, LEFTOVERS, MERCY, Started};
use crate::telemetry::End;

/// How long a child may take to end by itself once its standard input is closed.
const FAREWELL: Duration = Duration::from_secs(2);

/// A closed pipe is mostly the first sign of an end whose cause is known a moment later.
const MOMENT: Duration = Duration::from_secs(1);

/// How a life ended.
#[derive(Debug)]
pub(super) enum Life {
    /// It had done as many jobs as it was to do.
    Finished,
    /// The pool ends.
    Stopped,
    /// It ought not to have ended. `healthy` if it had answered jobs.
    Failed { end: End, why: String, healthy: bool },
}

/// Why a child has to end, or has ended.
#[derive(Debug)]
pub(super) enum Cause {
    Ended(io::Result<ExitStatus>),
    /// What it said or did that makes it useless.
    Broken(String),
    /// It may be about to end.
    Closed(&'static str),
    Hung,
    NotReady,
    Finished,
    Stopped,
}

/// Starts a child and stays with it until it has ended.
pub(super) async fn live(pool: &Pool) -> Life {
    let Started { mut child, events, group } = match process::start(pool.command()) {
        Ok(started) => started,
        Err(error) => {
            let why = pool.exec.not_started(&error);
            return Life::Failed { end: End::NotStarted, why, healthy: false };
        }
    };
    let pid = child.id().unwrap_or_default();
    debug!(server = &*pool.name, pid, "child process started");
    let tail: Tail = Arc::new(Mutex::new(Capture::tail_only()));
    let speaker = |stream| Speaker { server: Arc::clone(&pool.name), pid, stream };
    let voices = [
        tokio::spawn(voice::log(speaker("stdout"), child.stdout.take(), None)),
        tokio::spawn(voice::log(speaker("stderr"), child.stderr.take(), Some(Arc::clone(&tail)))),
    ];
    let (lines, written) = mpsc::unbounded_channel();
    let wake = Arc::new(Notify::new());
    let deaf = Arc::new(Notify::new());
    let stdin = Stdin::open(child.stdin.take(), written, Arc::clone(&deaf));
    let dying = AtomicBool::new(false);
    let mut ears = Ears {
        pool,
        pid,
        lines: Some(lines),
        wake: Arc::clone(&wake),
        dying: &dying,
        puzzled: false,
    };
    let listening = listen(events, |line| ears.hear(line));
    tokio::pin!(listening);

    let (began, mut heard) = (Instant::now(), false);
    let cause = loop {
        let limit = match pool.roster().next(pid) {
            Next::Starting => Some(began + pool.options.start_timeout),
            Next::Serving { overdue } => overdue,
            Next::Finished => break Cause::Finished,
        };
        // All arms are cancel-safe: `listening` is polled on, the others keep what was said. What
        // it said comes first, so that an answer that is there is not too late.
        tokio::select! {
            biased;
            cause = &mut listening => {
                heard = true;
                break cause;
            }
            status = child.wait() => break Cause::Ended(status),
            () = deaf.notified() => break Cause::Closed("closed its standard input"),
            () = pool.stop.cancelled() => break Cause::Stopped,
            () = wake.notified() => {}
            () = until(limit) => match pool.roster().next(pid) {
                Next::Starting => break Cause::NotReady,
                Next::Serving { overdue: Some(at) } if at <= Instant::now() => break Cause::Hung,
                _ => {}
            },
        }
    };
    dying.store(true, Ordering::Relaxed);
    pool.close_child(pid);
    let rest = async {
        // What it says until it has ended counts, unless it was nonsense that ends it.
        if !heard {
            listening.await;
        }
    };
    let end = end(&cause, &mut child, group, stdin, rest).await;
    for voice in voices {
        let abort = voice.abort_handle();
        if timeout(LEFTOVERS, voice).await.is_err() {
            abort.abort();
        }
    }
    conclude(pool, pid, cause, end, &tail)
}

/// Sees to it that the child is gone. Gives its status if it ended without our doing.
async fn end(
    cause: &Cause,
    child: &mut Child,
    group: Group,
    stdin: Stdin,
    rest: impl Future<Output = ()>,
) -> Option<ExitStatus> {
    // It may be polled again when it is done.
    let rest = maybe_done(rest);
    tokio::pin!(rest);
    let patience = match cause {
        Cause::Ended(status) => {
            // Returns at once unless a process it left behind holds descriptor 3 open.
            timeout(LEFTOVERS, rest).await.ok();
            return status.as_ref().ok().copied();
        }
        Cause::Closed(_) => Some(MOMENT),
        Cause::Finished | Cause::Stopped => {
            drop(stdin);
            Some(FAREWELL)
        }
        Cause::Broken(_) | Cause::Hung | Cause::NotReady => None,
    };
    if let Some(patience) = patience
        && let Ok(Ok(status)) = timeout(patience, ended(child, rest.as_mut())).await
    {
        return Some(status);
    }
    // TERM now, KILL 5 s later.
    drop(group);
    timeout(MERCY + LEFTOVERS, ended(child, rest)).await.ok();
    None
}

/// Waits for the end of a child and listens meanwhile.
async fn ended(
    child: &mut Child,
    mut rest: impl Future<Output = ()> + Unpin,
) -> io::Result<ExitStatus> {
    // Both arms are cancel-safe, and `wait` may be called again.
    tokio::select! {
        status = child.wait() => {
            timeout(LEFTOVERS, rest).await.ok();
            status
        }
        () = &mut rest => child.wait().await,
    }
}

/// Tells the runs that are left, and whoever keeps the child.
fn conclude(pool: &Pool, pid: u32, cause: Cause, end: Option<ExitStatus>, tail: &Tail) -> Life {
    let name = format!("`{}` (process {pid})", pool.exec.name());
    let said = colon(&tail.lock().unwrap_or_else(PoisonError::into_inner));
    let (how, what) = match (cause, end) {
        (Cause::Finished, _) => {
            pool.lose(pid, true, |_| String::new());
            return Life::Finished;
        }
        (Cause::Stopped, _) => {
            pool.lose(pid, true, |_| format!("{name} was ended with its worker"));
            return Life::Stopped;
        }
        (Cause::Hung, _) => {
            let why = "was ended: a run went on for 5 s after it was cancelled";
            let other = "no attempt is used, since that was another job's run";
            let healthy = pool.lose(pid, true, |_| format!("{name} {why}; {other}"));
            return Life::Failed { end: End::Hung, why: format!("{name} {why}{said}"), healthy };
        }
        (Cause::NotReady, _) => {
            let limit = humantime::format_duration(pool.options.start_timeout);
            let what = format!("was ended: it did not say that it is ready within {limit}");
            (End::NotReady, what)
        }
        (Cause::Broken(what), _) => (End::Broken, format!("was ended: it {what}")),
        (Cause::Closed(what), None) => (End::Broken, format!("was ended: it {what}")),
        (Cause::Ended(_) | Cause::Closed(_), Some(status)) => {
            (End::Died, Ending(status).to_string())
        }
        (Cause::Ended(error), None) => (End::Died, format!("is lost: {error:?}")),
    };
    let ready = pool.roster().next(pid) != Next::Starting;
    let healthy = pool.lose(pid, false, |runs| {
        let beside = match runs {
            0 | 1 => String::new(),
            2 => " and another one".to_owned(),
            more => format!(" and {} others", more - 1),
        };
        format!("{name} {what}, while it ran this job{beside}{said}")
    });
    let early = if ready || how == End::NotReady { "" } else { ", before it was ready" };
    Life::Failed { end: how, why: format!("{name} {what}{early}{said}"), healthy }
}

/// The child's standard input; dropping it closes it.
struct Stdin(AbortHandle);

impl Stdin {
    fn open(
        stdin: Option<ChildStdin>,
        lines: mpsc::UnboundedReceiver<Vec<u8>>,
        deaf: Arc<Notify>,
    ) -> Self {
        Self(tokio::spawn(feed(stdin, lines, deaf)).abort_handle())
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A child that does not read holds up its own lines alone, until their jobs are cancelled.
async fn feed(
    stdin: Option<ChildStdin>,
    mut lines: mpsc::UnboundedReceiver<Vec<u8>>,
    deaf: Arc<Notify>,
) {
    let Some(mut stdin) = stdin else { return };
    while let Some(line) = lines.recv().await {
        if stdin.write_all(&line).await.is_err() {
            deaf.notify_one();
            return;
        }
    }
}

async fn until(limit: Option<Instant>) {
    match limit {
        Some(limit) => sleep_until(limit).await,
        None => std::future::pending().await,
    }
}
