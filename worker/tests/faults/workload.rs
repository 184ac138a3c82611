//! The jobs of one run and their publishers.
//! In: a plan and a seed. Out: every job is published, and what the publisher was told is recorded.

use std::time::Duration;

use fastrand::Rng;
use forebay_producer::Producer;
use forebay_worker::{Job, PublishError, PublishOptions};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::time::{self, Instant};

use crate::record::{Event, Recorder};

/// What a job does when it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Script {
    /// Ends well.
    Quick,
    /// Fails at the first attempt, ends well at the second.
    FailsOnce,
    /// Becomes a dead letter.
    Rejects,
    /// Becomes a dead letter, and ends well once it is redriven.
    RejectsOnce,
    /// Kills its process, each time.
    Kills,
    /// Takes its time when it is delivered first, and ends well at once when it comes again.
    Lingers,
    /// Ends well, once the gate is open.
    Waits,
    /// Takes every file descriptor that its process can have, and ends well.
    Hoards,
}

impl Script {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::FailsOnce => "fails-once",
            Self::Rejects => "rejects",
            Self::RejectsOnce => "rejects-once",
            Self::Kills => "kills",
            Self::Lingers => "lingers",
            Self::Waits => "waits",
            Self::Hoards => "hoards",
        }
    }
}

/// The payload: what to do, and how long.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) script: Script,
    pub(crate) ms: u64,
}

impl Job for Step {
    const KIND: &'static str = "step.take";
}

/// A kind that workers of an older deploy do not know.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct NewStep(pub(crate) Step);

impl Job for NewStep {
    const KIND: &'static str = "step.new";
}

/// One job to publish.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) id: String,
    pub(crate) step: Step,
    pub(crate) delay: Option<Duration>,
    pub(crate) new_kind: bool,
}

/// How many of each; the rest is quick.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mix {
    pub(crate) fails_once: u32,
    pub(crate) rejects: u32,
    pub(crate) delayed: u32,
    pub(crate) slow: u32,
    pub(crate) new_kind: u32,
    pub(crate) waits: u32,
}

impl Mix {
    /// In 100 jobs: some of each.
    pub(crate) const ALL: Self =
        Self { fails_once: 15, rejects: 5, delayed: 15, slow: 5, new_kind: 0, waits: 0 };
    /// Quick ones only.
    pub(crate) const QUICK: Self =
        Self { fails_once: 0, rejects: 0, delayed: 0, slow: 0, new_kind: 0, waits: 0 };
}

/// The workload and the workers of one run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) jobs: u32,
    /// Published over so long.
    pub(crate) span: Duration,
    pub(crate) mix: Mix,
    /// How long a quick job takes at most.
    pub(crate) quick_ms: u64,
    /// How long a slow job takes at most.
    pub(crate) slow_ms: u64,
    pub(crate) workers: usize,
    pub(crate) prefetch: u16,
    pub(crate) concurrency: usize,
    pub(crate) grace: Duration,
    /// Heartbeat of the workers, in seconds.
    pub(crate) heartbeat: u16,
    pub(crate) file_descriptors: Option<u32>,
    /// The workers' clocks can be turned.
    pub(crate) turned_clock: bool,
    /// Only workers that are started later know the new kind.
    pub(crate) old_workers: bool,
    /// All jobs are tracked, and the stream of events must tell the end of each.
    pub(crate) tracked: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            jobs: 300,
            span: Duration::from_secs(3),
            mix: Mix::ALL,
            quick_ms: 10,
            slow_ms: 1_200,
            workers: 2,
            prefetch: 30,
            concurrency: 8,
            grace: Duration::from_secs(10),
            heartbeat: 10,
            file_descriptors: None,
            turned_clock: false,
            old_workers: false,
            tracked: false,
        }
    }
}

impl Plan {
    /// The jobs in the order in which they are published.
    pub(crate) fn items(&self, rng: &mut Rng) -> Vec<Item> {
        (0..self.jobs).map(|n| self.item(n, rng)).collect()
    }

    fn item(&self, n: u32, rng: &mut Rng) -> Item {
        let mix = &self.mix;
        let mut place = rng.u32(0..100);
        let mut falls_on = |share: u32| {
            let hit = place < share;
            place = if hit { u32::MAX } else { place.saturating_sub(share) };
            hit
        };
        let script = match () {
            () if falls_on(mix.fails_once) => Script::FailsOnce,
            () if falls_on(mix.rejects) => Script::Rejects,
            () if falls_on(mix.waits) => Script::Waits,
            () => Script::Quick,
        };
        let quick = script == Script::Quick;
        let delayed = quick && falls_on(mix.delayed);
        let slow = quick && falls_on(mix.slow);
        let new_kind = quick && falls_on(mix.new_kind);
        let ms = if slow {
            rng.u64(self.slow_ms / 4..=self.slow_ms)
        } else {
            rng.u64(0..=self.quick_ms)
        };
        let delay = delayed.then(|| Duration::from_millis(rng.u64(100..1_000)));
        Item { id: format!("job-{n:05}"), step: Step { script, ms }, delay, new_kind }
    }
}

/// Publishes all of them: every third one by one, the others up to 100 at once.
pub(crate) async fn publish(
    producer: Producer,
    record: Recorder,
    items: Vec<Item>,
    span: Duration,
    tracked: bool,
) {
    let began = Instant::now();
    let gap = span / u32::try_from(items.len().max(1)).unwrap_or(u32::MAX);
    let numbered = items.into_iter().zip(0u32..);
    let (single, windowed): (Vec<_>, Vec<_>) = numbered.partition(|(_, n)| n % 3 == 0);
    let one_by_one = async {
        for (item, n) in single {
            time::sleep_until(began + gap * n).await;
            publish_as(&producer, &record, &item, tracked).await;
        }
    };
    let in_a_window = async {
        let mut flying = FuturesUnordered::new();
        for (item, n) in windowed {
            // Polls those under way while it waits for the time of the next.
            let due = time::sleep_until(began + gap * n);
            tokio::pin!(due);
            loop {
                tokio::select! {
                    () = &mut due, if flying.len() < 100 => break,
                    Some(()) = flying.next() => {}
                }
            }
            let (producer, record) = (&producer, &record);
            flying.push(async move { publish_as(producer, record, &item, tracked).await });
        }
        while flying.next().await.is_some() {}
    };
    tokio::join!(one_by_one, in_a_window);
    producer.close().await;
}

pub(crate) async fn publish_one(producer: &Producer, record: &Recorder, item: &Item) {
    publish_as(producer, record, item, false).await;
}

pub(crate) async fn publish_as(producer: &Producer, record: &Recorder, item: &Item, tracked: bool) {
    let id = item.id.clone();
    let mut options = PublishOptions::new().id(&id).track(tracked);
    if let Some(delay) = item.delay {
        options = options.delay(delay);
    }
    record.note(Event::Intent { id: id.clone(), script: item.step.script.name().to_owned() });
    let published = if item.new_kind {
        producer.publish_with(&NewStep(item.step), options).await
    } else {
        producer.publish_with(&item.step, options).await
    };
    record.note(match published {
        Ok(_) => Event::Confirmed { id },
        Err(error) => {
            let may_have_arrived =
                matches!(error, PublishError::Unconfirmed { may_have_arrived: true, .. });
            Event::Failed { id, may_have_arrived, because: error.to_string() }
        }
    });
}
