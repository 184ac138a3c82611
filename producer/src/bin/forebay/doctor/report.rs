//! The doctor's screen.
//! In: findings. Out: lines for people, wrapped to the terminal and coloured there; JSON for
//! programs.

use std::env;
use std::fmt::Write;
use std::io::{self, IsTerminal};

use serde_json::{Value, json};

use super::finding::{Finding, Findings, Level};
use crate::exit::Stop;
use crate::screen;

/// Room for the longest word before a sentence.
const INDENT: usize = 11;

pub(super) fn for_people(findings: &Findings) -> Result<(), Stop> {
    let (width, colour) = (screen::terminal_width(), coloured());
    screen::say(text(findings, width, colour).trim_end())
}

pub(super) fn as_json(findings: &Findings) -> Value {
    json!({
        "worst": findings.worst(),
        "faults": findings.count(Level::Fault),
        "warnings": findings.count(Level::Warning),
        "checks": ordered(findings),
    })
}

/// By section; within one as they were found.
fn ordered(findings: &Findings) -> Vec<&Finding> {
    const SECTIONS: [&str; 7] =
        ["settings", "manifest", "broker", "topology", "queues", "management", "permissions"];
    let mut ordered: Vec<_> = findings.0.iter().collect();
    ordered.sort_by_key(|finding| SECTIONS.iter().position(|one| *one == finding.section()));
    ordered
}

/// Commands stand on lines of their own and are never broken: they are there to be copied.
fn text(findings: &Findings, width: Option<usize>, colour: bool) -> String {
    let mut text = String::new();
    let mut section = "";
    for finding in ordered(findings) {
        if finding.section() != section {
            let gap = if section.is_empty() { "" } else { "\n" };
            section = finding.section();
            _ = writeln!(text, "{gap}{section}");
        }
        let word = format!("  {:<9}", word(finding.level));
        let word = if colour { painted(&word, finding.level) } else { word };
        let room = width.map_or(usize::MAX, |width| width.saturating_sub(INDENT).max(20));
        let lines = wrapped(&screen::printable(&finding.what), room);
        _ = writeln!(text, "{word}{}", lines.join(&format!("\n{:INDENT$}", "")));
        for command in &finding.mend {
            _ = writeln!(text, "{:INDENT$}$ {}", "", screen::printable(command));
        }
    }
    _ = writeln!(text, "\n{}", verdict(findings));
    text
}

fn verdict(findings: &Findings) -> String {
    let (faults, warnings) = (findings.count(Level::Fault), findings.count(Level::Warning));
    if faults + warnings == 0 {
        return "all is well".to_owned();
    }
    let faults = screen::count(faults, "fault", "faults");
    let warnings = screen::count(warnings, "warning", "warnings");
    let mendable = findings
        .0
        .iter()
        .any(|Finding { mend, level, .. }| *level >= Level::Warning && !mend.is_empty());
    let how = if mendable { "; the lines with $ mend them" } else { "" };
    format!("{faults}, {warnings}{how}")
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Note => "note",
        Level::Warning => "warning",
        Level::Fault => "fault",
    }
}

fn painted(word: &str, level: Level) -> String {
    let colour = match level {
        Level::Ok => "32",
        Level::Note => "36",
        Level::Warning => "33",
        Level::Fault => "1;31",
    };
    format!("\u{1b}[{colour}m{word}\u{1b}[0m")
}

/// On a terminal, unless <https://no-color.org> says otherwise.
fn coloured() -> bool {
    let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
}

fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is always one");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sick() -> Findings {
        Findings(vec![
            Finding::ok("broker.version", "RabbitMQ 4.3.6"),
            Finding::fault("topology.queue", "queue `forebay.mail` is not on the broker at all")
                .mend("forebay topology apply --queue mail"),
            Finding::warning("topology.policy", "a\u{1b}[2J policy"),
        ])
    }

    #[test]
    fn sentences_are_wrapped_and_commands_are_not() {
        let expected = "\
broker
  ok       RabbitMQ 4.3.6

topology
  fault    queue `forebay.mail`
           is not on the broker
           at all
           $ forebay topology apply --queue mail
  warning  a\\u{1b}[2J policy

1 fault, 1 warning; the lines with $ mend them
";
        assert_eq!(text(&sick(), Some(33), false), expected);
    }

    #[test]
    fn without_a_width_lines_are_whole_and_colours_are_an_extra() {
        let plain = text(&sick(), None, false);
        assert!(plain.contains("  fault    queue `forebay.mail` is not on the broker at all\n"));
        assert!(!plain.contains('\u{1b}'));
        assert!(text(&sick(), None, true).contains("\u{1b}[1;31m  fault"));
        assert!(text(&Findings::default(), None, false).ends_with("all is well\n"));
    }

    #[test]
    fn programs_get_the_same_with_the_worst_first() {
        let value = as_json(&sick());
        assert_eq!((&value["worst"], &value["faults"]), (&json!("fault"), &json!(1)));
        assert_eq!(value["checks"][1]["id"], "topology.queue");
        assert_eq!(value["checks"][1]["mend"], json!(["forebay topology apply --queue mail"]));
    }
}
