//! Signed jobs: only who has a key makes a job that a worker with the key runs.
//! In: an envelope, keys. Out: the header `forebay-signature`, or why it does not hold.
//! `docs/wire.md` is the reference; a golden file keeps what is signed.

use std::fmt;

use hmac::{Hmac, Mac};
use lapin::types::AMQPValue;
use sha2::Sha256;

use super::envelope::{Envelope, SIGNED_AS};
use super::failure::Reason;
use super::headers;
use super::trace::{TRACEPARENT, TRACESTATE};

const VERSION: &str = "v1";
/// Shorter secrets can be guessed (RFC 2104, section 3: no shorter than the hash).
const SHORTEST: usize = 32;

/// The keys of signed jobs: the first signs, each verifies. `Debug` shows their names only.
///
/// ```
/// use forebay_producer::SigningKeys;
///
/// let new = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
/// let old = "00112233445566778899aabbccddeeff";
/// let keys = SigningKeys::parse(&format!("2026-11={new},2026-05={old}"))?;
/// assert_eq!(keys.names().collect::<Vec<_>>(), ["2026-11", "2026-05"]);
/// # Ok::<(), forebay_producer::InvalidKeys>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKeys {
    /// Never empty.
    keys: Vec<Key>,
}

#[derive(Clone, PartialEq, Eq)]
struct Key {
    name: String,
    secret: Vec<u8>,
}

/// Keys that cannot be used. No secret is repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidKeys {
    /// There is none.
    #[error("there is no key; write NAME=SECRET")]
    Empty,
    /// Not of the form `NAME=SECRET`.
    #[error(
        "key {number} is not of the form NAME=SECRET, with 1 to 64 of a-z, A-Z, 0-9, . _ - in the name"
    )]
    Form {
        /// Which one, from 1.
        number: usize,
    },
    /// The secret is too short.
    #[error("the secret of key `{name}` has {bytes} bytes; use at least 32 (openssl rand -hex 32)")]
    Short {
        /// Its name.
        name: String,
        /// Its length.
        bytes: usize,
    },
    /// Two keys of one name.
    #[error("there are two keys `{name}`; give each a name of its own")]
    Twice {
        /// The name.
        name: String,
    },
}

/// Why a job's signature does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadSignature {
    /// It has none.
    #[error("the job is not signed, and this worker runs signed jobs only")]
    Unsigned,
    /// Signed with a key that is not among ours.
    #[error("the job is signed with key `{name}`, and the keys here are {known}")]
    UnknownKey {
        /// The key's name.
        name: String,
        /// Those that are known.
        known: String,
    },
    /// The job is not what was signed, or the signature not what was made.
    #[error("the job is not as it was signed with key `{name}`")]
    Altered {
        /// The key's name.
        name: String,
    },
    /// The header is no signature of ours.
    #[error("the job's signature is not of the form v1;KEY;HEX")]
    Unreadable,
    /// It has a header that no signature covers, so somebody has put it there.
    #[error(
        "the job's header `{header}` is neither text nor a whole number nor true or false: no signature covers it"
    )]
    Header {
        /// The header's name.
        header: String,
    },
}

impl SigningKeys {
    /// Reads `NAME=SECRET`, several separated by commas or line breaks. A name has 1 to 64 letters,
    /// digits, `.`, `_` and `-`; a secret at least 32 bytes, taken as they stand.
    ///
    /// # Errors
    /// [`InvalidKeys`], which repeats no secret.
    pub fn parse(text: &str) -> Result<Self, InvalidKeys> {
        let words = text.split([',', '\n']).map(str::trim).filter(|word| !word.is_empty());
        let mut keys: Vec<Key> = Vec::new();
        for (word, number) in words.zip(1..) {
            let key = Key::parse(word, number)?;
            if keys.iter().any(|known| known.name == key.name) {
                return Err(InvalidKeys::Twice { name: key.name });
            }
            keys.push(key);
        }
        if keys.is_empty() { Err(InvalidKeys::Empty) } else { Ok(Self { keys }) }
    }

    /// The names of the keys, the one that signs first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.name.as_str())
    }
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKeys").field(&self.names().collect::<Vec<_>>()).finish()
    }
}

impl Key {
    fn parse(word: &str, number: usize) -> Result<Self, InvalidKeys> {
        let (name, secret) = word.split_once('=').ok_or(InvalidKeys::Form { number })?;
        let (name, secret) = (name.trim_end(), secret.trim_start());
        if !is_name(name) {
            return Err(InvalidKeys::Form { number });
        }
        if secret.len() < SHORTEST {
            return Err(InvalidKeys::Short { name: name.to_owned(), bytes: secret.len() });
        }
        Ok(Self { name: name.to_owned(), secret: secret.as_bytes().to_vec() })
    }

    fn mac(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(&self.secret).expect("HMAC takes keys of any length")
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    (1..=64).contains(&name.len()) && name.chars().all(allowed)
}

impl BadSignature {
    /// The reason on the dead letter.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unsigned => Reason::Unsigned,
            Self::UnknownKey { .. } => Reason::UnknownKey,
            Self::Altered { .. } | Self::Unreadable | Self::Header { .. } => Reason::Altered,
        }
    }
}

impl Envelope {
    /// Signs the job with the first of the keys, for workers of this namespace.
    ///
    /// # Errors
    /// [`BadSignature::Header`] if a header of the sender's own is of a type that is not covered.
    pub fn sign(&mut self, keys: &SigningKeys, namespace: &str) -> Result<(), BadSignature> {
        let Some(key) = keys.keys.first() else { return Ok(()) };
        let mut mac = key.mac();
        self.feed(namespace, &mut mac)?;
        let code = hex::encode(mac.finalize().into_bytes());
        self.signature = Some(format!("{VERSION};{};{code}", key.name));
        Ok(())
    }

    /// Whether the job is as somebody with one of these keys has made it.
    ///
    /// # Errors
    /// [`BadSignature`] saying what is wrong.
    pub fn verify(&self, keys: &SigningKeys, namespace: &str) -> Result<(), BadSignature> {
        let signature = self.signature.as_deref().ok_or(BadSignature::Unsigned)?;
        let mut parts = signature.split(';');
        let (Some(VERSION), Some(name), Some(code), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(BadSignature::Unreadable);
        };
        let Some(code) = hex::decode(code).ok().filter(|_| is_name(name)) else {
            return Err(BadSignature::Unreadable);
        };
        let name = name.to_owned();
        let Some(key) = keys.keys.iter().find(|key| key.name == name) else {
            let known = keys.names().map(|name| format!("`{name}`")).collect::<Vec<_>>();
            return Err(BadSignature::UnknownKey { name, known: known.join(", ") });
        };
        let mut mac = key.mac();
        self.feed(namespace, &mut mac)?;
        // In constant time: how far a guess is right must not show.
        mac.verify_slice(&code).map_err(|_| BadSignature::Altered { name })
    }

    /// Everything that says what the job is, each part with its length, so that no two jobs come to
    /// the same bytes. Not what a worker changes: attempts, failures, times. Not the trace, which
    /// says nothing to a handler and may be set by whoever passes the job on.
    fn feed(&self, namespace: &str, mac: &mut Hmac<Sha256>) -> Result<(), BadSignature> {
        let expires = self.expires_at_ms.map(|at| at.to_string());
        let mut put = |part: Option<&[u8]>| match part {
            Some(part) => {
                mac.update(format!("{}:", part.len()).as_bytes());
                mac.update(part);
            }
            None => mac.update(b"-:"),
        };
        for part in [
            Some(SIGNED_AS),
            Some(namespace),
            Some(&self.queue),
            self.kind.as_deref(),
            Some(&self.id),
            Some(&self.content_type),
            self.content_encoding.as_deref(),
            expires.as_deref(),
            self.idempotency_key.as_deref(),
            self.owner.as_deref(),
            self.correlation_id.as_deref(),
            self.reply_to.as_deref(),
        ] {
            put(part.map(str::as_bytes));
        }
        put(Some(&self.payload));
        for (name, value) in self.own_headers() {
            let text = signable(value);
            let text = text.ok_or_else(|| BadSignature::Header { header: name.to_owned() })?;
            put(Some(name.as_bytes()));
            put(Some(text.as_bytes()));
        }
        Ok(())
    }

    /// Headers that handlers go by, sorted by name. `forebay-…` that we do not know are a newer
    /// version's, who does not sign them as `v1`.
    fn own_headers(&self) -> impl Iterator<Item = (&str, &AMQPValue)> {
        let all = self.foreign().inner().iter().map(|(name, value)| (name.as_str(), value));
        all.filter(|(name, _)| {
            !headers::is_ours(name) && *name != TRACEPARENT && *name != TRACESTATE
        })
    }

    /// The copy that a redrive publishes. Queue and expiry are signed: where they change it is
    /// signed anew, which only a holder of the keys can do, and only for a job that was genuine.
    ///
    /// # Errors
    /// A sentence that says why it cannot be signed.
    pub(crate) fn redriven_to(
        self,
        to: Option<&str>,
        keys: Option<&SigningKeys>,
        namespace: &str,
    ) -> Result<Self, String> {
        let elsewhere = to.is_some_and(|queue| queue != self.queue);
        let changes = elsewhere || self.expires_at_ms.is_some();
        let genuine = match (&self.signature, keys) {
            (Some(_), Some(keys)) if changes => Some(self.verify(keys, namespace)),
            (Some(_), None) if changes => {
                return Err("it is signed, with its queue and expiry, and comes to another: set \
                            FOREBAY_SIGNING_KEYS, so that it is signed anew"
                    .to_owned());
            }
            _ => None,
        };
        let mut copy = self.redriven();
        if let Some(queue) = to {
            queue.clone_into(&mut copy.queue);
        }
        if let (Some(genuine), Some(keys)) = (genuine, keys) {
            genuine
                .and_then(|()| copy.sign(keys, namespace))
                .map_err(|why| format!("it would have to be signed anew, but {why}"))?;
        }
        Ok(copy)
    }
}

/// The text of a header that reads the same in every language.
fn signable(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::Float(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => None,
        other => headers::text(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn keys(text: &str) -> SigningKeys {
        SigningKeys::parse(text).unwrap()
    }

    fn one() -> SigningKeys {
        keys(&format!("one={SECRET}"))
    }

    fn job() -> Envelope {
        let mut job = Envelope::new("email.send", "mail", r#"{"to":"ada@example.org"}"#);
        job.id = "job-1".to_owned();
        job.set_header("tenant", "acme").unwrap();
        job
    }

    fn signed() -> Envelope {
        let mut job = job();
        job.sign(&one(), "forebay").unwrap();
        job
    }

    fn refusal(job: &Envelope) -> Reason {
        job.verify(&one(), "forebay").unwrap_err().reason()
    }

    #[test]
    fn what_a_worker_changes_leaves_the_signature_valid() {
        let mut job = signed();
        assert_eq!(job.verify(&one(), "forebay"), Ok(()));
        (job.attempt, job.crashes, job.graces, job.deferrals, job.redrives) = (4, 3, 2, 1, 1);
        job.failures.push(super::super::failure::Failure::new(1, 1, Reason::Failed, "no", "w"));
        job.published_at_ms = None;
        job.priority = Some(3);
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        job.set_trace(&super::super::trace::TraceContext::parse(trace).unwrap());
        assert_eq!(job.verify(&one(), "forebay"), Ok(()));
        assert_eq!(job.redriven().verify(&one(), "forebay"), Ok(()));
    }

    #[test]
    fn whatever_says_what_the_job_is_cannot_be_changed() {
        type Change = fn(&mut Envelope);
        let changes: [Change; 13] = [
            |job| job.queue = "other".into(),
            |job| job.kind = Some("email.delete".into()),
            |job| job.kind = None,
            |job| job.id = "job-2".into(),
            |job| job.content_type = "text/plain".into(),
            |job| job.content_encoding = Some("gzip".into()),
            |job| job.expires_at_ms = Some(1),
            |job| job.idempotency_key = Some("k".into()),
            |job| job.owner = Some("eve".into()),
            |job| job.correlation_id = Some("c".into()),
            |job| job.reply_to = Some("amq.gen-eve".into()),
            |job| job.payload = r#"{"to":"eve@example.org"}"#.into(),
            |job| job.set_header("tenant", "evil").unwrap(),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut job = signed();
            change(&mut job);
            assert_eq!(refusal(&job), Reason::Altered, "change {number}");
        }
        assert!(signed().verify(&one(), "staging").is_err());
    }

    #[test]
    fn moving_bytes_from_one_part_to_the_next_does_not_help() {
        let mut job = job();
        (job.correlation_id, job.reply_to) = (Some("ab".into()), Some("c".into()));
        job.sign(&one(), "forebay").unwrap();
        (job.correlation_id, job.reply_to) = (Some("a".into()), Some("bc".into()));
        assert_eq!(refusal(&job), Reason::Altered);
    }

    #[test]
    fn each_fault_has_its_reason() {
        assert_eq!(refusal(&job()), Reason::Unsigned);
        let mut other = job();
        other.sign(&keys(&format!("two={SECRET}")), "forebay").unwrap();
        assert_eq!(refusal(&other), Reason::UnknownKey);
        let words = other.verify(&one(), "forebay").unwrap_err().to_string();
        assert_eq!(words, "the job is signed with key `two`, and the keys here are `one`");
        let mut same_name = job();
        same_name.sign(&keys(&format!("one={SECRET}!")), "forebay").unwrap();
        assert_eq!(refusal(&same_name), Reason::Altered);
        for text in ["", "v1", "v1;one", "v2;one;00", "v1;one;zz", "v1;one;00;00", "v1;o e;00"] {
            let mut job = signed();
            job.signature = Some(text.to_owned());
            assert_eq!(job.verify(&one(), "forebay"), Err(BadSignature::Unreadable), "{text}");
        }
        for code in ["", "00"] {
            let mut job = signed();
            job.signature = Some(format!("v1;one;{code}"));
            assert_eq!(refusal(&job), Reason::Altered, "{code}");
        }
    }

    #[test]
    fn the_first_key_signs_and_each_verifies() {
        let both = keys(&format!("new={SECRET}new,\n one = {SECRET}\n"));
        let mut job = job();
        job.sign(&both, "forebay").unwrap();
        assert!(job.signature.as_deref().unwrap().starts_with("v1;new;"));
        assert_eq!(job.verify(&both, "forebay"), Ok(()));
        assert_eq!(signed().verify(&both, "forebay"), Ok(()));
        assert_eq!(refusal(&job), Reason::UnknownKey);
    }

    #[test]
    fn keys_that_cannot_be_used_are_named_and_their_secrets_are_not_shown() {
        for (text, expected) in [
            ("", "there is no key"),
            (" ,\n", "there is no key"),
            ("hush", "key 1 is not of the form"),
            ("a b=hush", "key 1 is not of the form"),
            ("=hush", "key 1 is not of the form"),
            ("one=hush", "`one` has 4 bytes"),
        ] {
            let error = SigningKeys::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("hush"), "{text:?}: {error}");
        }
        let twice = format!("one={SECRET},one={SECRET}");
        assert_eq!(SigningKeys::parse(&twice), Err(InvalidKeys::Twice { name: "one".to_owned() }));
        assert!(!format!("{:?}", one()).contains(SECRET));
    }

    #[test]
    fn a_redrive_signs_anew_what_it_changes_and_only_what_was_genuine() {
        let keys = one();
        // Nothing that is signed changes: no keys needed.
        let genuine = signed();
        let copy = genuine.clone().redriven_to(None, None, "forebay").unwrap();
        assert_eq!((copy.redrives, copy.verify(&keys, "forebay")), (1, Ok(())));
        assert_eq!(genuine.redriven_to(Some("mail"), None, "forebay").unwrap(), copy);
        // Another queue.
        assert!(signed().redriven_to(Some("slow"), None, "forebay").unwrap_err().contains("KEYS"));
        let copy = signed().redriven_to(Some("slow"), Some(&keys), "forebay").unwrap();
        assert_eq!((copy.queue.as_str(), copy.verify(&keys, "forebay")), ("slow", Ok(())));
        // The expiry goes.
        let mut expired = job();
        expired.expires_at_ms = Some(1);
        expired.sign(&keys, "forebay").unwrap();
        assert!(expired.clone().redriven_to(None, None, "forebay").is_err());
        let copy = expired.clone().redriven_to(None, Some(&keys), "forebay").unwrap();
        assert_eq!((copy.expires_at_ms, copy.verify(&keys, "forebay")), (None, Ok(())));
        // What was not genuine does not become so.
        expired.payload = "{}".into();
        assert!(expired.redriven_to(None, Some(&keys), "forebay").is_err());
        // And what was not signed stays so.
        let copy = job().redriven_to(Some("slow"), Some(&keys), "forebay").unwrap();
        assert_eq!(copy.signature, None);
    }

    proptest! {
        #[test]
        fn no_altered_byte_of_the_payload_passes(
            payload in prop::collection::vec(any::<u8>(), 1..200),
            place in any::<prop::sample::Index>(),
            flip in 1..=255u8,
        ) {
            let mut job = job();
            job.payload = payload.clone().into();
            job.sign(&one(), "forebay").unwrap();
            prop_assert_eq!(job.verify(&one(), "forebay"), Ok(()));
            let mut altered = payload;
            let place = place.index(altered.len());
            altered[place] ^= flip;
            job.payload = altered.into();
            prop_assert_eq!(refusal(&job), Reason::Altered);
        }

        #[test]
        fn no_altered_byte_of_the_signature_passes(
            place in any::<prop::sample::Index>(),
            other in "[ -~]",
        ) {
            let mut job = signed();
            let mut text = job.signature.clone().unwrap();
            let place = place.index(text.len());
            // Hexadecimal digits of either case are the same digits.
            prop_assume!(!text[place..=place].eq_ignore_ascii_case(&other));
            text.replace_range(place..=place, &other);
            job.signature = Some(text);
            prop_assert!(job.verify(&one(), "forebay").is_err());
        }
    }
}
