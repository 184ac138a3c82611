//! What may be chosen about a hub.

use std::time::Duration;

/// How much the hub keeps, and how long it waits.
#[derive(Debug, Clone)]
pub struct HubOptions {
    pub(crate) window_bytes: usize,
    pub(crate) window_events: usize,
    pub(crate) window_age: Duration,
    pub(crate) readers: usize,
    pub(crate) replay_bytes: usize,
    pub(crate) stall: Duration,
    pub(crate) patience: Duration,
    pub(crate) empty_for: Duration,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            window_bytes: 64 * 1024 * 1024,
            window_events: 100_000,
            window_age: Duration::from_secs(600),
            readers: 8,
            replay_bytes: 64 * 1024 * 1024,
            stall: Duration::from_secs(30),
            patience: Duration::from_secs(10),
            empty_for: Duration::from_secs(6),
        }
    }
}

impl HubOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Memory for recent events, in bytes. Default: 64 MiB.
    #[must_use]
    pub fn window_bytes(mut self, bytes: usize) -> Self {
        self.window_bytes = bytes;
        self
    }

    /// How many recent events are kept in memory. Default: 100,000.
    #[must_use]
    pub fn window_events(mut self, events: usize) -> Self {
        self.window_events = events;
        self
    }

    /// How long recent events are kept in memory. Default: 10 minutes.
    #[must_use]
    pub fn window_age(mut self, age: Duration) -> Self {
        self.window_age = age;
        self
    }

    /// How many readers of the stream all sessions share for older events. Default: 8.
    #[must_use]
    pub fn readers(mut self, readers: usize) -> Self {
        self.readers = readers;
        self
    }

    /// Memory for older events that were read and not taken yet, in bytes, over all sessions.
    /// Default: 64 MiB.
    #[must_use]
    pub fn replay_bytes(mut self, bytes: usize) -> Self {
        self.replay_bytes = bytes;
        self
    }

    /// How long a session's client may take nothing before the session is ended. Default: 30 s.
    #[must_use]
    pub fn stall(mut self, stall: Duration) -> Self {
        self.stall = stall;
        self
    }

    /// How long a question waits for the broker. Default: 10 s.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// For how long a stream that was there before must look empty until it is believed to be: a
    /// broker counts every 5 s, and one that has just started shows nothing for a moment. Default:
    /// 6 s.
    #[must_use]
    pub fn empty_for(mut self, time: Duration) -> Self {
        self.empty_for = time;
        self
    }
}
