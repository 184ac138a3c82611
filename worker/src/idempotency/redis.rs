//! Claims in Redis (feature `redis`): each step is one script, one round trip.
//! In: keys. Out: answers by the clock of the Redis server.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, FromRedisValue, RedisError, Script, ScriptInvocation};
use tokio::sync::OnceCell;

use super::store::{Claim, Key, Store, StoreError};

const PREFIX: &str = "forebay:once:";
const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(5);

/// `n`: claim number. `u`: end of the lease in ms. `d`: completed. `r`: its result. A number is the
/// server's time in microseconds, at least one more than the one before.
const CLAIM: &str = r"
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local r = redis.call('HMGET', KEYS[1], 'n', 'u', 'd', 'r')
if r[3] then return {2, 0, r[4]} end
if r[1] and tonumber(r[2]) > now then return {1, tonumber(r[2]) - now, false} end
local n = t[1] * 1000000 + t[2]
if r[1] and n <= tonumber(r[1]) then n = tonumber(r[1]) + 1 end
redis.call('HSET', KEYS[1], 'n', string.format('%.0f', n), 'u', string.format('%.0f', now + ARGV[1]))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {0, n, false}
";

/// Also the release, with a lease of 0.
const RENEW: &str = r"
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local r = redis.call('HMGET', KEYS[1], 'n', 'd')
if r[2] or (r[1] and r[1] ~= ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'n', ARGV[1], 'u', string.format('%.0f', now + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
";

const COMPLETE: &str = r"
local r = redis.call('HMGET', KEYS[1], 'n', 'd')
if r[1] and r[1] ~= ARGV[1] then return 0 end
if r[2] then return 1 end
redis.call('HSET', KEYS[1], 'n', ARGV[1], 'd', '1')
if ARGV[3] then redis.call('HSET', KEYS[1], 'r', ARGV[3]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
";

/// How long a claim is remembered beyond its lease, so that a late run finds that it is late.
const GRACE: Duration = Duration::from_secs(600);

/// Keeps claims in Redis 5 or newer, or what speaks its protocol and runs its scripts.
///
/// Each key is one hash, `forebay:once:<key>`, which Redis forgets by itself. Completions are as
/// durable as that Redis is: use `appendonly yes` and a `maxmemory-policy` of `noeviction`. A
/// replica that takes over may lack the newest claims, and then two runs are possible.
///
/// ```no_run
/// use forebay_worker::idempotency::{Idempotency, RedisStore};
///
/// let once = Idempotency::new(RedisStore::new("redis://127.0.0.1:6379/0")?);
/// # Ok::<(), forebay_worker::idempotency::StoreError>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct RedisStore {
    client: Client,
    /// Made when it is first needed: it belongs to a runtime.
    connection: Arc<OnceCell<ConnectionManager>>,
    /// Where it is, without credentials.
    address: String,
    prefix: String,
    scripts: Arc<Scripts>,
}

struct Scripts {
    claim: Script,
    renew: Script,
    complete: Script,
}

impl RedisStore {
    /// A store at `redis://[user:password@]host[:port]/[db]`; `rediss://` for TLS by rustls, with
    /// the certificates that this machine trusts. It connects at the first claim, and again
    /// whenever the connection is lost.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub fn new(url: &str) -> Result<Self, StoreError> {
        let wrong = |error: RedisError| {
            // The URL itself may carry a password.
            StoreError::new("the URL of the Redis store cannot be read", error)
        };
        let client = Client::open(url).map_err(wrong)?;
        let address = client.get_connection_info().addr().to_string();
        let scripts = Scripts {
            claim: Script::new(CLAIM),
            renew: Script::new(RENEW),
            complete: Script::new(COMPLETE),
        };
        Ok(Self {
            client,
            connection: Arc::default(),
            address,
            prefix: PREFIX.to_owned(),
            scripts: scripts.into(),
        })
    }

    /// Sets what every key begins with. Default: `forebay:once:`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    fn key(&self, key: &Key) -> String {
        format!("{}{key}", self.prefix)
    }

    async fn run<T: FromRedisValue>(
        &self,
        invocation: &ScriptInvocation<'_>,
    ) -> Result<T, StoreError> {
        let answer = async {
            let mut connection = self.connection().await?;
            invocation.invoke_async(&mut connection).await
        };
        let named = |error| StoreError::new(format!("Redis at {}", self.address), error);
        answer.await.map_err(named)
    }

    async fn connection(&self) -> Result<ConnectionManager, RedisError> {
        // Whoever waits tries again itself.
        let config = || {
            ConnectionManagerConfig::new()
                .set_number_of_retries(0)
                .set_connection_timeout(Some(CONNECT))
                .set_response_timeout(Some(ANSWER))
        };
        let connect = async || self.client.get_connection_manager_lazy(config());
        self.connection.get_or_try_init(connect).await.cloned()
    }
}

impl Store for RedisStore {
    async fn claim(&self, key: &Key, lease: Duration) -> Result<Claim, StoreError> {
        let mut call = self.scripts.claim.key(self.key(key));
        call.arg(ms(lease)).arg(ms(lease + GRACE));
        let (what, number, result): (u8, u64, Option<Vec<u8>>) = self.run(&call).await?;
        Ok(match what {
            0 => Claim::Granted { number },
            1 => Claim::Held { expires_in: Duration::from_millis(number) },
            _ => Claim::Completed { result: result.map(Bytes::from) },
        })
    }

    async fn renew(&self, key: &Key, number: u64, lease: Duration) -> Result<bool, StoreError> {
        let mut call = self.scripts.renew.key(self.key(key));
        call.arg(number).arg(ms(lease)).arg(ms(lease + GRACE));
        self.run(&call).await
    }

    async fn complete(
        &self,
        key: &Key,
        number: u64,
        result: Option<&Bytes>,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        let mut call = self.scripts.complete.key(self.key(key));
        call.arg(number).arg(ms(keep));
        if let Some(result) = result {
            call.arg(&result[..]);
        }
        self.run(&call).await
    }

    async fn release(&self, key: &Key, number: u64) -> Result<bool, StoreError> {
        self.renew(key, number, Duration::ZERO).await
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).clamp(0, 1 << 50)
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("address", &self.address)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
