//! Confirmed, mandatory publishing that outlives connections.
//! In: messages, each with a deadline. Out: one verdict each. What a lost connection leaves without
//! a verdict is sent again under the same id until its deadline.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::options::ConfirmSelectOptions;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{self, Instant};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::connection::Link;
use super::fault::Fault;
use super::io;
use super::window::{Sent, Window};
use crate::wire::envelope::Envelope;
use crate::wire::event::Event;

/// A producer holds 1,000 jobs or 8 MiB, under way or waiting, before `publish` itself waits:
/// back-pressure, not growth.
const ROOM: usize = 8 * 1024 * 1024;
const LIGHTEST: usize = ROOM / 1_000;
/// Messages that are taken at once.
const BATCH: usize = 256;
/// How often a lane without a connection looks which callers still wait.
const LOOK: Duration = Duration::from_secs(1);
/// Longest that the broker may take to open a channel.
const OPENING: Duration = Duration::from_secs(10);

/// Hands messages to the lane.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    /// Unbounded as a type; the room bounds it.
    requests: mpsc::UnboundedSender<Request>,
    room: Arc<Semaphore>,
    /// Everybody who waits for a verdict.
    callers: TaskTracker,
    link: Link,
}

/// One message, shared by its caller and its lane.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) envelope: Envelope,
    pub(crate) exchange: Arc<str>,
    /// `None`: the queue.
    pub(crate) routing_key: Option<String>,
    /// An event's; those of a job are its envelope's.
    spelled: Option<Box<BasicProperties>>,
    claim: Claim,
}

impl Message {
    /// To the queue of its envelope, through this exchange.
    pub(crate) fn new(envelope: Envelope, exchange: Arc<str>, routing_key: Option<String>) -> Self {
        Self { envelope, exchange, routing_key, spelled: None, claim: Claim::default() }
    }

    /// An event, with its body.
    pub(crate) fn of_event(event: &Event, body: Bytes, exchange: Arc<str>) -> Self {
        Self {
            envelope: Envelope::carrying(event.id.clone(), body),
            exchange,
            routing_key: Some(event.routing_key()),
            spelled: Some(Box::new(event.properties())),
            claim: Claim::default(),
        }
    }

    /// The same, to be sent as if it had never been.
    pub(crate) fn copied(&self) -> Self {
        Self {
            envelope: self.envelope.clone(),
            exchange: Arc::clone(&self.exchange),
            routing_key: self.routing_key.clone(),
            spelled: self.spelled.clone(),
            claim: Claim::default(),
        }
    }

    pub(super) fn properties(&self) -> BasicProperties {
        let spelled = self.spelled.as_deref().cloned();
        spelled.unwrap_or_else(|| self.envelope.properties())
    }

    pub(crate) fn routing_key(&self) -> &str {
        self.routing_key.as_deref().unwrap_or(&self.envelope.queue)
    }
}

/// What became of a publish that got an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Confirmed,
    Unroutable,
    Refused,
    /// The broker closed the channel over this very message.
    Objected(Fault),
}

/// No answer within the deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NoAnswer {
    pub(crate) may_have_arrived: bool,
    pub(crate) because: String,
}

/// A message on its way.
#[derive(Debug)]
pub(crate) struct Request {
    pub(super) message: Arc<Message>,
    ear: Ear,
    /// A connection was lost while it was under way: whatever the broker says of the next try, the
    /// one before may have arrived.
    doubtful: bool,
    /// Its channel was closed while it was under way, mostly over another message: a refusal of the
    /// next try says nothing of the one before. What is said of a message alone on its channel holds.
    tried: bool,
    _room: OwnedSemaphorePermit,
}

/// Who waits for the verdict.
#[derive(Debug)]
enum Ear {
    One(oneshot::Sender<Result<Answer, NoAnswer>>),
    Many(Seat),
}

/// The place of a message at a caller of many, which learns also that there will be no verdict.
#[derive(Debug)]
struct Seat {
    place: u64,
    caller: mpsc::UnboundedSender<Landed>,
    told: bool,
}

/// The verdict of the message at this place; `None`: the producer was closed.
pub(crate) type Landed = (u64, Option<Result<Answer, NoAnswer>>);

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.told {
            _ = self.caller.send((self.place, None));
        }
    }
}

impl Ear {
    fn is_closed(&self) -> bool {
        match self {
            Self::One(caller) => caller.is_closed(),
            Self::Many(seat) => seat.caller.is_closed(),
        }
    }

    /// Nobody waits any more: the verdict is nobody's business.
    fn tell(self, answer: Result<Answer, NoAnswer>) {
        match self {
            Self::One(caller) => _ = caller.send(answer),
            Self::Many(mut seat) => {
                seat.told = true;
                _ = seat.caller.send((seat.place, Some(answer)));
            }
        }
    }
}

/// Who was first: the lane that sends the message, or the caller that stops waiting for it. So
/// "it was not sent" is never said of a message that goes out a moment later.
#[derive(Debug, Default)]
struct Claim(AtomicU8);

impl Claim {
    const WAITING: u8 = 0;
    const SENT: u8 = 1;
    const GONE: u8 = 2;
    const LEFT: u8 = 3;

    /// The lane is about to send it, for the first time or again. `false`: the caller has gone.
    fn send(&self) -> bool {
        self.step(Self::WAITING, Self::SENT).is_ok() || !self.is_left()
    }

    /// The caller goes. `true`: it was sent before.
    fn leave(&self) -> bool {
        if self.step(Self::WAITING, Self::GONE).is_ok() {
            return false;
        }
        _ = self.step(Self::SENT, Self::LEFT);
        self.0.load(Ordering::Acquire) == Self::LEFT
    }

    fn is_left(&self) -> bool {
        matches!(self.0.load(Ordering::Acquire), Self::GONE | Self::LEFT)
    }

    fn step(&self, from: u8, to: u8) -> Result<u8, u8> {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }
}

impl Publisher {
    pub(crate) fn new(link: Link) -> Self {
        let (requests, waiting) = mpsc::unbounded_channel();
        let lane = Lane {
            link: link.clone(),
            waiting,
            fresh: Vec::with_capacity(BATCH),
            again: VecDeque::new(),
            namesakes: VecDeque::new(),
            window: None,
            verdicts: Vec::new(),
            most: None,
        };
        io::handle().spawn(lane.run());
        let room = Arc::new(Semaphore::new(ROOM));
        Self { requests, room, callers: TaskTracker::new(), link }
    }

    /// Waits for the verdict until `deadline`. Dropping the future does not recall the message.
    pub(crate) async fn publish(
        &self,
        message: &Arc<Message>,
        deadline: Instant,
    ) -> Result<Answer, NoAnswer> {
        let _caller = self.callers.token();
        let wait = async {
            let room = Arc::clone(&self.room).acquire_many_owned(weight(message)).await.ok()?;
            let (answer, verdict) = oneshot::channel();
            self.requests.send(Request::new(message, Ear::One(answer), room)).ok()?;
            verdict.await.ok()
        };
        match time::timeout_at(deadline, wait).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(self.closed(message)),
            Err(_) => Err(self.overdue(message)),
        }
    }

    /// Begins to publish many, whose verdicts come together.
    pub(crate) fn bulk(&self) -> Bulk {
        let (ear, verdicts) = mpsc::unbounded_channel();
        Bulk { publisher: self.clone(), ear, verdicts }
    }

    /// Waits until nobody waits for a verdict any more, at most until `deadline`.
    pub(crate) async fn idle(&self, deadline: Instant) {
        self.callers.close();
        _ = time::timeout_at(deadline, self.callers.wait()).await;
    }

    fn overdue(&self, message: &Message) -> NoAnswer {
        self.no_answer(message, "the broker did not confirm it")
    }

    fn closed(&self, message: &Message) -> NoAnswer {
        self.no_answer(message, "the producer was closed")
    }

    fn no_answer(&self, message: &Message, otherwise: &str) -> NoAnswer {
        let may_have_arrived = message.claim.leave();
        let trouble = self.link.trouble();
        let because = if trouble.is_empty() { otherwise.to_owned() } else { trouble };
        NoAnswer { may_have_arrived, because }
    }
}

fn weight(message: &Message) -> u32 {
    message.envelope.payload.len().clamp(LIGHTEST, ROOM) as u32
}

impl Request {
    fn new(message: &Arc<Message>, ear: Ear, room: OwnedSemaphorePermit) -> Self {
        Self { message: Arc::clone(message), ear, doubtful: false, tried: false, _room: room }
    }
}

/// A caller of many: no timer and no channel for each of them.
#[derive(Debug)]
pub(crate) struct Bulk {
    publisher: Publisher,
    ear: mpsc::UnboundedSender<Landed>,
    verdicts: mpsc::UnboundedReceiver<Landed>,
}

impl Bulk {
    /// Hands over a message whose verdict will name this place, and which is waited for as long as
    /// the token is kept. `None`: there is no room now.
    pub(crate) fn post(&self, place: u64, message: &Arc<Message>) -> Option<TaskTrackerToken> {
        let room = Arc::clone(&self.publisher.room).try_acquire_many_owned(weight(message)).ok()?;
        let ear = Ear::Many(Seat { place, caller: self.ear.clone(), told: false });
        self.publisher.requests.send(Request::new(message, ear, room)).ok()?;
        Some(self.publisher.callers.token())
    }

    /// Waits for verdicts; cancel-safe.
    pub(crate) async fn landed(&mut self, into: &mut Vec<Landed>) {
        self.verdicts.recv_many(into, BATCH).await;
    }

    /// The caller's deadline for a message has passed: it is not waited for any longer.
    pub(crate) fn leave(&self, message: &Message) -> NoAnswer {
        self.publisher.overdue(message)
    }

    /// There will be no verdict on this message.
    pub(crate) fn closed(&self, message: &Message) -> NoAnswer {
        self.publisher.closed(message)
    }
}

/// The one task that owns the publishing channel.
struct Lane {
    link: Link,
    waiting: mpsc::UnboundedReceiver<Request>,
    /// Just taken.
    fresh: Vec<Request>,
    /// Taken, but not in flight.
    again: VecDeque<Request>,
    /// Those whose id is in flight already, before those in `again`.
    namesakes: VecDeque<Request>,
    window: Option<Window>,
    verdicts: Vec<(Request, Sent)>,
    /// The broker closed the channel over one of several messages: so few at once until it is found.
    most: Option<usize>,
}

impl Lane {
    /// Ends when every producer is gone and nothing is left to send.
    async fn run(mut self) {
        while self.gather().await {
            if self.ready().await {
                self.launch();
                self.land().await;
                self.settle();
            } else if self.link.is_over() {
                // There will be no answer, and no pause before the next try either: whoever
                // waits learns it by losing the request.
                self.namesakes.clear();
                self.again.clear();
            }
        }
    }

    /// Sees to it that there is something to do. `false`: never again.
    async fn gather(&mut self) -> bool {
        if self.in_flight() {
            return true;
        }
        self.recall();
        self.again.retain(|next| !next.ear.is_closed() && !next.message.claim.is_left());
        if self.again.is_empty() {
            self.most = None;
            self.take().await;
        }
        !self.again.is_empty()
    }

    /// Namesakes are to be looked at again.
    fn recall(&mut self) {
        if !self.namesakes.is_empty() {
            self.namesakes.append(&mut self.again);
            std::mem::swap(&mut self.namesakes, &mut self.again);
        }
    }

    fn in_flight(&self) -> bool {
        self.window.as_ref().is_some_and(|window| !window.is_empty())
    }

    /// Cancel-safe: what was not taken stays in the channel. Takes nothing once all producers are
    /// gone.
    async fn take(&mut self) {
        self.waiting.recv_many(&mut self.fresh, BATCH).await;
        self.again.extend(self.fresh.drain(..));
    }

    /// Whether there is a channel: one with messages in flight, or one to send on. `false` after a
    /// while without a connection.
    async fn ready(&mut self) -> bool {
        if self.in_flight() {
            return true;
        }
        if self.link.is_blocked() {
            // What is sent now arrives when the alarm is over, long after its caller was told that
            // it was not confirmed. And each try to open a channel would leave one behind.
            let mut status = self.link.status();
            let over = status.wait_for(|status| status.blocked.is_none());
            _ = time::timeout(LOOK, over).await;
            return false;
        }
        if !self.window.as_ref().is_some_and(Window::is_sound) {
            self.window = self.open().await;
        }
        self.window.is_some()
    }

    /// A channel in confirm mode.
    async fn open(&self) -> Option<Window> {
        self.link.connected(Instant::now() + LOOK).await.ok()?;
        let deadline = Instant::now() + OPENING;
        let opened = self.link.channel(deadline).await.ok()?;
        let confirms = opened.channel.confirm_select(ConfirmSelectOptions::default());
        time::timeout_at(deadline, confirms).await.ok()?.ok()?;
        Some(Window::new(opened))
    }

    /// Sends what waits, but for messages whose id is in flight already, because returns are told
    /// apart by id.
    fn launch(&mut self) {
        self.recall();
        let Some(window) = self.window.as_mut().filter(|window| window.is_sound()) else { return };
        if self.link.is_blocked() {
            return;
        }
        if self.again.is_empty() && self.most.is_none() {
            // While verdicts come in there is always something to do: look for new messages too.
            let fresh = std::iter::from_fn(|| self.waiting.try_recv().ok());
            self.again.extend(fresh.take(BATCH));
        }
        let mut passed_over = HashSet::new();
        while self.most.is_none_or(|most| window.len() < most)
            && let Some(request) = self.again.pop_front()
        {
            let id = window.hash(&request.message.envelope.id);
            if window.has(id) || passed_over.contains(&id) {
                passed_over.insert(id);
                self.namesakes.push_back(request);
            } else if request.message.claim.send() {
                window.launch(request);
            }
        }
    }

    /// Waits for something to do: verdicts, or new messages where they can be sent.
    async fn land(&mut self) {
        let Some(window) = self.window.as_mut().filter(|window| !window.is_empty()) else { return };
        let (link, fresh) = (&self.link, &mut self.fresh);
        let takes = self.again.is_empty()
            && self.most.is_none()
            && !self.waiting.is_closed()
            && window.is_sound()
            && !link.is_blocked();
        tokio::select! {
            biased;
            // Both are cancel-safe.
            () = window.landing(|| link.is_blocked()) => {}
            _ = self.waiting.recv_many(fresh, BATCH), if takes => {
                self.again.extend(fresh.drain(..));
            }
        }
    }

    /// Tells the verdicts, and keeps those without one for another try.
    fn settle(&mut self) {
        let Some(window) = &mut self.window else { return };
        window.verdicts(&mut self.verdicts);
        let is_unknown = |sent: &Sent| matches!(sent, Sent::Unknown(_));
        let in_question = self.verdicts.iter().filter(|(_, sent)| is_unknown(sent)).count();
        let mut unknown = VecDeque::new();
        for (mut request, sent) in self.verdicts.drain(..) {
            let answer = match sent {
                Sent::Confirmed => Answer::Confirmed,
                Sent::Unroutable => Answer::Unroutable,
                Sent::Refused => Answer::Refused,
                Sent::Unknown(fault) => {
                    // Also after silence: the late confirms must not be taken for later ones.
                    self.window = None;
                    if fault.closes_channel_only() && in_question == 1 {
                        self.most = None;
                        Answer::Objected(fault)
                    } else {
                        if fault.closes_channel_only() {
                            self.most = Some((in_question / 2).max(1));
                        }
                        request.doubtful |=
                            matches!(fault, Fault::Connection(_) | Fault::Silent(_));
                        request.tried |= !matches!(fault, Fault::Closed(_));
                        unknown.push_back(request);
                        continue;
                    }
                }
            };
            let answer = match answer {
                Answer::Refused if request.tried => or_doubt(answer),
                answer if request.doubtful => or_doubt(answer),
                answer => Ok(answer),
            };
            request.ear.tell(answer);
        }
        if !unknown.is_empty() {
            unknown.append(&mut self.again);
            self.again = unknown;
        }
    }
}

/// What the broker does not take now it may have taken before. Given back for want of a queue is
/// given back all the same: it is declared, and the next try decides.
fn or_doubt(answer: Answer) -> Result<Answer, NoAnswer> {
    let refusal = match &answer {
        Answer::Confirmed | Answer::Unroutable | Answer::Objected(Fault::Missing(_)) => {
            return Ok(answer);
        }
        Answer::Refused => "the broker refused it".to_owned(),
        Answer::Objected(fault) => fault.to_string(),
    };
    let because = format!("a try before may have arrived, and then: {refusal}");
    Err(NoAnswer { may_have_arrived: true, because })
}
