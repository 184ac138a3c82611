//! Why a job is kept instead of published.
//! In: how its publish ended. Out: whether that is trouble that passes by itself, and in words.

use forebay_producer::{ConnectError, PublishError};

use super::sender::passes_by_itself;
use crate::exit;

/// Reasons of the spool's own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Waits {
    /// Older jobs are being sent, and this one must not overtake them.
    #[error("another process sends the older jobs of the spool")]
    Behind,
    /// The same, and their queue does not take them.
    #[error("older jobs for queue `{queue}` wait in the spool")]
    Stuck { queue: String },
}

/// Whether the job is to be kept. What somebody has to mend, such as a wrong password, is an error
/// as ever: kept jobs would pile up behind it in silence.
pub(crate) fn is_passing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<Waits>()
            || matches!(cause.downcast_ref(), Some(ConnectError::Unreachable { .. }))
            || cause.downcast_ref().is_some_and(passes_by_itself)
    })
}

/// What kept the broker from taking it, without the advice that goes with an error.
pub(crate) fn because(error: &anyhow::Error) -> String {
    for cause in error.chain() {
        if let Some(ConnectError::Unreachable { broker, because }) = cause.downcast_ref() {
            return format!("no broker answers at {broker}: {because}");
        }
        match cause.downcast_ref() {
            Some(PublishError::Unconfirmed { because, may_have_arrived: true, .. }) => {
                return format!(
                    "{because}; it may have arrived nevertheless, and then comes twice under one id"
                );
            }
            Some(PublishError::Unconfirmed { because, .. }) => return because.clone(),
            Some(PublishError::Refused { queue, .. }) => {
                return format!("the broker refuses jobs for queue `{queue}`: full or failing");
            }
            _ => {}
        }
    }
    exit::sentence(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    fn unconfirmed(may_have_arrived: bool) -> anyhow::Error {
        let because = "no connection".to_owned();
        PublishError::Unconfirmed { id: "1".to_owned(), may_have_arrived, because }.into()
    }

    #[test]
    fn trouble_that_passes_is_told_from_what_somebody_has_to_mend() {
        let broker = || "a:1".to_owned();
        let unreachable = ConnectError::Unreachable { broker: broker(), because: "no".to_owned() };
        let denied =
            ConnectError::Denied { broker: broker(), user: "u".to_owned(), because: String::new() };
        let (id, queue) = ("1".to_owned(), "mail".to_owned());
        let unroutable =
            PublishError::Unroutable { id: id.clone(), queue: queue.clone(), delay: None };
        for (error, expected) in [
            (anyhow::Error::new(unreachable), true),
            (unconfirmed(false), true),
            (PublishError::Refused { id, queue: queue.clone() }.into(), true),
            (Waits::Stuck { queue }.into(), true),
            (denied.into(), false),
            (unroutable.into(), false),
            (anyhow::anyhow!("anything else"), false),
        ] {
            assert_eq!(is_passing(&error), expected, "{error}");
        }
    }

    #[test]
    fn the_reason_comes_without_advice_that_no_longer_holds() {
        let error = Err::<(), _>(unconfirmed(false)).context("stopped").unwrap_err();
        assert_eq!(because(&error), "no connection");
        assert!(because(&unconfirmed(true)).contains("twice under one id"));
    }
}
