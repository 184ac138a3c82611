//! The verdict on one run, pure.
//! In: what everybody recorded, and what was found in the queues at the end. Out: which jobs are
//! lost, which were handled more than once, who fell silent, how long recovery took.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::record::{Entry, Event, Run};

/// An ack may be under way for so long after the run that it settles.
const UNDER_WAY: u64 = 1_500_000;
/// A retry or a dead letter is published before the ack, and its queue perhaps declared before.
const PUBLISHED_FIRST: u64 = 15_000_000;
/// A confirm may be read so long after the broker gave it.
const READ_LATE: u64 = 2_000_000;

/// One message that lay in a queue at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) id: String,
    pub(crate) place: Place,
    pub(crate) reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The job queue.
    Queue,
    /// A level of the delay ladder.
    Delay,
    /// What the end of the ladder could not route.
    Unrouted,
    Dead,
}

/// What a fault entitles a run to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rules {
    /// Dead letters with these reasons are right here, whatever the job's script.
    pub(crate) may_die_of: &'static [&'static str],
}

/// What was found out about one run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) jobs: usize,
    pub(crate) confirmed: usize,
    /// Confirmed, and neither done nor dead nor queued.
    pub(crate) lost: Vec<String>,
    /// Of the confirmed: not to be seen at first, and handed out by the broker minutes later.
    pub(crate) held: usize,
    /// Gone, but an operator has destroyed what was queued when they were.
    pub(crate) destroyed: usize,
    /// Said not to have been sent, and yet there.
    pub(crate) denied: Vec<String>,
    /// Run once more, with the fault that is the reason, if there is one.
    pub(crate) again: Vec<(String, Option<String>)>,
    /// How many of them had been run to an end before.
    pub(crate) after_end: usize,
    /// Dead letters at the end.
    pub(crate) dead: usize,
    /// Dead letters that the job's script does not explain, with their reason.
    pub(crate) dead_in_error: Vec<(String, String)>,
    /// Workers that did not consume again.
    pub(crate) silent: Vec<String>,
    /// The longest time from the end of an outage until a worker consumed again.
    pub(crate) recovery: Option<Duration>,
    pub(crate) broken: Vec<String>,
}

impl Verdict {
    /// Whether a promise was broken, however long recovery took.
    pub(crate) fn is_red(&self) -> bool {
        !(self.lost.is_empty()
            && self.denied.is_empty()
            && self.dead_in_error.is_empty()
            && self.silent.is_empty()
            && self.broken.is_empty()
            && self.again.iter().all(|(_, why)| why.is_some()))
    }

    /// The jobs that something is wrong with.
    pub(crate) fn suspicious(&self) -> BTreeSet<&str> {
        let unexplained = self.again.iter().filter(|(_, why)| why.is_none()).map(|(id, _)| id);
        let dead = self.dead_in_error.iter().map(|(id, _)| id);
        self.lost
            .iter()
            .chain(&self.denied)
            .chain(unexplained)
            .chain(dead)
            .map(|id| &**id)
            .collect()
    }
}

/// All that is known about one job.
#[derive(Default)]
struct Life {
    script: String,
    published: Option<(u64, u64)>,
    confirmed: Option<u64>,
    denied: bool,
    runs: Vec<OneRun>,
    found: Vec<(Place, String)>,
}

/// Confirmed, and nowhere.
struct Missing {
    id: String,
    intended: u64,
    confirmed: u64,
}

struct OneRun {
    who: String,
    run: Run,
    begun: u64,
    ended: Option<(u64, String)>,
}

struct Outage {
    what: String,
    from: u64,
    to: u64,
}

/// Reconciles every job. `entries` are by time.
pub(crate) fn check(entries: &[Entry], found: &[Found], rules: &Rules) -> Verdict {
    let lives = lives(entries, found);
    let outages = outages(entries);
    let mut verdict = Verdict { jobs: lives.len(), ..Verdict::default() };
    let mut missing = Vec::new();
    for (id, life) in &lives {
        let arrived = !life.runs.is_empty() || !life.found.is_empty();
        if life.denied && life.confirmed.is_none() && arrived {
            verdict.denied.push(id.clone());
        }
        if let Some(at) = life.confirmed {
            verdict.confirmed += 1;
            if !life.is_done() && life.found.is_empty() {
                let intended = life.published.map_or(at, |(intended, _)| intended);
                missing.push(Missing { id: id.clone(), intended, confirmed: at });
            }
        }
        for (place, reason) in &life.found {
            let explained = life.dies() || rules.may_die_of.contains(&reason.as_str());
            verdict.dead += usize::from(*place == Place::Dead);
            if *place == Place::Dead && !explained {
                verdict.dead_in_error.push((id.clone(), reason.clone()));
            }
        }
        life.again(id, &outages, &mut verdict);
    }
    excuse(missing, entries, &mut verdict);
    watch(entries, &mut verdict);
    verdict.broken = entries
        .iter()
        .filter_map(|entry| match &entry.event {
            Event::Broken { what } => Some(what.clone()),
            _ => None,
        })
        .collect();
    verdict
}

fn lives(entries: &[Entry], found: &[Found]) -> BTreeMap<String, Life> {
    let mut lives: BTreeMap<String, Life> = BTreeMap::new();
    for entry in entries {
        let Some(id) = entry.event.id() else { continue };
        let life = lives.entry(id.to_owned()).or_default();
        match &entry.event {
            Event::Intent { script, .. } => {
                life.script.clone_from(script);
                life.published = Some((entry.at, u64::MAX));
            }
            Event::Confirmed { .. } => life.confirmed = Some(life.publish_ended(entry.at)),
            Event::Failed { may_have_arrived, .. } => {
                life.publish_ended(entry.at);
                life.denied = !may_have_arrived;
            }
            Event::Begun { run, .. } => life.runs.push(OneRun {
                who: entry.who.clone(),
                run: *run,
                begun: entry.at,
                ended: None,
            }),
            Event::Ended { run, end, .. } => {
                let mut open = life.runs.iter_mut().rev();
                let same = |one: &&mut OneRun| one.run == *run && one.who == entry.who;
                if let Some(one) = open.find(|one| same(one) && one.ended.is_none()) {
                    one.ended = Some((entry.at, end.clone()));
                }
            }
            _ => {}
        }
    }
    for message in found {
        let life = lives.entry(message.id.clone()).or_default();
        life.found.push((message.place, message.reason.clone()));
    }
    lives
}

impl Life {
    fn publish_ended(&mut self, at: u64) -> u64 {
        if let Some((_, end)) = &mut self.published {
            *end = at;
        }
        at
    }

    fn is_done(&self) -> bool {
        self.runs.iter().any(|one| one.ended.as_ref().is_some_and(|(_, end)| end == "ok"))
    }

    /// Whether the script leads to the dead letters.
    fn dies(&self) -> bool {
        ["rejects", "kills"].iter().any(|script| self.script.starts_with(script))
    }

    /// When the ack of a run that ended was out at the latest. Once the next attempt runs, only the
    /// ack can be missing.
    fn acked_by(&self, run: &OneRun) -> Option<u64> {
        let (at, end) = run.ended.as_ref()?;
        if end != "fail" && end != "reject" {
            return Some(at + UNDER_WAY);
        }
        let place = |run: Run| (run.redrives, run.attempt);
        let later = self.runs.iter().filter(|one| place(one.run) > place(run.run));
        let next = later.map(|one| one.begun).min();
        Some(next.map_or(at + PUBLISHED_FIRST, |begun| begun.min(at + PUBLISHED_FIRST) + UNDER_WAY))
    }

    /// Finds runs of what had been run before. One is demanded by "at least once" when an outage
    /// touched the publish, an earlier run, or the time in which that run was acknowledged.
    fn again(&self, id: &str, outages: &[Outage], verdict: &mut Verdict) {
        for (place, one) in self.runs.iter().enumerate() {
            let key = |run: Run| (run.attempt, run.redrives);
            let earlier = &self.runs[..place];
            let same = earlier.iter().filter(|before| key(before.run) == key(one.run));
            let ends: Vec<_> = same.map(|before| before.ended.as_ref()).collect();
            if ends.is_empty() {
                continue;
            }
            let mut times: Vec<(u64, u64)> = self.published.into_iter().collect();
            times.extend(
                earlier
                    .iter()
                    .map(|before| (before.begun, self.acked_by(before).unwrap_or(one.begun))),
            );
            // It was moved away as a suspect, at a time that nobody records: a copy, then the ack.
            if one.run.crashes > 0 {
                times.push((self.published.map_or(0, |(from, _)| from), one.begun));
            }
            let touches = |outage: &&Outage| {
                times.iter().any(|(from, to)| outage.from <= *to && *from <= outage.to)
            };
            let why = outages.iter().find(touches).map(|outage| outage.what.clone());
            verdict.again.push((id.to_owned(), why));
            let completed = ["ok", "fail", "reject"];
            let ended = |end: &Option<&(u64, String)>| {
                end.is_some_and(|(_, end)| completed.contains(&end.as_str()))
            };
            verdict.after_end += usize::from(ends.iter().any(ended));
        }
    }
}

/// From each strike to when every worker consumed again.
fn outages(entries: &[Entry]) -> Vec<Outage> {
    let mut outages: Vec<Outage> = Vec::new();
    let mut open = None;
    for entry in entries {
        match &entry.event {
            Event::Struck { what } => {
                if let Some(place) = open.replace(outages.len()) {
                    outages[place].to = entry.at;
                }
                outages.push(Outage { what: what.clone(), from: entry.at, to: u64::MAX });
            }
            Event::Healed => {
                if let Some(place) = open.take() {
                    outages[place].to = entry.at;
                }
            }
            // Not consuming after the strike is a consequence of it.
            Event::Consuming => {
                if let Some(last) = outages.last_mut().filter(|last| last.to < entry.at) {
                    let soon = last.to + 30_000_000;
                    last.to = if entry.at < soon { entry.at } else { last.to };
                }
            }
            _ => {}
        }
    }
    outages
}

/// An operator destroys what was queued when he did it: no job that was published later, and no
/// more than he was told. What was under way to a queue while it was deleted is beside that number:
/// the broker confirms it, and it is gone.
fn excuse(missing: Vec<Missing>, entries: &[Entry], verdict: &mut Verdict) {
    let destructions: Vec<(u64, u64, u64)> = entries
        .iter()
        .filter_map(|entry| match entry.event {
            Event::Destroyed { at_most, took } => Some((entry.at - took, entry.at, at_most)),
            _ => None,
        })
        .collect();
    let mut left: u64 = destructions.iter().map(|(_, _, at_most)| at_most).sum();
    for Missing { id, intended, confirmed } in missing {
        let under_way = |(from, to, _): &(u64, u64, u64)| {
            *from < *to && intended <= *to && *from <= confirmed && confirmed <= *to + READ_LATE
        };
        let queued = |(_, to, _): &(u64, u64, u64)| intended <= *to && confirmed <= *to + READ_LATE;
        if destructions.iter().any(under_way) {
            verdict.destroyed += 1;
        } else if destructions.iter().any(queued) && left > 0 {
            left -= 1;
            verdict.destroyed += 1;
        } else {
            verdict.lost.push(id);
        }
    }
}

/// Looks after the workers: each that lost its consumer consumes again.
fn watch(entries: &[Entry], verdict: &mut Verdict) {
    let mut idle: HashMap<&str, bool> = HashMap::new();
    let mut healed: Option<u64> = None;
    for entry in entries {
        let who = entry.who.as_str();
        match &entry.event {
            Event::Started | Event::Idle { .. } => {
                let started = entry.event == Event::Started;
                // One that was just started has nothing to recover from.
                idle.insert(who, !started);
            }
            Event::Consuming => {
                if let Some(was_idle @ true) = idle.get(who).copied()
                    && let Some(healed) = healed
                {
                    let took = Duration::from_micros(entry.at.saturating_sub(healed));
                    verdict.recovery = verdict.recovery.max(Some(took));
                    debug_assert!(was_idle);
                }
                idle.remove(who);
            }
            Event::Gone { .. } => _ = idle.remove(who),
            Event::Struck { .. } => healed = None,
            Event::Healed => healed = Some(entry.at),
            _ => {}
        }
    }
    verdict.silent = idle.into_keys().map(str::to_owned).collect();
    verdict.silent.sort();
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
