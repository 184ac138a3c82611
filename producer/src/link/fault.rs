//! What lapin's errors mean to us.
//! In: an error of the client library, or no answer at all. Out: a [`Fault`], the only form in which
//! the rest of the code sees it.

use std::time::Duration;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Error, ErrorKind};
use tokio::time;

/// How long the broker may take for one answer, where nothing else is said.
pub const ANSWER: Duration = Duration::from_secs(10);

/// Why a channel or a connection does not do what we want.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// 404: exchange or queue is not there. Closes the channel.
    #[error("{0}")]
    Missing(String),
    /// 406: it exists with other arguments, or the message is not acceptable. Closes the channel.
    #[error("{0}")]
    Mismatch(String),
    /// 405, or 403 of a consumer that wants a queue for itself: somebody else holds it, for a while.
    /// Closes the channel.
    #[error("{0}")]
    Locked(String),
    /// 406 of brokers before 4.3: a delivery waited longer than the broker's consumer timeout. Closes
    /// the channel.
    #[error("{0}")]
    Overdue(String),
    /// 403: the user may not. Closes the channel, or the connection while it is opened.
    #[error("{0}")]
    Denied(String),
    /// 530: the virtual host is not there or not for this user. Closes the connection.
    #[error("{0}")]
    Vhost(String),
    /// Our settings, their files or a certificate make it impossible; says what does mend it.
    #[error("{0}")]
    Setup(String),
    /// Any other reason for which the broker closed the channel.
    #[error("the broker closed the channel: {0}")]
    Channel(String),
    /// The channel was closed already; what closed it is told to whoever used it then.
    #[error("{0}")]
    Closed(String),
    /// The connection is gone, or never came to be.
    #[error("{0}")]
    Connection(String),
    /// The broker did not answer within our deadline.
    #[error("the broker did not answer within {0}")]
    Silent(String),
    /// The broker cancelled the consumer: its queue was deleted, lost its leader, or a delivery
    /// waited longer than the consumer timeout.
    #[error("the broker cancelled the consumer")]
    Cancelled,
    /// The consumer is here, but not at the broker: nobody told us of its end.
    #[error("the broker knows of no consumer on the queue, although it ended none of ours")]
    Absent,
}

/// What the broker answers to one request, at most `within` that time.
///
/// # Errors
/// [`Fault`]: the broker's refusal, or [`Fault::Silent`] when the time is over.
pub async fn answered<T>(
    within: Duration,
    asked: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Fault> {
    match time::timeout(within, asked).await {
        Ok(answer) => answer.map_err(Fault::from),
        Err(_) => Err(Fault::Silent(humantime::format_duration(within).to_string())),
    }
}

/// Closes a channel that is no longer needed. Without an answer the connection's end does it.
pub async fn close(channel: &lapin::Channel, because: &str) {
    _ = answered(ANSWER, channel.close(200, because.into())).await;
}

impl Fault {
    /// Whether the broker may grant the same request in a moment: a queue is just being made by
    /// somebody else, or its node is away.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Missing(text) if text.contains("is down or inaccessible"))
    }

    /// Whether only the channel is gone, by the broker's decision about what we asked for.
    pub fn closes_channel_only(&self) -> bool {
        matches!(
            self,
            Self::Missing(_)
                | Self::Mismatch(_)
                | Self::Locked(_)
                | Self::Overdue(_)
                | Self::Denied(_)
                | Self::Channel(_)
        )
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::ProtocolError(amqp) => {
                let text = amqp.get_message().to_string();
                match amqp.kind() {
                    AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Self::Missing(text),
                    AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => refused(text),
                    AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED) => Self::Locked(text),
                    AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => denied(text),
                    AMQPErrorKind::Soft(_) => Self::Channel(text),
                    AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => Self::Vhost(text),
                    AMQPErrorKind::Hard(_) => Self::Connection(text),
                }
            }
            ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidChannel(_) => {
                Self::Closed(error.to_string())
            }
            ErrorKind::IOError(io) => match io.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(fault) => Self::clone(fault),
                None => Self::Connection(io.to_string()),
            },
            ErrorKind::MissingHeartbeatError => Self::Connection(
                "no heartbeat from the broker: it hangs, or the path to it is broken".to_owned(),
            ),
            _ => Self::Connection(error.to_string()),
        }
    }
}

/// "delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms."
/// "queue 'forebay.events' in vhost '/' does not have a running replica on the local node": it is
/// just being made, or starts with its node.
fn refused(text: String) -> Fault {
    if text.contains("replica on the local node") {
        return Fault::Channel(text);
    }
    let overdue = text.contains("delivery acknowledgement") && text.contains("timed out");
    if overdue { Fault::Overdue(text) } else { Fault::Mismatch(text) }
}

/// "queue 'forebay.default' in vhost '/' in exclusive use" is no matter of rights.
fn denied(text: String) -> Fault {
    if text.contains("in exclusive use") { Fault::Locked(text) } else { Fault::Denied(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_code_of_the_broker_can_mean_several_things() {
        let mismatch = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q'";
        assert!(matches!(refused(mismatch.to_owned()), Fault::Mismatch(_)));
        let overdue = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. \
                       Timeout value used: 10000 ms.";
        assert!(matches!(refused(overdue.to_owned()), Fault::Overdue(_)));
        let starting = "PRECONDITION_FAILED - queue 'forebay.events' in vhost '/' does not have a \
                        running replica on the local node";
        assert!(matches!(refused(starting.to_owned()), Fault::Channel(_)), "that passes");
        let right = "ACCESS_REFUSED - read access to queue 'q' in vhost '/' refused for user 'u'";
        assert!(matches!(denied(right.to_owned()), Fault::Denied(_)));
        let locked = "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use";
        assert!(matches!(denied(locked.to_owned()), Fault::Locked(_)));
        let away = "NOT_FOUND - home node 'rabbit@b' of durable queue 'q' in vhost '/' is down or \
                    inaccessible";
        assert!(Fault::Missing(away.to_owned()).passes());
        assert!(!Fault::Missing("NOT_FOUND - no queue 'q' in vhost '/'".to_owned()).passes());
    }
}
