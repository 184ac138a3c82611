//! What the runs come to: a row for each fault, and everything there is to know about a red one.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::checker::Verdict;
use crate::fault::{Fault, Ground};
use crate::record;

/// One line of the table.
pub(crate) type Line = [String; 10];

/// From the first answer of the broker to consuming again.
const LIMIT: Duration = Duration::from_secs(2);

/// On a cluster it is counted from the loss of a node, and another leader has to be elected first.
const LIMIT_OF_A_CLUSTER: Duration = Duration::from_secs(5);

/// How long recovery from a fault may take.
pub(crate) fn limit(fault: &Fault) -> Duration {
    if fault.ground == Ground::Cluster { LIMIT_OF_A_CLUSTER } else { LIMIT }
}

/// All runs of one fault.
pub(crate) struct Row {
    pub(crate) fault: &'static Fault,
    pub(crate) runs: usize,
    jobs: usize,
    lost: usize,
    held: usize,
    destroyed: usize,
    dead: usize,
    again: usize,
    unexplained: usize,
    after_end: usize,
    recoveries: Vec<Duration>,
    /// Runs that broke a promise, or could not be carried out.
    pub(crate) red: usize,
}

impl Row {
    pub(crate) fn new(fault: &'static Fault) -> Self {
        Self {
            fault,
            runs: 0,
            jobs: 0,
            lost: 0,
            held: 0,
            destroyed: 0,
            dead: 0,
            again: 0,
            unexplained: 0,
            after_end: 0,
            recoveries: Vec::new(),
            red: 0,
        }
    }

    pub(crate) fn add(&mut self, verdict: &Verdict) {
        self.runs += 1;
        self.jobs += verdict.confirmed;
        self.lost += verdict.lost.len();
        self.held += verdict.held;
        self.destroyed += verdict.destroyed;
        self.dead += verdict.dead;
        self.again += verdict.again.len();
        self.unexplained += verdict.again.iter().filter(|(_, why)| why.is_none()).count();
        self.after_end += verdict.after_end;
        self.recoveries.extend(verdict.recovery);
        self.red += usize::from(verdict.is_red());
    }

    /// The longest recovery over all runs.
    pub(crate) fn recovery(&self) -> Option<Duration> {
        self.recoveries.iter().max().copied()
    }

    pub(crate) fn is_late(&self) -> bool {
        self.recoveries.iter().any(|time| *time > limit(self.fault))
    }

    fn line(&self) -> Line {
        let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
        let mut sorted = self.recoveries.clone();
        sorted.sort();
        let median = sorted.get(sorted.len() / 2).copied();
        let recovery = match (median, self.recovery()) {
            (Some(median), Some(longest)) => format!("{} / {}", seconds(median), seconds(longest)),
            _ => "–".to_owned(),
        };
        let mark = if self.red > 0 { " ✗" } else { "" };
        [
            format!("{}{mark}", self.fault.name),
            self.runs.to_string(),
            self.jobs.to_string(),
            self.lost.to_string(),
            self.held.to_string(),
            self.destroyed.to_string(),
            self.dead.to_string(),
            format!("{} ({})", self.again, self.after_end),
            self.unexplained.to_string(),
            recovery,
        ]
    }
}

pub(crate) const HEAD: [&str; 10] = [
    "fault",
    "runs",
    "jobs",
    "lost",
    "held",
    "destroyed by operator",
    "dead",
    "run again (after their end)",
    "of these without need",
    "recovery, median / longest",
];

/// The lines, and of each fault with second runs why there are any.
pub(crate) fn of(rows: &[Row]) -> (Vec<Line>, Vec<String>) {
    let why = |row: &Row| format!("- **{}:** {}\n", row.fault.name, row.fault.duplicates);
    let legend = rows.iter().filter(|row| row.again > 0).map(why).collect();
    (rows.iter().map(Row::line).collect(), legend)
}

/// As Markdown that can be read in a terminal, too.
pub(crate) fn markdown(lines: &[Line]) -> String {
    let width = |column: usize| {
        let longest = lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        longest.max(HEAD[column].chars().count())
    };
    let line = |texts: &Line| {
        let padded = texts.iter().enumerate().map(|(column, text)| {
            let fill = " ".repeat(width(column) - text.chars().count());
            if column == 0 { format!("{text}{fill}") } else { format!("{fill}{text}") }
        });
        format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
    };
    let mut out = line(&HEAD.map(str::to_owned));
    let rules = (0..HEAD.len()).map(|column| {
        let dashes = "-".repeat(width(column) + 1);
        if column == 0 { format!("{dashes}-") } else { format!("{dashes}:") }
    });
    _ = writeln!(out, "|{}|", rules.collect::<Vec<_>>().join("|"));
    lines.iter().for_each(|texts| out.push_str(&line(texts)));
    out
}

/// A red run: what is wrong, with the record of each job that it is about.
pub(crate) fn report(fault: &Fault, verdict: &Verdict, folder: &Path, seed: u64) -> String {
    let mut out = String::new();
    let mut say = |what: &str, ids: &[String]| {
        if !ids.is_empty() {
            _ = writeln!(out, "  {what}: {}", ids.join(", "));
        }
    };
    let unexplained = verdict.again.iter().filter(|(_, why)| why.is_none());
    let unexplained: Vec<_> = unexplained.map(|(id, _)| id.clone()).collect();
    let dead = verdict.dead_in_error.iter().map(|(id, reason)| format!("{id} ({reason})"));
    say("lost", &verdict.lost);
    say("said not to have been sent, and yet there", &verdict.denied);
    say("run again without need", &unexplained);
    say("dead without a reason of their own", &dead.collect::<Vec<_>>());
    say("silent workers", &verdict.silent);
    say("broken", &verdict.broken);
    if let Some(late) = verdict.recovery.filter(|time| *time > limit(fault)) {
        say("consuming again only after", &[format!("{late:.2?}")]);
    }
    _ = writeln!(out, "  seed {seed}; records and logs of the workers: {}", folder.display());
    let suspicious = verdict.suspicious();
    let entries = record::read_all(folder).unwrap_or_default();
    let about = |entry: &&record::Entry| {
        entry.event.id().is_none_or(|id| suspicious.iter().take(10).any(|known| *known == id))
    };
    for entry in entries.iter().filter(about) {
        _ = write!(out, "    {}", entry.to_line());
    }
    out
}
