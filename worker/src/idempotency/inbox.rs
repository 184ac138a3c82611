//! A transactional inbox (feature `postgres`): what a handler writes and the mark that it has done
//! so commit together.
//! In: a job and a closure over a transaction. Out: its result, or the stored one of an earlier run.

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use deadpool_postgres::{Pool, Transaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{info, warn};

use super::key_of;
use super::postgres::Database;
use super::store::StoreError;
use crate::context::Context;
use crate::error::{JobError, JobResult};

/// How long a job waits while another run has its key.
const RECHECK: Duration = Duration::from_secs(1);
/// How long a job waits while the database does not answer.
const DATABASE_DOWN: Duration = Duration::from_secs(10);

// A lock, so that a second run does not block on the first one's row with a connection in hand.
const LOCK: &str = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))";
const MARK: &str = "
INSERT INTO forebay_inbox AS i (key, until)
VALUES ($1, clock_timestamp() + make_interval(secs => $2))
ON CONFLICT (key) DO UPDATE SET until = excluded.until, result = NULL
    WHERE i.until <= clock_timestamp()";
const STORED: &str = "SELECT result FROM forebay_inbox WHERE key = $1";
const RESULT: &str = "UPDATE forebay_inbox SET result = $2 WHERE key = $1";
const CLEAN: &str = "
DELETE FROM forebay_inbox WHERE key IN (
    SELECT key FROM forebay_inbox WHERE until < clock_timestamp() LIMIT 1000 FOR UPDATE SKIP LOCKED)";

/// Effects in one PostgreSQL database exactly once for each key, whatever dies when.
///
/// The mark of a job is a row with a unique key. It is written in the transaction that the handler
/// writes in: both are there or neither. A second delivery finds the mark, writes nothing and
/// returns the stored result. This holds for what is done through the transaction alone: a mail
/// sent in between is sent again when the commit fails.
///
/// It needs no [`Idempotency`](super::Idempotency), which may be used besides it to save a run.
/// Keys are the same: the idempotency key, else the job id, for one namespace and kind.
///
/// ```no_run
/// use forebay_worker::idempotency::Inbox;
/// use forebay_worker::{Context, Job, JobResult};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Deposit { account: String, cents: i64 }
/// # impl Job for Deposit { const KIND: &'static str = "money.deposit"; }
///
/// async fn deposit(job: Deposit, cx: Context<Inbox>) -> JobResult<i64> {
///     let add = "UPDATE accounts SET cents = cents + $2 WHERE name = $1 RETURNING cents";
///     let inbox = cx.state();
///     inbox.once(&cx, async |tx| Ok(tx.query_one(add, &[&job.account, &job.cents]).await?.get(0))).await
/// }
/// ```
#[derive(Clone)]
#[must_use]
pub struct Inbox {
    database: Database,
    keep: Duration,
}

impl Inbox {
    /// The table that it needs; running it again changes nothing.
    pub const SCHEMA: &str = "\
CREATE TABLE IF NOT EXISTS forebay_inbox (
    key text PRIMARY KEY,
    result bytea,
    until timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS forebay_inbox_until ON forebay_inbox (until);
";

    /// An inbox in a database of its own connections, 8 at most; URL as for
    /// [`PostgresStore::new`](super::PostgresStore::new). It connects at the first job.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub fn new(url: &str) -> Result<Self, StoreError> {
        Ok(Self::of(Database::new(url)?))
    }

    /// An inbox that shares a pool with the application. Set the pool's timeouts.
    pub fn with_pool(pool: Pool) -> Self {
        Self::of(Database::with_pool(pool))
    }

    fn of(database: Database) -> Self {
        Self { database, keep: Duration::from_secs(7 * 24 * 3600) }
    }

    /// Sets how long a mark is remembered, 10 years at most. Default: 7 days. A duplicate that
    /// comes later runs again.
    pub fn keep(mut self, keep: Duration) -> Self {
        self.keep = keep.min(super::LONGEST_KEEP);
        self
    }

    /// The pool of connections, for the application's other work.
    pub fn pool(&self) -> &Pool {
        &self.database.pool
    }

    /// Creates what is missing of [`Inbox::SCHEMA`].
    ///
    /// # Errors
    /// When the database does not answer, or the user may not create tables.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.database.migrate(Self::SCHEMA).await
    }

    /// Removes marks whose time has passed, at most 1,000, and returns how many they were. Nobody
    /// else does: call it now and then.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn clean(&self) -> Result<u64, StoreError> {
        self.database.execute(CLEAN, &[]).await
    }

    /// Runs `work` in a transaction that also marks the job as done, and commits. If the job is
    /// marked already, `work` is not run: the result of the run that marked it is returned, and
    /// the job counts as a duplicate.
    ///
    /// While another run is inside, or the database does not answer, the job is put off without
    /// using an attempt.
    ///
    /// # Errors
    /// What `work` returns, after its writes were rolled back; when the commit or a statement here
    /// fails; when the stored result is not a `T`.
    pub async fn once<S, T, F>(&self, cx: &Context<S>, work: F) -> JobResult<T>
    where
        T: Serialize + DeserializeOwned,
        F: AsyncFnOnce(&Transaction<'_>) -> JobResult<T>,
    {
        let key = key_of(cx.namespace(), cx.envelope())
            .map_err(|why| JobError::reject(anyhow::anyhow!(why)))?;
        let mut connection = self.database.connection().await.map_err(|error| {
            warn!(job.id = cx.id(), job.kind = cx.kind(), %error, "not run without its inbox");
            JobError::wait(DATABASE_DOWN).because(error)
        })?;
        let key = key.as_str();
        // Dropped on the way out, it rolls back.
        let tx = connection.transaction().await.context("beginning a transaction")?;
        let locked = tx.query_one(LOCK, &[&key]).await.context("locking the job's key")?;
        if !locked.get::<_, bool>(0) {
            return Err(JobError::wait(RECHECK));
        }
        let marked = tx.execute(MARK, &[&key, &self.keep.as_secs_f64()]).await;
        if marked.context("marking the job as done")? == 0 {
            let stored = tx.query_one(STORED, &[&key]).await.context("reading a stored result")?;
            let stored: Option<Vec<u8>> = stored.get(0);
            let result = serde_json::from_slice(stored.as_deref().unwrap_or(b"null"));
            info!(
                job.id = cx.id(),
                job.kind = cx.kind(),
                attempt = cx.attempt(),
                "a job with this key is done already; nothing is written"
            );
            cx.note_duplicate();
            return Ok(result.context("the stored result is of another shape")?);
        }
        let result = work(&tx).await?;
        let json = serde_json::to_vec(&result).context("turning the result into JSON")?;
        tx.execute(RESULT, &[&key, &json]).await.context("storing the result")?;
        tx.commit().await.context("committing")?;
        Ok(result)
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("at", &self.database.address).finish_non_exhaustive()
    }
}
