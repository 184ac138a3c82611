//! Wires a worker together, and takes it apart in the right order.
//! In: a built [`Worker`] and where the broker is. Out: it runs until told to drain, then reports.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use forebay_producer::Config;
use forebay_producer::link::connection::Link;
use forebay_producer::link::declare::Declarer;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::backlog;
use crate::builder::{QueueOptions, WorkerBuilder};
use crate::consumer::Consumer;
use crate::context::LazyProducer;
use crate::error::RunError;
use crate::execute::App;
use crate::intake::Intake;
use crate::meter::QueueGauges;
use crate::running::{Running as RunningJobs, RunningJob};
use crate::status::{PAUSED, QueueStatus, QueueView};
use crate::telemetry::{Counts, Summary};

const LOOK: Duration = Duration::from_secs(1);
/// How often the worker's clock ticks.
const TICK: Duration = Duration::from_secs(1);

/// A worker that is ready to run.
///
/// ```no_run
/// use forebay_worker::{Config, Context, Job, JobResult, QueueOptions, Worker};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct SendEmail { to: String }
/// impl Job for SendEmail { const KIND: &'static str = "email.send"; }
///
/// async fn send_email(job: SendEmail, cx: Context<()>) -> JobResult {
///     println!("attempt {} to {}", cx.attempt(), job.to);
///     Ok(()) // acked
/// }
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let worker = Worker::builder(())
///     .queue("default", QueueOptions::new().concurrency(16))
///     .handle(send_email)
///     .build()?;
/// let shutdown = async { _ = tokio::signal::ctrl_c().await };
/// println!("{}", worker.run(&Config::from_env()?, shutdown).await?);
/// # Ok(()) }
/// ```
pub struct Worker<S> {
    pub(crate) app: Arc<App<S>>,
    pub(crate) queues: BTreeMap<String, QueueOptions>,
    pub(crate) grace: Duration,
    pub(crate) consumer_timeout: Duration,
    pub(crate) exit_after: Option<Duration>,
}

/// A worker that runs. It drains when this is dropped.
#[derive(Debug)]
pub struct Running {
    controls: Controls,
    end: JoinHandle<Result<Summary, RunError>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.controls.drain();
    }
}

/// Steers a worker while it runs. Clones steer the same one.
#[derive(Clone)]
pub struct Controls {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    /// When the clock last ticked.
    ticked: watch::Sender<Instant>,
    drain: CancellationToken,
    force: CancellationToken,
    queues: BTreeMap<String, Steering>,
    jobs: Arc<RunningJobs>,
    counts: Arc<Counts>,
}

struct Steering {
    pause: watch::Sender<bool>,
    view: QueueView,
}

impl<S: Send + Sync + 'static> Worker<S> {
    /// Begins a worker with the state that its handlers share.
    pub fn builder(state: S) -> WorkerBuilder<S> {
        WorkerBuilder::new(state)
    }

    /// How many jobs of a queue run at once, and how many deliveries are held ready, with the
    /// defaults filled in; `None` for a queue that is not consumed.
    pub fn limits(&self, queue: &str) -> Option<(usize, u16)> {
        self.queues.get(queue).map(|options| (options.concurrency, options.window()))
    }

    /// Runs until `shutdown` resolves, then drains: stops consuming, lets running jobs finish
    /// within the grace period, gives the rest back.
    ///
    /// A broker that is not there yet is waited for; a connection that is lost is restored.
    ///
    /// # Errors
    /// [`RunError`] when the broker refuses us at the start, or as `exit_after` asks for.
    pub async fn run(
        self,
        config: &Config,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Summary, RunError> {
        let mut running = self.start(config);
        tokio::select! {
            // Cancel-safe: a join handle may be polled again.
            ended = &mut running.end => return flatten(ended).await,
            () = shutdown => running.controls.drain(),
        }
        running.finished().await
    }

    /// Starts it on the current tokio runtime and returns at once.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self, config: &Config) -> Running {
        let mut config = config.clone();
        for (queue, options) in &self.queues {
            config = config.queue_type(queue, options.queue_type);
        }
        let link = Link::open(&config, "consume");
        let declarer = Declarer::new(link.clone(), &config);
        let producers = Arc::new(LazyProducer::new(config.clone()));
        let counts = Arc::new(Counts::new());
        let jobs = Arc::new(RunningJobs::default());
        let (drain, force) = (CancellationToken::new(), CancellationToken::new());

        let mut consumers = JoinSet::new();
        let mut queues = BTreeMap::new();
        for (queue, options) in self.queues {
            let (pause, paused) = watch::channel(false);
            let intake = Intake::new(
                queue.clone(),
                options,
                Arc::clone(&self.app),
                Arc::clone(&producers),
                Arc::clone(&counts),
                Arc::clone(&jobs),
                self.consumer_timeout,
            );
            let view = QueueView::new(&intake);
            let consumer = Consumer {
                intake: Arc::new(intake),
                config: config.clone(),
                link: link.clone(),
                declarer: declarer.clone(),
                drain: drain.clone(),
                force: force.clone(),
                paused,
                status: Arc::clone(&view.status),
                absent: view.absent.subscribe(),
                winding: JoinSet::new(),
                mend: false,
                tells_timeout: true,
            };
            consumers.spawn(consumer.run());
            queues.insert(queue, Steering { pause, view });
        }
        let views = queues.values().map(|steering: &Steering| steering.view.clone()).collect();
        let backlog = backlog::watch(link.clone(), config, views, drain.clone());
        let backlog = AbortOnDropHandle::new(tokio::spawn(backlog));
        let (name, ticked) = (self.app.name.clone(), watch::Sender::new(Instant::now()));
        let shared = Shared { name, ticked, drain, force, queues, jobs, counts };
        let controls = Controls { shared: Arc::new(shared) };
        let house = House {
            controls: controls.clone(),
            link,
            producers,
            backlog,
            grace: self.grace,
            exit_after: self.exit_after,
        };
        Running { controls, end: tokio::spawn(house.keep(consumers)) }
    }
}

impl<S> fmt::Debug for Worker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("queues", &self.queues).finish_non_exhaustive()
    }
}

impl Running {
    /// A handle to steer it by.
    pub fn controls(&self) -> Controls {
        self.controls.clone()
    }

    /// Waits until it has ended, which [`Controls::drain`] brings about.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub async fn finished(mut self) -> Result<Summary, RunError> {
        flatten((&mut self.end).await).await
    }
}

async fn flatten(
    ended: Result<Result<Summary, RunError>, tokio::task::JoinError>,
) -> Result<Summary, RunError> {
    match ended {
        Ok(result) => result,
        // The house task does not panic; if it ever does, the panic must not get lost.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The user's runtime is shutting down, and everything with it.
            Err(_) => std::future::pending().await,
        },
    }
}

impl Controls {
    /// Ends the worker in good order: no new jobs, running ones finish within the grace period.
    pub fn drain(&self) {
        self.shared.drain.cancel();
    }

    /// Ends the worker at once: running jobs are stopped and given back.
    pub fn force(&self) {
        self.shared.drain.cancel();
        self.shared.force.cancel();
    }

    /// Stops consuming a queue; what was not started goes back once, running jobs finish.
    /// `false`: this worker has no such queue.
    pub fn pause(&self, queue: &str) -> bool {
        self.set_paused(queue, true)
    }

    /// Consumes a paused queue again. `false`: this worker has no such queue.
    pub fn resume(&self, queue: &str) -> bool {
        self.set_paused(queue, false)
    }

    /// The jobs that run now, oldest first.
    pub fn running(&self) -> Vec<RunningJob> {
        self.shared.jobs.list()
    }

    /// Whether each queue is consumed, and if not, why; and what is known of its jobs.
    pub fn queues(&self) -> Vec<QueueStatus> {
        self.shared.queues.values().map(|steering| steering.view.look()).collect()
    }

    /// The worker's name: `host/pid` unless the builder was told another.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Whether it was told to end.
    pub fn is_draining(&self) -> bool {
        self.shared.drain.is_cancelled()
    }

    /// How long ago the worker's clock last ticked. It ticks every second until the worker has
    /// ended; much more than that means that handlers hog every thread of the runtime.
    pub fn since_tick(&self) -> Duration {
        self.shared.ticked.borrow().elapsed()
    }

    /// What was done up to now.
    pub fn summary(&self) -> Summary {
        self.shared.counts.summary()
    }

    fn set_paused(&self, queue: &str, paused: bool) -> bool {
        self.shared.queues.get(queue).map(|steering| steering.pause.send_replace(paused)).is_some()
    }
}

impl fmt::Debug for Controls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controls").field("queues", &self.queues()).finish_non_exhaustive()
    }
}

/// Looks after the consumers until the last one has ended.
struct House {
    controls: Controls,
    link: Link,
    producers: Arc<LazyProducer>,
    backlog: AbortOnDropHandle<()>,
    grace: Duration,
    exit_after: Option<Duration>,
}

impl House {
    async fn keep(self, mut consumers: JoinSet<Result<(), RunError>>) -> Result<Summary, RunError> {
        let mut result = Ok(());
        // They end with this task, even if it ends by a panic.
        let drain =
            AbortOnDropHandle::new(tokio::spawn(limit_drain(self.controls.clone(), self.grace)));
        let clock = AbortOnDropHandle::new(tokio::spawn(tick(self.controls.clone())));
        let mut look = time::interval(LOOK);
        loop {
            tokio::select! {
                // Cancel-safe: a finished task stays in the set until it is taken.
                ended = consumers.join_next() => match ended {
                    None => break,
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(error))) => {
                        // One queue that can never be consumed ends the worker: a part of it
                        // working would look like all of it working.
                        self.controls.drain();
                        result = result.and(Err(error));
                    }
                    Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                },
                // Cancel-safe: a missed tick is the next one.
                _ = look.tick() => if let Some(error) = self.idle_too_long() {
                    self.controls.drain();
                    result = result.and(Err(error));
                },
            }
        }
        drain.abort();
        // It ends with the drain, which nobody may have asked for: a worker without queues.
        self.controls.drain();
        _ = self.backlog.await;
        self.link.close().await;
        if let Some(producer) = self.producers.opened() {
            producer.close().await;
        }
        clock.abort();
        show(&self.controls, &gauges(&self.controls));
        let summary = self.controls.summary();
        info!(%summary, "drained");
        result.map(|()| summary)
    }

    fn idle_too_long(&self) -> Option<RunError> {
        let most = self.exit_after?;
        if self.controls.shared.drain.is_cancelled() {
            return None;
        }
        let idle = self.controls.queues().into_iter().find(|status| {
            status.idle_seconds >= most.as_secs().max(1)
                && status.because.as_deref() != Some(PAUSED)
        })?;
        Some(RunError::NotConsuming {
            queue: idle.queue,
            idle: Duration::from_secs(idle.idle_seconds),
            because: idle.because.unwrap_or_default(),
        })
    }
}

/// Shows that the runtime turns, and sets the gauges.
async fn tick(controls: Controls) {
    let gauges = gauges(&controls);
    loop {
        controls.shared.ticked.send_replace(Instant::now());
        show(&controls, &gauges);
        time::sleep(TICK).await;
    }
}

fn gauges(controls: &Controls) -> Vec<QueueGauges> {
    controls.shared.queues.keys().map(|queue| QueueGauges::new(queue)).collect()
}

fn show(controls: &Controls, gauges: &[QueueGauges]) {
    for (gauges, status) in gauges.iter().zip(controls.queues()) {
        gauges.set(&status);
    }
}

async fn limit_drain(controls: Controls, grace: Duration) {
    controls.shared.drain.cancelled().await;
    let running = controls.running().len();
    if running > 0 {
        info!(running, grace_s = grace.as_secs(), "draining; running jobs may finish");
    }
    time::sleep(grace).await;
    let running = controls.running().len();
    if running > 0 {
        warn!(running, "the grace period is over; what still runs is given back");
    }
    controls.shared.force.cancel();
}
