//! Medians, and how sure they are.
//! In: figures of many rounds. Out: a median with the interval that a bootstrap gives it; pure, and
//! the same for the same figures.

use serde::Serialize;

/// Resamples of a bootstrap.
const RESAMPLES: usize = 10_000;
/// Of 100, how many of the resampled medians lie within the interval.
const SURE: f64 = 0.95;

/// A median of many rounds with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// How many figures it comes from.
    pub(crate) rounds: usize,
}

/// The median and its interval; `None` of nothing.
///
/// Percentile bootstrap (Efron and Tibshirani, 1993): the figures are drawn from themselves again
/// and again, and the interval holds 95 % of the medians so found.
pub(crate) fn estimate(figures: &[f64]) -> Option<Estimate> {
    let median_of_all = median(figures)?;
    // A fixed seed: the same run always has the same interval.
    let mut chance = fastrand::Rng::with_seed(0x000F_0EBA);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let drawn: Vec<f64> =
                (0..figures.len()).map(|_| figures[chance.usize(..figures.len())]).collect();
            median(&drawn)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let outside = (1.0 - SURE) / 2.0;
    let at = |share: f64| medians[((RESAMPLES - 1) as f64 * share).round() as usize];
    Some(Estimate {
        median: median_of_all,
        low: at(outside),
        high: at(1.0 - outside),
        rounds: figures.len(),
    })
}

/// What each round's pair comes to, `ours ÷ theirs`. A pair that divides by nothing is left out.
pub(crate) fn ratios(pairs: impl IntoIterator<Item = (f64, f64)>) -> Vec<f64> {
    let usable = |(ours, theirs): &(f64, f64)| ours.is_finite() && *theirs > 0.0;
    pairs.into_iter().filter(usable).map(|(ours, theirs)| ours / theirs).collect()
}

/// The middle, or the mean of the two in the middle.
pub(crate) fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        for (figures, expected) in [
            (&[][..], None),
            (&[3.0], Some(3.0)),
            (&[9.0, 1.0, 2.0], Some(2.0)),
            (&[4.0, 1.0, 2.0, 100.0], Some(3.0)),
        ] {
            assert_eq!(median(figures), expected, "{figures:?}");
        }
    }

    #[test]
    fn figures_that_agree_leave_no_doubt() {
        let sure = estimate(&[2.0; 15]).unwrap();
        assert_eq!(sure, Estimate { median: 2.0, low: 2.0, high: 2.0, rounds: 15 });
        assert_eq!(estimate(&[]), None);
    }

    #[test]
    fn the_interval_holds_the_median_and_narrows_with_more_rounds() {
        let figures = |rounds: usize| -> Vec<f64> {
            (0..rounds).map(|round| 1.0 + 0.1 * ((round * 7) % 10) as f64).collect()
        };
        let (few, many) = (estimate(&figures(10)).unwrap(), estimate(&figures(200)).unwrap());
        for estimate in [few, many] {
            assert!(estimate.low <= estimate.median && estimate.median <= estimate.high);
        }
        assert!(many.high - many.low < few.high - few.low, "{many:?} {few:?}");
    }

    #[test]
    fn one_wild_round_moves_neither_the_median_nor_much_of_the_interval() {
        let mut figures = vec![1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99, 1.0, 1.0];
        let calm = estimate(&figures).unwrap();
        figures.push(30.0);
        let wild = estimate(&figures).unwrap();
        assert_eq!(calm.median, wild.median);
        assert!(wild.high < 1.1, "{wild:?}");
    }

    #[test]
    fn the_same_figures_have_the_same_interval() {
        let figures = [1.0, 3.0, 2.0, 5.0, 4.0];
        assert_eq!(estimate(&figures), estimate(&figures));
    }

    #[test]
    fn a_pair_without_a_reference_is_left_out() {
        assert_eq!(ratios([(2.0, 1.0), (1.0, 0.0), (3.0, 2.0)]), [2.0, 1.5]);
    }
}
