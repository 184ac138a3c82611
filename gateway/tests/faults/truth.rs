//! What is on the stream at the end: what everybody should have seen.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context as _;
use forebay_producer::{Config, Event, EventLog, Read, Start, Token};
use tokio::time;

/// Longest that the stream may take to give all that it has.
const PATIENCE: Duration = Duration::from_secs(60);

/// One event with its place.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) offset: u64,
    pub(crate) event: Event,
}

/// Reads the stream up to the last event.
pub(crate) async fn read(config: &Config) -> anyhow::Result<Vec<Told>> {
    let log = EventLog::new(config);
    let reading = async {
        let (mut told, mut events) = (Vec::new(), log.read(Start::First).await?);
        loop {
            if let Read::Event(stored) = events.next().await? {
                let is_last = stored.event.event.as_deref() == Some("last");
                let Token { offset, .. } = stored.token();
                told.push(Told { offset, event: stored.event });
                if is_last {
                    return anyhow::Ok(told);
                }
            }
        }
    };
    let told = time::timeout(PATIENCE, reading).await.context("the stream has no last event")?;
    log.close().await;
    told
}

/// Waits until the stream tells how each of these jobs ended, for as long as it may take.
pub(crate) async fn all_ended(config: &Config, jobs: &[String]) {
    let log = EventLog::new(config);
    let mut open: HashSet<_> = jobs.iter().map(String::as_str).collect();
    let reading = async {
        let mut events = log.read(Start::First).await?;
        while !open.is_empty() {
            if let Read::Event(stored) = events.next().await?
                && stored.event.what.is_final()
            {
                open.remove(stored.event.subject.as_str());
            }
        }
        anyhow::Ok(())
    };
    // Who does not end is found missing later.
    _ = time::timeout(PATIENCE, reading).await;
    log.close().await;
}
