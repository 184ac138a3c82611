//! One reader's way through older events, for all sessions that want some of them; pure but for the
//! outboxes.
//! In: events in stream order, and members that join at or before their place. Out: to each member
//! its verdict, its events, and its end.
//!
//! Nobody holds up the others: a member whose outbox is full leaves, and asks again from where it is.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use forebay_producer::Gap;

use super::course::{Ask, Piece};
use super::desk::Party;
use super::entry::{Entry, Place, Room};
use super::outbox::Outbox;

/// Tells one ask from the others.
pub(crate) type Id = u64;

/// A pass.
#[derive(Debug)]
pub(crate) struct Pass {
    /// The next offset that it reads; `None` until that is known.
    position: Option<u64>,
    /// All that it has read.
    read: Place,
    /// The reader has found where to begin.
    begun: bool,
    /// How many events it has read.
    count: u64,
    members: HashMap<Id, Member>,
    /// Those whose place it has not reached, by its offset.
    joining: BTreeSet<(u64, Id)>,
    /// The others, by where they have enough.
    following: BTreeSet<(u64, Id)>,
    rooms: HashMap<Room, Vec<Id>>,
}

/// A session, or whoever else wants older events.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) ask: Ask,
    pub(crate) party: Party,
    pub(crate) outbox: Arc<Outbox>,
}

impl Pass {
    /// Begins at the place of the first one of `members`, which is the oldest; or at a time, and
    /// then it is not known where that is.
    pub(crate) fn new(members: Vec<(Id, Member)>, somewhere: bool) -> Self {
        let first = members.first().map(|(_, member)| member.ask.after.start());
        let mut pass = Self {
            position: if somewhere { None } else { first },
            read: Place::BEGINNING,
            begun: false,
            count: 0,
            members: HashMap::new(),
            joining: BTreeSet::new(),
            following: BTreeSet::new(),
            rooms: HashMap::new(),
        };
        members.into_iter().for_each(|(id, member)| pass.join(id, member));
        pass
    }

    /// The next offset that it reads: those who want that or later ones may join.
    pub(crate) fn position(&self) -> Option<u64> {
        self.position
    }

    /// How many events it has read.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(crate) fn into_members(self) -> impl Iterator<Item = (Id, Member)> {
        self.members.into_iter()
    }

    /// Takes one more along.
    pub(crate) fn join(&mut self, id: Id, member: Member) {
        let place = &member.ask.after;
        let start = place.start();
        // Its event was the last one that was read.
        let judged = (self.begun && start > 0 && self.position == Some(start))
            .then(|| (!place.is_anchored_as(&self.read)).then_some(Gap::Recreated));
        self.joining.insert((start, id));
        self.members.insert(id, member);
        if let Some(gap) = judged {
            self.admit(id, gap);
            self.end(start, None);
        }
    }

    /// Somebody wants nothing any more.
    pub(crate) fn leave(&mut self, id: Id) -> Option<Member> {
        let member = self.members.remove(&id)?;
        self.joining.remove(&(member.ask.after.start(), id));
        self.following.remove(&(member.ask.until, id));
        for room in &member.ask.rooms {
            if let Some(ids) = self.rooms.get_mut(room) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.rooms.remove(room);
                }
            }
        }
        Some(member)
    }

    /// The reader has found the event that it began at, which it does not give.
    pub(crate) fn resumed(&mut self, start: &Place) {
        while let Some((_, id)) = self.joining.first().copied()
            && let Some(member) = self.members.get(&id)
            && member.ask.after.start() <= start.start()
        {
            let same = member.ask.after.is_anchored_as(start);
            self.admit(id, if same { None } else { Some(Gap::Recreated) });
        }
        self.read = start.clone();
        self.position = Some(start.start());
        self.begun = true;
        self.end(start.start(), None);
    }

    /// The reader goes on with the oldest event: its place is gone; that was `start`, if it had just
    /// begun.
    pub(crate) fn lost(&mut self, gap: Gap, start: &Place) {
        let following: Vec<Id> = self.following.iter().map(|(_, id)| *id).collect();
        for id in following {
            self.verdict(id, Some(gap));
        }
        if !self.begun {
            // The places of others may still be there.
            let joining: Vec<Id> = self.joining.iter().map(|(_, id)| *id).collect();
            for id in joining {
                let same = |member: &Member| member.ask.after.is_anchored_as(start);
                if self.members.get(&id).is_some_and(same) {
                    self.admit(id, Some(gap));
                }
            }
        }
        (self.position, self.read, self.begun) = (Some(0), Place::BEGINNING, true);
    }

    /// The next event, which may have come before. From `window` on, sessions have the events at hand.
    pub(crate) fn read(&mut self, entry: &Arc<Entry>, repeat: bool, window: u64) {
        let offset = entry.offset;
        while let Some((start, id)) = self.joining.first().copied()
            && start <= offset + 1
            && let Some(member) = self.members.get(&id)
        {
            let there = match start {
                0 => offset == 0,
                _ => member.ask.after.is_after(entry),
            };
            let gap = if start == offset + 1 { Gap::Recreated } else { Gap::Retention };
            self.admit(id, (!there).then_some(gap));
        }
        self.end(offset, Some(window));
        if !repeat && offset < window {
            self.give(entry);
        }
        self.read = Place::after(entry);
        (self.position, self.begun) = (Some(offset + 1), true);
        self.count += 1;
        self.end(offset + 1, Some(window));
    }

    /// The stream is another one: everybody begins anew, and nobody joins any more.
    pub(crate) fn void(&mut self) {
        let all: Vec<Id> = self.members.keys().copied().collect();
        all.into_iter().for_each(|id| self.verdict(id, Some(Gap::Recreated)));
        self.position = None;
    }

    /// There is nothing where the reader has begun, nor will there be.
    pub(crate) fn nothing(&mut self) {
        let all: Vec<_> = self.members.iter().map(|(id, m)| (*id, m.ask.until)).collect();
        all.into_iter().for_each(|(id, until)| self.finish(id, until));
    }

    /// The reader cannot read: everybody asks again.
    pub(crate) fn disband(&mut self) {
        let all: Vec<Id> = self.members.keys().copied().collect();
        for id in all {
            self.finish(id, 0);
        }
    }

    /// Another reader comes by soon: who has had something already asks again, which leads to that
    /// one; the others are returned, to join it.
    pub(crate) fn hand_over(&mut self) -> Vec<(Id, Member)> {
        let following: Vec<Id> = self.following.iter().map(|(_, id)| *id).collect();
        following.into_iter().for_each(|id| self.finish(id, 0));
        self.position = None;
        self.joining.clear();
        self.members.drain().collect()
    }

    fn give(&mut self, entry: &Arc<Entry>) {
        let mut ids: Vec<Id> = Vec::new();
        for room in &entry.rooms {
            ids.extend(self.rooms.get(room).into_iter().flatten());
        }
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let Some(member) = self.members.get(&id) else { continue };
            if entry.offset >= member.ask.after.next && !member.outbox.offer(entry) {
                self.finish(id, 0);
            }
        }
    }

    /// Ends those who want nothing from `offset` on, and all if sessions have that at hand.
    fn end(&mut self, offset: u64, window: Option<u64>) {
        if let Some(window) = window.filter(|window| offset >= *window) {
            let all: Vec<Id> = self.following.iter().map(|(_, id)| *id).collect();
            all.into_iter().for_each(|id| self.finish(id, window));
        }
        while let Some((until, id)) = self.following.first().copied()
            && until <= offset
        {
            self.finish(id, until);
        }
    }

    /// The place of a member is reached.
    fn admit(&mut self, id: Id, gap: Option<Gap>) {
        let Some(member) = self.members.get(&id) else { return };
        self.joining.remove(&(member.ask.after.start(), id));
        self.following.insert((member.ask.until, id));
        for room in &member.ask.rooms {
            self.rooms.entry(room.clone()).or_default().push(id);
        }
        self.verdict(id, gap);
    }

    /// After another stream was found, only who asked knows what to do.
    fn verdict(&mut self, id: Id, gap: Option<Gap>) {
        if let Some(member) = self.members.get(&id) {
            member.outbox.tell(Piece::Verdict(gap));
        }
        if gap == Some(Gap::Recreated) {
            self.leave(id);
        }
    }

    fn finish(&mut self, id: Id, next: u64) {
        if let Some(member) = self.leave(id) {
            let asked = member.ask.after;
            let at = if self.read.next > asked.next { self.read.clone() } else { asked };
            member.outbox.tell(Piece::End(at.up_to(next)));
        }
    }
}
