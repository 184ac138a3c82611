//! Dead letters: look at them, redrive them, purge them.
//! In: a pile (a queue's dead letters, or what the ladder could not route) and a filter. Out: what
//! was seen and done. What is not acknowledged here goes back by itself, whatever interrupts us.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions,
    BasicQosOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::time;

use super::connection::Link;
use super::fault::{ANSWER, Fault, answered};
use crate::config::{Config, after};
use crate::error::{DeadError, PublishError};
use crate::producer::{Destination, Producer};
use crate::wire::envelope::{Envelope, Raw, now_ms};
use crate::wire::event::Event;

/// A pile that gives nothing for so long has no more to give: the rest is in other hands.
const QUIET: Duration = Duration::from_secs(2);

/// A place where jobs lie until somebody decides.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pile {
    /// The dead letters of one queue.
    Queue(String),
    /// What came off the delay ladder after its queue had gone.
    Unrouted,
}

/// Which dead letters are meant; an empty filter means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Filter {
    /// Only this kind.
    pub kind: Option<String>,
    /// Only this reason.
    pub reason: Option<String>,
    /// Only this job id.
    pub id: Option<String>,
    /// Only those that died at least so long ago.
    pub older_than: Option<Duration>,
    /// Only those that died at most so long ago.
    pub newer_than: Option<Duration>,
}

/// One dead letter.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The job with its history.
    pub envelope: Envelope,
    /// Why: our reason word, `broker: …` when the broker itself moved it, `unrouted`.
    pub reason: String,
    /// When, in milliseconds since the epoch, if known.
    pub died_at_ms: Option<u64>,
}

/// What a look shows.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Listing {
    /// Those that match the filter, oldest first.
    pub letters: Vec<DeadLetter>,
    /// How many were looked at.
    pub looked_at: u64,
    /// How many there are in all.
    pub total: u64,
}

/// What a redrive or a purge has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Done {
    /// Redriven or purged.
    pub done: u64,
    /// Looked at and left, because the filter did not match.
    pub left: u64,
    /// Matching, but kept because their copy could not be published: id and reason.
    pub failed: Vec<(String, String)>,
    /// How many there were in all.
    pub total: u64,
}

/// How a redrive goes about it.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct RedriveOptions {
    /// At most so many per second; none: as fast as the broker confirms. Looks at no more letters
    /// than that makes in 20 minutes: the broker takes back what is held for longer than 30.
    pub rate: Option<f64>,
    /// To this queue instead of the one each came from.
    pub to: Option<String>,
}

/// Reads and moves dead letters, over a connection of its own.
#[derive(Debug)]
pub struct DeadLetters {
    link: Link,
    config: Config,
}

impl Filter {
    /// Whether a dead letter is meant, at the time `now_ms`.
    pub fn matches(&self, letter: &DeadLetter, now_ms: u64) -> bool {
        let same = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == found)
        };
        let age = letter.died_at_ms.map(|at| Duration::from_millis(now_ms.saturating_sub(at)));
        same(&self.kind, letter.envelope.kind.as_deref())
            && same(&self.reason, Some(&letter.reason))
            && same(&self.id, Some(&letter.envelope.id))
            && self.older_than.is_none_or(|least| age.is_some_and(|age| age >= least))
            && self.newer_than.is_none_or(|most| age.is_some_and(|age| age <= most))
    }
}

impl DeadLetters {
    /// Opens a connection of its own, in the background.
    pub fn new(config: &Config) -> Self {
        Self { link: Link::open(config, "dead letters"), config: config.clone() }
    }

    /// Looks at up to `limit` dead letters and gives all of them back.
    ///
    /// # Errors
    /// [`DeadError`]; nothing is taken in any case.
    pub async fn list(
        &self,
        pile: &Pile,
        filter: &Filter,
        limit: u16,
    ) -> Result<Listing, DeadError> {
        let mut walk = self.walk(pile, limit).await?;
        let mut listing = Listing { letters: Vec::new(), looked_at: 0, total: walk.total };
        while let Some(taken) = walk.next().await? {
            listing.looked_at += 1;
            if filter.matches(&taken.letter, now_ms()) {
                listing.letters.push(taken.letter);
            }
        }
        walk.give_back().await?;
        Ok(listing)
    }

    /// Publishes matching dead letters to their queues again and removes each once its copy is
    /// confirmed: attempt 1, crashes 0, redrives one more, failures kept. Looks at up to `limit`.
    ///
    /// Interrupted at any point it loses nothing; the one under way may then be in both places.
    ///
    /// # Errors
    /// [`DeadError`] when the pile cannot be read any further; single copies that could not be
    /// published are in [`Done::failed`].
    pub async fn redrive(
        &self,
        pile: &Pile,
        filter: &Filter,
        limit: u16,
        options: &RedriveOptions,
        producer: &Producer,
        mut progress: impl FnMut(&Done),
    ) -> Result<Done, DeadError> {
        let in_time = options.rate.map_or(u16::MAX, |rate| (rate * 1200.0).max(1.0) as u16);
        let mut walk = self.walk(pile, limit.min(in_time)).await?;
        let mut done = Done { total: walk.total, ..Done::default() };
        let mut pace = options.rate.map(|rate| time::interval(gap(rate)));
        while let Some(taken) = walk.next().await? {
            if !filter.matches(&taken.letter, now_ms()) {
                done.left += 1;
                continue;
            }
            if let Some(pace) = &mut pace {
                pace.tick().await;
            }
            let id = taken.letter.envelope.id.clone();
            let keys = self.config.signing_keys.as_deref();
            let namespace = self.config.topology().namespace();
            let copy = taken.letter.envelope.redriven_to(options.to.as_deref(), keys, namespace);
            let copy = match copy {
                Ok(copy) => copy,
                Err(why) => {
                    done.failed.push((id, why));
                    progress(&done);
                    continue;
                }
            };
            let deadline = after(self.config.publish_deadline);
            // Copy, confirm, ack: never the other order.
            match producer.send(&copy, Destination::Queue, deadline).await {
                Ok(()) => {
                    walk.ack(taken.tag).await?;
                    if copy.track {
                        producer.post_event(Event::queued(&copy, None));
                    }
                    done.done += 1;
                }
                Err(error) => {
                    let in_vain = matches!(error, PublishError::Unconfirmed { .. });
                    done.failed.push((id, error.to_string()));
                    if in_vain {
                        progress(&done);
                        break; // The rest would each wait as long.
                    }
                }
            }
            progress(&done);
        }
        walk.give_back().await?;
        Ok(done)
    }

    /// Removes matching dead letters for good. Looks at up to `limit`.
    ///
    /// # Errors
    /// [`DeadError`] when the pile cannot be read any further.
    pub async fn purge(&self, pile: &Pile, filter: &Filter, limit: u16) -> Result<Done, DeadError> {
        let mut walk = self.walk(pile, limit).await?;
        let mut done = Done { total: walk.total, ..Done::default() };
        while let Some(taken) = walk.next().await? {
            if filter.matches(&taken.letter, now_ms()) {
                walk.ack(taken.tag).await?;
                done.done += 1;
            } else {
                done.left += 1;
            }
        }
        walk.give_back().await?;
        Ok(done)
    }

    /// Closes the connection.
    pub async fn close(&self) {
        self.link.close().await;
    }

    async fn walk(&self, pile: &Pile, limit: u16) -> Result<Walk, DeadError> {
        let topology = self.config.topology();
        let queue = match pile {
            Pile::Queue(queue) => topology.dead_queue(queue),
            Pile::Unrouted => topology.unrouted(),
        };
        let deadline = after(self.config.publish_deadline);
        let channel = self.link.channel(deadline).await?.channel;
        let walk = Walk::start(channel, &queue, pile == &Pile::Unrouted, limit);
        walk.await.map_err(|fault| explain(fault, &queue))
    }
}

/// The time between two of so many per second; at least a microsecond, at most an hour.
fn gap(per_second: f64) -> Duration {
    let seconds = (1.0 / per_second).clamp(1e-6, 3600.0);
    Duration::from_secs_f64(if seconds.is_nan() { 1.0 } else { seconds })
}

/// A walk over a pile: each letter is taken, and at the end those that were not acked go back.
struct Walk {
    channel: Channel,
    queue: String,
    unrouted: bool,
    first: Option<Delivery>,
    rest: Option<Consumer>,
    left_to_take: u64,
    total: u64,
}

struct Taken {
    letter: DeadLetter,
    tag: u64,
}

impl Walk {
    /// The first is fetched by `get`, whose answer also tells how many remain: that needs no
    /// permission but `read`. The others come by consuming, because a `get` is a round trip each.
    async fn start(
        channel: Channel,
        queue: &str,
        unrouted: bool,
        limit: u16,
    ) -> Result<Self, Fault> {
        let got =
            answered(ANSWER, channel.basic_get(queue.into(), BasicGetOptions::default())).await?;
        let remaining = got.as_ref().map_or(0, |got| u64::from(got.message_count));
        let left_to_take = remaining.min(u64::from(limit.saturating_sub(1)));
        let rest = match u16::try_from(left_to_take) {
            Ok(prefetch) if prefetch > 0 => {
                answered(ANSWER, channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
                let options = BasicConsumeOptions::default();
                let table = FieldTable::default();
                let tag = "dead-letters".into();
                Some(
                    answered(ANSWER, channel.basic_consume(queue.into(), tag, options, table))
                        .await?,
                )
            }
            _ => None,
        };
        Ok(Self {
            channel,
            queue: queue.to_owned(),
            unrouted,
            total: remaining + u64::from(got.is_some()),
            // It goes back with the others: nobody acks it.
            first: got.map(|got| got.delivery).filter(|_| limit > 0),
            rest,
            left_to_take,
        })
    }

    async fn next(&mut self) -> Result<Option<Taken>, DeadError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(self.read(first)));
        }
        let Some(rest) = self.rest.as_mut().filter(|_| self.left_to_take > 0) else {
            return Ok(None);
        };
        match time::timeout(QUIET, rest.next()).await {
            Ok(Some(Ok(delivery))) => {
                self.left_to_take -= 1;
                Ok(Some(self.read(delivery)))
            }
            Ok(Some(Err(error))) => Err(explain(error.into(), &self.queue)),
            Ok(None) => Err(explain(Fault::Cancelled, &self.queue)),
            Err(_) => Ok(None),
        }
    }

    fn read(&self, delivery: Delivery) -> Taken {
        let envelope = Envelope::decode(Raw {
            properties: &delivery.properties,
            routing_key: delivery.routing_key.as_str(),
            redelivered: delivery.redelivered,
            payload: Bytes::from(delivery.data),
        });
        Taken { letter: DeadLetter::of(envelope, self.unrouted), tag: delivery.delivery_tag }
    }

    async fn ack(&self, tag: u64) -> Result<(), DeadError> {
        let acked = answered(ANSWER, self.channel.basic_ack(tag, BasicAckOptions::default())).await;
        acked.map_err(|fault| explain(fault, &self.queue))
    }

    /// Cancel first: a message given back to a queue that we still consume comes straight back.
    async fn give_back(self) -> Result<(), DeadError> {
        let end = async {
            if let Some(rest) = &self.rest {
                let options = BasicCancelOptions::default();
                answered(ANSWER, self.channel.basic_cancel(rest.tag(), options)).await?;
            }
            let all = BasicNackOptions { multiple: true, requeue: true };
            answered(ANSWER, self.channel.basic_nack(0, all)).await?;
            answered(ANSWER, self.channel.close(200, "done".into())).await
        };
        end.await.map_err(|fault| explain(fault, &self.queue))
    }
}

impl DeadLetter {
    /// Reads what was found on a pile, `unrouted` or of a queue: ours say why themselves; the
    /// broker's own have only `x-death`.
    pub fn of(mut envelope: Envelope, unrouted: bool) -> Self {
        let broker = envelope.broker.death.take();
        let moved_at_ms =
            broker.as_ref().and_then(|(.., seconds)| seconds.map(|s| s.saturating_mul(1000)));
        let (reason, died_at_ms) = match (&envelope.dead, broker) {
            (Some(mark), _) => (mark.reason.to_string(), Some(mark.at_ms)),
            _ if unrouted => ("unrouted".to_owned(), moved_at_ms),
            (None, Some((reason, ..))) => (format!("broker: {reason}"), moved_at_ms),
            (None, None) => ("unknown".to_owned(), None),
        };
        envelope.broker.delivery_count = None;
        Self { envelope, reason, died_at_ms }
    }
}

fn explain(fault: Fault, queue: &str) -> DeadError {
    match fault {
        Fault::Missing(_) => DeadError::Missing { queue: queue.to_owned() },
        Fault::Denied(because) => DeadError::Denied { because },
        other => DeadError::Broker { because: other.to_string() },
    }
}
