//! Cuts a byte stream into AMQP frames, for a proxy that treats some of them in its own way.
//! In: bytes as they come. Out: whole frames (AMQP 0-9-1, section 2.3.5).

use std::ops::Range;

/// `AMQP0091`, with which a client begins.
const GREETING: usize = 8;
/// Type, channel and size stand before a frame's payload, one byte after it.
const AROUND: usize = 8;
const METHOD: u8 = 1;
/// Header and body of a message.
const CONTENT: [u8; 2] = [2, 3];
const CONSUME: [u8; 4] = [0, 60, 0, 20];
const DELIVER: [u8; 4] = [0, 60, 0, 60];
const CLOSE_CHANNEL: [u8; 4] = [0, 20, 0, 40];
const ACK: [u8; 4] = [0, 60, 0, 80];
const CANCEL: [u8; 4] = [0, 60, 0, 30];
const DECLARE: [u8; 4] = [0, 50, 0, 10];
/// Where the name of a queue to be declared begins, with its length.
const DECLARED: usize = 13;
const PASSIVE: u8 = 1;

/// One frame on its way through a [`Proxy`](super::Proxy).
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    bytes: &'a [u8],
    from_client: bool,
}

/// What a [`Proxy`](super::Proxy) does with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meddle {
    /// Forwards it.
    Pass,
    /// Throws it away; the connection stays open.
    Drop,
    /// Forwards it twice.
    Repeat,
    /// Cuts the connection instead of forwarding it.
    Cut,
}

impl Frame<'_> {
    /// Whether a consumer acknowledges deliveries with it.
    pub fn is_ack(&self) -> bool {
        self.from_client && self.is(ACK)
    }

    /// Whether the broker confirms publishes with it.
    pub fn is_confirm(&self) -> bool {
        !self.from_client && self.is(ACK)
    }

    /// Whether the broker ends a consumer with it.
    pub fn is_cancel(&self) -> bool {
        !self.from_client && self.is(CANCEL)
    }

    /// The queue that a client declares with it; one that is only looked at is not declared.
    pub fn declares(&self) -> Option<&str> {
        let named = self.bytes.get(DECLARED..).filter(|_| self.from_client && self.is(DECLARE));
        let (length, named) = named?.split_first()?;
        let (name, flags) = named.split_at_checked(usize::from(*length))?;
        let passive = flags.first()? & PASSIVE != 0;
        std::str::from_utf8(name).ok().filter(|_| !passive)
    }

    /// Whether a client wants to consume with it.
    pub fn is_consume(&self) -> bool {
        self.from_client && self.is(CONSUME)
    }

    /// Whether a client closes a channel with it.
    pub fn is_channel_close(&self) -> bool {
        self.from_client && self.is(CLOSE_CHANNEL)
    }

    /// Whether the broker delivers a message with it: the beginning, the header or the body.
    pub fn is_delivery(&self) -> bool {
        !self.from_client && (self.is(DELIVER) || CONTENT.contains(&self.bytes[0]))
    }

    /// The channel that it belongs to.
    pub fn channel(&self) -> u16 {
        u16::from_be_bytes([self.bytes[1], self.bytes[2]])
    }

    /// Class and method, as AMQP numbers them, if it is a method: `(60, 21)` is `basic.consume-ok`.
    pub fn method(&self) -> Option<(u16, u16)> {
        let number =
            |at: usize| Some(u16::from_be_bytes([*self.bytes.get(at)?, *self.bytes.get(at + 1)?]));
        (self.bytes[0] == METHOD).then_some(())?;
        Some((number(7)?, number(9)?))
    }

    fn is(&self, method: [u8; 4]) -> bool {
        self.bytes[0] == METHOD && self.bytes.get(7..11) == Some(&method)
    }
}

/// Collects what has come of one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    greeted: bool,
}

impl Frames {
    /// For the broker's direction, which begins without a greeting.
    pub(super) fn from_server() -> Self {
        Self { greeted: true, ..Self::default() }
    }

    /// Whether the bytes begin as an AMQP client does.
    pub(super) fn begin(bytes: &[u8]) -> bool {
        bytes.starts_with(b"AMQP")
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The whole frames that are there, each passed to `see`; what it answers is carried out.
    /// Returns what is to be forwarded, and whether the connection is to be cut after that.
    pub(super) fn take(
        &mut self,
        from_client: bool,
        see: impl Fn(&Frame<'_>) -> Meddle,
    ) -> (Vec<u8>, bool) {
        let (mut out, mut at, mut cut) = (Vec::with_capacity(self.buffer.len()), 0, false);
        while let Some(next) = self.next(at) {
            let bytes = &self.buffer[next.clone()];
            at = next.end;
            if !self.greeted {
                self.greeted = true;
                out.extend_from_slice(bytes);
                continue;
            }
            match see(&Frame { bytes, from_client }) {
                Meddle::Pass => out.extend_from_slice(bytes),
                Meddle::Drop => {}
                Meddle::Repeat => {
                    out.extend_from_slice(bytes);
                    out.extend_from_slice(bytes);
                }
                Meddle::Cut => {
                    cut = true;
                    break;
                }
            }
        }
        self.buffer.drain(..at);
        (out, cut)
    }

    fn next(&self, at: usize) -> Option<Range<usize>> {
        let rest = &self.buffer[at..];
        let length = if self.greeted {
            let size = rest.get(3..7)?;
            AROUND + u32::from_be_bytes([size[0], size[1], size[2], size[3]]) as usize
        } else {
            GREETING
        };
        (rest.len() >= length).then(|| at..at + length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A method frame on channel 3 with two bytes of arguments.
    fn method(class: u8, method: u8) -> Vec<u8> {
        vec![1, 0, 3, 0, 0, 0, 6, 0, class, 0, method, 7, 7, 0xce]
    }

    fn all(stream: &[u8], step: usize, see: impl Fn(&Frame<'_>) -> Meddle) -> (Vec<u8>, bool) {
        let mut frames = Frames::default();
        let mut out = Vec::new();
        for part in stream.chunks(step) {
            frames.add(part);
            let (more, cut) = frames.take(true, &see);
            out.extend(more);
            if cut {
                return (out, true);
            }
        }
        (out, false)
    }

    #[test]
    fn a_stream_passes_unchanged_however_it_is_cut_up() {
        let stream = [b"AMQP\0\0\x09\x01".to_vec(), method(60, 80), method(10, 11)].concat();
        for step in 1..=stream.len() {
            assert_eq!(all(&stream, step, |_| Meddle::Pass), (stream.clone(), false), "{step}");
        }
    }

    #[test]
    fn acks_are_told_apart_and_dropped_repeated_or_answered_by_a_cut() {
        let greeting = b"AMQP\0\0\x09\x01".to_vec();
        let (ack, other) = (method(60, 80), method(60, 40));
        let stream = [greeting.clone(), other.clone(), ack.clone(), other.clone()].concat();
        let on_ack =
            |meddle| move |frame: &Frame<'_>| if frame.is_ack() { meddle } else { Meddle::Pass };
        let without = [greeting.clone(), other.clone(), other.clone()].concat();
        assert_eq!(all(&stream, 5, on_ack(Meddle::Drop)), (without, false));
        let twice = [greeting.clone(), other.clone(), ack.clone(), ack, other.clone()].concat();
        assert_eq!(all(&stream, 5, on_ack(Meddle::Repeat)), (twice, false));
        assert_eq!(all(&stream, 5, on_ack(Meddle::Cut)), ([greeting, other].concat(), true));
    }
}
