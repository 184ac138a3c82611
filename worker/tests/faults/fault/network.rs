//! The path between worker and broker: cut, half-open, slow, and cut at the worst moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fastrand::Rng;
use forebay_worker::testing::{Frame, Meddle};
use futures_util::FutureExt;

use super::Fault;
use crate::site::Site;
use crate::workload::{Mix, Plan};

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "connections cut at random",
        "What ran is stopped and comes again; so does what was done without its ack having arrived. \
         What was published without its confirm is published again under the same id.",
        |site, rng| cut(site, rng).boxed_local(),
    ),
    Fault::new(
        "half-open connection",
        "As for a cut, for all that was done until the missing heartbeat was noticed.",
        |site, rng| half_open(site, rng).boxed_local(),
    )
    .plan(|| Plan { heartbeat: 2, ..Plan::default() }),
    Fault::new("latency", "None.", |site, rng| late(site, rng).boxed_local()),
    Fault::new("trickle", "None.", |site, rng| trickling(site, rng).boxed_local()),
    Fault::new(
        "cut between the retry's publish and its ack",
        "The copy is on its way and the original comes again.",
        |site, rng| cut_at_ack(site, rng).boxed_local(),
    )
    .plan(|| Plan { mix: Mix { fails_once: 60, ..Mix::ALL }, ..Plan::default() }),
    Fault::new(
        "acks lost, then cut",
        "What was done without its ack having arrived comes again.",
        |site, rng| acks_lost(site, rng).boxed_local(),
    ),
    Fault::new(
        "confirms lost, then cut: jobs delivered twice",
        "The publisher sends again what was not confirmed, and the broker has both.",
        |site, rng| confirms_lost(site, rng).boxed_local(),
    ),
    Fault::new(
        "channel closed by the broker (406)",
        "All that the channel had out comes again.",
        |site, rng| channel_error(site, rng).boxed_local(),
    ),
];

pub(super) async fn cut(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..5 {
        site.a_while(rng, 100..1_000).await;
        site.cut();
    }
    site.all_consume().await
}

async fn half_open(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 200..2_000).await;
    site.struck("path half-open");
    site.workers_path.hold();
    site.publishers_path.hold();
    site.a_while(rng, 1_000..7_000).await;
    site.workers_path.pass();
    site.publishers_path.pass();
    site.healed();
    site.all_consume().await
}

async fn late(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 100..500).await;
    for _ in 0..4 {
        let delay = Duration::from_millis(rng.u64(5..300));
        site.workers_path.delay(delay);
        site.publishers_path.delay(delay);
        site.a_while(rng, 300..1_500).await;
    }
    site.workers_path.pass();
    site.publishers_path.pass();
    Ok(())
}

async fn trickling(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 100..500).await;
    for _ in 0..3 {
        let rate = rng.u32(4_000..60_000);
        site.workers_path.trickle(rate);
        site.publishers_path.trickle(rate);
        site.a_while(rng, 300..2_000).await;
    }
    site.workers_path.pass();
    site.publishers_path.pass();
    Ok(())
}

/// Meddles with the next few acks.
fn acks(most: u32, how: Meddle) -> impl Fn(&Frame<'_>) -> Meddle {
    let left = Arc::new(AtomicU32::new(most));
    move |frame| {
        let take = |left: u32| left.checked_sub(1);
        let (set, get) = (Ordering::AcqRel, Ordering::Acquire);
        if frame.is_ack() && left.fetch_update(set, get, take).is_ok() { how } else { Meddle::Pass }
    }
}

/// The ack that would settle a retried job is never sent: the connection is cut in its place.
async fn cut_at_ack(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..4 {
        site.a_while(rng, 200..1_000).await;
        site.struck("connection cut instead of an ack");
        site.workers_path.meddle(acks(2, Meddle::Cut));
        site.a_while(rng, 100..400).await;
        site.workers_path.pass();
        site.healed();
    }
    site.all_consume().await
}

async fn acks_lost(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..2 {
        site.a_while(rng, 200..1_000).await;
        site.struck("acks swallowed");
        site.workers_path.meddle(|frame| if frame.is_ack() { Meddle::Drop } else { Meddle::Pass });
        site.a_while(rng, 100..600).await;
        site.workers_path.pass();
        site.workers_path.cut();
        site.healed();
    }
    site.all_consume().await
}

async fn confirms_lost(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..2 {
        site.a_while(rng, 200..1_000).await;
        site.struck("confirms swallowed");
        let swallow = |frame: &Frame<'_>| {
            if frame.is_confirm() { Meddle::Drop } else { Meddle::Pass }
        };
        site.publishers_path.meddle(swallow);
        site.workers_path.meddle(swallow);
        site.a_while(rng, 100..600).await;
        site.publishers_path.pass();
        site.workers_path.pass();
        site.cut();
    }
    site.all_consume().await
}

/// The same ack twice: the broker answers the second with 406 and closes the channel.
async fn channel_error(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..4 {
        site.a_while(rng, 200..1_000).await;
        site.struck("channel closed with 406");
        site.workers_path.meddle(acks(2, Meddle::Repeat));
        site.a_while(rng, 100..300).await;
        site.workers_path.pass();
        site.healed();
    }
    site.all_consume().await
}
