//! What a benchmark leaves behind.
//! In: runs as they end. Out: one JSON document that holds everything, from which all tables and
//! plots can be made again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::order::Contestant;
use super::scenario::{Case, Figure};

/// A whole benchmark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Forebay's version.
    pub(crate) forebay: String,
    /// The compiler that built it.
    pub(crate) rustc: String,
    /// The broker: product and version.
    pub(crate) broker: String,
    pub(crate) machine: Machine,
    /// What was typed, without the broker's URL.
    pub(crate) command: String,
    /// When it began, in UTC.
    pub(crate) began: String,
    pub(crate) seconds: f64,
    /// Why it ended before its last round, if it did.
    pub(crate) cut_short: Option<String>,
    /// What was left out, and why; what to bear in mind.
    pub(crate) notes: Vec<String>,
    pub(crate) cases: Vec<Measured>,
}

/// A case with its rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) case: Case,
    pub(crate) rounds: Vec<Round>,
}

/// One run of each contestant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) order: Vec<Contestant>,
    /// The machine's load average when it began.
    pub(crate) load: Option<f64>,
    pub(crate) runs: BTreeMap<Contestant, Run>,
}

/// What one contestant came to in one round.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) figures: BTreeMap<Figure, f64>,
    /// Jobs that waited at the broker, by the seconds since the first publish.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) backlog: Vec<(f64, u32)>,
}

impl Record {
    /// This run and a later one as one; or what keeps them apart, in words.
    pub(crate) fn join(mut self, later: Self) -> Result<Self, String> {
        let machine = |one: &Self| {
            let Machine { processor, cores, system, .. } = &one.machine;
            format!("{processor}, {cores} threads, {system}")
        };
        for (mine, other) in [
            (self.forebay.clone(), later.forebay.clone()),
            (self.rustc.clone(), later.rustc.clone()),
            (self.broker.clone(), later.broker.clone()),
            (machine(&self), machine(&later)),
        ] {
            if mine != other {
                return Err(format!("one is of `{mine}`, the other of `{other}`"));
            }
        }
        self.command = format!("{} and {}", self.command, later.command);
        self.seconds += later.seconds;
        self.machine.load[1] = later.machine.load[1];
        self.cut_short = self.cut_short.or(later.cut_short);
        self.cases.extend(later.cases);
        for note in later.notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        Ok(self)
    }
}

impl Measured {
    /// A figure of two contestants, round by round.
    pub(crate) fn pairs(
        &self,
        figure: Figure,
        ours: Contestant,
        theirs: Contestant,
    ) -> impl Iterator<Item = (f64, f64)> {
        self.rounds.iter().filter_map(move |round| {
            let of = |who| round.runs.get(&who)?.figures.get(&figure).copied();
            Some((of(ours)?, of(theirs)?))
        })
    }

    /// A figure of one contestant, round by round.
    pub(crate) fn figures(&self, figure: Figure, whose: Contestant) -> Vec<f64> {
        let of = |round: &Round| round.runs.get(&whose)?.figures.get(&figure).copied();
        self.rounds.iter().filter_map(of).collect()
    }
}
