//! Any long-lived program as a function: it is started once and takes one job after another.
//! In: jobs, as lines of JSON on the program's standard input. Out: its answers, by the name of
//! the run, on file descriptor 3.

mod child;
mod ears;
mod pool;
mod protocol;
mod roster;
mod voice;

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use forebay_worker::{
    BatchContext, BatchResult, Context, Item, JobError, JobResult, Output, Results, TraceContext,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::timeout;
use tokio_util::sync::DropGuard;

use crate::batch;
use crate::exec::{Exec, MissingProgram, deadline_ms};
use crate::word::{self, Hears};
use pool::Pool;
use protocol::{Answer, BatchTask, Task, Then};
use roster::Reply;

/// For jobs whose process was ended through no fault of theirs.
const SOON: Duration = Duration::from_secs(1);

/// For jobs that no process took.
const LATER: Duration = Duration::from_secs(10);

/// How many processes a [`Server`] has, and how many jobs each.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct ServerOptions {
    pub(crate) processes: usize,
    pub(crate) jobs_per_process: usize,
    pub(crate) max_jobs: Option<u64>,
    pub(crate) start_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            processes: 1,
            jobs_per_process: 1,
            max_jobs: None,
            start_timeout: Duration::from_secs(30),
        }
    }
}

impl ServerOptions {
    /// One process, one job at once, as many jobs as come, 30 s to start.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many processes there are, at least 1. Default: 1.
    pub fn processes(mut self, processes: usize) -> Self {
        self.processes = processes.max(1);
        self
    }

    /// Sets how many jobs one process has at once, at least 1. Default: 1.
    pub fn jobs_per_process(mut self, jobs: usize) -> Self {
        self.jobs_per_process = jobs.max(1);
        self
    }

    /// Replaces a process after so many jobs, at least 1. Default: never.
    pub fn max_jobs(mut self, jobs: u64) -> Self {
        self.max_jobs = Some(jobs.max(1));
        self
    }

    /// Sets how long a process may take to say that it is ready. Default: 30 s.
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.start_timeout = limit;
        self
    }
}

/// A program that is started once and takes one job after another. Unix only.
///
/// `docs/serve.md` describes what the program reads and writes. Clones refer to the same
/// processes; dropping the last one, handlers included, ends them.
///
/// ```
/// use forebay_handlers::{Exec, Server, ServerOptions};
/// use forebay_worker::{HandlerOptions, Worker};
///
/// let program = Exec::new("python3").arg("worker.py").current_dir("/srv/pricing");
/// let server = Server::new("pricing", program, ServerOptions::new().processes(2));
/// let options = HandlerOptions::new().concurrency(server.places());
/// let worker = Worker::builder(())
///     .queue("default", forebay_worker::QueueOptions::new())
///     .handle_raw("price.quote", options, server.handler())
///     .build()?;
/// # Ok::<(), forebay_worker::BuildError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Server {
    pool: Arc<Pool>,
    _ends_with_us: Arc<DropGuard>,
}

/// What a [`Server`] does now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// Processes that take jobs.
    pub ready: usize,
    /// Processes that there are to be.
    pub processes: usize,
    /// Jobs that a process has.
    pub running: usize,
    /// Jobs that wait for a process.
    pub waiting: usize,
    /// Why the last process failed, until one has answered a job since.
    pub trouble: Option<String>,
}

impl Server {
    /// A server of this name; the name is for logs and metrics.
    pub fn new(name: impl AsRef<str>, program: Exec, options: ServerOptions) -> Self {
        let pool = Arc::new(Pool::new(name.as_ref(), program, options));
        let guard = Arc::new(pool.stop.clone().drop_guard());
        Self { pool, _ends_with_us: guard }
    }

    /// Whether the program is there to be run.
    ///
    /// # Errors
    /// [`MissingProgram`] with where it was looked for.
    pub fn check(&self) -> Result<(), MissingProgram> {
        self.pool.exec.check()
    }

    /// How many jobs it has at once, in all its processes: a fit
    /// [`concurrency`](forebay_worker::HandlerOptions::concurrency) for its handlers. A job that
    /// waits for a process uses up its timeout; one that waits for its handler's turn does not.
    pub fn places(&self) -> usize {
        self.pool.options.processes.saturating_mul(self.pool.options.jobs_per_process)
    }

    /// Starts the processes now, so that a broken program is seen at once; without it they start
    /// with the first job.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(&self) {
        self.pool.start();
    }

    /// Ends the processes and returns when they are gone: standard input is closed, 2 s later comes
    /// TERM, 5 s later KILL. To be called when the worker has ended.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// What it does now.
    pub fn status(&self) -> ServerStatus {
        let roster = self.pool.roster();
        let (ready, running) = roster.count();
        ServerStatus {
            name: self.pool.name.to_string(),
            ready,
            processes: self.pool.options.processes,
            running,
            waiting: self.pool.waiting(),
            trouble: roster.trouble.clone(),
        }
    }

    /// A function, for [`WorkerBuilder::handle_raw`](forebay_worker::WorkerBuilder::handle_raw);
    /// as many kinds as one likes may share the processes.
    pub fn handler<S: Send + Sync + 'static>(
        &self,
    ) -> impl Fn(Bytes, Context<S>) -> BoxFuture<'static, JobResult<Output>> + Send + Sync + 'static
    {
        let server = self.clone();
        move |payload, cx| {
            let server = server.clone();
            async move { server.run(&payload, &cx).await }.boxed()
        }
    }

    /// A function for batches, for
    /// [`WorkerBuilder::handle_raw_batch`](forebay_worker::WorkerBuilder::handle_raw_batch). A batch
    /// takes one place, however many jobs it has.
    pub fn batch_handler<S: Send + Sync + 'static>(
        &self,
    ) -> impl Fn(Vec<Item<Bytes>>, BatchContext<S>) -> BoxFuture<'static, BatchResult<Output>>
    + Send
    + Sync
    + 'static {
        let server = self.clone();
        move |items, cx| {
            let server = server.clone();
            async move { server.run_batch(items, &cx).await }.boxed()
        }
    }

    async fn run<S: Send + Sync + 'static>(
        &self,
        payload: &[u8],
        cx: &Context<S>,
    ) -> JobResult<Output> {
        let payload = std::str::from_utf8(payload)
            .map_err(|error| JobError::reject(anyhow!("the payload is not UTF-8: {error}")))?;
        let noted = cx.clone();
        let on_progress = move |progress| noted.progress(progress);
        let line = |run: &str| protocol::job_line(&task(run, cx), payload);
        word::heard(cx, on_progress, |hears| self.hand_over(cx.remaining(), hears, line)).await
    }

    async fn run_batch<S: Send + Sync + 'static>(
        &self,
        items: Vec<Item<Bytes>>,
        cx: &BatchContext<S>,
    ) -> BatchResult<Output> {
        let mut results = Results::new();
        let jobs = batch::jobs(&items, &mut results, protocol::push_on_one_line);
        let items: Arc<[_]> = items.into();
        let noted = Arc::clone(&items);
        let on_progress =
            move |progress| noted.iter().for_each(|item: &Item<Bytes>| item.progress(&progress));
        let line = |run: &str| {
            let (kind, queue) = (cx.kind(), cx.queue());
            protocol::batch_line(
                &BatchTask { run, kind, queue, deadline_ms: due(cx.remaining()) },
                &jobs,
            )
        };
        let run = |hears| self.hand_over(cx.remaining(), hears, line);
        let answer = word::heard(cx, on_progress, run).await?;
        batch::read(&answer, &items, results)
    }

    /// Hands a line to a process that has a free place, and waits for its answer.
    async fn hand_over(
        &self,
        remaining: Duration,
        hears: Hears,
        line: impl FnOnce(&str) -> Vec<u8>,
    ) -> JobResult<Output> {
        self.start();
        // So that whichever process takes it has at least as long for it.
        let patience = remaining / 2;
        let Ok(mut place) = timeout(patience, self.pool.place(hears)).await else {
            return Err(self.untaken(patience));
        };
        let run = place.run.to_string();
        place.send(line(&run));
        match (&mut place.taken.reply).await {
            Ok(reply) => verdict(reply),
            Err(_) => Err(JobError::defer(SOON)),
        }
    }

    fn untaken(&self, patience: Duration) -> JobError {
        let status = self.status();
        let waited = humantime::format_duration(Duration::from_secs(patience.as_secs().max(1)));
        let why = format!("no process of server `{}` took the job within {waited}", status.name);
        let why = match status.trouble {
            Some(trouble) => format!("{why}: {trouble}"),
            None => format!("{why}; {} of {} are ready", status.ready, status.processes),
        };
        JobError::defer(LATER).because(anyhow!(why))
    }
}

fn task<'a, S>(run: &'a str, cx: &'a Context<S>) -> Task<'a> {
    let trace = cx.trace();
    Task {
        run,
        id: cx.id(),
        kind: cx.kind(),
        queue: cx.queue(),
        attempt: cx.attempt(),
        deadline_ms: due(cx.remaining()),
        redelivered: cx.redelivered(),
        crashes: cx.crashes(),
        idempotency_key: cx.idempotency_key(),
        claim_number: cx.claim_number(),
        traceparent: trace.as_ref().map(|trace| trace.traceparent().to_owned()),
        tracestate: trace.as_ref().and_then(TraceContext::tracestate).map(str::to_owned),
    }
}

fn due(remaining: Duration) -> u64 {
    u64::try_from(deadline_ms(remaining)).unwrap_or(u64::MAX)
}

fn verdict(reply: Reply) -> JobResult<Output> {
    let (why, then) = match reply {
        Reply::Answer(Answer::Done(result)) => {
            return Ok(Output::from_json(String::from(Box::<str>::from(result))));
        }
        Reply::Answer(Answer::Failed { why, then }) => (why, then),
        Reply::Lost { why, innocent: false } => (why, Then::Retry),
        Reply::Lost { why, innocent: true } => (why, Then::Defer(SOON)),
    };
    Err(then.because(why))
}
