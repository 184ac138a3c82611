//! Claims in PostgreSQL (feature `postgres`): each step is one statement, one round trip.
//! In: keys. Out: answers by the clock of the database server.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Timeouts};
use forebay_producer::wire::envelope::now_ms;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, NoTls, Row};
use tracing::debug;

use super::store::{Claim, Key, Store, StoreError};

const CONNECTIONS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two clean-ups by one process.
const CLEAN_MS: u64 = 60_000;

const CLAIM: &str = "
WITH claimed AS (
    INSERT INTO forebay_claims AS c (key, number, until)
    VALUES ($1, nextval('forebay_claim_number'), clock_timestamp() + make_interval(secs => $2))
    ON CONFLICT (key) DO UPDATE
        -- Once more, now that the row is locked: no later claim of this key has a smaller one.
        SET number = nextval('forebay_claim_number'), until = excluded.until,
            done = false, result = NULL
        WHERE c.until <= clock_timestamp()
    RETURNING number
)
SELECT number, false AS done, NULL::bytea AS result, 0::float8 AS rest FROM claimed
UNION ALL
SELECT NULL, done AND until > clock_timestamp(), result,
       extract(epoch FROM until - clock_timestamp())::float8
FROM forebay_claims WHERE key = $1 AND NOT EXISTS (SELECT FROM claimed)";

/// Also the release, with a lease of 0.
const RENEW: &str = "
INSERT INTO forebay_claims AS c (key, number, until)
VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (key) DO UPDATE
    SET number = excluded.number, until = excluded.until, done = false, result = NULL
    WHERE (c.number = $2 AND NOT c.done) OR (c.done AND c.until <= clock_timestamp())";

const COMPLETE: &str = "
INSERT INTO forebay_claims AS c (key, number, done, result, until)
VALUES ($1, $2, true, $3, clock_timestamp() + make_interval(secs => $4))
ON CONFLICT (key) DO UPDATE
    SET number = excluded.number, done = true,
        result = CASE WHEN c.done AND c.until > clock_timestamp() THEN c.result
            ELSE excluded.result END,
        until = CASE WHEN c.done AND c.until > clock_timestamp() THEN c.until
            ELSE excluded.until END
    WHERE c.number = $2 OR (c.done AND c.until <= clock_timestamp())";

/// What is over is kept for an hour, so that a late run finds that it is late.
const CLEAN: &str = "
DELETE FROM forebay_claims WHERE key IN (
    SELECT key FROM forebay_claims WHERE until < clock_timestamp() - interval '1 hour'
    LIMIT 1000 FOR UPDATE SKIP LOCKED)";

/// Keeps claims in a table of PostgreSQL 12 or newer.
///
/// Run [`PostgresStore::migrate`] once, or [`PostgresStore::SCHEMA`] with your own migrations, or
/// let it do so by itself with [`PostgresStore::migrating`]. What
/// is over is removed now and then, at most once a minute by each process, beside its other work;
/// [`PostgresStore::clean`] does it at once.
///
/// ```no_run
/// # async fn example() -> Result<(), forebay_worker::idempotency::StoreError> {
/// use forebay_worker::idempotency::{Idempotency, PostgresStore};
///
/// let store = PostgresStore::new("postgres://app@127.0.0.1/app")?;
/// store.migrate().await?;
/// let once = Idempotency::new(store);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct PostgresStore {
    database: Database,
    cleaned_ms: Arc<AtomicU64>,
    migrates: bool,
}

impl PostgresStore {
    /// The table and the sequence that it needs; running it again changes nothing. Both are found
    /// by the connection's `search_path`.
    pub const SCHEMA: &str = "\
CREATE SEQUENCE IF NOT EXISTS forebay_claim_number;
CREATE TABLE IF NOT EXISTS forebay_claims (
    key text PRIMARY KEY,
    number bigint NOT NULL,
    done boolean NOT NULL DEFAULT false,
    result bytea,
    until timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS forebay_claims_until ON forebay_claims (until);
";

    /// A store in a database of its own connections, 8 at most. `postgres://user@host/database`,
    /// or `key=value` words; with `sslmode=require` by TLS, with the certificates that this
    /// machine trusts, otherwise without. It connects at the first claim.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub fn new(url: &str) -> Result<Self, StoreError> {
        Ok(Self::of(Database::new(url)?))
    }

    /// A store that shares a pool with the application. Set the pool's timeouts.
    pub fn with_pool(pool: Pool) -> Self {
        Self::of(Database::with_pool(pool))
    }

    fn of(database: Database) -> Self {
        Self { database, cleaned_ms: Arc::new(AtomicU64::new(now_ms())), migrates: false }
    }

    /// Lets a claim that finds no table create it. Default: that claim is an error.
    pub fn migrating(mut self) -> Self {
        self.migrates = true;
        self
    }

    /// Creates what is missing of [`PostgresStore::SCHEMA`].
    ///
    /// # Errors
    /// When the database does not answer, or the user may not create tables.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.database.migrate(Self::SCHEMA).await
    }

    /// Removes what has been over for an hour, at most 1,000 rows, and returns how many it were.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn clean(&self) -> Result<u64, StoreError> {
        self.database.execute(CLEAN, &[]).await
    }

    async fn clean_now_and_then(&self) {
        let (last, now) = (self.cleaned_ms.load(Ordering::Relaxed), now_ms());
        if now.saturating_sub(last) < CLEAN_MS {
            return;
        }
        let order = Ordering::Relaxed;
        if self.cleaned_ms.compare_exchange(last, now, order, order).is_ok()
            && let Err(error) = self.clean().await
        {
            debug!(%error, "old claims are removed another time");
        }
    }
}

impl Store for PostgresStore {
    async fn claim(&self, key: &Key, lease: Duration) -> Result<Claim, StoreError> {
        let parameters: [&(dyn ToSql + Sync); 2] = [&key.as_str(), &lease.as_secs_f64()];
        let mut row = self.database.query(CLAIM, &parameters).await;
        if self.migrates && row.as_ref().is_err_and(is_missing) {
            self.migrate().await?;
            row = self.database.query(CLAIM, &parameters).await;
        }
        // No row: somebody else's was written since the statement began.
        let Some(row) = row? else { return Ok(Claim::Held { expires_in: lease }) };
        Ok(match row.get::<_, Option<i64>>("number") {
            Some(number) => Claim::Granted { number: number as u64 },
            None if row.get("done") => Claim::Completed {
                result: row.get::<_, Option<Vec<u8>>>("result").map(Bytes::from),
            },
            None => {
                let rest = row.get::<_, f64>("rest").max(0.0);
                Claim::Held { expires_in: Duration::from_secs_f64(rest) }
            }
        })
    }

    async fn renew(&self, key: &Key, number: u64, lease: Duration) -> Result<bool, StoreError> {
        let (number, lease) = (number as i64, lease.as_secs_f64());
        let changed = self.database.execute(RENEW, &[&key.as_str(), &number, &lease]).await?;
        Ok(changed > 0)
    }

    async fn complete(
        &self,
        key: &Key,
        number: u64,
        result: Option<&Bytes>,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        let (number, result) = (number as i64, result.map(|result| &result[..]));
        let parameters: [&(dyn ToSql + Sync); 4] =
            [&key.as_str(), &number, &result, &keep.as_secs_f64()];
        let changed = self.database.execute(COMPLETE, &parameters).await?;
        self.clean_now_and_then().await;
        Ok(changed > 0)
    }

    async fn release(&self, key: &Key, number: u64) -> Result<bool, StoreError> {
        self.renew(key, number, Duration::ZERO).await
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("at", &self.database.address).finish_non_exhaustive()
    }
}

/// A pool, and where it leads to.
#[derive(Clone)]
pub(super) struct Database {
    pub(super) pool: Pool,
    /// Without credentials.
    pub(super) address: String,
}

impl Database {
    /// # Errors
    /// When the URL cannot be read.
    pub(super) fn new(url: &str) -> Result<Self, StoreError> {
        let wrong = "the URL of the PostgreSQL store cannot be read";
        let mut config: Config = url.parse().map_err(|error| StoreError::new(wrong, error))?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(PATIENCE);
        }
        let address = address_of(&config);
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = match config.get_ssl_mode() {
            SslMode::Require => {
                let tls = tls().map_err(|error| StoreError::new("TLS cannot be set up", error))?;
                Manager::from_config(config, tls, recycling)
            }
            _ => {
                config.ssl_mode(SslMode::Disable);
                Manager::from_config(config, NoTls, recycling)
            }
        };
        let patience = Some(PATIENCE);
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts { wait: patience, create: patience, recycle: patience })
            .build()
            .map_err(|error| StoreError::new("no pool of connections", error))?;
        Ok(Self { pool, address })
    }

    pub(super) fn with_pool(pool: Pool) -> Self {
        Self { pool, address: "the application's pool".to_owned() }
    }

    pub(super) async fn connection(&self) -> Result<Object, StoreError> {
        self.pool.get().await.map_err(|error| self.error(error))
    }

    /// # Errors
    /// When the database does not answer or refuses.
    pub(super) async fn migrate(&self, schema: &str) -> Result<(), StoreError> {
        // Two that create the same table at once would fail, `IF NOT EXISTS` or not.
        let locked = format!("BEGIN; SELECT pg_advisory_xact_lock(7310579043); {schema} COMMIT;");
        let connection = self.connection().await?;
        let migrated = connection.batch_execute(&locked).await;
        if migrated.is_err() {
            // Not back into the pool with an open transaction.
            drop(Object::take(connection));
        }
        migrated.map_err(|error| self.error(error))
    }

    async fn query(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, StoreError> {
        let connection = self.connection().await?;
        let row = async {
            let statement = connection.prepare_cached(statement).await?;
            connection.query_opt(&statement, parameters).await
        };
        row.await.map_err(|error| self.error(error))
    }

    pub(super) async fn execute(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, StoreError> {
        let connection = self.connection().await?;
        let changed = async {
            let statement = connection.prepare_cached(statement).await?;
            connection.execute(&statement, parameters).await
        };
        changed.await.map_err(|error| self.error(error))
    }

    fn error(&self, error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
        StoreError::new(format!("PostgreSQL at {}", self.address), error)
    }
}

/// Whether the table or the sequence is not there.
fn is_missing(error: &StoreError) -> bool {
    let source = std::error::Error::source(error);
    let error = source.and_then(|source| source.downcast_ref::<tokio_postgres::Error>());
    error.is_some_and(|error| error.code() == Some(&SqlState::UNDEFINED_TABLE))
}

fn address_of(config: &Config) -> String {
    use tokio_postgres::config::Host;
    let hosts = config.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    });
    let ports = config.get_ports().iter().chain(std::iter::repeat(&5432));
    let hosts: Vec<_> = hosts.zip(ports).map(|(host, port)| format!("{host}:{port}")).collect();
    hosts.join(",")
}

fn tls() -> Result<tokio_postgres_rustls::MakeRustlsConnect, rustls::Error> {
    use rustls_platform_verifier::BuilderVerifierExt;
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    Ok(tokio_postgres_rustls::MakeRustlsConnect::new(config))
}
