//! What every test here needs: a kind of job, a worker on a namespace of its own, and waiting for
//! what happens instead of sleeping.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay_producer::link::connection::Link;
use forebay_producer::{DeadLetter, DeadLetters, Filter, Inspector, Pile};
use forebay_worker::testing::Broker;
use forebay_worker::{Config, Context, Controls, Job, Producer, Running, Summary, WorkerBuilder};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{self, Instant};

/// Longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A job that carries a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) n: u64,
}

impl Job for Work {
    const KIND: &'static str = "work.do";
}

pub(crate) fn work(n: u64) -> Work {
    Work { n }
}

/// What handlers note, for tests to wait on.
#[derive(Clone, Default)]
pub(crate) struct Notes {
    shared: Arc<(Mutex<Vec<String>>, Notify)>,
}

impl Notes {
    pub(crate) fn add(&self, note: impl Into<String>) {
        self.shared.0.lock().unwrap().push(note.into());
        self.shared.1.notify_waiters();
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.shared.0.lock().unwrap().clone()
    }

    /// Waits until there are so many.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<String> {
        let wait = async {
            loop {
                let added = self.shared.1.notified();
                let all = self.all();
                if all.len() >= count {
                    return all;
                }
                added.await;
            }
        };
        let waited = time::timeout(PATIENCE, wait).await;
        waited.unwrap_or_else(|_| panic!("{count} notes expected, there are {:?}", self.all()))
    }

    /// Waits for a note with this text.
    pub(crate) async fn wait_for_text(&self, text: &str) {
        for count in 1.. {
            if self.wait_for(count).await.iter().any(|note| note == text) {
                return;
            }
        }
    }
}

/// A worker and a producer on one namespace.
pub(crate) struct Bench {
    pub(crate) broker: Broker,
    pub(crate) producer: Producer,
    running: Option<Running>,
    pub(crate) controls: Controls,
}

impl Bench {
    /// Starts a worker on the shared broker.
    pub(crate) async fn start<S: Send + Sync + 'static>(worker: WorkerBuilder<S>) -> Self {
        Self::on(forebay_worker::testing::broker().await, worker)
    }

    /// Starts a worker on a given broker.
    pub(crate) fn on<S: Send + Sync + 'static>(broker: Broker, worker: WorkerBuilder<S>) -> Self {
        let config = broker.config();
        let running = worker.build().expect("a worker without faults").start(&config);
        Self {
            producer: Producer::new(&config),
            controls: running.controls(),
            running: Some(running),
            broker,
        }
    }

    pub(crate) fn config(&self) -> Config {
        self.broker.config()
    }

    /// Drains the worker and returns what it did.
    pub(crate) async fn drain(&mut self) -> Summary {
        self.controls.drain();
        let running = self.running.take().expect("drained once");
        time::timeout(PATIENCE, running.finished()).await.expect("it ends").expect("it ran")
    }

    /// Waits until the queue is consumed.
    pub(crate) async fn consuming(&self, queue: &str) {
        eventually("the queue is consumed", async || {
            self.controls.queues().iter().any(|status| status.queue == queue && status.consuming)
        })
        .await;
    }

    /// Waits until the queue is not consumed.
    pub(crate) async fn idle(&self, queue: &str) {
        eventually("the queue is not consumed", async || {
            self.controls.queues().iter().any(|status| status.queue == queue && !status.consuming)
        })
        .await;
    }

    /// Waits until the worker's counts are so.
    pub(crate) async fn until(&self, what: &str, so: impl Fn(&Summary) -> bool) {
        eventually(what, async || so(&self.controls.summary())).await;
    }

    /// Waits until a queue's dead letters are so many, and returns them.
    pub(crate) async fn dead(&self, queue: &str, count: usize) -> Vec<DeadLetter> {
        dead_of(&self.config(), queue, count).await
    }

    /// How many jobs wait on a queue now.
    pub(crate) async fn ready(&self, queue: &str) -> u32 {
        let inspector = Inspector::new(&self.config());
        let name = self.config().topology().queue(queue);
        let count = inspector.count(&name).await.expect("the broker answers");
        inspector.close().await;
        count.map_or(0, |count| count.ready)
    }

    /// Publishes a body with no properties at all, as a foreign client may, to queue `default`.
    pub(crate) async fn publish_bare(&self, body: &str) {
        let channel = raw_channel(&self.config()).await;
        let exchange = self.config().topology().jobs_exchange().into();
        let options = lapin::options::BasicPublishOptions { mandatory: true, ..Default::default() };
        let properties = lapin::BasicProperties::default();
        let sent =
            channel.basic_publish(exchange, "default".into(), options, body.as_bytes(), properties);
        let confirm = sent.await.expect("written").await.expect("confirmed");
        assert_eq!(confirm, lapin::Confirmation::Ack(None));
    }
}

/// A bare channel in confirm mode, for what no Forebay client would do.
pub(crate) async fn raw_channel(config: &Config) -> lapin::Channel {
    let link = Link::open(config, "raw");
    let channel =
        link.channel(Instant::now() + PATIENCE).await.expect("the broker answers").channel;
    channel.confirm_select(Default::default()).await.expect("confirms");
    // The channel does not keep its connection: a test is short, the link may stay.
    std::mem::forget(link);
    channel
}

/// Waits until a queue's dead letters are so many, and returns them.
pub(crate) async fn dead_of(config: &Config, queue: &str, count: usize) -> Vec<DeadLetter> {
    let pile = Pile::Queue(queue.to_owned());
    let letters = DeadLetters::new(config);
    let mut found = Vec::new();
    eventually(&format!("{count} dead letters in {pile:?}"), async || {
        found = match letters.list(&pile, &Filter::default(), 1_000).await {
            Ok(listing) => listing.letters,
            Err(_) => Vec::new(),
        };
        found.len() >= count
    })
    .await;
    letters.close().await;
    assert_eq!(found.len(), count, "{found:#?}");
    found
}

/// Asks again until it is so. For facts that the broker does not announce.
pub(crate) async fn eventually(what: &str, so: impl AsyncFnMut() -> bool) {
    eventually_within(PATIENCE, what, so).await;
}

/// As [`eventually`], for what takes longer than anything else.
pub(crate) async fn eventually_within(
    patience: Duration,
    what: &str,
    mut so: impl AsyncFnMut() -> bool,
) {
    let ask = async {
        while !so().await {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    if time::timeout(patience, ask).await.is_err() {
        panic!("not within {patience:?}: {what}");
    }
}

/// Notes the job's number and attempt: `7#1`.
pub(crate) fn note<S>(notes: &Notes, job: &Work, cx: &Context<S>) {
    notes.add(format!("{}#{}", job.n, cx.attempt()));
}
