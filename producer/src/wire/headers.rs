//! Reading AMQP header tables that anybody may have written.
//! In: values of any AMQP type. Out: numbers, text, JSON, and the part that may travel on.

use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

/// Why a sender may not set this header.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 128 {
        return Err("a header name has 1 to 128 bytes".to_owned());
    }
    if is_brokers(name) {
        return Err("names that begin with `x-`, `CC` and `BCC` belong to the broker".to_owned());
    }
    if is_ours(name) {
        return Err("names that begin with `forebay-` are set by the publish options".to_owned());
    }
    Ok(())
}

/// Whether a header goes out again with every republish. Not the broker's: a copied
/// `x-delivery-count` is taken for real, a copied `x-death` makes the broker drop the message as a
/// loop, and `CC` multiplies it.
pub(crate) fn travels(name: &str) -> bool {
    !is_brokers(name)
}

/// The table without some headers, and without those that do not travel.
pub(crate) fn travelling(table: &FieldTable, unwanted: &[&str]) -> FieldTable {
    let kept = table.inner().iter().filter(|(name, _)| {
        let name = name.as_str();
        travels(name) && !unwanted.contains(&name)
    });
    kept.map(|(name, value)| (name.clone(), value.clone()))
        .collect::<std::collections::BTreeMap<_, _>>()
        .into()
}

/// The table without one of its headers.
pub(crate) fn without(table: &FieldTable, unwanted: &str) -> FieldTable {
    travelling(table, &[unwanted])
}

/// Whether it belongs to us, in this version or a newer one.
pub(crate) fn is_ours(name: &str) -> bool {
    name.starts_with("forebay-")
}

/// Whether it belongs to the broker.
pub(crate) fn is_brokers(name: &str) -> bool {
    name.starts_with("x-") || name == "CC" || name == "BCC"
}

/// Whether it says yes, whatever type it came as.
pub(crate) fn is_yes(value: &AMQPValue) -> bool {
    match value {
        AMQPValue::Boolean(yes) => *yes,
        value => number(value) == Some(1) || is_text(value, "true"),
    }
}

/// A non-negative number, whatever integer type or text it came as.
pub(crate) fn number(value: &AMQPValue) -> Option<u64> {
    match value {
        AMQPValue::ShortShortInt(n) => u64::try_from(*n).ok(),
        AMQPValue::ShortShortUInt(n) => Some((*n).into()),
        AMQPValue::ShortInt(n) => u64::try_from(*n).ok(),
        AMQPValue::ShortUInt(n) => Some((*n).into()),
        AMQPValue::LongInt(n) => u64::try_from(*n).ok(),
        AMQPValue::LongUInt(n) => Some((*n).into()),
        AMQPValue::LongLongInt(n) => u64::try_from(*n).ok(),
        AMQPValue::Timestamp(n) => Some(*n),
        AMQPValue::Float(n) => whole(f64::from(*n)),
        AMQPValue::Double(n) => whole(*n),
        _ => text(value)?.trim().parse().ok(),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "range is checked")]
fn whole(n: f64) -> Option<u64> {
    (0.0..9.0e15).contains(&n).then_some(n as u64)
}

/// Whether it is this very text.
pub(crate) fn is_text(value: &AMQPValue, text: &str) -> bool {
    matches!(value, AMQPValue::LongString(long) if long.as_bytes() == text.as_bytes())
}

/// Text, whatever it came as; `None` for tables, arrays and nothing.
pub(crate) fn text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        AMQPValue::ByteArray(bytes) => Some(String::from_utf8_lossy(bytes.as_slice()).into_owned()),
        AMQPValue::Boolean(yes) => Some(yes.to_string()),
        AMQPValue::Float(n) => Some(n.to_string()),
        AMQPValue::Double(n) => Some(n.to_string()),
        AMQPValue::FieldTable(_)
        | AMQPValue::FieldArray(_)
        | AMQPValue::DecimalValue(_)
        | AMQPValue::Void => None,
        _ => integer(value).map(|n| n.to_string()),
    }
}

fn integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(n) => Some((*n).into()),
        AMQPValue::ShortInt(n) => Some((*n).into()),
        AMQPValue::LongInt(n) => Some((*n).into()),
        AMQPValue::LongLongInt(n) => Some(*n),
        _ => number(value).and_then(|n| i64::try_from(n).ok()),
    }
}

/// A header value as a person reads it.
pub(crate) fn json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(yes) => json!(yes),
        AMQPValue::Float(n) => json!(n),
        AMQPValue::Double(n) => json!(n),
        AMQPValue::Void => Value::Null,
        AMQPValue::FieldArray(items) => items.as_slice().iter().map(json).collect(),
        AMQPValue::FieldTable(table) => {
            let pairs = table.inner().iter();
            Value::Object(pairs.map(|(name, value)| (name.to_string(), json(value))).collect())
        }
        AMQPValue::DecimalValue(n) => {
            json!(f64::from(n.value) / 10f64.powi(i32::from(n.scale)))
        }
        AMQPValue::LongString(_) | AMQPValue::ShortString(_) | AMQPValue::ByteArray(_) => {
            json!(text(value))
        }
        _ => json!(integer(value)),
    }
}

/// Bytes that a table takes on the wire (AMQP 0-9-1, section 4.2.5.5).
pub(crate) fn table_bytes(table: &FieldTable) -> usize {
    let pairs = table.inner().iter();
    4 + pairs.map(|(name, value)| 1 + name.as_str().len() + value_bytes(value)).sum::<usize>()
}

fn value_bytes(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(items) => 4 + items.as_slice().iter().map(value_bytes).sum::<usize>(),
        AMQPValue::FieldTable(table) => table_bytes(table),
        _ => 8,
    }
}
