//! One run of one fault, from the first worker to the verdict.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use fastrand::Rng;
use forebay_producer::Producer;
use tokio::sync::watch;
use tokio::time::{self, Instant};

use crate::checker::{self, Verdict};
use crate::fault::Fault;
use crate::record::{self, Event, Reader};
use crate::site::{Place, Site};
use crate::workload::{self, Item, Script, Step};
use crate::{leftover, table, told};

/// Longest that one run may take.
const PATIENCE: Duration = Duration::from_secs(480);
/// What a queue could not dead-letter, because the next one had no leader yet or refused it, the
/// broker keeps out of sight and tries again after three minutes.
const HELD: Duration = Duration::from_secs(200);
/// 3.10 tries what was refused only after a restart: a broker of our own gets one after so long.
const RESTART: Duration = Duration::from_secs(10);

/// Runs it once. What went wrong is explained in the error or in the verdict's report.
pub(crate) async fn once(
    fault: &'static Fault,
    place: Place,
    seed: u64,
    folder: &Path,
) -> anyhow::Result<(Verdict, Option<String>)> {
    let run = run(fault, place, seed, folder);
    let verdict = time::timeout(PATIENCE, run).await.context("the run took too long")??;
    let late = verdict.recovery.is_some_and(|time| time > table::limit(fault));
    let report = (verdict.is_red() || late).then(|| table::report(fault, &verdict, folder, seed));
    Ok((verdict, report))
}

async fn run(
    fault: &'static Fault,
    place: Place,
    seed: u64,
    folder: &Path,
) -> anyhow::Result<Verdict> {
    let mut rng = Rng::with_seed(seed);
    let (tell, published) = watch::channel(false);
    let plan = (fault.plan)();
    let mut site = Site::open(place, plan.clone(), folder, published).await?;
    (fault.before)(&mut site, &mut rng).await.context("preparing the fault")?;
    for _ in 0..plan.workers {
        site.hire()?;
    }
    if fault.workers_first {
        site.all_consume().await?;
    }
    let (items, tracked) = (plan.items(&mut rng), plan.tracked);
    let (producer, recorder) = (Producer::new(&site.publishers()?), site.record.clone());
    let publishing = tokio::spawn(async move {
        workload::publish(producer, recorder, items, plan.span, tracked).await;
        tell.send_replace(true);
    });
    (fault.strike)(&mut site, &mut rng).await.context("the fault")?;
    publishing.await?;
    site.all_settled().await?;
    everybody_works(&site, tracked).await?;
    site.all_settled().await?;
    site.dismiss_all().await?;
    note_panics(&site)?;
    let mut found = leftover::read(&site).await?;
    if tracked {
        told::check(&site, &record::read_all(folder)?).await?;
    }
    let entries = record::read_all(folder)?;
    let mut verdict = checker::check(&entries, &found, &fault.rules);
    let (missing, since) = (verdict.lost.len(), Instant::now());
    if missing > 0 {
        site.note_queues("queues-at-first").await?;
    }
    let mut to_restart = site.owned();
    while !verdict.lost.is_empty() && since.elapsed() < HELD {
        time::sleep(Duration::from_secs(2)).await;
        if let Some(own) = to_restart.take_if(|_| since.elapsed() > RESTART) {
            own.stop().await;
            own.start().await;
        }
        found.extend(leftover::read(&site).await?);
        verdict = checker::check(&entries, &found, &fault.rules);
    }
    if !verdict.lost.is_empty() {
        site.note_queues("queues-at-last").await?;
    }
    verdict.held = missing - verdict.lost.len();
    Ok(verdict)
}

/// No script panics: a panic in a log is one of ours, or of what we are built on.
fn note_panics(site: &Site) -> anyhow::Result<()> {
    for file in std::fs::read_dir(&site.folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let text = std::fs::read_to_string(&path)?;
            if let Some(line) = text.lines().find(|line| line.contains("panicked at")) {
                site.record.note(Event::Broken { what: line.to_owned() });
            }
        }
    }
    Ok(())
}

/// Publishes until every worker has run one more job: none has fallen silent.
async fn everybody_works(site: &Site, tracked: bool) -> anyhow::Result<()> {
    let since = site.record.now();
    let (producer, mut records) = (site.producer(), Reader::new(&site.folder));
    for n in 0..600 {
        let step = Step { script: Script::Quick, ms: 1 };
        let item = Item { id: format!("last-{n:03}"), step, delay: None, new_kind: false };
        workload::publish_as(&producer, &site.record, &item, tracked).await;
        let entries = records.read()?;
        let ran = |who: &str| {
            let mut begun = entries.iter().filter(|entry| entry.at > since && entry.who == who);
            begun.any(|entry| matches!(entry.event, Event::Begun { .. }))
        };
        let waiting: Vec<_> =
            site.crew.iter().map(|member| &member.who).filter(|who| !ran(who)).collect();
        if waiting.is_empty() {
            break;
        }
        if n == 599 {
            site.record.note(Event::Broken { what: format!("{waiting:?} run nothing any more") });
        }
        time::sleep(Duration::from_millis(if n < 50 { 20 } else { 50 })).await;
    }
    producer.close().await;
    Ok(())
}
