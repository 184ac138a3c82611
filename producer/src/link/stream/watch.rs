//! What it means that nothing comes; pure.
//! In: where a reader stands, and what a look at the end of the stream has shown. Out: whether to go
//! on waiting.
//!
//! Silence alone proves nothing: a broker may take its time. A place is gone when something else
//! stands there, which a delivery shows, or when the stream ends before it, which a look shows.

use std::time::{Duration, SystemTime};

use super::place::Position;
use super::{Gap, Start};

/// The first look comes so long after attaching; the second one after a stream was seen to end too
/// early. What this node of the broker has may be so much behind.
pub(super) const SIGN: Duration = Duration::from_secs(1);
/// What is on the stream comes within this time. Otherwise it is worth a look.
pub(super) const PROOF: Duration = Duration::from_secs(5);
/// A reader to which nothing was given for so long looks whether there is something.
pub(super) const QUIET: Duration = Duration::from_secs(60);
/// What clocks may differ by.
pub(super) const SKEW: Duration = Duration::from_secs(5);

/// What a look at the end of the stream has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// The newest message stands there; when it was told, if it is an event.
    Ends { offset: u64, told: Option<SystemTime> },
    /// Nothing: the stream is empty, or the broker slow.
    Nothing,
    /// It was not possible to look.
    Failed,
}

/// What to do about a silence.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Wait for so long, then look again.
    Wait(Duration),
    /// Nothing was told since the very beginning.
    Resumed,
    /// The place is gone.
    Lost(Gap),
    /// There are events, and they do not come here: attach anew.
    Deaf,
}

/// What a reader has seen since it attached.
#[derive(Debug)]
pub(super) struct Watch {
    /// The place to go on from has not shown itself yet.
    pub(super) proving: bool,
    /// The broker had cancelled the consumer before this one: the stream was deleted, or its member
    /// on this node.
    cancelled: bool,
    /// The newest offset that came.
    came: Option<u64>,
    /// For how long what is there may stay away.
    patience: Duration,
    /// What the last look said, while nothing has come since.
    sign: Option<Sign>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// The stream ends before the place.
    Shorter,
    /// There is something that should have come.
    Owed,
    /// Nothing is there, although the place should be.
    Silent,
    /// There is nothing that should have come.
    Whole,
}

impl Watch {
    /// Of a consumer that was just attached at `position`. `deaf` others before it were given
    /// nothing, though there was something.
    pub(super) fn new(position: &Position, cancelled: bool, deaf: u32) -> Self {
        let proving = matches!(position, Position::After { .. });
        let patience = match position {
            Position::Begin(Start::Last) if deaf == 0 => SIGN,
            _ => PROOF * 2_u32.pow(deaf.min(4)),
        };
        Self { proving, cancelled, came: None, patience, sign: None }
    }

    /// After so much silence it is worth a first look. RabbitMQ shows nothing to who asks for the
    /// last message of a stream while its first one is being written, until the next one is.
    pub(super) fn first_look(&self, position: &Position) -> Duration {
        let newest = matches!(position, Position::Begin(Start::Last));
        if self.proving || newest { SIGN } else { QUIET }
    }

    /// After so much silence it is worth a look.
    pub(super) fn patience(&self) -> Duration {
        if self.proving { PROOF } else { QUIET }
    }

    /// Something came.
    pub(super) fn note(&mut self, offset: u64) {
        (self.came, self.sign) = (Some(offset), None);
    }

    /// What a look says, begun when the last one was judged and nothing has come since.
    pub(super) fn judge(&mut self, position: &Position, look: Look) -> Finding {
        let Some(sign) = self.sign(position, look) else { return Finding::Wait(PROOF) };
        let again = self.sign.replace(sign) == Some(sign);
        match (sign, position) {
            (Sign::Shorter, _) if again => Finding::Lost(Gap::Recreated),
            (Sign::Shorter, _) => Finding::Wait(SIGN),
            (Sign::Owed, _) if again => Finding::Deaf,
            (Sign::Owed, _) => Finding::Wait(self.patience),
            (Sign::Silent, Position::After { token, resuming, .. }) if token.id.is_none() => {
                if *resuming {
                    Finding::Resumed
                } else {
                    Finding::Wait(QUIET)
                }
            }
            (Sign::Silent, _) if again && self.cancelled => Finding::Lost(Gap::Recreated),
            (Sign::Silent, _) => Finding::Wait(PROOF),
            (Sign::Whole, _) => Finding::Wait(self.patience()),
        }
    }

    fn sign(&mut self, position: &Position, look: Look) -> Option<Sign> {
        let (end, told) = match look {
            Look::Ends { offset, told } => (offset, told),
            Look::Nothing if self.proving => return Some(Sign::Silent),
            Look::Nothing => return Some(Sign::Whole),
            Look::Failed => return None,
        };
        let Some(due) = self.due(position) else {
            // From here on.
            self.came = Some(end);
            return Some(Sign::Whole);
        };
        Some(match position {
            _ if end >= due => Sign::Owed,
            // All that this node has is older: it lags behind the one that was read from before.
            Position::After { told: Some(last), .. }
                if self.proving && told.is_some_and(|told| told + SKEW < *last) =>
            {
                Sign::Whole
            }
            _ if self.proving => Sign::Shorter,
            // It ends where it was read up to.
            _ if end + 1 == due || self.came.is_none() => Sign::Whole,
            // It has become shorter, which the next consumer will find out about.
            _ => Sign::Owed,
        })
    }

    /// The first offset that should come next, or a later one; `None`: that is not known.
    fn due(&self, position: &Position) -> Option<u64> {
        match (self.came, position) {
            (_, Position::After { token, .. }) if self.proving => Some(token.offset),
            (Some(came), _) => Some(came + 1),
            (None, Position::Begin(Start::First | Start::Last)) => Some(0),
            (None, Position::Begin(Start::At(offset))) => Some(*offset),
            (None, Position::After { token, .. }) => Some(token.offset),
            (None, Position::Begin(_) | Position::Since(_)) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::wire::token::Token;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// After an event that was told at second 100.
    fn after(token: Token) -> Position {
        Position::After { token, told: Some(at(100)), resuming: true }
    }

    fn known() -> Position {
        after(Token::new(7, "aa"))
    }

    fn ends(offset: u64) -> Look {
        Look::Ends { offset, told: None }
    }

    fn judged(position: &Position, cancelled: bool, looks: &[Look]) -> Vec<Finding> {
        let mut watch = Watch::new(position, cancelled, 0);
        looks.iter().map(|look| watch.judge(position, *look)).collect()
    }

    #[test]
    fn silence_alone_never_means_another_stream() {
        let looks = [Look::Nothing, Look::Failed, Look::Nothing, Look::Nothing, Look::Failed];
        for finding in judged(&known(), false, &looks) {
            assert_eq!(finding, Finding::Wait(PROOF));
        }
    }

    #[test]
    fn a_stream_that_was_seen_twice_to_end_before_the_place_is_another_one() {
        let (wait, lost) = (|| Finding::Wait(SIGN), || Finding::Lost(Gap::Recreated));
        assert_eq!(judged(&known(), false, &[ends(3), ends(6)]), [wait(), lost()]);
        let looks = [ends(6), Look::Failed, ends(6)];
        assert_eq!(judged(&known(), false, &looks), [wait(), Finding::Wait(PROOF), lost()]);
        let looks = [ends(6), ends(7), ends(6)];
        assert_eq!(judged(&known(), false, &looks), [wait(), Finding::Wait(PROOF), wait()]);
    }

    #[test]
    fn a_member_that_lags_behind_is_waited_for() {
        let old = Look::Ends { offset: 3, told: Some(at(100) - SKEW - SIGN) };
        assert_eq!(
            judged(&known(), false, &[old, old]),
            [Finding::Wait(PROOF), Finding::Wait(PROOF)]
        );
        let newer = Look::Ends { offset: 3, told: Some(at(100)) };
        let findings = judged(&known(), false, &[newer, newer]);
        assert_eq!(findings[1], Finding::Lost(Gap::Recreated));
    }

    #[test]
    fn an_empty_stream_after_a_cancel_is_another_one() {
        let findings = judged(&known(), true, &[Look::Nothing, Look::Nothing]);
        assert_eq!(findings, [Finding::Wait(PROOF), Finding::Lost(Gap::Recreated)]);
    }

    #[test]
    fn the_beginning_is_resumed_from_when_nothing_is_there() {
        let beginning = after(Token::BEGINNING);
        assert_eq!(judged(&beginning, true, &[Look::Nothing]), [Finding::Resumed]);
        let Position::After { token, told, .. } = beginning else { unreachable!() };
        let resumed = Position::After { token, told, resuming: false };
        let findings = judged(&resumed, true, &[Look::Nothing, Look::Nothing]);
        assert_eq!(findings, [Finding::Wait(QUIET), Finding::Wait(QUIET)]);
        // Something is there: which one it is shows when it comes.
        let findings = judged(&after(Token::BEGINNING), false, &[ends(4), Look::Nothing, ends(4)]);
        assert_eq!(findings[0], Finding::Wait(PROOF));
        assert_eq!(findings[2], Finding::Wait(PROOF));
    }

    #[test]
    fn who_is_not_given_what_is_there_attaches_anew_and_waits_longer_each_time() {
        for position in [known(), Position::Begin(Start::First), Position::Begin(Start::At(8))] {
            let findings = judged(&position, false, &[ends(8), ends(9)]);
            assert_eq!(findings, [Finding::Wait(PROOF), Finding::Deaf], "{position:?}");
        }
        let mut watch = Watch::new(&known(), false, 2);
        assert_eq!(watch.judge(&known(), ends(8)), Finding::Wait(PROOF * 4));
    }

    #[test]
    fn who_asks_for_the_newest_and_is_not_given_it_attaches_anew_soon() {
        let newest = Position::Begin(Start::Last);
        let mut watch = Watch::new(&newest, false, 0);
        assert_eq!(watch.first_look(&newest), SIGN);
        assert_eq!(watch.judge(&newest, Look::Nothing), Finding::Wait(QUIET), "it is empty");
        assert_eq!(
            judged(&newest, false, &[ends(0), ends(0)]),
            [Finding::Wait(SIGN), Finding::Deaf]
        );
        let mut watch = Watch::new(&newest, false, 1);
        assert_eq!(watch.judge(&newest, ends(0)), Finding::Wait(PROOF * 2), "the broker is slow");
    }

    #[test]
    fn what_came_is_not_owed_and_begins_the_count_anew() {
        let since = Position::Since(at(0));
        let mut watch = Watch::new(&since, false, 0);
        assert_eq!(watch.judge(&since, ends(8)), Finding::Wait(QUIET), "that was before");
        assert_eq!(watch.judge(&since, ends(8)), Finding::Wait(QUIET));
        assert_eq!(watch.judge(&since, ends(9)), Finding::Wait(PROOF));
        watch.note(9);
        assert_eq!(watch.judge(&since, ends(9)), Finding::Wait(QUIET));
        assert_eq!(watch.judge(&since, ends(10)), Finding::Wait(PROOF));
        watch.note(10);
        assert_eq!(watch.judge(&since, ends(11)), Finding::Wait(PROOF));
        assert_eq!(watch.judge(&since, ends(11)), Finding::Deaf);
        let mut watch = Watch::new(&since, false, 0);
        watch.note(20);
        assert_eq!(watch.judge(&since, ends(3)), Finding::Wait(PROOF), "shorter than it was");
        assert_eq!(watch.judge(&since, ends(3)), Finding::Deaf);
    }
}
