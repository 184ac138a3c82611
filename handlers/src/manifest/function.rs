//! One `[functions."kind"]` of the manifest.
//! In: its table. Out: a [`Function`]: what runs, on which queue, how often and how long.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_worker::{BatchOptions, HandlerOptions, Retry};
use toml::de::DeValue;

use super::built_in;
use super::section::{Section, as_key};
use super::server::{self, ServerSettings};
use super::units::{self, Read, wrong};
use crate::digest::FileDigest;
use crate::http;

/// A kind and what runs for it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Function {
    /// The queue its jobs come from.
    pub queue: String,
    /// How long one run may take.
    pub timeout: Option<Duration>,
    /// How many runs at once, in one process.
    pub concurrency: Option<usize>,
    /// Whether `[idempotency]` applies to it.
    pub idempotent: bool,
    /// How failed jobs are tried again.
    pub retry: Option<Retry>,
    /// How many jobs are run together, if they are.
    pub batch: Option<Batch>,
    /// What runs.
    pub runs: Runs,
    /// Its line in the manifest.
    pub line: usize,
    pub(super) queue_at: Range<usize>,
    pub(super) at: Range<usize>,
}

/// Jobs of a kind that are run together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// How many jobs at most.
    pub size: usize,
    /// How long the first waits for others.
    pub window: Duration,
}

impl Batch {
    /// The options for the worker.
    pub fn options(self) -> BatchOptions {
        BatchOptions::new().size(self.size).window(self.window)
    }
}

/// What runs for a kind.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Runs {
    /// A program.
    Exec {
        /// The program, then its arguments.
        command: Vec<String>,
        /// Variables of its environment.
        env: BTreeMap<String, String>,
        /// Variables it takes over from the worker.
        pass_env: Vec<String>,
        /// The folder it runs in.
        cwd: PathBuf,
    },
    /// A long-lived program of its own.
    Serve(ServerSettings),
    /// The long-lived program of a `[servers.NAME]`.
    Server {
        /// Its name.
        name: String,
    },
    /// An HTTP endpoint.
    Http {
        /// Where to.
        url: String,
        /// Headers of every request.
        headers: BTreeMap<String, String>,
        /// The variable that holds the signing secret.
        secret_env: Option<String>,
    },
    /// The built-in `file.digest`.
    FileDigest {
        /// The folders it may read in.
        roots: Vec<PathBuf>,
    },
    /// The built-in `email.send`.
    #[cfg(feature = "email")]
    Email {
        /// Everything but the credentials.
        options: Box<crate::EmailOptions>,
        /// The user, and the variable that holds the password.
        login: Option<(String, String)>,
    },
    /// The built-in `image.thumbnail`.
    #[cfg(feature = "image")]
    Thumbnail {
        /// Folders and limits.
        options: crate::ThumbnailOptions,
    },
}

impl Runs {
    fn takes_batches(&self) -> bool {
        use Runs::{Exec, Http, Serve, Server};
        matches!(self, Exec { .. } | Serve(_) | Server { .. } | Http { .. })
    }

    /// The retry policy where the manifest says none, if it is another than everybody's.
    fn retry(&self) -> Option<Retry> {
        match self {
            #[cfg(feature = "email")]
            Self::Email { .. } => Some(crate::Email::RETRY),
            _ => None,
        }
    }
}

impl fmt::Display for Runs {
    /// In a few words, without arguments, credentials or query: they may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exec { command, .. } => write!(f, "exec {}", command[0]),
            Self::Serve(server) => write!(f, "serve {}", server.command[0]),
            Self::Server { name } => write!(f, "server {name}"),
            Self::Http { url, .. } => match http::check_url(url) {
                Ok(url) => write!(f, "POST {}", http::address(&url)),
                Err(_) => f.write_str("POST"),
            },
            Self::FileDigest { .. } => f.write_str(FileDigest::NAME),
            #[cfg(feature = "email")]
            Self::Email { options, .. } => {
                write!(f, "{} by {}", crate::Email::NAME, options.server())
            }
            #[cfg(feature = "image")]
            Self::Thumbnail { .. } => f.write_str(crate::Thumbnail::NAME),
        }
    }
}

impl Function {
    /// The options for the worker.
    pub fn options(&self) -> HandlerOptions {
        let options = HandlerOptions::new().queue(self.queue.clone());
        let mut options = options.idempotent(self.idempotent);
        if let Some(timeout) = self.timeout {
            options = options.timeout(timeout);
        }
        if let Some(retry) = self.retry {
            options = options.retry(retry);
        }
        if let Some(concurrency) = self.concurrency {
            options = options.concurrency(concurrency);
        }
        options
    }

    /// Reads the table; `None` when it says nothing that could run.
    pub(super) fn read(kind: &str, mut section: Section<'_, '_>, folder: &Path) -> Option<Self> {
        check_kind(kind, &section);
        let queue = section.located("queue", units::text);
        let timeout = section.get("timeout", units::duration);
        let concurrency = section.get("concurrency", |value| units::number(value, 1..=10_000));
        let idempotent = section.get("idempotent", units::flag).unwrap_or(true);
        let retry = read_retry(&mut section);
        let batch = read_batch(&mut section);
        let runs = read_runs(kind, &mut section, folder);
        if batch.is_some() && runs.as_ref().is_some_and(|runs| !runs.takes_batches()) {
            section.fault(
                format!("{} has `batch`, and what it runs takes jobs one by one", section.name),
                "remove `batch`; exec, serve, server and http can have it",
            );
        }
        let queue_at = queue.as_ref().map_or(section.at.clone(), |queue| queue.span());
        let (line, at) = (section.report.line(&section.at), section.at.clone());
        let retry = retry.or_else(|| runs.as_ref().and_then(Runs::retry));
        if runs.is_some() {
            section.finish();
        }
        Some(Self {
            queue: queue.map_or_else(|| "default".to_owned(), |queue| queue.into_inner()),
            timeout,
            concurrency: concurrency.and_then(|most| usize::try_from(most).ok()),
            idempotent,
            retry,
            batch,
            runs: runs?,
            line,
            queue_at,
            at,
        })
    }
}

fn check_kind(kind: &str, section: &Section<'_, '_>) {
    if forebay_producer::check_kind(kind).is_err() {
        section.fault(
            format!("kind {kind:?} cannot travel with a job"),
            "name it with 1 to 200 characters and no spaces, as noun.verb",
        );
    }
}

fn read_runs(kind: &str, section: &mut Section<'_, '_>, folder: &Path) -> Option<Runs> {
    let stated: Vec<_> = ["exec", "serve", "server", "http", "use"]
        .into_iter()
        .filter(|key| section.has(key))
        .collect();
    match stated[..] {
        ["exec"] => read_exec(section, folder),
        ["serve"] => server::read_settings(section, folder).map(Runs::Serve),
        ["server"] => section.get("server", units::text).map(|name| Runs::Server { name }),
        ["http"] => read_http(section),
        ["use"] => built_in::read(section, folder),
        [] => {
            nothing_runs(kind, section);
            None
        }
        _ => {
            let both = stated.join("` and `");
            section.fault(format!("{} has `{both}`", section.name), "keep one of them");
            None
        }
    }
}

fn nothing_runs(kind: &str, section: &Section<'_, '_>) {
    // `[functions.mail.send]` is a table in a table for TOML.
    match section.first_table() {
        Some(inner) => section.fault(
            format!("{} holds a table `{inner}`", section.name),
            format!("a kind with a dot needs quotes: [functions.\"{kind}.{inner}\"]"),
        ),
        None => section.fault(
            format!("{} does not say what runs", section.name),
            r#"add exec = ["program", "argument"], serve = ["program", "argument"], http = "http://…" or use = "file.digest""#,
        ),
    }
}

fn read_exec(section: &mut Section<'_, '_>, folder: &Path) -> Option<Runs> {
    let Program { command, env, pass_env, cwd } = read_program("exec", section, folder)?;
    Some(Runs::Exec { command, env, pass_env, cwd })
}

/// A program with its surroundings.
pub(super) struct Program {
    pub(super) command: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) pass_env: Vec<String>,
    pub(super) cwd: PathBuf,
}

pub(super) fn read_program(
    key: &'static str,
    section: &mut Section<'_, '_>,
    folder: &Path,
) -> Option<Program> {
    let command = section.get(key, |value| {
        let command = units::texts(value)?;
        if command[0].is_empty() {
            return Err(wrong("names no program", "begin the list with the program"));
        }
        Ok(command)
    });
    let env = section.get("env", |value| {
        let env = units::pairs(value)?;
        env.keys().try_for_each(|name| check_variable(name))?;
        Ok(env)
    });
    let pass_env = section.get("pass_env", |value| {
        let names = units::texts(value)?;
        names.iter().try_for_each(|name| check_variable(name))?;
        Ok(names)
    });
    let cwd = section.get("cwd", units::text);
    let mut command = command?;
    if command[0].contains('/') {
        command[0] = folder.join(&command[0]).to_string_lossy().into_owned();
    }
    Some(Program {
        command,
        env: env.unwrap_or_default(),
        pass_env: pass_env.unwrap_or_default(),
        cwd: cwd.map_or_else(|| folder.to_owned(), |cwd| folder.join(cwd)),
    })
}

pub(super) fn check_variable(name: &str) -> Read<()> {
    if name.is_empty() || name.contains(['=', '\0']) {
        let remedy = "use a name without `=`";
        return Err(wrong(format!("has {name:?}, which cannot name a variable"), remedy));
    }
    let ours = ["FOREBAY_JOB_", "FOREBAY_BATCH_", "FOREBAY_SERVE_"];
    if ours.iter().any(|ours| name.starts_with(ours)) {
        let remedy = "choose another name: FOREBAY_JOB_…, FOREBAY_BATCH_… and FOREBAY_SERVE_… are \
                      ours to set";
        return Err(wrong(format!("sets `{name}`"), remedy));
    }
    Ok(())
}

fn read_http(section: &mut Section<'_, '_>) -> Option<Runs> {
    let remedy = "write it as \"https://host/path\"";
    let url = section.get("http", |value| {
        let url = units::text(value)?;
        http::check_url(&url).map_err(|error| wrong(error.to_string(), remedy))?;
        Ok(url)
    });
    let headers = section.get("headers", |value| {
        let headers = units::pairs(value)?;
        for (name, value) in &headers {
            http::check_header(name, value)
                .map_err(|error| wrong(error.to_string(), "mend or remove it"))?;
        }
        Ok(headers)
    });
    let secret_env = section.get("secret_env", |value| {
        let name = units::text(value)?;
        check_variable(&name)?;
        Ok(name)
    });
    section.refuse(
        "secret",
        "would stand readable in this file",
        "put it into an environment variable and name that: secret_env = \"WEBHOOK_SECRET\"",
    );
    Some(Runs::Http { url: url?, headers: headers.unwrap_or_default(), secret_env })
}

fn read_retry(section: &mut Section<'_, '_>) -> Option<Retry> {
    if matches!(section.peek("retry"), Some(DeValue::Table(_))) {
        return read_policy(section.table("retry")?);
    }
    section.get("retry", |value| match value.as_str() {
        Some("never") => Ok(Retry::never()),
        _ => Err(wrong(
            "is no retry policy",
            "write retry = \"never\" or retry = { max_attempts = 5, base = \"1s\", factor = 2.0, \
             cap = \"1h\", jitter = true }, any of these keys",
        )),
    })
}

fn read_batch(section: &mut Section<'_, '_>) -> Option<Batch> {
    if section.has("batch") && !matches!(section.peek("batch"), Some(DeValue::Table(_))) {
        let form = "write batch = { size = 100, window = \"200ms\" }, any of these keys";
        return section.get("batch", |_| Err(wrong("is no table", form)));
    }
    let mut section = section.table("batch")?;
    let size = section.get("size", |value| units::number(value, 1..=10_000));
    let window = section.get("window", units::duration);
    section.finish();
    Some(Batch {
        size: size.and_then(|size| usize::try_from(size).ok()).unwrap_or(BatchOptions::SIZE),
        window: window.unwrap_or(BatchOptions::WINDOW),
    })
}

fn read_policy(mut section: Section<'_, '_>) -> Option<Retry> {
    let default = Retry::default();
    let max = section.get("max_attempts", |value| units::number(value, 1..=1_000_000));
    let base = section.get("base", units::duration);
    let factor = section.get("factor", |value| units::decimal(value, 1.0));
    let cap = section.get("cap", units::duration);
    let jitter = section.get("jitter", units::flag);
    if let (Some(base), Some(cap)) = (base, cap)
        && base > cap
    {
        section.fault(
            format!("`base` is longer than `cap` in {}", section.name),
            "no wait is longer than `cap`: raise it, or lower `base`",
        );
    }
    section.finish();
    Some(Retry {
        max_attempts: max.and_then(|max| u32::try_from(max).ok()).unwrap_or(default.max_attempts),
        base: base.unwrap_or(default.base),
        factor: factor.unwrap_or(default.factor),
        cap: cap.unwrap_or(default.cap.max(base.unwrap_or_default())),
        jitter: jitter.unwrap_or(default.jitter),
    })
}

/// The line that gives a function its queue, for remedies.
pub(super) fn queue_section(queue: &str) -> String {
    format!("[queues.{}]", as_key(queue))
}
