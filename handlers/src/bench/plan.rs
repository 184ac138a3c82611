//! Who runs when.
//! In: cases and their contestants. Out: every run of the whole benchmark in order; pure.
//!
//! Rates on a shared machine drift. So each round holds one run of every contestant, the figures of
//! one round are compared with each other, and the order within a round alternates. Rounds of all
//! cases are mixed: whenever it ends, each case has had about as many.

use super::order::Contestant;
use super::scenario::Case;

/// One round of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Its place among the cases.
    pub(crate) case: usize,
    /// From 0.
    pub(crate) round: usize,
    pub(crate) order: Vec<Contestant>,
}

/// All rounds of all cases.
pub(crate) fn steps(cases: &[Case]) -> Vec<Step> {
    let most = cases.iter().map(|case| case.rounds).max().unwrap_or(0);
    let rounds = (0..most).flat_map(|round| {
        let taking_part = cases.iter().enumerate().filter(move |(_, case)| round < case.rounds);
        taking_part.map(move |(place, case)| Step {
            case: place,
            round,
            order: order(&case.contestants, round),
        })
    });
    rounds.collect()
}

/// Every second round is the one before it backwards, and each pair of rounds begins with the next
/// contestant: any two meet in both orders equally often.
fn order(contestants: &[Contestant], round: usize) -> Vec<Contestant> {
    let mut order = contestants.to_vec();
    if !order.is_empty() {
        let places = (round / 2) % order.len();
        order.rotate_left(places);
    }
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use forebay_worker::QueueType;

    use super::*;
    use crate::bench::scenario::Scenario;

    fn case(scenario: Scenario, rounds: usize) -> Case {
        Case {
            scenario,
            queue_type: QueueType::Quorum,
            prefetch: 1,
            concurrency: 1,
            workers: 1,
            jobs: 1,
            payload: 1,
            per_second: None,
            contestants: scenario.contestants(),
            rounds,
        }
    }

    #[test]
    fn any_two_contestants_meet_in_both_orders_equally_often() {
        for scenario in Scenario::ALL {
            let contestants = scenario.contestants();
            for (one, other) in contestants.iter().zip(&contestants[1..]) {
                let firsts = (0..12).filter(|round| {
                    let order = order(&contestants, *round);
                    let place = |who| order.iter().position(|in_order| in_order == who);
                    place(one) < place(other)
                });
                assert_eq!(firsts.count(), 6, "{scenario:?}");
            }
        }
    }

    #[test]
    fn rounds_of_all_cases_are_mixed() {
        let cases = [case(Scenario::Drain, 3), case(Scenario::Idle, 1)];
        let steps: Vec<_> = steps(&cases).iter().map(|step| (step.round, step.case)).collect();
        assert_eq!(steps, [(0, 0), (0, 1), (1, 0), (2, 0)]);
    }
}
