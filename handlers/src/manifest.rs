//! `forebay.toml`: which queues are consumed, and what runs for each kind of job.
//! In: its text. Out: a [`Manifest`], or every [`Fault`] in it at once, with line and remedy.
//!
//! # The file
//!
//! Every key there is, with its default where it has one. Unknown keys are errors. Durations are
//! texts with a unit (`"500ms"`, `"30s"`, `"1h30m"`), sizes too (`"500kB"`, `"10MB"`, `"16MiB"`).
//! Paths are relative to the folder that the file is in.
//!
//! ```toml
//! [broker]                        # flags > AMQP_URL and FOREBAY_* > this section
//! url = "amqp://127.0.0.1/%2f"    # several hosts: "amqp://a,b:5673/vhost". Keep passwords out of
//!                                 # this file: AMQP_URL comes before it
//! password_file = "amqp-password" # its one line comes before the URL's password
//! ca_file = "issuers.pem"         # with amqps://: whom to trust; default: whom the machine trusts
//! cert_file = "worker.pem"        # our certificate with its chain, for brokers that want one,
//! key_file = "worker.key"         # and its key
//! namespace = "forebay"           # first part of every name on the broker: a-z, 0-9, -
//! declare = "auto"                # "never": others create the queues (forebay topology apply)
//! strict_topology = false         # true: refuse queues that exist with other arguments
//! payload_limit = "16MiB"         # raise it together with the broker's max_message_size
//!
//! [worker]
//! name = "reports"                # in logs and in the failures recorded on jobs
//! grace = "25s"                   # how long running jobs may still take after SIGTERM
//! consumer_timeout = "30m"        # RabbitMQ 4.3 is told it, before that set the broker to it
//! exit_after = "5m"               # end when a queue was not consumed for so long; default: never
//! require_signatures = false      # true: run jobs only that are signed with a key in
//!                                 # FOREBAY_SIGNING_KEYS or FOREBAY_SIGNING_KEYS_FILE
//! listen = "127.0.0.1:9464"       # health checks, metrics; or "off". See docs/operation.md
//!
//! [idempotency]                   # each job once for its key: docs/idempotency.md
//! store = "redis://127.0.0.1/0"   # or "postgres://…", or "memory" for one process; or store_env
//! lease = "30s"                   # and keep, recheck, patience, max_result, only_with_key,
//!                                 # fail_open
//!
//! [events]                        # how long events are kept, if their stream must be declared
//! max_age = "7days"
//! max_size = "1GB"                # of all segments
//! segment_size = "20MB"           # the oldest goes as a whole; the newest always stays
//!
//! [queues.default]                # `default` exists without being named; every other queue that
//!                                 # a function uses needs its section, which may be empty
//! concurrency = 16                # jobs at once in this process; default 4 × cores
//! prefetch = 32                   # deliveries held ready; default 2 × concurrency, at least 16
//! type = "quorum"                 # or "classic"
//! default_kind = "report.render"  # for jobs that come without a kind (the `type` property)
//! rate = 50.0                     # at most so many jobs a second
//!
//! [functions."report.render"]     # the kind of job. A kind with a dot needs the quotes
//! exec = ["python3", "render.py"] # a program and its arguments; see `exec`. No shell
//! queue = "default"
//! timeout = "5m"
//! concurrency = 4                 # of this function alone; default: as many as its queue
//! retry = { max_attempts = 5, base = "1s", factor = 2.0, cap = "1h", jitter = true }
//! env = { LANG = "C.UTF-8" }      # its environment: these,
//! pass_env = ["HOME"]             # these from the worker's own, PATH, and FOREBAY_JOB_…
//! cwd = "."                       # default: the folder of this file
//!
//! [functions."image.label"]
//! serve = ["python3", "label.py"] # a program that stays and takes one job after another
//! processes = 2                   # default 1
//! jobs_per_process = 4            # jobs that one process has at once; default 1
//! max_jobs = 1000                 # replace a process after so many; default: never
//! start_timeout = "1m"            # until it must say that it is ready; default 30 s
//!                                 # and env, pass_env, cwd as for `exec`
//!
//! [servers.pricing]               # the same for several kinds
//! serve = ["node", "pricing.mjs"]
//! jobs_per_process = 32
//!
//! [functions."price.quote"]
//! server = "pricing"
//!
//! [functions."invoice.push"]
//! http = "https://example.com/invoices"   # POST; see `http`
//! headers = { x-team = "billing" }
//! secret_env = "INVOICE_SECRET"   # variable with the secret that signs requests
//! retry = "never"
//!
//! [functions."row.insert"]
//! exec = ["python3", "insert.py"] # or serve, server, http
//! batch = { size = 100, window = "200ms" }    # so many jobs are run together, as a JSON array
//!
//! [functions."file.digest"]
//! use = "file.digest"             # built in, as `email.send` and `image.thumbnail` are, which
//!                                 # have more keys: docs/manifest.md
//! roots = ["/srv/files"]          # the only folders a job may name files in
//! ```
//!
//! `exec`, `serve`, `http` and `digest` are described at [`Exec`](crate::Exec),
//! [`Server`](crate::Server), [`Http`](crate::Http) and [`FileDigest`](crate::FileDigest).

mod built_in;
#[cfg(feature = "email")]
mod email;
pub(crate) mod fault;
mod function;
mod idempotency;
mod listen;
mod section;
mod server;
#[cfg(feature = "image")]
mod thumbnail;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_producer::check_queue_name;
use forebay_worker::{Config, ConfigError, Declare, QueueOptions, QueueType, Retention};
use toml::de::{DeTable, DeValue};

pub use fault::{Fault, Faults};
use fault::{Report, suggestion};
use function::queue_section;
pub use function::{Batch, Function, Runs};
pub use idempotency::{ClaimStore, IdempotencySettings};
pub use listen::{InvalidListen, Listen};
use section::Section;
pub use server::ServerSettings;
use units::{Read, wrong};

/// What stands in a `forebay.toml`.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Manifest {
    /// The file, absolute if it was read from disk.
    pub file: PathBuf,
    /// `[broker]`.
    pub broker: Broker,
    /// `[worker]`.
    pub worker: WorkerSettings,
    /// `[idempotency]`; without it jobs run at least once.
    pub idempotency: Option<IdempotencySettings>,
    /// `[queues.NAME]` by name; `default` is here if a function uses it.
    pub queues: BTreeMap<String, QueueSettings>,
    /// `[servers.NAME]` by name.
    pub servers: BTreeMap<String, ServerSettings>,
    /// `[functions."kind"]` by kind.
    pub functions: BTreeMap<String, Function>,
}

/// `[broker]`. `Debug` does not show the URL: it may hold a password.
#[derive(Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Broker {
    /// Where the broker is.
    pub url: Option<String>,
    /// The first part of every name on the broker.
    pub namespace: Option<String>,
    /// What may be declared.
    pub declare: Option<Declare>,
    /// Whether queues with other arguments are refused.
    pub strict_topology: Option<bool>,
    /// The largest payload that is published again by a retry, in bytes.
    pub payload_limit: Option<usize>,
    /// The file with the password.
    pub password_file: Option<PathBuf>,
    /// The file with the issuers to trust.
    pub ca_file: Option<PathBuf>,
    /// The files with our certificate and its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// `[events]`: how long they are kept.
    pub events: Retention,
}

/// `[worker]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WorkerSettings {
    /// The worker's name.
    pub name: Option<String>,
    /// How long running jobs may still take once it drains.
    pub grace: Option<Duration>,
    /// The broker's consumer timeout.
    pub consumer_timeout: Option<Duration>,
    /// It ends when a queue was not consumed for so long.
    pub exit_after: Option<Duration>,
    /// Whether only signed jobs are run.
    pub require_signatures: Option<bool>,
    /// Where `forebay-run` answers health checks and scrapes.
    pub listen: Option<Listen>,
}

/// `[queues.NAME]`.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct QueueSettings {
    /// Jobs at once in this process.
    pub concurrency: Option<usize>,
    /// Deliveries held ready.
    pub prefetch: Option<u16>,
    /// How the broker keeps it.
    pub queue_type: Option<QueueType>,
    /// The kind of jobs that come without one.
    pub default_kind: Option<String>,
    /// Jobs per second at most.
    pub rate: Option<f64>,
    /// Its line in the manifest; `None` for a `default` that is not written down.
    pub line: Option<usize>,
}

impl Manifest {
    /// Reads a manifest from disk.
    ///
    /// # Errors
    /// Every fault at once; one fault if the file cannot be read.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, Faults> {
        let (manifest, faults) = Self::survey(file.as_ref());
        if faults.is_empty() { Ok(manifest) } else { Err(Faults(faults)) }
    }

    /// Reads a manifest's text; `file` is its name in faults, and its folder is where relative
    /// paths begin.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn parse(text: &str, file: impl AsRef<Path>) -> Result<Self, Faults> {
        let (manifest, faults) = read(text, file.as_ref());
        if faults.is_empty() { Ok(manifest) } else { Err(Faults(faults)) }
    }

    /// What can be read of the file on disk, and everything that is wrong with it.
    pub(crate) fn survey(file: &Path) -> (Self, Vec<Fault>) {
        let text = fs::read_to_string(file).and_then(|text| Ok((text, std::path::absolute(file)?)));
        match text {
            Ok((text, whole)) => {
                let (mut manifest, mut faults) = read(&text, &whole);
                // Faults name the file as the user did.
                faults.iter_mut().for_each(|fault| file.clone_into(&mut fault.file));
                manifest.file = whole;
                (manifest, faults)
            }
            Err(error) => {
                let fault = Fault {
                    file: file.to_owned(),
                    line: None,
                    column: None,
                    what: format!("the manifest cannot be read: {error}"),
                    remedy: "create it, or name another one with --config".to_owned(),
                };
                (Self::default(), vec![fault])
            }
        }
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("url", &self.url.as_ref().map(|_| "…"))
            .field("namespace", &self.namespace)
            .field("declare", &self.declare)
            .field("strict_topology", &self.strict_topology)
            .field("payload_limit", &self.payload_limit)
            .field("password_file", &self.password_file)
            .field("ca_file", &self.ca_file)
            .field("client_certificate", &self.client_certificate)
            .finish()
    }
}

impl QueueSettings {
    /// The options for the worker.
    pub fn options(&self) -> QueueOptions {
        let mut options = QueueOptions::new();
        if let Some(concurrency) = self.concurrency {
            options = options.concurrency(concurrency);
        }
        if let Some(prefetch) = self.prefetch {
            options = options.prefetch(prefetch);
        }
        if let Some(queue_type) = self.queue_type {
            options = options.queue_type(queue_type);
        }
        if let Some(kind) = &self.default_kind {
            options = options.default_kind(kind.clone());
        }
        if let Some(rate) = self.rate {
            options = options.rate(rate);
        }
        options
    }
}

fn read(text: &str, file: &Path) -> (Manifest, Vec<Fault>) {
    let report = Report::new(file, text);
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // What was parsed around a syntax error is a guess: its faults would mislead.
        report_syntax(&report, &errors, text);
        return (Manifest { file: file.to_owned(), ..Manifest::default() }, report.into_faults());
    }
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut root = Section::new(&report, "", 0..0, document.get_ref());
    let mut manifest = Manifest {
        file: file.to_owned(),
        broker: root
            .table("broker")
            .map(|section| read_broker(section, folder))
            .unwrap_or_default(),
        worker: root.table("worker").map(read_worker).unwrap_or_default(),
        idempotency: root.table("idempotency").and_then(idempotency::read),
        ..Manifest::default()
    };
    manifest.broker.events = root.table("events").map(read_events).unwrap_or_default();
    for (name, section) in root.tables("queues") {
        manifest.queues.insert(name.clone(), read_queue(&name, section));
    }
    for (name, section) in root.tables("servers") {
        if let Some(server) = server::read(section, folder) {
            manifest.servers.insert(name, server);
        }
    }
    for (kind, section) in root.tables("functions") {
        if let Some(function) = Function::read(&kind, section, folder) {
            manifest.functions.insert(kind, function);
        }
    }
    root.finish();
    give_queues(&mut manifest, &report);
    server::check_servers(&manifest, &report);
    (manifest, report.into_faults())
}

fn read_events(mut section: Section<'_, '_>) -> Retention {
    let mut kept = Retention::default();
    if let Some(age) = section.get("max_age", units::duration) {
        kept.max_age = age;
    }
    if let Some(size) = section.get("max_size", units::size) {
        kept.max_bytes = size as u64;
    }
    if let Some(size) = section.get("segment_size", units::size) {
        kept.segment_bytes = size as u64;
    }
    section.finish();
    kept
}

/// One fault a line: a broken line often breaks the parser twice.
fn report_syntax(report: &Report<'_>, errors: &[toml::de::Error], text: &str) {
    let mut lines = Vec::new();
    for error in errors {
        let span = error.span().unwrap_or(text.len()..text.len());
        let line = report.line(&span);
        if !lines.contains(&line) {
            lines.push(line);
            report.add(span, error.message().replace('\n', ", "), "mend the TOML syntax");
        }
    }
}

const AMQP: &str = "write it as amqp://user:password@host:5672/vhost, with / in the vhost as %2f";

fn read_broker(mut section: Section<'_, '_>, folder: &Path) -> Broker {
    let client_certificate = read_certificate(&mut section, folder);
    let broker = Broker {
        url: section.get("url", |value| {
            let url = units::text(value)?;
            match Config::new(&url) {
                Ok(_) => Ok(url),
                Err(ConfigError::Url { why }) => Err(wrong(format!("cannot be used: {why}"), AMQP)),
                Err(error) => Err(wrong(format!("is refused: {error}"), "")),
            }
        }),
        namespace: section.get("namespace", |value| {
            let namespace = units::text(value)?;
            let blank = Config::new("amqp://localhost").expect("this URL is complete");
            let refused = |error| wrong(format!("is refused: {error}"), "");
            blank.namespace(&namespace).map_err(refused)?;
            Ok(namespace)
        }),
        declare: section.get("declare", |value| match value.as_str() {
            Some("auto") => Ok(Declare::Auto),
            Some("never") => Ok(Declare::Never),
            _ => Err(wrong("is neither", "write \"auto\" or \"never\"")),
        }),
        strict_topology: section.get("strict_topology", units::flag),
        payload_limit: section.get("payload_limit", units::size),
        password_file: section.get("password_file", |value| path(value, folder)),
        ca_file: section.get("ca_file", |value| path(value, folder)),
        client_certificate,
        events: Retention::default(),
    };
    section.finish();
    broker
}

fn read_certificate(section: &mut Section<'_, '_>, folder: &Path) -> Option<(PathBuf, PathBuf)> {
    if section.has("cert_file") != section.has("key_file") {
        section.fault(
            format!("{} has only one of `cert_file` and `key_file`", section.name),
            "add the other one",
        );
    }
    let cert = section.get("cert_file", |value| path(value, folder));
    let key = section.get("key_file", |value| path(value, folder));
    cert.zip(key)
}

fn path(value: &DeValue<'_>, folder: &Path) -> Read<PathBuf> {
    Ok(folder.join(units::text(value)?))
}

fn read_worker(mut section: Section<'_, '_>) -> WorkerSettings {
    let settings = WorkerSettings {
        name: section.get("name", units::text),
        grace: section.get("grace", units::duration),
        consumer_timeout: section.get("consumer_timeout", units::duration),
        exit_after: section.get("exit_after", units::duration),
        require_signatures: section.get("require_signatures", units::flag),
        listen: section.get("listen", |value| {
            let refused = |error: InvalidListen| wrong(error.to_string(), InvalidListen::REMEDY);
            units::text(value)?.parse().map_err(refused)
        }),
    };
    section.finish();
    settings
}

fn read_queue(name: &str, mut section: Section<'_, '_>) -> QueueSettings {
    if let Err(error) = check_queue_name(name) {
        section.fault(error.to_string(), "rename the queue");
    }
    let concurrency = section.get("concurrency", |value| units::number(value, 1..=10_000));
    let prefetch = section.get("prefetch", |value| units::number(value, 1..=2_000));
    let settings = QueueSettings {
        concurrency: concurrency.and_then(|most| usize::try_from(most).ok()),
        prefetch: prefetch.and_then(|most| u16::try_from(most).ok()),
        queue_type: section.get("type", queue_type),
        default_kind: section.get("default_kind", units::text),
        rate: section.get("rate", |value| units::decimal(value, 0.001)),
        line: Some(section.report.line(&section.at)),
    };
    section.finish();
    settings
}

fn queue_type(value: &DeValue<'_>) -> Read<QueueType> {
    match value.as_str() {
        Some("quorum") => Ok(QueueType::Quorum),
        Some("classic") => Ok(QueueType::Classic),
        _ => Err(wrong("is no type of queue", "write \"quorum\" or \"classic\"")),
    }
}

/// Every function's queue must be there; `default` is made when it is needed.
fn give_queues(manifest: &mut Manifest, report: &Report<'_>) {
    for (kind, function) in &manifest.functions {
        let queue = function.queue.as_str();
        if manifest.queues.contains_key(queue) {
            continue;
        }
        if queue == "default" {
            manifest.queues.insert(queue.to_owned(), QueueSettings::default());
            continue;
        }
        let what = format!("queue `{queue}` of function `{kind}` is not configured");
        let names = manifest.queues.keys().map(String::as_str);
        let remedy = match (check_queue_name(queue), suggestion(queue, names)) {
            (Err(error), _) => error.to_string(),
            (_, Some(near)) => {
                format!("did you mean `{near}`? If not, add the line {}", queue_section(queue))
            }
            (_, None) => format!("add the line {}", queue_section(queue)),
        };
        report.add(function.queue_at.clone(), what, remedy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ServerOptions;
    use forebay_worker::Retry;

    const WHOLE: &str = r#"
[broker]
url = "amqp://u:hush@a,b:5673/v"
namespace = "shop"
declare = "never"
strict_topology = true
payload_limit = "32MiB"

[worker]
name = "w"
grace = "10s"
consumer_timeout = "1h"
exit_after = "5m"
listen = "0.0.0.0:9999"

[queues.mail]
concurrency = 8
prefetch = 20
type = "classic"
default_kind = "mail.send"
rate = 2.5

[functions."mail.send"]
exec = ["./send", "-v"]
queue = "mail"
timeout = "30s"
concurrency = 2
retry = { max_attempts = 3, base = "2s", factor = 3, cap = "1m", jitter = false }
env = { LANG = "C" }
pass_env = ["HOME"]
cwd = "work"

[functions."mail.check"]
exec = ["python3", "check.py"]
retry = "never"

[servers.pricing]
serve = ["./pricing", "-v"]
processes = 2
jobs_per_process = 32
max_jobs = 1000
start_timeout = "1m"
env = { LANG = "C" }

[functions."price.quote"]
server = "pricing"

[functions."price.list"]
serve = ["node", "list.mjs"]

[functions.push]
http = "https://u:hush@example.com/push?t=hush"
headers = { x-a = "1" }
secret_env = "PUSH_SECRET"

[functions."file.digest"]
use = "file.digest"
roots = ["files", "/srv"]
"#;

    fn whole() -> Manifest {
        Manifest::parse(WHOLE, "/etc/shop/forebay.toml").unwrap()
    }

    #[test]
    fn the_documented_file_is_read() {
        let (_, rest) = include_str!("manifest.rs").split_once("//! ```toml\n").unwrap();
        let (text, _) = rest.split_once("//! ```\n").unwrap();
        let text: String = text.lines().map(|line| line[3..].to_owned() + "\n").collect();
        let manifest = Manifest::parse(&text, "/etc/forebay.toml").unwrap();
        assert_eq!((manifest.functions.len(), manifest.queues.len()), (6, 1));
    }

    #[test]
    fn every_key_is_read() {
        let manifest = whole();
        assert_eq!(manifest.broker.url.as_deref(), Some("amqp://u:hush@a,b:5673/v"));
        assert_eq!(manifest.broker.namespace.as_deref(), Some("shop"));
        assert_eq!(manifest.broker.declare, Some(Declare::Never));
        assert_eq!(manifest.broker.strict_topology, Some(true));
        assert_eq!(manifest.broker.payload_limit, Some(32 << 20));
        let worker = &manifest.worker;
        let seconds = |duration: Option<Duration>| duration.unwrap().as_secs();
        assert_eq!(worker.name.as_deref(), Some("w"));
        assert_eq!(seconds(worker.grace), 10);
        assert_eq!(seconds(worker.consumer_timeout), 3600);
        assert_eq!(seconds(worker.exit_after), 300);
        assert_eq!(worker.listen, Some(Listen::At("0.0.0.0:9999".to_owned())));
        let mail = &manifest.queues["mail"];
        assert_eq!((mail.concurrency, mail.prefetch, mail.rate), (Some(8), Some(20), Some(2.5)));
        assert_eq!(mail.queue_type, Some(QueueType::Classic));
        assert_eq!((mail.default_kind.as_deref(), mail.line), (Some("mail.send"), Some(16)));
        let send = &manifest.functions["mail.send"];
        assert_eq!((send.queue.as_str(), send.concurrency, send.line), ("mail", Some(2), 23));
        let retry = Retry {
            max_attempts: 3,
            base: Duration::from_secs(2),
            factor: 3.0,
            cap: Duration::from_secs(60),
            jitter: false,
        };
        assert_eq!(send.retry, Some(retry));
        assert_eq!(manifest.functions["mail.check"].retry, Some(Retry::never()));
    }

    #[test]
    fn paths_begin_in_the_manifest_s_folder() {
        let manifest = whole();
        let Runs::Exec { command, cwd, .. } = &manifest.functions["mail.send"].runs else {
            panic!()
        };
        assert_eq!(command[..], ["/etc/shop/./send", "-v"]);
        assert_eq!(cwd, Path::new("/etc/shop/work"));
        let Runs::Exec { command, cwd, .. } = &manifest.functions["mail.check"].runs else {
            panic!()
        };
        assert_eq!(command[..], ["python3", "check.py"]);
        assert_eq!(cwd, Path::new("/etc/shop"));
        let Runs::FileDigest { roots } = &manifest.functions["file.digest"].runs else { panic!() };
        assert_eq!(roots[..], [Path::new("/etc/shop/files"), Path::new("/srv")]);
    }

    #[test]
    fn the_default_queue_need_not_be_written_down() {
        let manifest = whole();
        assert_eq!(manifest.functions["push"].queue, "default");
        assert_eq!(manifest.queues["default"], QueueSettings::default());
    }

    #[test]
    fn neither_debug_nor_the_short_form_shows_credentials() {
        let manifest = whole();
        assert!(!format!("{:?}", manifest.broker).contains("hush"));
        let short = manifest.functions["push"].runs.to_string();
        assert_eq!(short, "POST https://example.com/push");
        assert_eq!(manifest.functions["mail.check"].runs.to_string(), "exec python3");
    }

    #[test]
    fn long_lived_programs_are_read() {
        let manifest = whole();
        let pricing = &manifest.servers["pricing"];
        let options = ServerOptions::new().processes(2).jobs_per_process(32).max_jobs(1000);
        assert_eq!(pricing.options(), options.start_timeout(Duration::from_secs(60)));
        assert_eq!(pricing.command[..], ["/etc/shop/./pricing", "-v"]);
        assert_eq!(pricing.cwd, Path::new("/etc/shop"));
        let quote = &manifest.functions["price.quote"].runs;
        assert_eq!(*quote, Runs::Server { name: "pricing".to_owned() });
        let Runs::Serve(list) = &manifest.functions["price.list"].runs else { panic!() };
        assert_eq!(list.command[..], ["node", "list.mjs"]);
        assert_eq!(list.options(), ServerOptions::new());
        assert_eq!(manifest.functions["price.list"].runs.to_string(), "serve node");
        assert_eq!(quote.to_string(), "server pricing");
    }

    /// A function that is fine, for manifests whose fault is elsewhere.
    const FINE: &str = "[functions.\"a.b\"]\nexec = [\"true\"]\n";

    /// Broken manifests, and the beginning of every line of their faults, without the file.
    #[test]
    fn every_fault_is_found_with_its_line_what_and_remedy() {
        let table: &[(&str, &[&str])] = &[
            ("a = [", &["1:6: "]),
            ("[worker]\nname = \n\n[queues.mail]\nrate = x\n", &["2:8: ", "5:8: "]),
            ("[worker]\nname = \"a\"\nname = \"b\"", &["3:1: duplicate key"]),
            ("[workers]", &["1:2: unknown key `workers`; did you mean `worker`?"]),
            (
                "[worker]\ngrase = \"1s\"",
                &["2:1: unknown key `grase` in [worker]; did you mean `grace`?"],
            ),
            (
                "[worker]\ncolour = 1",
                &[
                    "2:1: unknown key `colour` in [worker]; known are name, grace, consumer_timeout, exit_after, require_signatures, listen",
                ],
            ),
            (
                "worker = 3",
                &["1:10: `worker` is the number 3, not a table; write it as a [section]"],
            ),
            (
                "[functions.\"a.b\"]\nexec = [\"true\"]\nbatch = 100",
                &[
                    "3:9: `batch` in [functions.\"a.b\"] is no table; write batch = { size = 100, window = \"200ms\" }",
                ],
            ),
            (
                "[functions.\"a.b\"]\nexec = [\"true\"]\nbatch = { sice = 1, window = 3 }",
                &[
                    "3:11: unknown key `sice` in `batch` of [functions.\"a.b\"]; did you mean `size`?",
                    "3:30: `window` in `batch` of [functions.\"a.b\"] is the number 3, not a duration;",
                ],
            ),
            (
                "[functions.\"a.b\"]\nuse = \"file.digest\"\nroots = [\"/\"]\nbatch = { size = 2 }",
                &[
                    "1:12: [functions.\"a.b\"] has `batch`, and what it runs takes jobs one by one; remove",
                ],
            ),
            (
                "[worker]\ngrace = 30",
                &[
                    "2:9: `grace` in [worker] is the number 30, not a duration; write it with its unit, as",
                ],
            ),
            (
                "[worker]\ngrace = \"30\"",
                &["2:9: `grace` in [worker] is \"30\", which is no duration ("],
            ),
            (
                "[worker]\nlisten = \"9464\"",
                &[
                    "2:10: `listen` in [worker] is \"9464\", which is no address to listen at; write it as HOST:PORT",
                ],
            ),
            ("[worker]\nname = \"\"", &["2:8: `name` in [worker] is empty; give it a value"]),
            (
                "[broker]\nurl = \"http://u:hush@a\"",
                &["2:7: `url` in [broker] cannot be used: it does not begin with amqp://"],
            ),
            (
                "[broker]\nnamespace = \"Shop\"",
                &["2:13: `namespace` in [broker] is refused: namespace `Shop`"],
            ),
            (
                "[broker]\ndeclare = \"yes\"",
                &["2:11: `declare` in [broker] is neither; write \"auto\" or \"never\""],
            ),
            (
                "[broker]\nstrict_topology = \"yes\"\npayload_limit = \"10\"",
                &[
                    "2:19: `strict_topology` in [broker] is a text, not true or false; write true or false",
                    "3:17: `payload_limit` in [broker] is \"10\", which is no size; write it with its unit",
                ],
            ),
            (
                "[queues.Mail]",
                &[
                    "1:9: queue `Mail` is not allowed: it has `M`; use a-z, 0-9, _ and -; rename the queue",
                ],
            ),
            ("[queues.dead]", &["1:9: queue `dead` is not allowed: the words"]),
            (
                "[queues.mail]\nconcurrency = 0\nprefetch = 70000\ntype = \"lazy\"\nrate = -1",
                &[
                    "2:15: `concurrency` in [queues.mail] is 0; write a whole number from 1 to 10000",
                    "3:12: `prefetch` in [queues.mail] is 70000; write a whole number from 1 to 2000",
                    "4:8: `type` in [queues.mail] is no type of queue; write \"quorum\" or \"classic\"",
                    "5:8: `rate` in [queues.mail] is -1; write a number of 0.001 or more",
                ],
            ),
            (
                "[functions.\"a.b\"]\nqueue = \"mail\"\nexec = [\"true\"]",
                &[
                    "2:9: queue `mail` of function `a.b` is not configured; add the line [queues.mail]",
                ],
            ),
            (
                "[queues.mail]\n[functions.\"a.b\"]\nqueue = \"mial\"\nexec = [\"true\"]",
                &[
                    "3:9: queue `mial` of function `a.b` is not configured; did you mean `mail`? If not, add the line [queues.mial]",
                ],
            ),
            (
                "[functions.\"a.b\"]\nqueue = \"x y\"\nexec = [\"true\"]",
                &[
                    "2:9: queue `x y` of function `a.b` is not configured; queue `x y` is not allowed: it has ` `",
                ],
            ),
            (
                "[functions.\"a.b\"]",
                &["1:12: [functions.\"a.b\"] does not say what runs; add exec = ["],
            ),
            (
                "[functions.mail.send]\nexec = [\"true\"]",
                &[
                    "1:12: [functions.mail] holds a table `send`; a kind with a dot needs quotes: [functions.\"mail.send\"]",
                ],
            ),
            (
                "[functions.\"a.b\"]\nexec = [\"true\"]\nhttp = \"http://a\"",
                &["1:12: [functions.\"a.b\"] has `exec` and `http`; keep one of them"],
            ),
            (
                "[functions.\"a.b\"]\nexec = \"true\"",
                &[
                    "2:8: `exec` in [functions.\"a.b\"] is a text, not a list; write a list of texts, as [\"a\", \"b\"]",
                ],
            ),
            (
                "[functions.\"a.b\"]\nexec = []",
                &["2:8: `exec` in [functions.\"a.b\"] is an empty list"],
            ),
            (
                "[functions.\"a.b\"]\nexec = [\"\"]",
                &["2:8: `exec` in [functions.\"a.b\"] names no program"],
            ),
            (
                "[functions.\"a.b\"]\nexec = [\"true\"]\ntimout = \"1s\"\nroots = [\"/\"]",
                &[
                    "3:1: unknown key `timout` in [functions.\"a.b\"]; did you mean `timeout`?",
                    "4:1: unknown key `roots` in [functions.\"a.b\"]; known are queue, timeout,",
                ],
            ),
            (
                "[functions.\"a.b\"]\nexec = [\"true\"]\nenv = { \"A=B\" = \"1\" }\npass_env = [\"FOREBAY_JOB_ID\"]",
                &[
                    "3:7: `env` in [functions.\"a.b\"] has \"A=B\", which cannot name a variable",
                    "4:12: `pass_env` in [functions.\"a.b\"] sets `FOREBAY_JOB_ID`; choose another name",
                ],
            ),
            (
                "[functions.\"a.b\"]\nhttp = \"example.com\"",
                &["2:8: `http` in [functions.\"a.b\"] is no http:// or https:// URL: "],
            ),
            (
                "[functions.\"a.b\"]\nhttp = \"http://a\"\nheaders = { content-type = \"x\" }\nsecret = \"hush\"",
                &[
                    "3:11: `headers` in [functions.\"a.b\"] sets the header `content-type`, which is ours to set",
                    "4:1: `secret` in [functions.\"a.b\"] would stand readable in this file; put it into an environment variable",
                ],
            ),
            (
                "[functions.\"a.b\"]\nuse = \"file.digets\"\nroots = [\"/\"]",
                &[
                    "2:7: `use` in [functions.\"a.b\"] names \"file.digets\", which is not built in; the built-in functions are: \"email.send\", \"file.digest\", \"image.thumbnail\"",
                ],
            ),
            (
                "[functions.\"a.b\"]\nuse = \"file.digest\"",
                &[
                    "1:12: [functions.\"a.b\"] may read nowhere; name the folders whose files a job may ask for: roots = [",
                ],
            ),
            (
                "[functions.\"a.b\"]\nexec = [\"true\"]\nretry = \"always\"",
                &[
                    "3:9: `retry` in [functions.\"a.b\"] is no retry policy; write retry = \"never\" or retry = {",
                ],
            ),
            (
                "[functions.\"a.b\"]\nexec = [\"true\"]\nretry = { max_attempts = 0, factor = 0.5, base = \"2m\", cap = \"1m\", jiter = true }",
                &[
                    "3:9: `base` is longer than `cap` in `retry` of [functions.\"a.b\"]",
                    "3:26: `max_attempts` in `retry` of [functions.\"a.b\"] is 0; write a whole number from 1",
                    "3:38: `factor` in `retry` of [functions.\"a.b\"] is 0.5; write a number of 1 or more",
                    "3:68: unknown key `jiter` in `retry` of [functions.\"a.b\"]; did you mean `jitter`?",
                ],
            ),
            (
                "[functions]\n\"\" = { exec = [\"true\"] }",
                &[
                    "2:1: kind \"\" cannot travel with a job; name it with 1 to 200 characters and no spaces",
                ],
            ),
            (
                "[servers.a]\nserve = []\nproceses = 2\nmax_jobs = 0\nstart_timeout = 3\n[servers.b]\nprocesses = 0",
                &[
                    "2:9: `serve` in [servers.a] is an empty list",
                    "3:1: unknown key `proceses` in [servers.a]; did you mean `processes`?",
                    "4:12: `max_jobs` in [servers.a] is 0; write a whole number from 1 to",
                    "5:17: `start_timeout` in [servers.a] is the number 3, not a duration",
                    "6:10: [servers.b] does not say what is started; add serve = [",
                    "7:13: `processes` in [servers.b] is 0",
                ],
            ),
            (
                "[servers.pricing]\nserve = [\"a\"]\n[functions.a]\nserver = \"prcing\"\n[functions.b]\nserver = \"mail\"\nprocesses = 2",
                &[
                    "3:12: server `prcing` of function `a` is not configured; did you mean `pricing`? If not, add [servers.prcing]",
                    "5:12: server `mail` of function `b` is not configured; add [servers.mail] and below it serve = [",
                    "7:1: unknown key `processes` in [functions.b]",
                ],
            ),
            (
                "[functions.a]\nserve = [\"a\"]\nexec = [\"a\"]",
                &["1:12: [functions.a] has `exec` and `serve`; keep one of them"],
            ),
            ("[[functions]]\nexec = [\"true\"]", &["1:1: `functions` is a list, not a table"]),
        ];
        for (text, expected) in table {
            let faults = Manifest::parse(text, "f.toml").unwrap_err();
            let lines: Vec<_> = faults.0.iter().map(ToString::to_string).collect();
            let fits = lines.len() == expected.len()
                && lines.iter().zip(*expected).all(|(line, begin)| {
                    line.strip_prefix("f.toml:").is_some_and(|line| line.starts_with(begin))
                });
            assert!(fits, "\n{text}\nfound {lines:#?}\nexpected {expected:#?}");
            assert!(!faults.to_string().contains("hush"), "{faults}");
        }
    }

    #[test]
    fn faults_of_the_whole_file_come_at_once_and_in_order() {
        let text =
            format!("{FINE}x = 1\n[queues.mail]\nrate = 0\n[functions.\"c.d\"]\n[worker]\ny = 1");
        let lines: Vec<_> =
            Manifest::parse(&text, "f").unwrap_err().0.into_iter().map(|f| f.line).collect();
        assert_eq!(lines, [Some(3), Some(5), Some(6), Some(8)]);
    }

    #[test]
    fn a_missing_file_is_one_fault() {
        let faults = Manifest::load("/no/such/forebay.toml").unwrap_err();
        assert_eq!(
            faults.to_string(),
            "/no/such/forebay.toml: the manifest cannot be read: No such file or directory (os \
             error 2); create it, or name another one with --config"
        );
    }

    #[test]
    fn an_empty_manifest_is_read() {
        assert_eq!(Manifest::parse("", "f").unwrap().functions.len(), 0);
    }
}
