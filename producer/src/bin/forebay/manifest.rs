//! What the command line needs from `forebay.toml`.
//! In: the file. Out: the broker, the queues, which function waits on which, and how long a job may
//! wait to be tried again; everything else in it is for the worker, and is not looked at.

mod wait;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_producer::{Config, QueueType, Retention};
use serde::Deserialize;

use self::wait::Waits;
use crate::exit::Stop;
use crate::globals::MayDeclare;

const DEFAULT_FILE: &str = "forebay.toml";

/// The part of the manifest that the command line reads.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Manifest {
    pub(crate) broker: Broker,
    /// `[events]`: what it is called, and how much.
    events: BTreeMap<String, String>,
    queues: BTreeMap<String, Queue>,
    functions: BTreeMap<String, Function>,
    /// Where it was read, if it was.
    #[serde(skip)]
    pub(crate) file: Option<PathBuf>,
}

/// `[broker]`.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Broker {
    pub(crate) url: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) declare: Option<MayDeclare>,
    pub(crate) strict_topology: Option<bool>,
    #[serde(flatten)]
    files: Files,
}

/// Files that lead to secrets.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Files {
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) cert_file: Option<PathBuf>,
    pub(crate) key_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Queue {
    r#type: QueueType,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Function {
    queue: Option<String>,
    #[serde(flatten)]
    waits: Waits,
}

impl Files {
    /// Without those that are named by nothing: compose files set such variables.
    pub(crate) fn stated(self) -> Self {
        let stated = |file: Option<PathBuf>| file.filter(|file| !file.as_os_str().is_empty());
        Self {
            password_file: stated(self.password_file),
            ca_file: stated(self.ca_file),
            cert_file: stated(self.cert_file),
            key_file: stated(self.key_file),
        }
    }

    /// Who names a certificate does not want it to be left out.
    pub(crate) fn check(&self, names: &str) -> Result<(), Stop> {
        if self.cert_file.is_some() == self.key_file.is_some() {
            return Ok(());
        }
        Err(Stop::Usage(format!("{names} go together: set both, or neither")))
    }

    /// These in place of what was set before.
    pub(crate) fn onto(self, mut config: Config) -> Config {
        if let Some(file) = self.password_file {
            config = config.password_file(file);
        }
        if let Some(file) = self.ca_file {
            config = config.ca_file(file);
        }
        if let (Some(cert), Some(key)) = (self.cert_file, self.key_file) {
            config = config.client_certificate(cert, key);
        }
        config
    }
}

impl Manifest {
    /// Reads the given file, or `./forebay.toml` if it is there.
    pub(crate) fn find(given: Option<&Path>) -> Result<Self, Stop> {
        let file = given.unwrap_or(Path::new(DEFAULT_FILE));
        let unusable = |why: String| Stop::Usage(format!("cannot read {}: {why}", file.display()));
        match fs::read_to_string(file) {
            Ok(text) => {
                let manifest = parse(&text).map_err(unusable)?;
                Ok(Self { file: Some(file.to_owned()), ..manifest })
            }
            Err(error) if given.is_none() && error.kind() == ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(error) => Err(unusable(error.to_string())),
        }
    }

    /// The files of `[broker]`. Their paths begin in the manifest's folder.
    pub(crate) fn files(&self) -> Files {
        let folder = self.file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
        let inside = |file: &Option<PathBuf>| file.as_ref().map(|file| folder.join(file));
        let Files { password_file, ca_file, cert_file, key_file } = &self.broker.files;
        Files {
            password_file: inside(password_file),
            ca_file: inside(ca_file),
            cert_file: inside(cert_file),
            key_file: inside(key_file),
        }
    }

    /// The names of all queues: those with a table, and those that functions wait on, which is
    /// `default` unless they say otherwise.
    pub(crate) fn queue_names(&self) -> Vec<String> {
        let waits_on =
            |function: &Function| function.queue.as_deref().unwrap_or("default").to_owned();
        let functions = self.functions.values().map(waits_on);
        let mut names: Vec<_> = self.queues.keys().cloned().chain(functions).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Whether a queue is among them.
    pub(crate) fn has_queue(&self, queue: &str) -> bool {
        self.queue_names().iter().any(|name| name == queue)
    }

    /// The queue of a kind, if the manifest knows the function.
    pub(crate) fn queue_of(&self, kind: &str) -> Option<&str> {
        self.functions.get(kind)?.queue.as_deref()
    }

    /// Whether it names functions at all.
    pub(crate) fn has_functions(&self) -> bool {
        !self.functions.is_empty()
    }

    /// The longest that a worker has a job of these functions wait on the delay ladder; `None` if
    /// there are no functions.
    pub(crate) fn longest_wait(&self) -> Option<Duration> {
        self.functions.values().map(|function| function.waits.longest()).max()
    }

    /// Whether functions are named and none of them is for this kind.
    pub(crate) fn lacks(&self, kind: &str) -> bool {
        self.has_functions() && !self.functions.contains_key(kind)
    }

    /// The kind that looks most like this one, if any comes close.
    pub(crate) fn nearest(&self, kind: &str) -> Option<&str> {
        // Below that two words have little more in common than their letters.
        const ALIKE: f64 = 0.8;
        let alike = |known: &String| strsim::normalized_damerau_levenshtein(known, kind);
        let known = self.functions.keys().map(|known| (alike(known), known.as_str()));
        let nearest = known.max_by(|(one, _), (other, _)| one.total_cmp(other))?;
        (nearest.0 >= ALIKE).then_some(nearest.1)
    }

    /// How long events are kept.
    pub(crate) fn retention(&self) -> Result<Retention, Stop> {
        let mut kept = Retention::default();
        for (name, value) in &self.events {
            kept.set(name, value).map_err(|allowed| {
                Stop::Usage(format!("{name} = {value:?} in [events] is not allowed: use {allowed}"))
            })?;
        }
        Ok(kept)
    }

    /// How a queue is kept by the broker.
    pub(crate) fn queue_type(&self, queue: &str) -> QueueType {
        self.queues.get(queue).map(|queue| queue.r#type).unwrap_or_default()
    }
}

// Not derived: the URL holds a password.
impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// The error names the line but does not quote it: a password may stand there.
fn parse(text: &str) -> Result<Manifest, String> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        match before {
            Some(before) => {
                format!("line {}: {}", before.matches('\n').count() + 1, error.message())
            }
            None => error.message().to_owned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"
        unknown = 1
        [broker]
        url = "amqp://app:hush@rabbit"
        declare = "never"
        [queues.mail]
        concurrency = 16
        [queues.thumbs]
        type = "classic"
        [functions."email.send"]
        exec = ["python3", "send.py"]
        queue = "mail"
        [functions."report.render"]
        queue = "reports"
        [functions."file.digest"]
        use = "file.digest"
    "#;

    #[test]
    fn what_the_command_line_needs_is_read_and_the_rest_is_not_looked_at() {
        let manifest = parse(MANIFEST).unwrap();
        assert_eq!(manifest.queue_names(), ["default", "mail", "reports", "thumbs"]);
        assert_eq!(manifest.queue_of("email.send"), Some("mail"));
        assert_eq!(manifest.queue_of("file.digest"), None);
        assert_eq!(manifest.queue_type("thumbs"), QueueType::Classic);
        assert_eq!(manifest.queue_type("other"), QueueType::Quorum);
        assert_eq!(manifest.broker.declare, Some(MayDeclare::Never));
        assert_eq!(manifest.longest_wait(), Some(Duration::from_secs(25)));
        assert!(!format!("{manifest:?}").contains("hush"));
    }

    #[test]
    fn a_kind_that_no_function_is_for_is_told_with_the_one_that_may_be_meant() {
        let manifest = parse(MANIFEST).unwrap();
        assert!(manifest.lacks("email.sent") && !manifest.lacks("email.send"));
        assert_eq!(manifest.nearest("email.sent"), Some("email.send"));
        assert_eq!(manifest.nearest("report.redner"), Some("report.render"));
        assert_eq!(manifest.nearest("order.pay"), None);
        assert!(!Manifest::default().lacks("email.sent"), "no manifest, no opinion");
        assert_eq!(Manifest::default().longest_wait(), None);
    }

    #[test]
    fn a_fault_names_its_line_and_does_not_quote_it() {
        let error = parse("[broker]\nurl = \"amqp://app:hush@rabbit\n").unwrap_err();
        assert!(error.starts_with("line 2: ") && !error.contains("hush"), "{error}");
        let error = parse("[broker]\n\ndeclare = \"sometimes\"\n").unwrap_err();
        assert!(error.starts_with("line 3: "), "{error}");
    }

    #[test]
    fn a_file_that_was_asked_for_must_be_there() {
        let error = Manifest::find(Some(Path::new("/nowhere/f.toml"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/f.toml"), "{error}");
    }
}
