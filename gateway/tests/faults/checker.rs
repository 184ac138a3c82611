//! The verdict on one run, pure.
//! In: what is on the stream, what its tellers were told, and the diary of each client. Out: what a
//! client missed, got twice in one session, in a wrong order, or once more in a later one.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use forebay_producer::{EventKind, Token};
use tokio::time::Instant;

use crate::diary::{Note, Word};
use crate::follower::Taste;
use crate::truth::Told;
use crate::workload::Confirmed;

/// One client's diary.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) taste: Taste,
    pub(crate) notes: Vec<Note>,
}

/// What was found out about one run. Each text names the client and the event.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) clients: usize,
    /// On the stream.
    pub(crate) events: usize,
    /// Handed to clients.
    pub(crate) handed: usize,
    pub(crate) sessions: usize,
    pub(crate) lost: Vec<String>,
    /// In one session.
    pub(crate) doubled: Vec<String>,
    pub(crate) disordered: Vec<String>,
    /// In a later session than the first one that had it, although it is on the stream once.
    pub(crate) again: Vec<String>,
    /// Anything else that was promised otherwise.
    pub(crate) broken: Vec<String>,
    /// From the end of a fault until every client that follows everything was told something again;
    /// the longest.
    pub(crate) recovery: Option<Duration>,
}

impl Verdict {
    pub(crate) fn is_red(&self) -> bool {
        [&self.lost, &self.doubled, &self.disordered, &self.again, &self.broken]
            .into_iter()
            .any(|all| !all.is_empty())
    }
}

/// Reconciles every event with every client. `healed`: when faults were over.
pub(crate) fn check(
    truth: &[Told],
    confirmed: &Confirmed,
    clients: &[Seen],
    healed: &[Instant],
) -> Verdict {
    let mut verdict = Verdict { clients: clients.len(), events: truth.len(), ..Verdict::default() };
    untold(truth, confirmed, &mut verdict);
    let mut places: HashMap<&str, Vec<u64>> = HashMap::new();
    for told in truth {
        places.entry(&told.event.id).or_default().push(told.offset);
    }
    for client in clients {
        client.check(truth, &places, &mut verdict);
    }
    let recoveries = healed.iter().filter_map(|healed| recovery(clients, *healed));
    verdict.recovery = recoveries.max();
    verdict
}

/// What was confirmed is on the stream, and the end of each job is.
fn untold(truth: &[Told], confirmed: &Confirmed, verdict: &mut Verdict) {
    let (mut told, mut ended) = (HashSet::new(), HashSet::new());
    for Told { event, .. } in truth {
        if let Some(channel) = event.channel() {
            let data: serde_json::Value =
                serde_json::from_str(event.data.get()).unwrap_or_default();
            told.extend(data["n"].as_u64().map(|n| (channel, n)));
        }
        if event.what == EventKind::Succeeded {
            ended.insert(event.subject.as_str());
        }
    }
    for (channel, n) in confirmed.told.iter().filter(|told_so| !told.contains(*told_so)) {
        verdict.broken.push(format!("{channel} {n} was confirmed and is not on the stream"));
    }
    for job in confirmed.jobs.iter().filter(|job| !ended.contains(job.as_str())) {
        verdict.broken.push(format!("the end of job {job} is not on the stream"));
    }
}

/// The offset after a place.
fn behind(token: &Token) -> u64 {
    token.id.as_ref().map_or(0, |_| token.offset + 1)
}

impl Seen {
    fn check(&self, truth: &[Told], places: &HashMap<&str, Vec<u64>>, verdict: &mut Verdict) {
        let (mut ever, mut in_session) = (HashSet::new(), HashSet::new());
        // Where the session has come to, while there is one; and where the first one began.
        let (mut cursor, mut first) = (None, None);
        let name = &self.name;
        for note in &self.notes {
            match &note.word {
                Word::Joined { from, recovered, token } => {
                    verdict.sessions += 1;
                    in_session.clear();
                    let begin = behind(from.as_ref().unwrap_or(token));
                    cursor = Some(begin);
                    first.get_or_insert(begin);
                    if !recovered {
                        verdict.broken.push(format!("{name}: {from:?} was not found"));
                    }
                }
                Word::Event { id } => {
                    verdict.handed += 1;
                    let is_new = ever.insert(id.as_str());
                    let Some(places) = places.get(id.as_str()) else {
                        verdict.broken.push(format!("{name}: {id} is not on the stream"));
                        continue;
                    };
                    if !in_session.insert(id.as_str()) {
                        verdict.doubled.push(format!("{name}: {id}"));
                    } else if !is_new && places.len() == 1 {
                        verdict.again.push(format!("{name}: {id}"));
                    }
                    match cursor {
                        None => verdict.broken.push(format!("{name}: {id} before the answer")),
                        Some(at) => match places.iter().find(|place| **place >= at) {
                            Some(place) => cursor = Some(place + 1),
                            None => verdict.disordered.push(format!("{name}: {id} after {at}")),
                        },
                    }
                }
                Word::Parted { .. } => cursor = None,
                Word::Gap { reason } => {
                    verdict.broken.push(format!("{name}: told of a gap: {reason}"));
                }
                Word::Nonsense { what } => verdict.broken.push(format!("{name}: {what}")),
                Word::Token | Word::Bye { .. } => {}
            }
        }
        let Some(first) = first else {
            verdict.broken.push(format!("{name}: never answered"));
            return;
        };
        for Told { offset, event } in truth.iter().filter(|told| self.taste.wants(&told.event)) {
            let id = event.id.as_str();
            // What is on the stream twice is lost once.
            if *offset == places[id][0] && *offset >= first && !ever.contains(id) {
                verdict.lost.push(format!("{name}: {id} at {:?}", places[id]));
            }
        }
    }
}

/// How long it took until all of those who follow everything heard something.
fn recovery(clients: &[Seen], healed: Instant) -> Option<Duration> {
    let words = clients.iter().filter(|client| client.taste != Taste::Rare).map(|client| {
        let told = |note: &&Note| matches!(note.word, Word::Joined { .. } | Word::Event { .. });
        let after = client.notes.iter().filter(told).map(|note| note.at);
        after.filter(|at| *at >= healed).min()
    });
    let last = words.flatten().max()?;
    Some(last - healed)
}

#[cfg(test)]
mod tests {
    use forebay_producer::Event;
    use serde_json::json;

    use super::*;

    fn told(offset: u64, id: &str) -> Told {
        let data = serde_json::value::to_raw_value(&json!({ "n": offset })).unwrap();
        let mut event = Event::of_channel("rare", "tick", data).unwrap();
        event.id = id.to_owned();
        Told { offset, event }
    }

    fn joined(from: Option<&str>, token: &str) -> Word {
        let from = from.map(|from| from.parse().unwrap());
        Word::Joined { from, recovered: true, token: token.parse().unwrap() }
    }

    fn event(id: &str) -> Word {
        Word::Event { id: id.to_owned() }
    }

    fn parted() -> Word {
        Word::Parted { because: String::new() }
    }

    fn verdict(words: Vec<Word>) -> Verdict {
        // `bb` was sent twice.
        let truth =
            [(0, "aa"), (1, "bb"), (2, "cc"), (3, "bb"), (4, "dd")].map(|(at, id)| told(at, id));
        let notes = words.into_iter().map(|word| Note { at: Instant::now(), word }).collect();
        let seen = Seen { name: "ada".to_owned(), taste: Taste::Rare, notes };
        check(&truth, &Confirmed::default(), &[seen], &[])
    }

    fn counts(verdict: &Verdict) -> [usize; 5] {
        [&verdict.lost, &verdict.doubled, &verdict.disordered, &verdict.again, &verdict.broken]
            .map(Vec::len)
    }

    #[test]
    fn who_has_everything_once_and_in_order_lacks_nothing() {
        let all = ["aa", "bb", "cc", "dd"].map(event);
        let once = verdict([vec![joined(None, "0.-")], all.to_vec()].concat());
        assert_eq!((counts(&once), once.handed, once.sessions), ([0; 5], 4, 1));
        let late = verdict(vec![joined(None, "2.cc"), event("bb"), event("dd")]);
        assert_eq!(counts(&late), [0; 5], "from now on, and what was sent twice may come");
        let late = verdict(vec![joined(None, "2.cc"), event("dd")]);
        assert_eq!(counts(&late), [0; 5], "or not");
    }

    #[test]
    fn what_did_not_come_is_lost_and_what_came_again_is_doubled() {
        let words = vec![joined(None, "0.-"), event("aa"), event("cc"), event("cc"), event("dd")];
        assert_eq!(counts(&verdict(words)), [1, 1, 1, 0, 0], "bb is lost, cc is doubled");
        let words = vec![joined(None, "0.-"), event("aa"), event("dd"), event("cc"), event("bb")];
        assert_eq!(counts(&verdict(words)), [0, 0, 2, 0, 0], "cc and bb come after dd");
    }

    #[test]
    fn a_later_session_begins_behind_its_token() {
        let first = vec![joined(None, "0.-"), event("aa"), event("bb"), event("cc"), parted()];
        let back = |words: &[Word]| verdict([first.clone(), words.to_vec()].concat());
        assert_eq!(counts(&back(&[joined(Some("2.cc"), "2.cc"), event("dd")])), [0; 5]);
        let twice = [joined(Some("2.cc"), "2.cc"), event("bb"), event("dd")];
        assert_eq!(counts(&back(&twice)), [0; 5], "sent twice, with the break between");
        let stale = [joined(Some("2.cc"), "2.cc"), event("aa"), event("dd")];
        assert_eq!(counts(&back(&stale)), [0, 0, 1, 1, 0], "aa is before its token");
        assert_eq!(counts(&back(&[event("dd"), joined(Some("2.cc"), "2.cc")])), [0, 0, 0, 0, 1]);
    }

    #[test]
    fn what_was_confirmed_is_on_the_stream() {
        let mut confirmed = Confirmed::default();
        (confirmed.told, confirmed.jobs) = (vec![("rare", 2), ("rare", 9)], vec!["j".to_owned()]);
        let verdict = check(&[told(2, "aa")], &confirmed, &[], &[]);
        assert_eq!(verdict.broken.len(), 2, "{:?}", verdict.broken);
    }
}
