//! What a benchmark comes to.
//! In: a [`Record`]. Out: for each case medians and ratios with their intervals, and which targets
//! are met; pure.

use std::collections::{BTreeMap, BTreeSet};

use forebay_worker::QueueType;
use serde::Serialize;

use super::order::Contestant;
use super::record::{Measured, Record};
use super::scenario::{Case, Figure, Scenario};
use super::stats::{Estimate, estimate, ratios};

/// One case, summed up.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Result {
    pub(crate) case: Case,
    /// Rounds that were done.
    pub(crate) rounds: usize,
    pub(crate) figures: BTreeMap<Contestant, BTreeMap<Figure, Estimate>>,
    /// Forebay's figure ÷ that of the reference, of the same round.
    pub(crate) ratios: BTreeMap<Contestant, BTreeMap<Figure, Estimate>>,
}

/// A goal, and how far it is reached.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Target {
    pub(crate) what: &'static str,
    pub(crate) queue_type: QueueType,
    /// The queue, with settings that are not usual.
    pub(crate) variant: String,
    pub(crate) wanted: Wanted,
    pub(crate) found: Estimate,
    /// The better end of the interval reaches it; `None` when there were too few rounds to tell.
    pub(crate) met: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

/// The interval of fewer rounds than this is hardly more than chance.
const FEWEST_ROUNDS: usize = 6;

/// A goal before anything was measured; without a reference it is one of Forebay's figure alone.
struct Goal {
    what: &'static str,
    scenario: Scenario,
    figure: Figure,
    against: Option<Contestant>,
    wanted: Wanted,
}

const GOALS: [Goal; 7] = [
    Goal {
        what: "drain ÷ lapin, batched acks",
        scenario: Scenario::Drain,
        figure: Figure::JobsPerSecond,
        against: Some(Contestant::BareBatched),
        wanted: Wanted::AtLeast(0.95),
    },
    Goal {
        what: "drain ÷ lapin, each ack awaited",
        scenario: Scenario::Drain,
        figure: Figure::JobsPerSecond,
        against: Some(Contestant::BareAwaited),
        wanted: Wanted::AtLeast(2.0),
    },
    Goal {
        what: "publish_all ÷ lapin, windowed confirms",
        scenario: Scenario::PublishBulk,
        figure: Figure::JobsPerSecond,
        against: Some(Contestant::BareWindowed),
        wanted: Wanted::AtLeast(0.97),
    },
    Goal {
        what: "client CPU per drained job ÷ lapin, batched acks",
        scenario: Scenario::Drain,
        figure: Figure::CpuMicros,
        against: Some(Contestant::BareBatched),
        wanted: Wanted::AtMost(1.3),
    },
    Goal {
        what: "p99 latency at a steady rate ÷ lapin",
        scenario: Scenario::Latency,
        figure: Figure::P99Ms,
        against: Some(Contestant::BareBatched),
        wanted: Wanted::AtMost(1.15),
    },
    Goal {
        what: "idle worker, resident MB",
        scenario: Scenario::Idle,
        figure: Figure::ResidentMb,
        against: None,
        wanted: Wanted::AtMost(18.0),
    },
    Goal {
        what: "start to first job, topology existing, ms",
        scenario: Scenario::Start,
        figure: Figure::StartMs,
        against: None,
        wanted: Wanted::AtMost(60.0),
    },
];

/// Every case that has at least one round.
pub(crate) fn results(record: &Record) -> Vec<Result> {
    record.cases.iter().filter(|one| !one.rounds.is_empty()).map(result).collect()
}

fn result(measured: &Measured) -> Result {
    let seen: BTreeSet<Figure> = measured
        .rounds
        .iter()
        .flat_map(|round| round.runs.values().flat_map(|run| run.figures.keys().copied()))
        .collect();
    let (mut figures, mut all_ratios) = (BTreeMap::new(), BTreeMap::new());
    for &who in &measured.case.contestants {
        let of = |&figure: &Figure| Some((figure, estimate(&measured.figures(figure, who))?));
        figures.insert(who, seen.iter().filter_map(of).collect());
        if who != Contestant::Forebay {
            let against = |&figure: &Figure| {
                let pairs = measured.pairs(figure, Contestant::Forebay, who);
                Some((figure, estimate(&ratios(pairs))?))
            };
            all_ratios.insert(who, seen.iter().filter_map(against).collect());
        }
    }
    Result {
        case: measured.case.clone(),
        rounds: measured.rounds.len(),
        figures,
        ratios: all_ratios,
    }
}

/// The goals that something was measured for, in the order of the goals.
pub(crate) fn targets(results: &[Result]) -> Vec<Target> {
    let met = |goal: &Goal, found: &Estimate| match goal.wanted {
        Wanted::AtLeast(wanted) => found.high >= wanted,
        Wanted::AtMost(wanted) => found.low <= wanted,
    };
    let of_goal = |goal: &'static Goal| {
        results.iter().filter(|result| result.case.scenario == goal.scenario).filter_map(
            move |result| {
                let found = match goal.against {
                    Some(who) => result.ratios.get(&who)?.get(&goal.figure)?,
                    None => result.figures.get(&Contestant::Forebay)?.get(&goal.figure)?,
                };
                Some(Target {
                    what: goal.what,
                    queue_type: result.case.queue_type,
                    variant: result.case.variant(),
                    wanted: goal.wanted,
                    found: *found,
                    met: (found.rounds >= FEWEST_ROUNDS).then(|| met(goal, found)),
                })
            },
        )
    };
    GOALS.iter().flat_map(of_goal).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bench::machine::Machine;
    use crate::bench::record::{Round, Run};

    /// Rounds of a drain, as jobs per second of Forebay and of both references.
    pub(crate) fn drained(rates: &[[f64; 3]]) -> Record {
        let contestants = Scenario::Drain.contestants();
        let case = Case {
            scenario: Scenario::Drain,
            queue_type: QueueType::Quorum,
            prefetch: 200,
            concurrency: 64,
            workers: 1,
            jobs: 20_000,
            payload: 200,
            per_second: None,
            contestants: contestants.clone(),
            rounds: rates.len(),
        };
        let round = |rates: &[f64; 3]| {
            let run = |rate: f64| {
                let cpu = (Figure::CpuMicros, 1_000_000.0 / rate);
                Run {
                    figures: BTreeMap::from([(Figure::JobsPerSecond, rate), cpu]),
                    backlog: Vec::new(),
                }
            };
            Round {
                order: contestants.clone(),
                load: Some(0.5),
                runs: contestants.iter().copied().zip(rates.map(run)).collect(),
            }
        };
        Record {
            forebay: "1.2.3".to_owned(),
            rustc: "rustc 1.99.0".to_owned(),
            broker: "RabbitMQ 4.3.6".to_owned(),
            machine: Machine::default(),
            command: "forebay bench".to_owned(),
            began: "2026-01-02T03:04:05Z".to_owned(),
            seconds: 12.0,
            cut_short: None,
            notes: vec!["a note".to_owned()],
            cases: vec![Measured { case, rounds: rates.iter().map(round).collect() }],
        }
    }

    #[test]
    fn a_ratio_compares_what_ran_in_the_same_round() {
        // The machine is twice as slow from round to round; the ratio stays.
        let record = drained(&[[900.0, 1000.0, 300.0], [450.0, 500.0, 150.0]]);
        let results = results(&record);
        let found = results[0].ratios[&Contestant::BareBatched][&Figure::JobsPerSecond];
        assert_eq!((found.median, found.low, found.high), (0.9, 0.9, 0.9));
        assert_eq!(results[0].figures[&Contestant::Forebay][&Figure::JobsPerSecond].median, 675.0);
    }

    #[test]
    fn a_target_is_met_when_the_better_end_of_the_interval_reaches_it() {
        let two = [[900.0, 1000.0, 300.0], [960.0, 1000.0, 900.0]];
        let record = drained(&two.repeat(4));
        let met: Vec<_> = targets(&results(&record)).iter().map(|target| target.met).collect();
        // 0.90 to 0.96 of batched, 1.07 to 3 of awaited, CPU 1.04 to 1.11.
        assert_eq!(met, [Some(true); 3]);
        let slow = drained(&[[700.0, 1000.0, 600.0]; 6]);
        let met: Vec<_> = targets(&results(&slow)).iter().map(|target| target.met).collect();
        assert_eq!(met, [Some(false); 3]);
    }

    #[test]
    fn a_few_rounds_decide_nothing() {
        let record = drained(&[[2000.0, 1000.0, 300.0]; 5]);
        let met: Vec<_> = targets(&results(&record)).iter().map(|target| target.met).collect();
        assert_eq!(met, [None; 3]);
    }

    #[test]
    fn nothing_is_said_of_what_was_not_measured() {
        let record = drained(&[]);
        assert!(results(&record).is_empty() && targets(&results(&record)).is_empty());
    }
}
