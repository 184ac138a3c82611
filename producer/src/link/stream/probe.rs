//! Looks where the stream of events ends, beside the reader that nothing comes to.
//! In: the connection. Out: the newest message, as this node of the broker has it.

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tokio::time::{self, Instant};
use tracing::debug;

use super::watch::{Look, PROOF};
use super::{OFFSET, PREFETCH, offset};
use crate::link::connection::Link;
use crate::link::fault::{ANSWER, Fault, answered, close};
use crate::wire::event::Event;

/// How many times it asks for more. What is written faster than it reads has no end, and is ahead of
/// everybody.
const ROUNDS: usize = 50;

/// Ends by itself, within a time that the broker's answers take at most.
pub(super) async fn look(link: Link, queue: String) -> Look {
    let opened = match link.channel(Instant::now() + ANSWER).await {
        Ok(opened) => opened,
        Err(error) => {
            debug!(%error, "cannot look at the stream of events");
            return Look::Failed;
        }
    };
    let look = newest(&opened.channel, &queue).await.unwrap_or_else(|fault| {
        debug!(%fault, "cannot look at the stream of events");
        Look::Failed
    });
    close(&opened.channel, "seen").await;
    look
}

async fn newest(channel: &Channel, queue: &str) -> Result<Look, Fault> {
    answered(ANSWER, channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
    let mut arguments = FieldTable::default();
    arguments.insert(OFFSET.into(), AMQPValue::LongString("last".into()));
    let options = BasicConsumeOptions::default();
    let consume = channel.basic_consume(queue.into(), "".into(), options, arguments);
    let mut stream = answered(ANSWER, consume).await?;
    let mut newest = match time::timeout(PROOF, stream.next()).await {
        Ok(Some(delivery)) => delivery?,
        Ok(None) => return Err(Fault::Cancelled),
        Err(_) => return Ok(Look::Nothing),
    };
    let mut unacked = 1;
    for _ in 0..ROUNDS {
        // The broker answers in order: all that it could send at once has come by then.
        answered(ANSWER, channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
        (newest, unacked) = drained(&mut stream, newest, unacked)?;
        if unacked < PREFETCH {
            // It may send more, and has not.
            break;
        }
        let up_to_here = BasicAckOptions { multiple: true };
        answered(ANSWER, channel.basic_ack(newest.delivery_tag, up_to_here)).await?;
        unacked = 0;
    }
    let Some(offset) = offset(&newest) else { return Ok(Look::Failed) };
    let told = Event::decode(&newest.data).ok().map(|event| event.time());
    Ok(Look::Ends { offset, told })
}

/// Takes what has come.
fn drained(
    stream: &mut Consumer,
    mut newest: Delivery,
    mut unacked: u16,
) -> Result<(Delivery, u16), Fault> {
    while let Some(next) = stream.next().now_or_never() {
        newest = next.ok_or(Fault::Cancelled)??;
        unacked = unacked.saturating_add(1);
    }
    Ok((newest, unacked))
}
