//! What the stream of events tells of tracked jobs, against what they recorded themselves.
//! In: the records of a run, and the stream. Out: the jobs whose end it does not tell.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use anyhow::Context as _;
use forebay_producer::{EventKind, EventLog, Read, Start};
use tokio::time;

use crate::record::{Entry, Event};
use crate::site::Site;

/// A stream that gives nothing for so long has no more.
const QUIET: Duration = Duration::from_secs(3);

/// Notes what is not told.
pub(crate) async fn check(site: &Site, entries: &[Entry]) -> anyhow::Result<()> {
    let told = told(site).await?;
    let untold: Vec<_> = ended(entries)
        .into_iter()
        .filter(|(id, end)| !told.contains(&((*id).to_owned(), end.clone())))
        .map(|(id, _)| id)
        .collect();
    if !untold.is_empty() {
        let what = format!("{} jobs whose end is not told: {untold:?}", untold.len());
        site.record.note(Event::Broken { what });
    }
    Ok(())
}

/// How each confirmed job ended, by the last end that it recorded.
fn ended(entries: &[Entry]) -> BTreeMap<&str, EventKind> {
    let confirmed: BTreeSet<_> = entries
        .iter()
        .filter_map(|entry| match &entry.event {
            Event::Confirmed { id } => Some(id.as_str()),
            _ => None,
        })
        .collect();
    let ends = entries.iter().filter_map(|entry| match &entry.event {
        Event::Ended { id, end, .. } if confirmed.contains(id.as_str()) => {
            let kind = match end.as_str() {
                "ok" => EventKind::Succeeded,
                "reject" => EventKind::Dead,
                _ => return None,
            };
            Some((id.as_str(), kind))
        }
        _ => None,
    });
    ends.collect()
}

async fn told(site: &Site) -> anyhow::Result<HashSet<(String, EventKind)>> {
    let log = EventLog::new(&site.config());
    let mut events = log.read(Start::First).await.context("reading the stream of events")?;
    let mut told = HashSet::new();
    while let Ok(read) = time::timeout(QUIET, events.next()).await {
        if let Read::Event(stored) = read? {
            told.insert((stored.event.subject, stored.event.what));
        }
    }
    log.close().await;
    Ok(told)
}
