//! What can go wrong, one enum per operation. Each message says what happened and what to do.

use std::fmt;
use std::time::Duration;

use crate::wire::delay::{Delay, DelayTooLong};
use crate::wire::topology::InvalidName;

const MOST_FAILURES: usize = 1_000;

/// Why there is no connection to the broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody answers.
    #[error(
        "no broker answers at {broker}: {because}; start RabbitMQ there or set AMQP_URL to where \
         it is"
    )]
    Unreachable {
        /// Hosts and ports.
        broker: String,
        /// What the last try ended with.
        because: String,
    },
    /// The broker refuses the user or the password.
    #[error(
        "the broker at {broker} refuses user `{user}`: {because}; check user and password in \
         AMQP_URL or AMQP_PASSWORD_FILE{}",
        of_guest(user)
    )]
    Denied {
        /// Hosts and ports.
        broker: String,
        /// The user.
        user: String,
        /// The broker's words.
        because: String,
    },
    /// The virtual host is not there, or not for this user.
    #[error(
        "the broker at {broker} does not let user `{user}` into virtual host `{vhost}`: \
         {because}; create it (rabbitmqctl add_vhost {vhost}) and grant access (rabbitmqctl \
         set_permissions -p {vhost} {user} '.*' '.*' '.*'), or correct the last part of AMQP_URL"
    )]
    Vhost {
        /// Hosts and ports.
        broker: String,
        /// The user.
        user: String,
        /// The virtual host.
        vhost: String,
        /// The broker's words.
        because: String,
    },
    /// Settings, their files or a certificate make it impossible; waiting does not mend it.
    #[error("cannot connect to {broker}: {because}")]
    Setup {
        /// Hosts and ports.
        broker: String,
        /// What is wrong, and what mends it.
        because: String,
    },
    /// The connection was closed from our side.
    #[error("the connection was closed by this process")]
    Closed,
}

fn of_guest(user: &str) -> &'static str {
    match user {
        "guest" => ", and note that RabbitMQ lets `guest` in from its own machine only",
        _ => "",
    }
}

/// Why something could not be declared on the broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// It exists with other arguments.
    #[error(
        "{what} exists with other arguments: {because}; either delete it once it is empty, so that \
         it is made anew (`forebay topology delete`), or keep it as it is and drop \
         --strict-topology"
    )]
    Mismatch {
        /// `queue forebay.mail`, for example.
        what: String,
        /// The broker's words, which name the argument.
        because: String,
    },
    /// The user may not declare it.
    #[error(
        "the user may not declare {what}: {because}; grant `configure` on it, or have an \
         administrator run `forebay topology apply` and set FOREBAY_DECLARE=never here"
    )]
    Denied {
        /// What was to be declared.
        what: String,
        /// The broker's words.
        because: String,
    },
    /// It is missing and we may not declare it.
    #[error(
        "{what} does not exist and FOREBAY_DECLARE=never keeps us from declaring it; have an \
         administrator run `forebay topology apply{}`",
        if what.starts_with("stream") { " --events" } else { "" }
    )]
    Missing {
        /// What is missing.
        what: String,
    },
    /// The broker has no such thing as it is set up.
    #[error(
        "the broker cannot have {what}: {because}; enable the feature flag on it (`rabbitmqctl \
         enable_feature_flag stream_queue`)"
    )]
    Unsupported {
        /// What was to be declared.
        what: String,
        /// The broker's words.
        because: String,
    },
    /// No connection, or it was lost on the way.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The broker did not answer, or closed the channel for another reason.
    #[error("the broker did not take the declaration of {what}: {because}; try again")]
    Broker {
        /// What was to be declared.
        what: String,
        /// What happened.
        because: String,
    },
}

/// Why an event is not, or perhaps not, on the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// The channel's or the event's name is not allowed; nothing was sent.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The data does not turn into JSON; nothing was sent.
    #[error("the event's data does not turn into JSON: {0}")]
    Encode(String),
    /// Larger than allowed; nothing was sent.
    #[error(
        "the event is too large: {bytes} bytes, {limit} are allowed; put the data elsewhere and \
         tell where it is"
    )]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
        /// The most that is allowed.
        limit: usize,
    },
    /// No room among the events that wait already; nothing was sent.
    #[error("1,000 events, or 8 MiB of them, wait already")]
    Crowded,
    /// The stream of events is not there, and could not be declared.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The user may not tell events.
    #[error(
        "the broker does not let this user tell events: {because}; grant `write` on the exchange \
         (docs/wire.md, Permissions)"
    )]
    Denied {
        /// The broker's words.
        because: String,
    },
    /// The broker said no (`basic.nack`).
    #[error("the broker refused the event; look at its log")]
    Refused,
    /// The broker closed the channel over this one event.
    #[error("the broker does not take the event: {because}")]
    Unacceptable {
        /// The broker's words.
        because: String,
    },
    /// No confirm in time.
    #[error("the event was not confirmed in time ({because})")]
    Unconfirmed {
        /// The event's id.
        id: String,
        /// Whether it may be on the stream, or come there.
        may_have_arrived: bool,
        /// What kept the confirm.
        because: String,
    },
}

/// Why the stream of events cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The broker does not let us in, or the connection was closed by us.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It is not there, and could not be declared.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The broker does not let us read it.
    #[error(
        "cannot read stream `{stream}`: {because}; grant this user `read` on it (docs/wire.md, \
         Permissions)"
    )]
    Denied {
        /// Its full name.
        stream: String,
        /// The broker's words.
        because: String,
    },
}

/// Why a job is not, or perhaps not, on its queue.
///
/// | error | was it sent? | is it on its queue? | publish it again? |
/// |---|---|---|---|
/// | [`Unconfirmed`](Self::Unconfirmed), `may_have_arrived: false` | no | no | yes, when the broker is there |
/// | [`Unconfirmed`](Self::Unconfirmed), `may_have_arrived: true` | at least in part | maybe, now or when the broker reads on | yes, under the same id; then perhaps twice |
/// | [`Refused`](Self::Refused) | yes | no: the broker said that it does not keep it | yes, later |
/// | [`Unroutable`](Self::Unroutable) | yes | no: the broker gave it back | once its queue is declared |
/// | [`Denied`](Self::Denied), [`Unacceptable`](Self::Unacceptable) | yes | no: the broker closed the channel over it | once it is mended |
/// | [`Topology`](Self::Topology) | no, or it was given back | no | once it is mended |
/// | [`TooLarge`](Self::TooLarge), [`Encode`](Self::Encode), [`Option`](Self::Option), [`Name`](Self::Name), [`Delay`](Self::Delay) | no | no | once it is changed |
///
/// Where an earlier try of the same publish was lost with its connection, a later refusal is no
/// proof that the job is not there: it is reported as `Unconfirmed` with `may_have_arrived`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The broker has no such queue bound, or the delay ladder has no level for the delay, and it
    /// was not declared.
    #[error(
        "{}",
        match delay {
            None => format!(
                "no queue is bound for `{queue}` (job {id}): nothing was published; start a \
                 worker on it, or declare it with `forebay topology apply --queue {queue}`"
            ),
            Some(delay) => format!(
                "the delay ladder lacks a level for a delay of {wait} (job {id} for queue \
                 `{queue}`): nothing was published; have an administrator declare it with \
                 `forebay topology apply --delays {wait} --queue {queue}`",
                wait = roughly(*delay)
            ),
        }
    )]
    Unroutable {
        /// Job id.
        id: String,
        /// Queue.
        queue: String,
        /// The delay, as the ladder would carry it. `None`: it was to go to its queue at once.
        delay: Option<Duration>,
    },
    /// The broker said no (`basic.nack`): a length limit, or an error of its own.
    #[error(
        "the broker refused job {id} for queue `{queue}`: the queue is full or failing; look at \
         its policies and at the broker's log, then publish it again"
    )]
    Refused {
        /// Job id.
        id: String,
        /// Queue.
        queue: String,
    },
    /// Larger than allowed; nothing was sent.
    #[error(
        "the {what} of job {id} is too large: {bytes} bytes, {limit} are allowed; put the data \
         elsewhere and publish a reference to it"
    )]
    TooLarge {
        /// Job id.
        id: String,
        /// `payload` or `headers`.
        what: &'static str,
        /// Its size in bytes.
        bytes: usize,
        /// The most that is allowed.
        limit: usize,
    },
    /// No confirm within the deadline.
    #[error(
        "job {id} was not confirmed in time ({because}); {}",
        if *.may_have_arrived {
            "it may be on the queue nevertheless: publish it again under the same id, and have \
             the handler tolerate a second run"
        } else {
            "it was not sent: publish it again"
        }
    )]
    Unconfirmed {
        /// Job id.
        id: String,
        /// Whether bytes of it went out.
        may_have_arrived: bool,
        /// What kept the confirm.
        because: String,
    },
    /// The user may not publish there.
    #[error(
        "the broker does not let this user publish job {id}: {because}; grant `write` on the \
         exchanges of the namespace (docs/wire.md lists them)"
    )]
    Denied {
        /// Job id.
        id: String,
        /// The broker's words.
        because: String,
    },
    /// The broker closed the channel over this one message.
    #[error("the broker does not take job {id}: {because}")]
    Unacceptable {
        /// Job id.
        id: String,
        /// The broker's words.
        because: String,
    },
    /// The job does not turn into JSON.
    #[error("job of kind `{kind}` does not turn into JSON; nothing was sent")]
    Encode {
        /// Kind.
        kind: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// An option that cannot be used; nothing was sent.
    #[error("{option} `{value}` is not allowed: {why}")]
    Option {
        /// Which option.
        option: &'static str,
        /// Its value.
        value: String,
        /// Why not.
        why: String,
    },
    /// The queue's name is not allowed.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The delay is too long.
    #[error(transparent)]
    Delay(#[from] DelayTooLong),
    /// What the job needs on the broker could not be declared.
    #[error("cannot prepare queue `{queue}` for job {id}")]
    Topology {
        /// Job id.
        id: String,
        /// Queue.
        queue: String,
        /// Why.
        #[source]
        source: Box<TopologyError>,
    },
}

/// A delay in as few units as lead to the same level of the ladder: `3days`.
fn roughly(delay: Duration) -> String {
    let level = |delay| Delay::new(delay).ok().flatten().map(Delay::level);
    let whole = humantime::format_duration(delay).to_string();
    let mut words = String::new();
    for unit in whole.split(' ') {
        words.push_str(unit);
        if humantime::parse_duration(&words).is_ok_and(|short| level(short) == level(delay)) {
            break;
        }
    }
    words
}

impl PublishError {
    /// Whether the same call may succeed later without a change on this side.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unconfirmed { .. } | Self::Refused { .. } | Self::Topology { .. })
    }
}

/// Why a bulk publish stopped or left jobs out.
#[derive(Debug)]
#[non_exhaustive]
pub struct BulkError {
    /// How many were confirmed.
    pub confirmed: u64,
    /// Which failed, by their place in the stream from 0; the first thousand.
    pub failures: Vec<(u64, PublishError)>,
    /// How many failed in all.
    pub failed: u64,
    /// The place of the first job that was not taken from the stream, because the broker was out
    /// of reach: continue there.
    pub stopped_at: Option<u64>,
}

impl BulkError {
    pub(crate) fn note(&mut self, place: u64, result: Result<(), PublishError>) {
        match result {
            Ok(()) => self.confirmed += 1,
            Err(error) => {
                self.failed += 1;
                if self.failures.len() < MOST_FAILURES {
                    self.failures.push((place, error));
                }
            }
        }
    }
}

impl fmt::Display for BulkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} jobs confirmed, {} failed", self.confirmed, self.failed)?;
        if let Some((place, error)) = self.failures.first() {
            write!(f, "; the first at place {place}: {error}")?;
        }
        match self.stopped_at {
            Some(place) => write!(f, "; continue from place {place}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for BulkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.failures.first().map(|(_, error)| error as _)
    }
}

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The job was not published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Nobody answered in time. The job may still run.
    #[error("job {id} was not answered in time; it may still run: make the handler tolerate it")]
    TimedOut {
        /// Job id.
        id: String,
    },
    /// The handler failed for good.
    #[error("job {id} became a dead letter ({reason}): {message}")]
    Dead {
        /// Job id.
        id: String,
        /// Reason word.
        reason: String,
        /// The handler's error.
        message: String,
    },
    /// The answer has another shape than expected.
    #[error("the answer of job {id} has another shape than expected")]
    Decode {
        /// Job id.
        id: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Why dead letters could not be read or moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeadError {
    /// The queue is not there.
    #[error(
        "there is no queue `{queue}`: nothing was ever dead-lettered there, or the name is wrong \
         (`forebay queues` lists what is known)"
    )]
    Missing {
        /// Full name on the broker.
        queue: String,
    },
    /// The user may not.
    #[error("the broker does not allow it: {because}; grant `read` on the dead-letter queues")]
    Denied {
        /// The broker's words.
        because: String,
    },
    /// The user may not look at queues.
    #[error(
        "the broker does not allow a look at the queue: {because}; grant any of `configure`, \
         `write` and `read` on it, or set FOREBAY_MANAGEMENT_URL to use the management API"
    )]
    MayNotLook {
        /// The broker's words.
        because: String,
    },
    /// No connection, or it was lost: what was not acknowledged is still there.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The broker closed the channel or did not answer: what was not acknowledged is still there.
    #[error("the broker stopped answering: {because}; what was not done is still in the queue")]
    Broker {
        /// What happened.
        because: String,
    },
    /// A copy could not be published: its dead letter is still there.
    #[error("dead letter {id} stays where it is")]
    Publish {
        /// Job id.
        id: String,
        /// Why.
        #[source]
        source: PublishError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_spelled_so_that_it_declares_the_level_that_it_needs() {
        for (wanted, expected) in [
            ("3days", "3days"),
            ("90m", "1h"),
            ("1s", "1s"),
            ("250ms", "300ms"),
            ("1m 45s", "1m45s"),
        ] {
            let wanted = humantime::parse_duration(wanted).unwrap();
            let carried = Delay::new(wanted).unwrap().unwrap();
            let spelled = roughly(carried.duration());
            let again = Delay::new(humantime::parse_duration(&spelled).unwrap()).unwrap().unwrap();
            assert_eq!(again.level(), carried.level(), "{spelled}");
            assert_eq!(spelled, expected);
        }
    }
}
