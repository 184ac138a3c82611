//! Keeps one queue consumed for as long as the worker runs.
//! In: the consuming connection. Out: deliveries for the intake, and a status that is never silent:
//! a consumer that ends while nobody asked it to is lost, and lost consumers are restored.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use forebay_producer::link::connection::Link;
use forebay_producer::link::declare::Declarer;
use forebay_producer::link::fault::{ANSWER, Fault, answered};
use forebay_producer::link::transition::{Action, Event, Phase, State};
use forebay_producer::{Config, ConnectError, QueueType, TopologyError};
use futures_util::{FutureExt, StreamExt};
use lapin::Consumer as Stream;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::error::RunError;
use crate::generation::Generation;
use crate::intake::Intake;
use crate::loss::{self, About};
use crate::status::{PAUSED, Status};

/// How often a consumer without a connection says why.
const LOOK: Duration = Duration::from_secs(1);
/// How many deliveries are taken before anything else is looked at.
const BURST: usize = 64;
const FLUSH: Duration = Duration::from_secs(5);
/// Understood by RabbitMQ 4.3 on quorum queues, ignored by older ones.
const CONSUMER_TIMEOUT: &str = "x-consumer-timeout";

/// One supervised consumer.
pub(crate) struct Consumer<S> {
    pub(crate) intake: Arc<Intake<S>>,
    pub(crate) config: Config,
    pub(crate) link: Link,
    pub(crate) declarer: Declarer,
    /// Stop consuming, let running jobs end.
    pub(crate) drain: CancellationToken,
    /// Stop running jobs.
    pub(crate) force: CancellationToken,
    pub(crate) paused: watch::Receiver<bool>,
    pub(crate) status: Arc<Mutex<Status>>,
    /// The generation that the broker turned out not to have.
    pub(crate) absent: watch::Receiver<u64>,
    /// Earlier lives that are coming to their end.
    pub(crate) winding: JoinSet<()>,
    /// It was lost: what belongs to the queue may be gone too.
    pub(crate) mend: bool,
    /// The broker has not refused to be told the consumer timeout of this queue.
    pub(crate) tells_timeout: bool,
}

struct Life {
    number: u64,
    generation: Arc<Generation>,
    stream: Stream,
    acks: JoinHandle<()>,
}

enum End {
    Lost(Fault),
    Drained,
    Paused,
}

impl<S: Send + Sync + 'static> Consumer<S> {
    /// Runs until drained.
    ///
    /// # Errors
    /// [`RunError`] when the broker never let us in.
    pub(crate) async fn run(mut self) -> Result<(), RunError> {
        let began = Instant::now();
        let mut state = State::new(self.config.patience());
        let mut event = Event::Begin;
        let mut life = None;
        loop {
            let (next, action) = state.next(event, fastrand::f64());
            state = next;
            event = match action {
                Action::Open => match self.open_unless_paused().await {
                    Ok(Some(opened)) => {
                        life = Some(opened);
                        Event::Opened
                    }
                    Ok(None) => Event::Stop,
                    Err(Refusal::Never(error)) => return Err(RunError::Connect(error)),
                    Err(Refusal::Now(fault)) => self.lost(fault, began),
                },
                Action::Watch => match life.take() {
                    Some(mut life) => {
                        life.number = state.generation;
                        self.up(life.number);
                        self.watch(life, began).await
                    }
                    None => Event::Begin,
                },
                Action::Declare => match self.declare().await {
                    Ok(()) => {
                        self.tells_timeout = true;
                        Event::Begin
                    }
                    Err(fault) => self.lost(fault, began),
                },
                Action::Wait(pause) => {
                    let wait = self.drain.run_until_cancelled(self.pause(pause));
                    if wait.await.is_some() { Event::Begin } else { Event::Stop }
                }
                Action::GiveUp(fault) => {
                    let (queue, because) = (self.intake.queue.clone(), self.explain(&fault));
                    return Err(RunError::Queue { queue, because });
                }
                _ => {
                    while self.winding.join_next().await.is_some() {}
                    self.report(false, Some("stopped".to_owned()));
                    debug_assert!(matches!(state.phase, Phase::Stopped));
                    return Ok(());
                }
            };
        }
    }

    /// `None`: drained meanwhile.
    async fn open_unless_paused(&mut self) -> Result<Option<Life>, Refusal> {
        if *self.paused.borrow() {
            self.report(false, Some(PAUSED.to_owned()));
        }
        let drain = self.drain.clone();
        let open = async {
            // An error means that nobody can pause or resume any more.
            _ = self.paused.wait_for(|paused| !paused).await;
            self.open().await
        };
        drain.run_until_cancelled(open).await.transpose()
    }

    async fn open(&mut self) -> Result<Life, Refusal> {
        match self.try_to_open().await {
            Err(Refusal::Now(Fault::Mismatch(because))) if because.contains(CONSUMER_TIMEOUT) => {
                // From 4.3 on a classic queue has no such timeout, and does not want to be told.
                self.tells_timeout = false;
                self.try_to_open().await
            }
            opened => opened,
        }
    }

    async fn try_to_open(&self) -> Result<Life, Refusal> {
        let refusal = |error| match error {
            ConnectError::Unreachable { because, .. } => {
                let trouble = self.link.trouble();
                Refusal::Now(Fault::Connection(if trouble.is_empty() { because } else { trouble }))
            }
            never => Refusal::Never(never),
        };
        self.link.connected(Instant::now() + LOOK).await.map_err(refusal)?;
        let channel = self.link.channel(Instant::now() + ANSWER).await.map_err(refusal)?.channel;
        // A declaration compares arguments, consuming does not.
        if self.config.is_strict() && self.declarer.may_declare() {
            self.declare().await.map_err(Refusal::Now)?;
        }
        let prefetch = self.intake.options.window();
        let queue = self.config.topology().queue(&self.intake.queue);
        let start = async {
            // Prefetch before consuming: without it the broker sends everything it has.
            channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            let (tag, options) =
                (self.intake.app.name.as_str().into(), BasicConsumeOptions::default());
            channel.basic_consume(queue.as_str().into(), tag, options, self.arguments()).await
        };
        let stream = answered(ANSWER, start).await.map_err(Refusal::Now)?;
        let (generation, acks) =
            Generation::new(channel, prefetch, self.intake.options.concurrency, &self.force);
        Ok(Life { number: 0, generation: Arc::new(generation), stream, acks })
    }

    fn arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::default();
        if self.tells_timeout && self.intake.options.queue_type != QueueType::Classic {
            // 4.3.6 accepts larger numbers, and then the queue's process dies of each delivery.
            let ms = self.intake.consumer_timeout.as_millis().clamp(1, u32::MAX.into());
            arguments.insert(CONSUMER_TIMEOUT.into(), AMQPValue::LongLongInt(ms as i64));
        }
        arguments
    }

    fn up(&mut self, generation: u64) {
        info!(queue = self.intake.queue, "consuming");
        self.status.lock().unwrap_or_else(PoisonError::into_inner).up(generation);
        while self.winding.try_join_next().is_some() {}
        if std::mem::take(&mut self.mend) && self.declarer.may_declare() {
            self.winding.spawn(mend(
                self.intake.queue.clone(),
                self.intake.options.queue_type,
                self.declarer.clone(),
                self.drain.clone(),
            ));
        }
    }

    /// Waits so long, or until a connection is there that was not: the pause between tries is for
    /// the broker's sake, and the connection has waited on its own.
    async fn pause(&self, pause: Duration) {
        let mut link = self.link.status();
        let away = link.borrow().connection.is_none();
        let back = async {
            if link.wait_for(|now| away && now.connection.is_some()).await.is_err() {
                // The end of the link is no connection: the next try tells it.
                std::future::pending::<()>().await;
            }
        };
        _ = time::timeout(pause, back).await;
    }

    async fn declare(&self) -> Result<(), Fault> {
        let (queue, kept) = (&self.intake.queue, self.intake.options.queue_type);
        self.declarer.forget(queue);
        if !self.declarer.may_declare() {
            let what = format!("queue `{}`", self.config.topology().queue(queue));
            return Err(Fault::Denied(TopologyError::Missing { what }.to_string()));
        }
        let declared = self.declarer.ensure_queue(queue, kept, Instant::now() + ANSWER).await;
        declared.map_err(|error| match error {
            TopologyError::Connect(_) | TopologyError::Broker { .. } => {
                Fault::Connection(error.to_string())
            }
            TopologyError::Mismatch { .. } => Fault::Mismatch(error.to_string()),
            _ => Fault::Denied(error.to_string()),
        })
    }

    async fn watch(&mut self, mut life: Life, began: Instant) -> Event {
        match self.pump(&mut life).await {
            End::Lost(fault) => {
                self.intake.meter.lost();
                let because = self.explain(&fault);
                self.status.lock().unwrap_or_else(PoisonError::into_inner).lost(&because);
                self.mend = true;
                life.generation.lose();
                let channel = life.generation.channel.clone();
                // After a server-sent cancel the channel lives on, and with it the deliveries.
                let close = async move { channel.close(200, "lost".into()).await };
                self.winding.spawn(async { _ = time::timeout(FLUSH, close).await });
                self.lost(fault, began)
            }
            End::Drained => {
                self.report(false, Some("draining".to_owned()));
                wind_down(life, Arc::clone(&self.intake)).await;
                Event::Stop
            }
            End::Paused => {
                self.report(false, Some(PAUSED.to_owned()));
                info!(queue = self.intake.queue, "paused");
                // A slow job must not keep the queue from being resumed.
                self.winding.spawn(wind_down(life, Arc::clone(&self.intake)));
                Event::Begin
            }
        }
    }

    async fn pump(&mut self, life: &mut Life) -> End {
        loop {
            let delivery = tokio::select! {
                biased;
                // All are cancel-safe: a delivery stays in the stream until it is taken.
                () = self.drain.cancelled() => return End::Drained,
                Ok(_) = self.paused.wait_for(|paused| *paused) => return End::Paused,
                Ok(_) = self.absent.wait_for(|absent| *absent == life.number) => {
                    return End::Lost(Fault::Absent);
                }
                _ = &mut life.acks => {
                    // Nothing would be acknowledged any more: start anew.
                    let because = "acknowledgements stopped".to_owned();
                    return End::Lost(Fault::Channel(because));
                }
                delivery = life.stream.next() => delivery,
            };
            let mut next = Some(delivery);
            for left in (0..BURST).rev() {
                match next {
                    None => break,
                    Some(Some(Ok(delivery))) => self.intake.take(&life.generation, delivery),
                    Some(Some(Err(error))) => return End::Lost(error.into()),
                    Some(None) if life.generation.channel.status().connected() => {
                        return End::Lost(Fault::Cancelled);
                    }
                    Some(None) => {
                        return End::Lost(Fault::Channel("the channel closed".to_owned()));
                    }
                }
                // None is fetched that would not be taken.
                next = if left > 0 { life.stream.next().now_or_never() } else { None };
            }
        }
    }

    fn lost(&self, fault: Fault, began: Instant) -> Event {
        let because = self.explain(&fault);
        let known = {
            let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            status.because.as_ref() == Some(&because)
        };
        // Said once; and a queue that is not there yet is declared without a word.
        if !known && !matches!(fault, Fault::Missing(_)) {
            warn!(queue = self.intake.queue, error = because, "not consuming");
        }
        self.report(false, Some(because));
        Event::Lost(fault, began.elapsed())
    }

    fn explain(&self, fault: &Fault) -> String {
        let running = self.intake.running.list();
        let mine = running.into_iter().filter(|job| job.queue == self.intake.queue);
        let about = About {
            queue: &self.config.topology().queue(&self.intake.queue),
            consumer_timeout: self.intake.consumer_timeout,
            longest: mine.map(|job| job.since).max(),
        };
        loss::explain(fault, &about)
    }

    fn report(&self, consuming: bool, because: Option<String>) {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).set(consuming, because);
    }
}

enum Refusal {
    Now(Fault),
    Never(ConnectError),
}

/// After a loss: with the queue, or while we were away, its bindings, its dead letters and the
/// exchanges may have gone, without which retries would go astray. Declaring what is there changes
/// nothing. It comes after consuming, so that it holds up nobody.
async fn mend(queue: String, kept: QueueType, declarer: Declarer, drain: CancellationToken) {
    declarer.forget(&queue);
    let declared = declarer.ensure_queue(&queue, kept, Instant::now() + ANSWER);
    if let Some(Err(error)) = drain.run_until_cancelled(declared).await {
        info!(queue, %error, "not sure that all that belongs to the queue is there");
    }
}

/// Cancel, give back what was not started, wait for what runs, flush, close; in this order. A
/// message given back to a queue that we still consume would come straight back.
async fn wind_down<S: Send + Sync + 'static>(life: Life, intake: Arc<Intake<S>>) {
    let Life { generation, mut stream, acks, .. } = life;
    let cancel = generation.channel.basic_cancel(stream.tag(), BasicCancelOptions::default());
    let cancelled = matches!(time::timeout(ANSWER, cancel).await, Ok(Ok(())));
    generation.giving_back.cancel();
    // What was delivered before the cancel is still in the stream, which ends after it.
    while cancelled && let Ok(Some(Ok(delivery))) = time::timeout(FLUSH, stream.next()).await {
        intake.give_back(&generation, delivery.delivery_tag);
    }
    generation.jobs.close();
    // Nobody reads the stream any more: see for ourselves whether the deliveries are still ours.
    while time::timeout(LOOK, generation.jobs.wait()).await.is_err() {
        if !generation.channel.status().connected() {
            generation.lose();
        }
    }
    let channel = generation.channel.clone();
    drop(generation);
    // The task sends what is left and ends.
    _ = time::timeout(FLUSH, acks).await;
    _ = time::timeout(FLUSH, channel.close(200, "drained".into())).await;
}
