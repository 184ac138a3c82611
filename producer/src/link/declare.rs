//! Carries out declarations, and remembers what is already there.
//! In: declarations as `wire/topology` builds them. Out: they exist, or an error that names what
//! does not and the two ways out.

mod events;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use tokio::sync::{Mutex as Gate, MutexGuard};
use tokio::time::{self, Instant};
use tracing::{debug, warn};

use super::connection::{Link, Opened};
use super::fault::{ANSWER, Fault, answered};
use crate::config::{Config, Declare};
use crate::error::TopologyError;
use crate::wire::topology::{Argument, Declaration, QueueType, Target};

/// How long to wait for what is away for a moment, and how often to try.
const MOMENT: Duration = Duration::from_millis(200);
const TRIES: u32 = 5;

/// Declares what is missing and remembers it for as long as the connection lasts: a broker that
/// went away may come back without it.
#[derive(Debug, Clone)]
pub struct Declarer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    link: Link,
    config: Config,
    /// One declaration at a time: a burst of publishes to a new queue declares it once.
    gate: Gate<()>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    generation: u64,
    queues: HashSet<String>,
    ladder: Option<u8>,
    events: bool,
    warned: HashSet<String>,
}

impl Declarer {
    /// Declares over `link`.
    pub fn new(link: Link, config: &Config) -> Self {
        let (gate, known) = (Gate::default(), Mutex::default());
        Self { shared: Arc::new(Shared { link, config: config.clone(), gate, known }) }
    }

    /// Sees to it that a job queue is there with all that belongs to it.
    ///
    /// # Errors
    /// [`TopologyError`], by `deadline` at the latest.
    pub async fn ensure_queue(
        &self,
        queue: &str,
        queue_type: QueueType,
        deadline: Instant,
    ) -> Result<(), TopologyError> {
        if self.knows(|known| known.queues.contains(queue)) || !self.may_declare() {
            return Ok(());
        }
        let topology = self.shared.config.topology();
        #[cfg(feature = "testing")]
        crate::testing::note_declared(topology, queue);
        let declarations = topology.for_queue(queue, queue_type);
        for _ in 1..TRIES {
            match self.declare_queue(queue, &declarations, deadline).await? {
                Some(_) if Instant::now() + MOMENT < deadline => time::sleep(MOMENT).await,
                Some(away) => return Err(away),
                None => return Ok(()),
            }
        }
        self.declare_queue(queue, &declarations, deadline).await?.map_or(Ok(()), Err)
    }

    /// One try, in its turn: others have theirs while this one waits for the next. `Some`: a part
    /// of it is away for a moment.
    async fn declare_queue(
        &self,
        queue: &str,
        declarations: &[Declaration],
        deadline: Instant,
    ) -> Result<Option<TopologyError>, TopologyError> {
        let _one = self.turn(deadline).await?;
        if self.knows(|known| known.queues.contains(queue)) {
            return Ok(None);
        }
        let generation = match self.pass(declarations, deadline).await? {
            Pass::Done(generation) => generation,
            Pass::Away(error) | Pass::Cut(error) => return Ok(Some(error)),
        };
        debug!(queue, "queue declared");
        self.remember(generation, |known| _ = known.queues.insert(queue.to_owned()));
        Ok(None)
    }

    /// Sees to it that the delay ladder is there up to level `top`.
    ///
    /// # Errors
    /// [`TopologyError`], by `deadline` at the latest.
    pub async fn ensure_ladder(&self, top: u8, deadline: Instant) -> Result<(), TopologyError> {
        let reaches = |known: &Known| known.ladder.is_some_and(|known| known >= top);
        if self.knows(reaches) || !self.may_declare() {
            return Ok(());
        }
        let _one = self.turn(deadline).await?;
        if self.knows(reaches) {
            return Ok(());
        }
        let declarations = self.shared.config.topology().for_ladder(top);
        let generation = self.apply(&declarations, deadline).await?;
        debug!(top, "delay ladder declared");
        self.remember(generation, |known| known.ladder = Some(top));
        Ok(())
    }

    /// Sees to it that the stream of events is there.
    ///
    /// # Errors
    /// [`TopologyError`], by `deadline` at the latest.
    pub async fn ensure_events(&self, deadline: Instant) -> Result<(), TopologyError> {
        if self.has_events() || !self.may_declare() {
            return Ok(());
        }
        let _one = self.turn(deadline).await?;
        if self.has_events() {
            return Ok(());
        }
        let config = &self.shared.config;
        let declarations = config.topology().for_events(&config.retention);
        let generation = self.apply(&declarations, deadline).await?;
        debug!("stream of events declared");
        self.remember(generation, |known| known.events = true);
        Ok(())
    }

    /// Whether the stream of events was declared on this connection.
    pub fn has_events(&self) -> bool {
        self.knows(|known| known.events)
    }

    /// Forgets the stream of events: somebody deleted it.
    pub fn forget_events(&self) {
        self.known().events = false;
    }

    /// Forgets a queue and the ladder: somebody deleted something.
    pub fn forget(&self, queue: &str) {
        let mut known = self.known();
        known.queues.remove(queue);
        known.ladder = None;
    }

    /// Whether we may declare at all.
    pub fn may_declare(&self) -> bool {
        self.shared.config.declare == Declare::Auto
    }

    /// Declares everything in the list, in order. Returns the connection's generation. A connection
    /// that is lost on the way is waited for.
    ///
    /// What exists with other arguments stays as it is, with one warning, unless the configuration
    /// is strict.
    ///
    /// # Errors
    /// [`TopologyError`] naming the first thing that could not be declared.
    pub async fn apply(
        &self,
        declarations: &[Declaration],
        deadline: Instant,
    ) -> Result<u64, TopologyError> {
        match self.pass(declarations, deadline).await? {
            Pass::Done(generation) => Ok(generation),
            Pass::Away(error) | Pass::Cut(error) => Err(error),
        }
    }

    async fn pass(
        &self,
        declarations: &[Declaration],
        deadline: Instant,
    ) -> Result<Pass, TopologyError> {
        loop {
            let pass = self.attempt(declarations, deadline).await?;
            if !matches!(pass, Pass::Cut(_)) {
                return Ok(pass);
            }
        }
    }

    /// One pass over the list, on one connection.
    async fn attempt(
        &self,
        declarations: &[Declaration],
        deadline: Instant,
    ) -> Result<Pass, TopologyError> {
        let mut opened = self.shared.link.channel(deadline).await?;
        for declaration in declarations {
            let declared = declare(&opened.channel, declaration, deadline).await;
            let Err(fault) = declared else { continue };
            let what = describe(declaration);
            match fault {
                Fault::Mismatch(because) if self.shared.config.strict => {
                    return Err(TopologyError::Mismatch { what, because });
                }
                Fault::Mismatch(because) => {
                    self.warn_once(&what, &because);
                    opened = self.shared.link.channel(deadline).await?;
                }
                Fault::Denied(because) => return Err(TopologyError::Denied { what, because }),
                // RabbitMQ 3.x without the flag ends the connection over it, at every try.
                Fault::Connection(because) if because.contains("feature flag") => {
                    return Err(TopologyError::Unsupported { what, because });
                }
                cut @ (Fault::Connection(_) | Fault::Closed(_) | Fault::Silent(_)) => {
                    let because = cut.to_string();
                    debug!(what, because, "the connection ended while declaring");
                    return Ok(Pass::Cut(TopologyError::Broker { what, because }));
                }
                passing if passing.passes() => {
                    let because = passing.to_string();
                    return Ok(Pass::Away(TopologyError::Broker { what, because }));
                }
                other => return Err(TopologyError::Broker { what, because: other.to_string() }),
            }
        }
        let Opened { channel, generation, .. } = opened;
        _ = time::timeout(patience(deadline), channel.close(200, "declared".into())).await;
        Ok(Pass::Done(generation))
    }

    async fn turn(&self, deadline: Instant) -> Result<MutexGuard<'_, ()>, TopologyError> {
        let turn = time::timeout_at(deadline, self.shared.gate.lock()).await;
        turn.map_err(|_| TopologyError::Connect(self.shared.link.unreachable()))
    }

    fn warn_once(&self, what: &str, because: &str) {
        if self.known().warned.insert(what.to_owned()) {
            warn!(
                what,
                because,
                "exists with other arguments and is used as it is; to mend it delete it once it is \
                 empty, or run with --strict-topology to refuse it"
            );
        }
    }

    fn knows(&self, question: impl FnOnce(&Known) -> bool) -> bool {
        let generation = self.shared.link.status().borrow().generation;
        let known = self.known();
        known.generation == generation && question(&known)
    }

    fn remember(&self, generation: u64, note: impl FnOnce(&mut Known)) {
        let mut known = self.known();
        if known.generation != generation {
            let warned = std::mem::take(&mut known.warned);
            *known = Known { generation, warned, ..Known::default() };
        }
        note(&mut known);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of one pass over a list of declarations.
enum Pass {
    /// All is there, on the connection of this generation.
    Done(u64),
    /// Something is away, perhaps for a moment.
    Away(TopologyError),
    /// The connection was lost or fell silent, perhaps over one of them.
    Cut(TopologyError),
}

/// One answer takes so long at most, and never longer than the caller waits.
fn patience(deadline: Instant) -> Duration {
    ANSWER.min(deadline.saturating_duration_since(Instant::now()))
}

async fn declare(
    channel: &Channel,
    declaration: &Declaration,
    deadline: Instant,
) -> Result<(), Fault> {
    let act = async {
        match declaration {
            Declaration::Exchange { name, kind, arguments } => {
                let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
                let arguments = table(arguments.iter().map(|(name, value)| (*name, value)));
                let (name, kind) = (name.as_str().into(), exchange_kind(kind));
                channel.exchange_declare(name, kind, options, arguments).await
            }
            Declaration::Queue { name, arguments } => {
                let options = QueueDeclareOptions { durable: true, ..Default::default() };
                let arguments = table(arguments.iter().map(|(name, value)| (*name, value)));
                let declared = channel.queue_declare(name.as_str().into(), options, arguments);
                declared.await.map(|_| ())
            }
            Declaration::Binding { from, to: Target::Queue(queue), key } => {
                let (queue, from, key) =
                    (queue.as_str().into(), from.as_str().into(), key.as_str().into());
                let options = QueueBindOptions::default();
                channel.queue_bind(queue, from, key, options, FieldTable::default()).await
            }
            Declaration::Binding { from, to: Target::Exchange(exchange), key } => {
                let (exchange, from, key) =
                    (exchange.as_str().into(), from.as_str().into(), key.as_str().into());
                let options = ExchangeBindOptions::default();
                channel.exchange_bind(exchange, from, key, options, FieldTable::default()).await
            }
        }
    };
    answered(patience(deadline), act).await
}

pub(super) fn exchange_kind(kind: &str) -> ExchangeKind {
    match kind {
        "topic" => ExchangeKind::Topic,
        "fanout" => ExchangeKind::Fanout,
        _ => ExchangeKind::Direct,
    }
}

pub(super) fn table<'a>(arguments: impl Iterator<Item = (&'a str, &'a Argument)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
        };
        table.insert(name.into(), value);
    }
    table
}

fn describe(declaration: &Declaration) -> String {
    match declaration {
        Declaration::Exchange { name, .. } => format!("exchange `{name}`"),
        Declaration::Queue { name, .. } => format!("queue `{name}`"),
        Declaration::Binding { from, to, .. } => {
            let (Target::Queue(to) | Target::Exchange(to)) = to;
            format!("the binding from `{from}` to `{to}`")
        }
    }
}
