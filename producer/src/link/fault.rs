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
    /// What it means that every host was tried: the last one's, unless that is hopeless and
    /// another's is not.
    pub(crate) fn of_all(mut faults: Vec<Self>) -> Self {
        let mends = faults.iter().any(|fault| !matches!(fault, Self::Setup(_)));
        match faults.pop() {
            Some(Self::Setup(words)) if mends => Self::Connection(words),
            Some(fault) => fault,
            None => Self::Connection("no host".to_owned()),
        }
    }

    /// Whether only the channel is gone, by the broker's decision about what we asked for.
    pub fn closes_channel_only(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Mismatch(_) | Self::Denied(_) | Self::Channel(_))
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::ProtocolError(amqp) => {
                let text = amqp.get_message().to_string();
                match amqp.kind() {
                    AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Self::Missing(text),
                    AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Self::Mismatch(text),
                    AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Self::Denied(text),
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
            ErrorKind::MissingHeartbeatError => {
                Self::Connection("no heartbeat from the broker".to_owned())
            }
            _ => Self::Connection(error.to_string()),
        }
    }
}
