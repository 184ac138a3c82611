//! Why a run of a job did not succeed, as it is recorded on the job.
//! In: what the worker saw. Out: a bounded history that travels with the job and its dead letter.

use std::fmt;
use std::str::FromStr;

/// Most failures kept on a job; older ones are dropped first.
pub const MOST_FAILURES: usize = 20;
const MESSAGE_BYTES: usize = 4 * 1024;
const HISTORY_BYTES: usize = 32 * 1024;

/// One run that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// When it was recorded, in milliseconds since the epoch, by the worker's clock.
    pub at_ms: u64,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// What kind of failure.
    pub reason: Reason,
    /// The error with its causes, at most 4 kB.
    pub message: String,
    /// Which worker ran it: `host/pid`.
    pub worker: String,
}

/// What kind of failure it was, and why a job is a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The handler returned an error.
    Failed,
    /// The handler said that trying again cannot help.
    Rejected,
    /// The payload is not JSON.
    Undecodable,
    /// No handler for the kind, no kind at all, or valid JSON of another shape.
    UnknownKind,
    /// The handler took longer than its timeout.
    Timeout,
    /// The handler panicked.
    Panic,
    /// The job's time had passed before it could run.
    Expired,
    /// The process died under the job, again and again.
    Crashed,
    /// Not signed, where only signed jobs are run.
    Unsigned,
    /// Signed with a key that the worker does not know.
    UnknownKey,
    /// Not as it was signed.
    Altered,
    /// A word that this version does not know, or the broker's own reason.
    Other(String),
}

impl Failure {
    /// Records a failure; the message is cut to 4 kB.
    pub fn new(
        at_ms: u64,
        attempt: u32,
        reason: Reason,
        message: impl Into<String>,
        worker: impl Into<String>,
    ) -> Self {
        let mut message = message.into();
        cut(&mut message, MESSAGE_BYTES);
        Self { at_ms, attempt, reason, message, worker: worker.into() }
    }

    fn bytes(&self) -> usize {
        // Names, types and numbers of the table take about 80 bytes.
        self.message.len() + self.worker.len() + self.reason.as_str().len() + 80
    }

    /// With a shorter message, in at most `room` bytes; `None` if the rest alone takes more.
    fn shortened(&self, room: usize) -> Option<Self> {
        let left = room.checked_sub(self.bytes() - self.message.len())?;
        let mut short = self.clone();
        cut(&mut short.message, left);
        (short.bytes() <= room).then_some(short)
    }
}

/// The newest failures that fit: at most 20, each ≤ 4 kB, together ≤ 32 kB and at most `room` bytes.
/// Headers must stay below one frame: a bigger header closes the whole connection (AMQP 0-9-1,
/// section 4.2.3). Of the newest as much of its message is kept as fits.
pub(crate) fn bounded(failures: &[Failure], room: usize) -> Vec<Failure> {
    let room = room.min(HISTORY_BYTES);
    let mut bytes = 0;
    let fitting = failures.iter().rev().take(MOST_FAILURES).take_while(|failure| {
        bytes += failure.bytes();
        bytes <= room
    });
    let mut kept: Vec<_> = fitting.cloned().collect();
    kept.reverse();
    if kept.is_empty()
        && let Some(newest) = failures.last()
    {
        kept.extend(newest.shortened(room));
    }
    kept
}

/// Shortens text to at most `most` bytes at a character boundary, with a mark that it was cut.
pub(crate) fn cut(text: &mut String, most: usize) {
    const MARK: &str = "… (cut)";
    if text.len() > most {
        let end = (0..=most.saturating_sub(MARK.len())).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push_str(MARK);
    }
}

/// What an error says of a text that may have any length.
pub(crate) fn beginning(text: &str) -> String {
    let mut text = text.to_owned();
    cut(&mut text, 300);
    text
}

impl Reason {
    /// The word on the wire, in the CLI and in metrics.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Undecodable => "undecodable",
            Self::UnknownKind => "unknown_kind",
            Self::Timeout => "timeout",
            Self::Panic => "panic",
            Self::Expired => "expired",
            Self::Crashed => "crashed",
            Self::Unsigned => "unsigned",
            Self::UnknownKey => "unknown_key",
            Self::Altered => "altered",
            Self::Other(word) => word,
        }
    }
}

impl FromStr for Reason {
    type Err = std::convert::Infallible;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Ok(match word {
            "failed" => Self::Failed,
            "rejected" => Self::Rejected,
            "undecodable" => Self::Undecodable,
            "unknown_kind" => Self::UnknownKind,
            "timeout" => Self::Timeout,
            "panic" => Self::Panic,
            "expired" => Self::Expired,
            "crashed" => Self::Crashed,
            "unsigned" => Self::Unsigned,
            "unknown_key" => Self::UnknownKey,
            "altered" => Self::Altered,
            other => Self::Other(other.to_owned()),
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(attempt: u32, bytes: usize) -> Failure {
        Failure::new(1, attempt, Reason::Failed, "é".repeat(bytes / 2), "host/1")
    }

    #[test]
    fn a_message_is_cut_at_a_character_boundary() {
        let failure = failure(1, 9_001);
        assert!(failure.message.len() <= MESSAGE_BYTES);
        assert!(failure.message.ends_with("… (cut)"), "{}", failure.message.len());
    }

    #[test]
    fn the_newest_twenty_failures_are_kept() {
        let all: Vec<_> = (1..=30).map(|attempt| failure(attempt, 10)).collect();
        let kept = bounded(&all, usize::MAX);
        assert_eq!((kept.len(), kept[0].attempt, kept[19].attempt), (20, 11, 30));
    }

    #[test]
    fn the_history_stays_below_32_kb() {
        let all: Vec<_> = (1..=20).map(|attempt| failure(attempt, 4_000)).collect();
        let kept = bounded(&all, usize::MAX);
        assert!(kept.iter().map(Failure::bytes).sum::<usize>() <= HISTORY_BYTES);
        assert_eq!(kept.last(), all.last());
    }

    #[test]
    fn where_there_is_less_room_the_newest_is_kept_as_far_as_it_fits() {
        let all: Vec<_> = (1..=3).map(|attempt| failure(attempt, 4_000)).collect();
        for (room, kept_of) in [(20_000, 3), (9_000, 2), (4_200, 1), (300, 1), (101, 1), (60, 0)] {
            let kept = bounded(&all, room);
            assert_eq!(kept.len(), kept_of, "{room}");
            assert!(kept.iter().map(Failure::bytes).sum::<usize>() <= room, "{room}");
            assert!(kept.last().is_none_or(|newest| newest.attempt == 3));
        }
    }
}
