//! What a handler is given besides its payload.
//! In: a delivery's envelope and the worker's shared parts. Out: a cheap handle to all of them.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use forebay_producer::link::after;
#[cfg(feature = "otel")]
use forebay_producer::otel;
use forebay_producer::wire::event::event_data;
use forebay_producer::{Config, EmitError, Envelope, Event, EventKind, Producer, TraceContext};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{self, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Span, debug};

use crate::telling::Telling;

/// A handler's surroundings: shared state, facts about the job, its deadline, a producer.
///
/// Clones are cheap and refer to the same run.
pub struct Context<S> {
    run: Arc<Run<S>>,
}

pub(crate) struct Run<S> {
    pub(crate) state: Arc<S>,
    pub(crate) envelope: Envelope,
    pub(crate) deadline: Instant,
    pub(crate) cancelled: CancellationToken,
    pub(crate) producers: Arc<LazyProducer>,
    pub(crate) progress: Mutex<Option<Value>>,
    /// The handler's place, if it has a limit; a blocking handler's thread takes it along.
    place: Mutex<Option<OwnedSemaphorePermit>>,
    /// Cancelled when the thread of a blocking handler ends.
    thread: Mutex<Option<CancellationToken>>,
    /// The number of the claim that the run has, once it is known; see [`Context::claim_number`].
    claim: OnceLock<u64>,
    /// Of a tracked job.
    telling: Option<Arc<Telling>>,
    /// The handler found that its work was done before.
    duplicate: AtomicBool,
    /// The producer for follow-up jobs; made when it is first asked for.
    producer: OnceLock<Producer>,
    span: Span,
}

impl<S> Context<S> {
    pub(crate) fn new(
        state: Arc<S>,
        envelope: Envelope,
        deadline: Instant,
        cancelled: CancellationToken,
        producers: Arc<LazyProducer>,
    ) -> Self {
        let telling = envelope.track.then(|| Telling::new(Arc::clone(&producers)));
        let run = Run {
            state,
            envelope,
            deadline,
            cancelled,
            producers,
            progress: Mutex::default(),
            place: Mutex::default(),
            thread: Mutex::default(),
            claim: OnceLock::new(),
            telling,
            duplicate: AtomicBool::new(false),
            producer: OnceLock::new(),
            span: Span::current(),
        };
        Self { run: Arc::new(run) }
    }

    pub(crate) fn run(&self) -> Arc<Run<S>> {
        Arc::clone(&self.run)
    }

    /// Cancelled when the result no longer matters, but for the deadline.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.run.cancelled
    }

    pub(crate) fn put_claim(&self, number: u64) {
        _ = self.run.claim.set(number);
    }

    /// Notes that a thread runs the handler. It has ended when the guard is dropped.
    pub(crate) fn begin_thread(&self) -> DropGuard {
        let ended = CancellationToken::new();
        *self.run.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended.clone());
        ended.drop_guard()
    }

    /// Tells the end of the thread that still runs the handler, if one does.
    pub(crate) fn thread_ended(&self) -> Option<CancellationToken> {
        let thread = self.run.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.clone().filter(|ended| !ended.is_cancelled())
    }

    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "the inbox notes it"))]
    pub(crate) fn note_duplicate(&self) {
        self.run.duplicate.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_duplicate(&self) -> bool {
        self.run.duplicate.load(Ordering::Relaxed)
    }

    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "the inbox asks for it"))]
    pub(crate) fn namespace(&self) -> &str {
        self.run.producers.namespace()
    }

    pub(crate) fn tell_started(&self) {
        if let Some(telling) = &self.run.telling {
            telling.begins(Event::started(&self.run.envelope));
        }
    }

    pub(crate) fn tell_no_more(&self) {
        if let Some(telling) = &self.run.telling {
            telling.no_more();
        }
    }

    /// The worker's own producer, of no trace.
    pub(crate) fn shared_producer(&self) -> &Producer {
        self.run.producers.get()
    }

    pub(crate) fn put_place(&self, place: Option<OwnedSemaphorePermit>) {
        *self.run.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    pub(crate) fn take_place(&self) -> Option<OwnedSemaphorePermit> {
        self.run.place.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The state given to [`Worker::builder`](crate::Worker::builder).
    pub fn state(&self) -> &S {
        &self.run.state
    }

    /// Job id; the same in every attempt.
    pub fn id(&self) -> &str {
        &self.run.envelope.id
    }

    /// Kind.
    pub fn kind(&self) -> &str {
        self.run.envelope.kind.as_deref().unwrap_or_default()
    }

    /// The queue the job came from.
    pub fn queue(&self) -> &str {
        &self.run.envelope.queue
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.run.envelope.attempt
    }

    /// Whether the broker handed this very message out before: an earlier run may have begun and
    /// even finished its work.
    pub fn redelivered(&self) -> bool {
        self.run.envelope.broker.redelivered
    }

    /// How often the process died under this job.
    pub fn crashes(&self) -> u32 {
        self.run.envelope.crashes
    }

    /// How often the job was redriven from the dead letters.
    pub fn redrives(&self) -> u32 {
        self.run.envelope.redrives
    }

    /// The sender's key for this piece of work, if it gave one.
    pub fn idempotency_key(&self) -> Option<&str> {
        self.run.envelope.idempotency_key.as_deref()
    }

    /// The number of this run's claim, with [`Idempotency`](crate::Idempotency): each run of the
    /// same key has a larger one than the run before. Whoever keeps the largest it has seen, and
    /// refuses writes with a smaller one, is safe from a run that comes late.
    pub fn claim_number(&self) -> Option<u64> {
        self.run.claim.get().copied()
    }

    /// A header of the sender's own, as text.
    pub fn header(&self, name: &str) -> Option<String> {
        self.run.envelope.header(name)
    }

    /// Everything that travels with the job.
    pub fn envelope(&self) -> &Envelope {
        &self.run.envelope
    }

    /// When the handler will be stopped.
    pub fn deadline(&self) -> Instant {
        self.run.deadline
    }

    /// The time left until the deadline.
    pub fn remaining(&self) -> Duration {
        self.run.deadline.saturating_duration_since(Instant::now())
    }

    /// Resolves when the result no longer matters: the timeout has passed, the worker's grace
    /// period is over, or the broker has taken the job back. An async handler is dropped then
    /// anyway; a blocking one should look at [`Context::is_cancelled`] now and then.
    pub async fn cancelled(&self) {
        tokio::select! {
            () = self.run.cancelled.cancelled() => {}
            () = time::sleep_until(self.run.deadline) => {}
        }
    }

    /// Whether the result no longer matters.
    pub fn is_cancelled(&self) -> bool {
        self.run.cancelled.is_cancelled() || Instant::now() >= self.run.deadline
    }

    /// Notes how far the job is: shown by [`Controls::running`](crate::Controls::running) and
    /// logged at debug level. Only the newest is kept.
    ///
    /// Of a job that is tracked it is told as an event, too: up to ten times a second, and then the
    /// newest. It is not waited for, and not confirmed to the handler.
    pub fn progress(&self, progress: impl Serialize) {
        let progress = serde_json::to_value(progress).unwrap_or(Value::Null);
        debug!(job.id = self.id(), job.kind = self.kind(), %progress, "progress");
        if let Some(telling) = &self.run.telling
            && let Ok(data) = event_data(&progress)
        {
            telling.progress(Event::of_job(EventKind::Progress, &self.run.envelope, data));
        }
        *self.run.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress);
    }

    /// The newest progress noted.
    pub fn last_progress(&self) -> Option<Value> {
        self.run.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells a channel something: whoever reads it, by the gateway or `forebay follow --channel`,
    /// now or later, gets the event with this name and data, and which job told it. `Ok` means that
    /// the broker has confirmed it. A run that is repeated tells it again.
    ///
    /// Any job may do so, tracked or not. Channels and names are 1 to 200 characters of `a-z`,
    /// `A-Z`, `0-9` and `. _ - : @ /`, the whole event at most 64 KiB.
    ///
    /// ```no_run
    /// # async fn example(cx: forebay_worker::Context<()>) -> forebay_worker::JobResult {
    /// cx.emit("order:4711", "paid", &serde_json::json!({ "by": "card" })).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`EmitError`], at the publish deadline or the job's at the latest. A handler that does not
    /// depend on it may go on.
    pub async fn emit(
        &self,
        channel: &str,
        event: &str,
        data: &impl Serialize,
    ) -> Result<(), EmitError> {
        let told = told_by(&self.run.envelope, channel, event, data)?;
        let by = self.run.deadline.min(after(self.run.producers.config.deadline()));
        self.run.producers.get().emit_event(told, by).await
    }

    /// A producer for follow-up jobs, with the worker's own connection, opened at first use. What
    /// it publishes belongs to the trace of this job, also from tasks and threads that the
    /// handler starts.
    pub fn producer(&self) -> &Producer {
        self.run.producer.get_or_init(|| {
            let shared = self.run.producers.get();
            self.trace_of_run().map_or_else(|| shared.clone(), |trace| shared.with_trace(trace))
        })
    }

    /// The trace to pass on to what this handler calls, as headers `traceparent` and
    /// `tracestate`: the job's own; where spans are recorded (feature `otel`), the current span's,
    /// else that of the run. `None` if the job belongs to no trace.
    pub fn trace(&self) -> Option<TraceContext> {
        #[cfg(feature = "otel")]
        if let Some(trace) = otel::current() {
            return Some(trace);
        }
        self.trace_of_run()
    }

    pub(crate) fn trace_of_run(&self) -> Option<TraceContext> {
        #[cfg(feature = "otel")]
        if let Some(trace) = otel::context_of(self.span()) {
            return Some(trace);
        }
        self.run.envelope.trace()
    }

    /// The span of this run: log lines inside it name the job. The handler is in it already;
    /// tasks that it spawns are not, unless they are given it
    /// (`tokio::spawn(work.instrument(cx.span().clone()))`).
    pub fn span(&self) -> &Span {
        &self.run.span
    }
}

/// What a job tells a channel.
pub(crate) fn told_by(
    job: &Envelope,
    channel: &str,
    event: &str,
    data: &impl Serialize,
) -> Result<Event, EmitError> {
    let data = event_data(data).map_err(|error| EmitError::Encode(error.to_string()))?;
    Ok(Event::of_channel(channel, event, data)?.told_by(job))
}

impl<S> Clone for Context<S> {
    fn clone(&self) -> Self {
        Self { run: Arc::clone(&self.run) }
    }
}

impl<S> fmt::Debug for Context<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("id", &self.id())
            .field("kind", &self.kind())
            .field("attempt", &self.attempt())
            .finish_non_exhaustive()
    }
}

/// The worker's producer, opened when it is first needed: a worker that only acks needs none.
pub(crate) struct LazyProducer {
    config: Config,
    producer: OnceLock<Producer>,
}

impl LazyProducer {
    /// A worker was let in before it needs this: its producer waits as the worker does, for ever.
    pub(crate) fn new(config: Config) -> Self {
        Self { config: config.access_patience(Duration::MAX), producer: OnceLock::new() }
    }

    pub(crate) fn namespace(&self) -> &str {
        self.config.topology().namespace()
    }

    pub(crate) fn get(&self) -> &Producer {
        self.producer.get_or_init(|| Producer::new(&self.config))
    }

    /// The exchange that jobs are published to.
    pub(crate) fn exchange(&self) -> &str {
        self.config.topology().jobs_exchange()
    }

    pub(crate) fn opened(&self) -> Option<&Producer> {
        self.producer.get()
    }
}
