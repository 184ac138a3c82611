//! Each job once, as far as the world allows: claim, run, complete or release.
//! In: a job with a key. Out: it runs, or waits for the run that has its claim, or is answered with
//! the result of the run that has completed.
//!
//! ```
//! use std::time::Duration;
//! use forebay_worker::idempotency::{Idempotency, MemoryStore};
//! use forebay_worker::{Context, Job, JobResult, QueueOptions, Worker};
//! # #[derive(serde::Serialize, serde::Deserialize)] struct Charge { cents: u32 }
//! # impl Job for Charge { const KIND: &'static str = "card.charge"; }
//! # async fn charge(_: Charge, _: Context<()>) -> JobResult { Ok(()) }
//!
//! let once = Idempotency::new(MemoryStore::new())
//!     .lease(Duration::from_secs(30))
//!     .keep(Duration::from_secs(24 * 3600));
//! let worker = Worker::builder(())
//!     .queue("default", QueueOptions::new())
//!     .idempotency(once)
//!     .handle(charge)
//!     .build()?;
//! # Ok::<(), forebay_worker::BuildError>(())
//! ```
//!
//! What this protects from and what it does not stands in `docs/idempotency.md`: effects of a
//! handler outside of the store are still at least once. [`Inbox`] (feature `postgres`) makes
//! effects inside one PostgreSQL database exactly once.

mod guard;
#[cfg(feature = "postgres")]
mod inbox;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod store;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use forebay_producer::Envelope;

pub(crate) use self::guard::Guard;
#[cfg(feature = "postgres")]
pub use self::inbox::Inbox;
pub use self::memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use self::postgres::PostgresStore;
#[cfg(feature = "redis")]
pub use self::redis::RedisStore;
use self::store::AnyStore;
pub use self::store::{Claim, Key, Store, StoreError};

/// Databases count in intervals that have an end.
const LONGEST_KEEP: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Longer keys would not fit into every database's index.
const LONGEST_KEY: usize = 1_000;

/// Runs each job once for its key: the idempotency key that its sender gave, else the job id.
///
/// Around each run: **claim** the key, run the handler, **complete** with its result when it
/// returned `Ok`, **release** when it did not. A key is good for one namespace and one kind.
///
/// - A duplicate of a completed job is acked without a run, counted as `duplicate`, and answered
///   with the stored result.
/// - A duplicate of a job that is running is put off until the claim is free or completed. That
///   uses neither an attempt nor a deferral.
/// - A run that died leaves its claim behind; when the lease has passed, the next run takes over
///   with a higher claim number, and a late completion of the first is refused.
/// - When the store does not answer, the job waits and is not run. [`Idempotency::fail_open`] says
///   otherwise.
///
/// The claim is taken outside of all middleware and before the handler's timeout begins.
#[derive(Clone)]
#[must_use]
pub struct Idempotency {
    store: Arc<dyn AnyStore>,
    lease: Duration,
    keep: Duration,
    recheck: Duration,
    patience: Duration,
    max_result: usize,
    only_with_key: bool,
    fail_open: bool,
}

impl Idempotency {
    /// With a store and all defaults.
    pub fn new(store: impl Store) -> Self {
        Self {
            store: Arc::new(store),
            lease: Duration::from_secs(30),
            keep: Duration::from_secs(24 * 3600),
            recheck: Duration::from_secs(2),
            patience: Duration::from_secs(30),
            max_result: 64 * 1024,
            only_with_key: false,
            fail_open: false,
        }
    }

    /// Sets how long a claim lasts unless it is renewed. Default: 30 s.
    ///
    /// A running job renews it at a third of that time, so a lease may be shorter than the job. It
    /// is how long a job waits after its worker was killed, and how long the store may be out of
    /// reach before running jobs are stopped.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Sets how long a completion is remembered. Default: 24 h. A duplicate that comes later runs
    /// again: choose it longer than publishers repeat themselves and dead letters wait.
    pub fn keep(mut self, keep: Duration) -> Self {
        self.keep = keep;
        self
    }

    /// Sets how long a duplicate of a running job is put off before it looks again, a random
    /// quarter more or less. Default: 2 s.
    pub fn recheck(mut self, after: Duration) -> Self {
        self.recheck = after;
        self
    }

    /// Sets how long a job keeps its place while the store does not answer; then it is put off by
    /// about 10 s, without using an attempt. Default: 30 s.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sets how large a result may be to be kept, in bytes of JSON. Default: 64 KiB. A duplicate of
    /// a job with a larger one is acked all the same, but its caller gets no answer.
    pub fn max_result(mut self, bytes: usize) -> Self {
        self.max_result = bytes;
        self
    }

    /// Leaves jobs without an idempotency key alone, instead of going by their job id. The id
    /// protects from redeliveries and from a producer that sends again, not from a publisher that
    /// asks for the same work twice.
    pub fn only_with_key(mut self) -> Self {
        self.only_with_key = true;
        self
    }

    /// Runs jobs unprotected while the store does not answer, instead of letting them wait: for
    /// work that had better be done twice than late.
    pub fn fail_open(mut self) -> Self {
        self.fail_open = true;
        self
    }

    pub(crate) fn faults(&self) -> impl Iterator<Item = &'static str> {
        [
            // Three renewals must fit into it, each a round trip.
            (self.lease < Duration::from_millis(100), "a lease below 100 ms; use at least that"),
            (self.lease > Duration::from_secs(24 * 3600), "a lease above a day; it is renewed"),
            (self.keep.is_zero(), "keep 0 remembers nothing; use at least a second"),
            (self.keep > LONGEST_KEEP, "keep is above ten years"),
            (self.recheck.is_zero(), "recheck 0 would never rest; use at least 100 ms"),
        ]
        .into_iter()
        .filter_map(|(wrong, fault)| wrong.then_some(fault))
    }

    /// The key of a job; `None` when the job is left alone.
    fn key(&self, namespace: &str, job: &Envelope) -> Option<Result<Key, String>> {
        let left_alone = self.only_with_key && job.idempotency_key.is_none();
        (!left_alone).then(|| key_of(namespace, job))
    }
}

/// A job's key.
///
/// # Errors
/// When it is too long.
fn key_of(namespace: &str, job: &Envelope) -> Result<Key, String> {
    let (what, given) = match &job.idempotency_key {
        Some(key) => ("key", key),
        None => ("id", &job.id),
    };
    if given.len() > LONGEST_KEY {
        let bytes = given.len();
        return Err(format!("the idempotency key has {bytes} bytes, {LONGEST_KEY} are the most"));
    }
    if given.contains('\0') {
        return Err("the idempotency key has a NUL character, which databases refuse".to_owned());
    }
    // No namespace and no kind has a space in it: no two jobs can spell one key.
    let kind = job.kind.as_deref().unwrap_or("-");
    Ok(Key::new(format!("{namespace} {kind} {what} {given}")))
}

impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency")
            .field("lease", &self.lease)
            .field("keep", &self.keep)
            .finish_non_exhaustive()
    }
}
