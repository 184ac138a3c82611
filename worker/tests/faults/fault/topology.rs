//! Queues, exchanges and rights: deleted, purged, full, denied, and a client that is not ours.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use forebay_producer::link::remove::Remover;
use forebay_producer::wire::topology::{Declaration, Target};
use forebay_producer::{Delay, Job as _, QueueType};
use futures_util::FutureExt;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::time;

use super::Fault;
use crate::record::Event;
use crate::site::Site;
use crate::workload::{Mix, Plan, Script, Step};

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "queue deleted under its consumers",
        "What the queue had out is gone with it, and what comes to it in that moment; what is on its \
         way through the ladder is not.",
        |site, rng| deleted(site, rng).boxed_local(),
    ),
    Fault::new("queue deleted with delayed jobs on their way", "None.", |site, rng| {
        deleted_under_delayed(site, rng).boxed_local()
    })
    .plan(|| Plan {
        mix: Mix { delayed: 60, ..Mix::ALL },
        span: Duration::from_secs(1),
        ..Plan::default()
    }),
    Fault::new("queue purged", "None.", |site, rng| purged(site, rng).boxed_local())
        .plan(|| Plan { jobs: 600, quick_ms: 100, ..Plan::default() }),
    Fault::new(
        "exchanges deleted",
        "The broker closes the channel over a publish to nowhere; what else was published on it \
         without a confirm is published again.",
        |site, rng| exchanges_deleted(site, rng).boxed_local(),
    ),
    Fault::new("queue full: publishes refused", "None.", |site, rng| full(site, rng).boxed_local())
        .on_its_own_broker()
        .plan(|| Plan {
            mix: Mix { rejects: 10, slow: 10, ..Mix::QUICK },
            span: Duration::from_secs(6),
            ..Plan::default()
        }),
    Fault::new(
        "retry's publish refused",
        "None. The broker's own dead-lettering takes the job.",
        |site, rng| ladder_full(site, rng).boxed_local(),
    )
    .on_its_own_broker()
    .may_die_of(&["broker: rejected"])
    .plan(|| Plan { mix: Mix { fails_once: 60, rejects: 5, ..Mix::QUICK }, ..Plan::default() }),
    Fault::new(
        "dead letter's publish refused",
        "None. The broker keeps the letter until its queue takes it.",
        |site, rng| dead_queue_full(site, rng).boxed_local(),
    )
    .on_its_own_broker()
    .plan(|| Plan { mix: Mix { rejects: 30, ..Mix::ALL }, ..Plan::default() })
    .before(|site, _| hand_on_soon(site).boxed_local()),
    Fault::new(
        "dead-letter queue deleted",
        "None. The dead letters in it are gone with it.",
        |site, rng| dead_queue_deleted(site, rng).boxed_local(),
    )
    .on_its_own_broker()
    .plan(|| Plan { mix: Mix { rejects: 30, ..Mix::ALL }, ..Plan::default() })
    .before(|site, _| hand_on_soon(site).boxed_local()),
    Fault::new(
        "publishes of retries and dead letters denied for a while",
        "As for a cut.",
        |site, rng| denied(site, rng).boxed_local(),
    )
    .on_its_own_broker()
    .plan(|| Plan { mix: Mix { rejects: 20, fails_once: 20, ..Mix::ALL }, ..Plan::default() })
    .before(|site, _| allow(site).boxed_local()),
    Fault::new(
        "foreign `expiration` in the delay ladder",
        "None. Such a job comes early.",
        |site, rng| foreign_expiration(site, rng).boxed_local(),
    ),
];

async fn deleted(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..2 {
        site.a_while(rng, 300..1_500).await;
        delete_queue(site).await?;
        site.all_consume().await?;
    }
    Ok(())
}

async fn delete_queue(site: &Site) -> anyhow::Result<()> {
    let (link, channel) = site.plain_channel().await?;
    let queue = site.topology().queue("default");
    site.struck("queue deleted");
    // What was out at workers is gone too.
    let out = site.crew.len() as u64 * u64::from(site.plan.prefetch);
    let began = site.record.now();
    let at_most = delete(&channel, &queue).await? + out;
    let took = site.record.now() - began;
    site.record.note(Event::Destroyed { at_most, took });
    site.healed();
    link.close().await;
    Ok(())
}

async fn unbind_queue(site: &Site) -> anyhow::Result<()> {
    let (remover, topology) = (Remover::new(&site.config()), site.topology());
    let queue = Target::Queue(topology.queue("default"));
    for declaration in topology.for_queue("default", QueueType::Quorum) {
        if matches!(&declaration, Declaration::Binding { to, .. } if *to == queue) {
            remover.unbind(&declaration).await?;
        }
    }
    remover.close().await;
    Ok(())
}

/// How many messages the broker says were ready.
async fn delete(channel: &Channel, queue: &str) -> anyhow::Result<u64> {
    let ready = channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
    Ok(u64::from(ready))
}

/// Nobody declares the queue again before the delays are over: the jobs lie among the unrouted. It is
/// unbound first, as `forebay topology delete` does: what came to it between the broker's count and
/// its end would be gone uncounted.
async fn deleted_under_delayed(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.all_published().await;
    site.dismiss_all().await?;
    unbind_queue(site).await?;
    delete_queue(site).await?;
    site.a_while(rng, 0..1_500).await;
    site.healed();
    for _ in 0..site.plan.workers {
        site.hire()?;
    }
    site.all_consume().await
}

async fn purged(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    let (link, channel) = site.plain_channel().await?;
    let queue = site.topology().queue("default");
    for _ in 0..2 {
        site.a_while(rng, 300..2_000).await;
        let purged = channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default());
        let at_most = u64::from(purged.await?);
        site.record.note(Event::Destroyed { at_most, took: 0 });
    }
    link.close().await;
    Ok(())
}

async fn exchanges_deleted(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    let (link, channel) = site.plain_channel().await?;
    let topology = site.topology();
    for _ in 0..2 {
        site.a_while(rng, 300..1_500).await;
        site.struck("exchanges deleted");
        for exchange in [topology.jobs_exchange().to_owned(), topology.dead_exchange()] {
            let options = ExchangeDeleteOptions::default();
            channel.exchange_delete(exchange.as_str().into(), options).await?;
        }
        time::sleep(Duration::from_millis(100)).await;
        site.healed();
    }
    link.close().await;
    Ok(())
}

async fn policy(site: &Site, pattern: &str, definition: &str) {
    let arguments = ["set_policy", "full", pattern, definition, "--apply-to", "queues"];
    site.own().ctl(&arguments).await;
}

async fn full(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 100..800).await;
    site.dismiss_all().await?;
    let queue = site.topology().queue("default").replace('.', "\\.");
    policy(site, &format!("^{queue}$"), r#"{"max-length":20}"#).await;
    site.a_while(rng, 500..1_500).await;
    site.own().ctl(&["clear_policy", "full"]).await;
    for _ in 0..site.plan.workers {
        site.hire()?;
    }
    site.all_consume().await
}

/// The level from which longer retries begin takes nothing. (The lowest one does: what a level
/// cannot hand on, the broker keeps to itself for three minutes.)
async fn ladder_full(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 100..800).await;
    let level = site.topology().delay(1).replace('.', "\\.");
    policy(site, &format!("^{level}$"), r#"{"max-length":0}"#).await;
    site.a_while(rng, 500..1_500).await;
    site.own().ctl(&["clear_policy", "full"]).await;
    Ok(())
}

/// What the broker could not dead-letter it tries again after three minutes, of its own accord. Here
/// it does so after a second; that counts for queues that are declared from now on.
async fn hand_on_soon(site: &mut Site) -> anyhow::Result<()> {
    let name = "dead_letter_worker_publisher_confirm_timeout";
    site.own().ctl(&["eval", &format!("application:set_env(rabbit, {name}, 1000).")]).await;
    Ok(())
}

async fn dead_queue_full(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 100..800).await;
    let queue = site.topology().dead_queue("default").replace('.', "\\.");
    policy(site, &format!("^{queue}$"), r#"{"max-length":5,"overflow":"reject-publish"}"#).await;
    site.a_while(rng, 500..2_500).await;
    site.own().ctl(&["clear_policy", "full"]).await;
    Ok(())
}

/// Who publishes the next dead letter declares it again; what nobody could publish meanwhile the
/// broker keeps.
async fn dead_queue_deleted(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    let (link, channel) = site.plain_channel().await?;
    let queue = site.topology().dead_queue("default");
    // Each job that runs may have a letter under way.
    let under_way = (site.plan.workers * site.plan.concurrency) as u64;
    for _ in 0..3 {
        site.a_while(rng, 200..1_200).await;
        let at_most = delete(&channel, &queue).await? + under_way;
        site.record.note(Event::Destroyed { at_most, took: 0 });
    }
    link.close().await;
    Ok(())
}

const USER: &str = "limited";

async fn allow(site: &mut Site) -> anyhow::Result<()> {
    let known = site.own().ctl(&["list_users", "--silent"]).await;
    if !known.contains(USER) {
        site.own().ctl(&["add_user", USER, "pw"]).await;
    }
    permit(site, ".*").await;
    site.workers_log_in_as(USER);
    Ok(())
}

async fn permit(site: &Site, write: &str) {
    site.own().ctl(&["set_permissions", USER, ".*", write, ".*"]).await;
}

async fn denied(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 300..1_000).await;
    // The broker asks about rights once for each channel. What fails from here on keeps its
    // delivery until it can be published, and the cut comes first.
    site.struck("rights taken, connections cut");
    permit(site, r"^(?!.*(dead-letters|delay)).*$").await;
    site.workers_path.cut();
    site.healed();
    site.a_while(rng, 500..2_500).await;
    permit(site, ".*").await;
    Ok(())
}

/// A client that is not ours puts jobs on the ladder with a time to live of their own.
async fn foreign_expiration(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    let producer = site.producer();
    let (link, channel) = site.plain_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    for n in 0..30 {
        let delay = Delay::new(Duration::from_millis(rng.u64(200..3_000)))?.context("a delay")?;
        let exchange = site.topology().delay(delay.level());
        let id = format!("foreign-{n:02}");
        if n == 0 {
            // Declares the ladder as high as it is needed here.
            let options = forebay_worker::PublishOptions::new().delay(Duration::from_secs(3));
            producer.publish_with(&Step { script: Script::Quick, ms: 0 }, options).await?;
        }
        let properties = BasicProperties::default()
            .with_message_id(id.as_str().into())
            .with_type(Step::KIND.into())
            .with_delivery_mode(2)
            .with_expiration(rng.u64(1..100).to_string().into());
        let body = serde_json::to_vec(&Step { script: Script::Quick, ms: 1 })?;
        site.record.note(Event::Intent { id: id.clone(), script: "quick".into() });
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let key = delay.routing_key("default");
        let (exchange, key) = (exchange.as_str().into(), key.as_str().into());
        let confirm =
            channel.basic_publish(exchange, key, options, &body, properties).await?.await?;
        ensure!(confirm == Confirmation::Ack(None), "not routed: {confirm:?}");
        site.record.note(Event::Confirmed { id });
        site.a_while(rng, 0..100).await;
    }
    producer.close().await;
    link.close().await;
    Ok(())
}
