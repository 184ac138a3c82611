//! `[idempotency]`: each job once for its key.
//! In: the section. Out: where claims are kept and for how long; what connects stands elsewhere.

use std::fmt;
use std::time::Duration;

use toml::de::DeValue;

use super::function::check_variable;
use super::section::Section;
use super::units::{self, Read, wrong};

/// `[idempotency]`. A key that is not there is left at the default of
/// [`Idempotency`](forebay_worker::idempotency::Idempotency).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdempotencySettings {
    /// Where claims are kept.
    pub store: ClaimStore,
    /// How long a claim lasts unless it is renewed.
    pub lease: Option<Duration>,
    /// How long a completion is remembered.
    pub keep: Option<Duration>,
    /// How long a duplicate of a running job is put off.
    pub recheck: Option<Duration>,
    /// How long a job keeps its place while the store does not answer.
    pub patience: Option<Duration>,
    /// The largest result that is kept, in bytes.
    pub max_result: Option<usize>,
    /// Whether jobs without an idempotency key are left alone.
    pub only_with_key: bool,
    /// Whether jobs run unprotected while the store does not answer.
    pub fail_open: bool,
    /// Its line in the manifest.
    pub line: usize,
}

/// Where claims are kept. `Debug` and `Display` show no credentials.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClaimStore {
    /// In this process: what another has done is not known here.
    Memory,
    /// In Redis or PostgreSQL, at this URL.
    Url(String),
    /// In Redis or PostgreSQL, at the URL that this variable holds.
    Variable(String),
}

const STORES: &str = "write \"memory\", \"redis://host:6379/0\" or \"postgres://user@host/database\", or name a \
     variable that holds such a URL: store_env = \"IDEMPOTENCY_URL\"";

pub(super) fn read(mut section: Section<'_, '_>) -> Option<IdempotencySettings> {
    let line = section.report.line(&section.at);
    let store = read_store(&mut section);
    let settings = store.map(|store| IdempotencySettings {
        store,
        lease: section.get("lease", units::duration),
        keep: section.get("keep", units::duration),
        recheck: section.get("recheck", units::duration),
        patience: section.get("patience", units::duration),
        max_result: section.get("max_result", units::size),
        only_with_key: section.get("only_with_key", units::flag).unwrap_or_default(),
        fail_open: section.get("fail_open", units::flag).unwrap_or_default(),
        line,
    });
    if settings.is_some() {
        section.finish();
    }
    settings
}

fn read_store(section: &mut Section<'_, '_>) -> Option<ClaimStore> {
    match (section.has("store"), section.has("store_env")) {
        (true, false) => section.get("store", place),
        (false, true) => section.get("store_env", |value| {
            let name = units::text(value)?;
            check_variable(&name)?;
            Ok(ClaimStore::Variable(name))
        }),
        (true, true) => {
            section.fault("[idempotency] has `store` and `store_env`", "keep one of them");
            None
        }
        (false, false) => {
            section.fault("[idempotency] does not say where claims are kept", STORES);
            None
        }
    }
}

fn place(value: &DeValue<'_>) -> Read<ClaimStore> {
    match units::text(value)? {
        memory if memory == "memory" => Ok(ClaimStore::Memory),
        url if ClaimStore::is_known(&url) => Ok(ClaimStore::Url(url)),
        _ => Err(wrong("is no store", STORES)),
    }
}

impl ClaimStore {
    /// Whether a URL is one of a store.
    pub(crate) fn is_known(url: &str) -> bool {
        ["redis", "rediss", "postgres", "postgresql"]
            .iter()
            .any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| rest.starts_with("://")))
    }
}

impl fmt::Display for ClaimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("the memory of this process"),
            Self::Variable(name) => write!(f, "the store that `{name}` names"),
            Self::Url(url) => match reqwest::Url::parse(url) {
                Ok(url) => {
                    let (scheme, host) = (url.scheme(), url.host_str().unwrap_or_default());
                    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                    write!(f, "{scheme}://{host}{port}{}", url.path())
                }
                // Several hosts are fine for PostgreSQL, and no URL by the standard.
                Err(_) => f.write_str(url.split(':').next().unwrap_or_default()),
            },
        }
    }
}

impl fmt::Debug for ClaimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use crate::Manifest;

    use super::*;

    fn read(text: &str) -> Result<IdempotencySettings, String> {
        let text = format!("[idempotency]\n{text}");
        let read = Manifest::parse(&text, "f").map(|manifest| manifest.idempotency.unwrap());
        read.map_err(|faults| faults.to_string())
    }

    #[test]
    fn every_key_is_read_and_left_at_its_default_otherwise() {
        let all = read(
            "store = \"redis://u:hush@r:7000/1\"\nlease = \"1m\"\nkeep = \"1h\"\nrecheck = \"1s\"\n\
             patience = \"5s\"\nmax_result = \"1kB\"\nonly_with_key = true\nfail_open = true",
        );
        let seconds = |n| Some(Duration::from_secs(n));
        let expected = IdempotencySettings {
            store: ClaimStore::Url("redis://u:hush@r:7000/1".to_owned()),
            lease: seconds(60),
            keep: seconds(3600),
            recheck: seconds(1),
            patience: seconds(5),
            max_result: Some(1000),
            only_with_key: true,
            fail_open: true,
            line: 1,
        };
        assert_eq!(all, Ok(expected.clone()));
        let none = IdempotencySettings {
            store: ClaimStore::Memory,
            lease: None,
            keep: None,
            recheck: None,
            patience: None,
            max_result: None,
            only_with_key: false,
            fail_open: false,
            line: 1,
        };
        assert_eq!(read("store = \"memory\""), Ok(none));
        assert_eq!(expected.store.to_string(), "redis://r:7000/1");
        assert!(!format!("{expected:?}").contains("hush"));
        let two = ClaimStore::Url("postgres://u:hush@a,b/db".to_owned());
        assert!(!two.to_string().contains("hush"));
    }

    #[test]
    fn what_is_wrong_is_told_with_a_remedy() {
        for (text, expected) in [
            ("", "f:1:1: [idempotency] does not say where claims are kept; write \"memory\", "),
            ("store = \"mysql://u:hush@a\"", "f:2:9: `store` in [idempotency] is no store; write"),
            ("store = \"redis:hush\"", "f:2:9: `store` in [idempotency] is no store; write"),
            ("store = \"memory\"\nstore_env = \"A\"", "f:1:1: [idempotency] has `store` and `sto"),
            ("store_env = \"A=B\"", "f:2:13: `store_env` in [idempotency] has \"A=B\", which can"),
            ("store = \"memory\"\nleese = \"1s\"", "f:3:1: unknown key `leese` in [idempotency]; "),
            ("store = \"memory\"\nkeep = 3", "f:3:8: `keep` in [idempotency] is the number 3, not"),
        ] {
            let found = read(text).unwrap_err();
            assert!(found.starts_with(expected) && !found.contains('\n'), "{found}\n{expected}");
            assert!(!found.contains("hush"), "{found}");
        }
    }
}
