//! What the runs come to: a row for each fault, and what is wrong with a red one.
//! In: verdicts. Out: a table, also between the two markers of the document.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use crate::checker::Verdict;
use crate::fault::Fault;

const BEGIN: &str = "<!-- table of docker/faults.sh: the gateway -->\n";
const END: &str = "<!-- end of the gateway's table -->";

const HEAD: [&str; 10] = [
    "fault",
    "runs",
    "clients",
    "sessions",
    "events",
    "handed out",
    "lost",
    "doubled in a session, or out of order",
    "once more in a later session",
    "recovery, median / longest",
];

type Line = [String; HEAD.len()];

/// All runs of one fault.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    runs: usize,
    /// Runs that broke a promise, or could not be carried out.
    pub(crate) red: usize,
    clients: usize,
    sessions: usize,
    events: usize,
    handed: usize,
    lost: usize,
    doubled: usize,
    again: usize,
    recoveries: Vec<Duration>,
}

impl Row {
    pub(crate) fn new(fault: &Fault) -> Self {
        Self {
            name: fault.name,
            runs: 0,
            red: 0,
            clients: 0,
            sessions: 0,
            events: 0,
            handed: 0,
            lost: 0,
            doubled: 0,
            again: 0,
            recoveries: Vec::new(),
        }
    }

    /// Takes a verdict, or the lack of one.
    pub(crate) fn add(&mut self, verdict: Option<&Verdict>) {
        self.runs += 1;
        self.red += usize::from(verdict.is_none_or(Verdict::is_red));
        let Some(verdict) = verdict else { return };
        self.clients += verdict.clients;
        self.sessions += verdict.sessions;
        self.events += verdict.events;
        self.handed += verdict.handed;
        self.lost += verdict.lost.len();
        self.doubled += verdict.doubled.len() + verdict.disordered.len();
        self.again += verdict.again.len();
        self.recoveries.extend(verdict.recovery);
        self.recoveries.sort();
    }

    fn line(&self) -> Line {
        let seconds = |time: &Duration| format!("{:.2} s", time.as_secs_f64());
        let median = self.recoveries.get(self.recoveries.len() / 2);
        let recovery = match (median, self.recoveries.last()) {
            (Some(median), Some(last)) => format!("{} / {}", seconds(median), seconds(last)),
            _ => "–".to_owned(),
        };
        let numbers = [
            self.runs,
            self.clients,
            self.sessions,
            self.events,
            self.handed,
            self.lost,
            self.doubled,
            self.again,
        ];
        let mark = if self.red > 0 { " ✗" } else { "" };
        let mut line = Line::default();
        line[0] = format!("{}{mark}", self.name);
        line[1..9].clone_from_slice(&numbers.map(|number| number.to_string()));
        line[9] = recovery;
        line
    }
}

/// As Markdown that can be read in a terminal, too.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::line));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<_> = (0..HEAD.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for (n, line) in lines.iter().enumerate() {
        for (column, (text, width)) in line.iter().zip(&widths).enumerate() {
            let fill = " ".repeat(width - text.chars().count());
            _ = match column {
                0 => write!(out, "| {text}{fill} |"),
                _ => write!(out, " {fill}{text} |"),
            };
        }
        out.push('\n');
        if n == 0 {
            let rule = |(column, width): (usize, &usize)| match column {
                0 => format!("|{}", "-".repeat(width + 2)),
                _ => format!("|{}:", "-".repeat(width + 1)),
            };
            out.extend(widths.iter().enumerate().map(rule));
            out.push_str("|\n");
        }
    }
    out
}

/// What is wrong with a run.
pub(crate) fn report(verdict: &Verdict) -> String {
    let mut out = String::new();
    for (what, all) in [
        ("lost", &verdict.lost),
        ("twice in one session", &verdict.doubled),
        ("out of order, or before the token", &verdict.disordered),
        ("once more in a later session", &verdict.again),
        ("broken", &verdict.broken),
    ] {
        if !all.is_empty() {
            let some: Vec<_> = all.iter().take(20).map(|one| format!("\n    {one}")).collect();
            _ = writeln!(out, "  {what}: {}{}", all.len(), some.concat());
        }
    }
    out
}

/// Puts the table into the document, with what was run.
pub(crate) fn write(path: &Path, rows: &[Row], ran: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).context("reading the document")?;
    let (before, rest) = text.split_once(BEGIN).context("the first marker is missing")?;
    let (_, after) = rest.split_once(END).context("the second marker is missing")?;
    let table = markdown(rows);
    Ok(std::fs::write(path, format!("{before}{BEGIN}\n{table}\n{ran}\n\n{END}{after}"))?)
}
