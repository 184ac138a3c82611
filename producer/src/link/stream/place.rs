//! Where a reader stands on the stream, and what a delivery means there; pure.

use std::time::SystemTime;

use lapin::types::AMQPValue;

use super::{Gap, Start};
use crate::wire::envelope::to_ms;
use crate::wire::token::Token;

/// From where it goes on when it has to attach anew.
#[derive(Debug, Clone)]
pub(super) enum Position {
    /// Nothing was given yet, and there is nothing to compare.
    Begin(Start),
    /// From now on, and "now" was then.
    Since(SystemTime),
    /// The event with this place was the last one.
    After {
        token: Token,
        /// When that was told, where it is known.
        told: Option<SystemTime>,
        /// Who began here has to be told whether it was found.
        resuming: bool,
    },
}

impl From<Start> for Position {
    fn from(start: Start) -> Self {
        match start {
            Start::After(token) => Self::After { token, told: None, resuming: true },
            start => Self::Begin(start),
        }
    }
}

impl Position {
    /// What tells the broker where to begin.
    pub(super) fn offset(&self) -> AMQPValue {
        let at = |offset: u64| AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX));
        let since = |time| AMQPValue::Timestamp(to_ms(time) / 1000);
        match self {
            Self::Begin(Start::Next) => AMQPValue::LongString("next".into()),
            Self::Begin(Start::Last) => AMQPValue::LongString("last".into()),
            Self::Begin(Start::At(offset)) => at(*offset),
            Self::Begin(Start::Since(time)) | Self::Since(time) => since(*time),
            Self::After { token, .. } if token.id.is_some() => at(token.offset),
            Self::Begin(_) | Self::After { .. } => AMQPValue::LongString("first".into()),
        }
    }
}

/// What is said of a delivery before anybody sees it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Given already, or sent only because it stands in the same chunk.
    Earlier,
    /// The last one that was given: from here on it is the direct continuation.
    Proof,
    /// What comes next.
    Next,
    /// The place was not found.
    Lost(Gap),
}

pub(super) fn place(position: &Position, proving: bool, offset: u64, id: Option<&str>) -> Place {
    let token = match position {
        Position::Begin(Start::At(first)) if offset < *first => return Place::Earlier,
        Position::Begin(_) | Position::Since(_) => return Place::Next,
        Position::After { token, .. } => token,
    };
    match &token.id {
        None if !proving || offset == 0 => Place::Next,
        None => Place::Lost(Gap::Retention),
        Some(_) if offset < token.offset => Place::Earlier,
        Some(known) if offset == token.offset => {
            if id == Some(known) {
                Place::Proof
            } else if proving {
                Place::Lost(Gap::Recreated)
            } else {
                Place::Earlier
            }
        }
        Some(_) if proving => Place::Lost(Gap::Retention),
        Some(_) => Place::Next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(offset: u64, id: Option<&str>) -> Position {
        let token = Token { offset, id: id.map(str::to_owned) };
        Position::After { token, told: None, resuming: false }
    }

    #[test]
    fn a_place_is_believed_by_its_id_only() {
        let known = after(7, Some("aa"));
        for (offset, id, expected) in [
            (3, Some("bb"), Place::Earlier),
            (7, Some("aa"), Place::Proof),
            (7, Some("bb"), Place::Lost(Gap::Recreated)),
            (7, None, Place::Lost(Gap::Recreated)),
            (9, Some("bb"), Place::Lost(Gap::Retention)),
        ] {
            assert_eq!(place(&known, true, offset, id), expected, "{offset} {id:?}");
        }
        assert_eq!(place(&known, false, 8, Some("bb")), Place::Next);
        assert_eq!(place(&known, false, 6, Some("bb")), Place::Earlier);
    }

    #[test]
    fn the_beginning_is_where_the_first_event_stands() {
        let beginning = after(0, None);
        assert_eq!(place(&beginning, true, 0, Some("aa")), Place::Next);
        assert_eq!(place(&beginning, true, 4, Some("aa")), Place::Lost(Gap::Retention));
        assert_eq!(place(&beginning, false, 4, Some("aa")), Place::Next);
    }

    #[test]
    fn what_stands_in_the_same_chunk_before_an_offset_is_not_given() {
        let at = Position::Begin(Start::At(5));
        assert_eq!(place(&at, false, 4, None), Place::Earlier);
        assert_eq!(place(&at, false, 5, None), Place::Next);
    }
}
