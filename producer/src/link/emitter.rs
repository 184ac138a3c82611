//! Tells events to the stream: bounded, confirmed, and never at the cost of a job.
//! In: events. Out: they are on the stream, or who waits for one learns why not; of those that
//! nobody waits for the lost ones are counted.
//!
//! One task hands them on in the order in which they came, over a connection of their own, which is
//! there once there was an event: a broker that cannot write to the stream ends the connection over
//! it, and whatever else is under way there comes again. What it needs it declares before the first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{self, Instant};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{debug, warn};

use super::connection::{Link, Status};
use super::declare::Declarer;
use super::fault::Fault;
use super::io;
use super::publisher::{Answer, Message, NoAnswer, Publisher};
use crate::config::{Config, after};
use crate::error::{EmitError, TopologyError};
use crate::telemetry::EventMeter;
use crate::wire::event::{EVENT_LIMIT, Event};

/// So many events, or as many bytes, wait or are under way at most.
const ROOM: usize = 8 * 1024 * 1024;
const LIGHTEST: usize = ROOM / 1_000;
/// While the stream cannot be had, nobody waits for it: so long until the next try.
const PAUSE: Duration = Duration::from_secs(30);
/// The same where somebody has to change the broker first.
const LONG_PAUSE: Duration = Duration::from_secs(3_600);
/// A shorter wait says nothing of the stream.
const SILENCE: Duration = Duration::from_secs(1);
/// RabbitMQ's words (541) where a queue of this name is a stream without members.
const NO_STREAM: &str = "Stream not found";
const CLOSED: &str = "the producer was closed";
/// One line in the log for all that were lost in that time.
const QUIET: Duration = Duration::from_secs(60);

/// Takes events. Clones share its room and its order.
#[derive(Debug, Clone)]
pub(crate) struct Emitter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    exchange: Arc<str>,
    source: String,
    patience: Duration,
    /// Made when it is first needed.
    way: OnceLock<Way>,
    room: Arc<Semaphore>,
    /// Everything that is on its way.
    flying: TaskTracker,
    /// Somebody has waited in vain, and nothing was confirmed since.
    silent: AtomicBool,
    meter: EventMeter,
    lost: Mutex<Lost>,
}

/// To the stream.
#[derive(Debug)]
struct Way {
    link: Link,
    declarer: Declarer,
    /// Of the task that hands them on. Unbounded as a type; the room bounds it.
    desk: mpsc::UnboundedSender<Posted>,
}

#[derive(Debug, Default)]
struct Lost {
    count: u64,
    told: Option<Instant>,
}

/// Who misses an event that is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Its teller, who learns it.
    Awaited,
    /// Somebody asked for it.
    Asked,
    /// Nobody: it is told in case.
    InCase,
}

#[derive(Debug)]
struct Posted {
    message: Arc<Message>,
    deadline: Instant,
    ear: Option<oneshot::Sender<Result<(), EmitError>>>,
    wanted: Wanted,
    /// It came back once, because the stream was not there.
    again: bool,
    _room: OwnedSemaphorePermit,
    _flying: TaskTrackerToken,
}

impl Emitter {
    pub(crate) fn new(config: &Config) -> Self {
        let shared = Shared {
            config: config.clone(),
            exchange: config.topology().events().into(),
            source: source(config.topology().namespace()),
            patience: config.deadline(),
            way: OnceLock::new(),
            room: Arc::new(Semaphore::new(ROOM)),
            flying: TaskTracker::new(),
            silent: AtomicBool::new(false),
            meter: EventMeter::new(),
            lost: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Leaves an event to be told soon. Where there is no room it is lost.
    pub(crate) fn post(&self, event: Event, wanted: Wanted) {
        let shared = &self.shared;
        let message = match self.message(event) {
            Ok(message) => message,
            Err(error) => return shared.lose(&error, wanted),
        };
        let room = Arc::clone(&shared.room).try_acquire_many_owned(weight(&message));
        match room {
            Ok(room) => {
                self.hand_over(message, after(shared.patience), None, wanted, room);
            }
            Err(_) => shared.lose(&EmitError::Crowded, wanted),
        }
    }

    /// Tells an event that somebody asked for, and waits for its confirm until `deadline`; but while
    /// the stream confirms nothing, nobody waits: jobs go on.
    pub(crate) async fn tell(&self, event: Event, deadline: Instant) {
        let silent = &self.shared.silent;
        if silent.load(Ordering::Relaxed) {
            return self.post(event, Wanted::Asked);
        }
        let began = Instant::now();
        let told = self.emit(event, Wanted::Asked, deadline).await;
        if matches!(told, Err(EmitError::Unconfirmed { .. })) && began.elapsed() >= SILENCE {
            silent.store(true, Ordering::Relaxed);
        }
    }

    /// Tells an event, and returns when the broker has confirmed it, by `deadline` at the latest.
    /// Once there was room for it, it is told nevertheless if the broker comes back soon, and
    /// dropping the future does not recall it.
    pub(crate) async fn emit(
        &self,
        event: Event,
        wanted: Wanted,
        deadline: Instant,
    ) -> Result<(), EmitError> {
        let message = self.message(event).inspect_err(|error| self.shared.lose(error, wanted))?;
        let id = message.envelope.id.clone();
        let room = Arc::clone(&self.shared.room).acquire_many_owned(weight(&message));
        let Ok(Ok(room)) = time::timeout_at(deadline, room).await else {
            let error = unconfirmed(id, false, "too many events wait already");
            self.shared.lose(&error, wanted);
            return Err(error);
        };
        let (ear, told) = oneshot::channel();
        // Who waits no longer may want it told all the same.
        let until = deadline.max(after(self.shared.patience));
        self.hand_over(message, until, Some(ear), wanted, room);
        match time::timeout_at(deadline, told).await {
            Ok(Ok(told)) => told,
            Ok(Err(_)) => Err(unconfirmed(id, false, CLOSED)),
            Err(_) => {
                let trouble =
                    self.shared.way.get().map_or_else(String::new, |way| way.link.trouble());
                let because =
                    if trouble.is_empty() { "the broker did not confirm it" } else { &trouble };
                Err(unconfirmed(id, true, because))
            }
        }
    }

    /// Waits until nothing is on its way any more, at most until `deadline`.
    pub(crate) async fn idle(&self, deadline: Instant) {
        self.shared.flying.close();
        _ = time::timeout_at(deadline, self.shared.flying.wait()).await;
    }

    /// Closes its connection, if there is one.
    pub(crate) async fn close(&self) {
        if let Some(way) = self.shared.way.get() {
            way.link.close().await;
        }
    }

    fn hand_over(
        &self,
        message: Arc<Message>,
        deadline: Instant,
        ear: Option<oneshot::Sender<Result<(), EmitError>>>,
        wanted: Wanted,
        room: OwnedSemaphorePermit,
    ) {
        if self.shared.flying.is_closed() && self.shared.way.get().is_none() {
            // The producer was closed, and no connection is opened after that.
            return self.shared.lose(&unconfirmed(String::new(), false, CLOSED), wanted);
        }
        let flying = self.shared.flying.token();
        let posted =
            Posted { message, deadline, ear, wanted, again: false, _room: room, _flying: flying };
        let way = self.shared.way.get_or_init(|| {
            let (desk, posted) = mpsc::unbounded_channel();
            let link = Link::open(&self.shared.config, "tell");
            let task = Task {
                publisher: Publisher::new(link.clone()),
                status: link.status(),
                shared: Arc::downgrade(&self.shared),
                posted,
                flying: FuturesUnordered::new(),
                closed: None,
            };
            io::handle().spawn(task.run());
            Way { declarer: Declarer::new(link.clone(), &self.shared.config), link, desk }
        });
        _ = way.desk.send(posted);
    }

    fn message(&self, mut event: Event) -> Result<Arc<Message>, EmitError> {
        if event.source.is_empty() {
            event.source.clone_from(&self.shared.source);
        }
        let body = event.encode();
        if body.len() > EVENT_LIMIT {
            return Err(EmitError::TooLarge { bytes: body.len(), limit: EVENT_LIMIT });
        }
        Ok(Arc::new(Message::of_event(&event, body, Arc::clone(&self.shared.exchange))))
    }
}

fn weight(message: &Message) -> u32 {
    message.envelope.payload.len().clamp(LIGHTEST, ROOM) as u32
}

/// Which process tells it.
fn source(namespace: &str) -> String {
    let host = hostname::get().ok().and_then(|host| host.into_string().ok());
    let mut host = host.unwrap_or_else(|| "localhost".to_owned());
    host.retain(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    format!("/forebay/{namespace}/{host}/{}", std::process::id())
}

impl Shared {
    /// Counts it, and says so once a while if nobody else does.
    fn lose(&self, because: &EmitError, wanted: Wanted) {
        self.meter.lost();
        if wanted != Wanted::Asked {
            debug!(error = %because, ?wanted, "an event is lost");
            return;
        }
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.count += 1;
        if lost.told.is_none_or(|told| told.elapsed() >= QUIET) {
            lost.told = Some(Instant::now());
            let count = std::mem::take(&mut lost.count);
            warn!(count, error = %because, "events are lost; the jobs that they are about are not");
        }
    }
}

/// How the publish of one ended, with the event itself if it must be told again.
type Landed = (Posted, Result<Answer, NoAnswer>);

/// Hands events to the lane, in their order.
struct Task {
    /// Not kept alive by its own task.
    shared: std::sync::Weak<Shared>,
    publisher: Publisher,
    status: watch::Receiver<Status>,
    posted: mpsc::UnboundedReceiver<Posted>,
    flying: FuturesUnordered<BoxFuture<'static, Landed>>,
    /// Until then the stream cannot be had, and why.
    closed: Option<(Instant, EmitError)>,
}

impl Task {
    /// Ends when every producer is gone and nothing is left to tell.
    async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                // Both are cancel-safe: what has not ended stays where it is.
                Some((posted, answer)) = self.flying.next() => self.land(posted, answer).await,
                next = self.posted.recv() => match next {
                    Some(posted) => self.launch(posted).await,
                    None if self.flying.is_empty() => return,
                    None => if let Some((posted, answer)) = self.flying.next().await {
                        self.land(posted, answer).await;
                    },
                },
            }
        }
    }

    async fn launch(&mut self, posted: Posted) {
        if let Err(error) = self.prepare(posted.deadline).await {
            return self.told(posted, Err(error));
        }
        let (publisher, status) = (self.publisher.clone(), self.status.clone());
        let mut flight = async move {
            let answer = tokio::select! {
                biased;
                answer = publisher.publish(&posted.message, posted.deadline) => answer,
                // Sent again it would end the next connection as well.
                fault = no_stream(status) => Ok(Answer::Objected(fault)),
            };
            (posted, answer)
        }
        .boxed();
        // The first poll hands it to the lane: so they keep their order.
        match futures_util::poll!(&mut flight) {
            std::task::Poll::Ready((posted, answer)) => {
                self.flying.push(std::future::ready((posted, answer)).boxed());
            }
            std::task::Poll::Pending => self.flying.push(flight),
        }
    }

    /// Sees to it that the stream is there.
    async fn prepare(&mut self, deadline: Instant) -> Result<(), EmitError> {
        if let Some((until, error)) = &self.closed {
            if Instant::now() < *until {
                return Err(error.clone());
            }
            self.closed = None;
        }
        let Some(shared) = self.shared.upgrade() else { return Ok(()) };
        let Some(way) = shared.way.get() else { return Ok(()) };
        match way.declarer.obtain_events(deadline).await {
            Ok(()) => Ok(()),
            // Away, and that passes; but not in time for this one.
            Err(TopologyError::Connect(error)) if !way.link.trouble().is_empty() => {
                Err(unconfirmed(String::new(), false, &error.to_string()))
            }
            Err(error) => Err(self.close(EmitError::Topology(error))),
        }
    }

    async fn land(&mut self, mut posted: Posted, answer: Result<Answer, NoAnswer>) {
        let id = || posted.message.envelope.id.clone();
        let told = match answer {
            Ok(Answer::Confirmed) => Ok(()),
            Ok(Answer::Unroutable | Answer::Objected(Fault::Missing(_))) if !posted.again => {
                // Somebody has deleted it: declare, and try once more.
                posted.again = true;
                if let Some(way) =
                    self.shared.upgrade().as_ref().and_then(|shared| shared.way.get())
                {
                    way.declarer.forget_events();
                }
                posted.message = Arc::new(posted.message.copied());
                return self.launch(posted).await;
            }
            Ok(Answer::Unroutable | Answer::Objected(Fault::Missing(_))) => {
                let what = format!("stream `{}`, or its exchange,", posted.message.exchange);
                Err(self.close(EmitError::Topology(TopologyError::Missing { what })))
            }
            Ok(Answer::Objected(Fault::Denied(because))) => {
                Err(self.close(EmitError::Denied { because }))
            }
            Ok(Answer::Objected(Fault::Connection(because))) => {
                let what = format!("stream `{}`", posted.message.exchange);
                Err(self.close(EmitError::Topology(TopologyError::Broker { what, because })))
            }
            Ok(Answer::Objected(fault)) => {
                Err(EmitError::Unacceptable { because: fault.to_string() })
            }
            Ok(Answer::Refused) => Err(EmitError::Refused),
            Err(NoAnswer { may_have_arrived, because }) => {
                Err(unconfirmed(id(), may_have_arrived, &because))
            }
        };
        self.told(posted, told);
    }

    /// Each try is an error in the broker's log, and costs a channel or a connection.
    fn close(&mut self, error: EmitError) -> EmitError {
        let unsupported = matches!(error, EmitError::Topology(TopologyError::Unsupported { .. }));
        let pause = if unsupported { LONG_PAUSE } else { PAUSE };
        debug!(%error, ?pause, "no events for a while");
        self.closed = Some((Instant::now() + pause, error.clone()));
        error
    }

    fn told(&self, posted: Posted, told: Result<(), EmitError>) {
        let Some(shared) = self.shared.upgrade() else { return };
        match &told {
            Ok(()) => {
                shared.silent.store(false, Ordering::Relaxed);
                shared.meter.confirmed();
            }
            Err(error) => shared.lose(error, posted.wanted),
        }
        if let Some(ear) = posted.ear {
            _ = ear.send(told);
        }
    }
}

/// Waits until the broker has ended the connection because it has the stream in its books and
/// nowhere else, as after a kill while it was made. That stays so until somebody deletes it.
async fn no_stream(mut status: watch::Receiver<Status>) -> Fault {
    let since = status.borrow_and_update().generation;
    loop {
        if status.changed().await.is_err() {
            return std::future::pending().await;
        }
        let now = status.borrow_and_update();
        let lost = now.connection.is_none() || now.generation != since;
        if let Some(fault) =
            now.last_fault.as_deref().filter(|fault| lost && fault.contains(NO_STREAM))
        {
            return Fault::Connection(format!("{fault}; delete it, and it is made anew"));
        }
    }
}

fn unconfirmed(id: String, may_have_arrived: bool, because: &str) -> EmitError {
    EmitError::Unconfirmed { id, may_have_arrived, because: because.to_owned() }
}
