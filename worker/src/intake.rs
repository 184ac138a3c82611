//! From a delivery to a permit: decode, move suspects away, wait for a place, run, settle.
//! In: deliveries of one queue. Out: each is settled, or the broker has it back.

use std::collections::HashMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_producer::Envelope;
use forebay_producer::link::after;
use forebay_producer::wire::envelope::{Raw, now_ms};
use futures_util::FutureExt;
use lapin::message::Delivery;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, error};

use crate::acker::How;
use crate::batch::{Gathering, gatherings};
use crate::builder::{QueueOptions, give_back_after, start_within};
use crate::context::{Context, LazyProducer};
use crate::execute::App;
use crate::express::Express;
use crate::generation::Generation;
use crate::handler::Handler;
use crate::load::{self, Here, Load};
use crate::meter::QueueMeter;
use crate::running::Running;
use crate::settle::{self, Settlement};
use crate::telemetry::{self, Counts};
use crate::verdict::{self, Facts, Verdict, Why};

/// Everything that the jobs of one queue share.
pub(crate) struct Intake<S> {
    pub(crate) queue: String,
    pub(crate) options: QueueOptions,
    pub(crate) app: Arc<App<S>>,
    pub(crate) producers: Arc<LazyProducer>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) running: Arc<Running>,
    pub(crate) load: Arc<Load>,
    pub(crate) meter: QueueMeter,
    /// The broker's, as far as we were told; it counts from delivery.
    pub(crate) consumer_timeout: Duration,
    places: Arc<Semaphore>,
    express: Express,
    pub(crate) pace: Option<Pace>,
    /// Of kinds whose handlers take batches.
    batches: HashMap<String, Arc<Gathering<S>>>,
}

impl<S: Send + Sync + 'static> Intake<S> {
    pub(crate) fn new(
        queue: String,
        options: QueueOptions,
        app: Arc<App<S>>,
        producers: Arc<LazyProducer>,
        counts: Arc<Counts>,
        running: Arc<Running>,
        consumer_timeout: Duration,
    ) -> Self {
        let handlers = app.registry.iter();
        let kinds = handlers.map(|handler| (handler.kind.as_str(), handler.queue == queue));
        let places = Arc::new(Semaphore::new(options.concurrency));
        Self {
            meter: QueueMeter::new(&queue, kinds),
            batches: gatherings(&app, &queue, &places),
            places,
            pace: options.rate.map(Pace::new),
            consumer_timeout,
            express: Express::new(),
            queue,
            options,
            app,
            producers,
            counts,
            running,
            load: Arc::new(Load::new()),
        }
    }

    /// Starts one delivery: with others where jobs end as soon as they are begun, in a task of its
    /// own elsewhere. The prefetch bounds how many there are.
    pub(crate) fn take(self: &Arc<Self>, generation: &Arc<Generation>, delivery: Delivery) {
        let (intake, mine) = (Arc::clone(self), Arc::clone(generation));
        let job = generation.jobs.track_future(async move {
            let tag = delivery.delivery_tag;
            // Handlers are caught closer by; this is for what else is the user's: the `Display` of
            // an error, the `Drop` of a future. A delivery left open would cost a place for ever.
            let handled = async {
                let mut span = Span::none();
                let handled = AssertUnwindSafe(intake.handle(&mine, delivery, &mut span));
                if handled.catch_unwind().await.is_err() {
                    let queue = &intake.queue;
                    error!(parent: &span, queue, "settling a job panicked; it is a dead letter now");
                    settle::reject(&mine, tag);
                }
            };
            intake.express.learn(pin!(handled)).await;
        });
        if self.express.is_worth_it() {
            self.express.push(Box::pin(job));
        } else {
            tokio::spawn(job);
        }
    }

    /// Fills in the span of the job once it is looked at: it waits for its place outside of it.
    async fn handle(&self, generation: &Generation, delivery: Delivery, span: &mut Span) {
        let give_back_at = after(give_back_after(self.consumer_timeout));
        let tag = delivery.delivery_tag;
        let job = self.envelope(delivery);
        let handler = self.handler(&job);
        let mut here = self.load.deliver(load::due_ms(&job).unwrap_or_else(now_ms));
        let settlement = Settlement { generation, tag, producers: &self.producers, give_back_at };
        if let Some(verdict) = self.suspect(handler, &job) {
            *span = telemetry::span(&job, self.producers.exchange());
            let settling = self.settle(settlement, &job, verdict, &mut here);
            return settling.instrument(span.clone()).await;
        }
        if let Some(gathering) = self.gathering(handler, &job) {
            // On the heap, so that a single job's task is no larger for it.
            return Box::pin(self.in_batch(gathering, settlement, job, here, span)).await;
        }
        let Some(places) = self.place(generation, handler, &job).await else {
            return self.settle(settlement, &job, Verdict::GiveBack, &mut here).await;
        };
        let now_ms = self.begins(&job, &mut here);
        let Places { of_handler, of_queue: _until_settled } = places;
        *span = telemetry::span(&job, self.producers.exchange());
        let work = async {
            let (verdict, cx) = self.run(&generation.stop, handler, job, now_ms, of_handler).await;
            self.settle(settlement, cx.envelope(), verdict, &mut here).await;
            // Unless a thread that cannot be stopped still holds it.
            drop(cx.take_place());
        };
        work.instrument(span.clone()).await;
    }

    /// Where the job finds its batch; `None` if it runs by itself, as a suspect always does.
    fn gathering(
        &self,
        handler: Option<&Handler<S>>,
        job: &Envelope,
    ) -> Option<&Arc<Gathering<S>>> {
        let gathering =
            self.batches.get(&handler.filter(|handler| handler.together.is_some())?.kind)?;
        (!self.runs_alone(job)).then_some(gathering)
    }

    pub(crate) async fn settle(
        &self,
        settlement: Settlement<'_>,
        job: &Envelope,
        verdict: Verdict,
        here: &mut Here,
    ) {
        self.decided(job, &verdict);
        if settlement.apply(job, verdict).await != How::GiveBack {
            here.settled();
        }
    }

    pub(crate) fn decided(&self, job: &Envelope, verdict: &Verdict) {
        telemetry::decided(&self.counts, job, verdict);
        self.meter.decided(job, verdict);
    }

    pub(crate) fn handler(&self, job: &Envelope) -> Option<&Handler<S>> {
        self.app.handler(job).map(Arc::as_ref)
    }

    /// Gives back a delivery that nobody has looked at.
    pub(crate) fn give_back(&self, generation: &Generation, tag: u64) {
        settle::give_back(generation, tag);
        self.counts.unseen();
        self.meter.unseen();
    }

    /// Says what time it is.
    pub(crate) fn begins(&self, job: &Envelope, here: &mut Here) -> u64 {
        here.begins();
        let now_ms = now_ms();
        if let Some(waited) = load::waited(job, now_ms) {
            self.meter.waited(waited);
        }
        now_ms
    }

    pub(crate) fn envelope(&self, delivery: Delivery) -> Envelope {
        let mut job = Envelope::decode(Raw {
            properties: &delivery.properties,
            routing_key: delivery.routing_key.as_str(),
            redelivered: delivery.redelivered,
            payload: Bytes::from(delivery.data),
        });
        // Where it was found counts, whatever its headers say.
        job.queue.clone_from(&self.queue);
        if job.kind.is_none() {
            job.kind.clone_from(&self.options.default_kind);
        }
        job
    }

    /// What lacks headers does not run at all: it is left to `execute` to say so.
    fn suspect(&self, handler: Option<&Handler<S>>, job: &Envelope) -> Option<Verdict> {
        if job.broker.omitted.is_some() {
            return None;
        }
        verdict::suspect(job, self.options.max_crashes, &self.facts(handler))
    }

    pub(crate) fn facts(&self, handler: Option<&Handler<S>>) -> Facts<'_> {
        Facts {
            retry: App::retry(handler),
            chance: fastrand::f64(),
            now_ms: now_ms(),
            worker: &self.app.name,
        }
    }

    /// Waits for the job's turn; `None` when it is to go back instead.
    async fn place(
        &self,
        generation: &Generation,
        handler: Option<&Handler<S>>,
        job: &Envelope,
    ) -> Option<Places> {
        if let Some(places) = self.permits_at_once(handler, job)
            && !generation.is_ending()
        {
            return Some(places);
        }
        // In a box of its own, so that the task of every job need not be as large.
        Box::pin(self.wait_for_place(generation, handler, job)).await
    }

    async fn wait_for_place(
        &self,
        generation: &Generation,
        handler: Option<&Handler<S>>,
        job: &Envelope,
    ) -> Option<Places> {
        let timeout = handler.map(|handler| handler.options.timeout);
        let _waits = self.express.waits();
        let start_by = after(start_within(self.consumer_timeout, timeout.unwrap_or_default()));
        tokio::select! {
            biased;
            // Dropping the wait for permits gives back those that were granted.
            () = time::sleep_until(start_by) => None,
            () = generation.giving_back.cancelled() => None,
            () = generation.stop.cancelled() => None,
            places = self.permits(handler, job) => Some(places),
        }
    }

    /// Where nobody waits before it: the common job needs no timer, and nobody's notice.
    pub(crate) fn permits_at_once(
        &self,
        handler: Option<&Handler<S>>,
        job: &Envelope,
    ) -> Option<Places> {
        if self.pace.is_some() {
            return None;
        }
        let of_handler = match handler.and_then(|handler| handler.gate.clone()) {
            Some(gate) => Some(gate.try_acquire_owned().ok()?),
            None => None,
        };
        let places = Arc::clone(&self.places);
        let of_queue = places.try_acquire_many_owned(self.wanted(job)).ok()?;
        Some(Places { of_handler, of_queue })
    }

    fn wanted(&self, job: &Envelope) -> u32 {
        if self.runs_alone(job) { self.options.concurrency as u32 } else { 1 }
    }

    async fn permits(&self, handler: Option<&Handler<S>>, job: &Envelope) -> Places {
        if let Some(pace) = &self.pace {
            pace.turn().await;
        }
        let closed = "the semaphore is never closed";
        let gate = handler.and_then(|handler| handler.gate.clone());
        let of_handler = match gate {
            Some(gate) => Some(gate.acquire_owned().await.expect(closed)),
            None => None,
        };
        let places = Arc::clone(&self.places);
        let of_queue = places.acquire_many_owned(self.wanted(job)).await.expect(closed);
        Places { of_handler, of_queue }
    }

    /// A job that was there when processes died takes every place: it runs alone. One death that
    /// was carried along while it waited for its key is no more than one redelivery.
    fn runs_alone(&self, job: &Envelope) -> bool {
        job.crashes >= verdict::deaths_of_a_suspect(self.options.queue_type)
    }

    pub(crate) async fn run(
        &self,
        stop: &CancellationToken,
        handler: Option<&Handler<S>>,
        job: Envelope,
        now_ms: u64,
        place: Option<OwnedSemaphorePermit>,
    ) -> (Verdict, Context<S>) {
        let began = Instant::now();
        let run = self.app.run(job, now_ms, place, stop, &self.producers, &self.running);
        let (outcome, cx) = run.await;
        let job = cx.envelope();
        let verdict = verdict::decide(outcome, job, &self.facts(handler));
        if !matches!(verdict, Verdict::Duplicate(_) | Verdict::Again { why: Why::Waits, .. }) {
            // Otherwise it was not run: the time would say nothing about the handler.
            self.meter.ran(job, began.elapsed());
        }
        (verdict, cx)
    }
}

impl<S> fmt::Debug for Intake<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// Permits are held until the job is settled: an unanswered publish is back-pressure.
pub(crate) struct Places {
    pub(crate) of_handler: Option<OwnedSemaphorePermit>,
    of_queue: OwnedSemaphorePermit,
}

/// Hands out turns at an even pace.
pub(crate) struct Pace {
    gap: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    fn new(per_second: f64) -> Self {
        let gap = Duration::from_secs_f64(1.0 / per_second);
        Self { gap, next: Mutex::new(Instant::now()) }
    }

    /// The lock is held on purpose: who waits for it waits for a turn, and who stops waiting, at a
    /// pause or after a lost connection, has cost none.
    pub(crate) async fn turn(&self) {
        let mut next = self.next.lock().await;
        let turn = (*next).max(Instant::now());
        time::sleep_until(turn).await;
        *next = turn + self.gap;
    }
}
