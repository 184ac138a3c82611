//! The newest events in memory, whole from some offset on; pure.
//! In: events in stream order. Out: the next one for given rooms, and whether a place is known here.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::{Entry, Place, Room};

/// An event that comes again under its id within so many others is taken for the same.
pub(crate) const IDS: usize = 65_536;

/// Rooms with the first offset that is wanted of each.
pub(crate) type Rooms = HashMap<Room, u64>;

/// What the window may take; the oldest go first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes: usize,
    pub(crate) events: usize,
    pub(crate) age: Duration,
}

/// Every event from `first` on, up to the newest that was read.
#[derive(Debug)]
pub(crate) struct Window {
    limits: Limits,
    entries: VecDeque<(Instant, Arc<Entry>)>,
    rooms: HashMap<Room, VecDeque<Arc<Entry>>>,
    bytes: usize,
    /// `None` until it is known where the stream stands.
    first: Option<u64>,
    head: Place,
    repeats: Repeats,
}

/// What the window knows of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is there; all that follows it is here.
    Here,
    /// It is further back than the window.
    Older,
    /// Nothing has come from there yet.
    Ahead,
    /// There is another event, or none.
    Not,
}

impl Window {
    /// Empty, of a stream of which nothing is known.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: VecDeque::new(),
            rooms: HashMap::new(),
            bytes: 0,
            first: None,
            head: Place::BEGINNING,
            repeats: Repeats::default(),
        }
    }

    /// Empty, and nothing older than what comes next is on the stream.
    pub(crate) fn begin(&mut self) {
        *self = Self { first: Some(0), ..Self::new(self.limits) };
    }

    /// Empty, and nothing is known.
    pub(crate) fn forget(&mut self) {
        *self = Self::new(self.limits);
    }

    /// Takes the next event. `None`: it came already, and is in no room.
    pub(crate) fn push(&mut self, mut entry: Entry, now: Instant) -> Option<Arc<Entry>> {
        if entry.offset < self.head.next {
            return None;
        }
        self.first.get_or_insert(entry.offset);
        let new = self.repeats.is_new(&entry.id, entry.offset);
        if !new {
            // Its place stays: somebody may hold the token of it.
            entry.rooms = Box::default();
            entry.bytes.clear();
        }
        self.head = Place::after(&entry);
        let entry = Arc::new(entry);
        self.bytes += entry.cost();
        for room in &entry.rooms {
            self.rooms.entry(room.clone()).or_default().push_back(Arc::clone(&entry));
        }
        self.entries.push_back((now, Arc::clone(&entry)));
        self.shrink(now);
        new.then_some(entry)
    }

    /// Lets go what is too old or too much.
    pub(crate) fn shrink(&mut self, now: Instant) {
        while let Some((came, _)) = self.entries.front() {
            let old = now.saturating_duration_since(*came) > self.limits.age;
            let much = self.bytes > self.limits.bytes || self.entries.len() > self.limits.events;
            if !old && !much {
                return;
            }
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some((_, oldest)) = self.entries.pop_front() else { return };
        self.bytes -= oldest.cost();
        self.first = Some(oldest.offset + 1);
        for room in &oldest.rooms {
            let empty = self.rooms.get_mut(room).is_some_and(|entries| {
                entries.pop_front();
                entries.is_empty()
            });
            if empty {
                self.rooms.remove(room);
            }
        }
    }

    /// The next event in one of `rooms`, from offset `from` on and before `until`.
    pub(crate) fn find(&self, rooms: &Rooms, from: u64, until: u64) -> Option<&Arc<Entry>> {
        let firsts = rooms.iter().filter_map(|(room, since)| {
            let entries = self.rooms.get(room)?;
            let from = from.max(*since);
            // Most ask for the newest one only.
            let at = match entries.iter().rev().take(2).take_while(|e| e.offset >= from).count() {
                0 => return None,
                1 => entries.len() - 1,
                _ => entries.partition_point(|entry| entry.offset < from),
            };
            entries.get(at)
        });
        firsts.min_by_key(|entry| entry.offset).filter(|entry| entry.offset < until)
    }

    /// All events of a room that are here.
    pub(crate) fn of(&self, room: &Room) -> impl DoubleEndedIterator<Item = &Arc<Entry>> {
        self.rooms.get(room).into_iter().flatten()
    }

    /// The place that an event stands right behind; the beginning, if that is not here any more.
    pub(crate) fn before(&self, offset: u64) -> Place {
        let at = self.entries.partition_point(|(_, entry)| entry.offset < offset);
        let previous = at.checked_sub(1).and_then(|at| self.entries.get(at));
        previous.map_or(Place::BEGINNING, |(_, entry)| Place::after(entry))
    }

    /// Whether all events from an offset on are here.
    pub(crate) fn covers(&self, next: u64) -> bool {
        self.first.is_some_and(|first| next >= first)
    }

    /// Looks for a place by its event.
    pub(crate) fn know(&self, place: &Place) -> Known {
        let Some(first) = self.first else { return Known::Ahead };
        if place.is_beginning() {
            return if first == 0 { Known::Here } else { Known::Older };
        }
        let offset = place.anchored_at();
        if offset >= self.head.next {
            return Known::Ahead;
        }
        if *place == self.head {
            return Known::Here;
        }
        if offset < first {
            return Known::Older;
        }
        let found = self.entries.binary_search_by_key(&offset, |(_, entry)| entry.offset);
        let same = found.is_ok_and(|at| place.is_after(&self.entries[at].1));
        if same { Known::Here } else { Known::Not }
    }

    /// Whether a place is before the first event of a stream that began with a gap: it was there, for
    /// all that is known.
    pub(crate) fn begins_after(&self, place: &Place) -> bool {
        let oldest = self.entries.front().filter(|_| self.first == Some(0));
        oldest.is_some_and(|(_, oldest)| place.start() <= oldest.offset)
    }

    /// Where all that was read is behind.
    pub(crate) fn head(&self) -> &Place {
        &self.head
    }

    /// The oldest offset from which on everything is here.
    pub(crate) fn first(&self) -> u64 {
        self.first.unwrap_or(0)
    }

    /// Whether this offset holds an event that had come before.
    pub(crate) fn is_repeat(&self, offset: u64) -> bool {
        self.repeats.offsets.contains(&offset)
    }

    /// How many events and bytes it holds.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }
}

/// An emitter that got no confirm sends its event again, under the same id.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    known: HashSet<Arc<str>>,
    order: VecDeque<Arc<str>>,
    /// Where events stand that had come before.
    offsets: BTreeSet<u64>,
}

impl Repeats {
    /// Notes an id, and says whether it comes for the first time.
    pub(crate) fn is_new(&mut self, id: &Arc<str>, offset: u64) -> bool {
        if !self.known.insert(Arc::clone(id)) {
            self.offsets.insert(offset);
            if self.offsets.len() > IDS {
                self.offsets.pop_first();
            }
            return false;
        }
        self.order.push_back(Arc::clone(id));
        if self.order.len() > IDS
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use forebay_producer::Token;

    use super::*;

    #[test]
    fn what_was_before_a_window_that_began_with_a_gap_is_known_to_be_before_it() {
        let (bytes, age) = (usize::MAX, Duration::from_secs(3600));
        let mut window = Window::new(Limits { bytes, events: 2, age });
        let after = |offset| Place::from(&Token::new(offset, "an-id"));
        window.begin();
        assert!(!window.begins_after(&after(3)), "nothing has come");
        window.push(Entry::plain(10, "id-10", &[]), Instant::now());
        assert!(window.begins_after(&after(3)) && window.begins_after(&after(9)));
        assert!(!window.begins_after(&after(10)));
        assert_eq!(window.know(&after(3)), Known::Not);
        window.push(Entry::plain(11, "id-11", &[]), Instant::now());
        window.push(Entry::plain(12, "id-12", &[]), Instant::now());
        assert_eq!(window.know(&after(3)), Known::Older, "the stream has to be asked");
        assert!(!window.begins_after(&after(3)));
    }
}
