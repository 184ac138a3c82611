//! What lies in the queues at the end of a run.
//! In: a namespace whose workers have ended. Out: every message of its queues, consumed by a plain
//! client, so that nothing of ours can hide one.

use std::time::Duration;

use forebay_producer::wire::delay::LEVELS;
use futures_util::StreamExt;
use futures_util::future;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::time;

use crate::checker::{Found, Place};
use crate::site::Site;

/// A queue that gives nothing for so long is empty.
const QUIET: Duration = Duration::from_millis(700);

pub(crate) async fn read(site: &Site) -> anyhow::Result<Vec<Found>> {
    let topology = site.topology();
    let mut queues = vec![
        (topology.queue("default"), Place::Queue),
        (topology.dead_queue("default"), Place::Dead),
        (topology.unrouted(), Place::Unrouted),
    ];
    queues.extend((0..LEVELS).map(|level| (topology.delay(level), Place::Delay)));
    let (link, _) = site.plain_channel().await?;
    let mut channels = Vec::new();
    for _ in &queues {
        // A queue that is not there closes its channel.
        channels.push(link.channel(time::Instant::now() + QUIET * 10).await?.channel);
    }
    let all = queues.iter().zip(channels).map(|((queue, place), channel)| async move {
        let (tag, options) = ("leftover".into(), BasicConsumeOptions::default());
        let stream =
            channel.basic_consume(queue.as_str().into(), tag, options, FieldTable::default());
        let Ok(mut stream) = stream.await else { return Vec::new() };
        let mut found = Vec::new();
        while let Ok(Some(Ok(delivery))) = time::timeout(QUIET, stream.next()).await {
            found.push(one(&delivery, *place));
            _ = channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await;
        }
        found
    });
    let found = future::join_all(all).await.concat();
    link.close().await;
    Ok(found)
}

fn one(delivery: &Delivery, place: Place) -> Found {
    let id = delivery.properties.message_id().as_ref().map_or("", |id| id.as_str()).to_owned();
    let headers = delivery.properties.headers().clone().unwrap_or_default();
    let text = |name: &str| match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => Some(text.to_string()),
        _ => None,
    };
    // Ours say why themselves; of the broker's own only it knows.
    let reason = text("forebay-reason")
        .or_else(|| text("x-first-death-reason").map(|reason| format!("broker: {reason}")));
    Found { id, place, reason: reason.unwrap_or_default() }
}
