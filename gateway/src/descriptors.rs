//! File descriptors: each connection takes one, and most systems begin a process with 1,024.
//! In: how many connections there may be. Out: the limit of this process, raised as far as it goes.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// For everything that is no client's: the broker, the operator's pages, files.
const SPARE: u64 = 256;

/// Sees to it that so many connections find descriptors, or says that they will not.
pub(crate) fn provide(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let needed = connections as u64 + SPARE;
    let Some(raised) = raised(&limit, needed) else { return };
    let current = raised.current;
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, needed, "the limit of open files was not raised: connections may be refused");
        return;
    }
    debug!(limit = current, "the limit of open files was raised");
    if current.is_some_and(|current| current < needed) {
        warn!(
            limit = current,
            needed,
            "fewer files may be open than max_connections needs: raise the hard limit (ulimit -Hn, \
             LimitNOFILE), or lower max_connections"
        );
    }
}

/// What the limit has to become; `None` if it is enough. `None` within it stands for no limit.
fn raised(limit: &Rlimit, needed: u64) -> Option<Rlimit> {
    let current = limit.current.filter(|current| *current < needed)?;
    let reachable = limit.maximum.map_or(needed, |most| most.min(needed));
    Some(Rlimit { current: Some(reachable.max(current)), maximum: limit.maximum })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_raised_to_what_is_needed_and_allowed_and_never_lowered() {
        for (current, maximum, expected) in [
            (Some(1_024), Some(4_096), Some(4_096)),
            (Some(1_024), Some(524_288), Some(10_000)),
            (Some(1_024), None, Some(10_000)),
            (Some(20_000), Some(20_000), None),
            (None, None, None),
        ] {
            let limit = Rlimit { current, maximum };
            let found = raised(&limit, 10_000);
            assert_eq!(found.as_ref().and_then(|limit| limit.current), expected, "{limit:?}");
            assert!(found.is_none_or(|found| found.maximum == maximum));
        }
    }
}
