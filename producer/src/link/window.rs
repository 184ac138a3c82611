//! One window of confirmed, mandatory publishes on one channel.
//! In: messages. Out: one verdict for each, rightly attributed although the client library pins
//! returned messages to the wrong confirms.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Confirmation, Error};
use tokio::time;

use super::fault::Fault;

/// Longest that a whole window waits for its confirms before its channel is given up: a queue
/// without a leader must not hold up publishes to others for ever. Those that were confirmed in
/// such a window count as unknown too, because returns are told apart by whole windows only.
const PATIENCE: Duration = Duration::from_secs(30);

/// One message, ready to be published.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) payload: Bytes,
    pub(crate) id: String,
}

/// What became of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Routed and confirmed.
    Confirmed,
    /// Returned: no queue is bound.
    Unroutable,
    /// Nacked: the broker does not take it now.
    Refused,
    /// No verdict: the channel or the connection ended first. It may have arrived.
    Unknown(Fault),
}

/// Publishes all of them, and returns when each has its verdict. The caller owns the channel: no
/// other task publishes on it (lapin takes tags and queues frames under two locks), and no two
/// messages of a window have the same id. Time during which the broker blocks us is not counted:
/// what waits in the socket then arrives when it reads again.
pub(crate) async fn publish(
    channel: &Channel,
    window: &[&Message],
    blocked: impl Fn() -> bool,
) -> Vec<Sent> {
    let confirms = future::join_all(window.iter().map(|message| confirmed(channel, message)));
    tokio::select! {
        biased;
        confirms = confirms => {
            attribute(window.iter().map(|message| message.id.as_str()), confirms)
        }
        () = silence(blocked) => {
            let silent = Fault::Silent(humantime::format_duration(PATIENCE).to_string());
            vec![Sent::Unknown(silent); window.len()]
        }
    }
}

async fn silence(blocked: impl Fn() -> bool) {
    const STEP: Duration = Duration::from_secs(1);
    let mut silent = Duration::ZERO;
    while silent < PATIENCE {
        time::sleep(STEP).await;
        if !blocked() {
            silent += STEP;
        }
    }
}

async fn confirmed(channel: &Channel, message: &Message) -> Result<Confirmation, Error> {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let (exchange, key) = (message.exchange.as_str().into(), message.routing_key.as_str().into());
    let properties = message.properties.clone();
    channel.basic_publish(exchange, key, options, &message.payload, properties).await?.await
}

/// Returns are matched by the message id inside them: the confirm they hang on is another one's
/// whenever the broker acks several at once. Exact as long as the whole window is looked at.
fn attribute<'a>(
    ids: impl Iterator<Item = &'a str>,
    confirms: Vec<Result<Confirmation, Error>>,
) -> Vec<Sent> {
    let mut returned = HashSet::new();
    let verdicts: Vec<_> = confirms
        .into_iter()
        .map(|confirm| match confirm {
            Ok(Confirmation::Ack(message)) => {
                returned.extend(message.and_then(|message| id_of(&message.properties)));
                Sent::Confirmed
            }
            Ok(Confirmation::Nack(message)) => {
                returned.extend(message.and_then(|message| id_of(&message.properties)));
                Sent::Refused
            }
            Ok(Confirmation::NotRequested) => {
                Sent::Unknown(Fault::Channel("confirms are off on this channel".to_owned()))
            }
            Err(error) => Sent::Unknown(error.into()),
        })
        .collect();
    if returned.is_empty() {
        return verdicts;
    }
    let pairs = ids.zip(verdicts);
    pairs.map(|(id, sent)| if returned.contains(id) { Sent::Unroutable } else { sent }).collect()
}

fn id_of(properties: &BasicProperties) -> Option<String> {
    properties.message_id().as_ref().map(|id| id.as_str().to_owned())
}
