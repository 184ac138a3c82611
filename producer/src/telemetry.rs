//! What operators see of publishing and of connections: all metric names of this crate.
//! In: what happened. Out: numbers for the recorder that the program has installed with the
//! `metrics` facade; without one they cost next to nothing and go nowhere.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Unit};
use metrics::{describe_counter, describe_gauge, describe_histogram};

use crate::error::PublishError;

const CONNECTION_UP: &str = "forebay_connection_up";
const CONNECTION_BLOCKED: &str = "forebay_connection_blocked";
const RECONNECTS: &str = "forebay_reconnects_total";
const PUBLISHES: &str = "forebay_publishes_total";
const EVENTS: &str = "forebay_events_total";
const EVENTS_READ: &str = "forebay_events_read_total";
const CONFIRM_DURATION: &str = "forebay_confirm_duration_seconds";

/// Tells the installed recorder units and meanings of this crate's metrics.
///
/// Install the recorder before the first [`Producer`](crate::Producer) is made: what was made
/// earlier counts for nobody.
pub fn describe_metrics() {
    let one = Unit::Count;
    describe_gauge!(CONNECTION_UP, one, "Open connections to the broker, by what they are for.");
    describe_gauge!(
        CONNECTION_BLOCKED,
        one,
        "Connections that the broker blocks because of a memory or disk alarm."
    );
    describe_counter!(RECONNECTS, one, "Connections that were lost and opened again.");
    describe_counter!(PUBLISHES, one, "Publishes that ended, by how.");
    describe_counter!(EVENTS, one, "Events that were told, or lost on the way, by outcome.");
    describe_counter!(EVENTS_READ, one, "Messages that came off the stream of events, by outcome.");
    describe_histogram!(
        CONFIRM_DURATION,
        Unit::Seconds,
        "Time from handing over a message to the broker's confirm, waiting for room included."
    );
}

/// The numbers of one supervised connection. Connections with the same role add up.
#[derive(Debug)]
pub(crate) struct ConnectionMeter {
    up: Gauge,
    blocked: Gauge,
    reconnects: Counter,
    seen: Seen,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    up: bool,
    blocked: bool,
    generation: u64,
}

impl ConnectionMeter {
    pub(crate) fn new(role: &str) -> Self {
        let role = || role.to_owned();
        let meter = Self {
            up: metrics::gauge!(CONNECTION_UP, "connection" => role()),
            blocked: metrics::gauge!(CONNECTION_BLOCKED, "connection" => role()),
            reconnects: metrics::counter!(RECONNECTS, "connection" => role()),
            seen: Seen::default(),
        };
        // So that a connection that never comes up is seen as missing, not as unheard of.
        meter.up.increment(0.0);
        meter.blocked.increment(0.0);
        meter
    }

    /// Notes how it stands; `generation` is raised at each connect.
    pub(crate) fn note(&mut self, up: bool, blocked: bool, generation: u64) {
        let before = std::mem::replace(&mut self.seen, Seen { up, blocked, generation });
        step(&self.up, before.up, up);
        step(&self.blocked, before.blocked, blocked);
        if generation > before.generation.max(1) {
            self.reconnects.increment(1);
        }
    }
}

impl Drop for ConnectionMeter {
    fn drop(&mut self) {
        self.note(false, false, self.seen.generation);
    }
}

fn step(gauge: &Gauge, before: bool, now: bool) {
    match (before, now) {
        (false, true) => gauge.increment(1.0),
        (true, false) => gauge.decrement(1.0),
        _ => {}
    }
}

/// The numbers of one producer's events.
#[derive(Debug)]
pub(crate) struct EventMeter {
    confirmed: Counter,
    lost: Counter,
}

impl EventMeter {
    pub(crate) fn new() -> Self {
        let count = |outcome: &'static str| metrics::counter!(EVENTS, "outcome" => outcome);
        Self { confirmed: count("confirmed"), lost: count("lost") }
    }

    pub(crate) fn confirmed(&self) {
        self.confirmed.increment(1);
    }

    pub(crate) fn lost(&self) {
        self.lost.increment(1);
    }
}

/// The numbers of the readers of the stream of events.
#[derive(Debug)]
pub(crate) struct StreamMeter {
    read: Counter,
    malformed: Counter,
}

impl StreamMeter {
    pub(crate) fn new() -> Self {
        let count = |outcome: &'static str| metrics::counter!(EVENTS_READ, "outcome" => outcome);
        Self { read: count("read"), malformed: count("malformed") }
    }

    pub(crate) fn read(&self) {
        self.read.increment(1);
    }

    pub(crate) fn malformed(&self) {
        self.malformed.increment(1);
    }
}

/// The numbers of one producer's publishes.
#[derive(Debug)]
pub(crate) struct PublishMeter {
    confirmed: Counter,
    unroutable: Counter,
    refused: Counter,
    unconfirmed: Counter,
    denied: Counter,
    undeclared: Counter,
    unacceptable: Counter,
    confirm: Histogram,
}

impl PublishMeter {
    pub(crate) fn new() -> Self {
        let count = |outcome: &'static str| metrics::counter!(PUBLISHES, "outcome" => outcome);
        Self {
            confirmed: count("confirmed"),
            unroutable: count("unroutable"),
            refused: count("refused"),
            unconfirmed: count("unconfirmed"),
            denied: count("denied"),
            undeclared: count("undeclared"),
            unacceptable: count("unacceptable"),
            confirm: metrics::histogram!(CONFIRM_DURATION),
        }
    }

    /// Counts how a publish ended for its caller.
    pub(crate) fn ended(&self, result: &Result<(), PublishError>) {
        let outcome = match result {
            Ok(()) => &self.confirmed,
            Err(PublishError::Unroutable { .. }) => &self.unroutable,
            Err(PublishError::Refused { .. }) => &self.refused,
            Err(PublishError::Unconfirmed { .. }) => &self.unconfirmed,
            Err(PublishError::Denied { .. }) => &self.denied,
            Err(PublishError::Topology { .. }) => &self.undeclared,
            Err(_) => &self.unacceptable,
        };
        outcome.increment(1);
    }

    /// Notes how long the broker took to confirm a message.
    pub(crate) fn confirmed_after(&self, time: Duration) {
        self.confirm.record(time);
    }
}
