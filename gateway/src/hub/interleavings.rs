//! Whatever order things happen in: every session gets each event of its rooms once, in order, and
//! none is missing without a word.
//!
//! The deciding parts run as they do in the hub; the stream, its tail and its readers are played by
//! a list, and every step is chosen by chance.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_producer::{Gap, Start, Token};
use proptest::prelude::*;
use tokio::sync::Notify;

use super::course::{Ask, Course, Met, Piece, Step};
use super::desk::{Beginning, Desk, Party};
use super::entry::{Entry, Place, Room};
use super::hall::Hall;
use super::item::StartFrom;
use super::outbox::{Budget, Outbox};
use super::pass::{Id, Member};
use super::window::{Known, Limits};

const WINDOW: usize = 6;
const READERS: usize = 3;
const BUDGET: usize = 2 * 1024;
const SESSIONS: usize = 3;

#[derive(Debug, Clone)]
enum Act {
    /// Somebody emits; rarely the same event again, or after a number that is left out.
    Emit {
        rooms: u8,
        again: bool,
        skip: bool,
    },
    /// The tail reads some.
    Tail(u8),
    /// A reader reads some.
    Reader(u8, u8),
    /// A session's client takes some.
    Take(u8, u8),
    Join(u8, u8, Origin),
    Leave(u8, u8),
    /// A session leaves all its rooms.
    LeaveAll(u8),
    /// A client comes back with its newest token, as another session.
    Return(u8),
    /// The oldest events go.
    Trim(u8),
    /// The stream is deleted and made anew.
    Recreate,
}

#[derive(Debug, Clone, Copy)]
enum Origin {
    Now,
    Beginning,
    /// An event that is or was there, counted from the newest.
    After(u8),
}

fn act() -> impl Strategy<Value = Act> {
    let origin = prop_oneof![
        2 => Just(Origin::Now),
        1 => Just(Origin::Beginning),
        3 => (0..40u8).prop_map(Origin::After),
    ];
    prop_oneof![
        12 => (0..64u8, prop::bool::weighted(0.1), prop::bool::weighted(0.1))
            .prop_map(|(rooms, again, skip)| Act::Emit { rooms, again, skip }),
        8 => (1..6u8).prop_map(Act::Tail),
        8 => (0..READERS as u8, 1..8u8).prop_map(|(reader, n)| Act::Reader(reader, n)),
        10 => (0..SESSIONS as u8, 1..6u8).prop_map(|(session, n)| Act::Take(session, n)),
        4 => (0..SESSIONS as u8, 1..64u8, origin).prop_map(|(s, rooms, o)| Act::Join(s, rooms, o)),
        1 => (0..SESSIONS as u8, 0..6u8).prop_map(|(session, room)| Act::Leave(session, room)),
        2 => (0..SESSIONS as u8).prop_map(Act::LeaveAll),
        2 => (0..SESSIONS as u8).prop_map(Act::Return),
    ]
}

fn disaster() -> impl Strategy<Value = Act> {
    prop_oneof![
        20 => act(),
        1 => (1..10u8).prop_map(Act::Trim),
        1 => Just(Act::Recreate),
    ]
}

/// What clients do that want all there is.
fn reading() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..READERS as u8, 1..8u8).prop_map(|(reader, n)| Act::Reader(reader, n)),
        4 => (0..SESSIONS as u8, 1..6u8).prop_map(|(session, n)| Act::Take(session, n)),
        1 => (0..SESSIONS as u8, 1..64u8).prop_map(|(s, rooms)| Act::Join(s, rooms, Origin::Beginning)),
    ]
}

/// Up to three rooms by bits.
fn rooms(bits: u8) -> Vec<Room> {
    let all = [
        Room::job("a"),
        Room::job("b"),
        Room::kind("k"),
        Room::kind("l"),
        Room::channel("c"),
        Room::channel("d"),
    ];
    all.into_iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0).map(|(_, r)| r).collect()
}

struct World {
    /// All that was ever emitted on the present stream.
    stream: Vec<Entry>,
    /// How many of them are no longer kept.
    trimmed: usize,
    /// How many the tail has read.
    tailed: usize,
    /// Counts streams.
    life: u32,
    ids: u32,
    hall: Hall,
    desk: Desk,
    budget: Arc<Budget>,
    readers: Vec<Option<Reader>>,
    clients: Vec<Client>,
}

struct Reader {
    beginning: Beginning,
    life: u32,
    /// The index of what it reads next, once it has begun.
    at: Option<usize>,
    /// Nobody is left, and it has not noticed.
    done: bool,
}

/// A client, through all of its sessions.
struct Client {
    seat: Seat,
    /// What it is in, and from which offset on it asked for it.
    rooms: BTreeMap<Room, u64>,
    /// Rooms that it left at some time during the present session.
    left: HashSet<Room>,
    /// The newest token that it was given.
    token: Token,
    /// By id: whether it was given by the present session.
    given: BTreeMap<Arc<str>, bool>,
    /// What it was told of since it came.
    gaps: usize,
    /// Offsets in the order in which they came, while it has joined but once.
    order: Vec<u64>,
    joins: usize,
}

struct Seat {
    id: u64,
    bell: Arc<Notify>,
    course: Course,
    asked: Option<(Id, Arc<Outbox>)>,
}

impl World {
    fn new() -> Self {
        let limits = Limits { bytes: usize::MAX, events: WINDOW, age: Duration::from_secs(3600) };
        let mut hall = Hall::new(limits);
        hall.begin(None);
        let mut world = Self {
            stream: Vec::new(),
            trimmed: 0,
            tailed: 0,
            life: 0,
            ids: 0,
            hall,
            desk: Desk::new(READERS),
            budget: Arc::new(Budget::new(BUDGET)),
            readers: (0..READERS).map(|_| None).collect(),
            clients: Vec::new(),
        };
        for _ in 0..SESSIONS {
            let seat = world.sit();
            world.clients.push(Client {
                seat,
                rooms: BTreeMap::new(),
                left: HashSet::new(),
                token: Token::BEGINNING,
                given: BTreeMap::new(),
                gaps: 0,
                order: Vec::new(),
                joins: 0,
            });
        }
        world
    }

    /// Its hub began when all of this had been told, and has seen the last event, a new one.
    fn begun_after(told: &[(u8, bool)]) -> Self {
        let mut world = Self::new();
        told.iter().for_each(|(rooms, again)| world.emit(*rooms, *again, false));
        world.emit(1, false, false);
        world.hall.forget();
        world.tailed = world.stream.len().saturating_sub(1);
        world.tail();
        world
    }

    fn sit(&mut self) -> Seat {
        let bell = Arc::new(Notify::new());
        let id = self.hall.enter(&bell);
        Seat { id, bell, course: Course::new(self.hall.epoch), asked: None }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Emit { rooms, again, skip } => self.emit(rooms, again, skip),
            Act::Tail(n) => (0..n).for_each(|_| self.tail()),
            Act::Reader(reader, n) => (0..n).for_each(|_| self.read(usize::from(reader))),
            Act::Take(client, n) => {
                (0..n).for_each(|_| _ = self.take(usize::from(client)));
            }
            Act::Join(client, bits, origin) => {
                let rooms = rooms(bits);
                let from = match origin {
                    Origin::Now => StartFrom::Now,
                    Origin::Beginning => StartFrom::Beginning,
                    Origin::After(back) => {
                        let at = self.stream.len().checked_sub(1 + usize::from(back));
                        match at.and_then(|at| self.stream.get(at)) {
                            Some(entry) => StartFrom::After(entry.token()),
                            None => StartFrom::Beginning,
                        }
                    }
                };
                self.join(usize::from(client), &rooms, &from);
            }
            Act::Leave(client, room) => self.leave(usize::from(client), room),
            Act::LeaveAll(client) => (0..6).for_each(|room| self.leave(usize::from(client), room)),
            Act::Return(client) => self.come_back(usize::from(client)),
            Act::Trim(n) => {
                // A stream keeps its newest event.
                let most = self.tailed.min(self.stream.len().saturating_sub(1));
                self.trimmed = (self.trimmed + usize::from(n)).min(most);
            }
            Act::Recreate => {
                self.life += 1;
                (self.stream, self.trimmed, self.tailed) = (Vec::new(), 0, 0);
                self.hall.begin(Some(Gap::Recreated));
                self.desk.reset();
                self.readers.iter_mut().flatten().for_each(|reader| reader.done = true);
            }
        }
    }

    fn emit(&mut self, bits: u8, again: bool, skip: bool) {
        let offset = self.stream.last().map_or(0, |entry| entry.offset + 1 + u64::from(skip));
        let same = self.stream.iter().rev().nth(3).filter(|_| again).cloned();
        let entry = match same {
            Some(entry) => Entry { offset, ..entry },
            None => {
                self.ids += 1;
                Entry::plain(offset, &format!("id-{}", self.ids), &rooms(bits))
            }
        };
        self.stream.push(entry);
    }

    fn tail(&mut self) {
        if let Some(entry) = self.stream.get(self.tailed) {
            self.hall.push(entry.clone(), Instant::now());
            self.tailed += 1;
        }
    }

    /// What a reader of the stream does next.
    fn read(&mut self, number: usize) {
        let Some(reader) = &mut self.readers[number] else { return };
        if reader.done {
            self.readers[number] = None;
            for (number, beginning) in self.desk.next(number) {
                assert!(self.readers[number].is_none(), "the reader is free");
                self.readers[number] = Some(Reader::new(beginning, self.life));
            }
            return;
        }
        let Some(pass) = self.desk.pass(number) else { panic!("a reader without a pass") };
        let kept = &self.stream[self.trimmed..];
        let oldest = self.trimmed;
        match reader.at {
            None => match &reader.beginning.start {
                Start::After(token) if token.id.is_none() => {
                    match oldest {
                        0 => pass.resumed(&reader.beginning.place),
                        _ => pass.lost(Gap::Retention, &reader.beginning.place),
                    }
                    reader.at = Some(oldest);
                }
                Start::After(token) if reader.life == self.life => {
                    match kept.iter().position(|entry| entry.offset >= token.offset) {
                        Some(at) if kept[at].token() == *token => {
                            pass.resumed(&reader.beginning.place);
                            reader.at = Some(oldest + at + 1);
                        }
                        _ => {
                            pass.lost(Gap::Retention, &reader.beginning.place);
                            reader.at = Some(oldest);
                        }
                    }
                }
                Start::After(_) => {
                    pass.lost(Gap::Recreated, &reader.beginning.place);
                    reader.at = Some(oldest);
                }
                start => panic!("not played: {start:?}"),
            },
            Some(_) if reader.life != self.life => {
                pass.lost(Gap::Recreated, &reader.beginning.place);
                (reader.at, reader.life) = (Some(oldest), self.life);
            }
            Some(at) if at < oldest => {
                pass.lost(Gap::Retention, &reader.beginning.place);
                reader.at = Some(oldest);
            }
            Some(at) => {
                let Some(entry) = self.stream.get(at).cloned() else { return };
                let repeat = self.hall.window.is_repeat(entry.offset);
                reader.at = Some(at + 1);
                let window = self.hall.window.first();
                reader.done = self.desk.read(number, &Arc::new(entry), repeat, window);
                if let Some(ahead) = self.desk.unite(number)
                    && let Some(ahead) = &mut self.readers[ahead]
                {
                    ahead.done = true;
                }
                return;
            }
        }
        reader.done = pass.is_empty();
    }

    fn ask(&mut self, ask: Ask, party: Party, bell: &Arc<Notify>) -> (Id, Arc<Outbox>) {
        let outbox = Arc::new(Outbox::new(&self.budget, bell));
        let member = Member { ask, party, outbox: Arc::clone(&outbox) };
        let (id, begins) = self.desk.ask(member);
        if let Some((reader, beginning)) = begins {
            assert!(self.readers[reader].is_none(), "the reader is free");
            self.readers[reader] = Some(Reader::new(beginning, self.life));
        }
        (id, outbox)
    }

    fn abandon(&mut self, (id, outbox): (Id, Arc<Outbox>)) {
        outbox.close();
        if let Some(reader) = self.desk.abandon(id)
            && let Some(reader) = &mut self.readers[reader]
        {
            reader.done = true;
        }
    }

    /// What was asked of a former stream is not asked any more, and everything is new.
    fn note(&mut self, client: usize, epoch: u64) {
        let client = &mut self.clients[client];
        if client.seat.course.epoch() != epoch {
            client.order.clear();
            client.rooms.values_mut().for_each(|since| *since = 0);
        }
        if !client.seat.course.is_away()
            && let Some(asked) = client.seat.asked.take()
        {
            self.abandon(asked);
        }
    }

    /// Gives a client what comes next; `false` when there is nothing now.
    fn take(&mut self, client: usize) -> bool {
        let seat = &mut self.clients[client].seat;
        seat.course.retry();
        let epoch = seat.course.epoch();
        let step = seat.course.turn(&mut self.hall, seat.id);
        self.note(client, epoch);
        let seat = &mut self.clients[client].seat;
        let given = match step {
            Step::Give(entry) => Met::Give(entry),
            Step::Tell(gap) => Met::Gap(gap),
            Step::Ask(ask) => {
                let bell = Arc::clone(&seat.bell);
                let party = Some(client.to_string().into());
                let asked = self.ask(ask, party, &bell);
                if let Some(former) = self.clients[client].seat.asked.replace(asked) {
                    self.abandon(former);
                }
                return true;
            }
            Step::Wait => match seat.asked.as_ref().map(|(_, outbox)| outbox.take()) {
                None | Some(None) => return false,
                Some(Some(piece)) => seat.course.take(piece),
            },
        };
        let client = &mut self.clients[client];
        match given {
            Met::Give(entry) => client.get(&entry),
            Met::Gap(_) => client.gaps += 1,
            Met::Nothing => {}
        }
        true
    }

    /// Where a token leads, as the hub finds out.
    fn locate(&mut self, place: &Place) -> Option<Gap> {
        while self.tailed < self.stream.len() && self.hall.window.know(place) == Known::Ahead {
            self.tail();
        }
        match self.hall.window.know(place) {
            Known::Here => return None,
            Known::Not | Known::Ahead => return Some(Gap::Recreated),
            Known::Older => {}
        }
        let ask = Ask { after: place.clone(), rooms: Vec::new(), until: place.next, since: None };
        let asked = self.ask(ask, None, &Arc::new(Notify::new()));
        for _ in 0..10_000 {
            match asked.1.take() {
                Some(Piece::Verdict(gap)) => {
                    self.abandon(asked);
                    return gap;
                }
                Some(piece) => panic!("no verdict, but {piece:?}"),
                None => (0..READERS).for_each(|reader| self.read(reader)),
            }
        }
        panic!("no verdict for {place:?}")
    }

    fn join(&mut self, client: usize, rooms: &[Room], from: &StartFrom) {
        let found = match from {
            StartFrom::Now => None,
            StartFrom::Beginning => Some((self.locate(&Place::BEGINNING), Place::BEGINNING)),
            StartFrom::After(token) => {
                let place = Place::from(token);
                match self.locate(&place) {
                    None => Some((None, place)),
                    gap => Some((gap, Place::BEGINNING)),
                }
            }
        };
        let seat = &mut self.clients[client].seat;
        let epoch = seat.course.epoch();
        seat.course.renew(&mut self.hall, seat.id);
        self.note(client, epoch);
        let head = self.hall.window.head().clone();
        let (gap, place) = found.unwrap_or((None, head.clone()));
        let id = self.clients[client].seat.id;
        rooms.iter().for_each(|room| self.hall.join(id, room));
        let client = &mut self.clients[client];
        client.seat.course.join(rooms, &place, &head, gap.is_some());
        client.token = client.seat.course.safe().token();
        client.gaps += usize::from(gap.is_some());
        client.joins += 1;
        for room in rooms {
            let since = client.rooms.entry(room.clone()).or_insert(place.next);
            *since = place.next.min(*since);
        }
    }

    fn leave(&mut self, client: usize, room: u8) {
        let Some(room) = rooms(1 << room).pop() else { return };
        let seat = &mut self.clients[client].seat;
        if seat.course.leave(&room) {
            self.hall.leave(seat.id, &room);
        }
        let client = &mut self.clients[client];
        client.rooms.remove(&room);
        client.left.insert(room);
    }

    fn come_back(&mut self, client: usize) {
        let seat = self.sit();
        let before = std::mem::replace(&mut self.clients[client].seat, seat);
        before.course.rooms().for_each(|room| self.hall.leave(before.id, room));
        self.hall.exit(before.id);
        if let Some(asked) = before.asked {
            self.abandon(asked);
        }
        let this = &mut self.clients[client];
        this.given.values_mut().for_each(|now| *now = false);
        (this.left, this.order, this.joins) = (HashSet::new(), Vec::new(), 0);
        let stale = before.course.epoch() != self.hall.epoch;
        if stale {
            // It will be told, and gets all there is.
            this.rooms.values_mut().for_each(|since| *since = 0);
        }
        let (wanted, token) = (this.rooms.clone(), this.token.clone());
        if !wanted.is_empty() {
            let rooms: Vec<Room> = wanted.keys().cloned().collect();
            self.join(client, &rooms, &StartFrom::After(token));
            // What it asked for first is still what it must have.
            for (room, since) in wanted {
                let now = self.clients[client].rooms.get_mut(&room).expect("just joined");
                *now = since;
            }
        }
    }

    /// Everybody does what there is to do, until there is nothing.
    fn settle(&mut self) {
        while self.tailed < self.stream.len() {
            self.tail();
        }
        for _ in 0..100_000 {
            let mut busy = false;
            for client in 0..SESSIONS {
                busy |= self.take(client);
                busy |= self.clients[client].seat.asked.is_some();
            }
            (0..READERS).for_each(|reader| self.read(reader));
            if !busy {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn check_memory(&self) {
        // One event each comes through whatever the others hold.
        let most = BUDGET + (SESSIONS + 1) * Entry::plain(0, "id", &[]).cost();
        assert!(self.budget.held() <= most, "{} bytes wait", self.budget.held());
        assert!(self.hall.window.size().0 <= WINDOW, "the window is bounded");
    }

    fn check(&self) {
        let mut known = BTreeSet::new();
        let first_times: Vec<&Entry> =
            self.stream.iter().filter(|entry| known.insert(&entry.id)).collect();
        let kept = self.stream.get(self.trimmed).map_or(u64::MAX, |entry| entry.offset);
        for (number, client) in self.clients.iter().enumerate() {
            for entry in &first_times {
                let due = entry
                    .rooms
                    .iter()
                    .any(|room| client.rooms.get(room).is_some_and(|since| entry.offset >= *since));
                let excused = client.gaps > 0 && entry.offset < kept;
                assert!(
                    !due || excused || client.given.contains_key(&entry.id),
                    "client {number} misses {} at {}",
                    entry.id,
                    entry.offset
                );
            }
        }
        assert_eq!(self.budget.held(), 0, "what waits to be taken is counted right");
    }
}

impl Reader {
    fn new(beginning: Beginning, life: u32) -> Self {
        Self { beginning, life, at: None, done: false }
    }
}

impl Client {
    fn get(&mut self, entry: &Entry) {
        self.token = self.seat.course.safe().token();
        let again = self.given.insert(Arc::clone(&entry.id), true) == Some(true);
        let may = entry.rooms.iter().any(|room| self.left.contains(room));
        assert!(!again || may, "{} at {} came twice", entry.id, entry.offset);
        if self.joins <= 1 {
            assert!(self.order.last().is_none_or(|last| *last < entry.offset), "in stream order");
            self.order.push(entry.offset);
        }
    }
}

#[test]
fn who_leaves_all_while_away_and_joins_another_room_gets_all_of_that() {
    let emit = |bits| Act::Emit { rooms: bits, again: false, skip: false };
    let (a, b) = (1, 2);
    let mut world = World::new();
    world.act(&Act::Join(0, a, Origin::Now));
    for _ in 0..3 * WINDOW {
        world.act(&emit(a));
    }
    world.act(&Act::Tail(u8::MAX));
    world.act(&Act::Take(0, 1));
    assert!(world.clients[0].seat.course.is_away(), "the window has been overtaken");
    world.act(&Act::LeaveAll(0));
    for _ in 0..3 {
        world.act(&emit(b));
    }
    world.act(&Act::Tail(u8::MAX));
    world.act(&Act::Join(0, b, Origin::After(3)));
    world.settle();
    world.check();
    let last_three = &world.stream[3 * WINDOW..];
    assert!(last_three.iter().all(|entry| world.clients[0].given.contains_key(&entry.id)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn each_event_comes_once_and_none_is_missing(acts in prop::collection::vec(act(), 1..160)) {
        let mut world = World::new();
        for act in &acts {
            world.act(act);
            world.check_memory();
        }
        world.settle();
        world.check();
        prop_assert!(world.clients.iter().all(|client| client.gaps == 0), "there was no gap");
    }

    #[test]
    fn what_stands_twice_on_the_stream_comes_once_though_only_readers_have_seen_it(
        told in prop::collection::vec((1..64u8, prop::bool::weighted(0.3)), 20..60),
        acts in prop::collection::vec(reading(), 1..80),
    ) {
        let mut world = World::begun_after(&told);
        for act in &acts {
            world.act(act);
            world.check_memory();
        }
        world.settle();
        world.check();
    }

    #[test]
    fn nothing_is_missing_without_a_word(acts in prop::collection::vec(disaster(), 1..160)) {
        let mut world = World::new();
        for act in &acts {
            world.act(act);
            world.check_memory();
        }
        world.settle();
        world.check();
    }
}
