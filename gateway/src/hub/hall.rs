//! What the hub's parts share: the window, and who is to be woken for which room; pure.
//! In: events in stream order, sessions that come, go, join and leave. Out: a ring for each session
//! that has something to look at.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use forebay_producer::Gap;
use tokio::sync::Notify;

use super::entry::{Entry, Place, Room};
use super::window::{Limits, Window};

/// Stands under one lock, which nobody holds for longer than it takes to look something up.
#[derive(Debug)]
pub(crate) struct Hall {
    pub(crate) window: Window,
    /// Raised when the stream goes on at a place that does not follow.
    pub(crate) epoch: u64,
    /// Why it was raised last.
    pub(crate) gap: Option<Gap>,
    /// The stream no longer has its first event.
    pub(crate) trimmed: bool,
    bells: HashMap<u64, Bell>,
    rooms: HashMap<Room, HashSet<u64>>,
    next: u64,
}

#[derive(Debug)]
struct Bell {
    notify: Arc<Notify>,
    /// Where the head was when it was first rung for an event.
    rung: Option<Place>,
}

impl Hall {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            window: Window::new(limits),
            epoch: 0,
            gap: None,
            trimmed: false,
            bells: HashMap::new(),
            rooms: HashMap::new(),
            next: 0,
        }
    }

    /// A session comes, and is in no room.
    pub(crate) fn enter(&mut self, bell: &Arc<Notify>) -> u64 {
        self.next += 1;
        self.bells.insert(self.next, Bell { notify: Arc::clone(bell), rung: None });
        self.next
    }

    /// A session goes; it is in no room any more.
    pub(crate) fn exit(&mut self, id: u64) {
        self.bells.remove(&id);
    }

    pub(crate) fn join(&mut self, id: u64, room: &Room) {
        self.rooms.entry(room.clone()).or_default().insert(id);
    }

    pub(crate) fn leave(&mut self, id: u64, room: &Room) {
        if let Some(ids) = self.rooms.get_mut(room) {
            ids.remove(&id);
            if ids.is_empty() {
                self.rooms.remove(room);
            }
        }
    }

    /// Where the head was when something first came for a session since this was last asked.
    pub(crate) fn rung(&mut self, id: u64) -> Option<Place> {
        self.bells.get_mut(&id)?.rung.take()
    }

    /// Takes the next event, and wakes those whom it concerns.
    pub(crate) fn push(&mut self, entry: Entry, now: Instant) {
        let before = self.window.head().clone();
        let Some(entry) = self.window.push(entry, now) else { return };
        for room in &entry.rooms {
            for id in self.rooms.get(room).into_iter().flatten() {
                if let Some(bell) = self.bells.get_mut(id) {
                    bell.rung.get_or_insert_with(|| before.clone());
                    bell.notify.notify_one();
                }
            }
        }
    }

    /// What comes next does not follow what came before; nothing older is on the stream.
    pub(crate) fn begin(&mut self, gap: Option<Gap>) {
        self.window.begin();
        self.trimmed = gap == Some(Gap::Retention);
        if gap.is_some() {
            self.epoch += 1;
            self.gap = gap;
        }
        for bell in self.bells.values_mut() {
            bell.rung = None;
            bell.notify.notify_one();
        }
    }

    /// What was read does not reach up to what comes next, and nobody has seen it.
    pub(crate) fn forget(&mut self) {
        self.window.forget();
    }

    /// Sessions that are there.
    pub(crate) fn sessions(&self) -> usize {
        self.bells.len()
    }
}
