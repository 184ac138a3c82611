//! From a manifest to a worker.
//! In: a `forebay.toml`, and settings that come before it. Out: a [`Worker`] and a [`Config`], or
//! everything that is wrong with the file and with this machine, at once.

mod claims;
mod prepare;
mod servers;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use forebay_worker::{
    BuildError, Config, ConfigError, Declare, HandlerOptions, SigningKeys, Worker, WorkerBuilder,
};

use crate::manifest::fault::suggestion;
use crate::manifest::{Batch, Broker, Fault, Faults, Function, Listen, Manifest};
use crate::serve::Server;
use prepare::prepare;
use servers::Servers;

/// What comes before the manifest: flags and the environment. `Debug` does not show the URL.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Consume only these of the manifest's queues; all if empty.
    pub queues: Vec<String>,
    /// Where the broker is.
    pub url: Option<String>,
    /// The first part of every name on the broker.
    pub namespace: Option<String>,
    /// What may be declared.
    pub declare: Option<Declare>,
    /// Whether queues with other arguments are refused.
    pub strict_topology: Option<bool>,
    /// End when a queue was not consumed for so long.
    pub exit_after: Option<Duration>,
}

impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overrides").field("queues", &self.queues).finish_non_exhaustive()
    }
}

/// A manifest and the worker it describes.
#[derive(Debug)]
#[non_exhaustive]
pub struct App {
    /// The manifest, reduced to the queues that are consumed.
    pub manifest: Manifest,
    /// The worker.
    pub worker: Worker<()>,
    /// The long-lived programs that its functions use. They start with the first job unless
    /// [`start`](Server::start)ed before, and end when they are dropped, unless
    /// [`close`](Server::close)d before.
    pub servers: Vec<Server>,
}

impl App {
    /// How many runs of a kind there are at once in this process, each of a batch if it takes
    /// batches; `None` if it is not known, or its queue is not consumed.
    pub fn at_once(&self, kind: &str) -> Option<usize> {
        let function = self.manifest.functions.get(kind)?;
        let (queue, _) = self.worker.limits(&function.queue)?;
        let own = function.concurrency.or_else(|| servers::places(function, &self.manifest));
        let own = own.or(function.batch.map(|_| 1));
        Some(own.map_or(queue, |own| own.min(queue)))
    }
}

/// Reads a manifest and builds its worker, looking for what it names on this machine too:
/// programs, folders, secrets.
///
/// ```no_run
/// use forebay_handlers::app::{self, Overrides};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let overrides = Overrides::default();
/// let app = app::open("forebay.toml", &overrides)?;
/// let config = app::config(&app.manifest.broker, &overrides)?;
/// app.worker.run(&config, async { tokio::signal::ctrl_c().await.unwrap() }).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Every fault at once.
pub fn open(file: impl AsRef<Path>, overrides: &Overrides) -> Result<App, Faults> {
    let (mut manifest, mut faults) = Manifest::survey(file.as_ref());
    faults.extend(kinds_without_function(&manifest));
    faults.extend(reduce(&mut manifest, &overrides.queues));
    if let Some(idle) = overrides.exit_after {
        manifest.worker.exit_after = Some(idle);
    }
    if manifest.functions.is_empty() && faults.is_empty() {
        faults.push(fault(&manifest, None, "no function is named", NO_FUNCTION));
    }
    let worker = match assemble(Worker::builder(()), &manifest) {
        Ok((builder, servers)) if faults.is_empty() => {
            let built = builder.build().map_err(|error| wrong(&manifest, &error));
            built.map(|worker| (worker, servers))
        }
        Ok(_) => Err(Vec::new()),
        Err(Faults(more)) => Err(more),
    };
    match worker {
        Ok((worker, servers)) => Ok(App { manifest, worker, servers }),
        Err(more) => {
            faults.extend(more);
            faults.iter_mut().for_each(|fault| file.as_ref().clone_into(&mut fault.file));
            faults.sort_by_key(|fault| (fault.line, fault.column));
            Err(Faults(faults))
        }
    }
}

const NO_FUNCTION: &str =
    "add one, for example: [functions.\"hello.say\"] and below it exec = [\"echo\", \"hello\"]";

/// Adds a manifest's queues and functions to a worker of one's own; `[worker]` is applied too.
/// Long-lived programs start with the first job, and end when the worker is dropped.
///
/// # Errors
/// What this machine lacks: programs, folders, secrets.
pub fn add<S: Send + Sync + 'static>(
    builder: WorkerBuilder<S>,
    manifest: &Manifest,
) -> Result<WorkerBuilder<S>, Faults> {
    assemble(builder, manifest).map(|(builder, _)| builder)
}

fn assemble<S: Send + Sync + 'static>(
    mut builder: WorkerBuilder<S>,
    manifest: &Manifest,
) -> Result<(WorkerBuilder<S>, Vec<Server>), Faults> {
    let settings = &manifest.worker;
    if let Some(name) = &settings.name {
        builder = builder.name(name.clone());
    }
    if let Some(grace) = settings.grace {
        builder = builder.grace(grace);
    }
    if let Some(timeout) = settings.consumer_timeout {
        builder = builder.consumer_timeout(timeout);
    }
    if let Some(idle) = settings.exit_after {
        builder = builder.exit_after(idle);
    }
    let mut faults = Vec::new();
    if settings.require_signatures == Some(true) {
        match keys() {
            Ok(keys) => builder = builder.require_signatures(keys),
            Err((what, remedy)) => faults.push(fault(manifest, None, what, remedy)),
        }
    }
    for (name, queue) in &manifest.queues {
        builder = builder.queue(name.clone(), queue.options());
    }
    let (servers, more) = Servers::prepare(manifest);
    faults.extend(more);
    if let Some(settings) = &manifest.idempotency {
        match claims::prepare(settings) {
            Ok(rules) => builder = builder.idempotency(rules),
            Err((what, remedy)) => {
                let what = format!("[idempotency]: {what}");
                faults.push(fault(manifest, Some(settings.line), what, remedy));
            }
        }
    }
    for (kind, function) in &manifest.functions {
        match prepare(kind, function, &servers) {
            Ok(Some(ready)) => {
                let batch = function.batch.map(Batch::options);
                builder = ready.register(builder, kind, options(function, manifest), batch);
            }
            // Its server is missing, and that fault is known.
            Ok(None) => {}
            Err((what, remedy)) => {
                let what = format!("function `{kind}`: {what}");
                faults.push(fault(manifest, Some(function.line), what, remedy));
            }
        }
    }
    if faults.is_empty() { Ok((builder, servers.all)) } else { Err(Faults(faults)) }
}

/// The keys of signed jobs, for a worker that runs no others.
fn keys() -> Result<SigningKeys, (String, &'static str)> {
    let remedy = "set FOREBAY_SIGNING_KEYS_FILE to a file with a line NAME=SECRET for each key, or \
                  FOREBAY_SIGNING_KEYS to the same, separated by commas";
    match SigningKeys::from_env() {
        Ok(Some(keys)) => Ok(keys),
        Ok(None) => Err(("only signed jobs are to be run, and there is no key".to_owned(), remedy)),
        Err(error) => Err((error.to_string(), remedy)),
    }
}

/// Where the worker of this manifest answers health checks, if it says so; whatever else is wrong
/// with it, or if there is none.
pub fn listen(file: impl AsRef<Path>) -> Option<Listen> {
    Manifest::survey(file.as_ref()).0.worker.listen
}

/// The connection's settings: overrides, then `[broker]`, then the defaults. Of the files that lead
/// to secrets, the environment's come before the manifest's.
///
/// # Errors
/// [`ConfigError`] when one of them cannot be used.
pub fn config(broker: &Broker, overrides: &Overrides) -> Result<Config, ConfigError> {
    let url = overrides.url.as_ref().or(broker.url.as_ref());
    let mut config = match url {
        Some(url) => Config::new(url)?,
        None => Config::from_env()?,
    };
    if let Some(namespace) = overrides.namespace.as_ref().or(broker.namespace.as_ref()) {
        config = config.namespace(namespace)?;
    }
    if let Some(declare) = overrides.declare.or(broker.declare) {
        config = config.declare(declare);
    }
    if let Some(strict) = overrides.strict_topology.or(broker.strict_topology) {
        config = config.strict_topology(strict);
    }
    if let Some(limit) = broker.payload_limit {
        config = config.payload_limit(limit);
    }
    if let Some(file) = &broker.password_file {
        config = config.password_file(file);
    }
    if let Some(file) = &broker.ca_file {
        config = config.ca_file(file);
    }
    if let Some((cert, key)) = &broker.client_certificate {
        config = config.client_certificate(cert, key);
    }
    config.retention(broker.events).secrets_from_env()?.retention_from_env()
}

fn options(function: &Function, manifest: &Manifest) -> HandlerOptions {
    let mut options = function.options();
    if function.concurrency.is_none()
        && let Some(places) = servers::places(function, manifest)
    {
        options = options.concurrency(places);
    }
    // Jobs of any kind may come on any queue, so that with `--queue` every function is at hand; one
    // whose own queue is not consumed here is checked against another.
    match manifest.queues.keys().next() {
        Some(other) if !manifest.queues.contains_key(&function.queue) => options.queue(other),
        _ => options,
    }
}

/// Keeps the queues that are to be consumed.
fn reduce(manifest: &mut Manifest, only: &[String]) -> Vec<Fault> {
    let names = || manifest.queues.keys().map(String::as_str);
    let unknown = only.iter().filter(|name| !manifest.queues.contains_key(*name));
    let faults: Vec<_> = unknown
        .map(|name| {
            let remedy = match suggestion(name, names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("its queues are: {}", names().collect::<Vec<_>>().join(", ")),
            };
            fault(manifest, None, format!("there is no queue `{name}` to consume"), remedy)
        })
        .collect();
    if !only.is_empty() {
        manifest.queues.retain(|name, _| only.contains(name));
    }
    faults
}

fn kinds_without_function(manifest: &Manifest) -> Vec<Fault> {
    let kinds = || manifest.functions.keys().map(String::as_str);
    let lost = manifest.queues.iter().filter_map(|(name, queue)| {
        let kind = queue.default_kind.as_deref()?;
        if manifest.functions.contains_key(kind) {
            return None;
        }
        let remedy = match suggestion(kind, kinds()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("name one of the kinds in [functions], or add [functions.\"{kind}\"]"),
        };
        let what =
            format!("`default_kind` of queue `{name}` is `{kind}`, which no function handles");
        Some(fault(manifest, queue.line, what, remedy))
    });
    lost.collect()
}

/// The builder's sentences, each at the line of the function or queue that it names.
fn wrong(manifest: &Manifest, error: &BuildError) -> Vec<Fault> {
    let named = |sentence: &str, name: &str| sentence.contains(&format!("`{name}`"));
    let line = |sentence: &str| {
        let mut functions = manifest.functions.iter();
        let mut queues = manifest.queues.iter();
        let function = functions.find(|(kind, _)| named(sentence, kind));
        let queue = queues.find(|(name, _)| named(sentence, name));
        function.map(|(_, function)| function.line).or(queue.and_then(|(_, queue)| queue.line))
    };
    error.faults.iter().map(|sentence| fault(manifest, line(sentence), sentence, "")).collect()
}

fn fault(
    manifest: &Manifest,
    line: Option<usize>,
    what: impl Into<String>,
    remedy: impl Into<String>,
) -> Fault {
    let file = manifest.file.clone();
    Fault { file, line, column: None, what: what.into(), remedy: remedy.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_worker::Envelope;
    use forebay_worker::testing::{self, Fate};
    use serde_json::json;
    use std::fs;
    use std::path::PathBuf;
    use tempfile::TempDir;

    fn written(text: &str) -> (TempDir, PathBuf) {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("forebay.toml");
        fs::write(&file, text).unwrap();
        (folder, file)
    }

    fn faults(text: &str, overrides: &Overrides) -> Vec<String> {
        let (folder, file) = written(text);
        let faults = open(&file, overrides).unwrap_err();
        let folder = format!("{}/", folder.path().display());
        faults.0.iter().map(|fault| fault.to_string().replace(&folder, "")).collect()
    }

    #[tokio::test]
    async fn a_manifest_s_functions_run() {
        let (folder, file) = written(
            r#"
            [functions."hello.say"]
            exec = ["./hello"]
            [functions."file.digest"]
            use = "file.digest"
            roots = ["."]
            "#,
        );
        let program = folder.path().join("hello");
        fs::write(&program, "#!/bin/sh\npwd\n").unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let app = open(&file, &Overrides::default()).unwrap();
        let hello = testing::run_envelope(&app.worker, Envelope::new("hello.say", "default", "{}"));
        let here = folder.path().canonicalize().unwrap();
        assert_eq!(hello.await, Fate::Done(json!(here)));
        let job = json!({ "path": file }).to_string();
        let digest =
            testing::run_envelope(&app.worker, Envelope::new("file.digest", "default", job));
        assert!(matches!(digest.await, Fate::Done(_)));
    }

    #[test]
    fn kinds_share_the_server_they_name_and_have_one_of_their_own_otherwise() {
        let text = r#"
[servers.pricing]
serve = ["cat"]
processes = 2
jobs_per_process = 3
[servers.unused]
serve = ["cat"]
[functions."a.a"]
server = "pricing"
[functions."b.b"]
server = "pricing"
[functions."c.c"]
serve = ["cat"]
[functions."d.d"]
serve = ["cat"]
"#;
        let (_folder, file) = written(text);
        let app = open(&file, &Overrides::default()).unwrap();
        let names: Vec<_> = app.servers.iter().map(|server| server.status().name).collect();
        assert_eq!(names, ["pricing", "c.c", "d.d"]);
        assert_eq!((app.at_once("a.a"), app.at_once("c.c")), (Some(6), Some(1)));
        assert_eq!(app.servers.iter().map(Server::places).collect::<Vec<_>>(), [6, 1, 1]);
        let wrong = "[servers.a]\nserve = [\"no-such-program-1\"]\n[functions.b]\nserver = \"a\"\n[functions.c]\nserve = [\"./missing\"]";
        let found = faults(wrong, &Overrides::default());
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[0].starts_with("forebay.toml:1: server `a`: program `no-such-program-1` is"));
        assert!(found[1].starts_with("forebay.toml:5: server `c`: `./missing` is no program"));
    }

    #[test]
    fn what_this_machine_lacks_comes_with_the_faults_of_the_file() {
        let found = faults(
            r#"[functions."a.a"]
exec = ["no-such-program-1"]
[functions."b.b"]
exec = ["./missing"]
[functions."c.c"]
exec = ["true"]
cwd = "missing"
[functions."d.d"]
http = "http://localhost"
secret_env = "NO_SUCH_VARIABLE_1"
[functions."e.e"]
use = "file.digest"
roots = ["missing"]
[functions."f.f"]
exec = ["true"]
tmeout = "1s"
"#,
            &Overrides::default(),
        );
        let expected = [
            "forebay.toml:1: function `a.a`: program `no-such-program-1` is in no folder of PATH (",
            "forebay.toml:3: function `b.b`: `./missing` is no program that can be run; correct its path",
            "forebay.toml:5: function `c.c`: there is no folder `missing` to run it in; create it",
            "forebay.toml:8: function `d.d`: variable `NO_SUCH_VARIABLE_1` with its secret is not set; set it",
            "forebay.toml:11: function `e.e`: `missing` is no folder that can be read: No such file",
            "forebay.toml:16:1: unknown key `tmeout` in [functions.\"f.f\"]; did you mean `timeout`?",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}\n{expected}");
        }
    }

    #[test]
    fn what_the_worker_refuses_is_found_at_the_function_s_line() {
        let text = "[queues.default]\nconcurrency = 1\nprefetch = 100\n[functions.\"a.b\"]\nexec = [\"true\"]\ntimeout = \"10m\"";
        let found = faults(text, &Overrides::default());
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(
            found[0].starts_with("forebay.toml:4: the handler of `a.b` may take"),
            "{found:#?}"
        );
    }

    #[test]
    fn a_manifest_without_functions_is_refused_and_so_is_a_default_kind_without_one() {
        let found = faults("[queues.mail]", &Overrides::default());
        assert!(found[0].starts_with("forebay.toml: no function is named; add one"), "{found:#?}");
        let text = "[queues.default]\ndefault_kind = \"mail.sent\"\n[functions.\"mail.send\"]\nexec = [\"true\"]";
        assert_eq!(
            faults(text, &Overrides::default()),
            [
                "forebay.toml:1: `default_kind` of queue `default` is `mail.sent`, which no function \
              handles; did you mean `mail.send`?"
            ]
        );
    }

    #[test]
    fn only_the_queues_asked_for_are_consumed_with_all_functions() {
        let text = "[queues.mail]\n[queues.slow]\n[functions.\"a.b\"]\nexec = [\"true\"]\nqueue = \"mail\"";
        let (_folder, file) = written(text);
        let overrides = Overrides { queues: vec!["slow".to_owned()], ..Overrides::default() };
        let app = open(&file, &overrides).unwrap();
        assert_eq!(app.manifest.queues.keys().collect::<Vec<_>>(), ["slow"]);
        assert_eq!(app.manifest.functions.len(), 1);
        let overrides = Overrides { queues: vec!["slwo".to_owned()], ..Overrides::default() };
        assert_eq!(
            faults(text, &overrides),
            ["forebay.toml: there is no queue `slwo` to consume; did you mean `slow`?"]
        );
    }

    #[test]
    fn overrides_come_before_the_manifest() {
        let text = "[broker]\nurl = \"amqp://file\"\nnamespace = \"file\"\nstrict_topology = true";
        let broker = Manifest::parse(text, "f").unwrap().broker;
        let plain = config(&broker, &Overrides::default()).unwrap();
        assert_eq!((plain.broker().as_str(), plain.topology().namespace()), ("file:5672", "file"));
        let overrides = Overrides {
            url: Some("amqp://flag:1".to_owned()),
            namespace: Some("flag".to_owned()),
            declare: Some(Declare::Never),
            ..Overrides::default()
        };
        let config = config(&broker, &overrides).unwrap();
        assert_eq!((config.broker().as_str(), config.topology().namespace()), ("flag:1", "flag"));
        assert_eq!(config.declares(), Declare::Never);
        assert!(!format!("{overrides:?}").contains("flag"));
    }
}
