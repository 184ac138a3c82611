//! How much memory the runs of one function take together.
//! In: what each is about to take. Out: its share, when there is room, in the order of asking.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often one that waits looks whether its run is over.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Memory {
    bytes: u64,
    shares: Mutex<Shares>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Shares {
    taken: u64,
    tickets: u64,
    waiting: VecDeque<u64>,
}

/// A part of the memory, until it is dropped.
#[derive(Debug)]
pub(super) struct Share<'m> {
    memory: &'m Memory,
    bytes: u64,
}

impl Memory {
    pub(super) fn new(bytes: u64) -> Self {
        Self { bytes, shares: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits for room; who wants more than there is gets all of it. `None` when told to stop.
    pub(super) fn share(&self, bytes: u64, stop: impl Fn() -> bool) -> Option<Share<'_>> {
        let bytes = bytes.min(self.bytes);
        let mut shares = self.shares();
        let ticket = shares.tickets;
        shares.tickets += 1;
        shares.waiting.push_back(ticket);
        let mut stopped = stop();
        // A large one would never find room if smaller ones went ahead of it.
        while !stopped
            && (shares.waiting.front() != Some(&ticket) || shares.taken + bytes > self.bytes)
        {
            let waited = self.changed.wait_timeout(shares, LOOK);
            shares = waited.unwrap_or_else(PoisonError::into_inner).0;
            stopped = stop();
        }
        shares.waiting.retain(|other| *other != ticket);
        // There may be room for the next one, too.
        self.changed.notify_all();
        if stopped {
            return None;
        }
        shares.taken += bytes;
        Some(Share { memory: self, bytes })
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As much of it; what is taken makes no difference.
impl PartialEq for Memory {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Memory {}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.memory.shares().taken -= self.bytes;
        self.memory.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    fn waiting(memory: &Memory, count: usize) {
        while memory.shares().waiting.len() != count {
            thread::yield_now();
        }
    }

    #[test]
    fn shares_never_come_to_more_than_there_is_and_are_given_in_turn() {
        let memory = Memory::new(10);
        let first = memory.share(6, || false).unwrap();
        thread::scope(|scope| {
            let large = scope.spawn(|| memory.share(99, || false).map(|share| share.bytes));
            waiting(&memory, 1);
            // It would fit, but it came later.
            let small = scope.spawn(|| memory.share(1, || false).map(|share| share.bytes));
            waiting(&memory, 2);
            assert_eq!(memory.shares().taken, 6);
            drop(first);
            assert_eq!(large.join().unwrap(), Some(10));
            assert_eq!(small.join().unwrap(), Some(1));
        });
        assert_eq!(memory.shares().taken, 0);
    }

    #[test]
    fn one_that_is_told_to_stop_waits_no_more_and_holds_up_nobody() {
        let (memory, stop) = (Memory::new(10), AtomicBool::new(false));
        let first = memory.share(6, || false).unwrap();
        thread::scope(|scope| {
            let large = scope.spawn(|| memory.share(9, || stop.load(Ordering::Relaxed)).is_some());
            waiting(&memory, 1);
            let small = scope.spawn(|| memory.share(4, || false).is_some());
            waiting(&memory, 2);
            stop.store(true, Ordering::Relaxed);
            assert!(!large.join().unwrap());
            assert!(small.join().unwrap());
        });
        drop(first);
        assert_eq!(memory.shares().taken, 0);
    }
}
