//! How one session goes through the stream: what it gets next; pure.
//! In: rooms joined and left, the window, what a replay brings. Out: events, each once and in stream
//! order, and the wish for a replay when the window does not reach back far enough.
//!
//! ```text
//!   joined from an older place                            joined from now on
//!        ▼                                                       ▼
//!     waiting ──▶ pass: catches up with the cursor, ──▶ live: all before the cursor was given
//!                 which waits for it
//! ```

use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;
use std::time::SystemTime;

use forebay_producer::Gap;

use super::entry::{Entry, Place, Room};
use super::hall::Hall;
use super::window::{Rooms, Window};

/// Where a session stands.
#[derive(Debug)]
pub(crate) struct Course {
    /// Each from an offset on. All of their events before the cursor were given.
    live: Rooms,
    cursor: Place,
    /// Rooms that were joined from an older place, on their way to the cursor.
    pass: Option<Lane>,
    /// The next ones. They begin together when the pass has arrived.
    waiting: Vec<Lane>,
    state: State,
    /// Which stream it goes through, by the hub's count.
    epoch: u64,
    /// To be told before anything else.
    gap: Option<Gap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There may be something in the window.
    Busy,
    /// Everything up to the head was given. The cursor may stand further back.
    Idle,
    /// A replay brings what comes next, before this offset, for rooms that were named to it.
    Away { until: u64 },
    /// Its place was not found: the stream is another one, and the hub will say so; or the broker was
    /// slow to show it, and it is asked for again.
    Lost,
}

#[derive(Debug)]
struct Lane {
    rooms: Rooms,
    at: Place,
    /// Its client knows that what was before is no longer kept.
    told: bool,
}

/// What a session does next.
#[derive(Debug)]
pub(crate) enum Step {
    /// It gets this event.
    Give(Arc<Entry>),
    /// It is told that events may be missing here.
    Tell(Gap),
    /// It asks for older events.
    Ask(Ask),
    /// It waits until there is something in one of its rooms.
    Wait,
}

/// A wish for events that the window no longer has.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// Those that follow this place.
    pub(crate) after: Place,
    /// Those in one of these rooms.
    pub(crate) rooms: Vec<Room>,
    /// Those before this offset, at most.
    pub(crate) until: u64,
    /// Only those since then matter, by the broker's clock.
    pub(crate) since: Option<SystemTime>,
}

/// What a replay brings.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    /// What follows begins at the place that was asked for, or after a gap.
    Verdict(Option<Gap>),
    /// The next event.
    Event(Arc<Entry>),
    /// That is all for now; everything before this place was there.
    End(Place),
}

/// What a piece means for the session.
#[derive(Debug)]
pub(crate) enum Met {
    Give(Arc<Entry>),
    Gap(Gap),
    Nothing,
}

impl Course {
    /// Of a session that comes while the hub is at this epoch.
    pub(crate) fn new(epoch: u64) -> Self {
        Self {
            live: Rooms::new(),
            cursor: Place::BEGINNING,
            pass: None,
            waiting: Vec::new(),
            state: State::Idle,
            epoch,
            gap: None,
        }
    }

    /// Joins rooms, from a place on that the window or the stream has, `head` being the newest. Its
    /// client was `told` if that place is not the one that it asked for.
    pub(crate) fn join(&mut self, rooms: &[Room], from: &Place, head: &Place, told: bool) {
        if self.is_nowhere() {
            // What it asked for, or was to be told, was about rooms that it has left since.
            (self.pass, self.gap) = (None, None);
            (self.cursor, self.state) = (head.clone(), State::Idle);
        }
        // A replay does not know of rooms that come after it.
        let begun = match self.state {
            State::Away { until } if self.pass.is_none() => until,
            _ => self.cursor.next,
        };
        let mut older = Rooms::new();
        for room in rooms {
            match self.live.entry(room.clone()) {
                Slot::Occupied(since) if *since.get() <= from.next => {}
                Slot::Vacant(slot) if from.next >= begun => {
                    slot.insert(from.next);
                }
                _ => {
                    older.insert(room.clone(), from.next);
                }
            }
        }
        if !older.is_empty() {
            self.waiting.push(Lane { rooms: older, at: from.clone(), told });
            if self.state == State::Idle {
                self.state = State::Busy;
            }
        }
    }

    /// Leaves a room; `false` if it was not in it.
    pub(crate) fn leave(&mut self, room: &Room) -> bool {
        let mut left = self.live.remove(room).is_some();
        for lane in self.waiting.iter_mut().chain(&mut self.pass) {
            left |= lane.rooms.remove(room).is_some();
        }
        self.waiting.retain(|lane| !lane.rooms.is_empty());
        left
    }

    /// The rooms that it is in.
    pub(crate) fn rooms(&self) -> impl Iterator<Item = &Room> {
        let lanes = self.waiting.iter().chain(&self.pass);
        self.live.keys().chain(lanes.flat_map(|lane| lane.rooms.keys()))
    }

    /// What session `id` does next.
    pub(crate) fn turn(&mut self, hall: &mut Hall, id: u64) -> Step {
        self.renew(hall, id);
        match self.gap.take() {
            Some(gap) => Step::Tell(gap),
            None => self.step(&hall.window),
        }
    }

    /// Notes what the hub has seen since it was last looked at; whether there is something to do.
    pub(crate) fn renew(&mut self, hall: &mut Hall, id: u64) -> bool {
        let rung = hall.rung(id);
        if self.epoch != hall.epoch {
            self.epoch = hall.epoch;
            self.begin();
            // Who is in no room misses nothing.
            if self.rooms().next().is_some() {
                self.gap = hall.gap;
            }
        }
        self.wake(rung, hall.window.head());
        self.state == State::Busy || self.gap.is_some()
    }

    /// The first event in one of its rooms came when `rung` was the head; without it there was none.
    fn wake(&mut self, rung: Option<Place>, head: &Place) {
        if self.state != State::Idle {
            return;
        }
        if rung.is_some() {
            self.state = State::Busy;
        }
        let to = rung.unwrap_or_else(|| head.clone());
        if to.next > self.cursor.next {
            self.cursor = to;
        }
    }

    /// What comes next, as far as the window shows it.
    fn step(&mut self, window: &Window) -> Step {
        loop {
            if self.state != State::Busy {
                return Step::Wait;
            }
            if self.pass.is_none() {
                self.pass = merge(&mut self.waiting);
            }
            let Some(pass) = &mut self.pass else { return self.step_live(window) };
            if pass.rooms.is_empty() || pass.at.next >= self.cursor.next {
                self.arrive();
                continue;
            }
            if !window.covers(pass.at.next) {
                self.state = State::Away { until: self.cursor.next };
                return Step::Ask(ask(&pass.at, &pass.rooms, self.cursor.next));
            }
            match window.find(&pass.rooms, pass.at.next, self.cursor.next) {
                Some(entry) => {
                    pass.at = Place::after(entry);
                    if !is_in(&self.live, entry) {
                        return Step::Give(Arc::clone(entry));
                    }
                }
                None => pass.at = self.cursor.clone(),
            }
        }
    }

    fn step_live(&mut self, window: &Window) -> Step {
        let head = window.head();
        if self.live.is_empty() || self.cursor.next >= head.next {
            return self.rest(head);
        }
        if !window.covers(self.cursor.next) {
            self.state = State::Away { until: head.next };
            return Step::Ask(ask(&self.cursor, &self.live, head.next));
        }
        match window.find(&self.live, self.cursor.next, head.next) {
            Some(entry) => {
                self.cursor = Place::after(entry);
                Step::Give(Arc::clone(entry))
            }
            None => self.rest(head),
        }
    }

    fn rest(&mut self, head: &Place) -> Step {
        if head.next > self.cursor.next {
            self.cursor = head.clone();
        }
        self.state = State::Idle;
        Step::Wait
    }

    /// The pass has caught up: its rooms are live.
    fn arrive(&mut self) {
        for (room, since) in self.pass.take().map(|pass| pass.rooms).into_iter().flatten() {
            let earlier = self.live.entry(room).or_insert(since);
            *earlier = since.min(*earlier);
        }
    }

    /// Takes what a replay brings.
    pub(crate) fn take(&mut self, piece: Piece) -> Met {
        if !self.is_away() {
            return Met::Nothing;
        }
        match piece {
            Piece::Verdict(None) => Met::Nothing,
            Piece::Verdict(Some(Gap::Recreated)) => {
                self.state = State::Lost;
                Met::Nothing
            }
            Piece::Verdict(Some(gap)) => match &self.pass {
                Some(pass) if pass.told && pass.at.is_beginning() => Met::Nothing,
                _ => Met::Gap(gap),
            },
            Piece::Event(entry) => self.pass_by(entry),
            Piece::End(place) => {
                let at = self.pass.as_mut().map_or(&mut self.cursor, |pass| &mut pass.at);
                if place.next > at.next {
                    *at = place;
                }
                self.state = State::Busy;
                Met::Nothing
            }
        }
    }

    fn pass_by(&mut self, entry: Arc<Entry>) -> Met {
        let (at, rooms) = match &mut self.pass {
            Some(pass) => (&mut pass.at, &pass.rooms),
            None => (&mut self.cursor, &self.live),
        };
        if entry.offset < at.next {
            return Met::Nothing;
        }
        *at = Place::after(&entry);
        // Rooms may have been left since it was asked for.
        let wanted = is_in(rooms, &entry);
        let given = self.pass.is_some() && is_in(&self.live, &entry);
        if wanted && !given { Met::Give(entry) } else { Met::Nothing }
    }

    /// The stream goes on elsewhere: everything that is there is new.
    fn begin(&mut self) {
        self.waiting.extend(self.pass.take());
        self.pass = merge(&mut self.waiting);
        self.arrive();
        self.live.values_mut().for_each(|since| *since = 0);
        self.cursor = Place::BEGINNING;
        self.state = State::Busy;
    }

    /// Which stream it goes through.
    #[cfg(test)]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether it waits for a replay.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self.state, State::Away { .. })
    }

    /// Whether its place was not found.
    pub(crate) fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    /// Looks for its place again.
    pub(crate) fn retry(&mut self) {
        if self.is_lost() {
            self.state = State::Busy;
        }
    }

    /// From here on nothing was given for sure: the place to come back to.
    pub(crate) fn safe(&self) -> &Place {
        let lanes = self.waiting.iter().chain(&self.pass).map(|lane| &lane.at);
        lanes.chain([&self.cursor]).min_by_key(|place| place.next).unwrap_or(&self.cursor)
    }

    fn is_nowhere(&self) -> bool {
        self.rooms().next().is_none()
    }
}

/// One lane of all, from the oldest place on. Each room keeps where it begins.
fn merge(waiting: &mut Vec<Lane>) -> Option<Lane> {
    waiting.drain(..).reduce(|mut one, other| {
        one.told &= other.told;
        if other.at.next < one.at.next {
            one.at = other.at;
        }
        for (room, since) in other.rooms {
            let earlier = one.rooms.entry(room).or_insert(since);
            *earlier = since.min(*earlier);
        }
        one
    })
}

fn ask(after: &Place, rooms: &Rooms, until: u64) -> Ask {
    Ask { after: after.clone(), rooms: rooms.keys().cloned().collect(), until, since: None }
}

/// Whether an event is in one of the rooms, and not before it was joined.
fn is_in(rooms: &Rooms, entry: &Entry) -> bool {
    entry.rooms.iter().any(|room| rooms.get(room).is_some_and(|since| entry.offset >= *since))
}
