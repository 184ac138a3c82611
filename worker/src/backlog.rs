//! Looks every now and then how much waits at the broker.
//! In: the consuming connection, on channels of its own. Out: sizes for status and metrics, and a
//! warning about many dead letters. It takes nothing and disturbs no consumer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use forebay_producer::link::connection::Link;
use forebay_producer::{Config, DeadError, Inspector, Topology};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::status::QueueView;

const EVERY: Duration = Duration::from_secs(30);
/// While every permit is taken; with one free, next to nothing waits at the broker.
const EVERY_IF_BUSY: Duration = Duration::from_secs(5);
/// A look that is not allowed makes an error in the broker's log.
const EVERY_IF_DENIED: Duration = Duration::from_secs(600);
const STEP: Duration = Duration::from_secs(1);
/// From so many dead letters on there is a warning.
const MANY_DEAD: u32 = 10_000;

/// What was seen of one queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) ready: Option<u32>,
    pub(crate) dead: Option<u32>,
    pub(crate) at: Option<Instant>,
}

/// Looks until the worker drains.
pub(crate) async fn watch(
    link: Link,
    config: Config,
    queues: Vec<QueueView>,
    drain: CancellationToken,
) {
    let topology = config.topology().clone();
    let mut backlog = Backlog { inspector: Inspector::on(link, &config), topology, told: false };
    let mut queues: Vec<_> = queues.into_iter().map(Watched::new).collect();
    let looking = async {
        loop {
            for queue in &mut queues {
                if queue.since.elapsed() >= queue.pause() {
                    backlog.look(queue).await;
                }
            }
            time::sleep(STEP).await;
        }
    };
    let _: Option<()> = drain.run_until_cancelled(looking).await;
}

struct Backlog {
    inspector: Inspector,
    topology: Topology,
    /// That we may not look has been said.
    told: bool,
}

struct Watched {
    view: QueueView,
    /// When it was last looked at, or the start.
    since: Instant,
    looked: bool,
    denied: bool,
    /// It had many dead letters at the last look.
    many_dead: bool,
}

impl Watched {
    fn new(view: QueueView) -> Self {
        Self { view, since: Instant::now(), looked: false, denied: false, many_dead: false }
    }

    /// How long after the last look the next one is due.
    fn pause(&self) -> Duration {
        let consuming = locked(&self.view.status).consuming;
        let busy = self.view.load.look().running >= self.view.concurrency;
        match (self.looked, self.denied) {
            (true, true) => EVERY_IF_DENIED,
            (true, false) if busy => EVERY_IF_BUSY,
            // Before it is consumed it may not be there.
            (false, _) if consuming => Duration::ZERO,
            _ => EVERY,
        }
    }
}

impl Backlog {
    async fn look(&mut self, queue: &mut Watched) {
        let name = queue.view.queue.clone();
        let ready = self.count(&self.topology.queue(&name)).await;
        let dead = self.count(&self.topology.dead_queue(&name)).await;
        (queue.since, queue.looked, queue.denied) = (Instant::now(), true, false);
        for look in [&ready, &dead] {
            if let Err(DeadError::MayNotLook { because }) = look {
                queue.denied = true;
                self.tell(&name, because);
            }
        }
        let before = *locked(&queue.view.sizes);
        let sizes = Sizes {
            at: if ready.is_ok() || dead.is_ok() { Some(Instant::now()) } else { before.at },
            ready: size(&name, ready, before.ready),
            dead: size(&name, dead, before.dead),
        };
        *locked(&queue.view.sizes) = sizes;
        if crosses(&mut queue.many_dead, sizes.dead) {
            let dead = sizes.dead.unwrap_or_default();
            warn!(queue = name, dead, "many dead letters; `forebay dead ls` shows why they died");
        }
    }

    async fn count(&self, queue: &str) -> Result<Option<u32>, DeadError> {
        Ok(self.inspector.count(queue).await?.map(|count| count.ready))
    }

    fn tell(&mut self, queue: &str, error: &str) {
        if !self.told {
            info!(
                queue,
                error,
                "how many jobs wait at the broker is not known; grant this user `configure` on \
                 its queues to have it in status and metrics"
            );
        }
        self.told = true;
    }
}

/// What is known after a look: a broker that is away has not lost its jobs.
fn size(queue: &str, look: Result<Option<u32>, DeadError>, before: Option<u32>) -> Option<u32> {
    match look {
        Ok(count) => count,
        Err(DeadError::MayNotLook { .. }) => None,
        Err(error) => {
            debug!(queue, %error, "the broker was not asked how many jobs wait");
            before
        }
    }
}

/// Whether there are many dead letters now and were not at the last look.
fn crosses(many: &mut bool, dead: Option<u32>) -> bool {
    let Some(dead) = dead else { return false };
    let were = std::mem::replace(many, dead >= MANY_DEAD);
    *many && !were
}

fn locked<T>(shared: &Arc<Mutex<T>>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_forgotten_when_it_may_not_be_seen_and_kept_while_the_broker_is_away() {
        let denied = || DeadError::MayNotLook { because: "no".to_owned() };
        let away = || DeadError::Broker { because: "gone".to_owned() };
        for (look, before, expected) in [
            (Ok(Some(7)), None, Some(7)),
            (Ok(Some(7)), Some(3), Some(7)),
            (Ok(None), Some(3), None),
            (Err(denied()), Some(3), None),
            (Err(away()), Some(3), Some(3)),
            (Err(away()), None, None),
        ] {
            assert_eq!(size("mail", look, before), expected);
        }
    }

    #[test]
    fn many_dead_letters_are_told_of_once_for_each_crossing() {
        let mut many = false;
        let looks = [9_999, 10_000, 10_001, 9_999, 20_000];
        let told = looks.map(|dead| crosses(&mut many, Some(dead)));
        assert_eq!(told, [false, true, false, false, true]);
        assert!(!crosses(&mut many, None));
        assert!(!crosses(&mut many, Some(20_000)), "not knowing is not falling");
    }
}
