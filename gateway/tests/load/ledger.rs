//! What one client got of what it should get.
//! In: events as they come. Out: how many were lost, came twice or out of order; pure.

use super::client::Tick;

/// One client's.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    /// The numbers that it should get.
    first: u64,
    wanted: u64,
    seen: Vec<bool>,
    newest: Option<u64>,
    pub(crate) count: Count,
}

/// Over one client or many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) wanted: u64,
    /// Different ones.
    pub(crate) got: u64,
    pub(crate) doubled: u64,
    /// Before one that is earlier on the stream.
    pub(crate) disordered: u64,
    /// Of a room that it does not follow, or of a number that nobody told it.
    pub(crate) strange: u64,
}

impl Ledger {
    /// Of somebody who should get `wanted` events from number `first` on.
    pub(crate) fn new(first: u64, wanted: u64) -> Self {
        let count = Count { wanted, ..Count::default() };
        Self { first, wanted, seen: vec![false; wanted as usize], newest: None, count }
    }

    /// Notes an event that came; `true` if it is a new one.
    pub(crate) fn note(&mut self, tick: Tick, offset: u64, ours: bool) -> bool {
        let number = tick.n.checked_sub(self.first).filter(|number| ours && *number < self.wanted);
        let Some(seen) = number.and_then(|number| self.seen.get_mut(number as usize)) else {
            self.count.strange += 1;
            return false;
        };
        let again = std::mem::replace(seen, true);
        self.count.doubled += u64::from(again);
        self.count.got += u64::from(!again);
        self.count.disordered += u64::from(!again && self.newest >= Some(offset));
        self.newest = self.newest.max(Some(offset));
        !again
    }

    /// Whether everything is there.
    pub(crate) fn is_full(&self) -> bool {
        self.count.got == self.wanted
    }
}

impl Count {
    pub(crate) fn lost(self) -> u64 {
        self.wanted - self.got
    }

    /// Whether everything came, once and in order.
    pub(crate) fn is_right(self) -> bool {
        self == Self { wanted: self.wanted, got: self.wanted, ..Self::default() }
    }
}

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |one, other| Self {
            wanted: one.wanted + other.wanted,
            got: one.got + other.got,
            doubled: one.doubled + other.doubled,
            disordered: one.disordered + other.disordered,
            strange: one.strange + other.strange,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(notes: &[(u64, u64, bool)]) -> Count {
        let mut ledger = Ledger::new(1, 3);
        for &(n, offset, ours) in notes {
            ledger.note(Tick { n, at: 0 }, offset, ours);
        }
        assert_eq!(ledger.is_full(), ledger.count.lost() == 0);
        ledger.count
    }

    #[test]
    fn everything_once_and_in_order_is_right_and_nothing_else() {
        let all = [(1, 10, true), (2, 12, true), (3, 13, true)];
        assert!(after(&all).is_right());
        for (wrong, what) in [
            (&all[..2], Count { wanted: 3, got: 2, ..Count::default() }),
            (
                &[all[0], all[1], all[1], all[2]],
                Count { wanted: 3, got: 3, doubled: 1, ..Count::default() },
            ),
            (
                &[all[1], all[0], all[2]],
                Count { wanted: 3, got: 3, disordered: 1, ..Count::default() },
            ),
            (
                &[all[0], all[1], all[2], (4, 14, true), (2, 15, false)],
                Count { wanted: 3, got: 3, strange: 2, ..Count::default() },
            ),
        ] {
            assert_eq!(after(wrong), what);
            assert!(!what.is_right());
        }
    }
}
