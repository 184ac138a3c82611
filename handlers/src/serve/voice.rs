//! What a long-lived child process prints, as log lines.
//! In: its standard output or standard error. Out: log lines, as many as a log can bear; the end
//! of the text for a failure.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::capture::Capture;

/// The longest piece of a line that is logged at once, in bytes.
const PIECE: u64 = 8 * 1024;

/// Lines that are logged in a second; what is beyond them is counted.
const LINES: u32 = 200;

/// The end of a text that goes on being written.
pub(super) type Tail = Arc<Mutex<Capture>>;

/// Whose voice it is.
#[derive(Debug, Clone)]
pub(super) struct Speaker {
    pub(super) server: Arc<str>,
    pub(super) pid: u32,
    pub(super) stream: &'static str,
}

/// Logs what is read until it ends. A pipe that breaks has ended.
pub(super) async fn log(
    speaker: Speaker,
    pipe: Option<impl AsyncRead + Unpin>,
    tail: Option<Tail>,
) {
    let Some(pipe) = pipe else { return };
    let (mut pipe, mut line) = (BufReader::new(pipe), Vec::new());
    let mut throttle = Throttle::new(Instant::now());
    loop {
        let more = {
            let read = read_piece(&mut pipe, &mut line);
            tokio::pin!(read);
            loop {
                // Both arms are cancel-safe: `read` is polled on.
                tokio::select! {
                    more = &mut read => break more,
                    () = sleep_until(throttle.ends()), if throttle.dropped > 0 => {
                        speaker.left_out(throttle.turn(Instant::now()));
                    }
                }
            }
        };
        if !more {
            break;
        }
        if let Some(tail) = &tail {
            tail.lock().unwrap_or_else(PoisonError::into_inner).push(&line);
        }
        let dropped = throttle.turn(Instant::now());
        speaker.left_out(dropped);
        if throttle.lets_pass() {
            speaker.say(&line);
        }
    }
    speaker.left_out(throttle.dropped);
}

/// A line, or the next piece of a long one; false at the end.
async fn read_piece(pipe: &mut BufReader<impl AsyncRead + Unpin>, line: &mut Vec<u8>) -> bool {
    line.clear();
    matches!(pipe.take(PIECE).read_until(b'\n', line).await, Ok(1..))
}

impl Speaker {
    fn say(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end();
        if !text.is_empty() {
            let (server, pid, stream) = (&*self.server, self.pid, self.stream);
            info!(server, pid, stream, text, "printed");
        }
    }

    fn left_out(&self, lines: u64) {
        if lines > 0 {
            let (server, pid, stream) = (&*self.server, self.pid, self.stream);
            warn!(server, pid, stream, lines, "printed too much: lines were left out");
        }
    }
}

/// So many lines a second.
#[derive(Debug)]
struct Throttle {
    since: Instant,
    passed: u32,
    dropped: u64,
}

impl Throttle {
    fn new(now: Instant) -> Self {
        Self { since: now, passed: 0, dropped: 0 }
    }

    /// When its second is over.
    fn ends(&self) -> Instant {
        self.since + Duration::from_secs(1)
    }

    /// Begins a new second if it is time; how many lines the one before has dropped.
    fn turn(&mut self, now: Instant) -> u64 {
        if now < self.ends() {
            return 0;
        }
        std::mem::replace(self, Self::new(now)).dropped
    }

    fn lets_pass(&mut self) -> bool {
        if self.passed < LINES {
            self.passed += 1;
            return true;
        }
        self.dropped += 1;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_instead_of_logged() {
        let began = Instant::now();
        let mut throttle = Throttle::new(began);
        assert_eq!((0..1_000).filter(|_| throttle.lets_pass()).count(), 200);
        assert_eq!(throttle.turn(began + Duration::from_millis(999)), 0);
        assert_eq!(throttle.turn(began + Duration::from_secs(1)), 800);
        assert!(throttle.lets_pass());
    }
}
