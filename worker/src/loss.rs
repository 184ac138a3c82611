//! What a queue that is not consumed says of it, pure: the cause, and what mends it.
//! In: a fault, and what is known of the queue. Out: words for log, status and readiness.

use std::time::Duration;

use forebay_producer::link::fault::Fault;

/// What is known of the queue that is not consumed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About<'a> {
    /// Its full name at the broker.
    pub(crate) queue: &'a str,
    /// The broker's consumer timeout, as the worker was told.
    pub(crate) consumer_timeout: Duration,
    /// How long the oldest of its jobs has run here.
    pub(crate) longest: Option<Duration>,
}

/// The cause, and the remedy where there is one besides waiting.
pub(crate) fn explain(fault: &Fault, about: &About<'_>) -> String {
    let queue = about.queue;
    match fault {
        Fault::Denied(because) if !because.contains("grant") && !because.contains("apply") => {
            format!("{because}; grant this user `read` on queue `{queue}`")
        }
        Fault::Locked(because) => format!(
            "{because}: another consumer has queue `{queue}` for itself, and ours has to wait for \
             its end; `rabbitmqctl list_consumers` names it"
        ),
        Fault::Overdue(because) => format!("{because} {}", overdue(because, about)),
        Fault::Cancelled => format!("{fault}: {}", cancelled(about)),
        other => other.to_string(),
    }
}

/// The broker has taken back a delivery that was not acknowledged in time, before 4.3 with all
/// others of its channel.
fn overdue(because: &str, about: &About<'_>) -> String {
    let told = about.consumer_timeout;
    match timeout_used(because) {
        Some(used) if used < told => format!(
            "This worker was told {}: put `consumer_timeout = {}` in rabbitmq.conf, or tell the \
             worker what the broker is set to (`consumer_timeout`), so that longer handlers are \
             refused",
            show(told),
            told.as_millis()
        ),
        _ => format!(
            "A job was here for longer than that{}: a blocking handler that runs on after its \
             timeout should look at `is_cancelled`",
            longest(about)
        ),
    }
}

/// RabbitMQ does not say why it cancels.
fn cancelled(about: &About<'_>) -> String {
    let moved = "its queue was deleted or got another leader";
    match about.longest {
        Some(longest) if longest >= about.consumer_timeout / 2 => format!(
            "{moved}, or a job was unacknowledged for longer than the consumer timeout of {}; the \
             oldest has run for {}",
            show(about.consumer_timeout),
            show(longest)
        ),
        _ => moved.to_owned(),
    }
}

fn longest(about: &About<'_>) -> String {
    about.longest.map_or_else(String::new, |longest| {
        format!("; the oldest of this queue has run for {}", show(longest))
    })
}

/// From "… Timeout value used: 10000 ms. …".
fn timeout_used(because: &str) -> Option<Duration> {
    let (_, rest) = because.split_once("Timeout value used: ")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().map(Duration::from_millis)
}

/// Whole seconds, or less than one.
fn show(time: Duration) -> String {
    let whole = Duration::from_secs(time.as_secs());
    humantime::format_duration(if whole.is_zero() { time } else { whole }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVERDUE: &str = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. \
                           Timeout value used: 600000 ms. This timeout value can be configured, \
                           see consumers doc guide to learn more";

    fn about(told_min: u64, longest_min: Option<u64>) -> About<'static> {
        let minutes = |n| Duration::from_secs(60 * n);
        About {
            queue: "forebay.mail",
            consumer_timeout: minutes(told_min),
            longest: longest_min.map(minutes),
        }
    }

    #[test]
    fn each_cause_comes_with_its_remedy() {
        let text = |text: &str| text.to_owned();
        let read = "ACCESS_REFUSED - read access to queue 'forebay.mail' in vhost '/' refused";
        let locked = "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue";
        let cases: [(Fault, &[&str]); 8] = [
            (Fault::Denied(text(read)), &[read, "grant this user `read` on queue `forebay.mail`"]),
            (Fault::Denied(text("not there; run `forebay topology apply`")), &["topology apply`"]),
            (Fault::Locked(text(locked)), &[locked, "wait for its end", "list_consumers"]),
            (
                Fault::Overdue(text(OVERDUE)),
                &["600000 ms", "told 30m", "`consumer_timeout = 1800000` in rabbitmq.conf"],
            ),
            (Fault::Cancelled, &["deleted or got another leader"]),
            (Fault::Absent, &["no consumer on the queue"]),
            (Fault::Connection(text("CONNECTION_FORCED - maintenance")), &["maintenance"]),
            (Fault::Silent(text("10s")), &["did not answer within 10s"]),
        ];
        for (fault, parts) in cases {
            let said = explain(&fault, &about(30, None));
            for part in parts {
                assert!(said.contains(part), "`{part}` is not in: {said}");
            }
        }
    }

    #[test]
    fn a_timeout_that_the_worker_knew_is_the_handlers_doing() {
        let said = explain(&Fault::Overdue(OVERDUE.to_owned()), &about(10, Some(11)));
        assert!(said.contains("has run for 11m") && said.contains("is_cancelled"), "{said}");
        assert!(!said.contains("rabbitmq.conf"), "{said}");
    }

    #[test]
    fn a_cancel_without_a_word_names_the_timeout_only_if_it_may_have_been_that() {
        let said = |longest| explain(&Fault::Cancelled, &about(30, longest));
        for short in [None, Some(5)] {
            assert!(!said(short).contains("timeout"), "{}", said(short));
        }
        assert!(said(Some(31)).contains("consumer timeout of 30m; the oldest has run for 31m"));
    }
}
