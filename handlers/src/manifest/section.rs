//! Reading one table of the manifest, key by key.
//! In: a TOML table. Out: the values of the keys that are known; every fault goes to the report.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Report, suggestion};
use super::units::{self, Read};

/// A table whose keys are taken out one after another; what is left in the end is unknown.
pub(super) struct Section<'r, 't> {
    pub(super) report: &'r Report<'r>,
    /// As it is written: `[worker]`, `[functions."mail.send"]`.
    pub(super) name: String,
    pub(super) at: Range<usize>,
    left: BTreeMap<&'r str, (Range<usize>, &'r Spanned<DeValue<'t>>)>,
    known: Vec<&'static str>,
}

impl<'r, 't> Section<'r, 't> {
    pub(super) fn new(
        report: &'r Report<'r>,
        name: impl Into<String>,
        at: Range<usize>,
        table: &'r DeTable<'t>,
    ) -> Self {
        let entry = |(key, value): (&'r Spanned<_>, _)| {
            let name: &std::borrow::Cow<'_, str> = key.get_ref();
            (name.as_ref(), (key.span(), value))
        };
        let left = table.iter().map(entry).collect();
        Self { report, name: name.into(), at, left, known: Vec::new() }
    }

    /// The value of `key`, if it stands there and is right.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&DeValue<'t>) -> Read<T>,
    ) -> Option<T> {
        self.located(key, read).map(Spanned::into_inner)
    }

    /// The same with its place.
    pub(super) fn located<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&DeValue<'t>) -> Read<T>,
    ) -> Option<Spanned<T>> {
        let value = self.raw(key)?;
        match read(value.get_ref()) {
            Ok(read) => Some(Spanned::new(value.span(), read)),
            Err(wrong) => {
                let what = format!("`{key}` in {} {}", self.name, wrong.what);
                self.report.add(value.span(), what, wrong.remedy);
                None
            }
        }
    }

    /// The table under `key`.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Section<'r, 't>> {
        let value = self.raw(key)?;
        let name = if self.name.is_empty() {
            format!("[{key}]")
        } else {
            format!("`{key}` of {}", self.name)
        };
        self.section(key, name, value.span(), value)
    }

    /// The tables under `key` by name, each as `[key.NAME]`.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<(String, Section<'r, 't>)> {
        let Some(group) = self.table(key) else {
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (name, (at, value)) in group.left {
            let written = format!("[{key}.{}]", as_key(name));
            if let Some(section) = self.section(name, written, at, value) {
                tables.push((name.to_owned(), section));
            }
        }
        tables
    }

    fn section(
        &self,
        key: &str,
        name: String,
        at: Range<usize>,
        value: &'r Spanned<DeValue<'t>>,
    ) -> Option<Section<'r, 't>> {
        match units::table(value) {
            Ok(table) => Some(Section::new(self.report, name, at, table)),
            Err(wrong) => {
                let what = format!("`{key}` {}", wrong.what);
                self.report.add(at, what, wrong.remedy);
                None
            }
        }
    }

    /// Whether `key` stands there, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.left.contains_key(key)
    }

    /// What stands under `key`, without taking it.
    pub(super) fn peek(&self, key: &str) -> Option<&'r DeValue<'t>> {
        self.left.get(key).map(|(_, value)| value.get_ref())
    }

    /// The first key left that holds a table.
    pub(super) fn first_table(&self) -> Option<&'r str> {
        let mut left = self.left.iter();
        left.find(|(_, (_, value))| value.get_ref().is_table()).map(|(key, _)| *key)
    }

    /// The value of `key` as it stands there.
    fn raw(&mut self, key: &'static str) -> Option<&'r Spanned<DeValue<'t>>> {
        self.known.push(key);
        self.left.remove(key).map(|(_, value)| value)
    }

    /// Faults the section as a whole.
    pub(super) fn fault(&self, what: impl Into<String>, remedy: impl Into<String>) {
        self.report.add(self.at.clone(), what, remedy);
    }

    /// Faults a key that makes no sense here, so that it does not count as unknown.
    pub(super) fn refuse(&mut self, key: &'static str, what: &str, remedy: &str) {
        if let Some((at, _)) = self.left.remove(key) {
            self.report.add(at, format!("`{key}` in {} {what}", self.name), remedy);
        }
    }

    /// Faults every key that was not asked for.
    pub(super) fn finish(self) {
        for (key, (at, _)) in self.left {
            let place =
                if self.name.is_empty() { String::new() } else { format!(" in {}", self.name) };
            let remedy = match suggestion(key, self.known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known are {}", self.known.join(", ")),
            };
            self.report.add(at, format!("unknown key `{key}`{place}"), remedy);
        }
    }
}

/// A name as TOML wants it: bare if it can be, else quoted.
pub(super) fn as_key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.chars().all(bare) { name.to_owned() } else { format!("{name:?}") }
}
