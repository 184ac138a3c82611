//! Which of the few readers serves whom; pure but for the outboxes.
//! In: asks, and where the readers are. Out: each ask joins a pass that has not come to its place
//! yet, begins one, or waits until a reader is free.
//!
//! The first reader answers questions alone, whether a place is still there: nobody who subscribes
//! waits until others have their history. And no party has all readers work for it: beyond two passes
//! that it has begun it waits, or goes along with others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use forebay_producer::{Gap, Start};

use super::course::{Ask, Piece};
use super::entry::{Entry, Place};
use super::pass::{Id, Member, Pass};
use super::repeats::Repeats;

/// So many passes of one kind may a party have begun that are under way; fewer where there are few
/// readers.
const OF_ONE_PARTY: usize = 2;
/// How often a reader looks for another one ahead of it, in events.
const LOOK: u64 = if cfg!(test) { 2 } else { 1_000 };
/// Who is ahead waits for the one behind if the way between them is so small a part of its own.
const PART: u64 = 4;

/// The readers, and who waits for them.
#[derive(Debug)]
pub(crate) struct Desk {
    passes: Vec<Option<Pass>>,
    /// For each pass: who has begun it, and for what.
    begun: Vec<Option<(Party, Want)>>,
    waiting: BTreeMap<Id, Member>,
    repeats: Repeats,
    next: Id,
}

/// In whose name something is asked: `None` is nobody's, and without limits.
pub(crate) type Party = Option<Arc<str>>;

/// Where a reader begins.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) start: Start,
    pub(crate) place: Place,
}

/// What somebody wants, which decides with whom they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    /// To know whether a place is there.
    Verdict,
    /// What follows a place.
    History,
    /// What was told since a time; where that is on the stream shows when a reader has begun there.
    Since,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Join(usize),
    Begin(usize),
    Wait,
}

impl Want {
    fn of(ask: &Ask) -> Self {
        match ask.since {
            Some(_) => Self::Since,
            None if ask.rooms.is_empty() => Self::Verdict,
            None => Self::History,
        }
    }

    /// A pass that is so far away, in offsets, is there soon: sooner than another reader, or without
    /// the need of one.
    fn near(self) -> u64 {
        match self {
            Self::Verdict => 1_000,
            Self::History => 20_000,
            Self::Since => 0,
        }
    }
}

impl Desk {
    pub(crate) fn new(readers: usize) -> Self {
        let readers = readers.max(1);
        Self {
            passes: std::iter::repeat_with(|| None).take(readers).collect(),
            begun: vec![None; readers],
            waiting: BTreeMap::new(),
            repeats: Repeats::default(),
            next: 0,
        }
    }

    /// Takes an ask. With a reader that has to begin, if it is one that was free.
    pub(crate) fn ask(&mut self, member: Member) -> (Id, Option<(usize, Beginning)>) {
        self.next += 1;
        let id = self.next;
        match self.choose(&member) {
            Choice::Join(reader) => {
                if let Some(Some(pass)) = self.passes.get_mut(reader) {
                    pass.join(id, member);
                }
                (id, None)
            }
            Choice::Begin(reader) => {
                let party = member.party.clone();
                let beginning = self.begin(reader, party, vec![(id, member)]);
                (id, Some((reader, beginning)))
            }
            Choice::Wait => {
                self.waiting.insert(id, member);
                (id, None)
            }
        }
    }

    fn choose(&self, member: &Member) -> Choice {
        let (want, start) = (Want::of(&member.ask), member.ask.after.start());
        let mut mine = (0..self.passes.len()).filter(|reader| self.serves(*reader, want));
        let free = mine.clone().find(|reader| self.passes[*reader].is_none());
        let free = free.filter(|_| self.may_begin(member));
        let ahead = mine.by_ref().filter_map(|reader| {
            let position = self.passes[reader].as_ref()?.position()?;
            Some((start.checked_sub(position)?, reader))
        });
        let nearest = if want == Want::Since { None } else { ahead.min() };
        match (nearest, free) {
            (Some((distance, reader)), _) if distance <= want.near() => Choice::Join(reader),
            (_, Some(reader)) => Choice::Begin(reader),
            // A question is asked at its place as soon as a reader is free: that comes earlier.
            (Some((_, reader)), None) if want == Want::History => Choice::Join(reader),
            _ => Choice::Wait,
        }
    }

    fn serves(&self, reader: usize, want: Want) -> bool {
        want == Want::Verdict || reader > 0 || self.passes.len() == 1
    }

    /// Whether its party has not begun as much as it may.
    fn may_begin(&self, member: &Member) -> bool {
        let Some(party) = &member.party else { return true };
        let question = |want| want == Want::Verdict;
        let asks = question(Want::of(&member.ask));
        let begun = self
            .begun
            .iter()
            .flatten()
            .filter(|(by, want)| by.as_ref() == Some(party) && question(*want) == asks);
        // The first reader, which answers questions, is not among those that one party could take.
        begun.count() < OF_ONE_PARTY.min(self.passes.len().saturating_sub(2)).max(1)
    }

    fn begin(&mut self, reader: usize, by: Party, members: Vec<(Id, Member)>) -> Beginning {
        let since: Option<SystemTime> = members.iter().map(|(_, m)| m.ask.since).min().flatten();
        let place = members.first().map_or(Place::BEGINNING, |(_, m)| m.ask.after.clone());
        let start = match since {
            Some(since) => Start::Since(since),
            // What comes first decides whether it still has its beginning, an event or not.
            None => Start::After(place.token()),
        };
        if let Some(begun) = self.begun.get_mut(reader) {
            *begun = members.first().map(|(_, member)| (by, Want::of(&member.ask)));
        }
        if let Some(pass) = self.passes.get_mut(reader) {
            *pass = Some(Pass::new(members, since.is_some()));
        }
        Beginning { start, place }
    }

    /// A reader has nobody left. The one who has waited longest goes with it, and who wants the like;
    /// if nobody waits it is free. With every reader that begins: somebody may have waited for the
    /// end of this pass, and go with another reader.
    pub(crate) fn next(&mut self, reader: usize) -> Vec<(usize, Beginning)> {
        // Somebody may have joined after the last one had left.
        let late = self.passes.get_mut(reader).and_then(Option::take).map(Pass::into_members);
        self.waiting.extend(late.into_iter().flatten());
        if let Some(begun) = self.begun.get_mut(reader) {
            *begun = None;
        }
        let others = (0..self.passes.len()).filter(|other| *other != reader);
        let readers: Vec<usize> = std::iter::once(reader).chain(others).collect();
        let begins = |reader| Some((reader, self.take_along(reader)?));
        readers.into_iter().filter_map(begins).collect()
    }

    /// What a free reader begins.
    fn take_along(&mut self, reader: usize) -> Option<Beginning> {
        if self.passes.get(reader)?.is_some() {
            return None;
        }
        let may =
            |member: &&Member| self.serves(reader, Want::of(&member.ask)) && self.may_begin(member);
        let longest = self.waiting.values().find(may)?;
        let (want, from) = (Want::of(&longest.ask), longest.ask.after.start());
        let since = longest.ask.since;
        let party = longest.party.clone();
        let goes = |member: &Member| {
            let ahead = member.ask.after.start().checked_sub(from);
            let near = ahead.is_some_and(|distance| distance <= want.near());
            match Want::of(&member.ask) {
                other if other != want => false,
                Want::Verdict => near,
                // Who may not begin a pass does not make this one longer either.
                Want::Since => member.ask.since >= since || self.may_begin(member),
                Want::History => ahead.is_some() || self.may_begin(member),
            }
        };
        let ids = self.waiting.iter().filter(|(_, member)| goes(member)).map(|(id, _)| *id);
        let ids: Vec<Id> = ids.collect();
        let members = ids.into_iter().filter_map(|id| Some((id, self.waiting.remove(&id)?)));
        let mut members: Vec<_> = members.collect();
        members.sort_by_key(|(id, member)| (member.ask.after.start(), *id));
        Some(self.begin(reader, party, members))
    }

    /// A reader has read the next event; `true` when nobody goes with it any more.
    pub(crate) fn read(
        &mut self,
        reader: usize,
        entry: &Arc<Entry>,
        repeat: bool,
        window: u64,
    ) -> bool {
        let repeat = self.repeats.is_repeat(&entry.id, entry.offset) || repeat;
        let Some(pass) = self.pass(reader) else { return true };
        pass.read(entry, repeat, window);
        pass.is_empty()
    }

    /// Readers that follow each other closely read everything twice: who goes with the one ahead of
    /// this one, asks again, and goes on with this one when it has come there. A crowd that comes
    /// back at once, each from a place a little before the last, ends with one reader. Returns the
    /// reader that has nobody left.
    pub(crate) fn unite(&mut self, reader: usize) -> Option<usize> {
        let behind = self.passes.get(reader)?.as_ref()?;
        let looks = behind.count().is_multiple_of(LOOK) && self.serves(reader, Want::History);
        if !looks || behind.is_empty() {
            return None;
        }
        let position = behind.position()?;
        let others = (0..self.passes.len()).filter(|other| *other != reader);
        let ahead = others.filter(|other| self.serves(*other, Want::History)).filter_map(|other| {
            let pass = self.passes[other].as_ref()?;
            let distance = pass.position()?.checked_sub(position)?;
            let close = distance <= Want::History.near() && distance <= pass.count() / PART;
            close.then_some((distance, other))
        });
        let (_, ahead) = ahead.min()?;
        let joining = self.passes[ahead].as_mut()?.hand_over();
        let behind = self.passes[reader].as_mut()?;
        joining.into_iter().for_each(|(id, member)| behind.join(id, member));
        Some(ahead)
    }

    /// The stream is another one.
    pub(crate) fn reset(&mut self) {
        for member in std::mem::take(&mut self.waiting).into_values() {
            member.outbox.tell(Piece::Verdict(Some(Gap::Recreated)));
        }
        self.passes.iter_mut().flatten().for_each(Pass::void);
        self.repeats = Repeats::default();
    }

    pub(crate) fn pass(&mut self, reader: usize) -> Option<&mut Pass> {
        self.passes.get_mut(reader)?.as_mut()
    }

    /// Nobody waits for this ask any more. The reader that may be done with it is told.
    pub(crate) fn abandon(&mut self, id: Id) -> Option<usize> {
        self.waiting.remove(&id);
        let mut passes = self.passes.iter_mut().enumerate();
        passes.find_map(|(reader, pass)| {
            let pass = pass.as_mut()?;
            pass.leave(id)?;
            pass.is_empty().then_some(reader)
        })
    }

    /// How many readers are at work, and how many asks wait for one.
    pub(crate) fn load(&self) -> (usize, usize) {
        (self.passes.iter().flatten().count(), self.waiting.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use forebay_producer::Token;
    use tokio::sync::Notify;

    use super::super::entry::Room;
    use super::super::outbox::{Budget, Outbox};
    use super::*;

    fn member(after: u64, rooms: &[Room], since: Option<SystemTime>) -> Member {
        let after = Place::from(&Token::new(after, "an-id"));
        let ask = Ask { after, rooms: rooms.to_vec(), until: u64::MAX, since };
        let budget = Arc::new(Budget::new(1_000));
        let outbox = Arc::new(Outbox::new(&budget, &Arc::new(Notify::new())));
        Member { ask, party: None, outbox }
    }

    fn of(party: &str, member: Member) -> Member {
        Member { party: Some(party.into()), ..member }
    }

    /// What this reader begins next, and no other one does.
    fn next(desk: &mut Desk, reader: usize) -> Option<Beginning> {
        let mut begin = desk.next(reader);
        assert!(begin.iter().all(|(other, _)| *other == reader), "{begin:?}");
        begin.pop().map(|(_, beginning)| beginning)
    }

    fn history(after: u64) -> Member {
        member(after, &[Room::channel("a")], None)
    }

    fn verdict(after: u64) -> Member {
        member(after, &[], None)
    }

    /// Which reader begins, if one does.
    fn begins(desk: &mut Desk, member: Member) -> Option<usize> {
        desk.ask(member).1.map(|(reader, _)| reader)
    }

    #[test]
    fn who_comes_from_near_the_place_of_a_reader_goes_with_it() {
        let mut desk = Desk::new(8);
        assert_eq!(begins(&mut desk, history(1_000)), Some(1));
        assert_eq!(begins(&mut desk, history(1_000)), None, "the same place");
        assert_eq!(begins(&mut desk, history(20_000)), None, "soon there");
        assert_eq!(begins(&mut desk, history(50_000)), Some(2), "too far ahead");
        assert_eq!(begins(&mut desk, history(999)), Some(3), "it has passed by");
        assert_eq!(desk.load(), (3, 0));
    }

    #[test]
    fn when_all_readers_are_at_work_one_that_comes_by_is_joined_and_else_waited_for() {
        let mut desk = Desk::new(3);
        assert_eq!(begins(&mut desk, history(500_000)), Some(1));
        assert_eq!(begins(&mut desk, history(100_000)), Some(2));
        assert_eq!(begins(&mut desk, history(900_000)), None);
        assert_eq!(desk.load(), (2, 0), "it goes with the first");
        let (first, _) = desk.ask(history(20));
        desk.ask(history(10));
        assert_eq!(desk.load(), (2, 2));
        let beginning = next(&mut desk, 2).unwrap();
        assert_eq!(beginning.place.token().offset, 10, "the oldest place of those who wait");
        assert_eq!(desk.load(), (2, 0));
        assert_eq!(desk.abandon(first), None, "the other is left");
    }

    #[test]
    fn readers_that_follow_each_other_closely_become_one() {
        let read = |desk: &mut Desk, reader: usize, to: u64| {
            let pass = desk.pass(reader).unwrap();
            for offset in pass.position().unwrap()..to {
                let id = if offset == 1_000 || offset == 999 { "an-id" } else { "other" };
                pass.read(&Arc::new(Entry::plain(offset, id, &[])), false, u64::MAX);
            }
        };
        let mut desk = Desk::new(3);
        let (first, _) = desk.ask(history(1_000));
        read(&mut desk, 1, 1_041);
        assert_eq!(begins(&mut desk, history(999)), Some(2));
        read(&mut desk, 2, 1_030);
        assert_eq!(desk.unite(2), None, "11 events would be too long for one that has come 40");
        assert_eq!(desk.unite(1), None, "nobody is ahead of the first");
        read(&mut desk, 2, 1_032);
        assert_eq!(desk.unite(2), Some(1));
        assert_eq!(desk.unite(2), None);
        assert_eq!(desk.abandon(first), None, "it has its end");
        assert_eq!(begins(&mut desk, history(1_040)), None, "and goes with the second");
        assert!(next(&mut desk, 1).is_none());
        assert_eq!(desk.load(), (1, 0));
    }

    #[test]
    fn a_question_never_waits_for_history() {
        let mut desk = Desk::new(2);
        let (reading, _) = desk.ask(history(0));
        let (asking, _) = desk.ask(verdict(500_000));
        assert_eq!(begins(&mut desk, verdict(500_100)), None, "near");
        desk.ask(verdict(100_000));
        desk.ask(verdict(100_500));
        desk.ask(verdict(300_000));
        desk.ask(member(0, &[Room::job("j")], Some(SystemTime::now())));
        assert_eq!(desk.load(), (2, 4));
        desk.pass(0).unwrap().disband();
        assert_eq!(desk.abandon(asking), None, "it has its end");
        assert_eq!(next(&mut desk, 0).unwrap().place.token().offset, 100_000);
        assert_eq!(desk.load(), (2, 2), "two places near each other are one way");
        desk.pass(0).unwrap().disband();
        assert_eq!(next(&mut desk, 0).unwrap().place.token().offset, 300_000);
        desk.pass(0).unwrap().disband();
        assert!(next(&mut desk, 0).is_none(), "the first reader reads no history");
        assert_eq!(desk.abandon(reading), Some(1));
        assert!(matches!(next(&mut desk, 1).unwrap().start, Start::Since(_)));
    }

    #[test]
    fn a_single_reader_does_everything() {
        let mut desk = Desk::new(1);
        assert_eq!(begins(&mut desk, verdict(5)), Some(0));
        assert_eq!(begins(&mut desk, history(5)), None);
    }

    #[test]
    fn those_who_ask_by_time_go_together_and_nobody_joins_before_it_is_known_where_they_are() {
        let mut desk = Desk::new(2);
        let (old, new) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::from_secs(9));
        let (reading, _) = desk.ask(history(0));
        for since in [new, old] {
            desk.ask(member(0, &[Room::job("j")], Some(since)));
        }
        desk.abandon(reading);
        let Some(Beginning { start: Start::Since(since), .. }) = next(&mut desk, 1) else {
            panic!("begins at a time")
        };
        assert_eq!(since, old);
        desk.ask(history(10));
        assert_eq!(desk.load(), (1, 1));
        let entry = Arc::new(Entry::plain(7, "id", &[]));
        desk.pass(1).unwrap().read(&entry, false, u64::MAX);
        desk.ask(history(10));
        assert_eq!(desk.load(), (1, 1), "now it is known");
    }

    #[test]
    fn a_party_has_two_readers_work_for_it_and_others_have_the_rest() {
        let mut desk = Desk::new(8);
        for (after, reader) in [(900_000, Some(1)), (600_000, Some(2)), (300_000, None), (0, None)]
        {
            assert_eq!(begins(&mut desk, of("ada", history(after))), reader, "{after}");
        }
        assert_eq!(desk.load(), (2, 2), "there are free readers, but not for this party");
        assert_eq!(begins(&mut desk, of("ada", verdict(300_000))), Some(0), "a question is short");
        assert_eq!(begins(&mut desk, of("bob", history(700_000))), Some(3));
        assert_eq!(begins(&mut desk, history(100)), Some(4), "nobody's");
        assert_eq!(begins(&mut desk, of("ada", history(950_000))), None, "goes along");
        assert_eq!(desk.load(), (5, 2));
    }

    #[test]
    fn when_a_pass_of_a_party_ends_the_next_one_begins() {
        let mut desk = Desk::new(8);
        let (first, _) = desk.ask(of("ada", history(900_000)));
        desk.ask(of("ada", history(600_000)));
        desk.ask(of("ada", history(300_000)));
        desk.ask(of("ada", history(0)));
        assert_eq!(desk.abandon(first), Some(1));
        let beginning = next(&mut desk, 1).unwrap();
        assert_eq!(beginning.place.token().offset, 0, "both that waited go together");
        assert_eq!(desk.load(), (2, 0));
    }

    #[test]
    fn who_has_waited_for_the_end_of_a_pass_may_go_with_another_reader_that_is_free() {
        let mut desk = Desk::new(4);
        let (asking, _) = desk.ask(of("bob", verdict(900_000)));
        desk.ask(of("ada", verdict(500_000)));
        let (second, _) = desk.ask(of("ada", verdict(300_000)));
        desk.ask(history(900_000));
        desk.ask(of("bob", history(5)));
        desk.ask(of("ada", verdict(100)));
        assert_eq!(desk.load(), (4, 2));
        assert_eq!(desk.abandon(asking), Some(0));
        assert!(next(&mut desk, 0).is_none(), "the first reader is free, but ada has two");
        assert_eq!(desk.abandon(second), Some(2));
        let begin = desk.next(2);
        let begin = begin.iter().map(|(reader, begin)| (*reader, begin.place.token().offset));
        assert_eq!(begin.collect::<Vec<_>>(), [(2, 5), (0, 100)]);
    }

    #[test]
    fn who_may_begin_nothing_does_not_take_others_back_to_its_place() {
        let mut desk = Desk::new(2);
        let (ada, _) = desk.ask(of("ada", history(500_000)));
        desk.ask(of("bob", history(400_000)));
        desk.ask(of("ada", history(0)));
        let mut elsewhere = Desk::new(3);
        elsewhere.ask(of("ada", history(800_000)));
        let (bobs, _) = elsewhere.ask(of("bob", history(700_000)));
        elsewhere.ask(of("ada", history(0)));
        elsewhere.ask(of("bob", history(600_000)));
        assert_eq!(elsewhere.abandon(bobs), Some(2));
        let beginning = next(&mut elsewhere, 2).unwrap();
        assert_eq!(beginning.place.token().offset, 600_000, "ada has one under way");
        assert_eq!(desk.abandon(ada), Some(1));
        let beginning = next(&mut desk, 1).unwrap();
        assert_eq!(beginning.place.token().offset, 0, "ada has none");
    }

    #[test]
    fn who_may_begin_nothing_does_not_take_others_back_to_its_time() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let since = |seconds| member(0, &[Room::job("a")], at(seconds));
        let mut desk = Desk::new(3);
        desk.ask(of("ada", since(10)));
        let (bobs, _) = desk.ask(of("bob", since(900)));
        desk.ask(of("bob", since(800)));
        desk.ask(of("ada", since(0)));
        desk.ask(of("ada", since(850)));
        assert_eq!(desk.load(), (2, 3));
        assert_eq!(desk.abandon(bobs), Some(2));
        assert_eq!(next(&mut desk, 2).unwrap().start, Start::Since(at(800).unwrap()));
        assert_eq!(desk.load(), (2, 1), "who is content with that goes along");
    }

    #[test]
    fn what_came_before_is_a_repeat_for_those_who_come_with_another_pass() {
        let mut desk = Desk::new(2);
        let room = [Room::channel("a")];
        let entry = |offset: u64| Arc::new(Entry::plain(offset, "same", &room));
        let (first, _) = desk.ask(history(0));
        assert!(!desk.read(1, &entry(1), false, u64::MAX));
        desk.abandon(first);
        assert!(next(&mut desk, 1).is_none());
        let second = history(1);
        let outbox = Arc::clone(&second.outbox);
        desk.ask(second);
        desk.read(1, &entry(5), false, u64::MAX);
        let given = std::iter::from_fn(|| outbox.take());
        assert_eq!(given.filter(|piece| matches!(piece, Piece::Event(_))).count(), 0);
    }
}
