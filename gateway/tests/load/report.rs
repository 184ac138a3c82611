//! What a load came to.
//! In: figures. Out: a table for people, and whether anything is wrong.

use std::fmt::Write as _;
use std::time::Duration;

use super::ledger::Count;

/// One load's.
#[derive(Debug)]
pub(crate) struct Report {
    name: &'static str,
    what: &'static str,
    rows: Vec<(String, String)>,
    pub(crate) faults: Vec<String>,
}

impl Report {
    pub(crate) fn new(name: &'static str, what: &'static str) -> Self {
        Self { name, what, rows: Vec::new(), faults: Vec::new() }
    }

    pub(crate) fn row(&mut self, what: &str, figure: String) {
        self.rows.push((what.to_owned(), figure));
    }

    pub(crate) fn fault(&mut self, what: String) {
        self.faults.push(what);
    }

    /// What clients got of what they should get.
    pub(crate) fn count(&mut self, count: Count) {
        self.row("deliveries", number(count.got));
        let Count { doubled, disordered, strange, .. } = count;
        let wrong = [count.lost(), doubled, disordered, strange].map(number);
        self.row("lost, doubled, out of order, strange", wrong.join(", "));
        if !count.is_right() {
            self.fault(format!("not everything came once and in order: {count:?}"));
        }
    }

    /// What the gateway has logged as a warning or worse: to be looked at, but no fault of itself.
    pub(crate) fn complaints(&mut self, complaints: &[String]) {
        if let Some(first) = complaints.first() {
            self.row("warnings of the gateway", number(complaints.len() as u64));
            self.row("the first of them", format!("`{first}`"));
        }
    }

    /// As a section of a document.
    pub(crate) fn section(&self) -> String {
        let mut text = format!("## {}\n\n{}\n\n|  |  |\n| --- | --- |\n", self.name, self.what);
        for (what, figure) in &self.rows {
            // Writing to a string does not fail.
            _ = writeln!(text, "| {what} | {figure} |");
        }
        for fault in &self.faults {
            _ = writeln!(text, "\n**Wrong:** {fault}");
        }
        text
    }
}

/// The one that this share of them does not exceed; of none it is 0. They are sorted.
pub(crate) fn percentile(sorted: &[u32], share: f64) -> u32 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.max(1) - 1).copied().unwrap_or(0)
}

pub(crate) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

pub(crate) fn kilobytes(bytes: f64) -> String {
    format!("{:.1} kB", bytes / 1e3)
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

pub(crate) fn milliseconds(micros: u32) -> String {
    format!("{:.1} ms", f64::from(micros) / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_figures() {
        let figures: Vec<u32> = (1..=100).collect();
        for (share, expected) in [(0.0, 1), (0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100)] {
            assert_eq!(percentile(&figures, share), expected, "{share}");
        }
        assert_eq!(percentile(&[], 0.5), 0);
    }

    #[test]
    fn numbers_are_set_in_threes() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
    }
}
