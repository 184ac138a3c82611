//! `docs/benchmarks.md`, made from a run.
//! In: a record, and what stands in the file already. Out: the file's new text; what does not come
//! from here stays. Pure but for [`write`].

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use super::cells::{self, Cells};
use super::digest;
use super::plot;
use super::record::Record;
use super::scenario::Scenario;

const BEGIN: &str =
    "<!-- Made by `forebay bench --write`; what is written here by hand is lost. -->";
const END: &str = "<!-- End of what `forebay bench --write` makes. -->";
const TITLE: &str = "# Benchmarks\n\n";

/// Writes the document, and its plots beside it.
///
/// # Errors
/// When a file cannot be read or written, in words.
pub(crate) fn write(file: &Path, record: &Record) -> Result<(), String> {
    let name = file.file_stem().and_then(|name| name.to_str()).unwrap_or("benchmarks");
    let ratios = plot::ratios(&digest::results(record));
    let backlog = plot::backlog(&record.cases);
    let mut plots = Vec::new();
    for (suffix, what, svg) in
        [("", "Ratios with their intervals", ratios), ("-burst", "Backlog of a burst", backlog)]
    {
        if let Some(svg) = svg {
            let image = format!("{name}{suffix}.svg");
            put(&file.with_file_name(&image), &svg)?;
            plots.push((what, image));
        }
    }
    let before = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => TITLE.to_owned(),
        Err(error) => return Err(format!("cannot read {}: {error}", file.display())),
    };
    put(file, &replace(&before, &document(record, &plots)))
}

/// Whether [`write`] could do it; leaves no file where there was none.
///
/// # Errors
/// As [`write`].
pub(crate) fn writable(file: &Path) -> Result<(), String> {
    let there = file.exists();
    let opened = fs::OpenOptions::new().append(true).create(true).open(file);
    opened.map_err(|error| refused(file, &error))?;
    if !there {
        _ = fs::remove_file(file);
    }
    Ok(())
}

fn put(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|error| refused(file, &error))
}

fn refused(file: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}; name a file in a folder that is there", file.display())
}

/// Puts `made` where the last one was, else at the end.
fn replace(before: &str, made: &str) -> String {
    let made = format!("{BEGIN}\n\n{}\n\n{END}", made.trim());
    let old = before.find(BEGIN).zip(before.find(END));
    match old {
        Some((from, to)) if from < to => {
            format!("{}{made}{}", &before[..from], &before[to + END.len()..])
        }
        _ => format!("{}\n\n{made}\n", before.trim_end()),
    }
}

fn document(record: &Record, plots: &[(&str, String)]) -> String {
    let results = digest::results(record);
    let targets = digest::targets(&results);
    let mut text = String::new();
    // Writing to a string does not fail.
    _ = writeln!(text, "{INTRODUCTION}\n");
    let rows = cells::circumstances(record);
    let rows = rows.into_iter().map(|(what, value)| vec![what.to_owned(), value]).collect();
    _ = writeln!(text, "{}", table(&Cells { header: vec![String::new(); 2], rows }));
    for note in record.notes.iter().chain(&record.cut_short) {
        _ = writeln!(text, "- {note}");
    }
    if !targets.is_empty() {
        _ = writeln!(text, "\n## Targets\n\n{}", table(&cells::targets(&targets)));
    }
    for (what, image) in plots {
        _ = writeln!(text, "![{what}]({image})\n");
    }
    for scenario in Scenario::ALL {
        let mut those = results.iter().filter(|one| one.case.scenario == scenario).peekable();
        if those.peek().is_none() {
            continue;
        }
        _ = writeln!(text, "## {}\n\n{}\n", scenario.name(), scenario.description());
        for result in those {
            let settings = cells::settings(result);
            let body = table(&cells::result(result));
            _ = writeln!(text, "**{}**: {settings}\n\n{body}", result.case);
        }
    }
    text
}

fn table(cells: &Cells) -> String {
    let line = |words: &[String]| {
        let words: Vec<_> = words.iter().map(|word| word.replace('|', "\\|")).collect();
        format!("| {} |\n", words.join(" | "))
    };
    let rule = format!("|{}\n", " --- |".repeat(cells.header.len()));
    let rows: String = cells.rows.iter().map(|row| line(row)).collect();
    line(&cells.header) + &rule + &rows
}

const INTRODUCTION: &str = "\
Everything here was measured by the command below, and can be measured again by anyone: it needs a \
RabbitMQ that nobody else uses, and nothing more. From here to the end mark, `forebay bench --write \
docs/benchmarks.md` makes this page anew, with the plots; `--scenario all --time-limit 2h` adds what \
is about no target, and `--queue-type quorum --rounds 6 --jobs 5000 --during 1s` gives a first look. `forebay bench \
--output json > run.json` keeps every run, and `forebay bench --from run.json --write \
docs/benchmarks.md` makes the page of it, or of several such runs. Build with `cargo build --release`.

Queues are durable, messages persistent, publisher confirms on. Each contestant runs in a process \
of its own, whose CPU time and memory are counted. Forebay runs as `forebay-run` does: retries, log \
at level info, metrics kept and folded. The reference is the client library, lapin, alone, with the \
same prefetch, payload and JSON. A round holds one run of each, in alternating order, and a ratio \
compares runs of one round: rates swing from round to round, ratios less. Given are medians, and \
the 95 % interval of a bootstrap. A target is met when the better end of the interval reaches it. \
After each run the queue must hold what it should; one in which jobs came back is repeated and \
noted, one in which jobs are missing ends the benchmark. 1 MB is 1,000,000 bytes.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::digest::tests::drained;

    #[test]
    fn it_names_machine_versions_command_and_figures() {
        let record = drained(&[[900.0, 1000.0, 300.0]; 6]);
        let text = document(&record, &[("Ratios", "x.svg".to_owned())]);
        for words in [
            "| broker | RabbitMQ 4.3.6 |",
            "| command | forebay bench |",
            "| compiler | rustc 1.99.0 |",
            "- a note",
            "## Targets",
            "| drain ÷ lapin, batched acks | quorum | ≥ 0.95 | 0.90 | 0.90 to 0.90 | no |",
            "![Ratios](x.svg)",
            "**drain quorum**: 20,000 jobs of 200 bytes",
            "| lapin, each ack awaited | 300 |",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
    }

    #[test]
    fn what_others_have_written_stays() {
        let first = replace("# Benchmarks\n\nOurs.\n", "one");
        assert!(first.starts_with("# Benchmarks\n\nOurs.\n\n<!-- Made"), "{first}");
        let edited = format!("{first}\n## Peers\n");
        let second = replace(&edited, "two");
        assert!(second.contains("Ours.") && second.ends_with("-->\n\n## Peers\n"), "{second}");
        assert!(second.contains("two") && !second.contains("one"), "{second}");
        assert_eq!(replace(&second, "two"), second);
    }

    #[test]
    fn a_document_and_its_plots_are_written_side_by_side() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("benchmarks.md");
        write(&file, &drained(&[[900.0, 1000.0, 300.0]])).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("# Benchmarks\n") && text.contains("](benchmarks.svg)"), "{text}");
        assert!(folder.path().join("benchmarks.svg").exists());
        let nowhere = folder.path().join("no/benchmarks.md");
        let error = write(&nowhere, &drained(&[])).unwrap_err();
        assert!(error.contains("no/benchmarks.md"), "{error}");
        assert_eq!(writable(&nowhere), Err(error));
        let fresh = folder.path().join("fresh.md");
        assert_eq!((writable(&file), writable(&fresh)), (Ok(()), Ok(())));
        assert!(!fresh.exists() && fs::read_to_string(&file).unwrap() == text);
    }
}
