//! The broker: killed, stopped, not there yet, short of memory or disk, impatient.

use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt;

use super::{Fault, Ground};
use crate::site::Site;
use crate::workload::{Mix, Plan};

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "broker killed (kill -9) and started again",
        "What ran is stopped and comes again; what was published without its confirm is published \
         again under the same id.",
        |site, rng| killed(site, rng).boxed_local(),
    )
    .on_its_own_broker(),
    Fault::new("broker stopped and started in good order", "As for a kill.", |site, rng| {
        stopped(site, rng).boxed_local()
    })
    .on_its_own_broker(),
    Fault {
        workers_first: false,
        ..Fault::new("broker absent at the start", "None.", |site, rng| {
            came_late(site, rng).boxed_local()
        })
        .on_its_own_broker()
        .before(|site, _| stop(site).boxed_local())
    },
    Fault::new(
        "memory alarm while jobs fail, worker killed meanwhile",
        "As for a killed worker.",
        |site, rng| memory_alarm(site, rng).boxed_local(),
    )
    .on_its_own_broker()
    .plan(|| Plan { mix: Mix { fails_once: 50, ..Mix::ALL }, ..Plan::default() }),
    Fault::new("disk alarm", "None.", |site, rng| disk_alarm(site, rng).boxed_local())
        .on_its_own_broker(),
    Fault::new("connections closed by an operator", "As for a cut.", |site, rng| {
        closed(site, rng).boxed_local()
    })
    .on_its_own_broker(),
    Fault {
        ground: Ground::Own("consumer_timeout = 2000"),
        ..Fault::new(
            "jobs longer than the broker's consumer timeout",
            "The broker hands the job out again while it runs; the first run is stopped.",
            |site, rng| timed_out(site, rng).boxed_local(),
        )
    },
];

async fn killed(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 300..2_500).await;
    site.struck("broker killed");
    site.own().kill().await;
    let (_, healed) = tokio::join!(site.own().revive(), site.note_when_it_answers());
    healed?;
    site.all_consume().await
}

async fn stopped(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 300..2_500).await;
    site.struck("broker stopped");
    site.own().stop().await;
    site.a_while(rng, 0..1_500).await;
    let (_, healed) = tokio::join!(site.own().start(), site.note_when_it_answers());
    healed?;
    site.all_consume().await
}

async fn stop(site: &mut Site) -> anyhow::Result<()> {
    site.own().stop().await;
    Ok(())
}

async fn came_late(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.struck("broker absent");
    site.a_while(rng, 500..4_000).await;
    let (_, healed) = tokio::join!(site.own().start(), site.note_when_it_answers());
    healed?;
    site.all_consume().await
}

/// In the alarm the broker reads nothing from publishing connections, while acks go through: a job
/// that is acked before its copy is confirmed is nowhere.
async fn memory_alarm(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 300..1_500).await;
    site.struck("memory alarm");
    site.own().ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"]).await;
    site.a_while(rng, 300..1_500).await;
    site.kill_one(rng).await?;
    site.struck("memory alarm");
    site.a_while(rng, 300..1_000).await;
    site.own().ctl(&["set_vm_memory_high_watermark", "0.6"]).await;
    site.healed();
    site.all_consume().await
}

async fn disk_alarm(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 300..1_500).await;
    site.struck("disk alarm");
    site.own().ctl(&["set_disk_free_limit", "1000TB"]).await;
    site.a_while(rng, 500..2_500).await;
    site.own().ctl(&["set_disk_free_limit", "50MB"]).await;
    site.healed();
    site.all_consume().await
}

async fn closed(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..2 {
        site.a_while(rng, 200..1_500).await;
        site.struck("connections closed");
        site.own().ctl(&["close_all_connections", "--vhost", "/", "maintenance"]).await;
        site.healed();
        site.all_consume().await?;
    }
    Ok(())
}

/// One job in twenty takes up to 5 s, and the broker takes back what is out for longer than two.
async fn timed_out(site: &mut Site, _rng: &mut Rng) -> anyhow::Result<()> {
    site.struck("consumer timeout");
    site.all_published().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(())
}
