//! Reads the stream of events, which keeps what it gives.
//! In: where to begin. Out: events in stream order, one after the other, through restarts of the
//! broker, and word of it wherever what follows is not the direct continuation.
//!
//! An ack on a stream only asks for more.

mod attach;
mod life;
mod place;
mod probe;
mod reader;
mod watch;

use std::time::SystemTime;

use bytes::Bytes;
use lapin::message::Delivery;

pub use self::reader::Events;

use super::connection::Link;
use super::declare::Declarer;
use crate::config::{Config, after};
use crate::error::{StreamError, TopologyError};
use crate::wire::event::Event;
use crate::wire::headers;
use crate::wire::token::Token;

/// The broker sends so many events ahead.
const PREFETCH: u16 = 200;
/// Where to attach, in the arguments of a consumer; where a message stands, in its headers.
const OFFSET: &str = "x-stream-offset";

/// The stream of events of a namespace, over a connection of its own that its readers share.
#[derive(Debug, Clone)]
pub struct EventLog {
    link: Link,
    declarer: Declarer,
    config: Config,
}

/// Where a reader begins.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// With the oldest event that is kept.
    First,
    /// With the newest events: at least the last one that is kept, at most those that were written
    /// with it.
    Last,
    /// With what comes from now on.
    Next,
    /// With the event at this offset or the first after it; with the oldest if it is older.
    At(u64),
    /// With what was told since then, by the broker's clock, and perhaps a little before.
    Since(SystemTime),
    /// With what follows this place. What comes first is [`Read::Resumed`] or [`Read::Gap`].
    After(Token),
}

/// What a reader gives.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "nearly every one is an event")]
#[non_exhaustive]
pub enum Read {
    /// The next event.
    Event(Stored),
    /// The place of [`Start::After`] was found: all that follows it comes now.
    Resumed,
    /// The place where reading was to go on is not there: all that is kept comes now, from the
    /// oldest on.
    Gap(Gap),
}

/// Why events may be missing between those before and those after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gap {
    /// They are no longer kept.
    Retention,
    /// The stream was deleted and made anew.
    Recreated,
}

impl Gap {
    /// `retention` or `recreated`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Recreated => "recreated",
        }
    }
}

/// An event with its place.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Stored {
    /// Its offset. Offsets rise, and leave numbers out.
    pub offset: u64,
    /// What it says.
    pub event: Event,
    /// The same as it came: JSON, to be handed on as it is.
    pub bytes: Bytes,
}

impl Stored {
    /// Its place, to go on from later.
    pub fn token(&self) -> Token {
        Token::new(self.offset, self.event.id.as_str())
    }
}

impl EventLog {
    /// Starts to connect in the background; never fails and never waits.
    pub fn new(config: &Config) -> Self {
        Self::on(Link::open(config, "events"), config)
    }

    /// Over a connection that is there already; each reader has a channel of its own.
    pub fn on(link: Link, config: &Config) -> Self {
        Self { declarer: Declarer::new(link.clone(), config), link, config: config.clone() }
    }

    /// Begins to read. Waits until the broker has let us in, for as long as it is away.
    ///
    /// # Errors
    /// [`StreamError`] when it does not let us in, or the stream is not there and may not be
    /// declared.
    pub async fn read(&self, start: Start) -> Result<Events, StreamError> {
        Events::begin(self, start).await
    }

    /// Sees to it that the stream is there.
    ///
    /// # Errors
    /// [`TopologyError`] naming what could not be declared and the way out.
    pub async fn declare(&self) -> Result<(), TopologyError> {
        self.declarer.ensure_events(after(self.config.deadline())).await
    }

    /// The connection, for readiness and metrics.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Closes the connection; its readers end with an error.
    pub async fn close(&self) {
        self.link.close().await;
    }

    fn stream(&self) -> String {
        self.config.topology().events()
    }
}

fn offset(delivery: &Delivery) -> Option<u64> {
    let headers = delivery.properties.headers().as_ref()?;
    headers.inner().get(OFFSET).and_then(headers::number)
}
