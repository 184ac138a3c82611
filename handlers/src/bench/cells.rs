//! Figures as words, for every kind of table.
//! In: results. Out: header and rows of text; pure.

use std::collections::BTreeSet;

use super::digest::{Result, Target, Wanted};
use super::order::Contestant;
use super::record::Record;
use super::scenario::Figure;
use super::stats::Estimate;

/// A table without its form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cells {
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// Which goals are reached.
pub(crate) fn targets(targets: &[Target]) -> Cells {
    let header = ["target", "queue", "wanted", "found", "95 % interval", "met"];
    let row = |target: &Target| {
        let wanted = match target.wanted {
            Wanted::AtLeast(least) => format!("≥ {least}"),
            Wanted::AtMost(most) => format!("≤ {most}"),
        };
        vec![
            target.what.to_owned(),
            target.variant.clone(),
            wanted,
            format!("{:.2}", target.found.median),
            interval(&target.found),
            match target.met {
                Some(true) => "yes",
                Some(false) => "no",
                None => "too few rounds",
            }
            .to_owned(),
        ]
    };
    Cells { header: header.map(str::to_owned).to_vec(), rows: targets.iter().map(row).collect() }
}

/// One row for each contestant: its medians, and what Forebay is in relation to it.
pub(crate) fn result(result: &Result) -> Cells {
    let seen: BTreeSet<Figure> =
        result.figures.values().flat_map(|figures| figures.keys().copied()).collect();
    let main = result.case.scenario.main_figure();
    let mut header = vec!["contestant".to_owned()];
    header.extend(seen.iter().map(|figure| figure.label().to_owned()));
    let compared = !result.ratios.is_empty();
    if compared {
        header.push(format!("Forebay ÷ it, {}", main.label()));
    }
    let row = |&who: &Contestant| {
        let figures = result.figures.get(&who);
        let mut row = vec![who.label().to_owned()];
        row.extend(seen.iter().map(|figure| {
            let found = figures.and_then(|figures| figures.get(figure));
            found.map_or_else(|| "–".to_owned(), |found| number(found.median, figure.digits()))
        }));
        if compared {
            let ratio = result.ratios.get(&who).and_then(|ratios| ratios.get(&main));
            row.push(ratio.map_or_else(String::new, with_interval));
        }
        row
    };
    Cells { header, rows: result.case.contestants.iter().map(row).collect() }
}

/// The settings of a case, in words.
pub(crate) fn settings(result: &Result) -> String {
    let case = &result.case;
    let rate = case.per_second.map(|rate| format!(" at {}/s", number(rate.into(), 0)));
    let processes =
        if case.workers > 1 { format!(", {} processes", case.workers) } else { String::new() };
    let jobs = match case.jobs {
        0 => "no jobs".to_owned(),
        1 => "1 job".to_owned(),
        jobs => format!("{} jobs", number(jobs as f64, 0)),
    };
    format!(
        "{jobs} of {} bytes{}, prefetch {}, concurrency {}{processes}, {} round{}",
        number(case.payload as f64, 0),
        rate.unwrap_or_default(),
        case.prefetch,
        case.concurrency,
        result.rounds,
        if result.rounds == 1 { "" } else { "s" }
    )
}

/// Where and with what, as pairs.
pub(crate) fn circumstances(record: &Record) -> Vec<(&'static str, String)> {
    let machine = &record.machine;
    let load = |load: Option<f64>| load.map_or_else(|| "?".to_owned(), |load| format!("{load:.2}"));
    let processor =
        if machine.processor.is_empty() { "unknown processor" } else { &machine.processor };
    vec![
        ("Forebay", record.forebay.clone()),
        ("broker", record.broker.clone()),
        ("compiler", record.rustc.clone()),
        (
            "machine",
            format!(
                "{processor}, {} threads, {} GB, {}",
                machine.cores, machine.memory_gb, machine.system
            ),
        ),
        (
            "load average before and after",
            format!("{} and {}", load(machine.load[0]), load(machine.load[1])),
        ),
        ("began", record.began.clone()),
        ("took", format!("{:.0} s", record.seconds)),
        ("command", record.command.clone()),
    ]
}

/// A ratio with its interval.
pub(crate) fn with_interval(found: &Estimate) -> String {
    format!("{:.2} [{}]", found.median, interval(found))
}

fn interval(found: &Estimate) -> String {
    format!("{:.2} to {:.2}", found.low, found.high)
}

/// `12,345.6`.
fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::digest::{self, tests::drained};

    #[test]
    fn numbers_are_grouped() {
        let words = [(0.0, 0), (999.4, 0), (1234.56, 1), (1_234_567.0, 0)]
            .map(|(value, digits)| number(value, digits));
        assert_eq!(words, ["0", "999", "1,234.6", "1,234,567"]);
    }

    #[test]
    fn each_contestant_has_a_row_and_the_references_a_ratio() {
        let results = digest::results(&drained(&[[900.0, 1000.0, 300.0]]));
        let cells = result(&results[0]);
        assert_eq!(cells.header, ["contestant", "jobs/s", "CPU µs/job", "Forebay ÷ it, jobs/s"]);
        assert_eq!(cells.rows[0], ["Forebay", "900", "1,111.1", ""]);
        assert_eq!(cells.rows[2][3], "3.00 [3.00 to 3.00]");
        assert_eq!(
            settings(&results[0]),
            "20,000 jobs of 200 bytes, prefetch 200, concurrency 64, 1 round"
        );
    }

    #[test]
    fn a_target_says_what_was_wanted_and_found() {
        let results = digest::results(&drained(&[[900.0, 1000.0, 300.0]; 6]));
        let cells = targets(&digest::targets(&results));
        assert_eq!(cells.rows[0][2..], ["≥ 0.95", "0.90", "0.90 to 0.90", "no"]);
    }
}
