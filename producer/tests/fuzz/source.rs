//! Makes values out of a fuzzer's bytes.
//! In: bytes, taken from the front; nothing but zeros once they are used up. Out: AMQP values and
//! tables of any shape.

use lapin::types::{AMQPValue, DecimalValue, FieldTable, ShortString};

/// Names that mean something to us or to the broker.
const NAMES: [&str; 26] = [
    "forebay-queue",
    "forebay-attempt",
    "forebay-crashes",
    "forebay-graces",
    "forebay-deferrals",
    "forebay-redrives",
    "forebay-failures",
    "forebay-expires-at",
    "forebay-published-at",
    "forebay-idempotency-key",
    "forebay-owner",
    "forebay-reason",
    "forebay-dead-at",
    "forebay-omitted",
    "forebay-later",
    "traceparent",
    "tracestate",
    "x-death",
    "x-delivery-count",
    "x-acquired-count",
    "CC",
    "BCC",
    "reason",
    "queue",
    "time",
    "message",
];

/// Texts that mean something.
const TEXTS: [&str; 12] = [
    "",
    "0",
    "-1",
    "18446744073709551616",
    "failed",
    "mail",
    "Not A Queue",
    "rejected",
    "1e3",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "a=b,c=d",
    "\u{feff}é\0",
];

#[derive(Debug)]
pub(crate) struct Source<'a>(pub(crate) &'a [u8]);

impl Source<'_> {
    pub(crate) fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let there = N.min(self.0.len());
        bytes[..there].copy_from_slice(&self.0[..there]);
        self.0 = &self.0[there..];
        bytes
    }

    pub(crate) fn some(&mut self) -> Vec<u8> {
        let most = usize::from(self.byte());
        let (some, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        some.to_vec()
    }

    /// A text as the client library could have read it.
    pub(crate) fn text(&mut self) -> String {
        match self.byte() {
            known @ 0..12 => TEXTS[usize::from(known)].to_owned(),
            long @ 12..16 => "é".repeat(usize::from(long) * 3_000),
            _ => String::from_utf8_lossy(&self.some()).into_owned(),
        }
    }

    /// At most 255 bytes.
    pub(crate) fn short(&mut self) -> ShortString {
        let mut text = self.text();
        let end = (0..=255).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        text.truncate(end.min(text.len()));
        ShortString::from(text)
    }

    pub(crate) fn table(&mut self, depth: u8) -> FieldTable {
        let mut table = FieldTable::default();
        for _ in 0..self.byte() % 24 {
            let name = match self.byte() {
                known @ 0..200 => NAMES[usize::from(known) % NAMES.len()].into(),
                _ => self.short(),
            };
            let value = self.value(depth);
            table.insert(name, value);
        }
        table
    }

    /// Those that lie within each other at most so deep.
    pub(crate) fn value(&mut self, depth: u8) -> AMQPValue {
        match self.byte() % 18 {
            0 => AMQPValue::Boolean(self.byte() > 127),
            1 => AMQPValue::ShortShortInt(i8::from_be_bytes(self.bytes())),
            2 => AMQPValue::ShortShortUInt(self.byte()),
            3 => AMQPValue::ShortInt(i16::from_be_bytes(self.bytes())),
            4 => AMQPValue::ShortUInt(u16::from_be_bytes(self.bytes())),
            5 => AMQPValue::LongInt(i32::from_be_bytes(self.bytes())),
            6 => AMQPValue::LongUInt(u32::from_be_bytes(self.bytes())),
            7 => AMQPValue::LongLongInt(i64::from_be_bytes(self.bytes())),
            8 => AMQPValue::Float(f32::from_be_bytes(self.bytes())),
            9 => AMQPValue::Double(f64::from_be_bytes(self.bytes())),
            10 => {
                let (scale, value) = (self.byte(), u32::from_be_bytes(self.bytes()));
                AMQPValue::DecimalValue(DecimalValue { scale, value })
            }
            11 => AMQPValue::LongString(self.some().into()),
            12 => AMQPValue::LongString(self.text().into()),
            13 => AMQPValue::Timestamp(u64::from_be_bytes(self.bytes())),
            14 => AMQPValue::ByteArray(self.some().into()),
            15 if depth > 0 => {
                let items: Vec<_> = (0..self.byte() % 30).map(|_| self.value(depth - 1)).collect();
                AMQPValue::FieldArray(items.into())
            }
            16 if depth > 0 => AMQPValue::FieldTable(self.table(depth - 1)),
            _ => AMQPValue::Void,
        }
    }
}
