//! The producer: how a job gets onto the broker.
//! In: jobs and options. Out: the broker has confirmed and routed them, or a typed error.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;
use tokio::time::Instant;
#[cfg(not(feature = "otel"))]
use tracing::Span;
use tracing::debug;

use crate::bulk;
use crate::config::{Config, after};
use crate::error::{BulkError, ConnectError, EmitError, PublishError, TopologyError};
use crate::link::connection::Link;
use crate::link::declare::Declarer;
use crate::link::emitter::{Emitter, Wanted};
use crate::link::fault::Fault;
use crate::link::publisher::{Answer, Message, NoAnswer, Publisher};
use crate::options::{PublishOptions, check_id};
use crate::telemetry::PublishMeter;
use crate::wire::delay::Delay;
use crate::wire::envelope::{CARRIED_BYTES, Envelope};
use crate::wire::event::{Event, event_data};
use crate::wire::job::Job;
use crate::wire::topology::{QueueType, Topology, check_queue_name};
use crate::wire::trace::TraceContext;

/// So long is an event waited for that nobody asked to wait for.
const TELL: Duration = Duration::from_secs(5);

/// Publishes jobs with confirms; clones share one connection, which is opened at first need.
///
/// `Ok` from any of its methods means: the broker has routed the job to its queue and confirmed
/// that it is stored (RabbitMQ docs, "Publisher Confirms"); for a delayed job, that the first level
/// of the delay ladder has it and its queue is there.
///
/// # Through trouble
/// While the broker is away, or blocks publishers because of an alarm, publishes wait. A producer
/// and its clones hold at most 1,000 jobs and 8 MiB of payload (one larger payload may be held
/// alone); headers, which are at most 64 KiB a job, do not count. Beyond that the next publishes
/// wait for room, in the order in which they were called: that is the back-pressure, so a program
/// that awaits its publishes stops to produce. Each waits until its own deadline
/// ([`PublishOptions::deadline`], else [`Config::publish_deadline`], 30 s by default), whatever it
/// waits for: a connection, room, or its confirm. What was sent on a connection that is lost is
/// sent again on the next, under the same id. While the broker is known to block nothing is sent.
///
/// At the deadline it is [`PublishError::Unconfirmed`], which knows whether any of the job went
/// out; [`PublishError`] has a table of what each error means for the job. Nothing is kept beyond
/// the deadline, nor beyond the process: `forebay publish --spool` does so, and with
/// [`PublishOptions::into_envelope`] and [`Producer::send`] a program can.
///
/// ```no_run
/// use forebay_producer::{Config, Job, Producer, PublishOptions};
/// use serde::{Deserialize, Serialize};
/// use std::time::Duration;
///
/// #[derive(Serialize, Deserialize)]
/// struct SendEmail { to: String }
/// impl Job for SendEmail { const KIND: &'static str = "email.send"; }
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let producer = Producer::new(&Config::from_env()?);
/// let job = SendEmail { to: "ada@example.org".into() };
/// producer.publish(&job).await?;
/// let later = PublishOptions::new().delay(Duration::from_secs(300));
/// producer.publish_with(&job, later).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Producer {
    pub(crate) config: Arc<Config>,
    link: Link,
    pub(crate) publisher: Publisher,
    declarer: Declarer,
    emitter: Emitter,
    pub(crate) meter: Arc<PublishMeter>,
    trace: Option<Arc<TraceContext>>,
    jobs_exchange: Arc<str>,
    default_exchange: Arc<str>,
}

/// A published job.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// Job id.
    pub id: String,
    /// The queue it waits on, or will once its delay is over.
    pub queue: String,
    /// The delay, as the ladder carries it.
    pub delay: Option<Duration>,
}

/// Where an envelope goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Destination {
    /// Its queue, now.
    Queue,
    /// Its queue, after a while on the delay ladder.
    Later(Delay),
    /// Its queue's dead letters.
    DeadLetters,
}

impl Producer {
    /// Makes a producer and starts to connect in the background; never fails and never waits.
    pub fn new(config: &Config) -> Self {
        let link = Link::open(config, "publish");
        let declarer = Declarer::new(link.clone(), config);
        Self {
            config: Arc::new(config.clone()),
            publisher: Publisher::new(link.clone()),
            emitter: Emitter::new(config),
            declarer,
            meter: Arc::new(PublishMeter::new()),
            link,
            trace: None,
            jobs_exchange: config.topology().jobs_exchange().into(),
            default_exchange: "".into(),
        }
    }

    /// Makes a producer and waits until it is connected, at most for the publish deadline.
    ///
    /// # Errors
    /// [`ConnectError`] saying what to mend.
    pub async fn connect(config: &Config) -> Result<Self, ConnectError> {
        let producer = Self::new(config);
        producer.link.connected(producer.deadline()).await?;
        Ok(producer)
    }

    /// This producer, sharing its connection, for jobs that belong to a trace: what it publishes
    /// carries it, unless its options name another. A worker's `cx.producer()` is one such.
    #[must_use]
    pub fn with_trace(&self, trace: TraceContext) -> Self {
        Self { trace: Some(Arc::new(trace)), ..self.clone() }
    }

    /// Publishes a job to its own queue.
    ///
    /// # Errors
    /// [`PublishError`]; unless it is [`PublishError::Unconfirmed`] with `may_have_arrived`, the
    /// job is not on the queue.
    pub async fn publish<J: Job>(&self, job: &J) -> Result<Receipt, PublishError> {
        self.publish_with(job, PublishOptions::new()).await
    }

    /// Publishes a job with options: id, queue, delay, expiry, headers…
    ///
    /// # Errors
    /// As [`Producer::publish`].
    pub async fn publish_with<J: Job>(
        &self,
        job: &J,
        options: PublishOptions,
    ) -> Result<Receipt, PublishError> {
        self.publish_raw(J::KIND, encode(job)?, options.of_type::<J>()).await
    }

    /// Publishes a payload that is JSON already, for a kind known only at run time. Queue: the
    /// option's, else `default`.
    ///
    /// # Errors
    /// As [`Producer::publish`].
    pub async fn publish_raw(
        &self,
        kind: &str,
        payload: impl Into<Bytes>,
        options: PublishOptions,
    ) -> Result<Receipt, PublishError> {
        let deadline = after(options.deadline.unwrap_or(self.config.publish_deadline));
        let (envelope, delay) =
            options.into_envelope(&self.config, kind, payload, SystemTime::now())?;
        let destination = delay.map_or(Destination::Queue, Destination::Later);
        let (id, queue) = (envelope.id.clone(), envelope.queue.clone());
        let queued = envelope.track.then(|| Event::queued(&envelope, delay.map(Delay::duration)));
        self.send_traced(envelope, destination, deadline).await?;
        if let Some(queued) = queued {
            Box::pin(self.tell_by(queued, deadline)).await;
        }
        Ok(Receipt { id, queue, delay: delay.map(Delay::duration) })
    }

    /// Tells a channel something: whoever reads it, by the gateway, [`EventLog`](crate::EventLog) or
    /// `forebay follow --channel`, now or later, gets the event with this name and data. `Ok` means
    /// that the broker has confirmed it. A handler does it with `cx.emit`, which says who told it.
    ///
    /// Channels and names are 1 to 200 characters of `a-z`, `A-Z`, `0-9` and `. _ - : @ /`, the
    /// whole event at most 64 KiB.
    ///
    /// # Errors
    /// [`EmitError`], at the publish deadline at the latest.
    pub async fn emit(
        &self,
        channel: &str,
        event: &str,
        data: &impl Serialize,
    ) -> Result<(), EmitError> {
        let data = event_data(data).map_err(|error| EmitError::Encode(error.to_string()))?;
        self.emit_event(Event::of_channel(channel, event, data)?, self.deadline()).await
    }

    /// Tells an event as it stands, and waits until the broker has confirmed it.
    ///
    /// # Errors
    /// As [`Producer::emit`], by `deadline` at the latest.
    pub async fn emit_event(&self, event: Event, deadline: Instant) -> Result<(), EmitError> {
        self.emitter.emit(event, Wanted::Awaited, deadline).await
    }

    /// Tells an event that somebody asked for, and waits until that is confirmed, for 5 s at most.
    /// After that it is told nevertheless if the broker comes back soon, and until an event is
    /// confirmed again nobody waits: events are told as by [`Producer::post_event`]. One that is lost
    /// is counted and logged.
    pub async fn tell_event(&self, event: Event) {
        self.tell_by(event, self.deadline()).await;
    }

    async fn tell_by(&self, event: Event, deadline: Instant) {
        self.emitter.tell(event, deadline.min(Instant::now() + TELL)).await;
    }

    /// Leaves an event to be told soon, and does not wait. Up to 1,000 events and 8 MiB wait or are
    /// under way; those beyond that, and those that the broker has not confirmed by the publish
    /// deadline, are lost: they are counted and logged.
    pub fn post_event(&self, event: Event) {
        self.emitter.post(event, Wanted::Asked);
    }

    /// As [`Producer::post_event`], for an event that nobody asked for, such as a failure of a job
    /// that is not tracked: where it cannot be told, only the metric says so.
    pub fn mention_event(&self, event: Event) {
        self.emitter.post(event, Wanted::InCase);
    }

    /// Tells that a job was published that asks for it, for those who publish with
    /// [`Producer::send`] what is new: [`Producer::publish`] does it by itself. Returns when that is
    /// confirmed, after 5 s at the latest; waits as [`Producer::tell_event`] does.
    pub async fn tell_queued(&self, envelope: &Envelope, destination: Destination) {
        self.tell_queued_by(envelope, destination, self.deadline()).await;
    }

    pub(crate) async fn tell_queued_by(
        &self,
        envelope: &Envelope,
        destination: Destination,
        deadline: Instant,
    ) {
        if envelope.track {
            let delay = match destination {
                Destination::Later(delay) => Some(delay.duration()),
                _ => None,
            };
            self.tell_by(Event::queued(envelope, delay), deadline).await;
        }
    }

    /// Publishes a stream of jobs, up to 1,000 at a time, and returns how many there were once all
    /// are confirmed. Jobs reach their queue in any order.
    ///
    /// Stops taking from the stream when the broker is out of reach.
    ///
    /// # Errors
    /// [`BulkError`] says which jobs failed, by their place in the stream, and where to continue.
    pub async fn publish_all<J: Job>(
        &self,
        jobs: impl Stream<Item = J> + Send,
    ) -> Result<u64, BulkError> {
        bulk::publish_all(self, jobs).await
    }

    /// Publishes an envelope as it stands: what retries, dead letters and redrives are made of.
    ///
    /// # Errors
    /// As [`Producer::publish`], by `deadline` at the latest.
    pub async fn send(
        &self,
        envelope: &Envelope,
        destination: Destination,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        self.send_owned(envelope.clone(), destination, deadline).await
    }

    pub(crate) async fn send_owned(
        &self,
        envelope: Envelope,
        destination: Destination,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        let sent = self.send_unseen(envelope, destination, deadline).await;
        self.meter.ended(&sent);
        sent
    }

    /// Checks what [`Producer::send`] checks before it sends anything: queue name, id, sizes.
    ///
    /// # Errors
    /// [`PublishError`]: no publish of this envelope can succeed.
    pub fn check(&self, envelope: &Envelope) -> Result<(), PublishError> {
        check_queue_name(&envelope.queue)?;
        check_id(&envelope.id)?;
        self.check_size(envelope)
    }

    async fn send_unseen(
        &self,
        envelope: Envelope,
        destination: Destination,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        self.check(&envelope)?;
        if let Destination::Later(delay) = destination {
            self.prepare(&envelope, Some(delay), deadline).await?;
        }
        let message = self.message(envelope, destination);
        self.send_message(&message, destination, deadline).await
    }

    pub(crate) async fn send_message(
        &self,
        message: &Arc<Message>,
        destination: Destination,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        let answer = self.attempt(message, deadline).await?;
        self.conclude(message, destination, answer, deadline).await
    }

    /// What an answer means in the end: what is missing is declared, once, and it is sent again.
    pub(crate) async fn conclude(
        &self,
        message: &Message,
        destination: Destination,
        answer: Answer,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        let envelope = &message.envelope;
        match answer {
            // Somebody has deleted it, or it was never there: declare, and try once more.
            Answer::Unroutable | Answer::Objected(Fault::Missing(_)) => {
                self.declarer.forget(&envelope.queue);
                let delay = match destination {
                    Destination::Later(delay) => Some(delay),
                    _ => None,
                };
                debug!(job.id = envelope.id, queue = envelope.queue, "declaring what is missing");
                self.prepare(envelope, delay, deadline).await?;
                let again = self.message(envelope.clone(), destination);
                let answer = self.attempt(&again, deadline).await?;
                self.verdict(envelope, destination, answer)
            }
            answer => self.verdict(envelope, destination, answer),
        }
    }

    /// Whoever records no span of its own passes the trace on as it came.
    #[cfg(not(feature = "otel"))]
    async fn send_traced(
        &self,
        mut envelope: Envelope,
        destination: Destination,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        _ = self.begin(&mut envelope, destination);
        self.send_owned(envelope, destination, deadline).await
    }

    #[cfg(not(feature = "otel"))]
    pub(crate) fn begin(&self, envelope: &mut Envelope, _: Destination) -> Span {
        if let Some(trace) = self.trace().filter(|_| envelope.trace().is_none()) {
            envelope.set_trace(trace);
        }
        Span::none()
    }

    /// Answers a caller: to the queue it named, without waiting for it to be routed.
    ///
    /// # Errors
    /// As [`Producer::publish`]; a lost answer never fails the job.
    pub async fn reply(&self, envelope: &Envelope, deadline: Instant) -> Result<(), PublishError> {
        self.check_size(envelope)?;
        let exchange = Arc::clone(&self.default_exchange);
        let message = Arc::new(Message::new(envelope.clone(), exchange, None));
        let answer = self.attempt(&message, deadline).await;
        let sent = answer.and_then(|answer| self.verdict(envelope, Destination::Queue, answer));
        self.meter.ended(&sent);
        sent
    }

    /// Declares a queue with all that belongs to it, if it is not there.
    ///
    /// # Errors
    /// [`TopologyError`] naming what could not be declared and the way out.
    pub async fn declare(&self, queue: &str, queue_type: QueueType) -> Result<(), TopologyError> {
        self.declarer.ensure_queue(queue, queue_type, self.deadline()).await
    }

    /// Names and arguments under this producer's namespace.
    pub fn topology(&self) -> &Topology {
        self.config.topology()
    }

    /// The connection, for readiness and metrics.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Closes the connection once what was published is confirmed or given up by its callers, and
    /// events that nobody waits for are told, or 5 s have passed.
    pub async fn close(&self) {
        self.emitter.idle(self.deadline().min(Instant::now() + TELL)).await;
        self.publisher.idle(self.deadline()).await;
        tokio::join!(self.emitter.close(), self.link.close());
    }

    /// What [`Producer::with_trace`] was given.
    pub(crate) fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_deref()
    }

    /// By when a publish that begins now is confirmed, or has failed.
    pub fn deadline(&self) -> Instant {
        after(self.config.publish_deadline)
    }

    fn check_size(&self, envelope: &Envelope) -> Result<(), PublishError> {
        let (payload, limit) = (envelope.payload.len(), self.config.payload_limit);
        if payload > limit {
            return Err(envelope.too_large("payload", payload, limit));
        }
        envelope.check_headers(CARRIED_BYTES)
    }

    async fn prepare(
        &self,
        envelope: &Envelope,
        delay: Option<Delay>,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        let queue = &envelope.queue;
        let ensure = async {
            let kept = self.config.type_of(queue);
            self.declarer.ensure_queue(queue, kept, deadline).await?;
            match delay {
                Some(delay) => self.declarer.ensure_ladder(delay.level(), deadline).await,
                None => Ok(()),
            }
        };
        ensure.await.map_err(|source| match source {
            TopologyError::Connect(error) => PublishError::Unconfirmed {
                id: envelope.id.clone(),
                may_have_arrived: false,
                because: self.why_silent(&error),
            },
            source => PublishError::Topology {
                id: envelope.id.clone(),
                queue: queue.clone(),
                source: Box::new(source),
            },
        })
    }

    fn why_silent(&self, error: &ConnectError) -> String {
        let trouble = self.link.trouble();
        if trouble.is_empty() { error.to_string() } else { trouble }
    }

    pub(crate) fn message(&self, envelope: Envelope, destination: Destination) -> Arc<Message> {
        let (topology, queue) = (self.config.topology(), &envelope.queue);
        let (exchange, routing_key) = match destination {
            Destination::Queue => (Arc::clone(&self.jobs_exchange), None),
            Destination::Later(delay) => {
                (topology.delay(delay.level()).into(), Some(delay.routing_key(queue)))
            }
            Destination::DeadLetters => (topology.dead_exchange().into(), None),
        };
        Arc::new(Message::new(envelope, exchange, routing_key))
    }

    async fn attempt(
        &self,
        message: &Arc<Message>,
        deadline: Instant,
    ) -> Result<Answer, PublishError> {
        let began = Instant::now();
        let answer = self.publisher.publish(message, deadline).await;
        self.seen(message, began, answer)
    }

    /// Notes an answer, and gives silence its name.
    pub(crate) fn seen(
        &self,
        message: &Message,
        began: Instant,
        answer: Result<Answer, NoAnswer>,
    ) -> Result<Answer, PublishError> {
        if matches!(answer, Ok(Answer::Confirmed)) {
            self.meter.confirmed_after(began.elapsed());
        }
        answer.map_err(|NoAnswer { may_have_arrived, because }| {
            let id = message.envelope.id.clone();
            PublishError::Unconfirmed { id, may_have_arrived, because }
        })
    }

    fn verdict(
        &self,
        envelope: &Envelope,
        destination: Destination,
        answer: Answer,
    ) -> Result<(), PublishError> {
        if answer == Answer::Confirmed {
            return Ok(());
        }
        let (id, queue) = (envelope.id.clone(), envelope.queue.clone());
        match answer {
            Answer::Confirmed => Ok(()),
            Answer::Refused => Err(PublishError::Refused { id, queue }),
            Answer::Unroutable | Answer::Objected(Fault::Missing(_)) => {
                let delay = match destination {
                    Destination::Later(delay) => Some(delay.duration()),
                    _ => None,
                };
                Err(PublishError::Unroutable { id, queue, delay })
            }
            Answer::Objected(Fault::Denied(because)) => Err(PublishError::Denied { id, because }),
            Answer::Objected(fault) => {
                Err(PublishError::Unacceptable { id, because: fault.to_string() })
            }
        }
    }
}

impl Envelope {
    /// A header frame that is larger than the broker's makes it close the whole connection, with
    /// all that is on its way there.
    pub(crate) fn check_headers(&self, limit: usize) -> Result<(), PublishError> {
        // Spelling out a table only to measure it would cost the common job more than its envelope.
        let headers = if self.has_open_headers() { self.header_bytes() } else { 0 };
        if headers > limit { Err(self.too_large("headers", headers, limit)) } else { Ok(()) }
    }

    fn too_large(&self, what: &'static str, bytes: usize, limit: usize) -> PublishError {
        PublishError::TooLarge { id: self.id.clone(), what, bytes, limit }
    }
}

pub(crate) fn encode<J: Job>(job: &J) -> Result<Bytes, PublishError> {
    let encoded = serde_json::to_vec(job);
    encoded
        .map(Bytes::from)
        .map_err(|source| PublishError::Encode { kind: J::KIND.to_owned(), source })
}
