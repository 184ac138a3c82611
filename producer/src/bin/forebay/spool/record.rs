//! One job in a spool file, pure. `docs/spool.md` is the reference of this format.
//! In: an envelope. Out: a line with length and checksum, and the way back.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use forebay_producer::wire::envelope::to_ms;
use forebay_producer::{Delay, Destination, Envelope, PublishError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `WAIT 0000000123 8c736521 ` stands before the JSON.
pub(crate) const HEAD: usize = 25;
/// The job is to be sent.
pub(crate) const WAIT: &[u8; 4] = b"WAIT";
/// Takes its place once the job is confirmed.
pub(crate) const SENT: &[u8; 4] = b"SENT";
/// The largest payload with every byte escaped, and its headers: what claims to be longer is
/// damaged.
pub(crate) const LONGEST: usize = 64 * 1024 * 1024;

/// A job as it lies in the spool. Times are milliseconds since the epoch.
// No `Debug`: the payload is nobody's business.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Debug))]
pub(crate) struct Kept {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) queue: String,
    pub(crate) namespace: String,
    /// The call of `forebay publish` that it comes from: jobs of one call have no order.
    pub(crate) run: String,
    /// When it was to be published first.
    pub(crate) published_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) not_before: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) idempotency_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) track: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) signature: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) headers: BTreeMap<String, String>,
    /// JSON as text, so that it comes out byte for byte as it came in.
    pub(crate) payload: String,
}

/// Where a record stands that is whole.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(crate) struct Record {
    pub(crate) sent: bool,
    pub(crate) kept: Kept,
    /// With head and line end.
    pub(crate) bytes: usize,
}

impl Kept {
    /// What has to be kept of an envelope to send it later.
    pub(crate) fn new(
        envelope: &Envelope,
        not_before: Option<SystemTime>,
        namespace: &str,
        run: &str,
    ) -> Self {
        let headers = envelope.headers().into_iter().map(|(name, value)| {
            let value = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            (name, value)
        });
        Self {
            id: envelope.id.clone(),
            kind: envelope.kind.clone().unwrap_or_default(),
            queue: envelope.queue.clone(),
            namespace: namespace.to_owned(),
            run: run.to_owned(),
            published_at: envelope.published_at_ms.unwrap_or_default(),
            not_before: not_before.map(to_ms),
            expires_at: envelope.expires_at_ms,
            idempotency_key: envelope.idempotency_key.clone(),
            owner: envelope.owner.clone(),
            track: envelope.track,
            priority: envelope.priority,
            signature: envelope.signature.clone(),
            headers: headers.collect(),
            payload: String::from_utf8_lossy(&envelope.payload).into_owned(),
        }
    }

    /// The job again, and what is left of its delay.
    pub(crate) fn restore(self, now_ms: u64) -> Result<(Envelope, Destination), PublishError> {
        let mut envelope = Envelope::new(self.kind, self.queue, self.payload);
        envelope.id = self.id;
        envelope.published_at_ms = Some(self.published_at);
        envelope.expires_at_ms = self.expires_at;
        envelope.idempotency_key = self.idempotency_key;
        envelope.owner = self.owner;
        envelope.track = self.track;
        envelope.priority = self.priority;
        envelope.signature = self.signature;
        for (name, value) in self.headers {
            envelope.set_header(&name, &value).map_err(|why| PublishError::Option {
                option: "header",
                value: name,
                why,
            })?;
        }
        let left = self.not_before.unwrap_or(0).saturating_sub(now_ms);
        let delay = Delay::new(Duration::from_millis(left))?;
        Ok((envelope, delay.map_or(Destination::Queue, Destination::Later)))
    }
}

/// The line of a job that waits.
pub(crate) fn line(kept: &Kept) -> Vec<u8> {
    let json = serde_json::to_string(kept).expect("texts and numbers turn into JSON");
    let (length, sum) = (json.len(), crc32fast::hash(json.as_bytes()));
    format!("WAIT {length:010} {sum:08x} {json}\n").into_bytes()
}

/// The record at the beginning of `bytes`, if it is whole. The word in front is not covered by the
/// checksum, because it changes in place: whatever is not `SENT` waits, so that damage sends a job
/// twice rather than never.
pub(crate) fn read(bytes: &[u8]) -> Option<Record> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let text = std::str::from_utf8(&head[4..]).ok()?;
    let mut fields = text.strip_prefix(' ')?.split(' ');
    let length: usize = number(fields.next()?, 10, 10)?.try_into().ok()?;
    let sum: u32 = number(fields.next()?, 8, 16)?.try_into().ok()?;
    // A line end that is damaged takes no job with it, one that is missing does: the record is not
    // all there.
    if length > LONGEST || rest.len() <= length {
        return None;
    }
    let json = &rest[..length];
    if crc32fast::hash(json) != sum {
        return None;
    }
    let kept = serde_json::from_slice(json).ok()?;
    Some(Record { sent: &head[..4] == SENT, kept, bytes: HEAD + length + 1 })
}

fn number(digits: &str, width: usize, radix: u32) -> Option<u64> {
    let plain = digits.len() == width && digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    plain.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use bytes::Bytes;
    use forebay_producer::{Config, PublishOptions, SigningKeys};
    use proptest::prelude::*;

    pub(crate) fn kept() -> impl Strategy<Value = Kept> {
        let text = || proptest::collection::vec(any::<char>(), 0..40).prop_map(String::from_iter);
        let headers = proptest::collection::btree_map("[a-z]{1,9}", any::<String>(), 0..3);
        let when = proptest::option::of(any::<u64>());
        (text(), text(), text(), headers, when, proptest::option::of(any::<u8>())).prop_map(
            |(id, kind, payload, headers, not_before, priority)| Kept {
                id,
                kind,
                queue: "mail".to_owned(),
                namespace: "forebay".to_owned(),
                run: "1".to_owned(),
                published_at: 5,
                not_before,
                expires_at: None,
                idempotency_key: None,
                owner: None,
                track: false,
                priority,
                signature: None,
                headers,
                payload,
            },
        )
    }

    #[test]
    fn a_job_comes_back_as_it_was_with_the_rest_of_its_delay() {
        let now = SystemTime::now();
        let options = PublishOptions::new()
            .id("a")
            .queue("mail")
            .expires_after(Duration::from_secs(60))
            .idempotency_key("k")
            .priority(3)
            .header("tenant", "acme")
            .traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            .tracestate("a=1");
        let payload = Bytes::from_static(b"{\"a\":\n 1}");
        let keys = SigningKeys::parse("one=0123456789abcdef0123456789abcdef").unwrap();
        let config = Config::new("amqp://127.0.0.1").unwrap().signing_keys(keys);
        let made = options.into_envelope(&config, "email.send", payload, now);
        let (envelope, _) = made.unwrap();
        assert!(envelope.signature.is_some());
        let not_before = now + Duration::from_secs(10);
        let kept = Kept::new(&envelope, Some(not_before), "forebay", "1");
        let kept = read(&line(&kept)).unwrap().kept;

        let (early, destination) = kept.clone().restore(to_ms(not_before) - 6_400).unwrap();
        assert_eq!(early, envelope);
        let left = Delay::new(Duration::from_millis(6_400)).unwrap().unwrap();
        assert_eq!(destination, Destination::Later(left));
        let (late, destination) = kept.restore(to_ms(not_before)).unwrap();
        assert_eq!((late, destination), (envelope, Destination::Queue));
    }

    #[test]
    fn the_line_is_what_its_reference_says() {
        let kept = Kept {
            id: "a".to_owned(),
            kind: "b.c".to_owned(),
            queue: "default".to_owned(),
            namespace: "forebay".to_owned(),
            run: "r".to_owned(),
            published_at: 1,
            not_before: None,
            expires_at: None,
            idempotency_key: None,
            owner: None,
            track: false,
            priority: None,
            signature: None,
            headers: BTreeMap::new(),
            payload: "{\n}".to_owned(),
        };
        let json = r#"{"id":"a","kind":"b.c","queue":"default","namespace":"forebay","run":"r","published_at":1,"payload":"{\n}"}"#;
        let expected = format!("WAIT 0000000107 7cafce98 {json}\n");
        assert_eq!(String::from_utf8(line(&kept)).unwrap(), expected);
    }

    proptest! {
        #[test]
        fn every_job_is_one_line_and_comes_back(kept in kept()) {
            let line = line(&kept);
            prop_assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
            let record = read(&line).unwrap();
            prop_assert_eq!(record, Record { sent: false, kept, bytes: line.len() });
        }

        #[test]
        fn a_byte_that_is_damaged_never_makes_another_job(kept in kept(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut line = line(&kept);
            let at = at.index(line.len());
            line[at] ^= 1 << bit;
            // The word in front and the line end are not part of the job.
            match read(&line) {
                None => prop_assert!((4..line.len() - 1).contains(&at)),
                Some(record) => prop_assert!(record.kept == kept && !record.sent),
            }
        }
    }
}
