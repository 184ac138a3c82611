//! Pure arithmetic of the delay ladder.
//! In: how long a job is to wait. Out: the level it enters at and the routing key that leads it
//! down. Level `k` holds a job for 100 ms × 2^k; the key spells the delay in binary.

use std::time::Duration;

/// How many levels the ladder has; the highest alone holds a job for 155 days.
pub const LEVELS: u8 = 28;

const TICK_MS: u128 = 100;
const MAX_TICKS: u128 = (1 << LEVELS) - 1;

/// A delay grows by a twentieth at most to save hops, and never by more than a minute: what a hop
/// costs does not grow with the delay.
const PART: u32 = 20;
const MOST: u32 = 600;

/// A wait that is random anyway shrinks by an eighth at most.
const RANDOM_PART: u32 = 8;

/// A delay that the ladder can carry: 0.1 s to 310 days, in steps of 0.1 s.
///
/// ```
/// use forebay_producer::Delay;
/// use std::time::Duration;
///
/// let delay = Delay::new(Duration::from_millis(250))?.expect("not zero");
/// assert_eq!(delay.duration(), Duration::from_millis(300)); // never early
/// # Ok::<(), forebay_producer::DelayTooLong>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Delay(u32);

/// The delay is longer than the ladder reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a delay of {} is longer than the longest possible, 310 days; publish it later, or keep the \
     date in a database and publish when it is near",
    humantime::format_duration(Duration::from_secs(.0.as_secs()))
)]
pub struct DelayTooLong(pub Duration);

impl Delay {
    /// Rounds a duration to what the ladder carries; `None` for zero.
    ///
    /// A job never runs early: the delay is rounded up to the next 0.1 s, and from there by at
    /// most 5 % or a minute, whichever is less, to the number with the fewest binary ones, because
    /// each one is a hop, which costs the broker replicated writes. Below 2 s it is not rounded
    /// further.
    ///
    /// # Errors
    /// [`DelayTooLong`] above 310 days.
    pub fn new(wanted: Duration) -> Result<Option<Self>, DelayTooLong> {
        let ticks = ticks(wanted)?;
        Ok((ticks > 0).then(|| Self(fewest_ones(ticks))))
    }

    /// As [`Delay::new`], for a wait that is random anyway: it may be shorter by an eighth where
    /// that saves hops, is never longer than `wanted` and 0.1 s, and needs no higher level.
    ///
    /// # Errors
    /// [`DelayTooLong`] above 310 days.
    pub fn roughly(wanted: Duration) -> Result<Option<Self>, DelayTooLong> {
        let ticks = ticks(wanted)?;
        Ok((ticks > 0).then(|| Self(without_the_least(ticks))))
    }

    /// The time a job waits on the ladder, without what its hops take.
    pub fn duration(self) -> Duration {
        Duration::from_millis(u64::from(self.0) * 100)
    }

    /// The level at which the job enters: the highest binary one.
    pub fn level(self) -> u8 {
        (u32::BITS - 1 - self.0.leading_zeros()) as u8
    }

    /// `0.…1.0.1.mail`: 28 binary digits, highest first, then the queue.
    pub fn routing_key(self, queue: &str) -> String {
        let mut key = String::with_capacity(usize::from(LEVELS) * 2 + queue.len());
        for level in (0..LEVELS).rev() {
            key.push(if self.0 >> level & 1 == 1 { '1' } else { '0' });
            key.push('.');
        }
        key.push_str(queue);
        key
    }
}

/// The queue that a ladder routing key leads to.
pub(crate) fn queue_of_routing_key(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn ticks(wanted: Duration) -> Result<u32, DelayTooLong> {
    let ticks = wanted.as_millis().div_ceil(TICK_MS);
    if ticks > MAX_TICKS {
        return Err(DelayTooLong(wanted));
    }
    Ok(u32::try_from(ticks).expect("28 bits, checked above"))
}

/// The number with the fewest ones that is within the bounds, and of those the smallest. Each carry
/// out of the lowest run of ones gives the next number with fewer ones, or as many.
fn fewest_ones(ticks: u32) -> u32 {
    let most = u32::try_from(MAX_TICKS).expect("28 bits").min(ticks + (ticks / PART).min(MOST));
    let (mut best, mut carried) = (ticks, ticks);
    loop {
        carried += carried & carried.wrapping_neg();
        if carried > most {
            return best;
        }
        if carried.count_ones() < best.count_ones() {
            best = carried;
        }
    }
}

/// The number without its lowest ones, as many as an eighth of it has room for.
fn without_the_least(ticks: u32) -> u32 {
    let mut kept = ticks;
    loop {
        let fewer = kept & (kept - 1);
        if ticks - fewer > ticks / RANDOM_PART {
            return kept;
        }
        kept = fewer;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn delay(ms: u64) -> Delay {
        Delay::new(Duration::from_millis(ms)).unwrap().unwrap()
    }

    #[test]
    fn zero_is_no_delay() {
        assert_eq!(Delay::new(Duration::ZERO), Ok(None));
    }

    #[test]
    fn the_routing_key_spells_the_delay_in_binary_and_ends_with_the_queue() {
        let key = delay(500).routing_key("mail");
        assert_eq!(key, format!("{}1.0.1.mail", "0.".repeat(25)));
        assert_eq!(queue_of_routing_key(&key), "mail");
        assert_eq!(delay(500).level(), 2);
    }

    #[test]
    fn a_delay_is_rounded_up_only_as_far_as_that_saves_hops() {
        for (ms, carried_ms, hops) in [
            (100, 100, 1),
            (1_300, 1_300, 3),
            (3_000, 3_000, 4),
            (3_100, 3_200, 1),
            (5_000, 5_000, 3),
            (10_000, 10_000, 3),
            (60_000, 60_800, 3),
            (300_000, 307_200, 2),
            // A minute is the most that is added.
            (3_600_000, 3_609_600, 4),
            (86_400_000, 86_425_600, 5),
        ] {
            let delay = delay(ms);
            let carried = delay.duration().as_millis() as u64;
            assert_eq!((carried, delay.0.count_ones()), (carried_ms, hops), "{ms} ms");
        }
    }

    #[test]
    fn more_than_310_days_is_refused_with_the_remedy() {
        let error = Delay::new(Duration::from_secs(311 * 24 * 3600)).unwrap_err();
        assert!(error.to_string().contains("310 days"), "{error}");
        assert!(Delay::new(Duration::from_secs(310 * 24 * 3600)).is_ok());
    }

    proptest! {
        #[test]
        fn a_delay_is_never_early_and_late_within_its_bounds(ms in 1u64..26_843_545_000) {
            let carried = delay(ms).duration().as_millis() as u64;
            prop_assert!(carried >= ms);
            prop_assert!(carried - ms <= 100 + ((ms + 100) / 20).min(60_000));
        }

        #[test]
        fn no_other_delay_within_the_bounds_has_fewer_ones_or_as_few_and_is_shorter(
            ticks in 1u32..200_000,
        ) {
            let best = (ticks..=ticks + (ticks / 20).min(600)).min_by_key(|ticks| ticks.count_ones());
            prop_assert_eq!(Some(fewest_ones(ticks)), best);
        }

        #[test]
        fn a_rough_delay_is_little_shorter_and_needs_neither_more_hops_nor_a_higher_level(
            ms in 1u64..26_843_545_000,
        ) {
            let rough = Delay::roughly(Duration::from_millis(ms)).unwrap().unwrap();
            let carried = rough.duration().as_millis() as u64;
            prop_assert!(carried < ms + 100 && carried >= ms - ms / 8);
            prop_assert!(rough.level() <= delay(ms).level());
            prop_assert!(rough.0.count_ones() <= u32::try_from(ms.div_ceil(100)).unwrap().count_ones());
        }

        #[test]
        fn the_levels_passed_add_up_to_the_delay(ms in 1u64..26_000_000_000) {
            let delay = delay(ms);
            let key = delay.routing_key("q");
            let waited: u64 = key.split('.').take(28).enumerate()
                .filter(|(_, digit)| *digit == "1")
                .map(|(place, _)| 100u64 << (27 - place))
                .sum();
            prop_assert_eq!(u128::from(waited), delay.duration().as_millis());
        }
    }
}
