//! Nodes of a cluster: the one that leads the queues lost, cut off from the others, and all of them
//! started anew one after the other.

use std::cell::Cell;
use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fastrand::Rng;
use futures_util::FutureExt;
use tokio::time;

use super::{Fault, broker};
use crate::record::{self, Event};
use crate::site::{PATIENCE, Site};
use crate::workload::{self, Item, Plan, Script, Step};

const NODES: usize = 3;
const LOOK: Duration = Duration::from_millis(30);

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "node of the leader lost, in a cluster",
        "What ran over a connection to that node is stopped and comes again; what was published \
         without its confirm is published again under the same id.",
        |site, rng| leader_lost(site, rng).boxed_local(),
    )
    .on_a_cluster()
    .before(|site, _| broker::old_queues(site).boxed_local())
    .plan(|| Plan { jobs: 600, span: Duration::from_secs(8), ..Plan::default() }),
    Fault::new(
        "partition of the cluster",
        "The majority hands out again what the workers of the other side hold, and believes no ack \
         of theirs; what was published there without its confirm is published again.",
        |site, rng| partition(site, rng).boxed_local(),
    )
    .on_a_cluster()
    .before(|site, _| broker::old_queues(site).boxed_local())
    .takes_minutes()
    .plan(|| Plan { jobs: 900, span: Duration::from_secs(30), ..Plan::default() }),
    Fault::new("rolling restart of the cluster", "As for a lost node.", |site, rng| {
        rolling_restart(site, rng).boxed_local()
    })
    .on_a_cluster()
    .before(|site, _| broker::old_queues(site).boxed_local())
    .takes_minutes()
    .plan(|| Plan { jobs: 1_500, span: Duration::from_secs(50), ..Plan::default() }),
];

async fn leader_lost(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    let (cluster, leader) = (site.cluster(), leader(site).await?);
    site.a_while(rng, 300..2_500).await;
    site.struck("node of the leader killed");
    cluster.kill(leader).await;
    // The other two answer all the time: recovery counts from here.
    site.healed();
    all_work(site, "the loss of the leader's node").await?;
    cluster.start(leader).await;
    cluster.whole().await;
    site.all_consume().await
}

/// Longer than nodes take to give each other up.
async fn partition(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    let (cluster, leader) = (site.cluster(), leader(site).await?);
    site.a_while(rng, 300..2_500).await;
    site.struck("node of the leader cut off");
    cluster.isolate(leader).await;
    site.a_while(rng, 12_000..20_000).await;
    cluster.rejoin(leader).await;
    site.healed();
    all_work(site, "the end of the partition").await?;
    cluster.whole().await;
    site.all_consume().await
}

async fn rolling_restart(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    let cluster = site.cluster();
    for node in 0..NODES {
        site.a_while(rng, 300..1_500).await;
        site.struck(&format!("node {node} stopped"));
        cluster.stop(node).await;
        site.healed();
        all_work(site, &format!("the stop of node {node}")).await?;
        cluster.start(node).await;
        // Another one may only go when all members are back.
        cluster.whole().await;
        site.all_consume().await?;
    }
    Ok(())
}

async fn leader(site: &Site) -> anyhow::Result<usize> {
    let queue = site.topology().queue("default");
    site.cluster().leader_of(&queue, 0).await.context("the queue has no leader")
}

/// Waits until every worker has begun a job that was published after this, and prints how long that
/// takes: a worker whose connection was spared says nothing of its own accord. Until then no ack is
/// sure to last, since another leader is being elected: the outage goes on. Publishes jobs for it,
/// on a connection of its own.
async fn all_work(site: &Site, since: &str) -> anyhow::Result<()> {
    let (began, at, producer) = (Instant::now(), site.record.now(), site.producer());
    site.record.note(Event::Idle { because: format!("after {since}") });
    let all = Cell::new(false);
    let publishing = async {
        for n in 0.. {
            if all.get() {
                break;
            }
            let step = Step { script: Script::Quick, ms: 1 };
            let item = Item { id: format!("after-{at}-{n}"), step, delay: None, new_kind: false };
            workload::publish_one(&producer, &site.record, &item).await;
            time::sleep(LOOK).await;
        }
        anyhow::Ok(())
    };
    let watching = async {
        while !every_worker_ran_one(site, at)? {
            time::sleep(LOOK).await;
        }
        site.record.note(Event::Consuming);
        println!("{:.2?} from {since} until every worker ran a later job", began.elapsed());
        all.set(true);
        anyhow::Ok(())
    };
    let both = time::timeout(PATIENCE * 2, async { tokio::try_join!(publishing, watching) });
    both.await.with_context(|| format!("after {since} not every worker works"))??;
    producer.close().await;
    Ok(())
}

/// Of the jobs whose publish began after `at`.
fn every_worker_ran_one(site: &Site, at: u64) -> anyhow::Result<bool> {
    let entries = record::read_all(&site.folder)?;
    let later: HashSet<_> = entries
        .iter()
        .filter_map(|entry| match &entry.event {
            Event::Intent { id, .. } if entry.at >= at => Some(id),
            _ => None,
        })
        .collect();
    let ran = |who: &str| {
        entries.iter().any(|entry| match &entry.event {
            Event::Begun { id, .. } => entry.who == who && later.contains(id),
            _ => false,
        })
    };
    Ok(site.crew.iter().all(|member| ran(&member.who)))
}
