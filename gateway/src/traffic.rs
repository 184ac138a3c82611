//! What the gateway counts, with its names.
//! In: what happened. Out: metrics by the `metrics` facade.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::refusal::Code;

const CONNECTIONS: &str = "forebay_gateway_connections";
const TURNED_AWAY: &str = "forebay_gateway_connections_refused_total";
const STALLED: &str = "forebay_gateway_connections_stalled_total";
const CLIENTS: &str = "forebay_gateway_clients";
const REQUESTS: &str = "forebay_gateway_requests_total";
const PUBLISHES: &str = "forebay_gateway_publishes_total";
const EVENTS: &str = "forebay_gateway_events_sent_total";
const ENDED: &str = "forebay_gateway_clients_ended_total";

/// Describes the metrics of the doors.
pub(crate) fn describe() {
    describe_gauge!(CONNECTIONS, "TCP connections that are open.");
    describe_counter!(TURNED_AWAY, Unit::Count, "TCP connections turned away, by reason.");
    let stalled = "TCP connections cut off because the other end took nothing.";
    describe_counter!(STALLED, Unit::Count, stalled);
    describe_gauge!(CLIENTS, "Clients that are let in, by transport: socketio, ws, sse.");
    describe_counter!(REQUESTS, Unit::Count, "Requests by verb and answer: ok, or a code.");
    describe_counter!(PUBLISHES, Unit::Count, "Jobs of clients by answer: ok, or a code.");
    describe_counter!(EVENTS, Unit::Count, "Events handed to clients, by transport.");
    describe_counter!(ENDED, Unit::Count, "Clients sent away, by transport and reason.");
}

/// A connection or client that is counted while this is there.
#[derive(Debug)]
pub(crate) struct Present {
    gauge: metrics::Gauge,
}

impl Present {
    fn new(gauge: metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self { gauge }
    }

    pub(crate) fn connection() -> Self {
        Self::new(gauge!(CONNECTIONS))
    }

    pub(crate) fn client(transport: &'static str) -> Self {
        Self::new(gauge!(CLIENTS, "transport" => transport))
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
    }
}

/// The reason is `full` for all together, `address` for one.
pub(crate) fn turned_away(reason: &'static str) {
    counter!(TURNED_AWAY, "reason" => reason).increment(1);
}

pub(crate) fn stalled() {
    counter!(STALLED).increment(1);
}

/// The verb is one of ours, never a client's words.
pub(crate) fn requested(verb: &'static str, answer: Result<(), Code>) {
    counter!(REQUESTS, "verb" => verb, "answer" => word(answer)).increment(1);
}

pub(crate) fn published(answer: &Result<(), Code>) {
    counter!(PUBLISHES, "answer" => word(*answer)).increment(1);
}

fn word(answer: Result<(), Code>) -> &'static str {
    answer.err().map_or("ok", Code::word)
}

pub(crate) fn sent(transport: &'static str) {
    counter!(EVENTS, "transport" => transport).increment(1);
}

pub(crate) fn ended(transport: &'static str, reason: &'static str) {
    counter!(ENDED, "transport" => transport, "reason" => reason).increment(1);
}
