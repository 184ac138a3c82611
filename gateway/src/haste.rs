//! How fast one connection asks, and whether it listens when it is told to ask more slowly.
//! In: requests, as they come. Out: which are taken, and whether it has gone too far.

use std::time::Instant;

use crate::limits::{Bucket, Rate, too_often};
use crate::refusal::Refusal;

/// After so many refusals for haste in a row the connection is closed.
const DEAF: u32 = 100;

/// One connection's haste.
#[derive(Debug)]
pub(crate) struct Haste {
    rate: Rate,
    bucket: Bucket,
    refused: u32,
}

impl Haste {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, bucket: Bucket::full(rate, Instant::now()), refused: 0 }
    }

    /// Counts a request, and then sees whether there is room for it.
    pub(crate) fn count(
        &mut self,
        room: impl FnOnce() -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let counted = self.bucket.take(self.rate, Instant::now());
        let taken =
            counted.map_err(|wait| too_often("messages", self.rate, wait)).and_then(|()| room());
        self.refused = if taken.is_ok() { 0 } else { self.refused.saturating_add(1) };
        taken
    }

    /// Whether it was told to be slower so often that it does not listen.
    pub(crate) fn is_deaf(&self) -> bool {
        self.refused >= DEAF
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Code;

    #[test]
    fn who_is_refused_a_hundred_times_in_a_row_does_not_listen_whatever_it_was_refused_for() {
        let full = || Err(Refusal::new(Code::TooMany, "full", "wait"));
        let mut haste = Haste::new(Rate { per_second: 0.000_001, burst: 52.0 });
        for _ in 0..50 {
            assert_eq!(haste.count(full).unwrap_err().code(), Code::TooMany);
        }
        haste.count(|| Ok(())).unwrap();
        assert_eq!(haste.count(full).unwrap_err().code(), Code::TooMany);
        for _ in 1..99 {
            let refused = haste.count(|| panic!("there is no room to be asked for"));
            assert_eq!(refused.unwrap_err().code(), Code::RateLimited);
        }
        assert!(!haste.is_deaf(), "one was taken in between");
        haste.count(full).unwrap_err();
        assert!(haste.is_deaf());
    }
}
