//! How many allocations an envelope may cost on its way to the wire and back.

use bytes::Bytes;
use forebay_producer::Envelope;
use forebay_producer::wire::envelope::Raw;

/// The properties that an envelope is published with: what the client library's own types ask for.
const ENCODE: u64 = 8;
/// A delivery of a job that was published by us: id, kind, queue and content type.
const DECODE: u64 = 4;

#[test]
fn an_envelope_stays_within_its_budget() {
    let envelope = Envelope::new("bench.nothing", "default", Bytes::from_static(b"{}"));
    let properties = envelope.properties();
    let encode = allocation_counter::measure(|| drop(envelope.properties())).count_total;
    let decode = allocation_counter::measure(|| {
        let payload = envelope.payload.clone();
        let raw =
            Raw { properties: &properties, routing_key: "default", redelivered: false, payload };
        drop(Envelope::decode(raw));
    });
    let decode = decode.count_total;
    println!("allocations: {encode} to encode (budget {ENCODE}), {decode} to decode ({DECODE})");
    assert!(encode <= ENCODE && decode <= DECODE, "{encode} of {ENCODE}, {decode} of {DECODE}");
}
