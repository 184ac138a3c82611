//! The document that holds the table of the long form.
//! In: the rows of a run. Out: its table, its legend and what was run, between the two markers. A
//! run of some faults replaces their rows and leaves those of the others.

use std::path::Path;

use anyhow::Context as _;

use crate::fault;
use crate::table::{self, HEAD, Line, Row};

const BEGIN: &str = "<!-- table of docker/faults.sh -->\n";
const END: &str = "<!-- end of the table -->";

/// What was run.
pub(crate) struct Told {
    /// Which faults; a later run of the same ones replaces this.
    pub(crate) what: String,
    pub(crate) rest: String,
    pub(crate) whole: bool,
}

/// Puts the table between its two markers.
pub(crate) fn write(path: &Path, rows: &[Row], told: &Told) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).context("reading the document")?;
    let (before, rest) = text.split_once(BEGIN).context("the first marker is missing")?;
    let (known, after) = rest.split_once(END).context("the second marker is missing")?;
    let known = if told.whole { "" } else { known };
    let names: Vec<_> = fault::all().iter().map(|fault| fault.name).collect();
    let section = merged(known, table::of(rows), told, &names);
    std::fs::write(path, format!("{before}{BEGIN}\n{section}\n{END}{after}"))?;
    Ok(())
}

/// The section: what is known of other faults stays. `names` are in the table's order.
fn merged(
    known: &str,
    (lines, legend): (Vec<Line>, Vec<String>),
    told: &Told,
    names: &[&str],
) -> String {
    let ran: Vec<_> = lines.iter().map(|line| fault_of(&line[0]).to_owned()).collect();
    let ran_now = |line: &Line| ran.iter().any(|name| name == fault_of(&line[0]));
    let others = known.lines().filter_map(cells).filter(|line| !ran_now(line));
    let mut lines: Vec<Line> = lines.into_iter().chain(others).collect();
    let place = |name: &str| names.iter().position(|known| *known == name);
    lines.retain(|line| place(fault_of(&line[0])).is_some());
    lines.sort_by_key(|line| place(fault_of(&line[0])));
    let about = |line: &str, name: &str| line.starts_with(&format!("- **{name}:**"));
    let of_others = |line: &&str| !ran.iter().any(|name| about(line, name));
    let other_legend = known.lines().filter(|line| line.starts_with("- **")).filter(of_others);
    let mut legend = legend;
    legend.extend(other_legend.map(|line| format!("{line}\n")));
    legend.retain(|line| names.iter().any(|name| about(line, name)));
    legend.sort_by_key(|line| names.iter().position(|name| about(line, name)));
    let old = known
        .lines()
        .filter(|line| line.contains(", seed ") && !line.starts_with(&format!("{}: ", told.what)));
    let runs: String = old.map(|line| format!("{line}\n\n")).collect();
    let run = format!("{}: {}", told.what, told.rest);
    format!("{}\n{runs}{run}\n\n{}", table::markdown(&lines), legend.concat())
}

/// The fault of a row, without the mark of a red one.
fn fault_of(cell: &str) -> &str {
    cell.trim_end_matches(" ✗")
}

/// The cells of a line of the table; not those of its head.
fn cells(line: &str) -> Option<Line> {
    let inner = line.strip_prefix("| ")?.strip_suffix(" |")?;
    let cells: Vec<_> = inner.split(" | ").map(|cell| cell.trim().to_owned()).collect();
    let line = Line::try_from(cells).ok()?;
    (line[0] != HEAD[0]).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, runs: &str) -> Line {
        let mut line = [(); 10].map(|()| "0".to_owned());
        (line[0], line[1]) = (name.to_owned(), runs.to_owned());
        line
    }

    fn why(name: &str) -> String {
        format!("- **{name}:** As it is.\n")
    }

    fn told(what: &str, seed: u32) -> Told {
        Told { what: what.to_owned(), rest: format!("1 minutes, seed {seed}."), whole: false }
    }

    const NAMES: [&str; 3] = ["cut", "worker killed", "worker frozen"];

    fn told_of(section: &str) -> Vec<(String, String)> {
        section.lines().filter_map(cells).map(|[name, runs, ..]| (name, runs)).collect()
    }

    #[test]
    fn a_run_of_some_faults_replaces_their_rows_and_keeps_the_others_in_order() {
        let first = (vec![line("worker frozen ✗", "5"), line("cut", "7")], vec![why("cut")]);
        let first = merged("No long run yet.", first, &told("All faults", 1), &NAMES);
        assert!(!first.contains("No long run"));
        let again = vec![line("worker killed", "1"), line("worker frozen", "9")];
        let again = (again, vec![why("worker killed")]);
        let second = merged(&first, again, &told("Workers", 2), &NAMES);
        let rows = [("cut", "7"), ("worker killed", "1"), ("worker frozen", "9")];
        assert_eq!(told_of(&second), rows.map(|(name, runs)| (name.into(), runs.into())));
        assert!(second.ends_with(&format!("{}{}", why("cut"), why("worker killed"))), "{second}");
        assert!(second.contains("All faults: 1 minutes, seed 1.\n\nWorkers: 1 minutes, seed 2.\n"));
        let third = merged(&second, (Vec::new(), Vec::new()), &told("Workers", 3), &NAMES);
        assert_eq!((told_of(&third), third.matches("Workers:").count()), (told_of(&second), 1));
    }

    #[test]
    fn a_fault_that_is_there_no_more_leaves_the_table() {
        let known = merged("", (vec![line("cut", "7")], vec![why("cut")]), &told("x", 1), &NAMES);
        let after = merged(&known, (vec![], vec![]), &told("y", 2), &["worker killed"]);
        assert!(!after.contains("cut"), "{after}");
    }
}
