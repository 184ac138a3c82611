//! What a replay has brought and a session has not taken yet: never more than a few events.
//! In: pieces from a reader of the stream. Out: the same for one session, which is woken for them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::course::Piece;
use super::entry::Entry;

/// Events that one outbox holds.
const ITEMS: usize = if cfg!(test) { 3 } else { 256 };
/// Bytes that one outbox holds.
const BYTES: usize = 256 * 1024;
/// Bytes of these that it may hold whatever the others do: to ask again for every few events would
/// cost the broker more than they take.
const ASSURED: usize = if cfg!(test) { 0 } else { 16 * 1024 };

/// What all outboxes together may hold.
#[derive(Debug)]
pub(crate) struct Budget {
    most: usize,
    held: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, held: AtomicUsize::new(0) }
    }

    /// Bytes that wait to be taken.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// Between a reader, which must not wait, and a session, which may be slow.
#[derive(Debug)]
pub(crate) struct Outbox {
    budget: Arc<Budget>,
    bell: Arc<Notify>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    pieces: VecDeque<Piece>,
    events: usize,
    bytes: usize,
    closed: bool,
}

impl Outbox {
    pub(crate) fn new(budget: &Arc<Budget>, bell: &Arc<Notify>) -> Self {
        Self { budget: Arc::clone(budget), bell: Arc::clone(bell), inner: Mutex::default() }
    }

    /// Puts an event in. `false`: it is full, or nobody takes anything out any more.
    pub(crate) fn offer(&self, entry: &Arc<Entry>) -> bool {
        let cost = entry.cost();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // The first one always has room: everybody must get on.
        let full = inner.events > 0
            && (inner.events >= ITEMS
                || inner.bytes + cost > BYTES
                || inner.bytes + cost > ASSURED && self.budget.held() + cost > self.budget.most);
        if full || inner.closed {
            return false;
        }
        inner.events += 1;
        inner.bytes += cost;
        self.budget.held.fetch_add(cost, Ordering::Relaxed);
        inner.pieces.push_back(Piece::Event(Arc::clone(entry)));
        drop(inner);
        self.bell.notify_one();
        true
    }

    /// Puts in a word about what comes or came, which always has room.
    pub(crate) fn tell(&self, piece: Piece) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.closed {
            inner.pieces.push_back(piece);
        }
        drop(inner);
        self.bell.notify_one();
    }

    /// Takes what came first.
    pub(crate) fn take(&self) -> Option<Piece> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = inner.pieces.pop_front();
        if let Some(Piece::Event(entry)) = &piece {
            inner.events -= 1;
            inner.bytes -= entry.cost();
            self.budget.held.fetch_sub(entry.cost(), Ordering::Relaxed);
        }
        piece
    }

    /// Nothing more is taken out.
    pub(crate) fn close(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.budget.held.fetch_sub(inner.bytes, Ordering::Relaxed);
        *inner = Inner { closed: true, ..Inner::default() };
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.close();
    }
}
