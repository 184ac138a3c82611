//! Makes readable what the client library cannot read; pure.
//! In: one frame as the broker sent it. Out: the same frame, so that no message ends the connection,
//! or the process, of whoever receives it.

use std::cmp::Reverse;
use std::ops::Range;

use crate::wire::envelope::OMITTED;
use crate::wire::headers::{is_brokers, is_ours};

/// How many arrays and tables may lie within each other. The client library takes a stack frame for
/// each, its thread has 2 MiB, and one frame has room for 26,000.
pub const DEEPEST: usize = 64;

/// Of so many bytes of names further ones are left out too.
const LONGEST_LIST: usize = 512;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
/// The flag of property `headers`.
const HEADERS: u16 = 1 << 13;
/// Type, channel and size (AMQP 0-9-1, section 2.3.5).
pub(super) const HEAD: usize = 7;

/// What was changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mended {
    /// Texts of which bytes that are no UTF-8 became `?`.
    pub texts: usize,
    /// Arrays and tables, too deep or not to be read, that became byte arrays of what they hold.
    pub nests: usize,
}

/// A frame without some of its headers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shortened {
    /// The frame.
    pub frame: Vec<u8>,
    /// The names of the headers that were left out.
    pub names: String,
}

impl Mended {
    /// Whether anything was changed.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// Whether frames of this type may need it: those that carry a publisher's texts and tables.
pub(super) fn concerns(frame_type: u8) -> bool {
    matches!(frame_type, METHOD | HEADER)
}

/// Mends a whole frame, from its type to its end octet. What does not follow the rules of AMQP is
/// left alone from there on: that is the broker's fault, and no publisher's.
pub fn mend(frame: &mut [u8]) -> Mended {
    let mut mended = Mended::default();
    if frame.len() > HEAD {
        let end = frame.len() - 1;
        let reader = Reader { bytes: &mut frame[..end], at: HEAD, mended: &mut mended };
        _ = reader.frame();
    }
    mended
}

/// Shortens a content header that is longer than any frame may be: the broker has put its own marks
/// beside headers that filled it. Its longest headers are left out, a publisher's before all others,
/// and one that names them is put in their place. `None`: it is no such frame.
pub fn shorten(frame: &[u8], most: usize) -> Option<Shortened> {
    if frame.first() != Some(&HEADER) || frame.len() <= most {
        return None;
    }
    let mut copy = frame[..frame.len() - 1].to_vec();
    let reader = Reader { bytes: &mut copy, at: HEAD, mended: &mut Mended::default() };
    let (table, mut members) = reader.members()?;
    members.sort_by_key(|member| {
        let name = &frame[member.start + 1..][..usize::from(frame[member.start])];
        let system = std::str::from_utf8(name).is_ok_and(|name| is_brokers(name) || is_ours(name));
        (system, Reverse(member.len()))
    });
    let mut left_out: Vec<Range<usize>> = Vec::new();
    let mut names = String::new();
    let mut length = frame.len() + 1 + OMITTED.len() + 5;
    for member in members {
        if length + names.len() <= most {
            break;
        }
        let name = &frame[member.start + 1..][..usize::from(frame[member.start])];
        if names.len() < LONGEST_LIST {
            let comma = if names.is_empty() { "" } else { ", " };
            names.push_str(comma);
            names.push_str(&String::from_utf8_lossy(name));
        }
        length -= member.len();
        left_out.push(member);
    }
    left_out.sort_by_key(|member| member.start);
    let mut kept = Vec::with_capacity(length);
    let mut at = table.start;
    for member in left_out {
        kept.extend_from_slice(&frame[at..member.start]);
        at = member.end;
    }
    kept.extend_from_slice(&frame[at..table.end]);
    kept.push(u8::try_from(OMITTED.len()).ok()?);
    kept.extend_from_slice(OMITTED.as_bytes());
    kept.push(b'S');
    kept.extend_from_slice(&u32::try_from(names.len()).ok()?.to_be_bytes());
    kept.extend_from_slice(names.as_bytes());

    let mut whole = frame[..table.start - 4].to_vec();
    whole.extend_from_slice(&u32::try_from(kept.len()).ok()?.to_be_bytes());
    whole.extend_from_slice(&kept);
    whole.extend_from_slice(&frame[table.end..]);
    let size = u32::try_from(whole.len() - HEAD - 1).ok()?;
    whole[3..HEAD].copy_from_slice(&size.to_be_bytes());
    Some(Shortened { frame: whole, names })
}

/// Whether the broker begins to give back a message with this frame.
pub(super) fn is_return(frame: &[u8]) -> bool {
    frame[0] == METHOD && frame.get(HEAD..HEAD + 4) == Some(&[0, 60, 0, 50])
}

/// Whether these are a message's properties.
pub(super) fn is_header(frame: &[u8]) -> bool {
    frame[0] == HEADER
}

/// The channel of a whole frame.
pub(super) fn channel(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[1], frame[2]])
}

/// The message id in a content header, if there is one.
pub(super) fn message_id(frame: &[u8]) -> Option<Vec<u8>> {
    let mut copy = frame[..frame.len() - 1].to_vec();
    let mut reader = Reader { bytes: &mut copy, at: HEAD, mended: &mut Mended::default() };
    let flags = reader.before_table()?;
    if flags & HEADERS != 0 {
        reader.at = reader.end_of_long()?;
    }
    // delivery-mode, priority, correlation-id, reply-to, expiration
    for (place, property) in b"oosss".iter().enumerate() {
        match property {
            _ if flags & (HEADERS >> 1 >> place) == 0 => {}
            b's' => reader.text()?,
            _ => reader.skip(1)?,
        }
    }
    if flags & (HEADERS >> 6) == 0 {
        return None;
    }
    let [length] = reader.take::<1>()?;
    frame.get(reader.at..reader.at + usize::from(length)).map(<[u8]>::to_vec)
}

/// The longest frame that the broker sends, if this is the frame that says so; 0: as long as we say.
pub(super) fn frame_max(frame: &[u8]) -> Option<usize> {
    // connection.tune: channels, frame size, heartbeat
    let tune = frame.strip_prefix(&[METHOD, 0, 0, 0, 0, 0, 12, 0, 10, 0, 30])?;
    let bytes = tune.get(2..6)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(bytes)).ok()
}

/// Whether this is the frame with which the broker opens the connection.
pub(super) fn lets_us_in(frame: &[u8]) -> bool {
    // connection.open-ok
    frame.starts_with(&[METHOD, 0, 0]) && frame.get(HEAD..HEAD + 4) == Some(&[0, 10, 0, 41])
}

struct Reader<'a> {
    bytes: &'a mut [u8],
    at: usize,
    mended: &'a mut Mended,
}

/// An array or table that is being read.
#[derive(Clone, Copy)]
struct Nest {
    /// Its members have names.
    table: bool,
    end: usize,
}

/// `None` from any of these: it is not as AMQP says.
impl Reader<'_> {
    fn frame(mut self) -> Option<()> {
        match self.bytes[0] {
            METHOD => self.method(),
            HEADER => self.header(),
            _ => None,
        }
    }

    /// The three methods that name what a publisher chose: exchange and routing key.
    fn method(&mut self) -> Option<()> {
        match self.take::<4>()? {
            // basic.return: code, text, exchange, routing key
            [0, 60, 0, 50] => {
                self.skip(2)?;
                self.text()?;
            }
            // basic.deliver: consumer tag, delivery tag, redelivered, exchange, routing key
            [0, 60, 0, 60] => {
                self.text()?;
                self.skip(9)?;
            }
            // basic.get-ok: delivery tag, redelivered, exchange, routing key, count
            [0, 60, 0, 71] => self.skip(9)?,
            _ => return None,
        }
        self.text()?;
        self.text()
    }

    /// A content header: class, weight, body size, flags, and the properties that the flags name.
    fn header(&mut self) -> Option<()> {
        let flags = self.before_table()?;
        if flags & HEADERS != 0 {
            self.table()?;
        }
        // delivery-mode, priority, correlation-id, reply-to, expiration, message-id, timestamp,
        // type, user-id, app-id, cluster-id
        for (place, property) in b"oossssTssss".iter().enumerate() {
            match property {
                _ if flags & (HEADERS >> 1 >> place) == 0 => {}
                b's' => self.text()?,
                b'o' => self.skip(1)?,
                _ => self.skip(8)?,
            }
        }
        Some(())
    }

    /// Reads up to the table of headers: which properties there are.
    fn before_table(&mut self) -> Option<u16> {
        self.skip(12)?;
        let flags = u16::from_be_bytes(self.take()?);
        // content-type, content-encoding
        for flag in [HEADERS << 2, HEADERS << 1] {
            if flags & flag != 0 {
                self.text()?;
            }
        }
        Some(flags)
    }

    /// Where the table of a content header is, and each of its members.
    fn members(mut self) -> Option<(Range<usize>, Vec<Range<usize>>)> {
        if self.before_table()? & HEADERS == 0 {
            return None;
        }
        let end = self.end_of_long()?;
        let table = self.at..end;
        let mut members = Vec::new();
        while self.at < end {
            let start = self.at;
            // Nothing within it is read: whatever it holds counts as one.
            self.member(Nest { table: true, end }, false)?;
            members.push(start..self.at);
        }
        Some((table, members))
    }

    /// A table with all that lies in it, without recursion.
    fn table(&mut self) -> Option<()> {
        let whole = Nest { table: true, end: self.end_of_long()? };
        // What lies in it: nothing, as a rule, and then there is nothing to allocate.
        let mut open: Vec<Nest> = Vec::new();
        // The type octet of the outermost array or table that is open, and its end.
        let mut outermost = (0, 0);
        loop {
            let nest = open.last().copied().unwrap_or(whole);
            if self.at == nest.end {
                match open.pop() {
                    Some(_) => continue,
                    None => return Some(()),
                }
            }
            let type_at =
                self.at + if nest.table { 1 + usize::from(self.bytes[self.at]) } else { 0 };
            match self.member(nest, open.len() + 1 < DEEPEST) {
                Some(None) => {}
                Some(Some(inner)) => {
                    if open.is_empty() {
                        outermost = (type_at, inner.end);
                    }
                    open.push(inner);
                }
                None if open.is_empty() => return None,
                None => {
                    self.as_bytes(outermost.0);
                    self.at = outermost.1;
                    open.clear();
                }
            }
        }
    }

    /// One member of an array or a table: what is to be read next, if it holds others.
    fn member(&mut self, of: Nest, may_hold: bool) -> Option<Option<Nest>> {
        if of.table {
            self.text()?;
        }
        let type_at = self.at;
        let [type_of] = self.take::<1>()?;
        let end = match type_of {
            b'V' => self.at,
            b't' | b'b' | b'B' => self.at + 1,
            b's' | b'u' | b'U' => self.at + 2,
            b'I' | b'i' | b'f' => self.at + 4,
            b'D' => self.at + 5,
            b'L' | b'l' | b'd' | b'T' => self.at + 8,
            b'S' | b'x' | b'A' | b'F' => self.end_of_long()?,
            _ => return None,
        };
        if end > of.end {
            return None;
        }
        if matches!(type_of, b'A' | b'F') {
            if may_hold {
                return Some(Some(Nest { table: type_of == b'F', end }));
            }
            self.as_bytes(type_at);
        }
        self.at = end;
        Some(None)
    }

    /// A byte array is written as an array or a table is: type, length, content.
    fn as_bytes(&mut self, type_at: usize) {
        self.bytes[type_at] = b'x';
        self.mended.nests += 1;
    }

    /// A text of up to 255 bytes.
    fn text(&mut self) -> Option<()> {
        let [length] = self.take::<1>()?;
        let end = self.at + usize::from(length);
        let text = self.bytes.get_mut(self.at..end)?;
        self.at = end;
        let mut rest = text;
        let mut changed = false;
        while let Err(error) = std::str::from_utf8(rest) {
            let from = error.valid_up_to();
            let to = error.error_len().map_or(rest.len(), |length| from + length);
            rest[from..to].fill(b'?');
            rest = &mut rest[to..];
            changed = true;
        }
        self.mended.texts += usize::from(changed);
        Some(())
    }

    /// Where something ends that begins here with its length; what follows the length comes next.
    fn end_of_long(&mut self) -> Option<usize> {
        let length = u32::from_be_bytes(self.take()?);
        let end = self.at.checked_add(usize::try_from(length).ok()?)?;
        (end <= self.bytes.len()).then_some(end)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = self.bytes.get(self.at..self.at + N)?.try_into().ok()?;
        self.at += N;
        Some(taken)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.at += count;
        (self.at <= self.bytes.len()).then_some(())
    }
}
