//! Messages of any properties and headers, as jobs and as dead letters.

use std::io::Cursor;

use bytes::Bytes;
use forebay_producer::wire::envelope::Raw;
use forebay_producer::{DeadLetter, Envelope};
use lapin::BasicProperties;
use lapin::protocol::basic::gen_properties;

use crate::source::Source;

#[test]
fn envelope() {
    forebay_producer::testing::fuzz("tests/fuzz/corpus/envelope", check_envelope);
}

pub(crate) fn check_envelope(input: &[u8]) {
    let mut source = Source(input);
    let redelivered = source.byte() > 127;
    let routing_key = source.text();
    let properties = properties(&mut source);
    let payload = Bytes::copy_from_slice(source.0);
    let read = |properties: &BasicProperties, routing_key: &str| {
        let payload = payload.clone();
        Envelope::decode(Raw { properties, routing_key, redelivered, payload })
    };
    let found = read(&properties, &routing_key);
    assert_eq!(found.payload, payload);
    assert!(found.attempt >= 1 && !found.id.is_empty());
    let shown = (found.headers(), found.trace(), found.expired(0));
    drop(serde_json::to_string(&shown.0).unwrap());

    // What goes out again is read as it was written, and is the same from then on.
    let sent = found.properties();
    check_sent(&found, &sent);
    let once = read(&sent, &found.queue);
    // As text: what is not a number equals nothing, itself included.
    let twice = read(&once.properties(), &once.queue);
    assert_eq!(format!("{once:?}"), format!("{twice:?}"));
    assert_eq!((&once.id, &once.kind, once.attempt), (&found.id, &found.kind, found.attempt));
    assert_eq!((&once.queue, &once.payload), (&found.queue, &found.payload));
    assert_eq!(once.headers(), found.headers());
    assert!(found.failures.ends_with(&once.failures) || once.failures.len() == 1);

    for unrouted in [false, true] {
        let letter = DeadLetter::of(found.clone(), unrouted);
        let again = letter.envelope.redriven();
        check_sent(&again, &again.properties());
        assert_eq!((again.attempt, &again.payload), (1, &payload));
    }
}

fn properties(source: &mut Source<'_>) -> BasicProperties {
    let mut properties = BasicProperties::default();
    let flags = u16::from_be_bytes(source.bytes());
    let has = |place: u16| flags & (1 << place) != 0;
    if has(0) {
        properties = properties.with_message_id(source.short());
    }
    if has(1) {
        properties = properties.with_type(source.short());
    }
    if has(2) {
        properties = properties.with_expiration(source.short());
    }
    if has(3) {
        properties = properties.with_timestamp(u64::from_be_bytes(source.bytes()));
    }
    if has(4) {
        properties = properties.with_reply_to(source.short()).with_correlation_id(source.short());
    }
    if has(5) {
        properties = properties.with_priority(source.byte()).with_app_id(source.short());
    }
    if has(6) {
        properties = properties.with_content_type(source.short());
        properties = properties.with_content_encoding(source.short());
    }
    // Of all these most has to come.
    if !has(7) {
        properties = properties.with_headers(source.table(6));
    }
    properties
}

fn check_sent(envelope: &Envelope, sent: &BasicProperties) {
    assert_eq!((sent.expiration(), *sent.delivery_mode()), (&None, Some(2)));
    for name in sent.headers().as_ref().unwrap().inner().keys() {
        let name = name.as_str();
        assert!(!name.starts_with("x-") && name != "CC" && name != "BCC", "{name}");
    }
    let mut frame = vec![0; 4 * 1024 * 1024];
    let written = gen_properties(sent)(Cursor::new(&mut frame[..]).into()).unwrap().position;
    // Class, weight and body size, and the frame around them (AMQP 0-9-1, section 4.2.6).
    let counted = envelope.header_bytes();
    assert!(counted as u64 >= written + 12 + 8, "{counted} < {written}");
}
