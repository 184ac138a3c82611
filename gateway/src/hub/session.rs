//! One client: the rooms that it is in, and what it gets of them, at its own pace.
//! In: rooms joined and left, by whoever reads from the client. Out: events, by whoever writes to it.
//!
//! A session keeps no events: it takes the next one from the window when its client is ready for it,
//! or from a replay when the window has let it go. So a slow client costs no memory and nobody's time.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_producer::Token;
use tokio::sync::Notify;
use tokio::task;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::course::{Course, Met, Step};
use super::entry::{Entry, Place, Room};
use super::item::{EndReason, Ended, Item, StartFrom, Subscribed};
use super::replay::Asked;
use super::{Hub, SubscribeError};

/// Events that a session passes over in one go, because its client may not see them.
const IN_ONE_GO: usize = 256;

/// Before a place is looked for again that was not found.
const AGAIN: Duration = Duration::from_secs(1);

/// Says whether a client may see an event. Asked for each, just before it is given; quick, and without
/// a word to its session.
pub type Eyes = Arc<dyn Fn(&Entry) -> bool + Send + Sync>;

/// The end of a session that writes to the client. Dropped, the session is over.
#[derive(Debug)]
pub struct Session {
    seat: Arc<Seat>,
}

/// The end of a session that hears what the client wants. Clones are the same session's.
#[derive(Debug, Clone)]
pub struct SessionHandle {
    seat: Arc<Seat>,
}

/// What both ends share, and what the hub keeps of a session.
pub(crate) struct Seat {
    id: u64,
    hub: Hub,
    eyes: Eyes,
    bell: Arc<Notify>,
    state: Mutex<State>,
    over: CancellationToken,
}

#[derive(Debug)]
struct State {
    course: Course,
    asked: Option<Asked>,
    /// Since when the client has been given something and has not asked for more.
    busy: Option<Instant>,
    /// Where to come back to if what it was given last has not arrived.
    before: Place,
    ended: Option<Ended>,
}

/// What there is for a session now.
enum Found {
    Item(Item),
    /// More to look at, after others had their turn.
    More,
    Nothing,
    /// Nothing, and perhaps for want of a second look.
    Lost,
}

impl Session {
    pub(crate) fn new(hub: Hub, eyes: Eyes) -> (Self, Arc<Seat>) {
        let bell = Arc::new(Notify::new());
        let (id, epoch) = {
            let mut hall = hub.hall();
            (hall.enter(&bell), hall.epoch)
        };
        let state = State {
            course: Course::new(epoch),
            asked: None,
            busy: None,
            before: Place::BEGINNING,
            ended: None,
        };
        let (state, over) = (Mutex::new(state), CancellationToken::new());
        let seat = Arc::new(Seat { id, hub, eyes, bell, state, over });
        (Self { seat: Arc::clone(&seat) }, seat)
    }

    /// The other end.
    pub fn handle(&self) -> SessionHandle {
        SessionHandle { seat: Arc::clone(&self.seat) }
    }

    /// Waits for what comes next. Ask when the client can take it: until then everything stays where
    /// it is, but a session that does not ask for longer than [`stall`](super::HubOptions::stall)
    /// is ended.
    ///
    /// Cancel-safe: what was not returned comes at the next call.
    pub async fn next(&mut self) -> Item {
        self.seat.state().busy = None;
        loop {
            match self.seat.look() {
                Found::Item(item) => return item,
                Found::More => task::yield_now().await,
                // Cancel-safe, both: a ring that nobody waits for is kept.
                Found::Nothing => self.seat.bell.notified().await,
                Found::Lost => {
                    _ = time::timeout(AGAIN, self.seat.bell.notified()).await;
                    self.seat.state().course.retry();
                }
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.seat.end(EndReason::Gone);
        self.seat.hub.forget(self.seat.id);
    }
}

impl SessionHandle {
    /// Joins rooms, all from the same place on. Returns when it is known whether that place is still
    /// there; the events come by [`Session::next`].
    ///
    /// A room that the session is in already goes on as it was; from an older place it gets what it
    /// has not had.
    ///
    /// # Errors
    /// [`SubscribeError`] when the broker cannot be asked, or the session has ended.
    pub async fn subscribe(
        &self,
        rooms: Vec<Room>,
        from: StartFrom,
    ) -> Result<Subscribed, SubscribeError> {
        let seat = &self.seat;
        let by = seat.hub.patience();
        seat.hub.ready_by(by).await?;
        loop {
            let found = match &from {
                StartFrom::Now => None,
                StartFrom::Beginning => Some(seat.hub.locate(&Place::BEGINNING, by).await?),
                StartFrom::After(token) => Some(seat.hub.locate(&Place::from(token), by).await?),
            };
            let mut state = seat.state();
            if let Some(ended) = &state.ended {
                return Err(SubscribeError::Ended { reason: ended.reason });
            }
            let mut hall = seat.hub.hall();
            if found.as_ref().is_some_and(|found| found.epoch != hall.epoch) {
                // The place was looked up on a stream that is no more.
                continue;
            }
            state.course.renew(&mut hall, seat.id);
            let head = hall.window.head().clone();
            let reason = found.as_ref().and_then(|found| found.gap);
            let place = found.map_or(head.clone(), |found| found.place);
            state.course.join(&rooms, &place, &head, reason.is_some());
            rooms.iter().for_each(|room| hall.join(seat.id, room));
            drop(hall);
            seat.bell.notify_one();
            let token = state.course.safe().token();
            return Ok(Subscribed { recovered: reason.is_none(), reason, token });
        }
    }

    /// Leaves a room; `false` if the session was not in it. An event of it that is being written
    /// still arrives.
    pub fn unsubscribe(&self, room: &Room) -> bool {
        let mut state = self.seat.state();
        let left = state.course.leave(room);
        if left {
            self.seat.hub.hall().leave(self.seat.id, room);
        }
        left
    }

    /// How many rooms the session is in.
    pub fn rooms(&self) -> usize {
        self.seat.state().course.rooms().collect::<std::collections::HashSet<_>>().len()
    }

    /// Where to come back to: newer than the last event's while other rooms' events went by, so
    /// that a client of quiet rooms which hears it now and then keeps a token that is still there.
    pub fn token(&self) -> Token {
        let mut state = self.seat.state();
        if let Some(ended) = &state.ended {
            return ended.token.clone();
        }
        let mut hall = self.seat.hub.hall();
        if state.course.renew(&mut hall, self.seat.id) {
            self.seat.bell.notify_one();
        }
        state.course.safe().token()
    }

    /// Waits until the session has ended: for those who wait for their client to take something.
    pub async fn ended(&self) -> Ended {
        self.seat.over.cancelled().await;
        let ended = self.seat.state().ended.clone();
        ended.unwrap_or(Ended { reason: EndReason::Gone, token: Token::BEGINNING })
    }
}

impl Seat {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there now. Nothing is awaited, and nothing is lost.
    fn look(&self) -> Found {
        let mut state = self.state();
        for _ in 0..IN_ONE_GO {
            if let Some(ended) = &state.ended {
                return Found::Item(Item::Ended(ended.clone()));
            }
            let before = state.course.safe().clone();
            let step = state.course.turn(&mut self.hub.hall(), self.id);
            if !state.course.is_away() {
                state.asked = None;
            }
            let given = match (step, &state.asked) {
                (Step::Give(entry), _) => Met::Give(entry),
                (Step::Tell(gap), _) => Met::Gap(gap),
                (Step::Ask(ask), _) => {
                    state.asked = Some(self.hub.ask(ask, &self.bell));
                    continue;
                }
                (Step::Wait, None) if state.course.is_lost() => return Found::Lost,
                (Step::Wait, None) => return Found::Nothing,
                (Step::Wait, Some(asked)) => match asked.take() {
                    None => return Found::Nothing,
                    Some(piece) => state.course.take(piece),
                },
            };
            match given {
                Met::Give(entry) if (self.eyes)(&entry) => {
                    (state.busy, state.before) = (Some(Instant::now()), before);
                    self.hub.meter().delivered();
                    let token = state.course.safe().token();
                    return Found::Item(Item::Event { entry, token });
                }
                Met::Gap(reason) => {
                    self.hub.meter().gap(reason);
                    return Found::Item(Item::Gap { reason });
                }
                Met::Give(_) | Met::Nothing => {}
            }
        }
        Found::More
    }

    /// Ends it, if it did not end before.
    pub(crate) fn end(&self, reason: EndReason) {
        let mut state = self.state();
        if state.ended.is_some() {
            return;
        }
        let taken = state.busy.take().is_none();
        let token = if taken { state.course.safe().token() } else { state.before.token() };
        state.asked = None;
        state.ended = Some(Ended { reason, token });
        let mut hall = self.hub.hall();
        state.course.rooms().for_each(|room| hall.leave(self.id, room));
        hall.exit(self.id);
        drop((hall, state));
        self.over.cancel();
        self.bell.notify_one();
    }

    /// Whether its client has taken nothing for so long.
    pub(crate) fn is_stalled(&self, stall: Duration) -> bool {
        self.state().busy.is_some_and(|since| since.elapsed() > stall)
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("id", &self.id).finish_non_exhaustive()
    }
}
