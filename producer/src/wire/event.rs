//! What happens to jobs, and what handlers tell the world, as it stands on the stream `events`.
//! In: a job or a channel, and data. Out: one CloudEvent in JSON. Reading is strict: anybody with
//! access to the stream may have written there, and what is read goes on to browsers.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::BasicProperties;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::envelope::{self, Envelope, as_ms, new_id, now_ms, to_ms};
use super::failure::Failure;
use super::token::is_id;
use super::topology::{InvalidName, check};

/// How long an event may be, in bytes of JSON.
pub const EVENT_LIMIT: usize = 64 * 1024;
/// A result longer than this is told by its size alone.
pub const RESULT_LIMIT: usize = 16 * 1024;
/// So many levels may stand within each other in the data, as in a typed handler's payload: readers
/// in other languages end, or worse, with more.
const DEEPEST: usize = 128;

const SPEC: &str = "1.0";
const JSON: &str = "application/json";
const CONTENT_TYPE: &str = "application/cloudevents+json";
const JOB: &str = "forebay.job.";
const CHANNEL: &str = "forebay.channel";
/// The last moment that RFC 3339 can spell.
const LAST_MS: u64 = 253_402_300_799_999;

/// Something that happened to a job, or that a handler or a producer has told a channel.
///
/// On the wire it is a CloudEvent 1.0 in JSON (`docs/wire.md`). Events of one job stand on the
/// stream in the order in which the broker took them; where two processes wrote nearly at once,
/// [`Event::rank`] says which is later.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "Body", into = "Body")]
#[non_exhaustive]
pub struct Event {
    /// UUIDv7. An event that is sent again, because its confirm was lost, has the same.
    pub id: String,
    /// Which process told it: `/forebay/NAMESPACE/HOST/PID`.
    pub source: String,
    /// What happened.
    pub what: EventKind,
    /// The job's id, or the channel.
    pub subject: String,
    /// When, in milliseconds since the epoch, by the clock of who told it.
    pub time_ms: u64,
    /// The job's kind; that of the job that told it, if it is of a channel.
    pub kind: Option<String>,
    /// The job's queue.
    pub queue: Option<String>,
    /// The attempt during which it happened.
    pub attempt: Option<u32>,
    /// Higher means later among the events of one job.
    pub rank: Option<u32>,
    /// Whose job it is.
    pub owner: Option<String>,
    /// The name that the emitter gave to what it told a channel.
    pub event: Option<String>,
    /// The job that told it, if it is of a channel.
    pub job: Option<String>,
    /// The data, as JSON.
    pub data: Box<RawValue>,
}

/// What an event tells.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// The job is on its queue, or on the delay ladder.
    Queued,
    /// A run began.
    Started,
    /// What the handler says of its progress.
    Progress,
    /// A run did not succeed, and there will be another.
    Retrying,
    /// The job is done.
    Succeeded,
    /// The job is a dead letter.
    Dead,
    /// Told to a channel.
    Channel,
    /// A type of a newer version.
    Other(String),
}

impl EventKind {
    /// The `type` attribute.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Queued => "forebay.job.queued",
            Self::Started => "forebay.job.started",
            Self::Progress => "forebay.job.progress",
            Self::Retrying => "forebay.job.retrying",
            Self::Succeeded => "forebay.job.succeeded",
            Self::Dead => "forebay.job.dead",
            Self::Channel => CHANNEL,
            Self::Other(word) => word,
        }
    }

    /// The last word of the type: `queued`, `channel`.
    pub fn word(&self) -> &str {
        self.as_str().rsplit('.').next().unwrap_or_default()
    }

    /// Whether nothing more happens to the job, unless it is redriven.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead)
    }

    /// Whether it is of a job, and not of a channel.
    pub fn is_of_job(&self) -> bool {
        self.as_str().starts_with(JOB)
    }

    /// Its place within an attempt. There is room between them.
    fn place(&self) -> u32 {
        match self {
            Self::Queued => 0,
            Self::Started => 1,
            Self::Retrying => 8,
            Self::Succeeded | Self::Dead => 15,
            Self::Progress | Self::Channel | Self::Other(_) => 2,
        }
    }

    fn read(word: String) -> Self {
        let known = [
            Self::Queued,
            Self::Started,
            Self::Progress,
            Self::Retrying,
            Self::Succeeded,
            Self::Dead,
            Self::Channel,
        ];
        known.into_iter().find(|kind| kind.as_str() == word).unwrap_or(Self::Other(word))
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a message on the stream is no event of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an event: {because}")]
pub struct Malformed {
    because: String,
}

impl Event {
    /// The job was published, perhaps with a delay.
    pub fn queued(job: &Envelope, delay: Option<Duration>) -> Self {
        Self::of_job(EventKind::Queued, job, data(&Queued { delay_ms: delay.map(as_ms) }))
    }

    /// A run of it begins.
    pub fn started(job: &Envelope) -> Self {
        Self::of_job(EventKind::Started, job, data(&Nothing {}))
    }

    /// This run did not succeed, and the next comes after so long.
    pub fn retrying(job: &Envelope, delay: Duration, failure: &Failure) -> Self {
        let (reason, error) = (failure.reason.as_str(), failure.message.as_str());
        let told = Retrying { delay_ms: as_ms(delay), reason, error };
        Self::of_job(EventKind::Retrying, job, data(&told))
    }

    /// It is done. A result of more than [`RESULT_LIMIT`] bytes is told by its size; `None`, and
    /// what is not JSON, as `null`.
    pub fn succeeded(job: &Envelope, result: Option<&[u8]>) -> Self {
        Self::done(job, result, false)
    }

    /// Its work was done before, by another job with its idempotency key; with the result of that
    /// one, if it was kept.
    pub fn duplicate(job: &Envelope, result: Option<&[u8]>) -> Self {
        Self::done(job, result, true)
    }

    fn done(job: &Envelope, result: Option<&[u8]>, duplicate: bool) -> Self {
        let told = match result {
            Some(result) if result.len() > RESULT_LIMIT || is_too_deep(result, DEEPEST - 1) => {
                data(&Large { bytes: result.len(), duplicate })
            }
            result => {
                let result = result.and_then(|result| serde_json::from_slice(result).ok());
                data(&Done { result, duplicate })
            }
        };
        Self::of_job(EventKind::Succeeded, job, told)
    }

    /// It is a dead letter.
    pub fn dead(job: &Envelope, reason: &str, error: &str) -> Self {
        Self::of_job(EventKind::Dead, job, data(&Dead { reason, error }))
    }

    /// What happened to a job during its present attempt, now.
    pub fn of_job(what: EventKind, job: &Envelope, data: Box<RawValue>) -> Self {
        Self {
            rank: Some(rank(job, &what)),
            kind: job.kind.clone(),
            queue: Some(job.queue.clone()),
            attempt: Some(job.attempt),
            owner: job.owner.clone(),
            ..Self::blank(what, job.id.clone(), data)
        }
    }

    /// What somebody tells a channel, now.
    ///
    /// # Errors
    /// [`InvalidName`] unless channel and event are 1 to 200 characters of `a-z`, `A-Z`, `0-9` and
    /// `. _ - : @ /`.
    pub fn of_channel(
        channel: &str,
        event: &str,
        data: Box<RawValue>,
    ) -> Result<Self, InvalidName> {
        check_channel(channel)?;
        check_event_name(event)?;
        Ok(Self {
            event: Some(event.to_owned()),
            ..Self::blank(EventKind::Channel, channel.to_owned(), data)
        })
    }

    /// Says which job tells it, and whose that is.
    #[must_use]
    pub fn told_by(mut self, job: &Envelope) -> Self {
        self.job = Some(job.id.clone());
        self.kind.clone_from(&job.kind);
        self.owner.clone_from(&job.owner);
        self
    }

    fn blank(what: EventKind, subject: String, data: Box<RawValue>) -> Self {
        Self {
            id: new_id(),
            source: String::new(),
            what,
            subject,
            time_ms: now_ms(),
            kind: None,
            queue: None,
            attempt: None,
            rank: None,
            owner: None,
            event: None,
            job: None,
            data,
        }
    }

    /// Reads the body of a message.
    ///
    /// # Errors
    /// [`Malformed`], saying what is wrong with it.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        serde_json::from_slice(body).map_err(|error| malformed(&error.to_string()))
    }

    /// The body of its message.
    pub fn encode(&self) -> Bytes {
        let encoded = serde_json::to_vec(self);
        encoded.expect("texts, numbers and JSON turn into JSON").into()
    }

    /// The properties of its message; always persistent.
    pub fn properties(&self) -> BasicProperties {
        envelope::event_properties(
            &self.id,
            self.what.as_str(),
            CONTENT_TYPE,
            self.owner.as_deref(),
        )
        .with_timestamp(self.time_ms / 1000)
    }

    /// The routing key of its message: `job.WORD.KIND`, or `channel.NAME`; at most 255 bytes, which
    /// the kinds of foreign publishers may be alone.
    pub fn routing_key(&self) -> String {
        let mut key = match (self.channel(), &self.kind) {
            (Some(channel), _) => format!("channel.{channel}"),
            (None, Some(kind)) => format!("job.{}.{kind}", self.what.word()),
            (None, None) => format!("job.{}", self.what.word()),
        };
        key.truncate((0..=255).rev().find(|at| key.is_char_boundary(*at)).unwrap_or(0));
        key
    }

    /// The channel, if it is of one.
    pub fn channel(&self) -> Option<&str> {
        (self.what == EventKind::Channel).then_some(&self.subject)
    }

    /// The job's id, if it is of a job or told by one.
    pub fn job_id(&self) -> Option<&str> {
        if self.what.is_of_job() { Some(&self.subject) } else { self.job.as_deref() }
    }

    /// When it happened, by the clock of who told it.
    pub fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.time_ms)
    }
}

/// Attempts begin anew with each redrive. CloudEvents knows whole numbers of 31 bits.
fn rank(job: &Envelope, what: &EventKind) -> u32 {
    (job.redrives.min(0x7ff) << 20) | (job.attempt.min(0xffff) << 4) | what.place()
}

#[derive(Serialize)]
struct Queued {
    #[serde(skip_serializing_if = "Option::is_none")]
    delay_ms: Option<u64>,
}

#[derive(Serialize)]
struct Nothing {}

#[derive(Serialize)]
struct Retrying<'a> {
    delay_ms: u64,
    reason: &'a str,
    error: &'a str,
}

#[derive(Serialize)]
struct Done<'a> {
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
}

#[derive(Serialize)]
struct Large {
    bytes: usize,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
}

#[derive(Serialize)]
struct Dead<'a> {
    reason: &'a str,
    error: &'a str,
}

fn data(data: &impl Serialize) -> Box<RawValue> {
    event_data(data).expect("texts, numbers and JSON turn into JSON")
}

/// Data as an event carries it.
///
/// # Errors
/// [`serde_json::Error`] when it does not turn into JSON, or has more than 128 levels.
pub fn event_data(data: &impl Serialize) -> Result<Box<RawValue>, serde_json::Error> {
    let data = serde_json::value::to_raw_value(data)?;
    if is_too_deep(data.get().as_bytes(), DEEPEST) {
        return Err(serde::ser::Error::custom("it has more than 128 levels"));
    }
    Ok(data)
}

/// Whether JSON has more levels than `most`.
fn is_too_deep(json: &[u8], most: usize) -> bool {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    json.iter().any(|byte| {
        match (in_text, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_text = !in_text,
            (false, b'[' | b'{') => depth += 1,
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > most
    })
}

/// Checks the name of a channel: 1 to 200 of `a-z`, `A-Z`, `0-9` and `. _ - : @ /`.
///
/// # Errors
/// [`InvalidName`] with the reason.
pub fn check_channel(name: &str) -> Result<(), InvalidName> {
    check("channel", name, 200, WORD_CHARACTERS, is_word)
}

/// Checks the name that an emitter gives to an event: the same rules as [`check_channel`].
///
/// # Errors
/// [`InvalidName`] with the reason.
pub fn check_event_name(name: &str) -> Result<(), InvalidName> {
    check("event", name, 200, WORD_CHARACTERS, is_word)
}

const WORD_CHARACTERS: &str = "a-z, A-Z, 0-9 and . _ - : @ /";

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-:@/".contains(c)
}

/// The attributes in the order in which they are written.
#[derive(Serialize, Deserialize)]
struct Body {
    specversion: String,
    id: String,
    source: String,
    r#type: String,
    subject: String,
    time: Time,
    #[serde(default = "json")]
    datacontenttype: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rank: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    job: Option<String>,
    #[serde(default = "null")]
    data: Box<RawValue>,
}

fn json() -> String {
    JSON.to_owned()
}

fn null() -> Box<RawValue> {
    RawValue::NULL.to_owned()
}

impl From<Event> for Body {
    fn from(event: Event) -> Self {
        let channel = event.channel().map(str::to_owned);
        Self {
            specversion: SPEC.to_owned(),
            id: event.id,
            source: event.source,
            r#type: event.what.to_string(),
            subject: event.subject,
            time: Time(event.time_ms),
            datacontenttype: json(),
            kind: event.kind,
            queue: event.queue,
            attempt: event.attempt,
            rank: event.rank,
            owner: event.owner,
            channel,
            event: event.event,
            job: event.job,
            data: event.data,
        }
    }
}

impl TryFrom<Body> for Event {
    type Error = Malformed;

    fn try_from(body: Body) -> Result<Self, Malformed> {
        if body.specversion != SPEC {
            return Err(malformed("its specversion is not 1.0"));
        }
        if body.datacontenttype != JSON {
            return Err(malformed("its data is not JSON"));
        }
        if !is_id(&body.id) {
            return Err(malformed("its id is not 2 to 64 of a-z, A-Z, 0-9, - and _"));
        }
        let what = EventKind::read(body.r#type);
        let texts = [&body.kind, &body.queue, &body.owner, &body.job];
        let longest = texts.into_iter().flatten().chain([&body.subject, &body.source]);
        if body.subject.is_empty() || longest.map(String::len).max() > Some(1024) {
            return Err(malformed(
                "its subject is empty, or an attribute has more than 1024 bytes",
            ));
        }
        if is_too_deep(body.data.get().as_bytes(), DEEPEST) {
            return Err(malformed("its data has more than 128 levels"));
        }
        match &what {
            EventKind::Channel => {
                let named = check_channel(&body.subject);
                let named =
                    named.and_then(|()| body.event.as_deref().map_or(Ok(()), check_event_name));
                named.map_err(|error| malformed(&error.to_string()))?;
            }
            EventKind::Other(word) if !word.starts_with("forebay.") => {
                return Err(malformed("its type is not one of ours"));
            }
            _ => {}
        }
        Ok(Self {
            id: body.id,
            source: body.source,
            what,
            subject: body.subject,
            time_ms: body.time.0,
            kind: body.kind,
            queue: body.queue,
            attempt: body.attempt,
            rank: body.rank,
            owner: body.owner,
            event: body.event,
            job: body.job,
            data: body.data,
        })
    }
}

fn malformed(because: &str) -> Malformed {
    Malformed { because: because.to_owned() }
}

/// Milliseconds since the epoch, as RFC 3339 spells them.
struct Time(u64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = UNIX_EPOCH + Duration::from_millis(self.0.min(LAST_MS));
        serializer.collect_str(&humantime::format_rfc3339_millis(time))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)?;
        Ok(Self(to_ms(time)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn body() -> Value {
        json!({
            "specversion": "1.0", "id": "0199e0a8-7c00-7000-8000-000000000002",
            "source": "/forebay/shop/node-1/42", "type": "forebay.job.started", "subject": "7",
            "time": "2026-11-22T13:00:00.123Z",
        })
    }

    fn with(name: &str, value: Value) -> Result<Event, Malformed> {
        let mut body = body();
        body[name] = value;
        Event::decode(body.to_string().as_bytes())
    }

    #[test]
    fn what_is_optional_may_be_missing() {
        let event = Event::decode(body().to_string().as_bytes()).unwrap();
        assert_eq!((event.what.clone(), event.job_id()), (EventKind::Started, Some("7")));
        assert_eq!((event.data.get(), event.attempt), ("null", None));
        assert_eq!(event.time_ms, 1_795_352_400_123);
    }

    #[test]
    fn attributes_and_types_of_a_newer_version_are_no_fault() {
        assert!(with("severity", json!("high")).is_ok());
        let event = with("type", json!("forebay.job.cancelled")).unwrap();
        assert_eq!(event.what, EventKind::Other("forebay.job.cancelled".to_owned()));
        assert_eq!((event.what.word(), event.job_id()), ("cancelled", Some("7")));
    }

    #[test]
    fn what_a_stranger_wrote_is_refused_with_the_reason() {
        for (name, value, reason) in [
            ("specversion", json!("0.3"), "specversion"),
            ("id", json!("a\nb"), "id"),
            ("id", json!("x".repeat(65)), "id"),
            ("id", json!(7), "invalid type"),
            ("subject", json!(""), "subject"),
            ("source", json!("x".repeat(1025)), "1024"),
            ("type", json!("com.example.sold"), "type"),
            ("time", json!("yesterday"), ""),
            ("datacontenttype", json!("text/html"), "data"),
            ("attempt", json!(-1), "invalid value"),
        ] {
            let error = with(name, value).unwrap_err().to_string();
            assert!(error.contains(reason), "{name}: {error}");
        }
        let mut channel = body();
        (channel["type"], channel["subject"]) = (json!("forebay.channel"), json!("a b"));
        assert!(Event::decode(channel.to_string().as_bytes()).is_err());
        assert!(Event::decode(b"").is_err());
        assert!(Event::decode("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn the_rank_says_which_of_two_events_of_a_job_is_later() {
        use EventKind::{Dead, Progress, Queued, Retrying, Started, Succeeded};
        let mut job = Envelope::new("a.b", "q", "{}");
        let mut rank = |attempt, what| {
            job.attempt = attempt;
            Event::of_job(what, &job, null()).rank.unwrap()
        };
        assert!(rank(1, Queued) < rank(1, Started) && rank(1, Started) < rank(1, Progress));
        assert!(rank(1, Progress) < rank(1, Retrying) && rank(1, Retrying) < rank(2, Queued));
        assert!(rank(2, Retrying) < rank(2, Succeeded) && rank(2, Dead) < rank(3, Queued));
        let last = rank(u32::MAX, Dead);
        job.redrives = 1;
        job.attempt = 1;
        assert!(last < Event::queued(&job, None).rank.unwrap());
        job.redrives = u32::MAX;
        assert!(Event::queued(&job, None).rank.unwrap() < 1 << 31);
    }

    #[test]
    fn a_routing_key_names_what_one_may_want_to_bind() {
        let job = Envelope::new("invoice.render", "q", "{}");
        let event = Event::of_job(EventKind::Progress, &job, null());
        assert_eq!(event.routing_key(), "job.progress.invoice.render");
        let foreign = Envelope::new("ä".repeat(127), "q", "{}");
        assert_eq!(Event::started(&foreign).routing_key().len(), 254);
        let told = Event::of_channel("order:7", "paid", null()).unwrap().told_by(&job);
        assert_eq!((told.routing_key(), told.job_id()), ("channel.order:7".into(), Some(&*job.id)));
    }

    #[test]
    fn a_result_is_told_as_it_is_or_by_its_size() {
        let job = Envelope::new("a.b", "q", "{}");
        let told = |result: Option<&[u8]>| Event::succeeded(&job, result).data.get().to_owned();
        assert_eq!(told(Some(br#"{"b":1.0,"a":[ ]}"#)), r#"{"result":{"b":1.0,"a":[ ]}}"#);
        assert_eq!(told(None), r#"{"result":null}"#);
        assert_eq!(told(Some(b"plain text")), r#"{"result":null}"#);
        let long = format!("\"{}\"", "x".repeat(RESULT_LIMIT));
        assert_eq!(told(Some(long.as_bytes())), r#"{"bytes":16386}"#);
    }

    #[test]
    fn data_has_128_levels_at_most() {
        let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let text = format!(r#"{{"a":"{}\\\"[[","b":{}}}"#, "[".repeat(500), nested(127));
        let job = Envelope::new("a.b", "q", "{}");
        for (data, fits) in [(nested(128), true), (nested(129), false), (text, true)] {
            let raw: &RawValue = serde_json::from_str(&data).unwrap();
            assert_eq!(event_data(&raw).is_ok(), fits, "{data}");
            let event = Event::of_job(EventKind::Progress, &job, raw.to_owned());
            assert_eq!(Event::decode(&event.encode()).is_ok(), fits, "{data}");
            // Its level among the data is one more.
            let done = Event::succeeded(&job, Some(data.as_bytes()));
            assert!(done.data.get().contains("bytes"), "{data}");
        }
        let done = Event::succeeded(&job, Some(nested(127).as_bytes()));
        assert!(done.data.get().contains("result"));
        assert!(Event::decode(&done.encode()).is_ok());
    }

    #[test]
    fn channels_are_words() {
        for name in ["", "a b", "ä", "a\n", &"x".repeat(201)] {
            assert!(Event::of_channel(name, "e", null()).is_err(), "{name}");
            assert!(Event::of_channel("c", name, null()).is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            _ = Event::decode(&bytes);
        }

        #[test]
        fn what_is_written_is_read_again(subject in "\\PC{1,80}", owner in "\\PC{0,40}") {
            let mut job = Envelope::new("a.b", "q", "{}");
            (job.id, job.owner) = (subject, Some(owner));
            let data = event_data(&json!({ "pages": [1, 2.5, null] })).unwrap();
            let event = Event::of_job(EventKind::Succeeded, &job, data);
            let read = Event::decode(&event.encode()).unwrap();
            prop_assert_eq!(read.encode(), event.encode());
            prop_assert_eq!((read.subject, read.owner), (event.subject, event.owner));
        }
    }
}
