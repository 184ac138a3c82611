//! Durations, sizes, words and lists, as they stand in `gateway.toml`.
//! In: a value. Out: the Rust value, or how to write it.

use std::fmt;
use std::time::Duration;

use forebay_producer::{Declare, program};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// `"30s"`, `"1h30m"`.
pub(super) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    let form = r#"write it with its unit, as "500ms", "30s" or "1h30m""#;
    match humantime::parse_duration(&text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err(D::Error::custom("zero is too short; leave the key out or write more")),
        Err(error) => Err(D::Error::custom(format!("{text:?} is no duration ({error}); {form}"))),
    }
}

/// `"10MB"` is ten million bytes, `"10MiB"` is 10 × 2^20.
pub(super) fn size<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    let text = String::deserialize(from)?;
    program::size(&text).ok_or_else(|| {
        let form = r#"write it with its unit, as "500kB", "10MB" or "16MiB""#;
        D::Error::custom(format!("{text:?} is no size; {form}"))
    })
}

/// `"auto"` or `"never"`.
pub(super) fn declare<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Declare>, D::Error> {
    match String::deserialize(from)?.as_str() {
        "auto" => Ok(Some(Declare::Auto)),
        "never" => Ok(Some(Declare::Never)),
        other => Err(D::Error::custom(format!("{other:?} is neither \"auto\" nor \"never\""))),
    }
}

/// `"a"`, or `["a", "b"]`.
pub(super) fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    from.deserialize_any(OneOrMore)
}

struct OneOrMore;

impl<'de> Visitor<'de> for OneOrMore {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list of texts")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(vec![text.to_owned()])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(text) = list.next_element()? {
            all.push(text);
        }
        Ok(all)
    }
}
