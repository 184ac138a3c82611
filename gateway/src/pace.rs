//! How fast a Socket.IO client is written to; pure.
//! In: whether the library's buffer took a packet. Out: when to go on.
//!
//! socketioxide has a buffer of packets for each client and refuses what is beyond it; it does not
//! say how full it is. Its pings need a place in it too: one that finds none closes the connection.
//! So no more than half a buffer is written at once, and between the halves there is a rest. Was
//! there no room, the rest doubles, until the client has taken half a buffer during one: then a full
//! buffer is rare, and a ping that meets one rarer still.

use std::time::Duration;

/// Packets in the library's buffer.
pub(crate) const BUFFER: usize = 128;
const BURST: usize = BUFFER / 2;
const SHORTEST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_secs(1);

/// One client's pace.
#[derive(Debug)]
pub(crate) struct Pace {
    left: usize,
    rest: Duration,
    /// Whether all of the present burst was taken at once.
    smooth: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { left: BURST, rest: SHORTEST, smooth: true }
    }
}

impl Pace {
    /// A packet was taken; a rest, if it was the last of a burst.
    pub(crate) fn taken(&mut self) -> Option<Duration> {
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            return None;
        }
        let rest = self.rest;
        if self.smooth {
            self.rest = (self.rest / 2).max(SHORTEST);
        }
        (self.left, self.smooth) = (BURST, true);
        Some(rest)
    }

    /// There was no room; how long to wait before the same packet is tried again.
    pub(crate) fn refused(&mut self) -> Duration {
        self.rest = (self.rest * 2).min(LONGEST);
        (self.left, self.smooth) = (BURST, false);
        self.rest
    }

    /// Nothing was written for a while, so the buffer is as good as empty.
    pub(crate) fn idle(&mut self) {
        self.left = BURST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_fast_client_gets_thousands_a_second() {
        let (mut pace, mut rested, mut sent) = (Pace::default(), Duration::ZERO, 0);
        while rested < Duration::from_secs(1) {
            sent += 1;
            rested += pace.taken().unwrap_or_default();
        }
        assert!(sent > 10_000, "{sent}");
    }

    /// A client that takes one packet each `each`, for a minute: how many it got, how long the
    /// buffer was full, and whether one was refused after the first second.
    fn slow(each: Duration) -> (u32, f64) {
        let (mut pace, mut now, mut full) = (Pace::default(), Duration::ZERO, Duration::ZERO);
        let (mut sent, mut drained) = (0_u32, 0_u32);
        let minute = Duration::from_secs(60);
        while now < minute {
            let held = (sent - drained) as usize;
            let wait = if held < BUFFER {
                sent += 1;
                pace.taken().unwrap_or_default()
            } else {
                let wait = pace.refused();
                full += wait.min(each);
                wait
            };
            now += wait;
            let taken = u32::try_from(now.as_nanos() / each.as_nanos()).unwrap();
            drained = sent.min(drained.max(taken));
        }
        (drained, full.as_secs_f64() / minute.as_secs_f64())
    }

    #[test]
    fn a_slow_client_gets_all_that_it_can_take_and_its_buffer_is_rarely_full() {
        for (micros, least) in [(200, 0.4), (1_000, 0.9), (10_000, 0.9), (50_000, 0.9)] {
            let each = Duration::from_micros(micros);
            let (got, full) = slow(each);
            let possible = Duration::from_secs(60).as_secs_f64() / each.as_secs_f64();
            assert!(f64::from(got) > least * possible, "{each:?}: {got} of {possible}");
            assert!(full < 0.1, "{each:?}: full for {full} of the time");
        }
    }

    proptest! {
        #[test]
        fn rests_stay_within_bounds(steps in prop::collection::vec(any::<bool>(), 0..500)) {
            let mut pace = Pace::default();
            for taken in steps {
                let rest = if taken { pace.taken() } else { Some(pace.refused()) };
                prop_assert!(rest.is_none_or(|rest| (SHORTEST..=LONGEST).contains(&rest)));
            }
        }
    }
}
