//! Testing handlers (feature `testing`): one run without a broker, or a whole worker on a real one.
//! In: a job. Out: what the worker would do with it.
//!
//! ```
//! use forebay_worker::testing::{self, Fate};
//! use forebay_worker::{Context, Job, JobError, JobResult, QueueOptions, Worker};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct SendEmail { to: String }
//! impl Job for SendEmail { const KIND: &'static str = "email.send"; }
//!
//! async fn send_email(job: SendEmail, _cx: Context<()>) -> JobResult {
//!     if job.to.contains('@') { Ok(()) } else { Err(JobError::reject(anyhow::anyhow!("no address"))) }
//! }
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let worker = Worker::builder(()).queue("default", QueueOptions::new()).handle(send_email).build()?;
//! let fate = testing::run(&worker, &SendEmail { to: "nobody".into() }).await;
//! assert!(matches!(fate, Fate::Dead { ref reason, .. } if reason == "rejected"));
//! # Ok::<(), forebay_worker::BuildError>(())
//! # }).unwrap();
//! ```

pub mod workbench;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_producer::link::after;
pub use forebay_producer::testing::{
    Authority, Broker, Cluster, Frame, Issued, Meddle, OwnBroker, Postgres, Proxy, Redis, broker,
    broker_of_its_own, cluster, postgres, postgres_of_its_own, redis, redis_of_its_own,
};
use forebay_producer::wire::envelope::now_ms;
use forebay_producer::{Config, Delay, Envelope, Job};
use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::batch::{Gathering, Wait};
use crate::context::{Context, LazyProducer};
use crate::execute::{App, Outcome};
use crate::running::Running;
use crate::runtime::Worker;
use crate::verdict::{self, Facts, Verdict};

/// Jobs that are run together do not wait for more of them.
const SHORT: Duration = Duration::from_millis(100);

/// What the worker would do with a job after one run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Fate {
    /// Acked; with the handler's result.
    Done(Value),
    /// It would come again.
    Again {
        /// After this time.
        after: Duration,
        /// As this attempt.
        attempt: u32,
        /// The failure recorded on it, if one was.
        message: String,
    },
    /// It would be a dead letter.
    Dead {
        /// The reason word.
        reason: String,
        /// The failure recorded on it.
        message: String,
    },
    /// It would go back to its queue.
    GivenBack,
}

/// Runs a job once through the worker's own path (decoding, middleware, timeout, panic), without a
/// broker.
pub async fn run<S: Send + Sync + 'static, J: Job>(worker: &Worker<S>, job: &J) -> Fate {
    let payload = serde_json::to_vec(job).expect("the job turns into JSON");
    run_envelope(worker, Envelope::new(J::KIND, J::QUEUE, payload)).await
}

/// Runs an envelope once, as [`run`]: with a payload or an attempt of your own.
pub async fn run_envelope<S: Send + Sync + 'static>(worker: &Worker<S>, job: Envelope) -> Fate {
    let (app, stop) = (&worker.app, CancellationToken::new());
    let running = Arc::new(Running::default());
    let (outcome, cx) = app.run(job, now_ms(), None, &stop, &producers(), &running).await;
    decide(app, outcome, cx.envelope())
}

fn decide<S: Send + Sync + 'static>(app: &App<S>, outcome: Outcome, job: &Envelope) -> Fate {
    let handler = app.handler(job).map(Arc::as_ref);
    let facts =
        Facts { retry: App::retry(handler), chance: 0.5, now_ms: now_ms(), worker: &app.name };
    fate(verdict::decide(outcome, job, &facts))
}

/// Runs jobs once, as a batch handler is given them together: what would be done with each, in
/// their order.
pub async fn run_batch<S: Send + Sync + 'static, J: Job>(
    worker: &Worker<S>,
    jobs: &[J],
) -> Vec<Fate> {
    let envelope = |job| {
        let payload = serde_json::to_vec(job).expect("the job turns into JSON");
        Envelope::new(J::KIND, J::QUEUE, payload)
    };
    run_envelopes(worker, jobs.iter().map(envelope).collect()).await
}

/// Runs envelopes of one kind once, as [`run_batch`]. They come together unless there are more than
/// the batch's size, or what precedes it (middleware, claims) takes one of them longer than 100 ms.
///
/// # Panics
/// When the kind of the first has no batch handler.
pub async fn run_envelopes<S: Send + Sync + 'static>(
    worker: &Worker<S>,
    jobs: Vec<Envelope>,
) -> Vec<Fate> {
    let app = &worker.app;
    let Some(first) = jobs.first() else { return Vec::new() };
    let options = app.handler(first).and_then(|handler| Some((handler, handler.options.batch?)));
    let (handler, batch) = options.expect("a batch handler");
    let batch = batch.size(batch.size.min(jobs.len())).window(batch.window.min(SHORT));
    let places = Arc::new(Semaphore::new(worker.limits(&handler.queue).map_or(1, |most| most.0)));
    let gathering = Gathering::new(handler, batch, &handler.queue, &places).map(Arc::new);
    let gathering = gathering.expect("a batch handler");
    let (stop, giving_back, tasks) =
        (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
    let (producers, running) = (producers(), Arc::new(Running::default()));
    let start_by = after(Duration::from_secs(3600));
    let wait = Wait { start_by, giving_back: &giving_back, stop: &stop, tasks: &tasks };
    let runs = jobs.into_iter().map(|job| async {
        let ran = app.run_in_batch(&gathering, job, &wait, &producers, &running, |_| {}).await;
        decide(app, ran.outcome, ran.cx.envelope())
    });
    join_all(runs).await
}

/// A context for calling a handler function directly.
pub fn context<S>(state: S, envelope: Envelope) -> Context<S> {
    let deadline = after(Duration::from_secs(300));
    Context::new(Arc::new(state), envelope, deadline, CancellationToken::new(), producers())
}

/// A context with a deadline and a way to cancel it.
pub fn context_until<S>(
    state: S,
    envelope: Envelope,
    timeout: Duration,
) -> (Context<S>, CancellationToken) {
    let stop = CancellationToken::new();
    let deadline = after(timeout);
    let cx = Context::new(Arc::new(state), envelope, deadline, stop.clone(), producers());
    (cx, stop)
}

fn producers() -> Arc<LazyProducer> {
    let config = Config::from_env().or_else(|_| Config::new("amqp://127.0.0.1"));
    Arc::new(LazyProducer::new(config.expect("a fixed URL")))
}

fn fate(verdict: Verdict) -> Fate {
    let last = |envelope: &Envelope| {
        envelope.failures.last().map(|failure| failure.message.clone()).unwrap_or_default()
    };
    match verdict {
        Verdict::Ack(output) | Verdict::Duplicate(Some(output)) => {
            let json = output.json().map_or(&b"null"[..], Bytes::as_ref);
            Fate::Done(serde_json::from_slice(json).unwrap_or(Value::Null))
        }
        Verdict::Again { delay, envelope, .. } => Fate::Again {
            after: delay.map(Delay::duration).unwrap_or_default(),
            attempt: envelope.attempt,
            message: last(&envelope),
        },
        Verdict::Dead(letter) => Fate::Dead {
            reason: letter.dead.as_ref().map(|mark| mark.reason.to_string()).unwrap_or_default(),
            message: last(&letter),
        },
        Verdict::Duplicate(None) => Fate::Done(Value::Null),
        Verdict::GiveBack => Fate::GivenBack,
    }
}
