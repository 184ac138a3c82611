//! Which lines of a bulk publish are accounted for, pure.
//! In: what became of each line, in any order. Out: counts, and the line from which to continue.

use std::collections::BTreeMap;

/// What became of a line that need not be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its job is confirmed.
    Published,
    /// Its job is in the spool.
    Spooled,
    /// It holds no job, and was named to the user.
    Bad,
    /// Its job cannot be published, and was named to the user.
    Failed,
    /// There is nothing in it.
    Blank,
}

/// The accounts of one bulk publish. A line that has no outcome is open: it was not read yet, is
/// under way, or was given up without a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub(crate) published: u64,
    pub(crate) spooled: u64,
    pub(crate) bad: u64,
    pub(crate) failed: u64,
    /// Everything before it has an outcome.
    first_open: u64,
    /// Outcomes behind it; no more than there are lines in flight.
    beyond: BTreeMap<u64, Outcome>,
}

impl Ledger {
    /// Begins with line `first`.
    pub(crate) fn from_line(first: u64) -> Self {
        Self {
            published: 0,
            spooled: 0,
            bad: 0,
            failed: 0,
            first_open: first,
            beyond: BTreeMap::new(),
        }
    }

    /// Notes the outcome of a line; each line has one.
    pub(crate) fn settle(&mut self, line: u64, outcome: Outcome) {
        match outcome {
            Outcome::Published => self.published += 1,
            Outcome::Spooled => self.spooled += 1,
            Outcome::Bad => self.bad += 1,
            Outcome::Failed => self.failed += 1,
            Outcome::Blank => {}
        }
        self.beyond.insert(line, outcome);
        while self.beyond.remove(&self.first_open).is_some() {
            self.first_open += 1;
        }
    }

    /// The first line without an outcome: everything before it is published or was named.
    pub(crate) fn continue_from(&self) -> u64 {
        self.first_open
    }

    /// How many jobs behind that line are published or spooled already, and would be a second time.
    pub(crate) fn published_beyond(&self) -> usize {
        let done = |outcome: &&Outcome| matches!(outcome, Outcome::Published | Outcome::Spooled);
        self.beyond.values().filter(done).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_line_without_a_verdict_is_where_to_continue() {
        let mut ledger = Ledger::from_line(5);
        assert_eq!(ledger.continue_from(), 5);
        ledger.settle(5, Outcome::Blank);
        ledger.settle(7, Outcome::Published);
        ledger.settle(8, Outcome::Bad);
        assert_eq!((ledger.continue_from(), ledger.published_beyond()), (6, 1));
        ledger.settle(6, Outcome::Published);
        assert_eq!((ledger.continue_from(), ledger.published_beyond()), (9, 0));
        assert_eq!((ledger.published, ledger.bad, ledger.failed), (2, 1, 0));
    }

    proptest! {
        /// Against the plain model: a set of all settled lines.
        #[test]
        fn lines_are_never_skipped_whatever_the_order(
            first in 1u64..50,
            order in Just((0u64..60).collect::<Vec<_>>()).prop_shuffle(),
            open in proptest::collection::hash_set(0u64..60, 0..8),
        ) {
            let mut ledger = Ledger::from_line(first);
            let mut settled = std::collections::BTreeSet::new();
            for offset in order.into_iter().filter(|offset| !open.contains(offset)) {
                ledger.settle(first + offset, Outcome::Published);
                settled.insert(first + offset);
                let expected = (first..).find(|line| !settled.contains(line)).unwrap();
                prop_assert_eq!(ledger.continue_from(), expected);
                let beyond = settled.range(expected..).count();
                prop_assert_eq!(ledger.published_beyond(), beyond);
            }
        }
    }
}
