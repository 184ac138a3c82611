//! Whether the broker still has the consumer that we believe to have, pure.
//! In: looks at the queue, each with the generation that was up meanwhile. Out: whether that
//! generation is to be given up.

use std::time::Duration;

use tokio::time::Instant;

/// How long the broker must have known of no consumer. A queue that is about to get a new leader
/// may say so for a while, and a loss stops the jobs that run.
const SPELL: Duration = Duration::from_secs(20);

/// What earlier looks have shown.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Presence {
    /// The generation that was missing at the last look, and since when.
    missing: Option<(u64, Instant)>,
}

impl Presence {
    /// Notes a look that was answered at `now`: `up` is the generation that was up from its begin
    /// to its end. `true`: the broker does not have it, and said so in all looks for a while.
    pub(crate) fn see(&mut self, up: Option<u64>, consumers: u32, now: Instant) -> bool {
        let (Some(up), 0) = (up, consumers) else {
            self.missing = None;
            return false;
        };
        match self.missing {
            Some((missing, since)) if missing == up => now.duration_since(since) >= SPELL,
            _ => {
                self.missing = Some((up, now));
                false
            }
        }
    }

    /// Whether the last look leaves a doubt that the next one should settle soon.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.missing.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Looks at these seconds, each with the generation that was up and the consumers seen.
    fn after(looks: &[(u64, Option<u64>, u32)]) -> bool {
        let (mut presence, begin) = (Presence::default(), Instant::now());
        let look =
            |&(s, up, consumers)| presence.see(up, consumers, begin + Duration::from_secs(s));
        looks.iter().map(look).last().unwrap()
    }

    #[test]
    fn a_consumer_is_absent_once_no_look_has_shown_it_for_a_while() {
        assert!(!after(&[(0, Some(1), 0)]), "one look is not enough");
        assert!(!after(&[(0, Some(1), 0), (5, Some(1), 0)]), "nor are two that are close");
        assert!(after(&[(0, Some(1), 0), (5, Some(1), 0), (20, Some(1), 0)]));
        assert!(after(&[(0, Some(1), 0), (30, Some(1), 0)]));
    }

    #[test]
    fn it_is_not_if_it_was_seen_in_between_or_is_another_one_or_is_not_up() {
        assert!(!after(&[(0, Some(1), 0), (30, Some(1), 1), (60, Some(1), 0)]));
        assert!(!after(&[(0, Some(1), 0), (30, Some(2), 0)]));
        assert!(!after(&[(0, Some(1), 0), (30, None, 0)]));
        assert!(!after(&[(0, Some(1), 0), (30, None, 0), (60, Some(1), 0)]));
    }

    proptest! {
        /// Whoever is given up was missing in two looks at least, with none between that saw it.
        #[test]
        fn nobody_is_given_up_who_was_seen_a_moment_ago(
            looks in proptest::collection::vec((0u64..40, 0u64..3, 0u32..2), 1..30),
        ) {
            let mut presence = Presence::default();
            let (mut now, mut missing_since) = (Instant::now(), None);
            for (pause, up, consumers) in looks {
                now += Duration::from_secs(pause);
                let up = (up > 0).then_some(up);
                let absent = presence.see(up, consumers, now);
                missing_since = match (up, consumers, missing_since) {
                    (Some(up), 0, Some((of, since))) if of == up => Some((of, since)),
                    (Some(up), 0, _) => Some((up, now)),
                    _ => None,
                };
                let long = missing_since.is_some_and(|(_, since): (u64, Instant)| now - since >= SPELL);
                prop_assert_eq!(absent, long);
                prop_assert_eq!(presence.is_in_doubt(), missing_since.is_some());
            }
        }
    }
}
