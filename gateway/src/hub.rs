//! Events for many clients: one reader of the stream for all that is new, a few for all that is
//! older.
//! In: the stream of a namespace. Out: [`Session`]s, each of which gets the events of its rooms once,
//! in stream order, those it missed before those that are new.

mod course;
mod desk;
mod entry;
mod hall;
#[cfg(test)]
mod interleavings;
mod item;
mod job;
mod lookup;
mod options;
mod outbox;
mod pass;
mod repeats;
mod replay;
mod session;
mod tail;
mod window;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_producer::link::connection::Link;
use forebay_producer::{Config, ConnectError, EventLog, StreamError, Token};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info};

pub use self::entry::{Entry, Room};
pub use self::item::{EndReason, Ended, Item, StartFrom, Subscribed};
pub use self::job::JobState;
pub use self::options::HubOptions;
pub use self::session::{Eyes, Session, SessionHandle};

use self::course::Ask;
use self::desk::Party;
use self::hall::Hall;
use self::replay::{Asked, Replay};
use self::session::Seat;
use self::tail::Tail;
use self::window::Limits;
use crate::telemetry::SessionMeter;

const ROUND: Duration = Duration::from_secs(1);
/// Readers that look for places which the tail has not come to.
const AHEAD: usize = 4;
const CLOSE: Duration = Duration::from_secs(5);
/// So often it is looked whether a stream is there, and may be read, that was not.
const AGAIN: Duration = Duration::from_secs(5);

/// Why rooms could not be joined.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The stream of events cannot be read at the moment.
    #[error("the stream of events cannot be read now: {because}")]
    Unavailable {
        /// What is in the way.
        because: String,
    },
    /// There is no session any more.
    #[error("the session has ended: {}", reason.as_str())]
    Ended {
        /// Why.
        reason: EndReason,
    },
}

/// The stream of events of one namespace, for any number of sessions. Clones share it.
#[derive(Debug, Clone)]
pub struct Hub {
    shared: Arc<Shared>,
    party: Party,
}

#[derive(Debug)]
struct Shared {
    options: HubOptions,
    hall: Arc<Mutex<Hall>>,
    replay: Replay,
    log: EventLog,
    /// Who asks the stream about a place that the tail has not come to.
    ahead: Semaphore,
    seats: Mutex<HashMap<u64, Arc<Seat>>>,
    status: watch::Receiver<Status>,
    tasks: TaskTracker,
    stop: CancellationToken,
    meter: SessionMeter,
}

/// What the tail does.
#[derive(Debug, Clone)]
enum Status {
    Starting,
    /// With what keeps it from it now.
    Following(watch::Receiver<String>),
    /// It is tried again.
    Failed(String),
}

/// What a hub holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubStatus {
    /// Sessions that are there.
    pub sessions: usize,
    /// Recent events in memory.
    pub window_events: usize,
    /// What they take, in bytes.
    pub window_bytes: usize,
    /// Readers that read older events now.
    pub readers: usize,
    /// Asks for older events that wait for a reader.
    pub waiting: usize,
}

impl Hub {
    /// Begins to follow the stream in the background; never fails and never waits.
    /// [`Hub::opened`] tells when it is ready.
    pub fn open(config: &Config, options: HubOptions) -> Self {
        let limits = Limits {
            bytes: options.window_bytes,
            events: options.window_events,
            age: options.window_age,
        };
        let hall = Arc::new(Mutex::new(Hall::new(limits)));
        // Rights may be given while it runs: the connection is not given up.
        let link = Link::open(&config.clone().access_patience(Duration::MAX), "events");
        let log = EventLog::on(link, config);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let replay = Replay::new(
            log.clone(),
            Arc::clone(&hall),
            (options.readers, options.replay_bytes),
            (tasks.clone(), stop.clone()),
        );
        let (tell, status) = watch::channel(Status::Starting);
        let tail = Tail {
            config: config.clone(),
            log: log.clone(),
            hall: Arc::clone(&hall),
            replay: replay.clone(),
            age: options.window_age,
            empty_for: options.empty_for,
        };
        let shared = Arc::new(Shared {
            options,
            hall,
            replay,
            log,
            ahead: Semaphore::new(AHEAD),
            seats: Mutex::default(),
            status,
            tasks,
            stop,
            meter: SessionMeter::new(),
        });
        shared.tasks.spawn(follow(tail, tell, shared.stop.clone()));
        shared.tasks.spawn(watch_over(Arc::downgrade(&shared), shared.stop.clone()));
        Self { shared, party: None }
    }

    /// The same hub, for one of those who share it: while somebody has two readers of the stream read
    /// older events, what else is asked for in that name waits, and readers are left for others.
    #[must_use]
    pub fn on_behalf_of(&self, who: &str) -> Self {
        Self { shared: Arc::clone(&self.shared), party: Some(who.into()) }
    }

    /// Waits until recent events are in memory, for as long as the broker is away.
    ///
    /// # Errors
    /// [`SubscribeError::Unavailable`] when waiting does not help: the broker does not let us in, or
    /// the stream is not there and may not be declared. It is tried again every 5 s.
    pub async fn opened(&self) -> Result<(), SubscribeError> {
        let mut status = self.shared.status.clone();
        let settled = status.wait_for(|status| !matches!(status, Status::Starting)).await;
        match settled.as_deref() {
            Ok(Status::Following(_)) => Ok(()),
            Ok(Status::Failed(because)) => Err(unavailable(because)),
            Ok(Status::Starting) | Err(_) => Err(unavailable("the hub was closed")),
        }
    }

    /// Whether new events come in now; else why not.
    ///
    /// # Errors
    /// The reason in words.
    pub fn ready(&self) -> Result<(), String> {
        let trouble = match &*self.shared.status.borrow() {
            Status::Failed(because) => return Err(because.clone()),
            Status::Starting => {
                let trouble = self.shared.log.link().trouble();
                let reading = "recent events are being read".to_owned();
                return Err(if trouble.is_empty() { reading } else { trouble });
            }
            Status::Following(trouble) => trouble.borrow().clone(),
        };
        let link = self.shared.log.link();
        // An alarm at the broker keeps nobody from reading.
        if link.status().borrow().connection.is_none() {
            return Err(link.trouble());
        }
        if trouble.is_empty() { Ok(()) } else { Err(trouble) }
    }

    /// What it holds now.
    pub fn status(&self) -> HubStatus {
        let (readers, waiting) = self.shared.replay.load();
        let hall = self.hall();
        let (window_events, window_bytes) = hall.window.size();
        HubStatus { sessions: hall.sessions(), window_events, window_bytes, readers, waiting }
    }

    /// A session in no room, whose client sees what `eyes` allow.
    pub fn session(&self, eyes: Eyes) -> Session {
        let (session, seat) = Session::new(self.clone(), eyes);
        if self.shared.stop.is_cancelled() {
            seat.end(EndReason::GoingAway);
        }
        self.seats().insert(seat.id(), seat);
        session
    }

    /// Where the newest event is: what comes later follows this place.
    pub fn head(&self) -> Token {
        self.hall().window.head().token()
    }

    /// Whether there was an event of this job lately: as far back as the window reaches.
    pub fn knows(&self, job: &str) -> bool {
        self.hall().window.of(&Room::job(job)).next().is_some()
    }

    /// A place that all that is known of a job comes after, and its queue, if there was an event of
    /// it lately: as far back as the window reaches.
    pub fn before(&self, job: &str) -> Option<(Token, Option<String>)> {
        let (place, first) = {
            let hall = self.hall();
            let first = Arc::clone(hall.window.of(&Room::job(job)).next()?);
            (hall.window.before(first.offset), first)
        };
        let queue = first.event().ok().and_then(|event| event.queue);
        Some((place.token(), queue))
    }

    /// Ends all sessions, which are told, and stops to follow the stream.
    pub async fn close(&self) {
        self.shared.stop.cancel();
        let seats: Vec<_> = self.seats().values().cloned().collect();
        seats.iter().for_each(|seat| seat.end(EndReason::GoingAway));
        self.shared.tasks.close();
        _ = time::timeout(CLOSE, self.shared.tasks.wait()).await;
        self.shared.log.close().await;
    }

    fn trouble(&self) -> SubscribeError {
        let late = || "older events could not be read in time".to_owned();
        unavailable(&self.ready().err().unwrap_or_else(late))
    }

    async fn ready_by(&self, by: Instant) -> Result<(), SubscribeError> {
        let opened = time::timeout_at(by, self.opened()).await;
        opened.unwrap_or_else(|_| Err(self.trouble()))
    }

    fn patience(&self) -> Instant {
        Instant::now() + self.shared.options.patience
    }

    fn hall(&self) -> MutexGuard<'_, Hall> {
        self.shared.hall.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seats(&self) -> MutexGuard<'_, HashMap<u64, Arc<Seat>>> {
        self.shared.seats()
    }

    fn ask(&self, ask: Ask, bell: &Arc<Notify>) -> Asked {
        self.shared.replay.ask(ask, self.party.clone(), bell)
    }

    fn meter(&self) -> &SessionMeter {
        &self.shared.meter
    }

    fn forget(&self, id: u64) {
        self.seats().remove(&id);
    }
}

impl Shared {
    fn seats(&self) -> MutexGuard<'_, HashMap<u64, Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends sessions whose clients take nothing, and lets old events go.
    fn round(&self) {
        let seats: Vec<_> = self.seats().values().cloned().collect();
        for seat in seats.iter().filter(|seat| seat.is_stalled(self.options.stall)) {
            debug!("a client takes nothing: its session is ended");
            self.meter.slow();
            seat.end(EndReason::Slow);
        }
        let mut hall = self.hall.lock().unwrap_or_else(PoisonError::into_inner);
        hall.window.shrink(std::time::Instant::now());
        self.meter.note(hall.sessions(), hall.window.size());
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn follow(tail: Tail, tell: watch::Sender<Status>, stop: CancellationToken) {
    let ready = |trouble| {
        info!("recent events are in memory");
        tell.send_replace(Status::Following(trouble));
    };
    // What it holds is closed when it is dropped.
    while let Some(Err(failed)) = stop.run_until_cancelled(tail.run(ready)).await {
        let because = failed.to_string();
        let known = matches!(&*tell.borrow(), Status::Failed(known) if *known == because);
        if !known {
            error!(error = because, "cannot follow the stream of events");
        }
        tell.send_replace(Status::Failed(because));
        let closed = matches!(failed, StreamError::Connect(ConnectError::Closed));
        if closed || stop.run_until_cancelled(time::sleep(AGAIN)).await.is_none() {
            return;
        }
    }
}

async fn watch_over(shared: std::sync::Weak<Shared>, stop: CancellationToken) {
    // Ends when the hub is dropped.
    while stop.run_until_cancelled(time::sleep(ROUND)).await.is_some() {
        let Some(shared) = shared.upgrade() else { return };
        shared.round();
    }
}

fn unavailable(because: &str) -> SubscribeError {
    SubscribeError::Unavailable { because: because.to_owned() }
}
