//! Which child process runs what; pure bookkeeping, no process.
//! In: children that come and go, jobs that look for a place, what children say. Out: the least
//! busy place, and for every run one reply.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::protocol::{self, Answer};
use crate::word::Hears;

/// How long a cancelled run may take to end.
pub(super) const MERCY: Duration = Duration::from_secs(5);

/// How a run ended.
#[derive(Debug)]
pub(super) enum Reply {
    Answer(Answer),
    /// Its process is gone; why, and whether it was another run's doing.
    Lost {
        why: String,
        innocent: bool,
    },
}

/// All children of a server that take jobs, by process number.
#[derive(Debug, Default)]
pub(super) struct Roster {
    children: BTreeMap<u32, Child>,
    /// Why the last child ended that ought not to have; until one has answered a job.
    pub(super) trouble: Option<String>,
}

/// What the roster is told about a child that is ready.
#[derive(Debug)]
pub(super) struct Child {
    /// Lines for it. Not bounded as a type: a place holds at most a job and its cancel.
    pub(super) lines: mpsc::UnboundedSender<Vec<u8>>,
    /// Wakes whoever keeps it.
    pub(super) wake: Arc<Notify>,
    /// Jobs it takes at once.
    pub(super) places: usize,
    /// Jobs it may still take before it is replaced.
    pub(super) left: u64,
    runs: BTreeMap<u64, Run>,
    closed: bool,
    answered: bool,
}

enum Run {
    Running {
        reply: oneshot::Sender<Reply>,
        hears: Hears,
    },
    /// Its result no longer matters, but until the child says that it has ended, it has its place.
    Cancelled {
        until: Instant,
    },
}

/// A place that was taken.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) child: u32,
    pub(super) lines: mpsc::UnboundedSender<Vec<u8>>,
    pub(super) reply: oneshot::Receiver<Reply>,
}

/// What whoever keeps a child has to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It has not said that it is ready.
    Starting,
    /// Nothing, unless a cancelled run has not ended at this time.
    Serving { overdue: Option<Instant> },
    /// It has done all the jobs it is to do: replace it.
    Finished,
}

impl Roster {
    /// A child is ready.
    pub(super) fn open(&mut self, pid: u32, child: Child) {
        self.children.insert(pid, child);
    }

    /// Takes a place on the least busy child; `None` when all are taken.
    pub(super) fn take(&mut self, run: u64, hears: &Hears) -> Option<Taken> {
        let free = self.children.iter_mut().filter(|(_, child)| child.is_free());
        let (pid, child) = free.min_by_key(|(pid, child)| (child.runs.len(), **pid))?;
        let (reply, receiver) = oneshot::channel();
        child.runs.insert(run, Run::Running { reply, hears: Arc::clone(hears) });
        child.left -= 1;
        Some(Taken { child: *pid, lines: child.lines.clone(), reply: receiver })
    }

    /// A child has ended a run. False if it has no such run.
    pub(super) fn answer(&mut self, pid: u32, run: &str, answer: Answer) -> bool {
        let Some(child) = self.children.get_mut(&pid) else { return false };
        let Some(run) = run.parse().ok().and_then(|run| child.runs.remove(&run)) else {
            return false;
        };
        child.answered = true;
        child.wake.notify_one();
        self.trouble = None;
        if let Run::Running { reply, .. } = run {
            // Whoever waited may be gone by now.
            reply.send(Reply::Answer(answer)).ok();
        }
        true
    }

    /// Who hears what a run says, if it still matters. `Err` if the child has
    /// no such run.
    pub(super) fn listener(&self, pid: u32, run: &str) -> Result<Option<Hears>, ()> {
        let child = self.children.get(&pid).ok_or(())?;
        match run.parse().ok().and_then(|run: u64| child.runs.get(&run)).ok_or(())? {
            Run::Running { hears, .. } => Ok(Some(Arc::clone(hears))),
            Run::Cancelled { .. } => Ok(None),
        }
    }

    /// A run's result no longer matters: tells the child, which then has 5 s to end it.
    pub(super) fn cancel(&mut self, pid: u32, run: u64, now: Instant) {
        let Some(child) = self.children.get_mut(&pid) else { return };
        if let Some(place @ Run::Running { .. }) = child.runs.get_mut(&run) {
            *place = Run::Cancelled { until: now + MERCY };
            child.lines.send(protocol::cancel_line(&run.to_string())).ok();
            child.wake.notify_one();
        }
    }

    pub(super) fn next(&self, pid: u32) -> Next {
        let Some(child) = self.children.get(&pid) else { return Next::Starting };
        if child.left == 0 && child.runs.is_empty() {
            return Next::Finished;
        }
        let cancelled = child.runs.values().filter_map(|run| match run {
            Run::Cancelled { until } => Some(*until),
            Run::Running { .. } => None,
        });
        Next::Serving { overdue: cancelled.min() }
    }

    /// A child takes no more jobs; what it runs may still be answered.
    pub(super) fn close(&mut self, pid: u32) {
        if let Some(child) = self.children.get_mut(&pid) {
            child.closed = true;
        }
    }

    /// A child is gone; whether it had answered any job. `why` is told to its runs, with their
    /// number.
    pub(super) fn lose(&mut self, pid: u32, innocent: bool, why: impl Fn(usize) -> String) -> bool {
        let Some(child) = self.children.remove(&pid) else { return false };
        let count = child.runs.len();
        for run in child.runs.into_values() {
            if let Run::Running { reply, .. } = run {
                reply.send(Reply::Lost { why: why(count), innocent }).ok();
            }
        }
        child.answered
    }

    /// Children that take jobs, and the jobs they run.
    pub(super) fn count(&self) -> (usize, usize) {
        let open = self.children.values().filter(|child| !child.closed).count();
        (open, self.children.values().map(|child| child.runs.len()).sum())
    }
}

impl Child {
    pub(super) fn new(
        lines: mpsc::UnboundedSender<Vec<u8>>,
        wake: Arc<Notify>,
        places: usize,
        left: u64,
    ) -> Self {
        Self { lines, wake, places, left, runs: BTreeMap::new(), closed: false, answered: false }
    }

    fn is_free(&self) -> bool {
        !self.closed && self.left > 0 && self.runs.len() < self.places
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Running { .. } => "Running",
            Self::Cancelled { .. } => "Cancelled",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::RawValue;

    fn nowhere() -> Hears {
        Arc::new(|_| {})
    }

    fn done() -> Answer {
        Answer::Done(RawValue::from_string("1".to_owned()).unwrap())
    }

    type Lines = mpsc::UnboundedReceiver<Vec<u8>>;

    fn with(children: &[(u32, usize, u64)]) -> (Roster, Vec<Lines>) {
        let mut roster = Roster::default();
        let open = children.iter().map(|(pid, places, left)| {
            let (lines, read) = mpsc::unbounded_channel();
            roster.open(*pid, Child::new(lines, Arc::default(), *places, *left));
            read
        });
        let lines = open.collect();
        (roster, lines)
    }

    #[test]
    fn jobs_go_to_the_least_busy_child_until_all_places_are_taken() {
        let (mut roster, _lines) = with(&[(10, 2, 99), (20, 2, 99), (30, 1, 99)]);
        let mut take = |run| roster.take(run, &nowhere()).map(|taken| taken.child);
        let taken: Vec<_> = (1..=6).map(&mut take).collect();
        assert_eq!(taken, [Some(10), Some(20), Some(30), Some(10), Some(20), None]);
        assert!(roster.answer(20, "5", done()));
        assert_eq!(roster.take(7, &nowhere()).unwrap().child, 20);
        assert_eq!(roster.count(), (3, 5));
    }

    #[test]
    fn only_the_child_that_has_a_run_can_answer_it_and_only_once() {
        let (mut roster, _lines) = with(&[(10, 1, 99), (20, 1, 99)]);
        let mut taken = roster.take(1, &nowhere()).unwrap();
        for (pid, run) in [(20, "1"), (10, "2"), (10, "x"), (30, "1")] {
            assert!(!roster.answer(pid, run, done()), "{pid} {run}");
            assert!(roster.listener(pid, run).is_err(), "{pid} {run}");
        }
        assert!(roster.listener(10, "1").unwrap().is_some());
        assert!(roster.answer(10, "1", done()));
        assert!(!roster.answer(10, "1", done()));
        assert!(matches!(taken.reply.try_recv(), Ok(Reply::Answer(Answer::Done(_)))));
    }

    #[test]
    fn a_cancelled_run_keeps_its_place_until_the_child_has_ended_it() {
        let (mut roster, mut lines) = with(&[(10, 1, 99)]);
        let now = Instant::now();
        roster.take(1, &nowhere()).unwrap();
        assert_eq!(roster.next(10), Next::Serving { overdue: None });
        roster.cancel(10, 1, now);
        roster.cancel(10, 1, now + MERCY);
        assert_eq!(roster.next(10), Next::Serving { overdue: Some(now + MERCY) });
        assert_eq!(lines[0].try_recv().unwrap(), protocol::cancel_line("1"));
        assert!(lines[0].try_recv().is_err());
        assert!(roster.take(2, &nowhere()).is_none());
        assert!(roster.listener(10, "1").unwrap().is_none());
        assert!(roster.answer(10, "1", done()));
        assert!(roster.take(2, &nowhere()).is_some());
    }

    #[test]
    fn a_run_that_was_answered_is_not_cancelled() {
        let (mut roster, mut lines) = with(&[(10, 1, 99)]);
        roster.take(1, &nowhere()).unwrap();
        roster.answer(10, "1", done());
        roster.cancel(10, 1, Instant::now());
        assert!(lines[0].try_recv().is_err());
    }

    #[test]
    fn a_child_is_finished_when_its_last_job_is_answered() {
        let (mut roster, _lines) = with(&[(10, 2, 2)]);
        assert_eq!(roster.next(20), Next::Starting);
        roster.take(1, &nowhere()).unwrap();
        roster.answer(10, "1", done());
        roster.take(2, &nowhere()).unwrap();
        assert!(roster.take(3, &nowhere()).is_none());
        assert_eq!(roster.next(10), Next::Serving { overdue: None });
        roster.answer(10, "2", done());
        assert_eq!(roster.next(10), Next::Finished);
    }

    #[test]
    fn runs_of_a_lost_child_are_told_why() {
        let (mut roster, _lines) = with(&[(10, 3, 99)]);
        let mut first = roster.take(1, &nowhere()).unwrap();
        let mut second = roster.take(2, &nowhere()).unwrap();
        roster.close(10);
        assert!(roster.take(3, &nowhere()).is_none());
        roster.answer(10, "1", done());
        assert!(roster.lose(10, true, |count| format!("gone with {count}")));
        assert!(matches!(first.reply.try_recv(), Ok(Reply::Answer(_))));
        let lost = second.reply.try_recv().unwrap();
        assert!(
            matches!(&lost, Reply::Lost { why, innocent: true } if why == "gone with 1"),
            "{lost:?}"
        );
        assert!(!roster.lose(10, true, |_| String::new()));
    }
}
