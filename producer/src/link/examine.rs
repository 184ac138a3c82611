//! Compares what is on the broker with what should be there, and tries what a user may do. Changes
//! nothing: every request carries an argument that no broker accepts, so it can only be refused,
//! and the refusal tells what there is to know.
//! In: declarations, rights. Out: the differences, argument by argument.

use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, ExchangeKind};

use super::connection::Link;
use super::declare::{exchange_kind, table};
use super::fault::{ANSWER, Fault, answered, close};
use crate::config::{Config, after};
use crate::error::ConnectError;
use crate::wire::topology::{Argument, Declaration};

/// Refused by 3.10 to 4.3 in a new queue, and compared after all other arguments in an old one.
const QUEUE_BAIT: &str = "x-queue-leader-locator";
/// A number there is refused in a new exchange, and compared last in an old one.
const EXCHANGE_BAIT: &str = "alternate-exchange";
/// Names nothing and routes to nothing: no queue can be called so.
const NOBODY: &str = "nobody!";
/// More arguments than that nobody has; a broker that answers otherwise must not keep us for ever.
const MOST_ROUNDS: usize = 24;

/// Looks at exchanges, queues and rights over a connection of its own.
#[derive(Debug)]
pub struct Examiner {
    link: Link,
    config: Config,
}

/// What a look at one exchange or queue shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// It is there; in these arguments it differs from its declaration.
    There(Vec<Difference>),
    /// It is not there.
    Missing,
    /// The user may not look: the broker's words.
    Denied(String),
}

/// An argument that is not as declared; `None` is its absence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// `x-message-ttl`, or `type` and `durable`, which the broker compares like arguments.
    pub argument: String,
    /// As it should be.
    pub declared: Option<String>,
    /// As it is.
    pub live: Option<String>,
}

/// Something that a user may or may not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right<'a> {
    /// Publish to this exchange.
    Publish(&'a str),
    /// Consume from this queue.
    Consume(&'a str),
    /// Declare this queue.
    DeclareQueue(&'a str),
    /// Declare this exchange.
    DeclareExchange(&'a str),
    /// Bind this queue to exchanges of the namespace.
    Bind(&'a str),
}

impl Examiner {
    /// Opens a connection of its own, in the background.
    pub fn new(config: &Config) -> Self {
        Self { link: Link::open(config, "doctor"), config: config.clone() }
    }

    /// The connection.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Compares an exchange or a queue with its declaration. Bindings cannot be seen over AMQP:
    /// they are said to be there.
    ///
    /// # Errors
    /// [`Fault`] when the broker cannot be asked.
    pub async fn look(&self, declaration: &Declaration) -> Result<Look, Fault> {
        match declaration {
            Declaration::Queue { name, arguments } => self.look_at_queue(name, arguments).await,
            Declaration::Exchange { name, kind, arguments } => {
                self.look_at_exchange(name, kind, arguments).await
            }
            Declaration::Binding { .. } => Ok(Look::There(Vec::new())),
        }
    }

    /// Whether the user has a right; `Err(words)` inside is the broker's refusal.
    ///
    /// # Errors
    /// [`Fault`] when the broker cannot be asked.
    pub async fn may(&self, right: Right<'_>) -> Result<Result<(), String>, Fault> {
        let channel = self.channel().await?;
        let nowhere = self.config.topology().nowhere();
        let refusal = match right {
            Right::Publish(exchange) => publish(&channel, exchange).await,
            Right::Consume(queue) => consume(&channel, queue).await,
            Right::DeclareQueue(queue) => declare_queue(&channel, queue, &[]).await,
            Right::DeclareExchange(exchange) => {
                declare_exchange(&channel, exchange, ExchangeKind::Direct).await
            }
            Right::Bind(queue) => bind(&channel, queue, &nowhere).await,
        };
        match refusal? {
            Fault::Denied(words) => Ok(Err(words)),
            // Rights are looked at first: whatever else it objects to, it would have been allowed.
            Fault::Missing(_) | Fault::Mismatch(_) | Fault::Channel(_) => Ok(Ok(())),
            other => Err(other),
        }
    }

    /// Closes the connection.
    pub async fn close(&self) {
        self.link.close().await;
    }

    async fn look_at_queue(
        &self,
        name: &str,
        declared: &[(&'static str, Argument)],
    ) -> Result<Look, Fault> {
        let mut arguments: Vec<(String, Argument)> =
            declared.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let mut differences = Vec::new();
        for _ in 0..MOST_ROUNDS {
            let words = match declare_queue(&self.channel().await?, name, &arguments).await? {
                Fault::Mismatch(words) => words,
                Fault::Denied(words) => return Ok(Look::Denied(words)),
                other => return Err(other),
            };
            let Some(other) = inequivalent(&words) else {
                return Ok(Look::Missing);
            };
            if other.argument == QUEUE_BAIT {
                if other.live.is_some() {
                    differences.push(Difference { declared: None, ..other });
                }
                break;
            }
            let before = declared.iter().find(|(name, _)| *name == other.argument);
            let as_it_is = other.live.as_deref().map(argument);
            arguments.retain(|(name, _)| *name != other.argument);
            arguments.extend(as_it_is.map(|value| (other.argument.clone(), value)));
            let fixed = ["durable", "auto_delete", "exclusive"].contains(&other.argument.as_str());
            let declared = before.map(|(_, value)| value.to_string()).or(other.declared);
            differences.push(Difference { declared, ..other });
            if fixed {
                break; // No argument: asking for it otherwise is another request.
            }
        }
        Ok(Look::There(differences))
    }

    async fn look_at_exchange(
        &self,
        name: &str,
        kind: &str,
        arguments: &[(&'static str, Argument)],
    ) -> Result<Look, Fault> {
        let words =
            match declare_exchange(&self.channel().await?, name, exchange_kind(kind)).await? {
                Fault::Mismatch(words) => words,
                Fault::Denied(words) => return Ok(Look::Denied(words)),
                other => return Err(other),
            };
        let Some(other) = inequivalent(&words) else {
            return Ok(Look::Missing);
        };
        if other.argument != EXCHANGE_BAIT {
            return Ok(Look::There(vec![other]));
        }
        let alternate = arguments.iter().find(|(name, _)| *name == EXCHANGE_BAIT);
        let declared = alternate.map(|(_, value)| value.to_string());
        if declared == other.live {
            return Ok(Look::There(Vec::new()));
        }
        Ok(Look::There(vec![Difference { declared, ..other }]))
    }

    /// A new one for each request: the refusal closes it.
    async fn channel(&self) -> Result<Channel, Fault> {
        let opened = self.link.channel(after(self.config.publish_deadline)).await;
        Ok(opened.map_err(|error: ConnectError| Fault::Connection(error.to_string()))?.channel)
    }
}

/// `Err` is the answer that is expected; a broker that accepts has not read the bait.
async fn refusal<T>(
    channel: &Channel,
    asked: impl Future<Output = lapin::Result<T>>,
) -> Result<Fault, Fault> {
    match answered(ANSWER, asked).await {
        Err(fault) if fault.closes_channel_only() => Ok(fault),
        Err(fault) => Err(fault),
        Ok(_) => {
            close(channel, "seen").await;
            Err(Fault::Channel("the broker accepted what it must refuse".to_owned()))
        }
    }
}

async fn declare_queue(
    channel: &Channel,
    name: &str,
    arguments: &[(String, Argument)],
) -> Result<Fault, Fault> {
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let mut table = table(arguments.iter().map(|(name, value)| (name.as_str(), value)));
    table.insert(QUEUE_BAIT.into(), AMQPValue::LongString(NOBODY.into()));
    refusal(channel, channel.queue_declare(name.into(), options, table)).await
}

async fn declare_exchange(
    channel: &Channel,
    name: &str,
    kind: ExchangeKind,
) -> Result<Fault, Fault> {
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let mut table = FieldTable::default();
    table.insert(EXCHANGE_BAIT.into(), AMQPValue::LongInt(0));
    refusal(channel, channel.exchange_declare(name.into(), kind, options, table)).await
}

/// A priority that is no number is refused before the consumer is made.
async fn consume(channel: &Channel, queue: &str) -> Result<Fault, Fault> {
    let mut table = FieldTable::default();
    table.insert("x-priority".into(), AMQPValue::LongString(NOBODY.into()));
    let options = BasicConsumeOptions::default();
    refusal(channel, channel.basic_consume(queue.into(), NOBODY.into(), options, table)).await
}

/// An expiration that is no number is refused before the message is routed, and nothing is bound
/// to its routing key.
async fn publish(channel: &Channel, exchange: &str) -> Result<Fault, Fault> {
    let properties = BasicProperties::default().with_expiration(NOBODY.into());
    let act = async {
        // A publish has an answer only where confirms are asked for.
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish(exchange.into(), NOBODY.into(), options, b"", properties);
        sent.await?.await
    };
    refusal(channel, act).await
}

/// To an exchange that does not exist.
async fn bind(channel: &Channel, queue: &str, nowhere: &str) -> Result<Fault, Fault> {
    let options = QueueBindOptions::default();
    let table = FieldTable::default();
    let act = channel.queue_bind(queue.into(), nowhere.into(), NOBODY.into(), options, table);
    refusal(channel, act).await
}

/// Reads `inequivalent arg 'x' for queue 'q' in vhost '/': received … but current is …`. Any other
/// refusal means that there was nothing to compare with.
fn inequivalent(words: &str) -> Option<Difference> {
    let (_, rest) = words.split_once("inequivalent arg '")?;
    let (argument, rest) = rest.split_once('\'')?;
    let (_, rest) = rest.split_once("received ")?;
    let (declared, live) = rest.split_once(" but current is ")?;
    Some(Difference { argument: argument.to_owned(), declared: value(declared), live: value(live) })
}

/// `none`, `'100'`, or `the value '100' of type 'long'`.
fn value(words: &str) -> Option<String> {
    let (_, rest) = words.split_once('\'')?;
    let end = rest.find("' of type").or_else(|| rest.rfind('\''))?;
    Some(rest[..end].to_owned())
}

/// The broker compares numbers of any width, and tells nobody which it has.
fn argument(value: &str) -> Argument {
    match value.parse() {
        Ok(number) => Argument::Number(number),
        Err(_) => Argument::Text(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As 3.10, 4.0 and 4.3 say it.
    #[test]
    fn the_brokers_words_tell_the_argument_and_both_values() {
        const OF: &str = "for queue 't.mail' in vhost '/'";
        for (words, argument, declared, live) in [
            (
                format!(
                    "inequivalent arg 'x-delivery-limit' {OF}: received '5' but current is '100'"
                ),
                "x-delivery-limit",
                Some("5"),
                Some("100"),
            ),
            (
                format!(
                    "inequivalent arg 'x-overflow' {OF}: received the value 'reject-publish' of \
                     type 'longstr' but current is none"
                ),
                "x-overflow",
                Some("reject-publish"),
                None,
            ),
            (
                format!(
                    "inequivalent arg 'x-max-length' {OF}: received none but current is the value \
                     '10' of type 'signedint'"
                ),
                "x-max-length",
                None,
                Some("10"),
            ),
        ] {
            let difference = inequivalent(&format!("PRECONDITION_FAILED - {words}")).unwrap();
            assert_eq!(difference.argument, argument);
            assert_eq!(difference.declared.as_deref(), declared);
            assert_eq!(difference.live.as_deref(), live);
        }
        let new = "PRECONDITION_FAILED - invalid arg 'x-queue-leader-locator' for queue 't.nothere' \
                   in vhost '/': invalid_queue_locator_arg";
        assert_eq!(inequivalent(new), None);
    }
}
