//! What is told while things break.
//! In: where the broker is. Out: numbered events on channels and tracked jobs, each of which was confirmed or
//! not, until it is told to end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use forebay_producer::{Config, Producer, PublishOptions};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::truth;

/// Told something now and then.
pub(crate) const RARE: &str = "rare";
/// Told by the jobs.
pub(crate) const WORKER: &str = "worker";
const NEWS: &str = "news";
const CHAT: &str = "chat";
pub(crate) const CHANNELS: [&str; 4] = [NEWS, CHAT, WORKER, RARE];
pub(crate) const KIND: &str = "step.take";
/// Whose jobs they are: those of clients without a token.
const OWNER: &str = "anonymous";

/// How much is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Between two events of a busy channel, at most.
    pub(crate) pause: Duration,
    /// How large one is, in bytes.
    pub(crate) size: usize,
}

/// What the broker has confirmed.
#[derive(Debug, Default)]
pub(crate) struct Confirmed {
    /// Channel and number.
    pub(crate) told: Vec<(&'static str, u64)>,
    pub(crate) jobs: Vec<String>,
    /// What it did not, and why; that may be there or not.
    pub(crate) failed: Vec<String>,
}

/// Tells until `end`, and then one last event, when all jobs have told theirs.
pub(crate) async fn tell(
    config: Config,
    plan: Plan,
    seed: u64,
    end: CancellationToken,
) -> Confirmed {
    let producer = Producer::new(&config);
    let confirmed = Arc::new(Mutex::new(Confirmed::default()));
    let mut tasks = JoinSet::new();
    let channels = [(NEWS, plan.pause), (CHAT, plan.pause), (RARE, Duration::from_millis(800))];
    for (n, (channel, pause)) in channels.into_iter().enumerate() {
        let rng = Rng::with_seed(seed + n as u64);
        let channel = Channel { name: channel, pause, filler: "x".repeat(plan.size), rng };
        tasks.spawn(channel.tell(producer.clone(), end.clone(), Arc::clone(&confirmed)));
    }
    tasks.spawn(publish(producer.clone(), end, Arc::clone(&confirmed)));
    tasks.join_all().await;
    let confirmed = Arc::into_inner(confirmed).unwrap().into_inner().unwrap();
    truth::all_ended(&config, &confirmed.jobs).await;
    producer.emit(RARE, "last", &json!({})).await.unwrap();
    producer.close().await;
    confirmed
}

struct Channel {
    name: &'static str,
    pause: Duration,
    filler: String,
    rng: Rng,
}

impl Channel {
    async fn tell(
        mut self,
        producer: Producer,
        end: CancellationToken,
        confirmed: Arc<Mutex<Confirmed>>,
    ) {
        let longest = u64::try_from(self.pause.as_micros()).unwrap_or(u64::MAX);
        for n in 0.. {
            let pause = Duration::from_micros(self.rng.u64(0..=longest));
            if end.run_until_cancelled(time::sleep(pause)).await.is_none() {
                return;
            }
            let data = json!({ "n": n, "filler": self.filler });
            let told = producer.emit(self.name, "tick", &data).await;
            let mut confirmed = confirmed.lock().unwrap();
            match told {
                Ok(()) => confirmed.told.push((self.name, n)),
                Err(error) => confirmed.failed.push(format!("{} {n}: {error}", self.name)),
            }
        }
    }
}

async fn publish(producer: Producer, end: CancellationToken, confirmed: Arc<Mutex<Confirmed>>) {
    for n in 0.. {
        if end.run_until_cancelled(time::sleep(Duration::from_millis(60))).await.is_none() {
            return;
        }
        let options = PublishOptions::new().track(true).owner(OWNER);
        let published = producer.publish_raw(KIND, json!({ "n": n }).to_string(), options).await;
        let mut confirmed = confirmed.lock().unwrap();
        match published {
            Ok(receipt) => confirmed.jobs.push(receipt.id),
            Err(error) => confirmed.failed.push(format!("job {n}: {error}")),
        }
    }
}
