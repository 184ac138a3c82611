//! How the program ends.
//! In: what a verb returned. Out: an exit code, and for an error its chain on one line of stderr,
//! with the remedy.

use std::error::Error;
use std::process::ExitCode;

use forebay_producer::link::fault::Fault;
use forebay_producer::{
    ConfigError, ConnectError, DeadError, DelayTooLong, InvalidName, PublishError, StreamError,
    TopologyError,
};

use crate::screen;

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const BROKER: u8 = 3;

/// How a verb ended that said itself what there was to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Fine,
    Failed,
    /// Settings or manifest.
    Unusable,
    /// The broker does not answer, or refuses us.
    Refused,
}

/// Reasons of the program's own to stop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// The arguments, the configuration or a file cannot be used.
    #[error("{0}")]
    Usage(String),
    /// The work did not succeed.
    #[error("{0}")]
    Failed(String),
    /// Whoever read our output has gone, as `head` does.
    #[error("nobody reads the output any more")]
    ClosedPipe,
}

/// Says what went wrong, if anything did, and turns it into the exit code.
pub(crate) fn code(ended: anyhow::Result<Exit>) -> ExitCode {
    let error = match ended {
        Ok(Exit::Fine) => return ExitCode::SUCCESS,
        Ok(Exit::Failed) => return ExitCode::from(FAILED),
        Ok(Exit::Unusable) => return ExitCode::from(USAGE),
        Ok(Exit::Refused) => return ExitCode::from(BROKER),
        Err(error) => error,
    };
    if let Some(Stop::ClosedPipe) = error.downcast_ref() {
        return ExitCode::SUCCESS;
    }
    screen::note(format_args!("error: {}", sentence(&error)));
    ExitCode::from(number(&error))
}

/// The chain as one sentence. A cause that its effect has already quoted is not repeated.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    let mut sentence = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if sentence.contains(&cause) {
            continue;
        }
        if !sentence.is_empty() {
            sentence.push_str(": ");
        }
        sentence.push_str(&cause);
    }
    sentence
}

fn number(error: &anyhow::Error) -> u8 {
    error.chain().find_map(decided_by).unwrap_or(FAILED)
}

fn decided_by(cause: &(dyn Error + 'static)) -> Option<u8> {
    if let Some(stop) = cause.downcast_ref() {
        return Some(match stop {
            Stop::Usage(_) => USAGE,
            Stop::Failed(_) | Stop::ClosedPipe => FAILED,
        });
    }
    if cause.is::<ConfigError>() || cause.is::<InvalidName>() || cause.is::<DelayTooLong>() {
        return Some(USAGE);
    }
    if cause.is::<ConnectError>() || cause.is::<Fault>() {
        return Some(BROKER);
    }
    if let Some(error) = cause.downcast_ref() {
        return match error {
            PublishError::Unconfirmed { .. } | PublishError::Denied { .. } => Some(BROKER),
            PublishError::TooLarge { .. }
            | PublishError::Encode { .. }
            | PublishError::Option { .. }
            | PublishError::Name(_)
            | PublishError::Delay(_) => Some(USAGE),
            // A boxed source cannot be found by its type in the chain.
            PublishError::Topology { source, .. } => decided_by(&**source),
            _ => Some(FAILED),
        };
    }
    if let Some(error) = cause.downcast_ref() {
        return Some(match error {
            TopologyError::Mismatch { .. } | TopologyError::Missing { .. } => USAGE,
            _ => BROKER,
        });
    }
    if let Some(error) = cause.downcast_ref() {
        return match error {
            // They show themselves as what they are made of, and so are not in the chain.
            StreamError::Topology(error) => decided_by(error),
            _ => Some(BROKER),
        };
    }
    match cause.downcast_ref()? {
        DeadError::Missing { .. } => Some(USAGE),
        DeadError::Publish { .. } => None,
        _ => Some(BROKER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    fn mismatch() -> TopologyError {
        let what = "queue `forebay.mail`".to_owned();
        TopologyError::Mismatch { what, because: "inequivalent arg 'x-queue-type'".to_owned() }
    }

    #[test]
    fn each_kind_of_error_has_its_exit_code() {
        let unreachable =
            ConnectError::Unreachable { broker: "a:1".to_owned(), because: "refused".to_owned() };
        let (id, queue) = ("1".to_owned(), "mail".to_owned());
        for (error, expected) in [
            (anyhow::Error::new(unreachable.clone()), BROKER),
            (DeadError::Connect(unreachable).into(), BROKER),
            (DeadError::Missing { queue: queue.clone() }.into(), USAGE),
            (mismatch().into(), USAGE),
            (
                PublishError::Unroutable { id: id.clone(), queue: queue.clone(), delay: None }
                    .into(),
                FAILED,
            ),
            (PublishError::Topology { id, queue, source: Box::new(mismatch()) }.into(), USAGE),
            (Stop::Usage("no".to_owned()).into(), USAGE),
            (anyhow::anyhow!("anything else"), FAILED),
        ] {
            assert_eq!(number(&error.context("cannot do it")), expected);
        }
    }

    #[test]
    fn a_chain_becomes_one_line_without_repetitions() {
        let error = Err::<(), _>(anyhow::anyhow!("no such file"));
        let error = error.context("cannot read `x`: no such file").context("stopped").unwrap_err();
        assert_eq!(sentence(&error), "stopped: cannot read `x`: no such file");
    }
}
