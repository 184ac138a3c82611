//! The one place that builds names and arguments of exchanges and queues.
//! In: a namespace, a queue name, the highest delay level. Out: declarations as plain data, in the
//! order in which they must be made; `link/declare` carries them out.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::delay::LEVELS;
use super::failure::beginning;

/// "No limit" on deliveries. Spelled as a number on purpose: without the argument RabbitMQ 4 drops
/// a message at the 21st delivery, and `-1` makes 3.10 drop it at the first requeue.
const NO_DELIVERY_LIMIT: i64 = 2_147_483_647;

/// Backstop on job queues: the worker moves suspects away long before.
const DELIVERY_LIMIT: i64 = 100;

const RESERVED: [&str; 5] = ["events", "control", "delay", "dead", "unrouted"];

/// Names and arguments of everything that Forebay has on the broker, under one namespace.
///
/// ```
/// use forebay_producer::Topology;
///
/// let topology = Topology::new("forebay")?;
/// assert_eq!(topology.queue("mail"), "forebay.mail");
/// assert_eq!(topology.dead_queue("mail"), "forebay.mail.dead");
/// # Ok::<(), forebay_producer::InvalidName>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    namespace: String,
}

/// A namespace or queue name that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{name}` is not allowed: {why}")]
pub struct InvalidName {
    what: &'static str,
    name: String,
    why: String,
}

/// How a job queue is kept by the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum QueueType {
    /// Replicated, fsynced, dead-letters at least once. The default.
    #[default]
    Quorum,
    /// One node, faster to declare; the broker's own dead-lettering is at most once.
    Classic,
}

/// How long the stream of events keeps them. Old events go a segment at a time, by age or by size,
/// whichever comes first; the newest segment always stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// Age, in whole seconds, at least one. Default: 7 days.
    pub max_age: Duration,
    /// Size of all segments in bytes, on each node that has a copy. Default: 1 GB.
    pub max_bytes: u64,
    /// Size of a segment in bytes; RabbitMQ's default of 500 MB would keep a small stream for ever.
    /// Default: 20 MB.
    pub segment_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(7 * 86_400),
            max_bytes: 1_000_000_000,
            segment_bytes: 20_000_000,
        }
    }
}

/// One exchange, queue or binding that must exist.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Declaration {
    /// A durable exchange.
    Exchange {
        /// Full name on the broker.
        name: String,
        /// `direct`, `topic` or `fanout`.
        kind: &'static str,
        /// Arguments, in the order of the table in `docs/wire.md`.
        arguments: Vec<(&'static str, Argument)>,
    },
    /// A durable queue.
    Queue {
        /// Full name on the broker.
        name: String,
        /// Arguments, in the order of the table in `docs/wire.md`.
        arguments: Vec<(&'static str, Argument)>,
    },
    /// A binding of a queue or an exchange to an exchange.
    Binding {
        /// Where messages come from.
        from: String,
        /// Where they go.
        to: Target,
        /// Binding key.
        key: String,
    },
}

/// The far end of a binding.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Target {
    /// A queue's full name.
    Queue(String),
    /// An exchange's full name.
    Exchange(String),
}

/// The value of an argument.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Argument {
    /// An AMQP long string.
    Text(String),
    /// An AMQP signed 64-bit integer.
    Number(i64),
}

impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text}"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// One line: what, name, arguments.
impl fmt::Display for Declaration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, arguments: &[(&str, Argument)]| {
            arguments.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
        };
        match self {
            Self::Exchange { name, kind, arguments } => {
                write!(f, "exchange {name} {kind}")?;
                list(f, arguments)
            }
            Self::Queue { name, arguments } => {
                write!(f, "queue {name}")?;
                list(f, arguments)
            }
            Self::Binding { from, to: Target::Queue(to), key } => {
                write!(f, "binding {from} -> queue {to} key={key}")
            }
            Self::Binding { from, to: Target::Exchange(to), key } => {
                write!(f, "binding {from} -> exchange {to} key={key}")
            }
        }
    }
}

impl Topology {
    /// Names under `namespace`: `[a-z0-9-]`, 1 to 64 characters.
    ///
    /// # Errors
    /// [`InvalidName`] for anything else.
    pub fn new(namespace: &str) -> Result<Self, InvalidName> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        check("namespace", namespace, 64, "a-z, 0-9 and -", allowed)?;
        Ok(Self { namespace: namespace.to_owned() })
    }

    /// The namespace itself.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Where jobs are published; the routing key is the queue.
    pub fn jobs_exchange(&self) -> &str {
        &self.namespace
    }

    /// Where the delay ladder ends.
    pub fn deliver_exchange(&self) -> String {
        self.named("deliver")
    }

    /// Where dead letters are published; the routing key is the queue.
    pub fn dead_exchange(&self) -> String {
        self.named("dead-letters")
    }

    /// Keeps what the end of the ladder could not route: exchange and queue of this name.
    pub fn unrouted(&self) -> String {
        self.named("unrouted")
    }

    /// Keeps what happens to jobs and what channels are told: exchange and stream of this name.
    pub fn events(&self) -> String {
        self.named("events")
    }

    /// An exchange that is never there, for questions that can only be refused.
    pub fn nowhere(&self) -> String {
        self.named("nowhere!")
    }

    /// The job queue's name on the broker.
    pub fn queue(&self, queue: &str) -> String {
        self.named(queue)
    }

    /// The dead-letter queue's name on the broker.
    pub fn dead_queue(&self, queue: &str) -> String {
        format!("{}.{queue}.dead", self.namespace)
    }

    /// Exchange and queue of one level of the delay ladder.
    pub fn delay(&self, level: u8) -> String {
        format!("{}.delay.{level:02}", self.namespace)
    }

    /// A reply queue of one caller; answers go nowhere else.
    pub fn reply_queue(&self, unique: &str) -> String {
        format!("{}.reply.{unique}", self.namespace)
    }

    /// Whether a worker may answer to `address`: replies never reach a job queue.
    pub fn is_reply_address(&self, address: &str) -> bool {
        let ours = format!("{}.reply.", self.namespace);
        ["amq.rabbitmq.reply-to.", "amq.gen-", &ours]
            .iter()
            .any(|prefix| address.starts_with(prefix))
    }

    /// Everything one job queue needs: itself with both bindings, its dead-letter queue, and the
    /// queue that keeps what the ladder could not route.
    pub fn for_queue(&self, queue: &str, queue_type: QueueType) -> Vec<Declaration> {
        let (name, dead) = (self.queue(queue), self.dead_queue(queue));
        vec![
            self.exchange(self.unrouted(), "fanout", vec![]),
            keep_all(self.unrouted()),
            bind(self.unrouted(), Target::Queue(self.unrouted()), ""),
            self.exchange(self.namespace.clone(), "direct", vec![]),
            self.deliver(),
            self.exchange(self.dead_exchange(), "direct", vec![]),
            keep_all(dead.clone()),
            bind(self.dead_exchange(), Target::Queue(dead), queue),
            Declaration::Queue {
                name: name.clone(),
                arguments: self.job_queue_arguments(queue, queue_type),
            },
            bind(self.namespace.clone(), Target::Queue(name.clone()), queue),
            bind(self.deliver_exchange(), Target::Queue(name), &format!("#.{queue}")),
        ]
    }

    /// The delay ladder's levels up to and including `top`, lowest first, so that no level is
    /// there before the one it empties into.
    pub fn for_ladder(&self, top: u8) -> Vec<Declaration> {
        let mut all = vec![
            self.exchange(self.unrouted(), "fanout", vec![]),
            keep_all(self.unrouted()),
            bind(self.unrouted(), Target::Queue(self.unrouted()), ""),
            self.deliver(),
        ];
        all.extend((0..=top.min(LEVELS - 1)).flat_map(|level| self.level(level)));
        all
    }

    /// The stream of events, with the exchange that leads to it.
    pub fn for_events(&self, kept: &Retention) -> Vec<Declaration> {
        let number = |bytes: u64| Argument::Number(i64::try_from(bytes).unwrap_or(i64::MAX));
        let age = format!("{}s", kept.max_age.as_secs().max(1));
        vec![
            self.exchange(self.events(), "topic", vec![]),
            Declaration::Queue {
                name: self.events(),
                arguments: vec![
                    ("x-queue-type", Argument::Text("stream".into())),
                    ("x-max-age", Argument::Text(age)),
                    ("x-max-length-bytes", number(kept.max_bytes)),
                    ("x-stream-max-segment-size-bytes", number(kept.segment_bytes)),
                ],
            },
            bind(self.events(), Target::Queue(self.events()), "#"),
        ]
    }

    fn level(&self, level: u8) -> [Declaration; 4] {
        let here = self.delay(level);
        let below = match level {
            0 => self.deliver_exchange(),
            _ => self.delay(level - 1),
        };
        // The digit of level k stands behind those of the levels above it.
        let above = "*.".repeat(usize::from(LEVELS - 1 - level));
        [
            self.exchange(here.clone(), "topic", vec![]),
            Declaration::Queue {
                name: here.clone(),
                arguments: vec![
                    ("x-queue-type", Argument::Text("quorum".into())),
                    ("x-message-ttl", Argument::Number(100 << level)),
                    ("x-dead-letter-exchange", Argument::Text(below.clone())),
                    ("x-dead-letter-strategy", Argument::Text("at-least-once".into())),
                    ("x-overflow", Argument::Text("reject-publish".into())),
                    ("x-delivery-limit", Argument::Number(NO_DELIVERY_LIMIT)),
                ],
            },
            bind(here.clone(), Target::Queue(here.clone()), &format!("{above}1.#")),
            bind(here, Target::Exchange(below), &format!("{above}0.#")),
        ]
    }

    fn job_queue_arguments(&self, queue: &str, kept: QueueType) -> Vec<(&'static str, Argument)> {
        let mut arguments = vec![
            ("x-queue-type", Argument::Text(kept.to_string())),
            ("x-dead-letter-exchange", Argument::Text(self.dead_exchange())),
            ("x-dead-letter-routing-key", Argument::Text(queue.to_owned())),
        ];
        // Classic queues refuse the rest with 406.
        if kept == QueueType::Quorum {
            arguments.extend([
                ("x-dead-letter-strategy", Argument::Text("at-least-once".into())),
                ("x-overflow", Argument::Text("reject-publish".into())),
                ("x-delivery-limit", Argument::Number(DELIVERY_LIMIT)),
            ]);
        }
        arguments
    }

    fn deliver(&self) -> Declaration {
        let alternate = ("alternate-exchange", Argument::Text(self.unrouted()));
        self.exchange(self.deliver_exchange(), "topic", vec![alternate])
    }

    fn exchange(
        &self,
        name: String,
        kind: &'static str,
        arguments: Vec<(&'static str, Argument)>,
    ) -> Declaration {
        Declaration::Exchange { name, kind, arguments }
    }

    fn named(&self, name: &str) -> String {
        format!("{}.{name}", self.namespace)
    }
}

impl fmt::Display for QueueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        })
    }
}

/// Checks a queue name: `[a-z0-9_-]`, 1 to 100 characters, none of the reserved words.
///
/// # Errors
/// [`InvalidName`] with the reason.
pub fn check_queue_name(name: &str) -> Result<(), InvalidName> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    check("queue", name, 100, "a-z, 0-9, _ and -", allowed)?;
    if RESERVED.contains(&name) {
        let why = format!("the words {} are reserved", RESERVED.join(", "));
        return Err(InvalidName { what: "queue", name: beginning(name), why });
    }
    Ok(())
}

/// Checks a kind: 1 to 200 bytes, no spaces. `noun.verb` is the custom, not a rule: foreign
/// publishers name theirs as they like.
///
/// # Errors
/// [`InvalidName`] with the reason.
pub fn check_kind(kind: &str) -> Result<(), InvalidName> {
    let why = if kind.is_empty() {
        "it is empty; a kind looks like `email.send`"
    } else if kind.len() > 200 {
        "it has more than 200 bytes"
    } else if kind.chars().any(|c| c.is_whitespace() || c.is_control()) {
        "it has spaces; a kind looks like `email.send`"
    } else {
        return Ok(());
    };
    Err(InvalidName { what: "kind", name: beginning(kind), why: why.to_owned() })
}

pub(super) fn check(
    what: &'static str,
    name: &str,
    longest: usize,
    characters: &str,
    allowed: impl Fn(char) -> bool,
) -> Result<(), InvalidName> {
    let why = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > longest {
        format!("it has {} characters, {longest} are the most", name.len())
    } else if let Some(bad) = name.chars().find(|c| !allowed(*c)) {
        format!("it has `{bad}`; use {characters}")
    } else {
        return Ok(());
    };
    Err(InvalidName { what, name: beginning(name), why })
}

/// A queue that holds messages until somebody decides: it is looked at, never emptied by a limit.
fn keep_all(name: String) -> Declaration {
    Declaration::Queue {
        name,
        arguments: vec![
            ("x-queue-type", Argument::Text("quorum".into())),
            ("x-delivery-limit", Argument::Number(NO_DELIVERY_LIMIT)),
        ],
    }
}

fn bind(from: String, to: Target, key: &str) -> Declaration {
    Declaration::Binding { from, to, key: key.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table is kept as a file: a change of it is a change of the wire contract.
    #[test]
    fn argument_tables_are_as_recorded() {
        let topology = Topology::new("forebay").unwrap();
        let mut table = String::new();
        for (title, declarations) in [
            ("quorum queue mail", topology.for_queue("mail", QueueType::Quorum)),
            ("classic queue mail", topology.for_queue("mail", QueueType::Classic)),
            ("delay ladder to level 1", topology.for_ladder(1)),
            ("delay level 27", topology.level(27).to_vec()),
            ("events", topology.for_events(&Retention::default())),
        ] {
            table += &format!("# {title}\n");
            declarations.iter().for_each(|declaration| table += &format!("{declaration}\n"));
        }
        assert_eq!(table, include_str!("../../tests/golden/topology.txt"), "\n{table}");
    }

    #[test]
    fn names_with_dots_capitals_or_reserved_words_are_refused_with_the_reason() {
        for (name, reason) in [
            ("", "empty"),
            ("a.b", "`.`"),
            ("Mail", "`M`"),
            ("dead", "reserved"),
            (&"x".repeat(101), "101"),
        ] {
            let error = check_queue_name(name).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(check_queue_name("mail_out-2").is_ok());
        assert!(Topology::new("a_b").is_err());
    }

    #[test]
    fn replies_go_to_reply_queues_only() {
        let topology = Topology::new("shop").unwrap();
        assert!(topology.is_reply_address("amq.rabbitmq.reply-to.abc"));
        assert!(topology.is_reply_address("amq.gen-x"));
        assert!(topology.is_reply_address(&topology.reply_queue("1")));
        assert!(!topology.is_reply_address("shop.mail"));
        assert!(!topology.is_reply_address("other.reply.1"));
    }
}
