//! What becomes of a job, pure.
//! In: what happened to its run, the job, its policy. Out: a verdict, with the envelope to publish
//! where the job goes on; `settle` carries it out.

use std::time::Duration;

use forebay_producer::{DeadMark, Delay, DelayTooLong, Envelope, Failure, QueueType, Reason};

use crate::error::{JobError, Then};
use crate::execute::Outcome;
use crate::handler::Output;
use crate::retry::Retry;

/// A rolling deploy may bring the handler: three graces before an unknown kind is dead.
const GRACES: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(25)];
const MOST_DEFERRALS: u32 = 20;
/// How often a process may die under a job.
pub(crate) const MOST_CRASHES: u32 = 10;

/// What becomes of a job.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Done.
    Ack(Output),
    /// Done before, by another job of the same key; with what is known of its result.
    Duplicate(Option<Output>),
    /// It comes again after a while; this is what comes.
    Again {
        /// How long it waits; `None`: not at all.
        delay: Option<Delay>,
        /// What is published.
        envelope: Box<Envelope>,
        /// Why, for the log.
        why: Why,
    },
    /// It is kept as a dead letter; this is what is kept.
    Dead(Box<Envelope>),
    /// It was not run, or not to an end: back to the queue as it is.
    GiveBack,
}

/// Why a job comes again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    /// It failed and has attempts left.
    Retry,
    /// Its handler may come with a deploy.
    Grace,
    /// Its handler put it off, for this reason.
    Deferral(String),
    /// A process died under it: it runs alone next time.
    Suspect,
    /// Another run has its key, or may have it.
    Waits,
}

/// The facts besides the outcome that a decision rests on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) retry: Retry,
    /// A random number in 0..1.
    pub(crate) chance: f64,
    pub(crate) now_ms: u64,
    pub(crate) worker: &'a str,
}

/// Decides after a run.
pub(crate) fn decide(outcome: Outcome, job: &Envelope, facts: &Facts<'_>) -> Verdict {
    match outcome {
        Outcome::Done(output) => Verdict::Ack(output),
        Outcome::Duplicate(output) => Verdict::Duplicate(output),
        Outcome::Waits(wait) => waits(wait, job, facts),
        Outcome::Cancelled => Verdict::GiveBack,
        Outcome::Failed(error) => failed(&error, job, facts),
        Outcome::TimedOut(timeout) => {
            let timeout = humantime::format_duration(timeout);
            let message = format!("the handler took longer than its timeout of {timeout}");
            retry(Reason::Timeout, message, None, job, facts)
        }
        Outcome::Panicked(message) => retry(Reason::Panic, message, None, job, facts),
        Outcome::Undecodable(message) => dead(Reason::Undecodable, message, job, facts),
        Outcome::Unknown(message) => unknown(message, job, facts),
        Outcome::Forged(why) => dead(why.reason(), why.to_string(), job, facts),
        Outcome::Expired => {
            dead(Reason::Expired, "its time had passed before it could run".into(), job, facts)
        }
    }
}

/// Decides before a run whether a job is suspected of killing its process: then it is not run in
/// the company of its neighbours, but moved away. The count is of deliveries that ended without an
/// ack; `None` from brokers and queue types that do not count, where `redelivered` stands in.
pub(crate) fn suspect(job: &Envelope, most_crashes: u32, facts: &Facts<'_>) -> Option<Verdict> {
    let deaths = deaths(job);
    // A job that already ran alone is not given a second chance in company.
    let counts = job.broker.delivery_count.is_some();
    let enough = if job.crashes == 0 && counts { 2 } else { 1 };
    if deaths < enough {
        return None;
    }
    let mut moved = job.clone();
    moved.crashes = job.crashes.saturating_add(deaths);
    if moved.crashes >= most_crashes {
        let message = format!(
            "it was delivered {} times to a process that died, or lost its connection, before it \
             was settled",
            moved.crashes
        );
        return Some(dead(Reason::Crashed, message, &moved, facts));
    }
    let after = Duration::from_secs_f64(0.3 + 9.7 * facts.chance);
    Some(again(Delay::roughly(after), moved, Why::Suspect).unwrap_or(Verdict::GiveBack))
}

/// Deliveries that ended without an ack.
fn deaths(job: &Envelope) -> u32 {
    job.broker.delivery_count.unwrap_or(u32::from(job.broker.redelivered))
}

/// It was not run, so nothing speaks for it: its deaths go along, which the copy would forget.
/// Otherwise a job that kills its process each time would find its own claim, wait, and kill again.
fn waits(wait: Duration, job: &Envelope, facts: &Facts<'_>) -> Verdict {
    let mut next = job.clone();
    next.crashes = job.crashes.saturating_add(deaths(job));
    // Duplicates that wait for one run are not to come back all at once.
    let wait = wait.mul_f64(0.75 + 0.5 * facts.chance);
    again(Delay::roughly(wait), next, Why::Waits).unwrap_or(Verdict::GiveBack)
}

/// How many deaths make a suspect of a job on a queue of this type.
pub(crate) fn deaths_of_a_suspect(queue: QueueType) -> u32 {
    if queue == QueueType::Classic { 1 } else { 2 }
}

fn failed(error: &JobError, job: &Envelope, facts: &Facts<'_>) -> Verdict {
    let message = error.message();
    match error.then {
        Then::Reject => dead(Reason::Rejected, message, job, facts),
        Then::Retry => retry(Reason::Failed, message, None, job, facts),
        Then::RetryAfter(delay) => retry(Reason::Failed, message, Some(delay), job, facts),
        Then::Wait(wait) => waits(wait, job, facts),
        Then::Defer(after) if job.deferrals < MOST_DEFERRALS => {
            let mut next = job.clone();
            next.deferrals += 1;
            again(Delay::new(after), next, Why::Deferral(message.clone()))
                .unwrap_or_else(|why| dead(Reason::Failed, format!("{message}: {why}"), job, facts))
        }
        Then::Defer(_) => {
            let message = format!("{message}, for the {MOST_DEFERRALS}th time in a row");
            retry(Reason::Failed, message, None, job, facts)
        }
    }
}

fn retry(
    reason: Reason,
    message: String,
    wanted: Option<Duration>,
    job: &Envelope,
    facts: &Facts<'_>,
) -> Verdict {
    let Some(wait) = facts.retry.delay(job.attempt, facts.chance) else {
        return dead(reason, message, job, facts);
    };
    let mut next = recorded(reason.clone(), message.clone(), job, facts);
    next.attempt = job.attempt.saturating_add(1);
    next.deferrals = 0;
    let delay = match wanted {
        Some(wanted) => Delay::new(wanted),
        // A random part is taken anyway: then few hops are worth more than an exact wait.
        None if facts.retry.jitter => Delay::roughly(wait),
        None => Delay::new(wait),
    };
    again(delay, next, Why::Retry)
        .unwrap_or_else(|why| dead(reason, format!("{message}; and {why}"), job, facts))
}

/// # Errors
/// When no delay is as long.
fn again(
    delay: Result<Option<Delay>, DelayTooLong>,
    envelope: Envelope,
    why: Why,
) -> Result<Verdict, DelayTooLong> {
    Ok(Verdict::Again { delay: delay?, envelope: Box::new(envelope), why })
}

fn unknown(message: String, job: &Envelope, facts: &Facts<'_>) -> Verdict {
    match GRACES.get(job.graces as usize) {
        Some(after) => {
            let mut next = job.clone();
            next.graces += 1;
            again(Delay::new(*after), next, Why::Grace).unwrap_or(Verdict::GiveBack)
        }
        None => dead(Reason::UnknownKind, message, job, facts),
    }
}

fn dead(reason: Reason, message: String, job: &Envelope, facts: &Facts<'_>) -> Verdict {
    let mut letter = recorded(reason.clone(), message, job, facts);
    letter.dead = Some(DeadMark::new(reason, facts.now_ms));
    Verdict::Dead(Box::new(letter))
}

fn recorded(reason: Reason, message: String, job: &Envelope, facts: &Facts<'_>) -> Envelope {
    let mut next = job.clone();
    next.failures.push(Failure::new(facts.now_ms, job.attempt, reason, message, facts.worker));
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Envelope {
        Envelope::new("email.send", "mail", "{}")
    }

    fn facts() -> Facts<'static> {
        let retry = Retry { max_attempts: 3, jitter: false, ..Retry::default() };
        Facts { retry, chance: 0.5, now_ms: 1_000, worker: "host/1" }
    }

    fn fails() -> Outcome {
        Outcome::Failed(JobError::retry(anyhow::anyhow!("smtp is down").context("sending")))
    }

    fn reason(verdict: &Verdict) -> &str {
        let Verdict::Dead(letter) = verdict else { panic!("{verdict:?}") };
        letter.dead.as_ref().unwrap().reason.as_str()
    }

    fn again(verdict: Verdict) -> (Duration, Envelope, Why) {
        let Verdict::Again { delay, envelope, why } = verdict else { panic!("{verdict:?}") };
        (delay.map(Delay::duration).unwrap_or_default(), *envelope, why)
    }

    #[test]
    fn success_is_acked() {
        let outcome = Outcome::Done(Output::none());
        assert!(matches!(decide(outcome, &job(), &facts()), Verdict::Ack(_)));
    }

    #[test]
    fn an_error_with_attempts_left_is_retried_with_the_failure_recorded() {
        let (after, next, why) = again(decide(fails(), &job(), &facts()));
        assert_eq!((after, next.attempt, why), (Duration::from_secs(1), 2, Why::Retry));
        let failure = &next.failures[0];
        assert_eq!((failure.attempt, failure.message.as_str()), (1, "sending: smtp is down"));
        assert_eq!((failure.worker.as_str(), failure.at_ms), ("host/1", 1_000));
    }

    #[test]
    fn a_random_wait_takes_few_hops_and_a_stated_one_is_kept() {
        let retry = Retry { base: Duration::from_secs(61), ..Retry::default() };
        let random = Facts { retry, chance: 0.999, ..facts() };
        // 61 s are 610 steps of the ladder, 1001100010 in binary; 57.6 s are 1001000000.
        assert_eq!(again(decide(fails(), &job(), &random)).0, Duration::from_millis(57_600));
        let stated = Facts { retry: Retry { jitter: false, ..retry }, ..facts() };
        assert!(again(decide(fails(), &job(), &stated)).0 >= Duration::from_secs(61));
        let asks = Outcome::Failed(JobError::retry_after(Duration::from_secs(61)));
        assert!(again(decide(asks, &job(), &random)).0 >= Duration::from_secs(61));
    }

    #[test]
    fn the_last_attempt_goes_to_the_dead_letter_queue() {
        let mut last = job();
        last.attempt = 3;
        assert_eq!(reason(&decide(fails(), &last, &facts())), "failed");
        last.attempt = 2;
        assert!(matches!(decide(fails(), &last, &facts()), Verdict::Again { .. }));
    }

    #[test]
    fn every_outcome_that_cannot_be_mended_by_waiting_is_dead_at_once_with_its_reason() {
        let rejected = Outcome::Failed(JobError::reject(anyhow::anyhow!("no such account")));
        assert_eq!(reason(&decide(rejected, &job(), &facts())), "rejected");
        assert_eq!(
            reason(&decide(Outcome::Undecodable("x".into()), &job(), &facts())),
            "undecodable"
        );
        assert_eq!(reason(&decide(Outcome::Expired, &job(), &facts())), "expired");
    }

    #[test]
    fn timeout_and_panic_are_retried_and_keep_their_reason_at_the_end() {
        for (outcome, expected) in [
            (Outcome::TimedOut(Duration::from_secs(1)), "timeout"),
            (Outcome::Panicked("boom".into()), "panic"),
        ] {
            let mut last = job();
            last.attempt = 3;
            assert_eq!(reason(&decide(outcome, &last, &facts())), expected);
        }
        let first = decide(Outcome::TimedOut(Duration::from_secs(1)), &job(), &facts());
        assert_eq!(again(first).1.failures[0].reason, Reason::Timeout);
    }

    #[test]
    fn an_unknown_kind_has_three_graces_that_cost_no_attempt() {
        let mut job = job();
        for seconds in [1, 5, 25] {
            let (after, next, why) = again(decide(Outcome::Unknown("?".into()), &job, &facts()));
            let grace = Duration::from_secs(seconds);
            assert!(after >= grace && after <= grace.mul_f64(1.05), "{after:?}");
            assert_eq!(why, Why::Grace);
            assert_eq!((next.attempt, next.failures.len()), (1, 0));
            job = next;
        }
        assert_eq!(reason(&decide(Outcome::Unknown("?".into()), &job, &facts())), "unknown_kind");
    }

    #[test]
    fn retry_after_overrides_the_policy_but_not_the_number_of_attempts() {
        let wait = Duration::from_secs(64);
        let asks = || Outcome::Failed(JobError::retry_after(wait));
        assert_eq!(again(decide(asks(), &job(), &facts())).0, wait);
        let mut last = job();
        last.attempt = 3;
        assert_eq!(reason(&decide(asks(), &last, &facts())), "failed");
    }

    #[test]
    fn a_wait_longer_than_the_ladder_reaches_makes_a_dead_letter_that_says_so() {
        let years = Duration::from_secs(400 * 86_400);
        let asks = Outcome::Failed(JobError::retry_after(years).because(anyhow::anyhow!("closed")));
        let verdict = decide(asks, &job(), &facts());
        assert_eq!(reason(&verdict), "failed");
        let Verdict::Dead(letter) = verdict else { panic!() };
        let message = &letter.failures[0].message;
        assert!(message.contains("closed") && message.contains("310 days"), "{message}");
    }

    #[test]
    fn a_deferral_uses_no_attempt_twenty_times_in_a_row() {
        let mut job = job();
        let asks = || {
            Outcome::Failed(
                JobError::defer(Duration::from_secs(9)).because(anyhow::anyhow!("closed")),
            )
        };
        for _ in 0..MOST_DEFERRALS {
            let (after, next, why) = again(decide(asks(), &job, &facts()));
            assert_eq!((after, next.attempt), (Duration::from_secs(9), 1));
            assert_eq!(why, Why::Deferral("closed".to_owned()));
            job = next;
        }
        let (_, next, why) = again(decide(asks(), &job, &facts()));
        assert_eq!((next.attempt, next.deferrals, why), (2, 0, Why::Retry));
    }

    #[test]
    fn what_was_not_run_to_its_end_goes_back_without_using_an_attempt() {
        assert!(matches!(decide(Outcome::Cancelled, &job(), &facts()), Verdict::GiveBack));
    }

    #[test]
    fn a_job_that_waits_for_another_uses_neither_attempt_nor_deferral_and_keeps_its_deaths() {
        let wait = Duration::from_secs(2);
        let mut job = redelivered(1, 0);
        (job.attempt, job.deferrals) = (2, MOST_DEFERRALS);
        for deaths in 1..50 {
            let (after, next, why) = again(decide(Outcome::Waits(wait), &job, &facts()));
            assert_eq!((after, why), (wait, Why::Waits));
            assert_eq!((next.attempt, next.deferrals, next.crashes), (2, MOST_DEFERRALS, deaths));
            assert!(next.failures.is_empty());
            job.crashes = next.crashes;
        }
    }

    #[test]
    fn a_duplicate_is_acked_with_the_result_that_was_kept() {
        let outcome = Outcome::Duplicate(Some(Output::from_json("7")));
        let Verdict::Duplicate(Some(output)) = decide(outcome, &job(), &facts()) else { panic!() };
        assert_eq!(output, Output::from_json("7"));
    }

    fn redelivered(count: u32, crashes: u32) -> Envelope {
        let mut job = job();
        job.broker.redelivered = true;
        job.broker.delivery_count = Some(count);
        job.crashes = crashes;
        job
    }

    #[test]
    fn the_second_death_makes_a_suspect_and_the_tenth_a_dead_letter() {
        let decide = |job: &Envelope| suspect(job, MOST_CRASHES, &facts());
        assert!(decide(&job()).is_none());
        assert!(decide(&redelivered(1, 0)).is_none());
        let (after, moved, why) = again(decide(&redelivered(2, 0)).unwrap());
        assert_eq!((moved.crashes, moved.attempt, why), (2, 1, Why::Suspect));
        assert!(after >= Duration::from_millis(300) && after <= Duration::from_secs(10));
        assert_eq!(again(decide(&redelivered(1, 2)).unwrap()).1.crashes, 3);
        assert_eq!(reason(&decide(&redelivered(1, 9)).unwrap()), "crashed");
    }

    #[test]
    fn a_queue_that_does_not_count_deliveries_goes_by_the_redelivered_flag() {
        let mut job = job();
        job.broker.redelivered = true;
        assert_eq!(again(suspect(&job, MOST_CRASHES, &facts()).unwrap()).1.crashes, 1);
    }
}
