//! What a batch handler is given: its jobs, and what they have in common.
//! In: the contexts of the single runs. Out: items with payload and facts, and one context.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

#[cfg(feature = "otel")]
use forebay_producer::otel;
use forebay_producer::{EmitError, Envelope, Producer, TraceContext};
use serde_json::Value;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::context::{Context, told_by};

/// One job of a batch: its payload, and what is known of it.
pub struct Item<J> {
    /// The payload.
    pub job: J,
    place: usize,
    about: Box<dyn About>,
}

/// A run's context, whatever the worker's state is.
trait About: Send + Sync {
    fn envelope(&self) -> &Envelope;
    fn claim_number(&self) -> Option<u64>;
    fn is_cancelled(&self) -> bool;
    fn progress(&self, progress: Value);
    fn trace(&self) -> Option<TraceContext>;
    fn producer(&self) -> &Producer;
}

impl<S: Send + Sync> About for Context<S> {
    fn envelope(&self) -> &Envelope {
        self.envelope()
    }

    fn claim_number(&self) -> Option<u64> {
        self.claim_number()
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled()
    }

    fn progress(&self, progress: Value) {
        self.progress(progress);
    }

    fn trace(&self) -> Option<TraceContext> {
        self.trace_of_run()
    }

    fn producer(&self) -> &Producer {
        self.shared_producer()
    }
}

impl<J> Item<J> {
    pub(super) fn new<S>(job: J, place: usize, cx: Context<S>) -> Self
    where
        S: Send + Sync + 'static,
    {
        Self { job, place, about: Box::new(cx) }
    }

    /// Its place in the batch, from 0.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// Job id; the same in every attempt. The same job may stand in a batch twice, if the broker
    /// delivered it twice.
    pub fn id(&self) -> &str {
        &self.envelope().id
    }

    /// Which attempt this is, from 1: each job of a batch has its own.
    pub fn attempt(&self) -> u32 {
        self.envelope().attempt
    }

    /// Whether the broker handed this very message out before: an earlier run may have begun and
    /// even finished its work.
    pub fn redelivered(&self) -> bool {
        self.envelope().broker.redelivered
    }

    /// How often a process died, or lost its connection, while it had this job.
    pub fn crashes(&self) -> u32 {
        self.envelope().crashes
    }

    /// The sender's idempotency key.
    pub fn idempotency_key(&self) -> Option<&str> {
        self.envelope().idempotency_key.as_deref()
    }

    /// The number of this job's claim; see [`Context::claim_number`].
    pub fn claim_number(&self) -> Option<u64> {
        self.about.claim_number()
    }

    /// A header of the sender's own, as text.
    pub fn header(&self, name: &str) -> Option<String> {
        self.envelope().header(name)
    }

    /// Everything that travels with the job.
    pub fn envelope(&self) -> &Envelope {
        self.about.envelope()
    }

    /// Whether this job's result no longer matters, while those of others in the batch may.
    pub fn is_cancelled(&self) -> bool {
        self.about.is_cancelled()
    }

    /// Notes how far this job is; see [`Context::progress`].
    pub fn progress(&self, progress: impl serde::Serialize) {
        self.about.progress(serde_json::to_value(progress).unwrap_or(Value::Null));
    }

    /// Tells a channel something in the name of this job; see [`Context::emit`].
    ///
    /// # Errors
    /// [`EmitError`], at the publish deadline at the latest.
    pub async fn emit(
        &self,
        channel: &str,
        event: &str,
        data: &impl serde::Serialize,
    ) -> Result<(), EmitError> {
        let (told, producer) =
            (told_by(self.envelope(), channel, event, data)?, self.about.producer());
        producer.emit_event(told, producer.deadline()).await
    }

    /// The trace of this job, to pass on to what is done for it alone.
    pub fn trace(&self) -> Option<TraceContext> {
        self.about.trace()
    }
}

impl<J> fmt::Debug for Item<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Item")
            .field("id", &self.id())
            .field("attempt", &self.attempt())
            .finish_non_exhaustive()
    }
}

/// What the jobs of a batch have in common: shared state, kind, queue, deadline, a producer.
///
/// Clones are cheap and refer to the same batch.
pub struct BatchContext<S> {
    batch: Arc<Batch<S>>,
}

struct Batch<S> {
    /// The first job's, for what is the same for all.
    any: Context<S>,
    cancelled: CancellationToken,
    producer: OnceLock<Producer>,
    span: Span,
}

impl<S> BatchContext<S> {
    /// Of a batch in which `any` is; `cancelled` when nobody waits for it any more.
    pub(super) fn new(any: Context<S>, cancelled: CancellationToken, span: Span) -> Self {
        Self { batch: Arc::new(Batch { any, cancelled, producer: OnceLock::new(), span }) }
    }

    /// The state given to [`Worker::builder`](crate::Worker::builder).
    pub fn state(&self) -> &S {
        self.batch.any.state()
    }

    /// Kind of all its jobs.
    pub fn kind(&self) -> &str {
        self.batch.any.kind()
    }

    /// The queue they came from.
    pub fn queue(&self) -> &str {
        self.batch.any.queue()
    }

    /// When the handler will be stopped: its timeout counts from the begin of the batch, not from
    /// that of the window.
    pub fn deadline(&self) -> Instant {
        self.batch.any.deadline()
    }

    /// The time left until the deadline.
    pub fn remaining(&self) -> Duration {
        self.batch.any.remaining()
    }

    /// Resolves when no result of the batch matters any longer: the timeout has passed, the
    /// worker's grace period is over, or the broker has taken all of its jobs back. The handler is
    /// dropped then anyway; this is for tasks that it has started.
    pub async fn cancelled(&self) {
        tokio::select! {
            () = self.batch.cancelled.cancelled() => {}
            () = time::sleep_until(self.deadline()) => {}
        }
    }

    /// Whether no result of the batch matters any longer.
    pub fn is_cancelled(&self) -> bool {
        self.batch.cancelled.is_cancelled() || Instant::now() >= self.deadline()
    }

    /// A producer for follow-up jobs, with the worker's own connection, opened at first use. What
    /// it publishes belongs to the batch's span where spans are recorded (feature `otel`), else to
    /// no trace; [`Item::trace`] has each job's own.
    pub fn producer(&self) -> &Producer {
        self.batch.producer.get_or_init(|| {
            let shared = self.batch.any.shared_producer();
            #[cfg(feature = "otel")]
            if let Some(trace) = otel::context_of(self.span()) {
                return shared.with_trace(trace);
            }
            shared.clone()
        })
    }

    /// Tells a channel something in the name of no job; [`Item::emit`] does it in one's.
    ///
    /// # Errors
    /// As [`Item::emit`].
    pub async fn emit(
        &self,
        channel: &str,
        event: &str,
        data: &impl serde::Serialize,
    ) -> Result<(), EmitError> {
        self.batch.any.shared_producer().emit(channel, event, data).await
    }

    /// The span of the batch: log lines inside it name kind, queue, the batch's number and how
    /// many jobs it has. The handler is in it already; tasks that it spawns are not, unless they
    /// are given it.
    pub fn span(&self) -> &Span {
        &self.batch.span
    }
}

impl<S> Clone for BatchContext<S> {
    fn clone(&self) -> Self {
        Self { batch: Arc::clone(&self.batch) }
    }
}

impl<S> fmt::Debug for BatchContext<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchContext").field("kind", &self.kind()).finish_non_exhaustive()
    }
}
