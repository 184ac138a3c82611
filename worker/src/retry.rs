//! Retry policy: data and one pure function.
//! In: which attempt has failed. Out: how long to wait for the next, or that there is none.

use std::time::Duration;

/// How often and how soon a failed job is tried again.
///
/// The default is 5 attempts, exponential from 1 s up to 1 h, with full jitter (a uniformly random
/// part of the wait, so that many failures at once do not come back at once; M. Brooker,
/// "Exponential Backoff And Jitter", 2015).
///
/// ```
/// use forebay_worker::Retry;
/// use std::time::Duration;
///
/// let retry = Retry { max_attempts: 3, jitter: false, ..Retry::default() };
/// assert_eq!(retry.delay(1, 0.5), Some(Duration::from_secs(1)));
/// assert_eq!(retry.delay(2, 0.5), Some(Duration::from_secs(2)));
/// assert_eq!(retry.delay(3, 0.5), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retry {
    /// Runs in all, the first included; 1 means never again.
    pub max_attempts: u32,
    /// The wait after the first failure.
    pub base: Duration,
    /// What each further wait is multiplied by.
    pub factor: f64,
    /// The longest wait.
    pub cap: Duration,
    /// Whether a random part of the wait is taken instead of the whole.
    pub jitter: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            base: Duration::from_secs(1),
            factor: 2.0,
            cap: Duration::from_secs(3600),
            jitter: true,
        }
    }
}

impl Retry {
    /// One attempt only.
    pub fn never() -> Self {
        Self { max_attempts: 1, ..Self::default() }
    }

    /// So many attempts, with the same wait before each.
    pub fn fixed(max_attempts: u32, wait: Duration) -> Self {
        Self { max_attempts, base: wait, factor: 1.0, cap: wait, jitter: false }
    }

    /// The wait after failed attempt number `attempt` (from 1), or `None` when it was the last.
    /// `chance` is a random number in 0..1.
    pub fn delay(&self, attempt: u32, chance: f64) -> Option<Duration> {
        if attempt >= self.max_attempts {
            return None;
        }
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let growth = self.factor.max(1.0).powi(exponent).min(f64::MAX);
        let grown = Duration::try_from_secs_f64(self.base.as_secs_f64() * growth);
        let whole = grown.map_or(self.cap, |grown| grown.min(self.cap));
        Some(if self.jitter { whole.mul_f64(chance.clamp(0.0, 1.0)) } else { whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_double_up_to_the_cap() {
        let retry = Retry { max_attempts: 50, jitter: false, ..Retry::default() };
        let waits: Vec<_> = (1..=14).filter_map(|attempt| retry.delay(attempt, 0.0)).collect();
        assert_eq!((waits[0].as_secs(), waits[1].as_secs(), waits[5].as_secs()), (1, 2, 32));
        assert_eq!(waits[13], retry.cap);
    }

    #[test]
    fn never_means_one_attempt() {
        assert_eq!(Retry::never().delay(1, 0.5), None);
    }

    proptest! {
        #[test]
        fn no_policy_panics_or_exceeds_its_cap(
            attempt in 0u32..u32::MAX, base in prop_oneof![Just(0), 0u64..1_000_000], factor in 0.0f64..1e9,
            cap in 0u64..10_000_000, chance in -1.0f64..2.0,
        ) {
            let (base, cap) = (Duration::from_secs(base), Duration::from_secs(cap));
            let retry = Retry { max_attempts: u32::MAX, base, factor, cap, jitter: true };
            if let Some(wait) = retry.delay(attempt, chance) {
                prop_assert!(wait <= cap);
            }
        }
    }
}
