//! How much one client, and one subject, may ask for.
//! In: who asks, and when. Out: a place, or a refusal that says when to come again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::refusal::{Code, Refusal};

/// So many subjects are remembered before those that are idle are forgotten.
const SWEEP: usize = 1_024;

/// How often something may be done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    pub(crate) burst: f64,
}

/// A bucket of tokens: each act takes one, time brings them back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self { level: rate.burst, at: now }
    }

    /// Takes one, or says when there will be one.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * rate.per_second).min(rate.burst);
        self.at = self.at.max(now);
        if self.level >= 1.0 {
            self.level -= 1.0;
            return Ok(());
        }
        let wait = (1.0 - self.level) / rate.per_second;
        Err(Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX))
    }

    fn is_full(&self, rate: Rate, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level + passed * rate.per_second >= rate.burst
    }
}

/// What one client or subject may do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Limits {
    /// Bytes of one message.
    pub(crate) message: usize,
    /// Messages of one connection.
    pub(crate) frames: Rate,
    /// Rooms that one connection follows.
    pub(crate) subscriptions: usize,
    /// Connections of one subject.
    pub(crate) connections: usize,
    /// Jobs that one subject publishes.
    pub(crate) publishes: Rate,
    /// HTTP requests of one subject.
    pub(crate) requests: Rate,
}

/// Who is in, and how much each has asked for.
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) limits: Limits,
    subjects: Mutex<HashMap<String, Subject>>,
}

#[derive(Debug)]
struct Subject {
    connections: usize,
    publishes: Bucket,
    requests: Bucket,
}

/// A connection's right to be there; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    house: Arc<House>,
    subject: String,
}

impl House {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, subjects: Mutex::default() })
    }

    /// Lets in one more connection of a subject.
    pub(crate) fn enter(self: &Arc<Self>, subject: &str) -> Result<Place, Refusal> {
        let most = self.limits.connections;
        self.with(subject, Instant::now(), |known| {
            if known.connections >= most {
                return Err(Refusal::new(
                    Code::TooMany,
                    format!("you have {most} connections, which is as many as you may have"),
                    "close one of them first",
                ));
            }
            known.connections += 1;
            Ok(())
        })?;
        Ok(Place { house: Arc::clone(self), subject: subject.to_owned() })
    }

    /// Counts one job that a subject publishes.
    pub(crate) fn publish(&self, subject: &str, now: Instant) -> Result<(), Refusal> {
        let rate = self.limits.publishes;
        self.with(subject, now, |known| known.publishes.take(rate, now))
            .map_err(|wait| too_often("jobs", rate, wait))
    }

    /// Counts one HTTP request of a subject.
    pub(crate) fn request(&self, subject: &str, now: Instant) -> Result<(), Refusal> {
        let rate = self.limits.requests;
        self.with(subject, now, |known| known.requests.take(rate, now))
            .map_err(|wait| too_often("requests", rate, wait))
    }

    fn with<T>(&self, subject: &str, now: Instant, act: impl FnOnce(&mut Subject) -> T) -> T {
        let mut subjects = self.subjects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = subjects.get_mut(subject) {
            return act(known);
        }
        // Amortised: a sweep makes room for as many as it looked at.
        if subjects.len() >= SWEEP && subjects.len() == subjects.capacity() {
            subjects.retain(|_, known| !known.is_idle(&self.limits, now));
        }
        let new = Subject {
            connections: 0,
            publishes: Bucket::full(self.limits.publishes, now),
            requests: Bucket::full(self.limits.requests, now),
        };
        act(subjects.entry(subject.to_owned()).or_insert(new))
    }
}

impl Subject {
    fn is_idle(&self, limits: &Limits, now: Instant) -> bool {
        self.connections == 0
            && self.publishes.is_full(limits.publishes, now)
            && self.requests.is_full(limits.requests, now)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut subjects = self.house.subjects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = subjects.get_mut(&self.subject) {
            known.connections = known.connections.saturating_sub(1);
        }
    }
}

pub(crate) fn too_often(what: &str, rate: Rate, wait: Duration) -> Refusal {
    let Rate { per_second, burst } = rate;
    Refusal::new(
        Code::RateLimited,
        format!("more than {per_second} {what} a second, after the first {burst}"),
        "wait for `retry_after_ms`, then go on more slowly",
    )
    .retry_after(wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLOW: Rate = Rate { per_second: 2.0, burst: 3.0 };

    fn limits() -> Limits {
        Limits {
            message: 100,
            frames: SLOW,
            subscriptions: 2,
            connections: 2,
            publishes: SLOW,
            requests: SLOW,
        }
    }

    #[test]
    fn a_subject_has_so_many_connections_and_the_place_of_one_that_left_is_free() {
        let house = House::new(limits());
        let one = house.enter("ada").unwrap();
        let _two = house.enter("ada").unwrap();
        assert_eq!(house.enter("ada").unwrap_err().code(), Code::TooMany);
        assert!(house.enter("bob").is_ok(), "others do not suffer");
        drop(one);
        assert!(house.enter("ada").is_ok());
    }

    #[test]
    fn who_publishes_too_fast_is_told_when_to_come_again() {
        let (house, now) = (House::new(limits()), Instant::now());
        for _ in 0..3 {
            house.publish("ada", now).unwrap();
        }
        let refused = house.publish("ada", now).unwrap_err();
        assert_eq!((refused.code(), refused.wait()), (Code::RateLimited, Some(ms(500))));
        assert!(house.publish("bob", now).is_ok() && house.request("ada", now).is_ok());
        assert!(house.publish("ada", now + ms(499)).is_err());
        assert!(house.publish("ada", now + ms(500)).is_ok());
    }

    #[test]
    fn those_who_are_gone_are_forgotten() {
        let (house, now) = (House::new(limits()), Instant::now());
        let _stays = house.enter("stays").unwrap();
        for n in 0..100_000_u32 {
            house.request(&n.to_string(), now + ms(u64::from(n))).unwrap();
        }
        let subjects = house.subjects.lock().unwrap();
        assert!(subjects.len() < 4 * SWEEP, "{}", subjects.len());
        assert_eq!(subjects["stays"].connections, 1);
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    proptest! {
        #[test]
        fn no_more_passes_than_the_rate_allows(steps in prop::collection::vec(0_u64..2_000, 1..200)) {
            let start = Instant::now();
            let (mut now, mut taken) = (start, 0_u32);
            let mut bucket = Bucket::full(SLOW, start);
            for step in steps {
                now += ms(step);
                match bucket.take(SLOW, now) {
                    Ok(()) => taken += 1,
                    // Who waits as long as was said gets one.
                    Err(wait) => prop_assert!(bucket.clone().take(SLOW, now + wait + ms(1)).is_ok()),
                }
            }
            let most = SLOW.burst + SLOW.per_second * (now - start).as_secs_f64();
            prop_assert!(f64::from(taken) <= most + 0.001, "{} of {}", taken, most);
        }
    }
}
