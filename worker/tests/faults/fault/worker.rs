//! The worker's process: killed, ended, exhausted, too old, with a turned clock.

use std::time::Duration;

use anyhow::ensure;
use fastrand::Rng;
use forebay_producer::Inspector;
use futures_util::FutureExt;
use tokio::time;

use super::Fault;
use crate::child::{self, Role};
use crate::record::{self, Event};
use crate::site::{self, Site};
use crate::workload::{self, Item, Mix, Plan, Script, Step};

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "worker killed (kill -9)",
        "What it ran, and what it had run without its ack being out, runs again elsewhere.",
        |site, rng| killed(site, rng).boxed_local(),
    ),
    Fault::new(
        "worker ended (SIGTERM) with long jobs",
        "A job that runs beyond the grace period is stopped and given back.",
        |site, rng| ended(site, rng).boxed_local(),
    )
    .plan(|| Plan {
        mix: Mix { slow: 20, ..Mix::ALL },
        slow_ms: 3_000,
        grace: Duration::from_secs(1),
        ..Plan::default()
    }),
    Fault::new(
        "worker frozen (SIGSTOP) beyond its heartbeat",
        "What it held goes to others as soon as its heartbeat is missed; thawed, it ends its runs, \
         and its acks are not believed.",
        |site, rng| frozen(site, rng).boxed_local(),
    )
    .plan(|| Plan { heartbeat: 2, mix: Mix { slow: 20, ..Mix::ALL }, ..Plan::default() }),
    Fault::new("connection cut, then worker killed", "Both.", |site, rng| {
        cut_then_killed(site, rng).boxed_local()
    })
    .plan(|| Plan {
        mix: Mix { slow: 60, ..Mix::ALL },
        slow_ms: 1_600,
        jobs: 200,
        ..Plan::default()
    }),
    Fault::new(
        "job that kills its process, among good neighbours",
        "Who ran beside it when it killed the process runs again.",
        |site, rng| poisoned(site, rng).boxed_local(),
    )
    .plan(|| Plan {
        prefetch: 100,
        workers: 1,
        jobs: 200,
        mix: Mix::QUICK,
        quick_ms: 40,
        ..Plan::default()
    }),
    Fault::new(
        "no file descriptor left in the worker, connection cut",
        "As for a cut.",
        |site, rng| exhausted(site, rng).boxed_local(),
    )
    .plan(|| Plan { file_descriptors: Some(40), jobs: 200, ..Plan::default() }),
    Fault {
        missing: || (!Site::clocks_can_be_turned()).then_some("Debian's package libfaketime"),
        ..Fault::new("clock of the worker turned by hours", "None.", |site, rng| {
            clock_turned(site, rng).boxed_local()
        })
        .plan(|| Plan { turned_clock: true, ..Plan::default() })
        .before(|site, _| async { Ok(std::fs::write(site.clock_file(), "+0")?) }.boxed_local())
    },
    Fault::new("flood on a slow handler, connection cut", "As for a cut.", |site, rng| {
        flooded(site, rng).boxed_local()
    })
    .plan(|| Plan {
        jobs: 800,
        span: Duration::from_secs(1),
        mix: Mix { waits: 100, ..Mix::QUICK },
        quick_ms: 50,
        prefetch: 20,
        ..Plan::default()
    }),
    Fault::new("out-of-order acks at prefetch 1,000", "None.", |_, _| {
        async { Ok(()) }.boxed_local()
    })
    .plan(|| Plan {
        jobs: 2_000,
        span: Duration::from_secs(1),
        quick_ms: 150,
        prefetch: 1_000,
        concurrency: 400,
        ..Plan::default()
    }),
    Fault::new("old and new worker on one queue", "None.", |site, rng| {
        deployed(site, rng).boxed_local()
    })
    .plan(|| Plan { old_workers: true, mix: Mix { new_kind: 30, ..Mix::ALL }, ..Plan::default() })
    .before(|site, _| async { site.hire_with(|_| {}) }.boxed_local()),
];

pub(super) async fn killed(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..3 {
        site.a_while(rng, 200..1_200).await;
        site.kill_one(rng).await?;
    }
    Ok(())
}

async fn ended(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..2 {
        site.a_while(rng, 300..1_200).await;
        site.dismiss_one(rng).await?;
    }
    Ok(())
}

/// The broker gives its jobs to others, and it knows nothing of that when it goes on.
async fn frozen(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 300..1_500).await;
    let member = &site.crew[rng.usize(0..site.crew.len())];
    site.struck(&format!("{} frozen", member.who));
    site::signal("-STOP", member).await?;
    site.a_while(rng, 1_000..9_000).await;
    site::signal("-CONT", member).await?;
    site.healed();
    site.all_consume().await
}

/// What ran before the cut is not to be believed after it: the tags of the new channel are those
/// of other jobs, which are lost with their worker once they were acked in error.
async fn cut_then_killed(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..3 {
        site.a_while(rng, 300..1_000).await;
        site.cut();
        site.all_consume().await?;
        site.a_while(rng, 50..1_000).await;
        site.kill_one(rng).await?;
        site.all_consume().await?;
    }
    Ok(())
}

/// Starts the worker again whenever it has died, as an init system would, until the killer is dead.
async fn poisoned(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 100..1_500).await;
    let killer = Item {
        id: "killer".into(),
        step: Step { script: Script::Kills, ms: rng.u64(0..20) },
        delay: None,
        new_kind: false,
    };
    let producer = site.producer();
    workload::publish_one(&producer, &site.record, &killer).await;
    producer.close().await;
    let inspector = Inspector::new(&site.config());
    let dead_queue = site.topology().dead_queue("default");
    let until = time::Instant::now() + Duration::from_secs(150);
    let mut deaths = 0;
    site.struck("processes killed by a job");
    loop {
        ensure!(time::Instant::now() < until, "the killer is not dead after 150 s");
        let member = &mut site.crew[0];
        match time::timeout(Duration::from_millis(300), member.process.wait()).await {
            Ok(status) => {
                ensure!(!status?.success(), "{} ended by itself", member.who);
                deaths += 1;
                let who = site.crew.remove(0).who;
                site.note_of(&who, Event::Gone { how: "killed by a job".into() })?;
                site.hire()?;
            }
            Err(_) => {
                if inspector.count(&dead_queue).await?.is_some_and(|count| count.ready > 0) {
                    break;
                }
            }
        }
    }
    site.healed();
    inspector.close().await;
    // The worker's own limit of ten, not the broker's backstop of a hundred.
    if deaths > 10 {
        site.record.note(Event::Broken { what: format!("one job has killed {deaths} processes") });
    }
    Ok(())
}

/// The job holds every descriptor for a while; the connections that are cut meanwhile cannot be
/// opened again before it lets go.
async fn exhausted(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 200..1_000).await;
    let producer = site.producer();
    let ms = rng.u64(800..2_000);
    for n in 0..site.plan.workers {
        let step = Step { script: Script::Hoards, ms };
        let item = Item { id: format!("hoarder-{n}"), step, delay: None, new_kind: false };
        workload::publish_one(&producer, &site.record, &item).await;
    }
    producer.close().await;
    site.until("a job holds every descriptor", |entries| {
        entries.iter().any(|entry| match &entry.event {
            Event::Begun { id, .. } => id.starts_with("hoarder"),
            _ => false,
        })
    })
    .await?;
    site.struck("connections cut while no descriptor is left");
    site.workers_path.cut();
    time::sleep(Duration::from_millis(ms)).await;
    site.healed();
    site.all_consume().await?;
    // What broke for want of a descriptor must not stay broken.
    for _ in 0..2 {
        site.a_while(rng, 300..800).await;
        site.cut();
        time::sleep(Duration::from_millis(300)).await;
        site.all_consume().await?;
    }
    Ok(())
}

async fn clock_turned(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for hours in [rng.i32(1..50), rng.i32(-50..0), 0] {
        site.a_while(rng, 300..1_000).await;
        std::fs::write(site.clock_file(), format!("{hours:+}h"))?;
    }
    Ok(())
}

/// The prefetch is as before once the connection is restored: the rest stays in the queue.
async fn flooded(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.all_published().await;
    site.cut();
    site.all_consume().await?;
    site.a_while(rng, 300..1_000).await;
    held(site).await?;
    std::fs::write(site.folder.join(child::GATE), "")?;
    site.a_while(rng, 100..600).await;
    site.cut();
    site.all_consume().await
}

/// While the gate is shut no job is done, so what is not in the queue is with the workers. What the
/// connection had out that was cut goes back as soon as the broker has noticed.
async fn held(site: &Site) -> anyhow::Result<()> {
    let (inspector, queue) = (Inspector::new(&site.config()), site.topology().queue("default"));
    let entries = record::read_all(&site.folder)?;
    let confirmed = entries.iter().filter(|entry| matches!(entry.event, Event::Confirmed { .. }));
    let confirmed = confirmed.count();
    let most = site.plan.workers * usize::from(site.plan.prefetch);
    let mut out = usize::MAX;
    for _ in 0..200 {
        let ready = inspector.count(&queue).await?.map_or(0, |count| count.ready as usize);
        out = confirmed.saturating_sub(ready);
        if out <= most {
            break;
        }
        time::sleep(Duration::from_millis(100)).await;
    }
    inspector.close().await;
    if out > most {
        let what =
            format!("{out} jobs are with workers that may hold {most}: prefetch not restored");
        site.record.note(Event::Broken { what });
    }
    Ok(())
}

/// A rolling deploy: jobs of the new kind wait until the last old worker has gone.
async fn deployed(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for place in [1, 1] {
        site.a_while(rng, 300..1_500).await;
        let mut old = site.crew.remove(place);
        site.hire_with(|role| {
            if let Role::Works { knows_new, .. } = role {
                *knows_new = true;
            }
        })?;
        site::end(&mut old).await?;
    }
    Ok(())
}
