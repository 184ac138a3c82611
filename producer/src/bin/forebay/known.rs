//! Which queues there are: AMQP has no way to ask.
//! In: flags, the manifest, the management API. Out: names, and where they come from.

use forebay_producer::{InvalidName, check_queue_name};

use crate::exit;
use crate::globals::Session;
use crate::management::{self, Overview};
use crate::screen;

const MANAGEMENT: &str = "FOREBAY_MANAGEMENT_URL";

/// Queues by name, and what the management API says of them if it was asked.
pub(crate) struct Known {
    pub(crate) queues: Vec<String>,
    /// Empty: nobody knows of any, and `default` is a guess.
    pub(crate) sources: Vec<&'static str>,
    pub(crate) overview: Option<Overview>,
}

/// The queues named by flags and nothing else, if there are any; else all that are known.
pub(crate) async fn queues(named: &[String], session: &Session) -> anyhow::Result<Known> {
    // Before anybody is asked.
    named.iter().try_for_each(|name| check_queue_name(name))?;
    Ok(of(named, session, overview(session).await?)?)
}

/// The same, where somebody has asked the management API already.
pub(crate) fn of(
    named: &[String],
    session: &Session,
    overview: Option<Overview>,
) -> Result<Known, InvalidName> {
    named.iter().try_for_each(|name| check_queue_name(name))?;
    let managed = overview
        .as_ref()
        .map(|overview| management::job_queues(overview, session.config.topology()));
    let (queues, sources) = choose(named, session.manifest.queue_names(), managed);
    Ok(Known { queues, sources, overview })
}

impl Known {
    /// `queues from the manifest and FOREBAY_MANAGEMENT_URL`.
    pub(crate) fn origin(&self) -> String {
        if self.sources.is_empty() {
            return format!(
                "no queue but `default` is known: name others with --queue, or have a forebay.toml \
                 here, or set {MANAGEMENT}"
            );
        }
        format!("queues from {}", self.sources.join(" and "))
    }
}

/// A wrong setting is an error; an API that does not answer is not, we can do without.
async fn overview(session: &Session) -> anyhow::Result<Option<Overview>> {
    let Some(url) = &session.management else {
        return Ok(None);
    };
    match management::overview(url, session.config.vhost(), session.timeout).await {
        Ok(overview) => Ok(Some(overview)),
        Err(error) if error.is::<exit::Stop>() => Err(error),
        Err(error) => {
            let why = exit::sentence(&error);
            screen::note(format_args!("warning: {why}; going on without it"));
            Ok(None)
        }
    }
}

fn choose(
    named: &[String],
    manifest: Vec<String>,
    managed: Option<Vec<String>>,
) -> (Vec<String>, Vec<&'static str>) {
    if !named.is_empty() {
        return (named.to_vec(), vec!["--queue"]);
    }
    let mut sources = Vec::new();
    if !manifest.is_empty() {
        sources.push("the manifest");
    }
    if managed.as_ref().is_some_and(|managed| !managed.is_empty()) {
        sources.push(MANAGEMENT);
    }
    let mut queues: Vec<_> = manifest.into_iter().chain(managed.unwrap_or_default()).collect();
    if queues.is_empty() {
        queues.push("default".to_owned());
    }
    queues.sort();
    queues.dedup();
    (queues, sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn named_queues_are_meant_alone() {
        let (queues, sources) = choose(&names(&["b"]), names(&["a"]), Some(names(&["c"])));
        assert_eq!((queues, sources), (names(&["b"]), vec!["--queue"]));
    }

    #[test]
    fn otherwise_all_sources_count_and_each_queue_once() {
        let (queues, sources) = choose(&[], names(&["b", "a"]), Some(names(&["a", "c"])));
        assert_eq!(queues, names(&["a", "b", "c"]));
        assert_eq!(sources, ["the manifest", MANAGEMENT]);
    }

    #[test]
    fn if_nothing_is_known_it_is_the_default_queue() {
        let (queues, sources) = choose(&[], vec![], None);
        assert_eq!(queues, names(&["default"]));
        assert!(sources.is_empty());
    }
}
