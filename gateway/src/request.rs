//! What a client asks for, the same on every transport.
//! In: a JSON object. Out: a [`Request`], or a refusal that names the field. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use forebay_producer::{check_kind, check_queue_name};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::refusal::{Code, Refusal};

/// The longest job id and the longest key.
const LONGEST: usize = 255;

/// One thing that a client asks for.
#[derive(Debug)]
pub(crate) enum Request {
    Publish(Publish),
    Subscribe(Subscribe),
    Unsubscribe(Vec<Topic>),
    Job(String),
}

/// A job to be published.
#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) kind: String,
    /// JSON, as the client wrote it.
    pub(crate) payload: Bytes,
    pub(crate) key: Option<String>,
    pub(crate) queue: Option<String>,
    pub(crate) delay_ms: Option<u64>,
    pub(crate) priority: Option<u8>,
}

/// What is to be followed, and from where on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Subscribe {
    pub(crate) topics: Vec<Topic>,
    pub(crate) from: Whence,
}

/// Something that can be followed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    Job(String),
    Kind(String),
    Channel(String),
}

/// From where on it is followed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Whence {
    #[default]
    Now,
    Beginning,
    /// What came after this token.
    After(String),
}

impl Whence {
    pub(crate) fn read(text: &str) -> Self {
        match text {
            "now" => Self::Now,
            "beginning" => Self::Beginning,
            token => Self::After(token.to_owned()),
        }
    }
}

/// The fields of a request; each is taken out once, and none may be left.
#[derive(Debug)]
pub(crate) struct Fields {
    left: BTreeMap<String, Box<RawValue>>,
    known: Vec<&'static str>,
}

impl Fields {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn parse(text: &str) -> Result<Self, Refusal> {
        let left = serde_json::from_str(text).map_err(|error| {
            Refusal::bad(format!("that is no JSON object: {error}"), "send one JSON object")
        })?;
        Ok(Self { left, known: Vec::new() })
    }

    /// A field as it was written.
    pub(crate) fn raw(&mut self, name: &'static str) -> Option<Box<RawValue>> {
        self.known.push(name);
        self.left.remove(name)
    }

    /// A field that may be left out, or be null.
    pub(crate) fn take<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        form: &str,
    ) -> Result<Option<T>, Refusal> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        serde_json::from_str(raw.get()).map_err(|_| wrong_form(name, form))
    }

    /// A field that has to be there.
    pub(crate) fn need<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        form: &str,
    ) -> Result<T, Refusal> {
        let found = self.take(name, form)?;
        found.ok_or_else(|| Refusal::bad(format!("`{name}` is missing"), format!("write {form}")))
    }

    /// Refuses what nobody has asked for: a misspelt field must not be ignored.
    pub(crate) fn finish(self) -> Result<(), Refusal> {
        match self.left.into_keys().next() {
            None => Ok(()),
            Some(unknown) => Err(Refusal::bad(
                format!("there is no field `{}` here", shown(&unknown)),
                format!("the fields are {}", self.known.join(", ")),
            )),
        }
    }
}

fn wrong_form(name: &str, form: &str) -> Refusal {
    Refusal::bad(format!("`{name}` has the wrong form"), format!("write {form}"))
}

impl Request {
    /// Reads what a verb is to do.
    pub(crate) fn read(verb: &str, mut fields: Fields) -> Result<Self, Refusal> {
        let request = match verb {
            "publish" => Self::Publish(Publish::take(&mut fields)?),
            "subscribe" => {
                let topics = topics(&mut fields)?;
                let from = fields.take("from", FROM)?.unwrap_or_default();
                Self::Subscribe(Subscribe { topics, from })
            }
            "unsubscribe" => Self::Unsubscribe(topics(&mut fields)?),
            "job" => {
                let id: String = fields.need("job", JOB)?;
                check_id("job", &id)?;
                Self::Job(id)
            }
            other => {
                return Err(Refusal::new(
                    Code::Unknown,
                    format!("there is no verb `{}`", shown(other)),
                    "the verbs are publish, subscribe, unsubscribe and job",
                ));
            }
        };
        fields.finish()?;
        Ok(request)
    }
}

const JOB: &str = "the id of a job, as the answer to publish has it";
const FROM: &str = "a token, \"beginning\" or \"now\"";

impl<'de> serde::Deserialize<'de> for Whence {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::read(&text))
    }
}

impl Publish {
    fn take(fields: &mut Fields) -> Result<Self, Refusal> {
        let kind: String = fields.need("kind", "the kind of job, as \"invoice.render\"")?;
        check_kind(&kind).map_err(|error| Refusal::bad(error.to_string(), "correct `kind`"))?;
        let payload = fields.raw("payload").ok_or_else(|| {
            Refusal::bad("`payload` is missing", "write what the job is to work on; null will do")
        })?;
        let mut publish = Self {
            kind,
            payload: Bytes::from(String::from(Box::<str>::from(payload))),
            key: None,
            queue: None,
            delay_ms: None,
            priority: None,
        };
        if let Some(options) = fields.take::<Box<RawValue>>("options", "an object")? {
            publish.read_options(options.get())?;
        }
        Ok(publish)
    }

    fn read_options(&mut self, options: &str) -> Result<(), Refusal> {
        let mut options = Fields::parse(options)
            .map_err(|_| Refusal::bad("`options` has the wrong form", "write an object"))?;
        self.key = options.take("key", "a text that is yours for this piece of work")?;
        self.queue = options.take("queue", "the name of a queue")?;
        let delay: Option<Whole> = options.take("delay_ms", "milliseconds, a whole number")?;
        self.delay_ms = delay.map(|Whole(ms)| ms);
        self.priority = read_priority(&mut options)?;
        options.finish()?;
        if let Some(key) = &self.key {
            check_id("key", key)?;
        }
        if let Some(queue) = &self.queue {
            check_queue_name(queue)
                .map_err(|error| Refusal::bad(error.to_string(), "correct `queue`"))?;
        }
        Ok(())
    }
}

fn read_priority(options: &mut Fields) -> Result<Option<u8>, Refusal> {
    let (name, form) = ("priority", "a whole number from 0 to 255");
    let Some(Whole(number)) = options.take(name, form)? else { return Ok(None) };
    u8::try_from(number).map(Some).map_err(|_| wrong_form(name, form))
}

/// A number that is whole, however it is written: Python and others make `5.0` of a sum.
struct Whole(u64);

impl<'de> serde::Deserialize<'de> for Whole {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        // A float without a fraction is written without one; to add 0 makes 0 of -0.
        let written = || (number.as_f64()? + 0.0).to_string().parse().ok();
        let whole = number.as_u64().or_else(written);
        whole.map(Self).ok_or_else(|| serde::de::Error::custom("no whole number"))
    }
}

fn topics(fields: &mut Fields) -> Result<Vec<Topic>, Refusal> {
    let form = "a text, or a list of texts";
    let mut topics = Vec::new();
    for (name, make) in [
        ("job", Topic::Job as fn(String) -> Topic),
        ("kind", Topic::Kind),
        ("channel", Topic::Channel),
    ] {
        if let Some(OneOrMore(names)) = fields.take(name, form)? {
            topics.extend(names.into_iter().map(make));
        }
    }
    topics.iter().try_for_each(Topic::check)?;
    if topics.is_empty() {
        return Err(Refusal::bad("nothing to follow is named", "name a job, a kind or a channel"));
    }
    Ok(topics)
}

impl Topic {
    /// Whether its name can be one.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        match self {
            Self::Job(id) => check_id("job", id),
            Self::Kind(kind) => {
                check_kind(kind).map_err(|error| Refusal::bad(error.to_string(), "correct `kind`"))
            }
            Self::Channel(channel) => check_id("channel", channel),
        }
    }
}

/// `"a"` or `["a", "b"]`.
struct OneOrMore(Vec<String>);

impl<'de> serde::Deserialize<'de> for OneOrMore {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        match value {
            serde_json::Value::String(one) => Ok(Self(vec![one])),
            more => Vec::deserialize(more).map(Self).map_err(serde::de::Error::custom),
        }
    }
}

fn check_id(what: &str, id: &str) -> Result<(), Refusal> {
    if id.is_empty() || id.chars().count() > LONGEST || id.chars().any(char::is_control) {
        return Err(Refusal::bad(
            format!("`{what}` is empty, has more than {LONGEST} or control characters"),
            format!("correct `{what}`"),
        ));
    }
    Ok(())
}

/// The beginning of a text that somebody else has made up.
fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(verb: &str, text: &str) -> Result<Request, String> {
        let request = Fields::parse(text).and_then(|fields| Request::read(verb, fields));
        request.map_err(|error| error.to_string())
    }

    #[test]
    fn a_publish_keeps_the_payload_as_it_was_written() {
        let text = r#"{"kind":"note.take","payload":{"b":1.0, "a":18446744073709551616},
            "options":{"key":"k","queue":"notes","delay_ms":5,"priority":9}}"#;
        let Ok(Request::Publish(publish)) = read("publish", text) else { panic!() };
        assert_eq!(publish.payload, r#"{"b":1.0, "a":18446744073709551616}"#);
        assert_eq!((publish.kind.as_str(), publish.key.as_deref()), ("note.take", Some("k")));
        assert_eq!(publish.queue.as_deref(), Some("notes"));
        assert_eq!((publish.delay_ms, publish.priority), (Some(5), Some(9)));
        let Ok(Request::Publish(bare)) = read("publish", r#"{"kind":"a","payload":null}"#) else {
            panic!()
        };
        assert_eq!((bare.payload.as_ref(), bare.key), (&b"null"[..], None));
    }

    #[test]
    fn a_whole_number_may_be_written_as_a_fraction() {
        let read = |number: &str| {
            let options = format!(r#"{{"delay_ms":{number},"priority":{number}}}"#);
            let text = format!(r#"{{"kind":"a","payload":1,"options":{options}}}"#);
            match read("publish", &text) {
                Ok(Request::Publish(publish)) => Ok((publish.delay_ms, publish.priority)),
                other => Err(format!("{other:?}")),
            }
        };
        for number in ["7", "7.0", "0.7e1"] {
            assert_eq!(read(number), Ok((Some(7), Some(7))), "{number}");
        }
        assert_eq!(read("-0.0"), Ok((Some(0), Some(0))));
        assert_eq!(read("null"), Ok((None, None)));
        for number in ["7.5", "-7.0", "1e300", "\"7\"", "256.0"] {
            assert!(read(number).is_err(), "{number}");
        }
    }

    #[test]
    fn several_things_are_followed_at_once_from_one_token() {
        let text = r#"{"job":["a","b"],"channel":"news","from":"7.id"}"#;
        let Ok(Request::Subscribe(subscribe)) = read("subscribe", text) else { panic!() };
        let (job, channel) = (|id: &str| Topic::Job(id.into()), Topic::Channel("news".into()));
        assert_eq!(subscribe.topics, [job("a"), job("b"), channel]);
        assert_eq!(subscribe.from, Whence::After("7.id".into()));
        for (from, expected) in [
            ("", Whence::Now),
            (r#","from":null"#, Whence::Now),
            (r#","from":"now""#, Whence::Now),
            (r#","from":"beginning""#, Whence::Beginning),
        ] {
            let Ok(Request::Subscribe(read)) =
                read("subscribe", &format!(r#"{{"job":"a"{from}}}"#))
            else {
                panic!()
            };
            assert_eq!(read.from, expected);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (verb, text, words) in [
            ("publish", "", "bad_request: that is no JSON object"),
            ("publish", "[]", "no JSON object"),
            ("publish", "{}", "`kind` is missing"),
            ("publish", r#"{"kind":7,"payload":1}"#, "`kind` has the wrong form"),
            ("publish", r#"{"kind":"a b","payload":1}"#, "it has spaces"),
            ("publish", r#"{"kind":"a"}"#, "`payload` is missing"),
            ("publish", r#"{"kind":"a","payload":1,"queue":"x"}"#, "no field `queue` here; the"),
            ("publish", r#"{"kind":"a","payload":1,"options":[]}"#, "`options` has the wrong"),
            ("publish", r#"{"kind":"a","payload":1,"options":{"key":""}}"#, "`key` is empty"),
            ("publish", r#"{"kind":"a","payload":1,"options":{"queue":"A"}}"#, "queue `A`"),
            ("publish", r#"{"kind":"a","payload":1,"options":{"delay_ms":-1}}"#, "`delay_ms` has"),
            ("publish", r#"{"kind":"a","payload":1,"options":{"priority":256}}"#, "0 to 255"),
            ("publish", r#"{"kind":"a","payload":1,"options":{"delay":1}}"#, "no field `delay`"),
            ("subscribe", "{}", "nothing to follow is named"),
            ("subscribe", r#"{"job":[]}"#, "nothing to follow is named"),
            ("subscribe", r#"{"job":[7]}"#, "`job` has the wrong form"),
            ("subscribe", r#"{"job":""}"#, "`job` is empty"),
            ("subscribe", r#"{"job":"a","from":7}"#, "`from` has the wrong form"),
            ("unsubscribe", r#"{"job":"a","from":"now"}"#, "no field `from`"),
            ("job", "{}", "`job` is missing"),
            ("job", r#"{"job":"a\u0000"}"#, "control characters"),
            ("stop", "{}", "unknown: there is no verb `stop`"),
        ] {
            let error = read(verb, text).unwrap_err();
            assert!(error.contains(words), "{verb} {text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_makes_it_panic(verb in "publish|subscribe|unsubscribe|job|.{0,9}", text in ".{0,200}") {
            _ = read(&verb, &text);
        }

        #[test]
        fn nor_any_object(verb in "publish|subscribe|unsubscribe|job", fields in prop::collection::btree_map(
            "kind|payload|options|job|channel|from|[a-z]{1,3}",
            prop::sample::select(vec!["1", "null", "\"a\"", "[]", "[\"a\"]", "{}", "{\"key\":\"k\"}", "-1e99"]),
            0..6,
        )) {
            let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name:?}:{value}")).collect();
            _ = read(&verb, &format!("{{{}}}", fields.join(",")));
        }
    }
}
