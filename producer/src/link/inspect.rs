//! Looks at queues without taking anything from them.
//! In: names of queues and exchanges. Out: how many jobs are ready and how many consumers there are.

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use super::connection::Link;
use super::fault::{ANSWER, Fault, answered, close};
use crate::config::{Config, after};
use crate::error::DeadError;
use crate::wire::delay::LEVELS;

/// Counts jobs in queues by passive declarations, which take nothing.
///
/// On RabbitMQ 4.3 a passive declaration needs any one of the three permissions on the queue.
#[derive(Debug)]
pub struct Inspector {
    link: Link,
    config: Config,
}

/// What a passive look shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueCount {
    /// Jobs that wait; those that run now are not among them.
    pub ready: u32,
    /// Consumers, over all workers.
    pub consumers: u32,
}

impl Inspector {
    /// Opens a connection of its own, in the background.
    pub fn new(config: &Config) -> Self {
        Self { link: Link::open(config, "inspect"), config: config.clone() }
    }

    /// Looks through a connection that is there already; each look has a channel of its own.
    pub fn on(link: Link, config: &Config) -> Self {
        Self { link, config: config.clone() }
    }

    /// One queue by its full name on the broker; `None` if it is not there.
    ///
    /// # Errors
    /// [`DeadError`] when the broker cannot be asked.
    pub async fn count(&self, queue: &str) -> Result<Option<QueueCount>, DeadError> {
        let deadline = after(self.config.publish_deadline);
        let channel = self.link.channel(deadline).await?.channel;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let look = channel.queue_declare(queue.into(), options, FieldTable::default());
        match answered(ANSWER, look).await {
            Ok(found) => {
                close(&channel, "seen").await;
                let (ready, consumers) = (found.message_count(), found.consumer_count());
                Ok(Some(QueueCount { ready, consumers }))
            }
            Err(Fault::Missing(_)) => Ok(None),
            Err(fault) => Err(unseen(fault)),
        }
    }

    /// Whether an exchange is there, by its full name on the broker.
    ///
    /// # Errors
    /// [`DeadError`] when the broker cannot be asked.
    pub async fn has_exchange(&self, exchange: &str) -> Result<bool, DeadError> {
        let deadline = after(self.config.publish_deadline);
        let channel = self.link.channel(deadline).await?.channel;
        let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
        // A passive look compares nothing, its kind neither.
        let (kind, table) = (ExchangeKind::Topic, FieldTable::default());
        match answered(ANSWER, channel.exchange_declare(exchange.into(), kind, options, table))
            .await
        {
            Ok(()) => {
                close(&channel, "seen").await;
                Ok(true)
            }
            Err(Fault::Missing(_)) => Ok(false),
            Err(fault) => Err(unseen(fault)),
        }
    }

    /// Jobs on each level of the delay ladder, up to the first level that was never used.
    ///
    /// # Errors
    /// [`DeadError`] when the broker cannot be asked.
    pub async fn delayed(&self) -> Result<Vec<u32>, DeadError> {
        let mut levels = Vec::new();
        for level in 0..LEVELS {
            match self.count(&self.config.topology().delay(level)).await? {
                Some(count) => levels.push(count.ready),
                None => break,
            }
        }
        Ok(levels)
    }

    /// Closes the connection.
    pub async fn close(&self) {
        self.link.close().await;
    }
}

fn unseen(fault: Fault) -> DeadError {
    match fault {
        Fault::Denied(because) => DeadError::MayNotLook { because },
        fault => DeadError::Broker { because: fault.to_string() },
    }
}
