//! What is told of a job that ends, or comes again: pure.
//! In: the job, and what is to become of it. Out: an event, or nothing.

use forebay_producer::{Delay, Envelope, Event, Failure, Reason};

use crate::handler::Output;
use crate::verdict::Why;

/// Another job with its key did the work before.
pub(crate) fn duplicate(job: &Envelope, known: Option<&Output>) -> Event {
    Event::duplicate(job, known.and_then(Output::json).map(AsRef::as_ref))
}

/// It is a dead letter.
pub(crate) fn dead(job: &Envelope, letter: &Envelope) -> Event {
    let reason = letter.dead.as_ref().map_or("failed", |mark| mark.reason.as_str());
    let error = letter.failures.last().map_or("", |failure| failure.message.as_str());
    Event::dead(job, reason, error)
}

/// It comes again, as `next`. Of a job that nobody tracks only failures are told; nobody is told of
/// one that was not run, because another run has its key.
pub(crate) fn retrying(
    job: &Envelope,
    delay: Option<Delay>,
    next: &Envelope,
    why: &Why,
) -> Option<Event> {
    let put_off = |reason: &str, message: &str| {
        let reason = Reason::Other(reason.to_owned());
        job.track.then(|| Failure::new(0, job.attempt, reason, message, ""))
    };
    let failure = match why {
        Why::Retry => next.failures.last().cloned()?,
        Why::Deferral(message) => put_off("deferred", message)?,
        Why::Grace => put_off("unknown_kind", "no handler knows it yet")?,
        Why::Suspect => put_off("crashed", "its process died, or lost its connection")?,
        Why::Waits => return None,
    };
    Some(Event::retrying(job, delay.map(Delay::duration).unwrap_or_default(), &failure))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use forebay_producer::DeadMark;

    use super::*;

    fn job(track: bool) -> Envelope {
        let mut job = Envelope::new("email.send", "mail", "{}");
        job.track = track;
        job
    }

    fn failed(job: &Envelope) -> Envelope {
        let mut next = job.clone();
        next.attempt += 1;
        next.failures.push(Failure::new(1, 1, Reason::Timeout, "too slow", "node/1"));
        next
    }

    #[test]
    fn a_failure_is_told_of_every_job_and_a_put_off_of_a_tracked_one() {
        let delay = Delay::new(Duration::from_secs(3)).unwrap();
        for (why, tracked, untracked) in [
            (Why::Retry, true, true),
            (Why::Deferral("closed".into()), true, false),
            (Why::Grace, true, false),
            (Why::Suspect, true, false),
            (Why::Waits, false, false),
        ] {
            for (track, expected) in [(true, tracked), (false, untracked)] {
                let job = job(track);
                let told = retrying(&job, delay, &failed(&job), &why);
                assert_eq!(told.is_some(), expected, "{why:?}, tracked: {track}");
            }
        }
    }

    #[test]
    fn what_is_told_names_the_attempt_that_failed_the_wait_and_the_reason() {
        let job = job(false);
        let delay = Delay::new(Duration::from_secs(3)).unwrap();
        let told = retrying(&job, delay, &failed(&job), &Why::Retry).unwrap();
        let data = r#"{"delay_ms":3000,"reason":"timeout","error":"too slow"}"#;
        assert_eq!((told.attempt, told.data.get()), (Some(1), data));
    }

    #[test]
    fn a_dead_letter_is_told_with_its_reason_and_last_error() {
        let job = job(true);
        let mut letter = failed(&job);
        letter.dead = Some(DeadMark::new(Reason::Rejected, 1));
        let data = dead(&job, &letter).data.get().to_owned();
        assert_eq!(data, r#"{"reason":"rejected","error":"too slow"}"#);
    }
}
