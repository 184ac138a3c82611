//! From `[idempotency]` to a worker's rules.
//! In: the settings, the environment. Out: rules with a store that connects when it is first
//! needed; or what is missing, and what to do about it.

use forebay_worker::idempotency::{Idempotency, MemoryStore};

use super::prepare::Missing;
use crate::manifest::{ClaimStore, IdempotencySettings};

pub(super) fn prepare(settings: &IdempotencySettings) -> Result<Idempotency, Missing> {
    let mut rules = match &settings.store {
        ClaimStore::Memory => Idempotency::new(MemoryStore::new()),
        ClaimStore::Url(url) => store(url).map_err(|what| (what, CORRECT))?,
        ClaimStore::Variable(name) => {
            let unset = || (format!("variable `{name}` with the store's URL is not set"), SET);
            let url = std::env::var(name).ok().filter(|url| !url.is_empty()).ok_or_else(unset)?;
            store(&url)
                .map_err(|what| (format!("variable `{name}` cannot be used: {what}"), SET))?
        }
    };
    if let Some(lease) = settings.lease {
        rules = rules.lease(lease);
    }
    if let Some(keep) = settings.keep {
        rules = rules.keep(keep);
    }
    if let Some(recheck) = settings.recheck {
        rules = rules.recheck(recheck);
    }
    if let Some(patience) = settings.patience {
        rules = rules.patience(patience);
    }
    if let Some(bytes) = settings.max_result {
        rules = rules.max_result(bytes);
    }
    if settings.only_with_key {
        rules = rules.only_with_key();
    }
    if settings.fail_open {
        rules = rules.fail_open();
    }
    Ok(rules)
}

const CORRECT: &str = "correct `store`";
const SET: &str = "set it to redis://host:6379/0 or postgres://user:password@host/database";

fn store(url: &str) -> Result<Idempotency, String> {
    if !ClaimStore::is_known(url) {
        return Err("it is neither a redis:// nor a postgres:// URL".to_owned());
    }
    if url.starts_with("redis") { redis(url) } else { postgres(url) }
}

#[cfg(feature = "redis")]
fn redis(url: &str) -> Result<Idempotency, String> {
    let store = forebay_worker::idempotency::RedisStore::new(url);
    store.map(Idempotency::new).map_err(|error| error.to_string())
}

#[cfg(not(feature = "redis"))]
fn redis(_: &str) -> Result<Idempotency, String> {
    Err(left_out("redis"))
}

#[cfg(feature = "postgres")]
fn postgres(url: &str) -> Result<Idempotency, String> {
    let store = forebay_worker::idempotency::PostgresStore::new(url);
    // Nobody else runs migrations for a worker that is made of a file.
    store.map(|store| Idempotency::new(store.migrating())).map_err(|error| error.to_string())
}

#[cfg(not(feature = "postgres"))]
fn postgres(_: &str) -> Result<Idempotency, String> {
    Err(left_out("postgres"))
}

#[cfg(not(all(feature = "redis", feature = "postgres")))]
fn left_out(feature: &str) -> String {
    format!(
        "this program was built without it: build it with `--features {feature}`, or take the \
         image, which has it"
    )
}
