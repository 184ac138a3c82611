//! Any program as a function.
//! In: a job, as JSON on the program's standard input. Out: by its exit code, its result or what
//! is to become of the job.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use bytes::Bytes;
use forebay_worker::{
    BatchContext, BatchResult, Context, Item, JobError, JobResult, Output, Results, TraceContext,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::debug;

use crate::batch;
use crate::capture::{Capture, STDERR};
use crate::process::{self, Ended};
use crate::word::{self, Hears, Word};

/// After exit code 75.
const LATER: Duration = Duration::from_secs(10);

/// A program that runs once for each job. Unix only.
///
/// # The contract
///
/// | | |
/// |---|---|
/// | command | program and arguments as they stand, no shell |
/// | standard input | the job's JSON; a program may leave it unread |
/// | environment | empty but for `PATH`, what [`env`](Exec::env) and [`pass_env`](Exec::pass_env) give, and `FOREBAY_JOB_ID`, `FOREBAY_JOB_KIND`, `FOREBAY_JOB_ATTEMPT` (from 1), `FOREBAY_JOB_DEADLINE` (milliseconds since the epoch), `FOREBAY_JOB_IDEMPOTENCY_KEY` (the job's key, else its id); `FOREBAY_JOB_CLAIM` (the claim number) if the worker claims jobs; `TRACEPARENT` and `TRACESTATE` if the job belongs to a trace |
/// | exit code 0 | done |
/// | 65 (`EX_DATAERR`) | the job can never succeed: dead letter |
/// | 75 (`EX_TEMPFAIL`) | not now: again in 10 s without using an attempt, at most 20 times |
/// | any other, or a signal | failed: again by the retry policy |
/// | standard output | JSON is the result, up to 16 MiB; of other text the last 4 kB, as a JSON string |
/// | standard error | its last 3.5 kB are recorded with the failure |
/// | file descriptor 3 | lines of JSON while it runs: `{"progress": …}`, `{"emit": {"channel": …, "event": …, "data": …}}` |
/// | timeout | TERM to its whole process group, KILL 5 s later |
/// | what it leaves running | is ended the same way, and so is everything when the worker dies |
///
/// ```
/// use forebay_handlers::Exec;
/// use forebay_worker::{HandlerOptions, Worker};
///
/// let render = Exec::new("python3").arg("render.py").current_dir("/srv/reports").pass_env("LANG");
/// let worker = Worker::builder(())
///     .queue("reports", forebay_worker::QueueOptions::new().concurrency(4))
///     .handle_raw("report.render", HandlerOptions::new().queue("reports"), render.handler())
///     .build()?;
/// # Ok::<(), forebay_worker::BuildError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Exec {
    program: OsString,
    arguments: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    folder: Option<PathBuf>,
}

/// A program that this machine does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MissingProgram {
    /// No such file, or not one that may be executed.
    #[error("`{}` is no program that can be run", .0.display())]
    File(PathBuf),
    /// Not in any folder of the path.
    #[error("program `{program}` is in no folder of PATH ({path})")]
    NotOnPath {
        /// Program.
        program: String,
        /// The path it was looked for on.
        path: String,
    },
    /// The folder to run in is missing.
    #[error("there is no folder `{}` to run it in", .0.display())]
    Folder(PathBuf),
}

/// A job as the program is told about it.
#[derive(Debug, Clone)]
struct Call<'a> {
    id: &'a str,
    kind: &'a str,
    attempt: u32,
    remaining: Duration,
    idempotency_key: &'a str,
    claim_number: Option<u64>,
    trace: Option<TraceContext>,
    payload: &'a [u8],
}

impl Exec {
    /// A program, found on the worker's `PATH` unless there is a slash in it.
    pub fn new(program: impl Into<OsString>) -> Self {
        let exec = Self {
            program: program.into(),
            arguments: Vec::new(),
            env: BTreeMap::new(),
            folder: None,
        };
        exec.pass_env("PATH")
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Takes a variable over from this process, as it is now, if it is set.
    pub fn pass_env(self, name: impl AsRef<OsStr>) -> Self {
        match std::env::var_os(name.as_ref()) {
            Some(value) => self.env(name.as_ref(), value),
            None => self,
        }
    }

    /// Sets the folder it runs in. Default: this process's.
    pub fn current_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Whether the program is there to be run, for a check before the first job.
    ///
    /// # Errors
    /// [`MissingProgram`] with where it was looked for.
    pub fn check(&self) -> Result<(), MissingProgram> {
        if let Some(folder) = self.folder.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(MissingProgram::Folder(folder.clone()));
        }
        let program = Path::new(&self.program);
        if program.components().count() > 1 {
            let from = self.folder.as_deref().unwrap_or(Path::new(""));
            let file = from.join(program);
            return if is_program(&file) { Ok(()) } else { Err(MissingProgram::File(file)) };
        }
        let path =
            self.env.get(OsStr::new("PATH")).cloned().unwrap_or_else(|| "/bin:/usr/bin".into());
        if std::env::split_paths(&path).any(|folder| is_program(&folder.join(program))) {
            return Ok(());
        }
        Err(MissingProgram::NotOnPath {
            program: self.name(),
            path: path.to_string_lossy().into_owned(),
        })
    }

    /// The function, for [`WorkerBuilder::handle_raw`](forebay_worker::WorkerBuilder::handle_raw).
    pub fn handler<S: Send + Sync + 'static>(
        self,
    ) -> impl Fn(Bytes, Context<S>) -> BoxFuture<'static, JobResult<Output>> + Send + Sync + 'static
    {
        let exec = Arc::new(self);
        move |payload, cx| {
            let exec = Arc::clone(&exec);
            async move {
                let call = Call {
                    id: cx.id(),
                    kind: cx.kind(),
                    attempt: cx.attempt(),
                    remaining: cx.remaining(),
                    idempotency_key: cx.idempotency_key().unwrap_or_else(|| cx.id()),
                    claim_number: cx.claim_number(),
                    trace: cx.trace(),
                    payload: &payload,
                };
                let noted = cx.clone();
                let on_progress = move |progress| noted.progress(progress);
                word::heard(&cx, on_progress, |hears| exec.run(&call, hears)).await
            }
            .boxed()
        }
    }

    /// The function for batches, for
    /// [`WorkerBuilder::handle_raw_batch`](forebay_worker::WorkerBuilder::handle_raw_batch).
    ///
    /// The program gets all jobs as one JSON array, each with `id`, `attempt` and `payload`, and
    /// `FOREBAY_BATCH_SIZE` in place of what the environment says of a single job. With exit code 0
    /// its output is nothing, or `{"batchItemFailures": [{"itemIdentifier": ID}]}`; any other exit
    /// code is about all of them. `docs/manifest.md` has the rest.
    pub fn batch_handler<S: Send + Sync + 'static>(
        self,
    ) -> impl Fn(Vec<Item<Bytes>>, BatchContext<S>) -> BoxFuture<'static, BatchResult<Output>>
    + Send
    + Sync
    + 'static {
        let exec = Arc::new(self);
        move |items, cx| {
            let exec = Arc::clone(&exec);
            async move { exec.run_batch(items, &cx).await }.boxed()
        }
    }

    async fn run_batch<S: Send + Sync + 'static>(
        &self,
        items: Vec<Item<Bytes>>,
        cx: &BatchContext<S>,
    ) -> BatchResult<Output> {
        let mut results = Results::new();
        let jobs = batch::jobs(&items, &mut results, batch::as_it_stands);
        let mut command = self.bare_command();
        command.env("FOREBAY_JOB_KIND", cx.kind());
        command.env("FOREBAY_JOB_DEADLINE", deadline_ms(cx.remaining()).to_string());
        command.env("FOREBAY_BATCH_SIZE", items.len().to_string());
        let items: Arc<[_]> = items.into();
        let noted = Arc::clone(&items);
        let on_progress =
            move |progress| noted.iter().for_each(|item: &Item<Bytes>| item.progress(&progress));
        let run = |hears| self.output_of(command, jobs.as_bytes(), hears);
        let answer = word::heard(cx, on_progress, run).await?;
        batch::read(&answer, &items, results)
    }

    async fn run(&self, call: &Call<'_>, hears: Hears) -> JobResult<Output> {
        self.output_of(self.command(call), call.payload, hears).await
    }

    async fn output_of(&self, command: Command, input: &[u8], hears: Hears) -> JobResult<Output> {
        let on_line = |line: &[u8]| match serde_json::from_slice::<Line>(line) {
            Ok(Line { progress: Some(progress), .. }) => hears(Word::Progress(progress)),
            Ok(Line { emit: Some(emit), .. }) => hears(word::emission(&emit)),
            _ => debug!(bytes = line.len(), "unknown line on descriptor 3"),
        };
        match process::run(command, input, on_line).await {
            Ok(ended) => self.judge(ended),
            // It may be installed by the time of the next attempt, or on another worker.
            Err(error) => Err(JobError::retry(anyhow!(self.not_started(&error)))),
        }
    }

    fn command(&self, call: &Call<'_>) -> Command {
        let mut command = self.bare_command();
        command.env("FOREBAY_JOB_ID", call.id);
        command.env("FOREBAY_JOB_KIND", call.kind);
        command.env("FOREBAY_JOB_ATTEMPT", call.attempt.to_string());
        command.env("FOREBAY_JOB_DEADLINE", deadline_ms(call.remaining).to_string());
        command.env("FOREBAY_JOB_IDEMPOTENCY_KEY", call.idempotency_key);
        if let Some(number) = call.claim_number {
            command.env("FOREBAY_JOB_CLAIM", number.to_string());
        }
        if let Some(trace) = &call.trace {
            command.env("TRACEPARENT", trace.traceparent());
            // One of another trace must not stay beside it.
            command.env_remove("TRACESTATE");
            command.envs(trace.tracestate().map(|state| ("TRACESTATE", state)));
        }
        command
    }

    /// The program with its arguments, environment and folder, without anything about a job.
    pub(crate) fn bare_command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().envs(&self.env);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }

    /// What the exit code says.
    fn judge(&self, ended: Ended) -> JobResult<Output> {
        let Ended { status, stdout, stderr } = ended;
        if status.success() {
            return Ok(stdout.into_output());
        }
        let cause = anyhow!("`{}` {}{}", self.name(), Ending(status), colon(&stderr));
        Err(match status.code() {
            Some(65) => JobError::reject(cause),
            Some(75) => JobError::defer(LATER).because(cause),
            _ => JobError::retry(cause),
        })
    }

    /// Why it could not be started.
    pub(crate) fn not_started(&self, error: &io::Error) -> String {
        match self.check() {
            Err(missing) => format!("cannot start `{}`: {missing}", self.name()),
            Ok(()) => format!("cannot start `{}`: {error}", self.name()),
        }
    }

    /// The arguments are left out of messages: they may hold secrets.
    pub(crate) fn name(&self) -> String {
        self.program.to_string_lossy().into_owned()
    }
}

/// A line on descriptor 3.
#[derive(Debug, Deserialize)]
struct Line {
    progress: Option<Value>,
    emit: Option<Box<RawValue>>,
}

/// How a program ended, in words.
pub(crate) struct Ending(pub(crate) ExitStatus);

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "ended with exit code {code}"),
            (None, Some(9)) => {
                f.write_str("was killed by signal 9: by hand, or for want of memory")
            }
            (None, Some(signal)) => write!(f, "was ended by signal {signal}"),
            (None, None) => write!(f, "ended ({})", self.0),
        }
    }
}

/// What a program said on standard error, as the end of a sentence about it.
pub(crate) fn colon(stderr: &Capture) -> String {
    let tail = stderr.tail(STDERR);
    if tail.is_empty() { tail } else { format!(": {tail}") }
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let facts = std::fs::metadata(file);
    facts.is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

pub(crate) fn deadline_ms(remaining: Duration) -> u128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now + remaining).as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_worker::testing::{self, Fate};
    use forebay_worker::{Envelope, HandlerOptions, QueueOptions, Worker};
    use serde_json::json;
    use std::sync::Mutex;
    use std::time::Instant;
    use tempfile::TempDir;

    fn shell(script: &str) -> Exec {
        Exec::new("/bin/sh").arg("-c").arg(script)
    }

    /// One run on the worker's own path, with its timeout.
    async fn fate_within(exec: Exec, payload: &str, timeout: Duration) -> Fate {
        let options = HandlerOptions::new().timeout(timeout);
        let worker = Worker::builder(())
            .queue("default", QueueOptions::new())
            .handle_raw("test.run", options, exec.handler())
            .build()
            .unwrap();
        let job = Envelope::new("test.run", "default", payload.to_owned());
        testing::run_envelope(&worker, job).await
    }

    async fn fate(exec: Exec) -> Fate {
        fate_within(exec, r#"{"page": 7}"#, Duration::from_secs(60)).await
    }

    async fn run(exec: Exec) -> (JobResult<Output>, Vec<Value>) {
        let noted = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&noted);
        let hears: Hears = Arc::new(move |word| match word {
            Word::Progress(progress) => kept.lock().unwrap().push(progress),
            other => kept.lock().unwrap().push(json!(format!("{other:?}"))),
        });
        let remaining = Duration::from_secs(60);
        let call = Call {
            id: "j1",
            kind: "a.b",
            attempt: 2,
            remaining,
            idempotency_key: "j1",
            claim_number: None,
            trace: None,
            payload: b"{}",
        };
        let result = exec.run(&call, hears).await;
        let noted = noted.lock().unwrap().clone();
        (result, noted)
    }

    fn message(fate: &Fate) -> &str {
        match fate {
            Fate::Again { message, .. } | Fate::Dead { message, .. } => message,
            other => panic!("{other:?} has no message"),
        }
    }

    async fn until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
        let began = Instant::now();
        while began.elapsed() < limit {
            if done() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        done()
    }

    fn alive(pid: &str) -> bool {
        let pid = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        // A process that has ended may wait for whoever adopted it.
        status.is_ok_and(|status| !status.contains(") Z "))
    }

    #[tokio::test]
    async fn the_job_comes_on_standard_input_and_json_on_standard_output_is_the_result() {
        let double =
            "import json, sys; print(json.dumps({'twice': 2 * json.load(sys.stdin)['page']}))";
        let exec = Exec::new("python3").arg("-c").arg(double).pass_env("HOME");
        assert_eq!(fate(exec).await, Fate::Done(json!({ "twice": 14 })));
    }

    #[tokio::test]
    async fn other_text_is_kept_as_a_string_and_none_as_nothing() {
        assert_eq!(fate(shell("echo all done")).await, Fate::Done(json!("all done")));
        assert_eq!(fate(shell(":")).await, Fate::Done(Value::Null));
    }

    #[tokio::test]
    async fn the_exit_code_decides_what_becomes_of_the_job() {
        let says = |code: u32| shell(&format!("echo why >&2; exit {code}"));
        assert_eq!(fate(says(0)).await, Fate::Done(Value::Null));
        let rejected = fate(says(65)).await;
        assert!(
            matches!(&rejected, Fate::Dead { reason, .. } if reason == "rejected"),
            "{rejected:?}"
        );
        let put_off = fate(says(75)).await;
        assert!(
            matches!(put_off, Fate::Again { after, attempt: 1, .. } if after == LATER),
            "{put_off:?}"
        );
        for code in [1, 2, 64, 66, 127, 255] {
            let failed = fate(says(code)).await;
            assert!(matches!(failed, Fate::Again { attempt: 2, .. }), "{code}: {failed:?}");
            assert_eq!(message(&failed), format!("`/bin/sh` ended with exit code {code}: why"));
        }
    }

    #[tokio::test]
    async fn a_signal_is_a_failure_that_names_it() {
        let ended = fate(shell("kill -s TERM $$")).await;
        assert_eq!(message(&ended), "`/bin/sh` was ended by signal 15");
        let killed = fate(shell("kill -s KILL $$")).await;
        assert!(message(&killed).contains("for want of memory"), "{killed:?}");
    }

    #[tokio::test]
    async fn a_program_that_does_not_read_its_job_is_fine() {
        let payload = format!("\"{}\"", "x".repeat(1 << 20));
        let exec = shell("exec <&-; echo 1");
        let fate = fate_within(exec, &payload, Duration::from_secs(60)).await;
        assert_eq!(fate, Fate::Done(json!(1)));
    }

    #[tokio::test]
    async fn the_environment_is_clean_but_for_path_and_what_was_asked_for() {
        let exec = Exec::new("env").env("LANG", "C").pass_env("HOME").pass_env("NOT_SET_1");
        let (result, _) = run(exec).await;
        let text: String = serde_json::from_slice(result.unwrap().json().unwrap()).unwrap();
        let mut names: Vec<_> = text.lines().map(|line| line.split('=').next().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "FOREBAY_JOB_ATTEMPT",
                "FOREBAY_JOB_DEADLINE",
                "FOREBAY_JOB_ID",
                "FOREBAY_JOB_IDEMPOTENCY_KEY",
                "FOREBAY_JOB_KIND",
                "HOME",
                "LANG",
                "PATH"
            ]
        );
        assert!(text.contains("FOREBAY_JOB_ID=j1\n"), "{text}");
        assert!(text.contains("FOREBAY_JOB_IDEMPOTENCY_KEY=j1\n"), "{text}");
        assert!(text.contains("FOREBAY_JOB_KIND=a.b\n"), "{text}");
        assert!(text.contains("FOREBAY_JOB_ATTEMPT=2\n"), "{text}");
    }

    #[tokio::test]
    async fn the_trace_of_a_job_is_in_the_environment_and_a_broken_one_is_not() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let exec = || shell("echo \"$TRACEPARENT $TRACESTATE\"").env("TRACESTATE", "other=1");
        for (headers, expected) in [
            (vec![("traceparent", parent), ("tracestate", "a=1")], format!("{parent} a=1")),
            (vec![("traceparent", parent)], parent.to_owned()),
            (vec![("traceparent", "00-aa-bb-01")], "other=1".to_owned()),
        ] {
            let mut job = Envelope::new("test.run", "default", "{}");
            for (name, value) in headers {
                job.set_header(name, value).unwrap();
            }
            let worker = Worker::builder(())
                .queue("default", QueueOptions::new())
                .handle_raw("test.run", HandlerOptions::new(), exec().handler())
                .build()
                .unwrap();
            let Fate::Done(Value::String(told)) = testing::run_envelope(&worker, job).await else {
                panic!("not done")
            };
            assert_eq!(told.trim(), expected);
        }
    }

    #[tokio::test]
    async fn the_deadline_is_told_in_milliseconds_since_the_epoch() {
        let (result, _) = run(shell("echo $FOREBAY_JOB_DEADLINE")).await;
        let deadline: u128 = serde_json::from_slice(result.unwrap().json().unwrap()).unwrap();
        let expected = deadline_ms(Duration::from_secs(60));
        assert!(expected.abs_diff(deadline) < 10_000, "{deadline} is not near {expected}");
    }

    #[tokio::test]
    async fn arguments_are_not_read_by_a_shell() {
        let exec = Exec::new("echo").args(["$HOME", "a b", "*", "; exit 1"]);
        assert_eq!(fate(exec).await, Fate::Done(json!("$HOME a b * ; exit 1")));
    }

    #[tokio::test]
    async fn it_runs_in_its_folder() {
        let folder = TempDir::new().unwrap();
        let real = folder.path().canonicalize().unwrap();
        let exec = Exec::new("pwd").current_dir(folder.path());
        assert_eq!(fate(exec).await, Fate::Done(json!(real.to_str().unwrap())));
    }

    #[tokio::test]
    async fn progress_comes_as_lines_on_descriptor_three() {
        let script = r#"
            echo '{"progress": {"pages": 1}}' >&3
            echo 'not json' >&3
            echo '{"event": "other"}' >&3
            head -c 70000 /dev/zero | tr '\0' x >&3; echo >&3
            printf '{"progress": 2}' >&3
            echo '"end"'"#;
        let (result, noted) = run(shell(script)).await;
        assert_eq!(result.unwrap(), Output::from_json("\"end\"\n"));
        assert_eq!(noted, [json!({ "pages": 1 }), json!(2)]);
    }

    #[tokio::test]
    async fn what_channels_are_to_be_told_comes_the_same_way() {
        let script = r#"
            echo '{"emit": {"channel": "orders", "event": "paid", "data": {"n": 1.0}}}' >&3
            echo '{"emit": {"channel": "orders"}}' >&3
            echo '{"emit": {"channel": "orders", "event": "shipped"}}' >&3"#;
        let (result, said) = run(shell(script)).await;
        result.unwrap();
        let paid =
            r#"Emit(Emission { channel: "orders", event: "paid", data: RawValue({"n": 1.0}) })"#;
        let shipped =
            r#"Emit(Emission { channel: "orders", event: "shipped", data: RawValue(null) })"#;
        let garbled = r#"Garbled(Error("missing field `event`", line: 1, column: 21))"#;
        assert_eq!(said, [json!(paid), json!(garbled), json!(shipped)]);
    }

    #[tokio::test]
    async fn progress_is_seen_while_the_program_runs() {
        let (cx, _stop) = testing::context_until(
            (),
            Envelope::new("test.run", "default", "{}"),
            Duration::from_secs(60),
        );
        let folder = TempDir::new().unwrap();
        let go = folder.path().join("go");
        let script = format!(
            "echo '{{\"progress\": 5}}' >&3; until [ -e {} ]; do sleep 0.01; done",
            go.display()
        );
        let job = tokio::spawn(shell(&script).handler::<()>()(Bytes::from("{}"), cx.clone()));
        assert!(until(Duration::from_secs(10), || cx.last_progress() == Some(json!(5))).await);
        std::fs::write(go, "").unwrap();
        job.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn only_the_end_of_a_huge_output_is_kept() {
        let (result, _) = run(shell("head -c 20000000 /dev/zero | tr '\\0' x; echo the end")).await;
        let text: String = serde_json::from_slice(result.unwrap().json().unwrap()).unwrap();
        assert!(text.len() <= 4096 && text.ends_with("xthe end"), "{} bytes", text.len());
    }

    #[tokio::test]
    async fn a_large_result_is_kept_whole_when_it_is_json() {
        let script = "printf '\"'; head -c 3000000 /dev/zero | tr '\\0' x; printf '\"'";
        let (result, _) = run(shell(script)).await;
        assert_eq!(result.unwrap().json().unwrap().len(), 3_000_002);
    }

    #[tokio::test]
    async fn only_the_end_of_standard_error_is_recorded() {
        let script = "head -c 1000000 /dev/zero | tr '\\0' e >&2; echo boom >&2; exit 3";
        let failed = fate(shell(script)).await;
        assert!(message(&failed).ends_with("eboom"), "{failed:?}");
        assert!((3_000..4_097).contains(&message(&failed).len()));
    }

    #[tokio::test]
    async fn a_missing_program_is_retried_and_named() {
        let missing = fate(Exec::new("no-such-program-1")).await;
        assert!(matches!(missing, Fate::Again { attempt: 2, .. }), "{missing:?}");
        assert!(
            message(&missing).starts_with(
                "cannot start `no-such-program-1`: program `no-such-program-1` is in no folder of PATH"
            ),
            "{missing:?}"
        );
        let missing = fate(Exec::new("true").current_dir("/no/such/folder")).await;
        assert_eq!(
            message(&missing),
            "cannot start `true`: there is no folder `/no/such/folder` to run it in"
        );
    }

    #[test]
    fn a_check_tells_what_is_there_from_what_is_not() {
        let folder = TempDir::new().unwrap();
        let text = folder.path().join("text");
        std::fs::write(&text, "").unwrap();
        assert_eq!(Exec::new("sh").check(), Ok(()));
        assert_eq!(Exec::new("/bin/sh").check(), Ok(()));
        assert_eq!(Exec::new(&text).check(), Err(MissingProgram::File(text)));
        assert_eq!(
            Exec::new("./text").current_dir(folder.path()).check(),
            Err(MissingProgram::File(folder.path().join("./text")))
        );
        let nowhere = Exec::new("sh").env("PATH", "/no/such");
        assert!(matches!(nowhere.check(), Err(MissingProgram::NotOnPath { .. })));
    }

    #[tokio::test]
    async fn a_timeout_ends_the_program_and_its_children() {
        let folder = TempDir::new().unwrap();
        let pids = folder.path().join("pids");
        let script = format!("sleep 600 & echo $! $$ > {}; wait", pids.display());
        let late = fate_within(shell(&script), "{}", Duration::from_secs(1)).await;
        assert!(matches!(late, Fate::Again { attempt: 2, .. }), "{late:?}");
        let pids = std::fs::read_to_string(pids).unwrap();
        for pid in pids.split_whitespace() {
            assert!(until(Duration::from_secs(4), || !alive(pid)).await, "{pid} still runs");
        }
    }

    #[tokio::test]
    async fn a_program_that_ignores_term_is_killed_five_seconds_later() {
        let folder = TempDir::new().unwrap();
        let pid = folder.path().join("pid");
        let script =
            format!("trap '' TERM; echo $$ > {}; while :; do sleep 0.1; done", pid.display());
        fate_within(shell(&script), "{}", Duration::from_secs(1)).await;
        let pid = std::fs::read_to_string(pid).unwrap();
        assert!(!until(Duration::from_secs(3), || !alive(&pid)).await, "killed too early");
        assert!(until(Duration::from_secs(5), || !alive(&pid)).await, "still runs");
    }

    #[tokio::test]
    async fn what_a_program_leaves_behind_is_ended_and_does_not_hold_up_the_result() {
        let began = Instant::now();
        let (result, _) = run(shell("sleep 600 & echo $!")).await;
        let pid: u32 = serde_json::from_slice(result.unwrap().json().unwrap()).unwrap();
        assert!(began.elapsed() < Duration::from_secs(4));
        assert!(until(Duration::from_secs(4), || !alive(&pid.to_string())).await);
    }
}
