//! How a value of the manifest is read: texts, numbers, durations, sizes.
//! In: one TOML value. Out: the Rust value, or what is wrong and how to write it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use forebay_producer::program;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is wrong with a value, as the end of "`key` in [section] …", and how to mend it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) what: String,
    pub(super) remedy: String,
}

pub(super) type Read<T> = Result<T, Wrong>;

pub(super) fn wrong(what: impl Into<String>, remedy: impl Into<String>) -> Wrong {
    Wrong { what: what.into(), remedy: remedy.into() }
}

pub(super) fn text(value: &DeValue<'_>) -> Read<String> {
    match value {
        DeValue::String(text) if text.is_empty() => Err(wrong("is empty", "give it a value")),
        DeValue::String(text) => Ok(text.clone().into_owned()),
        other => Err(unlike(other, "a text", "put it in quotes")),
    }
}

pub(super) fn flag(value: &DeValue<'_>) -> Read<bool> {
    value.as_bool().ok_or_else(|| unlike(value, "true or false", "write true or false"))
}

/// A whole number within `range`.
pub(super) fn number(value: &DeValue<'_>, range: RangeInclusive<u64>) -> Read<u64> {
    let allowed = format!("write a whole number from {} to {}", range.start(), range.end());
    let Some(integer) = value.as_integer() else {
        return Err(unlike(value, "a whole number", allowed));
    };
    match u64::from_str_radix(integer.as_str(), integer.radix()) {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(wrong(format!("is {integer}"), allowed)),
    }
}

/// A number of at least `least`, with or without a fraction.
pub(super) fn decimal(value: &DeValue<'_>, least: f64) -> Read<f64> {
    let allowed = format!("write a number of {least} or more");
    let digits = match value {
        DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str(),
        DeValue::Float(float) => float.as_str(),
        other => return Err(unlike(other, "a number", allowed)),
    };
    match digits.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= least => Ok(number),
        _ => Err(wrong(format!("is {digits}"), allowed)),
    }
}

/// `"30s"`, `"500ms"`, `"1h30m"`.
pub(super) fn duration(value: &DeValue<'_>) -> Read<Duration> {
    let form = r#"write it with its unit, as "500ms", "30s" or "1h30m""#;
    let DeValue::String(text) = value else {
        return Err(unlike(value, "a duration", form));
    };
    let duration = humantime::parse_duration(text)
        .map_err(|error| wrong(format!("is {text:?}, which is no duration ({error})"), form))?;
    if duration.is_zero() {
        return Err(wrong("is zero", "write a longer one, or leave the key out"));
    }
    Ok(duration)
}

/// `"10MB"` is ten million bytes, `"10MiB"` is 10 × 2^20.
pub(super) fn size(value: &DeValue<'_>) -> Read<usize> {
    let form = r#"write it with its unit, as "500kB", "10MB" or "16MiB""#;
    let DeValue::String(text) = value else {
        return Err(unlike(value, "a size", form));
    };
    program::size(text).ok_or_else(|| wrong(format!("is {text:?}, which is no size"), form))
}

/// An array of texts with at least one entry.
pub(super) fn texts(value: &DeValue<'_>) -> Read<Vec<String>> {
    let form = r#"write a list of texts, as ["a", "b"]"#;
    let DeValue::Array(array) = value else {
        return Err(unlike(value, "a list", form));
    };
    if array.is_empty() {
        return Err(wrong("is an empty list", form));
    }
    let entries = array.iter().map(|entry| match entry.get_ref() {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        other => Err(wrong(format!("holds {}", described(other)), form)),
    });
    entries.collect()
}

/// A table of texts.
pub(super) fn pairs(value: &DeValue<'_>) -> Read<BTreeMap<String, String>> {
    let form = r#"write a table of texts, as { NAME = "value" }"#;
    let DeValue::Table(table) = value else {
        return Err(unlike(value, "a table", form));
    };
    let entries = table.iter().map(|(name, value)| match value.get_ref() {
        DeValue::String(text) => {
            Ok((name.get_ref().clone().into_owned(), text.clone().into_owned()))
        }
        other => Err(wrong(format!("has {} for `{}`", described(other), name.get_ref()), form)),
    });
    entries.collect()
}

pub(super) fn table<'v, 't>(value: &'v Spanned<DeValue<'t>>) -> Read<&'v DeTable<'t>> {
    let value = value.get_ref();
    value.as_table().ok_or_else(|| unlike(value, "a table", "write it as a [section]"))
}

fn unlike(value: &DeValue<'_>, wanted: &str, remedy: impl Into<String>) -> Wrong {
    wrong(format!("is {}, not {wanted}", described(value)), remedy)
}

fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(_) => "a text".to_owned(),
        DeValue::Integer(integer) => format!("the number {integer}"),
        DeValue::Float(float) => format!("the number {float}"),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T>(toml: &str, read: impl Fn(&DeValue<'_>) -> Read<T>) -> Read<T> {
        read(DeValue::parse(toml).unwrap().get_ref())
    }

    #[test]
    fn durations_need_a_unit() {
        let cases = [
            (r#""30s""#, Some(30_000)),
            (r#""500ms""#, Some(500)),
            (r#""1h30m""#, Some(5_400_000)),
            (r#""1h 30m""#, Some(5_400_000)),
            (r#""30""#, None),
            (r#""0s""#, None),
            (r#""-1s""#, None),
            (r#""""#, None),
            ("30", None),
        ];
        for (toml, millis) in cases {
            let duration = read(toml, duration).ok().map(|duration| duration.as_millis());
            assert_eq!(duration, millis, "{toml}");
        }
    }

    #[test]
    fn sizes_need_a_unit() {
        for (toml, bytes) in [(r#""10MB""#, Some(10_000_000)), (r#""10""#, None), ("10", None)] {
            assert_eq!(read(toml, size).ok(), bytes, "{toml}");
        }
    }

    #[test]
    fn numbers_are_kept_within_their_range() {
        let count = |toml| read(toml, |value| number(value, 1..=100)).ok();
        assert_eq!(count("16"), Some(16));
        assert_eq!(count("0x10"), Some(16));
        assert_eq!(count("1_0"), Some(10));
        assert_eq!((count("0"), count("101"), count("-1"), count("1.5")), (None, None, None, None));
        assert_eq!(count(r#""16""#), None);
        let rate = |toml| read(toml, |value| decimal(value, 0.5)).ok();
        assert_eq!((rate("2"), rate("0.5"), rate("0.4")), (Some(2.0), Some(0.5), None));
        assert_eq!((rate("nan"), rate("inf")), (None, None));
    }

    #[test]
    fn a_wrong_type_is_named_with_what_to_write() {
        assert_eq!(
            read("30", duration).unwrap_err(),
            wrong(
                "is the number 30, not a duration",
                r#"write it with its unit, as "500ms", "30s" or "1h30m""#
            )
        );
        assert_eq!(read(r#"["a", 1]"#, texts).unwrap_err().what, "holds the number 1");
        assert_eq!(read("{ A = 1 }", pairs).unwrap_err().what, "has the number 1 for `A`");
        assert_eq!(read("[]", texts).unwrap_err().what, "is an empty list");
    }
}
