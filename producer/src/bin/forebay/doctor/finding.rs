//! What the doctor has to say.
//! In: an id, how bad it is, a sentence, commands. Out: the same, in the order in which it was
//! found, and the worst of it.

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Ok,
    /// Worth knowing, nothing to do.
    Note,
    /// It works, and somebody should look.
    Warning,
    /// It does not work, or jobs can be lost.
    Fault,
}

/// One check and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// `section.check`; stays the same from release to release.
    pub(crate) id: &'static str,
    pub(crate) level: Level,
    /// One sentence.
    pub(crate) what: String,
    /// Commands that mend it, in this order.
    pub(crate) mend: Vec<String>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Finding {
    pub(crate) fn new(id: &'static str, level: Level, what: impl Into<String>) -> Self {
        Self { id, level, what: what.into(), mend: Vec::new() }
    }

    pub(crate) fn ok(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(id, Level::Ok, what)
    }

    pub(crate) fn note(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(id, Level::Note, what)
    }

    pub(crate) fn warning(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(id, Level::Warning, what)
    }

    pub(crate) fn fault(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(id, Level::Fault, what)
    }

    /// With one more command that mends it.
    pub(crate) fn mend(mut self, command: impl Into<String>) -> Self {
        self.mend.push(command.into());
        self
    }

    /// `broker` of `broker.version`.
    pub(crate) fn section(&self) -> &'static str {
        self.id.split('.').next().unwrap_or(self.id)
    }
}

impl Findings {
    pub(crate) fn push(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    pub(crate) fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.0.extend(findings);
    }

    pub(crate) fn worst(&self) -> Level {
        self.0.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }

    pub(crate) fn count(&self, level: Level) -> u64 {
        self.0.iter().filter(|finding| finding.level == level).count() as u64
    }

    /// Whether there is a fault among the checks whose id begins so.
    pub(crate) fn faulty(&self, prefix: &str) -> bool {
        self.0.iter().any(|one| one.level == Level::Fault && one.id.starts_with(prefix))
    }
}
