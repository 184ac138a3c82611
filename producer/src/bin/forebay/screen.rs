//! What is printed: results to stdout, everything else to stderr.
//! In: text, rows, JSON. Out: the same on the screen; a reader who has gone ends us quietly.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tracing_subscriber::EnvFilter;

use crate::exit::Stop;

/// Prints a line of the result.
pub(crate) fn say(line: impl Display) -> Result<(), Stop> {
    write_line(&mut io::stdout().lock(), line)
}

/// Writes a line of the result, to wherever it goes.
pub(crate) fn write_line(to: &mut impl Write, line: impl Display) -> Result<(), Stop> {
    writeln!(to, "{line}").map_err(|error| unwritten(&error))
}

/// Why a result could not be written.
pub(crate) fn unwritten(error: &io::Error) -> Stop {
    match error.kind() {
        ErrorKind::BrokenPipe => Stop::ClosedPipe,
        _ => Stop::Failed(format!("cannot write the result: {error}")),
    }
}

/// Says something that is no result. Nothing is lost if nobody listens.
pub(crate) fn note(line: impl Display) {
    _ = writeln!(io::stderr().lock(), "{line}");
}

/// Says something that only a person before the screen wants to know.
pub(crate) fn aside(line: impl Display) {
    if io::stderr().is_terminal() {
        note(line);
    }
}

/// Prints one JSON value on one line.
pub(crate) fn say_json(value: &Value) -> Result<(), Stop> {
    say(value)
}

/// Prints a table. On a terminal lines are cut to its width; elsewhere they are whole.
pub(crate) fn say_table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Result<(), Stop> {
    let width = terminal_width();
    for line in table(header, rows).lines() {
        match width {
            Some(width) => say(cut(line.trim_end(), width))?,
            None => say(line.trim_end())?,
        }
    }
    Ok(())
}

/// The table as text. A column of nothing but numbers stands to the right.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let rows: Vec<[String; N]> =
        rows.into_iter().map(|row| row.map(|cell| printable(&cell))).collect();
    let is_number =
        |cell: &str| cell == "-" || cell.chars().all(|c| c.is_ascii_digit() || c == ',');
    let numbers: Vec<usize> = (0..N)
        .filter(|column| !rows.is_empty() && rows.iter().all(|row| is_number(&row[*column])))
        .collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header).add_rows(rows);
    for (place, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&place) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Text that cannot steer the terminal: control characters are spelled out, line ends become
/// blanks.
pub(crate) fn printable(text: &str) -> String {
    let spell = |c: char| match c {
        '\n' | '\r' | '\t' => " ".to_owned(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(spell).collect()
}

/// A line without control characters, cut to the width of the terminal if there is one.
pub(crate) fn fitting(line: &str) -> String {
    let line = printable(line.trim_end());
    terminal_width().map_or_else(|| line.clone(), |width| cut(&line, width))
}

/// One word for a shell, quoted only if it has to be.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// `12,345`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 job`, `2 jobs`.
pub(crate) fn count(number: u64, one: &str, more: &str) -> String {
    format!("{} {}", thousands(number), if number == 1 { one } else { more })
}

/// A progress bar on stderr; invisible unless that is a terminal.
pub(crate) fn progress(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{bar:30} {percent}%  {msg}  {eta} left"),
        None => (ProgressBar::no_length(), "{spinner} {msg}  {elapsed}"),
    };
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    bar.with_style(style.progress_chars("━╸ "))
}

/// Asks on the terminal; `None` when there is nobody to ask.
pub(crate) fn ask(question: &str) -> io::Result<Option<String>> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(None);
    }
    write!(io::stderr().lock(), "{question} ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(Some(answer.trim().to_owned()))
}

/// Sends the library's log to stderr. Without `--verbose` only warnings, and none about the
/// connection: its loss is in the error that the verb ends with.
pub(crate) fn log_to_stderr(verbose: bool) {
    let filter = if verbose {
        "info,forebay_producer=debug,lapin=off,rustls_platform_verifier=off"
    } else {
        "warn,lapin=off,rustls_platform_verifier=off,forebay_producer::link::connection=off"
    };
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter));
    log.with_writer(io::stderr).with_target(false).with_ansi(io::stderr().is_terminal()).init();
}

/// How many characters a line has; `None`: nobody sees lines.
pub(crate) fn terminal_width() -> Option<usize> {
    let (width, _) = io::stdout().is_terminal().then(terminal_size::terminal_size).flatten()?;
    Some(width.0.into())
}

fn cut(line: &str, width: usize) -> String {
    match line.char_indices().nth(width) {
        Some(_) => line.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let grouped = [0, 999, 1_000, 1_234_567].map(thousands);
        assert_eq!(grouped, ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(count(1, "job", "jobs"), "1 job");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2J\nb"), "a\\u{1b}[2J b");
    }

    #[test]
    fn what_a_shell_would_read_otherwise_is_quoted() {
        let words = ["/", "shop", "shop one", "it's", "a;b", ""].map(quoted);
        assert_eq!(words, ["/", "shop", "'shop one'", r"'it'\''s'", "'a;b'", "''"]);
    }

    #[test]
    fn a_line_is_cut_to_the_width_of_the_terminal() {
        assert_eq!(cut("ünlimited", 4), "ünl…");
        assert_eq!(cut("four", 4), "four");
    }

    #[test]
    fn columns_of_numbers_stand_to_the_right() {
        let rows = [["mail", "1"], ["reports", "1,000"]].map(|row| row.map(str::to_owned));
        assert_eq!(
            table(["queue", "ready"], rows),
            "queue    ready\nmail         1\nreports  1,000"
        );
    }
}
