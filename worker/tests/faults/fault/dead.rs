//! Dead letters: looked at often, redriven by a process that is killed.

use std::time::Duration;

use fastrand::Rng;
use forebay_producer::{DeadLetters, Filter, Pile};
use futures_util::FutureExt;
use tokio::time;

use super::Fault;
use crate::child::Role;
use crate::record::Event;
use crate::site::Site;
use crate::workload::{self, Item, Mix, Plan, Script, Step};

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "redrive killed midway",
        "The letter whose copy was confirmed and whose ack was not out is redriven again.",
        |site, rng| redrive_killed(site, rng).boxed_local(),
    )
    .plan(|| Plan { jobs: 50, mix: Mix::QUICK, ..Plan::default() }),
    Fault::new("dead letters looked at 50 times", "None.", |site, rng| {
        looked_at(site, rng).boxed_local()
    })
    .plan(|| Plan { jobs: 100, mix: Mix { rejects: 40, ..Mix::QUICK }, ..Plan::default() }),
];

async fn redrive_killed(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    let producer = site.producer();
    for n in 0..60 {
        let step = Step { script: Script::RejectsOnce, ms: 1 };
        let item = Item { id: format!("dead-{n:02}"), step, delay: None, new_kind: false };
        workload::publish_one(&producer, &site.record, &item).await;
    }
    producer.close().await;
    site.until("sixty are dead", |entries| {
        let dead = |event: &Event| matches!(event, Event::Ended { end, .. } if end == "reject");
        entries.iter().filter(|entry| dead(&entry.event)).count() >= 60
    })
    .await?;
    for n in 1..=4 {
        let who = format!("redrive-{n}");
        site.struck("redrive killed");
        let mut process = site.spawn(&who, Role::Redrives { rate: 60.0 })?;
        if n < 4 {
            site.a_while(rng, 100..900).await;
            process.kill().await?;
        } else {
            time::timeout(crate::site::PATIENCE, process.wait()).await??;
        }
        time::sleep(Duration::from_millis(300)).await;
        site.healed();
    }
    Ok(())
}

async fn looked_at(site: &mut Site, _rng: &mut Rng) -> anyhow::Result<()> {
    site.all_published().await;
    site.all_settled().await?;
    let letters = DeadLetters::new(&site.config());
    let pile = Pile::Queue("default".into());
    for _ in 0..50 {
        let listing = letters.list(&pile, &Filter::default(), 1_000).await?;
        if listing.letters.len() as u64 != listing.total {
            let what = format!("{} of {} letters seen", listing.letters.len(), listing.total);
            site.record.note(Event::Broken { what });
        }
    }
    letters.close().await;
    Ok(())
}
