//! What operators see of the gateway: all metric names of this crate.
//! In: what happened. Out: numbers for the recorder that the program has installed with the
//! `metrics` facade.

use std::time::SystemTime;

use forebay_producer::Gap;
use metrics::{Counter, Gauge, Unit, describe_counter, describe_gauge};

const SESSIONS: &str = "forebay_gateway_sessions";
const DELIVERED: &str = "forebay_gateway_events_delivered_total";
const GAPS: &str = "forebay_gateway_gaps_total";
const SLOW: &str = "forebay_gateway_slow_sessions_total";
const LAG: &str = "forebay_gateway_event_lag_seconds";
const WINDOW_BYTES: &str = "forebay_gateway_window_bytes";
const WINDOW_EVENTS: &str = "forebay_gateway_window_events";
const REPLAYS: &str = "forebay_gateway_replays_total";
const REPLAYS_WAITING: &str = "forebay_gateway_replays_waiting";
const REPLAY_READERS: &str = "forebay_gateway_replay_readers";
const REPLAY_BYTES: &str = "forebay_gateway_replay_bytes";

/// Tells the installed recorder units and meanings of this crate's metrics.
pub fn describe_metrics() {
    let one = Unit::Count;
    describe_gauge!(SESSIONS, one, "Clients that are connected.");
    describe_counter!(DELIVERED, one, "Events handed to clients' connections.");
    describe_counter!(GAPS, one, "Times that a client was told of missing events, by why.");
    describe_counter!(SLOW, one, "Sessions ended because their client took nothing.");
    let lag = "How old the newest event was when it was read, by the clock of who told it.";
    describe_gauge!(LAG, Unit::Seconds, lag);
    describe_gauge!(WINDOW_BYTES, Unit::Bytes, "Memory of the window of recent events.");
    describe_gauge!(WINDOW_EVENTS, one, "Events in the window of recent events.");
    describe_counter!(REPLAYS, one, "Times that older events were asked of the stream.");
    describe_gauge!(REPLAYS_WAITING, one, "Asks for older events that wait for a reader.");
    describe_gauge!(REPLAY_READERS, one, "Readers that read older events.");
    describe_gauge!(REPLAY_BYTES, Unit::Bytes, "Older events that wait for clients to take them.");
}

/// The numbers of sessions.
#[derive(Debug)]
pub(crate) struct SessionMeter {
    delivered: Counter,
    retention: Counter,
    recreated: Counter,
    slow: Counter,
    sessions: Gauge,
    window_bytes: Gauge,
    window_events: Gauge,
}

impl SessionMeter {
    pub(crate) fn new() -> Self {
        let gaps = |reason: Gap| metrics::counter!(GAPS, "reason" => reason.as_str());
        Self {
            delivered: metrics::counter!(DELIVERED),
            retention: gaps(Gap::Retention),
            recreated: gaps(Gap::Recreated),
            slow: metrics::counter!(SLOW),
            sessions: metrics::gauge!(SESSIONS),
            window_bytes: metrics::gauge!(WINDOW_BYTES),
            window_events: metrics::gauge!(WINDOW_EVENTS),
        }
    }

    pub(crate) fn delivered(&self) {
        self.delivered.increment(1);
    }

    pub(crate) fn gap(&self, reason: Gap) {
        match reason {
            Gap::Recreated => self.recreated.increment(1),
            _ => self.retention.increment(1),
        }
    }

    pub(crate) fn slow(&self) {
        self.slow.increment(1);
    }

    pub(crate) fn note(&self, sessions: usize, (events, bytes): (usize, usize)) {
        self.sessions.set(sessions as f64);
        self.window_events.set(events as f64);
        self.window_bytes.set(bytes as f64);
    }
}

/// How far the gateway is behind.
#[derive(Debug)]
pub(crate) struct TailMeter {
    lag: Gauge,
}

impl TailMeter {
    pub(crate) fn new() -> Self {
        Self { lag: metrics::gauge!(LAG) }
    }

    /// An event that was told then is read now.
    pub(crate) fn read(&self, told: SystemTime) {
        self.lag.set(told.elapsed().unwrap_or_default().as_secs_f64());
    }
}

/// The numbers of replays.
#[derive(Debug)]
pub(crate) struct ReplayMeter {
    asked: Counter,
    waiting: Gauge,
    readers: Gauge,
    bytes: Gauge,
}

impl ReplayMeter {
    pub(crate) fn new() -> Self {
        Self {
            asked: metrics::counter!(REPLAYS),
            waiting: metrics::gauge!(REPLAYS_WAITING),
            readers: metrics::gauge!(REPLAY_READERS),
            bytes: metrics::gauge!(REPLAY_BYTES),
        }
    }

    pub(crate) fn asked(&self) {
        self.asked.increment(1);
    }

    pub(crate) fn note(&self, readers: usize, waiting: usize, bytes: usize) {
        self.readers.set(readers as f64);
        self.waiting.set(waiting as f64);
        self.bytes.set(bytes as f64);
    }
}
