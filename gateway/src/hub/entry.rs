//! One event of the stream, and where it belongs.
//! In: what the reader of the stream gives. Out: what the window keeps and sessions get, by reference.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use forebay_producer::{Event, EventKind, Malformed, Stored, Token};

/// What an entry takes beside its body: itself, its id and rooms, and its places in lists.
const OVERHEAD: usize = 512;

/// What a session can be told about. An event is in the room of its job and in that of its kind, or
/// in the room of its channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Room {
    /// One job, by its id.
    Job(Arc<str>),
    /// All jobs of a kind.
    Kind(Arc<str>),
    /// What handlers and producers tell a channel.
    Channel(Arc<str>),
}

impl Room {
    /// The room of a job.
    pub fn job(id: &str) -> Self {
        Self::Job(id.into())
    }

    /// The room of a kind.
    pub fn kind(kind: &str) -> Self {
        Self::Kind(kind.into())
    }

    /// The room of a channel.
    pub fn channel(name: &str) -> Self {
        Self::Channel(name.into())
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(id) => write!(f, "job {id}"),
            Self::Kind(kind) => write!(f, "kind {kind}"),
            Self::Channel(name) => write!(f, "channel {name}"),
        }
    }
}

/// An event at its place on the stream. Sessions share it; nobody changes it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Entry {
    /// The offset on the stream.
    pub offset: u64,
    /// The event's id.
    pub id: Arc<str>,
    /// What it tells.
    pub what: EventKind,
    /// The rooms that it is in.
    pub rooms: Box<[Room]>,
    /// Whose job it is of; `None` if it is nobody's.
    pub owner: Option<Box<str>>,
    /// The name that the emitter gave to what it told a channel.
    pub name: Option<Box<str>>,
    /// The CloudEvent in JSON, as it came.
    pub bytes: Bytes,
}

impl Entry {
    pub(crate) fn new(stored: Stored) -> Self {
        let rooms = rooms(&stored.event);
        let event = stored.event;
        Self {
            offset: stored.offset,
            id: event.id.into(),
            what: event.what,
            rooms,
            owner: event.owner.map(Into::into),
            name: event.event.map(Into::into),
            bytes: stored.bytes,
        }
    }

    /// Its place on the stream.
    pub fn token(&self) -> Token {
        Token::new(self.offset, &*self.id)
    }

    /// All that it says, read anew.
    ///
    /// # Errors
    /// Never for an entry that a hub gave: it was read once already.
    pub fn event(&self) -> Result<Event, Malformed> {
        Event::decode(&self.bytes)
    }

    /// Whether a job's history begins with it: the first `queued`.
    pub(crate) fn is_of_a_new_job(&self) -> bool {
        let first = |event: Event| event.attempt.unwrap_or(1) <= 1;
        self.what == EventKind::Queued && self.event().is_ok_and(first)
    }

    /// Bytes of memory that it takes, about.
    pub(crate) fn cost(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }
}

fn rooms(event: &Event) -> Box<[Room]> {
    match (event.channel(), &event.kind) {
        (Some(channel), _) => Box::new([Room::channel(channel)]),
        (None, Some(kind)) => Box::new([Room::job(&event.subject), Room::kind(kind)]),
        (None, None) => Box::new([Room::job(&event.subject)]),
    }
}

/// How far somebody has come: everything before `next` is behind them. The event by which the place
/// is found again on the stream is remembered with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The first offset that is not behind.
    pub(crate) next: u64,
    /// An event before it that is known to be there: offset and id. `None` is the very beginning.
    anchor: Option<(u64, Arc<str>)>,
}

impl Place {
    pub(crate) const BEGINNING: Self = Self { next: 0, anchor: None };

    pub(crate) fn after(entry: &Entry) -> Self {
        Self { next: entry.offset + 1, anchor: Some((entry.offset, Arc::clone(&entry.id))) }
    }

    /// The same anchor, with more behind.
    pub(crate) fn up_to(&self, next: u64) -> Self {
        Self { next: self.next.max(next), anchor: self.anchor.clone() }
    }

    /// Where the event stands by which it is found; 0 for the beginning.
    pub(crate) fn anchored_at(&self) -> u64 {
        self.anchor.as_ref().map_or(0, |(offset, _)| *offset)
    }

    /// What follows the event by which it is found begins here.
    pub(crate) fn start(&self) -> u64 {
        self.anchor.as_ref().map_or(0, |(offset, _)| offset + 1)
    }

    /// Whether both are found by the same event.
    pub(crate) fn is_anchored_as(&self, other: &Self) -> bool {
        self.anchor == other.anchor
    }

    pub(crate) fn is_beginning(&self) -> bool {
        self.anchor.is_none()
    }

    /// Whether that is the event by which it is found.
    pub(crate) fn is_after(&self, entry: &Entry) -> bool {
        let anchor = self.anchor.as_ref();
        anchor.is_some_and(|(offset, id)| *offset == entry.offset && *id == entry.id)
    }

    pub(crate) fn token(&self) -> Token {
        match &self.anchor {
            Some((offset, id)) => Token::new(*offset, &**id),
            None => Token::BEGINNING,
        }
    }
}

impl From<&Token> for Place {
    fn from(token: &Token) -> Self {
        match &token.id {
            Some(id) => Self {
                next: token.offset.saturating_add(1),
                // Beyond what a broker counts to: it is not there, and that is all that matters.
                anchor: Some((token.offset.min(u64::MAX - 1), id.as_str().into())),
            },
            None => Self::BEGINNING,
        }
    }
}

#[cfg(test)]
impl Entry {
    /// An event with nothing in it.
    pub(crate) fn plain(offset: u64, id: &str, rooms: &[Room]) -> Self {
        Self {
            offset,
            id: id.into(),
            what: EventKind::Channel,
            rooms: rooms.into(),
            owner: None,
            name: None,
            bytes: Bytes::new(),
        }
    }
}
