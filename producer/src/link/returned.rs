//! Which messages the broker has given back.
//! In: the returns that come in on a connection, in the order of its frames. Out: for a message
//! that was confirmed, whether it was returned before.
//!
//! The broker sends `basic.return` before the `basic.ack` or `basic.nack` of the same message
//! (RabbitMQ documentation, "Publisher Confirms"). Returns are noted before the client library gets
//! to see the bytes that follow them, so whoever has a confirm in hand finds its return here, however
//! many confirms the broker put into one frame.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The returns of one connection that nobody has asked for yet.
#[derive(Debug, Default)]
pub(crate) struct Returned {
    /// How many there are: most producers never see one.
    count: AtomicUsize,
    channels: Mutex<HashMap<u16, Channel>>,
    frame_max: AtomicUsize,
}

#[derive(Debug, Default)]
struct Channel {
    ids: HashSet<Vec<u8>>,
    /// One came whose id could not be read: it may have been any.
    unread: bool,
}

/// Whether a confirmed message was returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is on its queues.
    Routed,
    /// The broker gave it back.
    Returned,
    /// A message of this channel was given back, and nobody can tell which.
    Unclear,
}

impl Returned {
    /// A message was returned on this channel; `None`: its id cannot be read.
    pub(crate) fn note(&self, channel: u16, id: Option<Vec<u8>>) {
        let mut channels = self.channels();
        let channel = channels.entry(channel).or_default();
        let new = match id {
            Some(id) => channel.ids.insert(id),
            None => !std::mem::replace(&mut channel.unread, true),
        };
        // Before the bytes of the confirm are handed on, by this very thread.
        self.count.fetch_add(usize::from(new), Ordering::Release);
    }

    /// What became of a message that was confirmed on this channel. A return is told once.
    pub(crate) fn fate(&self, channel: u16, id: &str) -> Fate {
        if self.count.load(Ordering::Acquire) == 0 {
            return Fate::Routed;
        }
        let mut channels = self.channels();
        let Some(channel) = channels.get_mut(&channel) else { return Fate::Routed };
        if channel.ids.remove(id.as_bytes()) {
            self.count.fetch_sub(1, Ordering::Release);
            return Fate::Returned;
        }
        if channel.unread { Fate::Unclear } else { Fate::Routed }
    }

    /// The broker says how long a frame may be at most.
    pub(crate) fn tuned(&self, frame_max: usize) {
        self.frame_max.store(frame_max, Ordering::Release);
    }

    /// What the broker said of that; 0: nothing yet.
    pub(crate) fn frame_max(&self) -> usize {
        self.frame_max.load(Ordering::Acquire)
    }

    /// A channel of this number begins, or is given up: what was returned on it counts no more.
    pub(crate) fn forget(&self, channel: u16) {
        if let Some(old) = self.channels().remove(&channel) {
            self.count.fetch_sub(old.ids.len() + usize::from(old.unread), Ordering::Release);
        }
    }

    fn channels(&self) -> MutexGuard<'_, HashMap<u16, Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_is_told_once_and_on_its_channel_only() {
        let returned = Returned::default();
        assert_eq!(returned.fate(1, "a"), Fate::Routed);
        returned.note(1, Some(b"a".to_vec()));
        returned.note(1, Some(b"a".to_vec()));
        assert_eq!(returned.fate(2, "a"), Fate::Routed);
        assert_eq!(returned.fate(1, "b"), Fate::Routed);
        assert_eq!(returned.fate(1, "a"), Fate::Returned);
        assert_eq!(returned.fate(1, "a"), Fate::Routed);
        assert_eq!(returned.count.into_inner(), 0);
    }

    #[test]
    fn after_a_return_that_cannot_be_read_nothing_on_its_channel_is_sure() {
        let returned = Returned::default();
        returned.note(1, None);
        returned.note(1, Some(b"a".to_vec()));
        assert_eq!(returned.fate(1, "a"), Fate::Returned);
        assert_eq!(returned.fate(1, "b"), Fate::Unclear);
        assert_eq!(returned.fate(2, "b"), Fate::Routed);
        returned.forget(1);
        assert_eq!(returned.fate(1, "b"), Fate::Routed);
        assert_eq!(returned.count.into_inner(), 0);
    }
}
