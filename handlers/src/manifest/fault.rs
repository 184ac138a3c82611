//! What is wrong with a manifest, and what to do about it.
//! In: a place in the text and two sentences. Out: a [`Fault`] with file, line and column.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One thing that is wrong: where, what, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// The manifest.
    pub file: PathBuf,
    /// Line, from 1; `None` when the fault is not at one place.
    pub line: Option<usize>,
    /// Column in characters, from 1.
    pub column: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(column) = self.column {
            write!(f, ":{column}")?;
        }
        write!(f, ": {}", self.what)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

/// Everything that is wrong with a manifest, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, fault) in self.0.iter().enumerate() {
            let separator = if place == 0 { "" } else { "\n" };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Collects the faults of one file.
#[derive(Debug)]
pub(crate) struct Report<'t> {
    file: &'t Path,
    text: &'t str,
    faults: RefCell<Vec<Fault>>,
}

impl<'t> Report<'t> {
    pub(crate) fn new(file: &'t Path, text: &'t str) -> Self {
        Self { file, text, faults: RefCell::default() }
    }

    /// Notes a fault at the place where `span` begins.
    pub(crate) fn add(
        &self,
        span: Range<usize>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let (line, column) = place(self.text, span.start);
        self.faults.borrow_mut().push(Fault {
            file: self.file.to_owned(),
            line: Some(line),
            column: Some(column),
            what: what.into(),
            remedy: remedy.into(),
        });
    }

    /// The line of a place in the text.
    pub(crate) fn line(&self, span: &Range<usize>) -> usize {
        place(self.text, span.start).0
    }

    /// All faults, in the order of their places.
    pub(crate) fn into_faults(self) -> Vec<Fault> {
        let mut faults = self.faults.into_inner();
        faults.sort_by_key(|fault| (fault.line, fault.column));
        faults
    }
}

/// Line and column, both from 1, of a byte offset.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// "; did you mean `x`?" for a word that is close to one of `known`.
pub(crate) fn suggestion<'k>(
    word: &str,
    known: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
    let near = |candidate: &&str| strsim::damerau_levenshtein(word, candidate);
    let best = known.into_iter().min_by_key(near)?;
    // A third of the word may be wrong: beyond that a suggestion is a guess.
    (near(&best) <= (word.len().max(best.len()) / 3).max(1)).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_in_lines_and_characters_from_one() {
        assert_eq!(place("ab\ncd", 0), (1, 1));
        assert_eq!(place("ab\ncd", 4), (2, 2));
        assert_eq!(place("é = 1", 3), (1, 3));
        assert_eq!(place("ab", 99), (1, 3));
    }

    #[test]
    fn a_near_word_is_suggested_and_a_far_one_is_not() {
        let known = ["timeout", "retry", "queue", "exec"];
        assert_eq!(suggestion("timout", known), Some("timeout"));
        assert_eq!(suggestion("qeuue", known), Some("queue"));
        assert_eq!(suggestion("exce", known), Some("exec"));
        assert_eq!(suggestion("colour", known), None);
        assert_eq!(suggestion("x", []), None);
    }

    #[test]
    fn faults_read_like_a_compiler_s() {
        let file = Path::new("forebay.toml");
        let report = Report::new(file, "a\nbc = 1\n");
        report.add(3..4, "second", "");
        report.add(0..1, "first", "do this");
        let faults = Faults(report.into_faults());
        assert_eq!(
            faults.to_string(),
            "forebay.toml:1:1: first; do this\nforebay.toml:2:2: second"
        );
    }
}
