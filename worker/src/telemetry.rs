//! What operators see: spans, log lines, the summary. All field names are spelled here; those of
//! metrics in `meter`.
//! In: what happened. Out: `tracing` events, and the summary at the end.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use forebay_producer::Envelope;
use serde::Serialize;
use tracing::{Span, debug, error, error_span, field, info, warn};

#[cfg(feature = "otel")]
use crate::otel;
use crate::verdict::{Verdict, Why};

/// Counts of one worker since it started.
#[derive(Debug)]
pub(crate) struct Counts {
    began: Instant,
    succeeded: AtomicU64,
    duplicates: AtomicU64,
    retried: AtomicU64,
    put_off: AtomicU64,
    suspects: AtomicU64,
    dead: AtomicU64,
    given_back: AtomicU64,
}

/// What a worker has done, returned when it ends.
///
/// Its `Display` is one line: `done 41, retried 2, dead 1, put off 0, given back 3, in 12.4s`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// Jobs whose handler returned `Ok`.
    pub succeeded: u64,
    /// Jobs acked without a run because their work was done before; see
    /// [`Idempotency`](crate::Idempotency).
    pub duplicates: u64,
    /// Failed runs that were scheduled again.
    pub retried: u64,
    /// Runs put off without using an attempt: unknown kinds, deferrals, and jobs that wait for
    /// another run of their key.
    pub put_off: u64,
    /// Jobs moved away because a process died under them.
    pub suspects: u64,
    /// Jobs that became dead letters.
    pub dead: u64,
    /// Deliveries given back unfinished.
    pub given_back: u64,
    /// How long the worker ran, in seconds.
    pub seconds: f64,
}

impl Counts {
    pub(crate) fn new() -> Self {
        let zero = AtomicU64::default;
        Self {
            began: Instant::now(),
            succeeded: zero(),
            duplicates: zero(),
            retried: zero(),
            put_off: zero(),
            suspects: zero(),
            dead: zero(),
            given_back: zero(),
        }
    }

    pub(crate) fn summary(&self) -> Summary {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Summary {
            succeeded: read(&self.succeeded),
            duplicates: read(&self.duplicates),
            retried: read(&self.retried),
            put_off: read(&self.put_off),
            suspects: read(&self.suspects),
            dead: read(&self.dead),
            given_back: read(&self.given_back),
            seconds: self.began.elapsed().as_secs_f64(),
        }
    }

    /// Counts a delivery that was given back without being looked at.
    pub(crate) fn unseen(&self) {
        self.given_back.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self, verdict: &Verdict) {
        let count = match verdict {
            Verdict::Ack(_) => &self.succeeded,
            Verdict::Duplicate(_) => &self.duplicates,
            Verdict::Again { why: Why::Retry, .. } => &self.retried,
            Verdict::Again { why: Why::Suspect, .. } => &self.suspects,
            Verdict::Again { .. } => &self.put_off,
            Verdict::Dead(_) => &self.dead,
            Verdict::GiveBack => &self.given_back,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "done {}, retried {}, dead {}, put off {}, given back {}, in {:.1}s",
            self.succeeded, self.retried, self.dead, self.put_off, self.given_back, self.seconds
        )?;
        if self.duplicates > 0 {
            write!(f, "; {} duplicates", self.duplicates)?;
        }
        if self.suspects > 0 {
            write!(f, "; {} suspected of killing their process", self.suspects)?;
        }
        Ok(())
    }
}

/// The span that a run and its settling live in. What is logged inside of it names the job: at the
/// level of errors, so that a log of nothing but errors does too.
#[cfg_attr(not(feature = "otel"), expect(unused_variables, reason = "only spans name it"))]
pub(crate) fn span(job: &Envelope, exchange: &str) -> Span {
    let span = error_span!(
        "job",
        job.id = job.id,
        job.kind = kind(job),
        queue = job.queue,
        attempt = job.attempt,
        trace_id = field::Empty,
        otel.name = field::Empty,
        otel.kind = field::Empty,
    );
    #[cfg(feature = "otel")]
    if otel::begin(&span, job, exchange) {
        return span;
    }
    if !span.is_disabled()
        && let Some(trace) = job.trace()
    {
        span.record("trace_id", trace.trace_id());
    }
    span
}

/// The span that the function of a batch handler runs in. Each of its jobs has its own besides, for
/// what is logged about that job alone.
pub(crate) fn batch_span(number: u64, kind: &str, queue: &str, jobs: usize) -> Span {
    error_span!("batch", batch = number, job.kind = kind, queue, jobs)
}

/// Counts and logs what is about to be done with a job, inside of its span.
pub(crate) fn decided(counts: &Counts, job: &Envelope, verdict: &Verdict) {
    counts.count(verdict);
    match verdict {
        Verdict::Ack(_) => debug!("done"),
        // At info level, with the rest of the story, where it was found.
        Verdict::Duplicate(_) => debug!("duplicate acked"),
        Verdict::Again { delay, envelope, why } => {
            let delay_ms = delay.map_or(0, |delay| delay.duration().as_millis() as u64);
            let error = envelope.failures.last().map_or("", |failure| failure.message.as_str());
            match why {
                Why::Retry => warn!(delay_ms, error, "job will be retried"),
                Why::Grace => warn!(
                    graces = envelope.graces,
                    delay_ms, "no handler takes this job yet; it waits for a deploy"
                ),
                Why::Waits => debug!(
                    delay_ms,
                    "put off: another run of the same key is under way, or nobody can tell"
                ),
                Why::Deferral(error) => info!(delay_ms, error, "job put off"),
                Why::Suspect => warn!(
                    crashes = envelope.crashes,
                    delay_ms, "a process died under this job; it will run alone"
                ),
            }
        }
        Verdict::Dead(letter) => {
            let reason = letter.dead.as_ref().map_or("", |mark| mark.reason.as_str());
            let error = letter.failures.last().map_or("", |failure| failure.message.as_str());
            error!(reason, error, "job is a dead letter now");
        }
        // It may not have got as far as to have a span.
        Verdict::GiveBack => debug!(
            job.id,
            job.kind = kind(job),
            queue = job.queue,
            attempt = job.attempt,
            "job given back"
        ),
    }
    // Last: a log line at the level of errors sets a status of its own.
    #[cfg(feature = "otel")]
    otel::end(&Span::current(), verdict);
}

fn kind(job: &Envelope) -> &str {
    job.kind.as_deref().unwrap_or("-")
}
