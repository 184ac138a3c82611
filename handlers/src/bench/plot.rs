//! Plots as SVG, of a few lines, bars and words.
//! In: results. Out: the text of a file; pure.

use std::fmt::Write;

use super::digest::Result;
use super::order::Contestant;
use super::record::Measured;
use super::scenario::{Figure, Scenario};
use super::stats::Estimate;

const WIDTH: f64 = 860.0;
const LABELS: f64 = 400.0;
const ROW: f64 = 22.0;
const TOP: f64 = 46.0;
const STYLE: &str = "text{font:12px sans-serif;fill:#333}.title{font-weight:bold}\
                     .small{font-size:11px;fill:#666}";
/// For the lines of a plot; told apart by those who see no colours, too, by their order.
const COLOURS: [&str; 3] = ["#0b6e4f", "#b5541c", "#4a5a9a"];

/// Every ratio with its interval, on one scale that doubles from line to line.
pub(crate) fn ratios(results: &[Result]) -> Option<String> {
    let rows: Vec<(String, Figure, Estimate)> = results.iter().flat_map(rows).collect();
    let least = rows.iter().map(|(.., found)| found.low).fold(0.5, f64::min).max(0.01);
    let most = rows.iter().map(|(.., found)| found.high).fold(2.0, f64::max).min(1_000.0);
    let (from, to) = (least.log2().floor(), most.log2().ceil());
    let x = |ratio: f64| {
        let share = (ratio.clamp(0.01, 1_000.0).log2() - from) / (to - from);
        LABELS + share * (WIDTH - LABELS - 30.0)
    };
    if rows.is_empty() {
        return None;
    }
    let height = TOP + ROW * rows.len() as f64 + 24.0;
    let title =
        "Forebay ÷ reference: median and 95 % interval. Green: more is better; brown: less is";
    let mut svg = begin(height, title);
    for power in from as i32..=to as i32 {
        let (at, ratio) = (x(2f64.powi(power)), 2f64.powi(power));
        let colour = if power == 0 { "#333" } else { "#ddd" };
        line(&mut svg, (at, TOP - 8.0), (at, height - 20.0), colour, 1.0);
        words(&mut svg, at, height - 6.0, "middle", "small", &ratio.to_string());
    }
    for (place, (label, figure, found)) in rows.iter().enumerate() {
        let y = TOP + ROW * place as f64 + ROW / 2.0;
        words(&mut svg, LABELS - 14.0, y + 4.0, "end", "", label);
        let colour = COLOURS[usize::from(!figure.more_is_better())];
        line(&mut svg, (x(found.low), y), (x(found.high), y), colour, 3.0);
        circle(&mut svg, x(found.median), y, colour);
    }
    Some(svg + "</svg>\n")
}

fn rows(result: &Result) -> Vec<(String, Figure, Estimate)> {
    let main = result.case.scenario.main_figure();
    let row = |(who, figures): (&Contestant, &std::collections::BTreeMap<_, _>)| {
        let found: &Estimate = figures.get(&main)?;
        let label = format!("{}, {} ÷ {}", result.case, main.label(), who.label());
        Some((label, main, *found))
    };
    result.ratios.iter().filter_map(row).collect()
}

/// How the backlog of each contestant's burst rose and fell, in the round in the middle.
pub(crate) fn backlog(measured: &[Measured]) -> Option<String> {
    let burst = measured.iter().find(|one| one.case.scenario == Scenario::Burst)?;
    let round = burst.rounds.get(burst.rounds.len() / 2)?;
    let points = || round.runs.values().flat_map(|run| &run.backlog);
    let longest = points().map(|(second, _)| *second).fold(0.0, f64::max);
    let most = points().map(|(_, waiting)| f64::from(*waiting)).fold(0.0, f64::max);
    if longest <= 0.0 || most <= 0.0 {
        return None;
    }
    let (left, bottom, height) = (70.0, 300.0, 330.0);
    let title = format!("{}: jobs that wait, by seconds since the first publish", burst.case);
    let mut svg = begin(height, &title);
    let x = |second: f64| left + second / longest * (WIDTH - left - 180.0);
    let y = |waiting: f64| bottom - waiting / most * (bottom - TOP);
    line(&mut svg, (left, bottom), (WIDTH - 180.0, bottom), "#333", 1.0);
    line(&mut svg, (left, TOP), (left, bottom), "#333", 1.0);
    words(&mut svg, left - 6.0, TOP + 4.0, "end", "small", &format!("{most:.0}"));
    words(&mut svg, left - 6.0, bottom, "end", "small", "0");
    words(&mut svg, WIDTH - 180.0, bottom + 18.0, "middle", "small", &format!("{longest:.1} s"));
    for (place, (who, run)) in round.runs.iter().enumerate() {
        let colour = COLOURS[place % COLOURS.len()];
        let path: Vec<String> = run
            .backlog
            .iter()
            .map(|(second, waiting)| format!("{:.1},{:.1}", x(*second), y((*waiting).into())))
            .collect();
        let path = path.join(" ");
        // Writing to a string does not fail.
        _ = writeln!(
            svg,
            "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        );
        let row = TOP + ROW * place as f64;
        line(&mut svg, (WIDTH - 170.0, row), (WIDTH - 150.0, row), colour, 3.0);
        words(&mut svg, WIDTH - 144.0, row + 4.0, "start", "", who.label());
    }
    Some(svg + "</svg>\n")
}

fn begin(height: f64, title: &str) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\">\n<style>{STYLE}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    words(&mut svg, 14.0, 22.0, "start", "title", title);
    svg
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
    _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" \
         stroke-width=\"{width}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn circle(svg: &mut String, x: f64, y: f64, colour: &str) {
    _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{colour}\"/>");
}

fn words(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{text}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::digest::{self, tests::drained};

    #[test]
    fn each_ratio_has_a_dot_a_bar_and_a_label() {
        let results = digest::results(&drained(&[[900.0, 1000.0, 300.0], [950.0, 1000.0, 400.0]]));
        let svg = ratios(&results).unwrap();
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("drain quorum, jobs/s ÷ lapin, batched acks"), "{svg}");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn there_is_no_plot_of_nothing() {
        assert_eq!(ratios(&[]), None);
        assert_eq!(backlog(&drained(&[[1.0, 1.0, 1.0]]).cases), None);
    }

    #[test]
    fn a_burst_has_a_line_for_each_contestant() {
        let mut record = drained(&[[900.0, 1000.0, 300.0]]);
        record.cases[0].case.scenario = Scenario::Burst;
        for run in record.cases[0].rounds[0].runs.values_mut() {
            run.backlog = vec![(0.0, 0), (0.5, 100), (1.0, 0)];
        }
        assert_eq!(backlog(&record.cases).unwrap().matches("<polyline").count(), 3);
    }
}
