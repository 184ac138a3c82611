//! What a handler returns, and why a worker could not be built or run.

use std::fmt;
use std::time::Duration;

use forebay_producer::ConnectError;

/// What a handler returns: `Ok` acks the job, an error retries or dead-letters it.
pub type JobResult<T = ()> = Result<T, JobError>;

/// A handler's error, and what is to become of the job.
///
/// Any error turns into one with `?` and is retried by the handler's policy. [`JobError::reject`]
/// and [`JobError::retry_after`] say otherwise.
///
/// ```
/// use forebay_worker::{JobError, JobResult};
/// use std::time::Duration;
///
/// async fn charge(amount: &str) -> JobResult {
///     let cents: u32 = amount.parse().map_err(JobError::reject)?; // permanent: dead letter now
///     if cents > 100_000 {
///         return Err(JobError::retry_after(Duration::from_secs(60)).because(anyhow::anyhow!("limit")));
///     }
///     tokio::fs::write("/tmp/charged", cents.to_string()).await?; // any other error: retry
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct JobError {
    pub(crate) then: Then,
    pub(crate) cause: anyhow::Error,
}

/// What the handler wants to happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// By policy.
    Retry,
    /// After this time, as long as attempts are left.
    RetryAfter(Duration),
    /// After this time, without using an attempt.
    Defer(Duration),
    /// After this time, without using anything: another run has the job's key.
    Wait(Duration),
    /// Dead letter now.
    Reject,
}

impl JobError {
    /// The job can never succeed: it becomes a dead letter now, with reason `rejected`.
    pub fn reject(cause: impl Into<anyhow::Error>) -> Self {
        Self { then: Then::Reject, cause: cause.into() }
    }

    /// Tries again by policy; the same as `?`.
    pub fn retry(cause: impl Into<anyhow::Error>) -> Self {
        Self { then: Then::Retry, cause: cause.into() }
    }

    /// Tries again after `delay` instead of the policy's, as long as attempts are left.
    pub fn retry_after(delay: Duration) -> Self {
        let cause = anyhow::anyhow!("to be retried after {}", humantime::format_duration(delay));
        Self { then: Then::RetryAfter(delay), cause }
    }

    /// Puts the job off by `delay` without using an attempt, at most 20 times in a row; after that
    /// it counts as a failure.
    pub fn defer(delay: Duration) -> Self {
        let cause = anyhow::anyhow!("put off by {}", humantime::format_duration(delay));
        Self { then: Then::Defer(delay), cause }
    }

    /// Puts the job off by about `delay` for as long as it takes.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "the inbox waits"))]
    pub(crate) fn wait(delay: Duration) -> Self {
        Self { then: Then::Wait(delay), cause: anyhow::anyhow!("another run has this job's key") }
    }

    /// Replaces the cause, keeping what is to happen.
    #[must_use]
    pub fn because(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.cause = cause.into();
        self
    }

    /// The same for another job of its batch: what is to happen, and the words.
    pub(crate) fn again(&self) -> Self {
        Self { then: self.then, cause: anyhow::Error::msg(self.message()) }
    }

    /// The error and its causes in one line, as it is recorded on the job.
    pub fn message(&self) -> String {
        format!("{:#}", self.cause)
    }
}

impl<E: Into<anyhow::Error>> From<E> for JobError {
    fn from(cause: E) -> Self {
        Self::retry(cause)
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.cause)
    }
}

/// Everything that is wrong with a worker, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildError {
    /// One sentence each.
    pub faults: Vec<String>,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the worker cannot be built: {}", self.faults.join("; "))
    }
}

impl std::error::Error for BuildError {}

/// Why a worker stopped without being asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The broker never let us in.
    #[error("the worker cannot start")]
    Connect(#[source] ConnectError),
    /// A queue never let us consume.
    #[error("the worker cannot consume queue `{queue}`: {because}")]
    Queue {
        /// Queue.
        queue: String,
        /// What to mend.
        because: String,
    },
    /// A queue was not consumed for longer than `exit_after`.
    #[error(
        "queue `{queue}` was not consumed for {} ({because}); ending, as `exit_after` asks for",
        humantime::format_duration(*.idle)
    )]
    NotConsuming {
        /// Queue.
        queue: String,
        /// For how long.
        idle: Duration,
        /// Why.
        because: String,
    },
}
