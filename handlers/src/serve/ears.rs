//! What a child process says on descriptor 3.
//! In: its lines. Out: news for the roster; why it has to end, if it does not say what makes sense.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, mpsc};
use tracing::{debug, info, warn};

use super::child::Cause;
use super::pool::Pool;
use super::protocol::{self, ANSWER, Message};
use super::roster::Child as Listed;

/// Reads lines from descriptor 3 until it is closed, or a line is too long or makes no sense.
pub(super) async fn listen(
    events: pipe::Receiver,
    mut hear: impl FnMut(&[u8]) -> Result<(), String>,
) -> Cause {
    let (mut events, mut line) = (BufReader::with_capacity(64 * 1024, events), Vec::new());
    let most = u64::try_from(ANSWER).unwrap_or(u64::MAX);
    loop {
        line.clear();
        match (&mut events).take(most).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return Cause::Closed("closed descriptor 3"),
            Ok(_) if line.last() == Some(&b'\n') => {}
            Ok(length) if length < ANSWER => {
                let begin = protocol::beginning(&line);
                return Cause::Broken(format!("closed descriptor 3 amid a line: {begin}"));
            }
            Ok(_) => {
                let begin = protocol::beginning(&line);
                return Cause::Broken(format!(
                    "wrote a line of more than 16 MiB on descriptor 3: {begin}"
                ));
            }
        }
        if let Err(what) = hear(&line) {
            return Cause::Broken(what);
        }
        // A large answer must not hold its memory for as long as the child lives.
        line.shrink_to(64 * 1024);
    }
}

/// What is done with a line of the child's.
pub(super) struct Ears<'p> {
    pub(super) pool: &'p Pool,
    pub(super) pid: u32,
    /// Given to the roster when the child is ready.
    pub(super) lines: Option<mpsc::UnboundedSender<Vec<u8>>>,
    pub(super) wake: Arc<Notify>,
    /// It is being ended, so that it gets no jobs any more.
    pub(super) dying: &'p AtomicBool,
    /// What makes no difference is mentioned once.
    pub(super) puzzled: bool,
}

impl Ears<'_> {
    pub(super) fn hear(&mut self, line: &[u8]) -> Result<(), String> {
        match protocol::read(line)? {
            Message::Ready { .. } if self.dying.load(Ordering::Relaxed) => {}
            Message::Ready { jobs } => match self.lines.take() {
                Some(lines) => self.ready(jobs, lines),
                None => self.puzzle("child process said again that it is ready", "", line),
            },
            Message::Answer { run, answer } => {
                if !self.pool.answer(self.pid, &run, answer) {
                    self.puzzle("child process answered a run that it does not have", &run, line);
                }
            }
            Message::Word { run, word } => {
                let listener = self.pool.roster().listener(self.pid, &run);
                match listener {
                    Ok(Some(hears)) => hears(word),
                    Ok(None) => {}
                    Err(()) => {
                        self.puzzle("child process told of a run it does not have", &run, line);
                    }
                }
            }
            Message::Unknown => {
                self.puzzle("child process said what this worker does not know", "", line);
            }
        }
        Ok(())
    }

    fn ready(&self, jobs: Option<usize>, lines: mpsc::UnboundedSender<Vec<u8>>) {
        let (server, pid) = (&*self.pool.name, self.pid);
        let wanted = self.pool.options.jobs_per_process;
        let places = jobs.unwrap_or(wanted).clamp(1, wanted);
        if places < wanted {
            warn!(server, pid, places, wanted, "child process takes fewer jobs than it might");
        }
        info!(server, pid, places, "child process is ready");
        let left = self.pool.options.max_jobs.unwrap_or(u64::MAX);
        self.pool.open(pid, Listed::new(lines, Arc::clone(&self.wake), places, left));
    }

    /// The line itself is not shown: it may be a result.
    fn puzzle(&mut self, what: &'static str, run: &str, line: &[u8]) {
        let (server, pid, length) = (&*self.pool.name, self.pid, line.len());
        let run = protocol::beginning(run.as_bytes());
        if std::mem::replace(&mut self.puzzled, true) {
            debug!(server, pid, run, length, "{what}; it is ignored");
        } else {
            warn!(server, pid, run, length, "{what}; it is ignored, and so are further ones");
        }
    }
}
