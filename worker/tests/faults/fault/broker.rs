//! The broker: killed, stopped, not there yet, short of memory or disk, impatient.

use std::time::Duration;

use fastrand::Rng;
use forebay_producer::QueueType;
use forebay_producer::link::connection::Link;
use forebay_producer::link::declare::Declarer;
use futures_util::FutureExt;
use tokio::time::{self, Instant};

use super::{Fault, Ground};
use crate::record::Event;
use crate::site::{PATIENCE, Site};
use crate::workload::{self, Item, Mix, Plan, Script, Step};

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "broker killed (kill -9) and started again",
        "What ran is stopped and comes again; what was published without its confirm is published \
         again under the same id.",
        |site, rng| killed(site, rng).boxed_local(),
    )
    .on_its_own_broker()
    .before(|site, _| old_queues(site).boxed_local()),
    Fault::new("broker killed with delayed jobs on their way", "As for a kill.", |site, rng| {
        killed(site, rng).boxed_local()
    })
    .on_its_own_broker()
    .before(|site, _| old_queues(site).boxed_local())
    .plan(|| Plan { mix: Mix { delayed: 90, fails_once: 20, ..Mix::QUICK }, ..Plan::default() }),
    Fault::new("broker stopped and started in good order", "As for a kill.", |site, rng| {
        stopped(site, rng).boxed_local()
    })
    .on_its_own_broker(),
    Fault::new("broker frozen", "As for a half-open connection.", |site, rng| {
        frozen(site, rng).boxed_local()
    })
    .on_its_own_broker()
    .plan(|| Plan { heartbeat: 2, ..Plan::default() }),
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
    .plan(|| Plan {
        jobs: 400,
        mix: Mix { fails_once: 80, rejects: 10, ..Mix::QUICK },
        quick_ms: 700,
        prefetch: 60,
        ..Plan::default()
    }),
    Fault::new("disk alarm", "None.", |site, rng| disk_alarm(site, rng).boxed_local())
        .on_its_own_broker(),
    Fault::new("connections closed by an operator", "As for a cut.", |site, rng| {
        closed(site, rng).boxed_local()
    })
    .on_its_own_broker(),
    Fault {
        ground: Ground::Own("consumer_timeout = 4000"),
        ..Fault::new(
            "jobs longer than the broker's consumer timeout",
            "None from RabbitMQ 4.3 on, where the worker's own timeout counts. Before, the broker \
             hands the job out again while it runs; the first run is stopped.",
            |site, rng| timed_out(site, rng).boxed_local(),
        )
    },
];

/// A quorum queue that was declared less than half a second before its broker is killed comes back
/// empty, whatever it had confirmed: the broker writes the names of its Raft members down only as
/// often as that ("configured member of queue … was not found on this node. Starting member as a
/// new one"). No client can do anything about it but wait.
pub(super) async fn old_queues(site: &mut Site) -> anyhow::Result<()> {
    let config = site.config();
    let link = Link::open(&config, "declare");
    let (declarer, deadline) = (Declarer::new(link.clone(), &config), Instant::now() + PATIENCE);
    declarer.ensure_queue("default", QueueType::Quorum, deadline).await?;
    declarer.ensure_ladder(7, deadline).await?;
    link.close().await;
    time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

pub(super) async fn killed(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
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

/// Its connections stay, and nobody answers on them.
async fn frozen(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 300..2_000).await;
    site.struck("broker frozen");
    site.own().pause().await;
    site.a_while(rng, 1_000..8_000).await;
    site.own().unpause().await;
    site.note_when_it_answers().await?;
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
    for _ in 0..3 {
        site.a_while(rng, 500..1_500).await;
        site.kill_one(rng).await?;
        site.struck("memory alarm");
    }
    site.own().ctl(&["set_vm_memory_high_watermark", "0.6"]).await;
    site.healed();
    site.all_consume().await
}

async fn disk_alarm(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 300..1_500).await;
    site.struck("disk alarm");
    site.own().ctl(&["set_disk_free_limit", "1000000GB"]).await;
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

/// Before 4.3 the broker takes back, once a minute, all that a channel has out if something of it is
/// out for longer than four seconds. From 4.3 on the worker asks for more time.
async fn timed_out(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.struck("consumer timeout");
    let producer = site.producer();
    for n in 0..4 {
        let step = Step { script: Script::Lingers, ms: rng.u64(4_500..7_000) };
        let item = Item { id: format!("lingerer-{n}"), step, delay: None, new_kind: false };
        workload::publish_one(&producer, &site.record, &item).await;
        site.a_while(rng, 100..1_000).await;
    }
    producer.close().await;
    site.until("each came again or was done", |entries| {
        let done = |event: &Event| match event {
            Event::Ended { id, end, .. } => id.starts_with("lingerer") && end == "ok",
            _ => false,
        };
        entries.iter().filter(|entry| done(&entry.event)).count() >= 4
    })
    .await?;
    site.healed();
    site.all_consume().await
}
