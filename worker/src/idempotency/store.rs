//! What a store of claims can do, for those that ship with us and for your own.
//! In: a key and a claim number. Out: whether the run may go on; the store alone decides.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};

/// What a run is to happen once for: namespace, kind, and the job's idempotency key or id.
///
/// As text: `forebay email.send key order-4711`, or `forebay email.send id …` for a job without a
/// key. At most 1,000 bytes are the job's; any character may be among them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    /// A key from its text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A store's answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Claim {
    /// The run may begin.
    Granted {
        /// The claim number, also called a fencing token: larger than every number that was given
        /// for this key before.
        number: u64,
    },
    /// Another run has a claim whose lease has not passed.
    Held {
        /// The rest of its lease. It may be renewed.
        expires_in: Duration,
    },
    /// A run has completed.
    Completed {
        /// Its result as JSON; `None` when it was too large to be kept.
        result: Option<Bytes>,
    },
}

/// Keeps claims and completions. Implement it for a database of your own.
///
/// For each key there is nothing, or one *claim* (number, lease), or one *completion* (number,
/// result). **Each method must be one atomic step for its key**: no other call on the same key may
/// come between its look and its change. A compare-and-set, a script or a transaction does; a
/// read followed by a write does not. Calls on different keys need not see each other.
///
/// Times are measured by one clock for all processes that share the store: that of the database,
/// never that of the caller. What a method has answered must outlive a restart of the store for
/// as long as the protection is to hold.
///
/// A call may be repeated after its answer was lost, and may be given up by its caller halfway.
///
/// The tests of the stores here run one suite against all of them; `worker/tests/it/stores.rs` is
/// the place to look for what is expected in every detail.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not keep claims",
    label = "not a store",
    note = "use `MemoryStore`, `RedisStore` (feature `redis`) or `PostgresStore` (feature \
            `postgres`), or implement `forebay_worker::idempotency::Store`"
)]
pub trait Store: Send + Sync + 'static {
    /// Claims a key for `lease`.
    ///
    /// Nothing there, a claim whose lease has passed, or a completion whose time has passed:
    /// writes a claim with a new number and grants it. Among any number of callers at once exactly
    /// one is granted. Otherwise changes nothing and says what is there.
    ///
    /// # Errors
    /// When the store cannot tell. The claim may have been written: its lease will pass.
    fn claim(
        &self,
        key: &Key,
        lease: Duration,
    ) -> impl Future<Output = Result<Claim, StoreError>> + Send;

    /// Lets a claim last for `lease` from now, if the number is still the key's newest. Where
    /// nothing is there (the store lost it), writes the claim again.
    ///
    /// `false`: another run has claimed or completed the key; nothing was changed.
    ///
    /// # Errors
    /// When the store cannot tell.
    fn renew(
        &self,
        key: &Key,
        number: u64,
        lease: Duration,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Turns a claim into a completion that is kept for `keep`, whether or not its lease has
    /// passed, as long as nobody else has claimed the key. Where nothing is there, writes the
    /// completion all the same. `true` again for the number that has completed already.
    ///
    /// `false`: another run has claimed or completed the key; nothing was changed. That is the
    /// fence against a run that comes late.
    ///
    /// # Errors
    /// When the store cannot tell.
    fn complete(
        &self,
        key: &Key,
        number: u64,
        result: Option<&Bytes>,
        keep: Duration,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Ends the lease of a claim now, so that the next run can claim at once. The number is to be
    /// remembered for some minutes, as that of any claim whose lease has passed.
    ///
    /// `false`: another run has claimed or completed the key; nothing was changed.
    ///
    /// # Errors
    /// When the store cannot tell.
    fn release(
        &self,
        key: &Key,
        number: u64,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;
}

/// Why a store gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("the idempotency store gave no answer: {because}")]
pub struct StoreError {
    because: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// An error with its cause; say in `doing` what was tried, and where.
    pub fn new(
        doing: impl fmt::Display,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        let mut because = format!("{doing}: {source}");
        let mut cause = source.source();
        while let Some(error) = cause {
            because = format!("{because}: {error}");
            cause = error.source();
        }
        Self { because, source: Some(source) }
    }

    /// An error without another behind it.
    pub fn because(why: impl Into<String>) -> Self {
        Self { because: why.into(), source: None }
    }
}

impl<T: Store> Store for Arc<T> {
    async fn claim(&self, key: &Key, lease: Duration) -> Result<Claim, StoreError> {
        T::claim(self, key, lease).await
    }

    async fn renew(&self, key: &Key, number: u64, lease: Duration) -> Result<bool, StoreError> {
        T::renew(self, key, number, lease).await
    }

    async fn complete(
        &self,
        key: &Key,
        number: u64,
        result: Option<&Bytes>,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        T::complete(self, key, number, result, keep).await
    }

    async fn release(&self, key: &Key, number: u64) -> Result<bool, StoreError> {
        T::release(self, key, number).await
    }
}

type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// A store behind a pointer: workers are not generic over theirs.
pub(crate) trait AnyStore: Send + Sync {
    fn claim<'a>(&'a self, key: &'a Key, lease: Duration) -> Answer<'a, Claim>;
    fn renew<'a>(&'a self, key: &'a Key, number: u64, lease: Duration) -> Answer<'a, bool>;
    fn complete<'a>(
        &'a self,
        key: &'a Key,
        number: u64,
        result: Option<&'a Bytes>,
        keep: Duration,
    ) -> Answer<'a, bool>;
    fn release<'a>(&'a self, key: &'a Key, number: u64) -> Answer<'a, bool>;
}

impl<T: Store> AnyStore for T {
    fn claim<'a>(&'a self, key: &'a Key, lease: Duration) -> Answer<'a, Claim> {
        Store::claim(self, key, lease).boxed()
    }

    fn renew<'a>(&'a self, key: &'a Key, number: u64, lease: Duration) -> Answer<'a, bool> {
        Store::renew(self, key, number, lease).boxed()
    }

    fn complete<'a>(
        &'a self,
        key: &'a Key,
        number: u64,
        result: Option<&'a Bytes>,
        keep: Duration,
    ) -> Answer<'a, bool> {
        Store::complete(self, key, number, result, keep).boxed()
    }

    fn release<'a>(&'a self, key: &'a Key, number: u64) -> Answer<'a, bool> {
        Store::release(self, key, number).boxed()
    }
}
