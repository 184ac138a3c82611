//! What is wrong with the delay ladder; pure.
//! In: what was seen of each level and of what stands behind the lowest one. Out: a state for each
//! level, and words for what is broken.

use std::fmt;

use forebay_producer::wire::delay::LEVELS;

/// What a look shows of one level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Level {
    /// Jobs whose time here is not over; `None`: the queue is not there.
    pub(super) waiting: Option<u32>,
    pub(super) consumers: u32,
    /// Whether its exchange is there; `None`: this user may not look.
    pub(super) exchange: Option<bool>,
    /// Whether its exchange leads to its queue and to the level below; `None`: nobody told.
    pub(super) bound: Option<bool>,
    /// Jobs whose time here is over and that are not handed on yet; `None`: nobody told.
    pub(super) due: Option<u64>,
}

/// What stands behind the lowest level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct End {
    /// Whether the exchange behind the ladder is there; `None`: this user may not look.
    pub(super) exchange: Option<bool>,
    /// Whether the exchange that takes jobs without a queue is there.
    pub(super) unrouted: Option<bool>,
    /// Whether that one leads to its queue; `None`: nobody told.
    pub(super) bound: Option<bool>,
}

/// All of it, from the lowest level to the highest one that is there.
#[derive(Debug, Default)]
pub(super) struct Ladder {
    pub(super) levels: Vec<Level>,
    pub(super) end: End,
}

/// How a level is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Fine,
    NoQueue,
    NoExchange,
    NotBound,
    /// Somebody takes jobs from it before their time.
    Consumed,
    /// What its jobs have to pass is broken.
    HeldUp,
}

/// As the column and the JSON spell it.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fine => "ok",
            Self::NoQueue => "queue missing",
            Self::NoExchange => "exchange missing",
            Self::NotBound => "binding missing",
            Self::Consumed => "consumed",
            Self::HeldUp => "held up",
        })
    }
}

impl State {
    /// `forebay topology apply` mends it.
    pub(super) fn is_broken(self) -> bool {
        matches!(self, Self::NoQueue | Self::NoExchange | Self::NotBound)
    }
}

impl Level {
    fn state(&self) -> State {
        if self.exchange == Some(false) {
            State::NoExchange
        } else if self.waiting.is_none() {
            State::NoQueue
        } else if self.bound == Some(false) {
            State::NotBound
        } else if self.consumers > 0 {
            State::Consumed
        } else {
            State::Fine
        }
    }

    /// Whether there is anything of it.
    pub(super) fn is_there(&self) -> bool {
        self.waiting.is_some() || self.exchange == Some(true)
    }
}

impl End {
    /// What is broken, in words.
    pub(super) fn fault(&self) -> Option<&'static str> {
        if self.exchange == Some(false) {
            return Some("the exchange behind the lowest level is not there");
        }
        if self.unrouted == Some(false) {
            return Some("the exchange for jobs whose queue is gone is not there");
        }
        (self.bound == Some(false))
            .then_some("the exchange for jobs whose queue is gone has no binding to its queue")
    }
}

impl Ladder {
    /// Of all levels that were looked at, those up to the highest one that is there.
    pub(super) fn new(mut levels: Vec<Level>, end: End) -> Self {
        let count = levels.iter().rposition(Level::is_there).map_or(0, |top| top + 1);
        levels.truncate(count);
        Self { levels, end }
    }

    pub(super) fn top(&self) -> Option<u8> {
        u8::try_from(self.levels.len()).ok()?.checked_sub(1).filter(|top| *top < LEVELS)
    }

    /// A state for each level, lowest first. A job comes down through every level below its own.
    pub(super) fn states(&self) -> Vec<State> {
        let mut broken = self.end.fault().is_some();
        let state = |level: &Level| {
            let own = level.state();
            let held_up = broken && own == State::Fine;
            broken |= own.is_broken();
            if held_up { State::HeldUp } else { own }
        };
        self.levels.iter().map(state).collect()
    }

    pub(super) fn waiting(&self) -> u64 {
        self.levels.iter().filter_map(|level| level.waiting).map(u64::from).sum()
    }

    /// `None`: nobody told.
    pub(super) fn due(&self) -> Option<u64> {
        self.levels.iter().filter_map(|level| level.due).reduce(|sum, due| sum + due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Level {
        let exchange = Some(true);
        Level { waiting: Some(1), exchange, bound: Some(true), due: Some(2), consumers: 0 }
    }

    fn end() -> End {
        End { exchange: Some(true), unrouted: Some(true), bound: Some(true) }
    }

    #[test]
    fn a_ladder_ends_with_the_highest_level_that_is_there() {
        let gap = Level { exchange: Some(false), ..Level::default() };
        let ladder = Ladder::new(vec![well(), gap, well(), gap, gap], end());
        assert_eq!((ladder.top(), ladder.waiting(), ladder.due()), (Some(2), 2, Some(4)));
        assert_eq!(ladder.states(), [State::Fine, State::NoExchange, State::HeldUp]);
        assert_eq!(Ladder::new(vec![gap], end()).top(), None);
    }

    #[test]
    fn what_is_broken_holds_up_the_levels_above_it() {
        for (level, state) in [
            (Level { waiting: None, ..well() }, State::NoQueue),
            (Level { bound: Some(false), ..well() }, State::NotBound),
            (Level { exchange: Some(false), ..well() }, State::NoExchange),
        ] {
            let ladder = Ladder::new(vec![well(), level, well()], end());
            assert_eq!(ladder.states(), [State::Fine, state, State::HeldUp]);
        }
        for broken in [
            End { exchange: Some(false), ..end() },
            End { unrouted: Some(false), ..end() },
            End { bound: Some(false), ..end() },
        ] {
            assert_eq!(Ladder::new(vec![well()], broken).states(), [State::HeldUp]);
        }
    }

    #[test]
    fn what_nobody_told_is_not_held_against_a_level() {
        let (level, end) =
            (Level { exchange: None, bound: None, due: None, ..well() }, End::default());
        let ladder = Ladder::new(vec![level], end);
        assert_eq!((ladder.states(), ladder.due()), (vec![State::Fine], None));
    }

    #[test]
    fn a_consumer_holds_nothing_up() {
        let ladder = Ladder::new(vec![Level { consumers: 1, ..well() }, well()], end());
        assert_eq!(ladder.states(), [State::Consumed, State::Fine]);
    }
}
