//! What one channel has in flight: confirmed, mandatory publishes, any number of them at once.
//! In: messages, one after the other. Out: one verdict for each, as soon as it is there, rightly
//! attributed although the client library pins returned messages to the wrong confirms.

use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, Error};
use tokio::time::{self, Instant, Interval, MissedTickBehavior};
use tokio_util::sync::ReusableBoxFuture;

use super::connection::Opened;
use super::fault::Fault;
use super::publisher::{Message, Request};
use super::returned::{Fate, Returned};

/// Longest that a message waits for its confirm before its channel is given up: a queue without a
/// leader must not hold up publishes to others for ever.
const PATIENCE: Duration = Duration::from_secs(30);
/// So long before that nothing more is sent, and the others in flight may still land.
const LAST_CALL: Duration = Duration::from_secs(2);
/// How often those behind a message without a verdict are looked at.
const LOOK: Duration = Duration::from_millis(50);

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

type Outcome = Result<Confirmation, Error>;

/// The messages that are in flight on one channel. Their owner is the only one that publishes on it:
/// lapin takes tags and queues frames under two locks.
pub(crate) struct Window {
    channel: Arc<Channel>,
    returned: Arc<Returned>,
    /// In the order in which they were sent.
    flying: VecDeque<Flight>,
    landed: Vec<Landed>,
    /// Hashes of the ids without a verdict: returns are told apart by id. Two ids of one hash only
    /// wait for each other.
    ids: HashSet<u64>,
    hasher: RandomState,
    /// Futures whose memory is used again.
    spare: Vec<ReusableBoxFuture<'static, Outcome>>,
    look: Interval,
    looked: Instant,
    /// Time in which the broker read what we sent.
    clock: Duration,
}

struct Landed {
    request: Request,
    id: u64,
    outcome: Result<Confirmation, Fault>,
}

struct Flight {
    request: Request,
    id: u64,
    confirm: ReusableBoxFuture<'static, Outcome>,
    /// What the clock showed.
    sent: Duration,
}

impl Window {
    /// On a channel in confirm mode.
    pub(crate) fn new(opened: Opened) -> Self {
        // The number may have been another channel's.
        opened.returned.forget(opened.channel.id());
        let mut look = time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            channel: Arc::new(opened.channel),
            returned: opened.returned,
            flying: VecDeque::new(),
            landed: Vec::new(),
            ids: HashSet::new(),
            hasher: RandomState::new(),
            spare: Vec::new(),
            look,
            looked: Instant::now(),
            clock: Duration::ZERO,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.flying.is_empty() && self.landed.is_empty()
    }

    /// Whether the channel is there, and nothing in flight is about to cost it.
    pub(crate) fn is_sound(&self) -> bool {
        self.channel.status().connected() && self.age() < PATIENCE - LAST_CALL
    }

    /// How many have no verdict yet.
    pub(crate) fn len(&self) -> usize {
        self.flying.len() + self.landed.len()
    }

    /// What ids are told apart by here.
    pub(crate) fn hash(&self, id: &str) -> u64 {
        self.hasher.hash_one(id)
    }

    /// Whether a message with this id is in flight.
    pub(crate) fn has(&self, hash: u64) -> bool {
        self.ids.contains(&hash)
    }

    /// Sends a message that has no namesake in flight.
    pub(crate) fn launch(&mut self, request: Request) {
        if self.flying.is_empty() {
            // Nobody has looked for a while.
            self.looked = Instant::now();
        }
        let publish = publish(Arc::clone(&self.channel), Arc::clone(&request.message));
        let mut confirm = match self.spare.pop() {
            Some(mut spare) => {
                spare.set(publish);
                spare
            }
            None => ReusableBoxFuture::new(publish),
        };
        let id = self.hash(&request.message.envelope.id);
        self.ids.insert(id);
        // The first poll puts it into the client library's hands. Nobody needs to be woken when it
        // is written: the first in flight alone is waited for.
        match confirm.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => {
                let outcome = outcome.map_err(Fault::from);
                self.landed.push(Landed { request, id, outcome });
            }
            Poll::Pending => {
                self.flying.push_back(Flight { request, id, confirm, sent: self.clock });
            }
        }
    }

    /// Waits until there is a verdict, or it is time to look at those that are not the first in
    /// flight. Cancel-safe: what has landed stays here until it is taken.
    pub(crate) async fn landing(&mut self, blocked: impl Fn() -> bool) {
        poll_fn(|cx| {
            self.land(cx);
            if !self.landed.is_empty() {
                return Poll::Ready(());
            }
            if self.look.poll_tick(cx).is_ready() {
                self.look_at_all(blocked());
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    /// The verdicts that are there. After one that is unknown nothing is in flight any more, and the
    /// channel is not to be used again.
    pub(crate) fn verdicts(&mut self, into: &mut Vec<(Request, Sent)>) {
        self.attribute(into);
        let faults = || {
            into.iter().filter_map(|(_, sent)| match sent {
                Sent::Unknown(fault) => Some(fault),
                _ => None,
            })
        };
        let fault = match faults().find(|fault| !matches!(fault, Fault::Closed(_))) {
            Some(fault) => Some(fault.clone()),
            // Refused before it was sent, which says nothing of those that were.
            None if faults().next().is_some() => {
                Some(Fault::Connection("the channel ended before the confirm".to_owned()))
            }
            None => (self.age() >= PATIENCE)
                .then(|| Fault::Silent(humantime::format_duration(PATIENCE).to_string())),
        };
        if let Some(fault) = fault {
            self.abandon(&fault);
            self.attribute(into);
        }
    }

    /// Takes what has landed from the front on. Confirms come nearly in the order of the messages,
    /// so to be woken by the first is enough.
    fn land(&mut self, cx: &mut Context<'_>) {
        while let Some(first) = self.flying.front_mut()
            && let Poll::Ready(outcome) = first.confirm.poll(cx)
            && let Some(flight) = self.flying.pop_front()
        {
            self.landed(flight, outcome);
        }
    }

    /// Takes what has landed anywhere: one slow queue must not hold up the verdicts of others.
    fn look_at_all(&mut self, blocked: bool) {
        let now = Instant::now();
        if !blocked {
            // A machine that slept has not waited.
            self.clock += (now - self.looked).min(Duration::from_secs(1));
        }
        self.looked = now;
        for mut flight in std::mem::take(&mut self.flying) {
            match flight.confirm.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(outcome) => self.landed(flight, outcome),
                Poll::Pending => self.flying.push_back(flight),
            }
        }
    }

    fn landed(&mut self, flight: Flight, outcome: Outcome) {
        self.spare.push(flight.confirm);
        let outcome = outcome.map_err(Fault::from);
        self.landed.push(Landed { request: flight.request, id: flight.id, outcome });
    }

    /// Nothing more comes, but for verdicts that are there already.
    fn abandon(&mut self, fault: &Fault) {
        for mut flight in self.flying.drain(..) {
            let outcome = match flight.confirm.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(outcome) => outcome.map_err(Fault::from),
                Poll::Pending => Err(fault.clone()),
            };
            self.landed.push(Landed { request: flight.request, id: flight.id, outcome });
        }
    }

    /// Whether a message was returned is asked by its id: the confirm that the client library hangs
    /// a return on is another one's whenever the broker acks several at once.
    fn attribute(&mut self, into: &mut Vec<(Request, Sent)>) {
        let (returned, channel, ids) = (&self.returned, self.channel.id(), &mut self.ids);
        into.extend(self.landed.drain(..).map(|Landed { request, id, outcome }| {
            let fate = || returned.fate(channel, &request.message.envelope.id);
            let sent = match outcome {
                Ok(Confirmation::NotRequested) => {
                    Sent::Unknown(Fault::Closed("confirms are off on this channel".to_owned()))
                }
                Ok(confirm) => match fate() {
                    Fate::Routed if confirm.is_ack() => Sent::Confirmed,
                    Fate::Routed => Sent::Refused,
                    Fate::Returned => Sent::Unroutable,
                    Fate::Unclear => Sent::Unknown(Fault::Closed(
                        "the broker gave back a message that cannot be told from others".to_owned(),
                    )),
                },
                Err(fault) => Sent::Unknown(fault),
            };
            // Not sooner: a namesake's return would be taken for this one's.
            ids.remove(&id);
            (request, sent)
        }));
    }

    /// How long the oldest in flight has been waiting, not counting the time in which the broker
    /// blocks us: what waits in the socket then arrives when it reads again.
    fn age(&self) -> Duration {
        self.flying.front().map_or(Duration::ZERO, |first| self.clock - first.sent)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.returned.forget(self.channel.id());
    }
}

async fn publish(channel: Arc<Channel>, message: Arc<Message>) -> Outcome {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let (exchange, key) = (message.exchange.as_ref().into(), message.routing_key().into());
    let (payload, properties) = (&message.envelope.payload, message.properties());
    channel.basic_publish(exchange, key, options, payload, properties).await?.await
}
