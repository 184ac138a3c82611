//! Claims in this process's memory: for one process, and for tests.
//! In: keys. Out: the same answers as a database's, until the process ends.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use forebay_producer::link::after;
use tokio::time::Instant;

use super::store::{Claim, Key, Store, StoreError};

const CAPACITY: usize = 100_000;
/// How long what is over is remembered, so that a late run finds that it is late.
const GRACE: Duration = Duration::from_secs(600);

/// Keeps claims in memory: of use where one process works on a queue, and in tests.
///
/// Another process knows nothing of them, and a restart forgets them.
///
/// ```
/// use forebay_worker::idempotency::{Idempotency, MemoryStore};
///
/// let once = Idempotency::new(MemoryStore::new().capacity(10_000));
/// # let _ = once;
/// ```
#[must_use]
pub struct MemoryStore {
    capacity: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    records: HashMap<Key, Record>,
    /// Every record by the end of its time.
    ends: BTreeSet<(Instant, Key)>,
    newest: u64,
}

struct Record {
    number: u64,
    until: Instant,
    /// Completed, with its result.
    done: Option<Option<Bytes>>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self { capacity: CAPACITY, table: Mutex::default() }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many keys are remembered; default 100,000. Beyond it, the completions that would
    /// be forgotten soonest are forgotten now. Running claims are never forgotten: with that many
    /// of them, a further claim is an error.
    pub fn capacity(mut self, keys: usize) -> Self {
        self.capacity = keys;
        self
    }

    fn with<T>(&self, step: impl FnOnce(&mut Table, Instant) -> T) -> T {
        step(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner), Instant::now())
    }
}

impl Table {
    /// What is there; a completion whose time has passed is not.
    fn get(&self, key: &Key, now: Instant) -> Option<&Record> {
        self.records.get(key).filter(|record| record.done.is_none() || record.until > now)
    }

    /// Whether a claim of this number is the newest there is.
    fn is_newest(&self, key: &Key, number: u64, now: Instant) -> bool {
        self.get(key, now).is_none_or(|record| record.number == number)
    }

    fn is_completed(&self, key: &Key, now: Instant) -> bool {
        self.get(key, now).is_some_and(|record| record.done.is_some())
    }

    fn write(&mut self, key: &Key, record: Record) {
        self.ends.insert((record.until, key.clone()));
        let until = record.until;
        if let Some(old) = self.records.insert(key.clone(), record)
            && old.until != until
        {
            self.ends.remove(&(old.until, key.clone()));
        }
    }

    fn forget(&mut self, until: Instant, key: Key) {
        self.records.remove(&key);
        self.ends.remove(&(until, key));
    }

    /// Each call makes more room than it takes.
    fn forget_old(&mut self, now: Instant) {
        for _ in 0..2 {
            match self.ends.first() {
                Some((until, _)) if *until + GRACE <= now => {
                    let (until, key) = self.ends.first().cloned().expect("it was there");
                    self.forget(until, key);
                }
                _ => return,
            }
        }
    }

    fn make_room(&mut self, now: Instant) -> bool {
        let spare = self.ends.iter().find(|(until, key)| {
            *until <= now || self.records.get(key).is_some_and(|record| record.done.is_some())
        });
        let Some((until, key)) = spare.cloned() else { return false };
        self.forget(until, key);
        true
    }
}

impl Store for MemoryStore {
    async fn claim(&self, key: &Key, lease: Duration) -> Result<Claim, StoreError> {
        self.with(|table, now| {
            table.forget_old(now);
            match table.get(key, now) {
                Some(Record { done: Some(result), .. }) => {
                    return Ok(Claim::Completed { result: result.clone() });
                }
                Some(claim) if claim.until > now => {
                    return Ok(Claim::Held { expires_in: claim.until - now });
                }
                _ => {}
            }
            let is_new = !table.records.contains_key(key);
            if is_new && table.records.len() >= self.capacity && !table.make_room(now) {
                return Err(StoreError::because(format!(
                    "the memory store has {} running claims, which is its capacity; raise it",
                    self.capacity
                )));
            }
            table.newest += 1;
            let number = table.newest;
            table.write(key, Record { number, until: after(lease), done: None });
            Ok(Claim::Granted { number })
        })
    }

    async fn renew(&self, key: &Key, number: u64, lease: Duration) -> Result<bool, StoreError> {
        Ok(self.with(|table, now| {
            let mine = table.is_newest(key, number, now) && !table.is_completed(key, now);
            if mine {
                table.write(key, Record { number, until: after(lease), done: None });
            }
            mine
        }))
    }

    async fn complete(
        &self,
        key: &Key,
        number: u64,
        result: Option<&Bytes>,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        Ok(self.with(|table, now| {
            let mine = table.is_newest(key, number, now);
            if mine && !table.is_completed(key, now) {
                let done = Some(result.cloned());
                table.write(key, Record { number, until: after(keep), done });
            }
            mine
        }))
    }

    async fn release(&self, key: &Key, number: u64) -> Result<bool, StoreError> {
        Ok(self.with(|table, now| {
            let mine = table.is_newest(key, number, now) && !table.is_completed(key, now);
            if mine {
                table.write(key, Record { number, until: now, done: None });
            }
            mine
        }))
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_full_store_forgets_completions_but_never_running_claims() {
        let store = MemoryStore::new().capacity(2);
        let [first, second, third] = ["a", "b", "c"].map(Key::new);
        let Ok(Claim::Granted { number }) = store.claim(&first, LEASE).await else { panic!() };
        assert!(store.complete(&first, number, None, LEASE).await.unwrap());
        assert!(matches!(store.claim(&second, LEASE).await, Ok(Claim::Granted { .. })));
        // The completion of the first makes room.
        assert!(matches!(store.claim(&third, LEASE).await, Ok(Claim::Granted { .. })));
        let error = store.claim(&first, LEASE).await.unwrap_err();
        assert!(error.to_string().contains("2 running claims"), "{error}");
        assert!(matches!(store.claim(&second, LEASE).await, Ok(Claim::Held { .. })));
    }
}
