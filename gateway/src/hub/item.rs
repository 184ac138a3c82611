//! What a session is asked for and what it gives.

use std::sync::Arc;

use forebay_producer::{Gap, Token};

use super::entry::Entry;

/// What a session gives.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Item {
    /// The next event.
    Event {
        /// The event.
        entry: Arc<Entry>,
        /// Where to come back to after it: [`StartFrom::After`] this, in all rooms, misses nothing.
        token: Token,
    },
    /// Between what came before and what comes now events may be missing.
    Gap {
        /// Why.
        reason: Gap,
    },
    /// Nothing comes any more.
    Ended(Ended),
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ended {
    /// Why.
    pub reason: EndReason,
    /// Where to come back to: [`StartFrom::After`] this, in all rooms, misses nothing.
    pub token: Token,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndReason {
    /// Its client took nothing for too long.
    Slow,
    /// The hub closes.
    GoingAway,
    /// It was dropped.
    Gone,
}

impl EndReason {
    /// `slow`, `going_away` or `gone`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::GoingAway => "going_away",
            Self::Gone => "gone",
        }
    }
}

/// From where on a room is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartFrom {
    /// From now on.
    Now,
    /// All that is kept.
    Beginning,
    /// What follows this place.
    After(Token),
}

/// A room was joined.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Subscribed {
    /// Whether all that was asked for was still there: what comes is the direct continuation.
    pub recovered: bool,
    /// Why not.
    pub reason: Option<Gap>,
    /// Where to come back to until an event brings another token.
    pub token: Token,
}
