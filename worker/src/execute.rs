//! One job, no broker: find its handler, decode, run the chain, mind the clock, catch a panic.
//! In: an envelope and the worker's parts. Out: what happened, named; it cannot fail.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_producer::link::after;
use forebay_producer::{BadSignature, Envelope, SigningKeys};
use futures_util::FutureExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, LazyProducer};
use crate::error::JobError;
use crate::handler::{Handler, Output, Ready, Registry, Undecoded};
use crate::idempotency::{Guard, Idempotency};
use crate::middleware::{Middleware, Next};
use crate::retry::Retry;
use crate::running::Running;

/// The worker's parts that every run needs.
pub(crate) struct App<S> {
    pub(crate) state: Arc<S>,
    pub(crate) registry: Registry<S>,
    pub(crate) middleware: Arc<[Middleware<S>]>,
    pub(crate) idempotency: Option<Idempotency>,
    /// Only jobs signed with one of these are run.
    pub(crate) signing_keys: Option<SigningKeys>,
    /// `host/pid`, as it is recorded on failures.
    pub(crate) name: String,
}

/// What happened to one run.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The handler returned `Ok`.
    Done(Output),
    /// The handler returned an error.
    Failed(JobError),
    /// The payload is not JSON, or headers are missing.
    Undecodable(String),
    /// No handler, no kind, or JSON of another shape: a newer worker may know it.
    Unknown(String),
    /// Longer than its timeout.
    TimedOut(Duration),
    /// The handler panicked.
    Panicked(String),
    /// Not signed as this worker wants it.
    Forged(BadSignature),
    /// Its time had passed before it could run.
    Expired,
    /// We are ending, or the broker has taken the job back: no verdict on the job.
    Cancelled,
    /// A job with the same key was done before; with its result, if that was kept.
    Duplicate(Option<Output>),
    /// Not run, or not to an end, because another run has its key or the store of keys does not
    /// answer: it comes again after this time.
    Waits(Duration),
}

impl<S: Send + Sync + 'static> App<S> {
    /// The handler for a job, if there is one.
    pub(crate) fn handler(&self, envelope: &Envelope) -> Option<&Arc<Handler<S>>> {
        self.registry.find(envelope.kind.as_deref()?)
    }

    /// The retry policy that applies to a job of this handler, or of none.
    pub(crate) fn retry(handler: Option<&Handler<S>>) -> Retry {
        handler.map_or_else(Retry::default, |handler| handler.options.retry)
    }

    /// Runs a job once.
    pub(crate) async fn run(
        &self,
        envelope: Envelope,
        now_ms: u64,
        place: Option<OwnedSemaphorePermit>,
        cancelled: &CancellationToken,
        producers: &Arc<LazyProducer>,
        running: &Arc<Running>,
    ) -> (Outcome, Context<S>) {
        let handler = self.handler(&envelope).map(Arc::as_ref);
        let timeout = handler.map_or(Duration::ZERO, |handler| handler.options.timeout);
        let namespace = producers.namespace();
        // Before the clock of the handler's timeout starts.
        let admitted = match self.prepare(handler, namespace, &envelope, now_ms, Handler::decode) {
            Ok(ready) => match self.enter(handler, namespace, &envelope, cancelled).await {
                Ok(guard) => Ok((ready, guard)),
                Err(outcome) => Err(outcome),
            },
            Err(outcome) => Err(outcome),
        };
        let stop = match &admitted {
            Ok((_, Some(guard))) => guard.stop().clone(),
            _ => cancelled.clone(),
        };
        let (state, producers) = (Arc::clone(&self.state), Arc::clone(producers));
        let cx = Context::new(state, envelope, after(timeout), stop, producers);
        cx.put_place(place);
        let _listed = running.begin(&cx);
        let outcome = match admitted {
            Err(outcome) => outcome,
            Ok((ready, None)) => self.attempt(ready, &cx, timeout).await,
            Ok((ready, Some(guard))) => {
                cx.put_claim(guard.number());
                let outcome = self.attempt(ready, &cx, timeout).await;
                Box::pin(guard.leave(outcome, cx.thread_ended())).await
            }
        };
        (outcome, cx)
    }

    pub(crate) async fn enter(
        &self,
        handler: Option<&Handler<S>>,
        namespace: &str,
        job: &Envelope,
        cancelled: &CancellationToken,
    ) -> Result<Option<Guard>, Outcome> {
        match &self.idempotency {
            Some(rules) if handler.is_some_and(|handler| handler.options.idempotent) => {
                // In a box of its own, so that the task of every job need not be as large.
                Box::pin(Guard::enter(rules, namespace, job, cancelled)).await
            }
            _ => Ok(None),
        }
    }

    /// Looks whether a job can be run, and decodes its payload.
    pub(crate) fn prepare<R>(
        &self,
        handler: Option<&Handler<S>>,
        namespace: &str,
        envelope: &Envelope,
        now_ms: u64,
        decode: impl FnOnce(&Handler<S>, &Bytes) -> Result<R, Undecoded>,
    ) -> Result<R, Outcome> {
        // Before anything looks at the payload.
        if let Some(keys) = &self.signing_keys {
            envelope.verify(keys, namespace).map_err(Outcome::Forged)?;
        }
        if envelope.expired(now_ms) {
            return Err(Outcome::Expired);
        }
        if let Some(omitted) = &envelope.broker.omitted {
            return Err(Outcome::Undecodable(format!(
                "its headers and the broker's marks are longer than a frame, so these were left \
                 out: {omitted}; redriven, it runs without them"
            )));
        }
        let Some(handler) = handler else { return Err(Outcome::Unknown(self.nobody(envelope))) };
        let decoded =
            std::panic::catch_unwind(AssertUnwindSafe(|| decode(handler, &envelope.payload)));
        match decoded {
            Ok(Ok(decoded)) => Ok(decoded),
            Ok(Err(Undecoded::NotJson(why))) => {
                Err(Outcome::Undecodable(format!("the payload is not JSON: {why}")))
            }
            Ok(Err(Undecoded::OtherShape(why))) => {
                Err(Outcome::Unknown(format!("the payload is not a `{}`: {why}", handler.kind)))
            }
            Err(panic) => Err(Outcome::Panicked(panic_message(panic.as_ref()))),
        }
    }

    /// The handler's future, within its time. Dropping it at the timeout or when the run is
    /// cancelled ends an async handler; a blocking one sees it in its context.
    pub(crate) async fn attempt(
        &self,
        ready: Ready<S>,
        cx: &Context<S>,
        timeout: Duration,
    ) -> Outcome {
        cx.tell_started();
        let given = cx.clone();
        // Called inside the future, so that a panic before the first await is caught as well.
        let chain = Next::new(Arc::clone(&self.middleware), ready);
        let run = AssertUnwindSafe(async move { chain.run(given).await }).catch_unwind();
        let timed = time::timeout_at(cx.deadline(), run);
        let ended = cx.stop().run_until_cancelled(timed).await;
        cx.tell_no_more();
        match ended {
            None => Outcome::Cancelled,
            Some(Err(_)) => Outcome::TimedOut(timeout),
            Some(Ok(Err(panic))) => Outcome::Panicked(panic_message(panic.as_ref())),
            Some(Ok(Ok(Ok(output)))) if cx.is_duplicate() => Outcome::Duplicate(Some(output)),
            Some(Ok(Ok(Ok(output)))) => Outcome::Done(output),
            Some(Ok(Ok(Err(error)))) => Outcome::Failed(error),
        }
    }

    fn nobody(&self, envelope: &Envelope) -> String {
        let Some(kind) = &envelope.kind else {
            return "the message has no kind (AMQP property `type`) and its queue has no \
                    default_kind"
                .to_owned();
        };
        let mut known: Vec<_> = self.registry.iter().map(|handler| handler.kind.as_str()).collect();
        known.sort_unstable();
        format!("no handler for kind `{kind}` in this worker, which knows {}", known.join(", "))
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", text.unwrap_or("with something that is not text"))
}
