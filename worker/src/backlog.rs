//! Looks every now and then how much waits at the broker, and whether it still has our consumer.
//! In: the consuming connection, on channels of its own. Out: sizes for status and metrics, a
//! warning about many dead letters, and word for a consumer that the broker does not have. It takes
//! nothing and disturbs no other.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use forebay_producer::link::connection::Link;
use forebay_producer::link::inspect::QueueCount;
use forebay_producer::{Config, DeadError, Inspector, Topology};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::presence::Presence;
use crate::status::QueueView;

const EVERY: Duration = Duration::from_secs(30);
/// While jobs run or ran within about a minute, or were seen to wait: autoscalers go by it. Also
/// while the broker seems not to have our consumer.
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
    let mut backlog = Backlog { inspector: Inspector::on(link, &config), told: Vec::new() };
    let watched = |view| Watched::new(view, config.topology());
    let mut queues: Vec<_> = queues.into_iter().map(watched).collect();
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
    /// What it has said that we may not look at.
    told: Vec<&'static str>,
}

struct Watched {
    view: QueueView,
    jobs: Pile,
    letters: Pile,
    /// When it was last looked at, or the start.
    since: Instant,
    looked: bool,
    /// It had many dead letters at the last look.
    many_dead: bool,
    presence: Presence,
}

/// One queue on the broker.
struct Pile {
    name: String,
    of: &'static str,
    not_before: Instant,
}

impl Watched {
    fn new(view: QueueView, topology: &Topology) -> Self {
        let since = Instant::now();
        let pile = |name, of| Pile { name, of, not_before: since };
        let jobs = pile(topology.queue(&view.queue), "jobs that wait");
        let letters = pile(topology.dead_queue(&view.queue), "dead letters");
        let presence = Presence::default();
        Self { view, jobs, letters, since, looked: false, many_dead: false, presence }
    }

    /// How long after the last look the next one is due.
    fn pause(&self) -> Duration {
        let consuming = locked(&self.view.status).consuming;
        let here = self.view.load.look();
        let waiting = locked(&self.view.sizes).ready.is_some_and(|ready| ready > 0);
        let busy = waiting || here.running > 0 || here.rate > 0.0 || self.presence.is_in_doubt();
        match self.looked {
            true if busy => EVERY_IF_BUSY,
            // Before it is consumed it may not be there.
            false if consuming => Duration::ZERO,
            _ => EVERY,
        }
    }
}

impl Backlog {
    async fn look(&mut self, queue: &mut Watched) {
        (queue.since, queue.looked) = (Instant::now(), true);
        let up = locked(&queue.view.status).generation();
        let jobs = self.count(&mut queue.jobs).await;
        queue.see(up, &jobs);
        let letters = self.count(&mut queue.letters).await;
        let ready = jobs.map(Seen::ready);
        let dead = letters.map(Seen::ready);
        let before = *locked(&queue.view.sizes);
        let seen = [&ready, &dead].iter().any(|look| matches!(look, Ok(Some(_))));
        let sizes = Sizes {
            ready: ready.unwrap_or(before.ready),
            dead: dead.unwrap_or(before.dead),
            at: if seen { Some(Instant::now()) } else { before.at },
        };
        *locked(&queue.view.sizes) = sizes;
        if crosses(&mut queue.many_dead, sizes.dead) {
            let (queue, dead) = (&queue.view.queue, sizes.dead.unwrap_or_default());
            warn!(queue, dead, "many dead letters; `forebay dead ls` shows why they died");
        }
    }

    /// What we may not look at is tried again after a while only.
    ///
    /// # Errors
    /// When the broker does not answer: it has not lost its jobs, and what was seen stands.
    async fn count(&mut self, pile: &mut Pile) -> Result<Seen, DeadError> {
        if Instant::now() < pile.not_before {
            return Ok(Seen::Nothing);
        }
        match self.inspector.count(&pile.name).await {
            Ok(count) => Ok(count.map_or(Seen::Missing, Seen::There)),
            Err(DeadError::MayNotLook { because }) => {
                pile.not_before = Instant::now() + EVERY_IF_DENIED;
                self.tell(pile.of, &because);
                Ok(Seen::Nothing)
            }
            Err(error) => {
                debug!(queue = pile.name, %error, "the broker was not asked how much waits");
                Err(error)
            }
        }
    }

    /// No fault: a worker needs no rights on dead letters.
    fn tell(&mut self, of: &'static str, error: &str) {
        if !self.told.contains(&of) {
            info!(
                error,
                "the number of {of} is not in status and metrics, because this user may not look; any of \
                 `configure`, `write` and `read` on the queue would do"
            );
            self.told.push(of);
        }
    }
}

impl Watched {
    /// A consumer that was up all the while, and that the broker does not have, is told to be lost.
    fn see(&mut self, up: Option<u64>, jobs: &Result<Seen, DeadError>) {
        let consumers = match jobs {
            // So a quorum queue is told, too, whose leader does not answer within 250 ms
            // (`rabbit_quorum_queue:stat/1`): it says nothing. If our consumer is gone, what it
            // had is ready again, and so is what comes.
            Ok(Seen::There(count)) if count.consumers == 0 && count.ready == 0 => return,
            Ok(Seen::There(count)) => count.consumers,
            Ok(Seen::Missing) => 0,
            Ok(Seen::Nothing) | Err(_) => return,
        };
        let up = up.filter(|up| locked(&self.view.status).generation() == Some(*up));
        if self.presence.see(up, consumers, Instant::now())
            && let Some(generation) = up
        {
            self.view.absent.send_replace(generation);
        }
    }
}

/// What a look has shown.
#[derive(Debug, Clone, Copy)]
enum Seen {
    There(QueueCount),
    Missing,
    /// We may not look.
    Nothing,
}

impl Seen {
    fn ready(self) -> Option<u32> {
        match self {
            Self::There(count) => Some(count.ready),
            Self::Missing | Self::Nothing => None,
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
    fn many_dead_letters_are_told_of_once_for_each_crossing() {
        let mut many = false;
        let looks = [9_999, 10_000, 10_001, 9_999, 20_000];
        let told = looks.map(|dead| crosses(&mut many, Some(dead)));
        assert_eq!(told, [false, true, false, false, true]);
        assert!(!crosses(&mut many, None));
        assert!(!crosses(&mut many, Some(20_000)), "not knowing is not falling");
    }
}
