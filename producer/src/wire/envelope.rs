//! The one place that spells AMQP properties and headers.
//! In: a job's payload and options, or a delivery. Out: an [`Envelope`], or properties to publish.
//! `docs/wire.md` is the reference of this contract; golden files keep it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use uuid::Uuid;

use super::delay::queue_of_routing_key;
use super::failure::{Failure, Reason, bounded};
use super::headers;
use super::topology::check_queue_name;
use super::trace::{TRACEPARENT, TRACESTATE, TraceContext};

/// The first thing that is signed of a job, so that no other use of the key makes the same
/// signature.
pub(super) const SIGNED_AS: &str = "forebay-job-v1";
pub(crate) const JSON: &str = "application/json";

/// Names the headers that were left out where a message came in, because no frame could hold them.
/// It stays on this machine.
pub(crate) const OMITTED: &str = "forebay-omitted";

mod name {
    pub(super) const ATTEMPT: &str = "forebay-attempt";
    pub(super) const CRASHES: &str = "forebay-crashes";
    pub(super) const GRACES: &str = "forebay-graces";
    pub(super) const DEFERRALS: &str = "forebay-deferrals";
    pub(super) const FAILURES: &str = "forebay-failures";
    pub(super) const EXPIRES_AT: &str = "forebay-expires-at";
    pub(super) const QUEUE: &str = "forebay-queue";
    pub(super) const PUBLISHED_AT: &str = "forebay-published-at";
    pub(super) const KEY: &str = "forebay-idempotency-key";
    pub(super) const REDRIVES: &str = "forebay-redrives";
    pub(super) const OWNER: &str = "forebay-owner";
    pub(super) const REASON: &str = "forebay-reason";
    pub(super) const DEAD_AT: &str = "forebay-dead-at";
    pub(super) const SIGNATURE: &str = "forebay-signature";
    pub(super) const TRACK: &str = "forebay-track";

    #[cfg(test)]
    pub(super) const ALL: [&str; 16] = [
        ATTEMPT,
        CRASHES,
        GRACES,
        DEFERRALS,
        FAILURES,
        EXPIRES_AT,
        QUEUE,
        PUBLISHED_AT,
        KEY,
        REDRIVES,
        OWNER,
        REASON,
        DEAD_AT,
        super::OMITTED,
        SIGNATURE,
        TRACK,
    ];
}

/// A job on the wire: its payload and everything that travels with it.
///
/// Reading is lenient: any AMQP client may have published it, so a missing or ill-typed header
/// becomes its default and never an error. Headers that Forebay does not know are kept and go
/// out again with every retry, dead letter and redrive.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Envelope {
    /// Job id; the `message_id` property. Made up (UUIDv7) when the publisher gave none.
    pub id: String,
    /// Kind; the `type` property. `None` when the publisher gave none.
    pub kind: Option<String>,
    /// The queue the job belongs to.
    pub queue: String,
    /// The body, JSON unless a foreign publisher sent something else.
    pub payload: Bytes,
    /// Attempt about to run, from 1.
    pub attempt: u32,
    /// How often the process died under the job.
    pub crashes: u32,
    /// How often the job was put off because no handler knew it yet.
    pub graces: u32,
    /// How often the handler put the job off without using an attempt.
    pub deferrals: u32,
    /// How often the job was redriven from the dead letters.
    pub redrives: u32,
    /// Runs that did not succeed, oldest first.
    pub failures: Vec<Failure>,
    /// When the job is no longer worth running, in milliseconds since the epoch.
    pub expires_at_ms: Option<u64>,
    /// When it was first published, in milliseconds since the epoch.
    pub published_at_ms: Option<u64>,
    /// The sender's key for "the same piece of work".
    pub idempotency_key: Option<String>,
    /// Whose job it is, as stamped by who published it: [`PublishOptions::owner`].
    ///
    /// [`PublishOptions::owner`]: crate::PublishOptions::owner
    pub owner: Option<String>,
    /// Whether what happens to it is told as events.
    pub track: bool,
    /// Who made it, by [`Envelope::sign`]: `v1;KEY;HEX`.
    pub signature: Option<String>,
    /// The `correlation_id` property.
    pub correlation_id: Option<String>,
    /// Where the caller waits for an answer; the `reply_to` property.
    pub reply_to: Option<String>,
    /// The `app_id` property.
    pub app_id: Option<String>,
    /// The `priority` property, passed through.
    pub priority: Option<u8>,
    /// The `content_type` property; `application/json` when absent.
    pub content_type: String,
    /// The `content_encoding` property.
    pub content_encoding: Option<String>,
    /// Set on a dead letter: why, and when it was written.
    pub dead: Option<DeadMark>,
    /// What the broker itself wrote on the delivery; never published again.
    pub broker: BrokerMarks,
    foreign: FieldTable,
}

/// Why and when a job became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadMark {
    /// The reason.
    pub reason: Reason,
    /// In milliseconds since the epoch.
    pub at_ms: u64,
}

impl DeadMark {
    /// A mark with this reason and time (milliseconds since the epoch).
    pub fn new(reason: Reason, at_ms: u64) -> Self {
        Self { reason, at_ms }
    }
}

/// The broker's own marks on a delivery.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BrokerMarks {
    /// `x-delivery-count`: earlier deliveries that ended without an ack; `None` where the broker
    /// does not count. Believed only on a redelivery, because a publisher can forge it on the first.
    pub delivery_count: Option<u32>,
    /// The delivery was handed out before.
    pub redelivered: bool,
    /// The newest entry of `x-death`: reason, queue, and time in seconds since the epoch.
    pub death: Option<(String, String, Option<u64>)>,
    /// The names of headers that were left out where the message came in: with the broker's own
    /// marks they were longer than a frame may be.
    pub omitted: Option<String>,
}

/// A delivery as it came off the broker, for [`Envelope::decode`].
#[derive(Debug)]
pub struct Raw<'a> {
    /// Properties with headers.
    pub properties: &'a BasicProperties,
    /// Routing key it was published with.
    pub routing_key: &'a str,
    /// The broker handed it out before.
    pub redelivered: bool,
    /// The body.
    pub payload: Bytes,
}

impl Envelope {
    /// A new job with an id of its own, first attempt, nothing else set.
    pub fn new(
        kind: impl Into<String>,
        queue: impl Into<String>,
        payload: impl Into<Bytes>,
    ) -> Self {
        Self {
            id: new_id(),
            kind: Some(kind.into()),
            queue: queue.into(),
            payload: payload.into(),
            published_at_ms: Some(now_ms()),
            ..Self::blank(JSON.to_owned())
        }
    }

    /// No job: what goes through the same hands as jobs do.
    pub(crate) fn carrying(id: String, payload: Bytes) -> Self {
        Self { id, payload, ..Self::blank(String::new()) }
    }

    fn blank(content_type: String) -> Self {
        Self {
            id: String::new(),
            kind: None,
            queue: String::new(),
            payload: Bytes::new(),
            attempt: 1,
            crashes: 0,
            graces: 0,
            deferrals: 0,
            redrives: 0,
            failures: Vec::new(),
            expires_at_ms: None,
            published_at_ms: None,
            idempotency_key: None,
            owner: None,
            track: false,
            signature: None,
            correlation_id: None,
            reply_to: None,
            app_id: None,
            priority: None,
            content_type,
            content_encoding: None,
            dead: None,
            broker: BrokerMarks::default(),
            foreign: FieldTable::default(),
        }
    }

    /// Reads a delivery. Cannot fail: what is missing or ill-typed gets its default.
    pub fn decode(raw: Raw<'_>) -> Self {
        let properties = raw.properties;
        let mut envelope = Self {
            id: text(properties.message_id()).unwrap_or_else(new_id),
            kind: text(properties.kind()),
            queue: queue_of_routing_key(raw.routing_key).to_owned(),
            payload: raw.payload,
            correlation_id: text(properties.correlation_id()),
            reply_to: text(properties.reply_to()),
            app_id: text(properties.app_id()),
            priority: *properties.priority(),
            content_encoding: text(properties.content_encoding()),
            ..Self::blank(text(properties.content_type()).unwrap_or_else(|| JSON.to_owned()))
        };
        envelope.broker.redelivered = raw.redelivered;
        if let Some(table) = properties.headers() {
            envelope.read_headers(table, raw.redelivered);
        }
        if envelope.published_at_ms.is_none() {
            envelope.published_at_ms =
                properties.timestamp().map(|seconds| seconds.saturating_mul(1000));
        }
        envelope.adopt_expiration(properties);
        envelope
    }

    /// Goes through the table once: most names are ours, and there are few of them.
    fn read_headers(&mut self, table: &FieldTable, redelivered: bool) {
        let number = headers::number;
        let small = |value| number(value).and_then(|n| u32::try_from(n).ok());
        let word = headers::text;
        let (mut reason, mut dead_at, mut count, mut acquired) = (None, None, None, None);
        let mut foreign = BTreeMap::new();
        for (header, value) in table {
            match header.as_str() {
                name::ATTEMPT => self.attempt = small(value).unwrap_or(1).max(1),
                name::CRASHES => self.crashes = small(value).unwrap_or(0),
                name::GRACES => self.graces = small(value).unwrap_or(0),
                name::DEFERRALS => self.deferrals = small(value).unwrap_or(0),
                name::REDRIVES => self.redrives = small(value).unwrap_or(0),
                name::EXPIRES_AT => self.expires_at_ms = number(value),
                name::PUBLISHED_AT => self.published_at_ms = number(value),
                name::KEY => self.idempotency_key = word(value),
                name::OWNER => self.owner = word(value),
                name::TRACK => self.track = headers::is_yes(value),
                name::SIGNATURE => self.signature = word(value),
                // Nearly always the queue that its routing key names, too.
                name::QUEUE if headers::is_text(value, &self.queue) => {}
                name::QUEUE => {
                    let named = word(value).filter(|name| check_queue_name(name).is_ok());
                    self.queue = named.unwrap_or_else(|| std::mem::take(&mut self.queue));
                }
                name::FAILURES => {
                    if let AMQPValue::FieldArray(failures) = value {
                        self.failures =
                            failures.as_slice().iter().filter_map(read_failure).collect();
                    }
                }
                name::REASON => reason = word(value),
                name::DEAD_AT => dead_at = number(value),
                OMITTED => self.broker.omitted = word(value),
                "x-delivery-count" => count = small(value),
                "x-acquired-count" => acquired = small(value),
                "x-death" => self.broker.death = read_death(value),
                other if headers::travels(other) => {
                    foreign.insert(header.clone(), value.clone());
                }
                _ => {}
            }
        }
        self.dead = reason.map(|reason| DeadMark {
            reason: reason.parse().unwrap_or(Reason::Failed),
            at_ms: dead_at.unwrap_or(0),
        });
        // From 4.3 on a delivery that was given back has only been acquired once more: it counts
        // zero failed deliveries, which is not the same as not counting (classic queues).
        self.broker.delivery_count = count.or(acquired.map(|_| 0)).filter(|_| redelivered);
        self.foreign = foreign.into();
    }

    /// A foreign per-message time to live becomes our own header: on the delay ladder it would run
    /// the job early and then be gone.
    fn adopt_expiration(&mut self, properties: &BasicProperties) {
        let Some(Ok(ttl)) = properties.expiration().as_ref().map(|ms| ms.as_str().parse::<u64>())
        else {
            return;
        };
        let from = self.published_at_ms.unwrap_or_else(now_ms);
        self.expires_at_ms.get_or_insert(from.saturating_add(ttl));
    }

    /// The properties to publish this envelope with; always persistent.
    pub fn properties(&self) -> BasicProperties {
        let mut properties = BasicProperties::default()
            .with_message_id(short(&self.id))
            .with_content_type(short(&self.content_type))
            .with_delivery_mode(2)
            .with_timestamp(self.published_at_ms.unwrap_or_else(now_ms) / 1000)
            .with_headers(self.header_table());
        let set = |value: &Option<String>| value.as_deref().map(short);
        if let Some(kind) = set(&self.kind) {
            properties = properties.with_type(kind);
        }
        if let Some(encoding) = set(&self.content_encoding) {
            properties = properties.with_content_encoding(encoding);
        }
        if let Some(id) = set(&self.correlation_id) {
            properties = properties.with_correlation_id(id);
        }
        if let Some(address) = set(&self.reply_to) {
            properties = properties.with_reply_to(address);
        }
        if let Some(app) = set(&self.app_id) {
            properties = properties.with_app_id(app);
        }
        if let Some(priority) = self.priority {
            properties = properties.with_priority(priority);
        }
        properties
    }

    fn header_table(&self) -> FieldTable {
        let mut table = self.foreign.clone();
        let mut put = |name: &str, value| {
            table.insert(name.into(), value);
        };
        let number = |n: u64| AMQPValue::LongLongInt(i64::try_from(n).unwrap_or(i64::MAX));
        let text = |text: &str| AMQPValue::LongString(text.as_bytes().into());

        put(name::QUEUE, text(&self.queue));
        put(name::ATTEMPT, number(self.attempt.into()));
        for (name, count) in [
            (name::CRASHES, self.crashes),
            (name::GRACES, self.graces),
            (name::DEFERRALS, self.deferrals),
            (name::REDRIVES, self.redrives),
        ] {
            if count > 0 {
                put(name, number(count.into()));
            }
        }
        for (name, at) in
            [(name::EXPIRES_AT, self.expires_at_ms), (name::PUBLISHED_AT, self.published_at_ms)]
        {
            if let Some(at) = at {
                put(name, number(at));
            }
        }
        for (name, word) in [
            (name::KEY, &self.idempotency_key),
            (name::OWNER, &self.owner),
            (name::SIGNATURE, &self.signature),
        ] {
            if let Some(word) = word {
                put(name, text(word));
            }
        }
        if self.track {
            put(name::TRACK, AMQPValue::Boolean(true));
        }
        if let Some(dead) = &self.dead {
            put(name::REASON, text(dead.reason.as_str()));
            put(name::DEAD_AT, number(dead.at_ms));
        }
        if !self.failures.is_empty() {
            // The history gives way: a job must stay publishable for its next attempt.
            let taken = self.property_bytes() + headers::table_bytes(&table) + name::FAILURES.len();
            let room = CARRIED_BYTES.saturating_sub(taken + 16);
            let failures = bounded(&self.failures, room).iter().map(write_failure).collect();
            table.insert(name::FAILURES.into(), AMQPValue::FieldArray(Vec::into(failures)));
        }
        table
    }

    /// What a redrive publishes: a fresh start that remembers its failures.
    #[must_use]
    pub fn redriven(mut self) -> Self {
        self.attempt = 1;
        self.crashes = 0;
        self.graces = 0;
        self.deferrals = 0;
        self.redrives = self.redrives.saturating_add(1);
        self.dead = None;
        // Its time had passed once; an operator who redrives it wants it run.
        self.expires_at_ms = None;
        self
    }

    /// Sets a header of the sender's own.
    ///
    /// # Errors
    /// A sentence that says why the name cannot be used: it begins with `x-` or `forebay-`, is
    /// `CC` or `BCC`, is empty or longer than 128 bytes.
    pub fn set_header(&mut self, name: &str, value: &str) -> Result<(), String> {
        headers::check_name(name)?;
        self.foreign.insert(short(name), AMQPValue::LongString(value.as_bytes().into()));
        Ok(())
    }

    /// A header of the sender's own as text: strings, numbers and booleans.
    pub fn header(&self, name: &str) -> Option<String> {
        self.foreign.inner().get(name).and_then(headers::text)
    }

    /// The trace that the job belongs to; none if its headers name none, or none that can be read.
    pub fn trace(&self) -> Option<TraceContext> {
        let trace = TraceContext::parse(&self.header(TRACEPARENT)?).ok()?;
        Some(match self.header(TRACESTATE) {
            Some(state) => trace.with_state(&state),
            None => trace,
        })
    }

    /// Makes the job part of a trace, and of no other.
    pub fn set_trace(&mut self, trace: &TraceContext) {
        let text = |text: &str| AMQPValue::LongString(text.as_bytes().into());
        if self.foreign.contains_key(TRACESTATE) {
            self.foreign = headers::without(&self.foreign, TRACESTATE);
        }
        self.foreign.insert(TRACEPARENT.into(), text(trace.traceparent()));
        if let Some(state) = trace.tracestate() {
            self.foreign.insert(TRACESTATE.into(), text(state));
        }
    }

    /// All headers of the sender's own as JSON, `traceparent` among them.
    pub fn headers(&self) -> BTreeMap<String, serde_json::Value> {
        let pairs = self.foreign.inner().iter();
        pairs.map(|(name, value)| (name.to_string(), headers::json(value))).collect()
    }

    /// Bytes that properties and headers take on the wire, roughly and rather too many.
    pub fn header_bytes(&self) -> usize {
        self.property_bytes() + headers::table_bytes(&self.header_table())
    }

    fn property_bytes(&self) -> usize {
        let words = [
            &self.kind,
            &self.correlation_id,
            &self.reply_to,
            &self.app_id,
            &self.content_encoding,
        ];
        let words = words.iter().filter_map(|word| word.as_ref().map(String::len)).sum::<usize>();
        FIXED_BYTES + words + self.id.len() + self.content_type.len()
    }

    /// Whether headers of any length may be on it; all others are small.
    pub(crate) fn has_open_headers(&self) -> bool {
        let words = [&self.idempotency_key, &self.owner, &self.signature];
        words.iter().any(|word| word.is_some())
            || !self.failures.is_empty()
            || !self.foreign.inner().is_empty()
    }

    /// Headers that are not ours.
    pub(super) fn foreign(&self) -> &FieldTable {
        &self.foreign
    }

    /// Whether the job's time has passed at `now_ms`.
    pub fn expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|at| at <= now_ms)
    }
}

/// What a header frame takes beside texts and the table: its frame, class, body size and flags, a
/// length for each text, and the three numbers (AMQP 0-9-1, sections 2.3.5 and 4.2.6).
const FIXED_BYTES: usize = 64;

/// What properties and headers may take on a republish. One frame holds 128 KiB (RabbitMQ's default
/// `frame_max`); the rest is for the broker: an entry in `x-death` for each of up to 28 levels of the
/// ladder, and its counts.
pub(crate) const CARRIED_BYTES: usize = 120 * 1024;

/// A new job id: UUIDv7, so that ids sort by time (RFC 9562, section 5.7).
pub fn new_id() -> String {
    Uuid::now_v7().to_string()
}

/// This machine's time in milliseconds since the epoch.
pub fn now_ms() -> u64 {
    to_ms(SystemTime::now())
}

/// A point in time in milliseconds since the epoch; 0 for anything before it.
pub fn to_ms(time: SystemTime) -> u64 {
    as_ms(time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

/// A duration in whole milliseconds, as many as fit.
pub(crate) fn as_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What an event says of itself outside of its body.
pub(super) fn event_properties(
    id: &str,
    kind: &str,
    content_type: &str,
    owner: Option<&str>,
) -> BasicProperties {
    let mut headers = FieldTable::default();
    if let Some(owner) = owner {
        headers.insert(name::OWNER.into(), AMQPValue::LongString(owner.as_bytes().into()));
    }
    BasicProperties::default()
        .with_message_id(short(id))
        .with_type(short(kind))
        .with_content_type(short(content_type))
        .with_delivery_mode(2)
        .with_headers(headers)
}

fn write_failure(failure: &Failure) -> AMQPValue {
    let mut table = FieldTable::default();
    let text = |text: &str| AMQPValue::LongString(text.as_bytes().into());
    let at = i64::try_from(failure.at_ms).unwrap_or(i64::MAX);
    table.insert("at".into(), AMQPValue::LongLongInt(at));
    table.insert("attempt".into(), AMQPValue::LongLongInt(failure.attempt.into()));
    table.insert("reason".into(), text(failure.reason.as_str()));
    table.insert("message".into(), text(&failure.message));
    table.insert("worker".into(), text(&failure.worker));
    AMQPValue::FieldTable(table)
}

fn read_failure(value: &AMQPValue) -> Option<Failure> {
    let AMQPValue::FieldTable(table) = value else { return None };
    let number = |name| table.inner().get(name).and_then(headers::number);
    let word = |name| table.inner().get(name).and_then(headers::text).unwrap_or_default();
    Some(Failure {
        at_ms: number("at").unwrap_or(0),
        attempt: number("attempt").and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        reason: word("reason").parse().unwrap_or(Reason::Failed),
        message: word("message"),
        worker: word("worker"),
    })
}

fn read_death(value: &AMQPValue) -> Option<(String, String, Option<u64>)> {
    let AMQPValue::FieldArray(deaths) = value else { return None };
    let AMQPValue::FieldTable(newest) = deaths.as_slice().first()? else { return None };
    let word = |name| newest.inner().get(name).and_then(headers::text).unwrap_or_default();
    let time = newest.inner().get("time").and_then(headers::number);
    Some((word("reason"), word("queue"), time))
}

fn text(value: &Option<ShortString>) -> Option<String> {
    value.as_ref().map(|text| text.as_str().to_owned()).filter(|text| !text.is_empty())
}

/// Property texts are at most 255 bytes (AMQP 0-9-1, section 4.2.5.3). Ours are checked before;
/// those of a delivery came in one.
fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_else(|_| {
        let end = (0..=255).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        ShortString::from(&text[..end])
    })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use lapin::protocol::basic::gen_properties;
    use lapin::types::DecimalValue;
    use proptest::prelude::*;

    use super::*;

    fn decode(properties: &BasicProperties) -> Envelope {
        let payload = Bytes::from_static(b"{}");
        Envelope::decode(Raw { properties, routing_key: "mail", redelivered: true, payload })
    }

    fn long(bytes: impl AsRef<[u8]>) -> AMQPValue {
        AMQPValue::LongString(bytes.as_ref().into())
    }

    /// A value of any AMQP type, tables and arrays within each other.
    fn any_value() -> impl Strategy<Value = AMQPValue> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<i8>().prop_map(AMQPValue::ShortShortInt),
            any::<u8>().prop_map(AMQPValue::ShortShortUInt),
            any::<i16>().prop_map(AMQPValue::ShortInt),
            any::<u16>().prop_map(AMQPValue::ShortUInt),
            any::<i32>().prop_map(AMQPValue::LongInt),
            any::<u32>().prop_map(AMQPValue::LongUInt),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            any::<f32>().prop_map(AMQPValue::Float),
            any::<f64>().prop_map(AMQPValue::Double),
            any::<(u8, u32)>().prop_map(|(scale, value)| {
                AMQPValue::DecimalValue(DecimalValue { scale, value })
            }),
            "[a-z0-9]{0,40}".prop_map(|text| AMQPValue::ShortString(text.into())),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(long),
            any::<u64>().prop_map(AMQPValue::Timestamp),
            prop::collection::vec(any::<u8>(), 0..40)
                .prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
            Just(AMQPValue::Void),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6)
                    .prop_map(|items| AMQPValue::FieldArray(items.into())),
                prop::collection::btree_map(any_name(), inner, 0..6)
                    .prop_map(|pairs| AMQPValue::FieldTable(table(pairs))),
            ]
        })
    }

    /// Names that mean something to somebody, and others.
    fn any_name() -> impl Strategy<Value = String> {
        prop_oneof![
            prop::sample::select(name::ALL.to_vec()).prop_map(str::to_owned),
            prop::sample::select(vec![
                "x-death",
                "x-delivery-count",
                "CC",
                "BCC",
                "at",
                "attempt",
                "reason",
                "message",
                "worker",
                "time",
                "queue",
                "forebay-tomorrow",
                "traceparent",
            ])
            .prop_map(str::to_owned),
            "[a-zA-Z-]{0,30}",
        ]
    }

    fn any_table() -> impl Strategy<Value = FieldTable> {
        prop::collection::btree_map(any_name(), any_value(), 0..20).prop_map(table)
    }

    fn table(pairs: BTreeMap<String, AMQPValue>) -> FieldTable {
        let pairs = pairs.into_iter().map(|(name, value)| (ShortString::from(name), value));
        pairs.collect::<BTreeMap<_, _>>().into()
    }

    prop_compose! {
        fn any_failure()(
            at_ms in 0..1u64 << 63,
            attempt in any::<u32>(),
            reason in "[a-z_]{1,20}",
            message in "\\PC{0,300}",
            worker in "[a-z/0-9]{0,20}",
        ) -> Failure {
            Failure { at_ms, attempt, reason: reason.parse().unwrap(), message, worker }
        }
    }

    type Words = [Option<String>; 8];

    prop_compose! {
        fn any_envelope()(
            (id, queue, content_type) in ("[a-zé]{1,40}", "[a-z]{1,100}", "[a-z/]{1,40}"),
            words in prop::array::uniform8(prop::option::of("\\PC{1,60}")),
            counts in any::<[u32; 5]>(),
            times in prop::array::uniform2(prop::option::of(0..1u64 << 63)),
            dead in prop::option::of(("[a-z_]{1,20}", 0..1u64 << 63)),
            priority in prop::option::of(any::<u8>()),
            failures in prop::collection::vec(any_failure(), 0..20),
            foreign in any_table(),
        ) -> Envelope {
            let [kind, idempotency_key, owner, correlation_id, reply_to, app_id, encoding, extra]: Words = words;
            let mut envelope = Envelope {
                id, queue, content_type, kind, idempotency_key, owner, correlation_id, reply_to,
                app_id, content_encoding: encoding, priority, failures,
                attempt: counts[0].max(1), crashes: counts[1], graces: counts[2],
                deferrals: counts[3], redrives: counts[4],
                expires_at_ms: times[0],
                published_at_ms: Some(times[1].unwrap_or(1)),
                dead: dead.map(|(reason, at_ms)| DeadMark::new(reason.parse().unwrap(), at_ms)),
                payload: Bytes::from_static(b"{}"),
                foreign: headers::travelling(&foreign, &name::ALL),
                ..Envelope::blank(JSON.to_owned())
            };
            if let Some(extra) = extra {
                envelope.set_header("extra", &extra).unwrap();
            }
            envelope.broker.redelivered = true;
            envelope
        }
    }

    proptest! {
        #[test]
        fn whatever_anybody_publishes_is_read_and_may_be_published_again(
            table in any_table(),
            timestamp in prop::option::of(any::<u64>()),
            expiration in prop::option::of("[0-9]{0,25}|\\PC{0,20}"),
            redelivered in any::<bool>(),
        ) {
            let mut properties = BasicProperties::default().with_headers(table);
            if let Some(timestamp) = timestamp {
                properties = properties.with_timestamp(timestamp);
            }
            if let Some(expiration) = expiration {
                properties = properties.with_expiration(short(&expiration));
            }
            let payload = Bytes::new();
            let raw = Raw { properties: &properties, routing_key: "", redelivered, payload };
            let envelope = Envelope::decode(raw);
            prop_assert!(envelope.attempt >= 1 && !envelope.id.is_empty());
            _ = envelope.headers();
            let again = envelope.redriven().properties();
            prop_assert_eq!(again.expiration(), &None);
            for name in again.headers().as_ref().unwrap().inner().keys() {
                let name = name.as_str();
                prop_assert!(!name.starts_with("x-") && name != "CC" && name != "BCC", "{}", name);
            }
        }

        #[test]
        fn what_is_written_is_read_again(envelope in any_envelope()) {
            prop_assert_eq!(decode(&envelope.properties()), envelope);
        }

        /// The count must not be too small: one header frame over the limit closes the connection.
        #[test]
        fn headers_never_take_more_bytes_than_are_counted(envelope in any_envelope()) {
            let properties = envelope.properties();
            let mut frame = vec![0; 256 * 1024];
            let written = gen_properties(&properties)(Cursor::new(&mut frame[..]).into()).unwrap();
            // Class, weight and body size, and the frame around them (AMQP 0-9-1, section 4.2.6).
            let real = written.position + 12 + 8;
            prop_assert!(envelope.header_bytes() >= real as usize, "{} < {real}", envelope.header_bytes());
        }
    }

    #[test]
    fn a_time_far_beyond_all_clocks_is_no_fault() {
        let properties = BasicProperties::default().with_timestamp(u64::MAX);
        assert_eq!(decode(&properties).published_at_ms, Some(u64::MAX));
    }

    #[test]
    fn a_foreign_time_to_live_counts_from_when_the_job_was_published() {
        let properties =
            BasicProperties::default().with_timestamp(1_000).with_expiration("2500".into());
        let envelope = decode(&properties);
        assert_eq!(envelope.expires_at_ms, Some(1_002_500));
        assert!(envelope.expired(1_002_500) && !envelope.expired(1_002_499));
        assert_eq!(envelope.properties().expiration(), &None);
    }

    #[test]
    fn a_time_to_live_of_ours_outweighs_a_foreign_one() {
        let mut envelope = Envelope::new("email.send", "mail", "{}");
        envelope.expires_at_ms = Some(7);
        let properties = envelope.properties().with_expiration("2500".into());
        assert_eq!(decode(&properties).expires_at_ms, Some(7));
    }

    #[test]
    fn the_brokers_delivery_count_is_believed_only_on_a_redelivery() {
        let mut table = FieldTable::default();
        table.insert("x-delivery-count".into(), AMQPValue::LongLongInt(99));
        let properties = BasicProperties::default().with_headers(table);
        let seen = |redelivered| {
            let payload = Bytes::new();
            Envelope::decode(Raw {
                properties: &properties,
                routing_key: "q",
                redelivered,
                payload,
            })
            .broker
            .delivery_count
        };
        assert_eq!((seen(false), seen(true)), (None, Some(99)));
    }

    #[test]
    fn a_redrive_starts_afresh_and_remembers_what_went_wrong() {
        let mut envelope = Envelope::new("email.send", "mail", "{}");
        (envelope.attempt, envelope.crashes, envelope.graces) = (5, 3, 2);
        (envelope.deferrals, envelope.redrives) = (4, u32::MAX);
        envelope.expires_at_ms = Some(1);
        envelope.failures = vec![Failure::new(1, 5, Reason::Failed, "smtp is down", "host/1")];
        envelope.dead = Some(DeadMark::new(Reason::Failed, 1));
        let again = envelope.clone().redriven();
        assert_eq!((again.attempt, again.crashes, again.graces, again.deferrals), (1, 0, 0, 0));
        assert_eq!((again.redrives, again.expires_at_ms, &again.dead), (u32::MAX, None, &None));
        assert_eq!((again.failures, again.id), (envelope.failures, envelope.id));
    }
}
