//! The producer: how a job gets onto the broker.
//! In: jobs and options. Out: the broker has confirmed and routed them, or a typed error.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::Stream;
use tokio::time::Instant;
#[cfg(not(feature = "otel"))]
use tracing::Span;
use tracing::debug;

use crate::bulk;
use crate::config::{Config, after};
use crate::error::{BulkError, ConnectError, PublishError, TopologyError};
use crate::link::connection::Link;
use crate::link::declare::Declarer;
use crate::link::fault::Fault;
use crate::link::publisher::{Answer, Message, NoAnswer, Publisher};
use crate::options::{PublishOptions, check_id};
use crate::telemetry::PublishMeter;
use crate::wire::delay::Delay;
use crate::wire::envelope::{CARRIED_BYTES, Envelope};
use crate::wire::job::Job;
use crate::wire::topology::{QueueType, Topology, check_queue_name};
use crate::wire::trace::TraceContext;

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
        Self {
            config: Arc::new(config.clone()),
            publisher: Publisher::new(link.clone()),
            declarer: Declarer::new(link.clone(), config),
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
        self.publish_raw(J::KIND, encode(job)?, options.queue_unless_set(J::QUEUE)).await
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
        self.send_traced(envelope, destination, deadline).await?;
        Ok(Receipt { id, queue, delay: delay.map(Delay::duration) })
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

    /// Closes the connection once what was published is confirmed or given up by its callers.
    pub async fn close(&self) {
        self.publisher.idle(self.deadline()).await;
        self.link.close().await;
    }

    /// What [`Producer::with_trace`] was given.
    pub(crate) fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_deref()
    }

    pub(crate) fn deadline(&self) -> Instant {
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
