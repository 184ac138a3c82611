//! Puts a worker together and checks it as a whole.
//! In: queues, handlers, middleware. Out: a [`Worker`], or all faults at once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_producer::{Job, QueueType, SigningKeys, check_kind, check_queue_name};
use futures_util::FutureExt;
use serde::Serialize;

use crate::batch::{BatchContext, BatchOptions, BatchResult, Item};
use crate::context::Context;
use crate::error::{BuildError, JobResult};
use crate::execute::App;
use crate::handler::{Handler, HandlerOptions, Output, Registry, cores};
use crate::idempotency::Idempotency;
use crate::middleware::{Middleware, Next};
use crate::runtime::Worker;
use crate::verdict::MOST_CRASHES;

const MOST_PREFETCH: usize = 1_000;
/// Of the broker's consumer timeout: what a handler may take. With the shortest wait before it, it
/// ends by 90 %, and the rest is for settling.
const MOST_OF_TIMEOUT: f64 = 0.8;
/// Of the broker's consumer timeout: by then a delivery that could not be settled is given back.
const SETTLED_BY: f64 = 0.95;
/// Of the broker's consumer timeout: what waits so long for its place goes back, and what waits no
/// longer than the shortest does not, or it would come straight back.
const LONGEST_WAIT: f64 = 0.5;
const SHORTEST_WAIT: f64 = 0.1;

/// How one queue is consumed.
///
/// ```
/// use forebay_worker::QueueOptions;
///
/// let mail = QueueOptions::new().concurrency(16).rate(50.0);
/// # let _ = mail;
/// ```
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct QueueOptions {
    pub(crate) concurrency: usize,
    pub(crate) prefetch: Option<u16>,
    pub(crate) queue_type: QueueType,
    pub(crate) default_kind: Option<String>,
    pub(crate) rate: Option<f64>,
    pub(crate) max_crashes: u32,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            concurrency: 4 * cores(),
            prefetch: None,
            queue_type: QueueType::default(),
            default_kind: None,
            rate: None,
            max_crashes: MOST_CRASHES,
        }
    }
}

impl QueueOptions {
    /// All defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many jobs of this queue run at once in this process; a batch counts as one. Default:
    /// 4 × cores.
    pub fn concurrency(mut self, most: usize) -> Self {
        self.concurrency = most;
        self
    }

    /// Sets how many deliveries the broker hands out ahead. Default: 2 × concurrency, at least 16
    /// and at most 1,000; with batch handlers as many as all the batches that run at once, and one
    /// more of each, if that is more; fewer where the handlers' timeouts would let the last of them
    /// wait longer than the broker's consumer timeout allows.
    pub fn prefetch(mut self, deliveries: u16) -> Self {
        self.prefetch = Some(deliveries);
        self
    }

    /// Sets how the broker keeps the queue, if it is declared. Default: quorum.
    pub fn queue_type(mut self, queue_type: QueueType) -> Self {
        self.queue_type = queue_type;
        self
    }

    /// Sets the kind of messages that come without one, from publishers that know nothing of us.
    pub fn default_kind(mut self, kind: impl Into<String>) -> Self {
        self.default_kind = Some(kind.into());
        self
    }

    /// Starts at most so many jobs per second, evenly spaced, in this process.
    pub fn rate(mut self, per_second: f64) -> Self {
        self.rate = Some(per_second);
        self
    }

    /// Sets how often a process may die under a job before it is a dead letter with reason
    /// `crashed`. Default: 10.
    pub fn max_crashes(mut self, deaths: u32) -> Self {
        self.max_crashes = deaths;
        self
    }

    /// The prefetch once [`WorkerBuilder::build`] has settled it.
    pub(crate) fn window(&self) -> u16 {
        self.prefetch.unwrap_or(1)
    }

    /// Fills in the prefetch: as large as usual, or as its batches want, unless no more than
    /// `fitting` can be done in time.
    fn settle_prefetch(&mut self, batches: usize, fitting: usize) {
        let usual = self.concurrency.saturating_mul(2).clamp(16, MOST_PREFETCH).max(batches);
        let window = u16::try_from(usual.min(fitting)).unwrap_or(u16::MAX).max(1);
        self.prefetch.get_or_insert(window);
    }
}

/// Collects what a worker consists of.
#[must_use]
pub struct WorkerBuilder<S> {
    state: S,
    name: Option<String>,
    queues: BTreeMap<String, QueueOptions>,
    middleware: Vec<Middleware<S>>,
    idempotency: Option<Idempotency>,
    signing_keys: Option<SigningKeys>,
    registry: Registry<S>,
    grace: Duration,
    consumer_timeout: Duration,
    exit_after: Option<Duration>,
    faults: Vec<String>,
}

impl<S: Send + Sync + 'static> WorkerBuilder<S> {
    pub(crate) fn new(state: S) -> Self {
        Self {
            state,
            name: None,
            queues: BTreeMap::new(),
            middleware: Vec::new(),
            idempotency: None,
            signing_keys: None,
            registry: Registry::new(),
            grace: Duration::from_secs(25),
            consumer_timeout: Duration::from_secs(30 * 60),
            exit_after: None,
            faults: Vec::new(),
        }
    }

    /// Sets the name recorded on failures and shown at the broker. Default: `host/pid`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Consumes a queue. Any handler's job may come on any of the worker's queues.
    pub fn queue(mut self, queue: impl Into<String>, options: QueueOptions) -> Self {
        let queue = queue.into();
        if self.queues.contains_key(&queue) {
            self.faults.push(format!("queue `{queue}` is configured twice; remove one"));
        }
        self.queues.insert(queue, options);
        self
    }

    /// Runs around every handler; the first added is the outermost.
    ///
    /// Around each job of a batch too, all of them at once: the batch handler is called when every
    /// job of the batch has come to the end of its chain. One that does not call `next` is not in
    /// it; what `next.run` returns is that job's own result.
    pub fn middleware<F, Fut>(mut self, middleware: F) -> Self
    where
        F: Fn(Context<S>, Next<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = JobResult<Output>> + Send + 'static,
    {
        self.middleware.push(Arc::new(move |cx, next| middleware(cx, next).boxed()));
        self
    }

    /// Runs each job once for its key; see [`Idempotency`]. It applies to every handler but those
    /// with [`HandlerOptions::idempotent`]`(false)`. Default: none, jobs run at least once.
    pub fn idempotency(mut self, rules: Idempotency) -> Self {
        self.idempotency = Some(rules);
        self
    }

    /// Runs only jobs that are signed with one of these keys; every other is a dead letter at once,
    /// with reason `unsigned`, `unknown_key` or `altered`. Publishers sign with
    /// [`Config::signing_keys`](crate::Config::signing_keys); so does this worker what its handlers
    /// publish, if its own configuration has keys. Default: any job is run.
    ///
    /// Nobody without a key can make a job, or change one: payload, kind, queue, id, expiry, keys
    /// and headers are covered. The payload is not encrypted. A job that was signed once can be
    /// published again as it is; [`Idempotency`] by id runs it once all the same.
    pub fn require_signatures(mut self, keys: SigningKeys) -> Self {
        self.signing_keys = Some(keys);
        self
    }

    /// Registers `async fn(job, cx) -> JobResult<T>` for the job type's kind.
    pub fn handle<J, T, F, Fut>(self, function: F) -> Self
    where
        J: Job,
        T: Serialize + Send + 'static,
        F: Fn(J, Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = JobResult<T>> + Send + 'static,
    {
        self.handle_with(HandlerOptions::new(), function)
    }

    /// Registers an async handler with options.
    pub fn handle_with<J, T, F, Fut>(self, options: HandlerOptions, function: F) -> Self
    where
        J: Job,
        T: Serialize + Send + 'static,
        F: Fn(J, Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = JobResult<T>> + Send + 'static,
    {
        self.add(Handler::typed(options, function))
    }

    /// Registers `fn(job, cx) -> JobResult<T>` that blocks: it runs on a thread of its own pool, as
    /// many at once as the machine has cores.
    pub fn handle_blocking<J, T, F>(self, function: F) -> Self
    where
        J: Job,
        T: Serialize + Send + 'static,
        F: Fn(J, Context<S>) -> JobResult<T> + Send + Sync + 'static,
    {
        self.handle_blocking_with(HandlerOptions::new(), function)
    }

    /// Registers a blocking handler with options. A thread cannot be stopped: after its timeout it
    /// runs on, keeping its place, until the function looks at [`Context::is_cancelled`] or ends.
    pub fn handle_blocking_with<J, T, F>(self, options: HandlerOptions, function: F) -> Self
    where
        J: Job,
        T: Serialize + Send + 'static,
        F: Fn(J, Context<S>) -> JobResult<T> + Send + Sync + 'static,
    {
        self.add(Handler::blocking(options, function))
    }

    /// Registers `async fn(payload, cx)` for a kind known only at run time. The payload is known
    /// to be JSON. Queue: the option's, else `default`.
    pub fn handle_raw<F, Fut>(self, kind: &str, options: HandlerOptions, function: F) -> Self
    where
        F: Fn(Bytes, Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = JobResult<Output>> + Send + 'static,
    {
        self.add(Handler::raw(kind, options, function))
    }

    /// Registers `fn(payload, cx)` that blocks, for a kind known only at run time: what
    /// [`WorkerBuilder::handle_raw`] is to [`WorkerBuilder::handle_with`], this is to
    /// [`WorkerBuilder::handle_blocking_with`].
    pub fn handle_raw_blocking<F>(self, kind: &str, options: HandlerOptions, function: F) -> Self
    where
        F: Fn(Bytes, Context<S>) -> JobResult<Output> + Send + Sync + 'static,
    {
        self.add(Handler::raw_blocking(kind, options, function))
    }

    /// Registers `async fn(items, cx) -> BatchResult<T>`: jobs of one kind are gathered, up to 100
    /// or for up to 200 ms, and run by one call. Each is settled on its own, by what [`Results`]
    /// say of it: acked and answered, retried with its own attempts, put off, or dead.
    ///
    /// What cannot be run (no JSON, another shape, expired, not signed as it should be, a claim
    /// that another run has) is settled before, and takes up no room. A panic, a timeout and an
    /// error fail every job of the batch. A job under which processes died runs in a batch of one.
    ///
    /// ```
    /// use forebay_worker::{BatchContext, BatchResult, Item, Job, QueueOptions, Results, Worker};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Row { name: String, cents: i64 }
    /// impl Job for Row { const KIND: &'static str = "row.insert"; }
    ///
    /// # struct Database;
    /// # impl Database { async fn insert(&self, _: Vec<(&str, i64)>) -> std::io::Result<()> { Ok(()) } }
    /// async fn insert(items: Vec<Item<Row>>, cx: BatchContext<Database>) -> BatchResult {
    ///     let rows = items.iter().map(|item| (item.job.name.as_str(), item.job.cents)).collect();
    ///     cx.state().insert(rows).await?; // an error: all are tried again, each by its attempts
    ///     Ok(Results::done())
    /// }
    ///
    /// let worker = Worker::builder(Database)
    ///     .queue("default", QueueOptions::new())
    ///     .handle_batch(insert)
    ///     .build()?;
    /// # Ok::<(), forebay_worker::BuildError>(())
    /// ```
    ///
    /// [`Results`]: crate::Results
    pub fn handle_batch<J, T, F, Fut>(self, function: F) -> Self
    where
        J: Job,
        T: Serialize + Send + 'static,
        F: Fn(Vec<Item<J>>, BatchContext<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = BatchResult<T>> + Send + 'static,
    {
        self.handle_batch_with(HandlerOptions::new(), BatchOptions::new(), function)
    }

    /// Registers a batch handler with options. Its [`HandlerOptions::timeout`] is for one batch,
    /// its [`HandlerOptions::concurrency`] counts batches and is 1 unless set.
    pub fn handle_batch_with<J, T, F, Fut>(
        self,
        options: HandlerOptions,
        batch: BatchOptions,
        function: F,
    ) -> Self
    where
        J: Job,
        T: Serialize + Send + 'static,
        F: Fn(Vec<Item<J>>, BatchContext<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = BatchResult<T>> + Send + 'static,
    {
        self.add(Handler::batch(options, batch, function))
    }

    /// Registers `async fn(items, cx)` for batches of a kind known only at run time: what
    /// [`WorkerBuilder::handle_raw`] is to [`WorkerBuilder::handle_with`], this is to
    /// [`WorkerBuilder::handle_batch_with`].
    pub fn handle_raw_batch<F, Fut>(
        self,
        kind: &str,
        options: HandlerOptions,
        batch: BatchOptions,
        function: F,
    ) -> Self
    where
        F: Fn(Vec<Item<Bytes>>, BatchContext<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = BatchResult<Output>> + Send + 'static,
    {
        self.add(Handler::raw_batch(kind, options, batch, function))
    }

    /// Sets how long running jobs may finish after the worker was told to drain. Default: 25 s,
    /// which fits into the 30 s that Kubernetes gives.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets the consumer timeout, after which the broker takes a delivery back: the longest that a
    /// job may be here, waiting included. Default: the broker's default, 30 min.
    /// [`WorkerBuilder::build`] refuses handlers that could take so long.
    ///
    /// RabbitMQ 4.3 and later are told it, for each consumer of a quorum queue, and do not time out
    /// consumers of classic queues. Before 4.3 it has to be what the broker is set to, which AMQP
    /// does not tell: `consumer_timeout = 7200000` in `rabbitmq.conf` is two hours.
    pub fn consumer_timeout(mut self, timeout: Duration) -> Self {
        self.consumer_timeout = timeout;
        self
    }

    /// Ends the worker with an error when a queue was not consumed for so long, for those who
    /// prefer a restart to a reconnect. Default: never.
    pub fn exit_after(mut self, idle: Duration) -> Self {
        self.exit_after = Some(idle);
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    /// [`BuildError`] with all faults: a kind registered twice, a handler on a queue that is not
    /// consumed, names that are not allowed, a timeout that the broker would cut short, batches
    /// larger than the prefetch.
    pub fn build(mut self) -> Result<Worker<S>, BuildError> {
        self.settle_prefetch();
        self.check();
        if !self.faults.is_empty() {
            return Err(BuildError { faults: self.faults });
        }
        let app = App {
            state: Arc::new(self.state),
            registry: self.registry,
            middleware: self.middleware.into(),
            idempotency: self.idempotency,
            signing_keys: self.signing_keys,
            name: self.name.unwrap_or_else(host_and_pid),
        };
        Ok(Worker {
            app: Arc::new(app),
            queues: self.queues,
            grace: self.grace,
            consumer_timeout: self.consumer_timeout,
            exit_after: self.exit_after,
        })
    }

    fn add(mut self, handler: Handler<S>) -> Self {
        let kind = handler.kind.clone();
        if !self.registry.add(handler) {
            self.faults.push(format!(
                "kind `{kind}` has two handlers; remove one, or give one of them a kind of its own"
            ));
        }
        self
    }

    fn settle_prefetch(&mut self) {
        for (queue, options) in &mut self.queues {
            let most = self.consumer_timeout.as_secs_f64() * MOST_OF_TIMEOUT;
            let handlers = || self.registry.iter().filter(|handler| &handler.queue == queue);
            let fitting = handlers().map(|handler| {
                let most = (most - gathered_within(&handler.options).as_secs_f64()).max(0.0);
                let rounds = (most / handler.options.timeout.as_secs_f64()) as usize;
                at_once(&handler.options, options).saturating_mul(rounds.max(1))
            });
            // Who waits longer for its turn than it may is given back.
            let slowest = handlers().map(|handler| handler.options.timeout).max();
            let wait = start_within(self.consumer_timeout, slowest.unwrap_or_default());
            let paced = options.rate.map(|rate| (rate * wait.as_secs_f64()) as usize);
            let fitting = fitting.chain(paced).min().unwrap_or(usize::MAX);
            // While some run, another one of each fills.
            let batches = handlers().filter_map(|handler| {
                let size = handler.options.batch?.size;
                Some(at_once(&handler.options, options).saturating_add(size))
            });
            let batches = batches.fold(0, usize::saturating_add);
            options.settle_prefetch(batches, fitting);
        }
    }

    fn check(&mut self) {
        if self.name.as_ref().is_some_and(|name| name.is_empty() || name.len() > 200) {
            self.faults.push("the worker's name must have 1 to 200 bytes".to_owned());
        }
        if self.queues.is_empty() {
            self.faults.push("no queue to consume; add `.queue(\"default\", …)`".to_owned());
        }
        let mut faults = Vec::new();
        if let Some(rules) = &self.idempotency {
            faults.extend(rules.faults().map(|fault| format!("idempotency: {fault}")));
        }
        for (queue, options) in &self.queues {
            faults.extend(check_queue_name(queue).err().map(|error| error.to_string()));
            faults.extend(options.faults().map(|fault| format!("queue `{queue}`: {fault}")));
        }
        let mut handlers: Vec<_> = self.registry.iter().collect();
        handlers.sort_by_key(|handler| &handler.kind);
        for handler in handlers {
            let (kind, queue) = (&handler.kind, &handler.queue);
            faults.extend(check_kind(kind).err().map(|error| error.to_string()));
            match self.queues.get(queue) {
                None => faults.push(format!(
                    "the handler of `{kind}` waits on queue `{queue}`, which this worker does not \
                     consume; add `.queue(\"{queue}\", …)`"
                )),
                Some(options) => {
                    faults.extend(
                        too_slow(&handler.options, options, self.consumer_timeout)
                            .map(|fault| format!("the handler of `{kind}` {fault}")),
                    );
                }
            }
            let batch = handler.options.batch.zip(self.queues.get(queue));
            if let Some((batch, options)) = batch {
                let fault = unfit(batch, &handler.options, options, self.consumer_timeout);
                faults.extend(fault.map(|fault| format!("the batch handler of `{kind}` {fault}")));
            }
            if handler.options.concurrency == Some(0) {
                faults.push(format!("the handler of `{kind}` has concurrency 0; use at least 1"));
            }
        }
        self.faults.append(&mut faults);
    }
}

impl QueueOptions {
    fn faults(&self) -> impl Iterator<Item = &'static str> {
        let most = tokio::sync::Semaphore::MAX_PERMITS.min(u32::MAX as usize);
        [
            (self.concurrency == 0, "concurrency 0; use at least 1"),
            (self.concurrency > most, "concurrency is beyond what a machine can do"),
            (self.prefetch == Some(0), "prefetch 0 means without bound; use at least 1"),
            (
                self.rate.is_some_and(|rate| !(rate.is_finite() && rate >= 1e-6)),
                "the rate must be at least 0.000001 jobs per second",
            ),
            (self.max_crashes == 0, "max_crashes 0; use at least 1"),
        ]
        .into_iter()
        .filter_map(|(wrong, fault)| wrong.then_some(fault))
    }
}

/// The last of a full prefetch window must be done before the broker takes it back; it counts from
/// delivery (RabbitMQ docs, "Consumers", acknowledgement timeout).
fn too_slow(handler: &HandlerOptions, queue: &QueueOptions, broker: Duration) -> Option<String> {
    let timeout = handler.timeout;
    let rounds = usize::from(queue.window()).div_ceil(at_once(handler, queue));
    let all = timeout.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX));
    let worst = all.saturating_add(gathered_within(handler));
    let most = share_of(broker, MOST_OF_TIMEOUT);
    let show = |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs()));
    (worst > most).then(|| {
        format!(
            "may take {} (timeout {} × {rounds} rounds of the prefetch window{}), more than 80 % of \
             the consumer timeout of {}; lower the timeout or the prefetch, raise the concurrency, \
             or raise `consumer_timeout`: RabbitMQ 4.3 takes it from the worker, before 4.3 \
             rabbitmq.conf needs the same, such as `consumer_timeout = {}` (milliseconds)",
            show(worst),
            show(timeout),
            if handler.batch.is_some() { ", and the window of a batch" } else { "" },
            show(broker),
            // Of which it is 80 %. Whole numbers: the longest of durations are no fault.
            worst.as_millis() * 5 / 4
        )
    })
}

/// Why batches of this handler could not be as they are wanted.
fn unfit(
    batch: BatchOptions,
    handler: &HandlerOptions,
    queue: &QueueOptions,
    broker: Duration,
) -> Option<String> {
    let BatchOptions { size, window } = batch;
    let (wanted, prefetch) = (at_once(handler, queue), usize::from(queue.window()));
    let longest = start_within(broker, handler.timeout);
    if size == 0 {
        return Some("has batches of 0 jobs; use at least 1".to_owned());
    }
    if wanted > usize::from(u16::MAX) {
        return Some(format!(
            "would have {wanted} jobs at once (size × concurrency), and a consumer is delivered \
             {} at most; lower one of them",
            u16::MAX
        ));
    }
    if window > longest {
        return Some(format!(
            "has a window of {}, and a delivery that waits here for longer than {} is given back; \
             lower the window",
            humantime::format_duration(window),
            humantime::format_duration(longest)
        ));
    }
    (prefetch < wanted).then(|| {
        format!(
            "would never have its batches full: {wanted} jobs (size {size} × {} at once), and the \
             prefetch of its queue is {prefetch}; raise the prefetch, or lower the size or the \
             concurrency; if the prefetch is not set, a rate or the timeout of a handler of this \
             queue keeps it low: shorten that, or give the batches a queue of their own",
            wanted / size
        )
    })
}

/// How long a job may wait for others of its batch.
fn gathered_within(handler: &HandlerOptions) -> Duration {
    handler.batch.map_or(Duration::ZERO, |batch| batch.window)
}

/// How long after its delivery a job is given back rather than taken back by the broker.
pub(crate) fn give_back_after(consumer_timeout: Duration) -> Duration {
    share_of(consumer_timeout, SETTLED_BY)
}

fn share_of(consumer_timeout: Duration, share: f64) -> Duration {
    Duration::try_from_secs_f64(consumer_timeout.as_secs_f64() * share).unwrap_or(consumer_timeout)
}

/// How long after its delivery a job may still begin. Half of the consumer timeout at most; less if
/// its handler may take so long that it would not be done in time.
pub(crate) fn start_within(consumer_timeout: Duration, handler: Duration) -> Duration {
    let share = |share| share_of(consumer_timeout, share);
    let (shortest, longest) = (share(SHORTEST_WAIT), share(LONGEST_WAIT));
    share(MOST_OF_TIMEOUT).saturating_sub(handler).clamp(shortest, longest)
}

/// How many jobs of a handler run side by side.
fn at_once(handler: &HandlerOptions, queue: &QueueOptions) -> usize {
    let runs = handler.concurrency.unwrap_or(usize::MAX).min(queue.concurrency).max(1);
    runs.saturating_mul(handler.batch.map_or(1, |batch| batch.size.max(1)))
}

fn host_and_pid() -> String {
    let host = hostname::get().ok().and_then(|host| host.into_string().ok());
    format!("{}/{}", host.as_deref().unwrap_or("localhost"), std::process::id())
}

impl<S> fmt::Debug for WorkerBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder").field("queues", &self.queues).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_delivery_waits_for_half_of_the_consumer_timeout_or_less_if_its_handler_takes_long() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let table = [(0, 15), (5, 15), (9, 15), (12, 12), (20, 4), (24, 3), (60, 3)];
        for (handler, wait) in table {
            assert_eq!(start_within(minutes(30), minutes(handler)), minutes(wait), "{handler}");
        }
    }

    proptest! {
        /// Whatever begins is over before the broker takes it back.
        #[test]
        fn what_begins_can_come_to_its_end(broker_s in 1u64..1_000_000, share in 0.0f64..=0.8) {
            let broker = Duration::from_secs(broker_s);
            let handler = broker.mul_f64(share);
            let end = start_within(broker, handler) + handler;
            prop_assert!(end <= broker.mul_f64(0.91), "{:?}", end);
        }
    }
}
