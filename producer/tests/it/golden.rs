//! The wire contract as files: what we write equals the file, and every file that was ever written
//! still means what it meant. A file may be added; none may be changed or removed.

use std::time::Duration;

use bytes::Bytes;
use forebay_producer::wire::envelope::Raw;
use forebay_producer::wire::event::event_data;
use forebay_producer::{
    DeadMark, Delay, Envelope, Event, EventKind, Failure, Reason, SigningKeys, Topology,
};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Map, Value, json};

const ID: &str = "0199e0a8-7c00-7000-8000-000000000001";
const EVENT: &str = "0199e0a8-7c00-7000-8000-000000000002";
const PUBLISHED_AT: u64 = 1_760_000_000_123;

fn fresh() -> Envelope {
    let mut envelope = Envelope::new("email.send", "mail", r#"{"to":"ada@example.org"}"#);
    envelope.id = ID.to_owned();
    envelope.published_at_ms = Some(PUBLISHED_AT);
    envelope
}

fn retried() -> Envelope {
    let mut envelope = fresh();
    envelope.attempt = 3;
    envelope.crashes = 1;
    envelope.graces = 2;
    envelope.deferrals = 4;
    envelope.idempotency_key = Some("order-4711".to_owned());
    envelope.owner = Some("tenant-7".to_owned());
    envelope.expires_at_ms = Some(PUBLISHED_AT + 3_600_000);
    envelope.correlation_id = Some("request-9".to_owned());
    envelope.reply_to = Some("forebay.reply.1".to_owned());
    envelope.app_id = Some("shop".to_owned());
    envelope.priority = Some(4);
    envelope.content_encoding = Some("gzip".to_owned());
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    envelope.set_header("traceparent", parent).unwrap();
    envelope.set_header("tenant", "acme").unwrap();
    let failed = |attempt, reason, message: &str| {
        Failure::new(
            PUBLISHED_AT + u64::from(attempt) * 1_000,
            attempt,
            reason,
            message,
            "node-1/42",
        )
    };
    envelope.failures = vec![
        failed(1, Reason::Failed, "smtp is down: connection refused"),
        failed(2, Reason::Timeout, "no answer within 5m"),
    ];
    envelope
}

fn dead_letter() -> Envelope {
    let mut envelope = retried();
    envelope.redrives = 1;
    envelope.dead = Some(DeadMark::new(Reason::Rejected, PUBLISHED_AT + 5_000));
    envelope
}

#[test]
fn a_fresh_job_is_as_recorded() {
    let golden = golden("fresh");
    assert_eq!(written(&fresh(), "forebay", "mail"), golden);
    assert_eq!(read(&golden), fresh());
}

#[test]
fn a_delayed_job_is_as_recorded() {
    let golden = golden("delayed");
    let delay = Delay::new(Duration::from_secs(3)).unwrap().unwrap();
    let level = Topology::new("forebay").unwrap().delay(delay.level());
    assert_eq!(written(&fresh(), &level, &delay.routing_key("mail")), golden);
    assert_eq!(read(&golden), fresh());
}

#[test]
fn a_retried_job_is_as_recorded() {
    let golden = golden("retried");
    assert_eq!(written(&retried(), "forebay", "mail"), golden);
    assert_eq!(read(&golden), retried());
}

/// The signature in the file was made in Python, by docs/wire.md alone.
#[test]
fn a_signed_job_is_as_recorded() {
    let golden = golden("signed");
    let keys = SigningKeys::parse("2026-11=0123456789abcdef0123456789abcdef").unwrap();
    let mut signed = retried();
    signed.sign(&keys, "forebay").unwrap();
    assert_eq!(written(&signed, "forebay", "mail"), golden);
    assert_eq!(read(&golden).verify(&keys, "forebay"), Ok(()));
}

#[test]
fn a_dead_letter_is_as_recorded() {
    let golden = golden("dead-letter");
    assert_eq!(written(&dead_letter(), "forebay.dead-letters", "mail"), golden);
    assert_eq!(read(&golden), dead_letter());
}

#[test]
fn a_message_with_nothing_but_a_body_gets_its_defaults() {
    let envelope = read(&golden("foreign-minimal"));
    assert_eq!((envelope.kind.as_deref(), envelope.queue.as_str()), (None, "mail"));
    assert_eq!((envelope.attempt, envelope.crashes, envelope.redrives), (1, 0, 0));
    assert_eq!(envelope.content_type, "application/json");
    assert_eq!((envelope.expires_at_ms, &envelope.dead), (None, &None));
    assert_eq!(envelope.id.len(), 36, "an id is made up: {}", envelope.id);
    assert_eq!(envelope.payload, r#"{"to":"ada@example.org"}"#);
}

#[test]
fn numbers_and_texts_are_read_whatever_type_a_foreign_client_gave_them() {
    let golden = golden("foreign-types");
    let envelope = read(&golden);
    assert_eq!((envelope.attempt, envelope.crashes, envelope.graces), (3, 2, 1));
    assert_eq!((envelope.redrives, envelope.deferrals), (5, 0), "text counts, -1 does not");
    assert_eq!(envelope.expires_at_ms, Some(1_760_000_600_000));
    assert_eq!(envelope.published_at_ms, Some(1_760_000_000_000), "from the timestamp property");
    assert_eq!(envelope.owner.as_deref(), Some("7"));
    assert_eq!(envelope.idempotency_key, None, "a table is no key");
    assert!(envelope.failures.is_empty(), "a text is no list of failures");
    assert_republished(&envelope, &golden);
}

#[test]
fn what_a_newer_version_wrote_survives_a_republish() {
    let golden = golden("newer-version");
    let envelope = read(&golden);
    assert_eq!(envelope.failures[0].reason, Reason::Other("quarantined".to_owned()));
    assert_eq!(envelope.dead.as_ref().unwrap().reason, Reason::Other("quarantined".to_owned()));
    assert_republished(&envelope, &golden);
}

#[test]
fn what_belongs_to_the_broker_is_not_republished() {
    let golden = golden("brokers-headers");
    let envelope = read(&golden);
    assert_eq!(envelope.broker.delivery_count, Some(7));
    let death = ("rejected".to_owned(), "forebay.mail".to_owned(), Some(1_760_000_001));
    assert_eq!(envelope.broker.death, Some(death));
    assert_republished(&envelope, &golden);
}

#[test]
fn a_foreign_expiration_becomes_a_header_and_is_not_republished() {
    let golden = golden("foreign-expiration");
    let envelope = read(&golden);
    assert_eq!(envelope.expires_at_ms, Some(1_760_000_060_000));
    assert_republished(&envelope, &golden);
}

#[test]
fn every_recorded_file_can_be_read() {
    let names = recorded("envelope");
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        assert_eq!(read(&golden(&name)).queue, "mail", "{name}");
    }
}

#[test]
fn every_event_is_as_recorded() {
    let (job, mut first) = (retried(), retried());
    first.attempt = 1;
    let data = |data: &Value| event_data(data).unwrap();
    let told = Event::of_channel("order:4711", "paid", data(&json!({ "by": "card" })));
    let three_seconds = Some(Duration::from_secs(3));
    let failure = &job.failures[0];
    for (name, event) in [
        ("queued", Event::queued(&fresh(), three_seconds)),
        ("started", Event::started(&first)),
        ("progress", Event::of_job(EventKind::Progress, &job, data(&json!({ "percent": 42.5 })))),
        ("retrying", Event::retrying(&job, Duration::from_millis(1_640), failure)),
        ("succeeded", Event::succeeded(&job, Some(br#"{"pages":3}"#))),
        ("dead", Event::dead(&job, "failed", &failure.message)),
        ("channel", told.unwrap().told_by(&job)),
    ] {
        let mut event = event;
        (event.id, event.source) = (EVENT.to_owned(), "/forebay/forebay/node-1/42".to_owned());
        event.time_ms = PUBLISHED_AT + 1_000;
        let (properties, headers) = spelled(&event.properties());
        let out = json!({
            "exchange": "forebay.events", "routing_key": event.routing_key(),
            "properties": properties, "headers": headers,
            "body": std::str::from_utf8(&event.encode()).unwrap(),
        });
        assert_eq!(out, golden_in("event", name), "{out:#}");
    }
}

#[test]
fn every_recorded_event_can_be_read() {
    let names = recorded("event");
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        let event = Event::decode(golden_in("event", &name)["body"].as_str().unwrap().as_bytes());
        let event = event.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((event.id.as_str(), event.job_id()), (EVENT, Some(ID)), "{name}");
        assert_eq!(event.time_ms, PUBLISHED_AT + 1_000, "{name}");
    }
    let newer = golden_in("event", "newer-version");
    let newer = Event::decode(newer["body"].as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(newer.what, EventKind::Other("forebay.job.paused".to_owned()));
}

fn recorded(folder: &str) -> Vec<String> {
    let folder = format!("{}/tests/golden/{folder}", env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(folder).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect()
}

fn golden(name: &str) -> Value {
    golden_in("envelope", name)
}

fn golden_in(folder: &str, name: &str) -> Value {
    let path = format!("{}/tests/golden/{folder}/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&file).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// An envelope as a file records it.
fn written(envelope: &Envelope, exchange: &str, routing_key: &str) -> Value {
    let (properties, headers) = spelled(&envelope.properties());
    let body = std::str::from_utf8(&envelope.payload).unwrap();
    json!({
        "exchange": exchange, "routing_key": routing_key,
        "properties": properties, "headers": headers, "body": body,
    })
}

fn read(golden: &Value) -> Envelope {
    let properties = properties(golden);
    Envelope::decode(Raw {
        properties: &properties,
        routing_key: golden["routing_key"].as_str().unwrap(),
        redelivered: golden.get("redelivered").is_some_and(|yes| yes == true),
        payload: Bytes::from(golden["body"].as_str().unwrap().to_owned()),
    })
}

/// Compares what goes out again with the file's `republished`.
fn assert_republished(envelope: &Envelope, golden: &Value) {
    let (properties, headers) = spelled(&envelope.properties());
    let out = json!({ "properties": properties, "headers": headers });
    assert_eq!(out, golden["republished"], "{out:#}");
}

fn spelled(properties: &BasicProperties) -> (Value, Value) {
    let mut all = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        all.extend(value.map(|value| (name.to_owned(), value)));
    };
    let text =
        |value: &Option<lapin::types::ShortString>| value.as_ref().map(|t| json!(t.as_str()));
    put("message_id", text(properties.message_id()));
    put("type", text(properties.kind()));
    put("content_type", text(properties.content_type()));
    put("content_encoding", text(properties.content_encoding()));
    put("correlation_id", text(properties.correlation_id()));
    put("reply_to", text(properties.reply_to()));
    put("app_id", text(properties.app_id()));
    put("user_id", text(properties.user_id()));
    put("expiration", text(properties.expiration()));
    put("delivery_mode", properties.delivery_mode().map(|mode| json!(mode)));
    put("priority", properties.priority().map(|priority| json!(priority)));
    put("timestamp", properties.timestamp().map(|time| json!(time)));
    let headers = properties.headers().as_ref().map_or(json!({}), spelled_table);
    (Value::Object(all), headers)
}

fn properties(golden: &Value) -> BasicProperties {
    let mut all = BasicProperties::default();
    for (name, value) in golden["properties"].as_object().unwrap() {
        let text = || value.as_str().unwrap().into();
        let small = || u8::try_from(value.as_u64().unwrap()).unwrap();
        all = match name.as_str() {
            "message_id" => all.with_message_id(text()),
            "type" => all.with_type(text()),
            "content_type" => all.with_content_type(text()),
            "content_encoding" => all.with_content_encoding(text()),
            "correlation_id" => all.with_correlation_id(text()),
            "reply_to" => all.with_reply_to(text()),
            "app_id" => all.with_app_id(text()),
            "user_id" => all.with_user_id(text()),
            "expiration" => all.with_expiration(text()),
            "delivery_mode" => all.with_delivery_mode(small()),
            "priority" => all.with_priority(small()),
            "timestamp" => all.with_timestamp(value.as_u64().unwrap()),
            other => panic!("property `{other}`"),
        };
    }
    match golden.get("headers") {
        Some(headers) => all.with_headers(table(headers)),
        None => all,
    }
}

/// `{"text": "a"}`: each value with its AMQP type, because the type is a part of the contract.
fn spelled_value(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(yes) => json!({ "boolean": yes }),
        AMQPValue::ShortShortInt(n) => json!({ "int8": n }),
        AMQPValue::ShortInt(n) => json!({ "int16": n }),
        AMQPValue::LongInt(n) => json!({ "int32": n }),
        AMQPValue::LongUInt(n) => json!({ "uint32": n }),
        AMQPValue::LongLongInt(n) => json!({ "int64": n }),
        AMQPValue::Double(n) => json!({ "double": n }),
        AMQPValue::Timestamp(n) => json!({ "timestamp": n }),
        AMQPValue::LongString(text) => {
            json!({ "text": std::str::from_utf8(text.as_bytes()).unwrap() })
        }
        AMQPValue::FieldArray(items) => {
            json!({ "array": items.as_slice().iter().map(spelled_value).collect::<Vec<_>>() })
        }
        AMQPValue::FieldTable(table) => json!({ "table": spelled_table(table) }),
        AMQPValue::Void => json!({ "void": null }),
        other => panic!("no file has {other:?}"),
    }
}

fn spelled_table(table: &FieldTable) -> Value {
    let pairs = table.inner().iter();
    Value::Object(pairs.map(|(name, value)| (name.to_string(), spelled_value(value))).collect())
}

fn value(spelled: &Value) -> AMQPValue {
    let (kind, value) = spelled.as_object().unwrap().iter().next().unwrap();
    match kind.as_str() {
        "boolean" => AMQPValue::Boolean(value.as_bool().unwrap()),
        "int8" => AMQPValue::ShortShortInt(whole(value)),
        "int16" => AMQPValue::ShortInt(whole(value)),
        "int32" => AMQPValue::LongInt(whole(value)),
        "uint32" => AMQPValue::LongUInt(whole(value)),
        "int64" => AMQPValue::LongLongInt(whole(value)),
        "double" => AMQPValue::Double(value.as_f64().unwrap()),
        "timestamp" => AMQPValue::Timestamp(whole(value)),
        "text" => AMQPValue::LongString(value.as_str().unwrap().into()),
        "array" => {
            let items = value.as_array().unwrap().iter().map(self::value);
            AMQPValue::FieldArray(items.collect::<Vec<_>>().into())
        }
        "table" => AMQPValue::FieldTable(table(value)),
        "void" => AMQPValue::Void,
        other => panic!("type `{other}`"),
    }
}

fn whole<T: TryFrom<i64, Error: std::fmt::Debug>>(value: &Value) -> T {
    value.as_i64().unwrap().try_into().unwrap()
}

fn table(spelled: &Value) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, spelled) in spelled.as_object().unwrap() {
        table.insert(name.as_str().into(), value(spelled));
    }
    table
}
