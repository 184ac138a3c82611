//! Deletes queues and exchanges.
//! In: full names. Out: they are gone, and how many messages went with them.

use lapin::options::{ExchangeDeleteOptions, ExchangeUnbindOptions, QueueDeleteOptions};
use lapin::types::FieldTable;

use super::connection::Link;
use super::fault::{ANSWER, Fault, answered, close};
use crate::config::{Config, after};
use crate::error::ConnectError;
use crate::wire::topology::{Declaration, Target};

/// Deletes over a connection of its own. What is not there is no error.
#[derive(Debug)]
pub struct Remover {
    link: Link,
    config: Config,
}

impl Remover {
    /// Opens a connection of its own, in the background.
    pub fn new(config: &Config) -> Self {
        Self { link: Link::open(config, "remove"), config: config.clone() }
    }

    /// Removes a declared binding; anything else in the place of one is left alone.
    ///
    /// # Errors
    /// [`Fault`] when the broker does not do it.
    pub async fn unbind(&self, binding: &Declaration) -> Result<(), Fault> {
        let Declaration::Binding { from, to, key } = binding else { return Ok(()) };
        let channel = self.channel().await?;
        let (from, key) = (from.as_str().into(), key.as_str().into());
        let table = FieldTable::default();
        let unbound = match to {
            Target::Queue(queue) => {
                let unbind = channel.queue_unbind(queue.as_str().into(), from, key, table);
                answered(ANSWER, unbind).await
            }
            Target::Exchange(exchange) => {
                let (to, options) = (exchange.as_str().into(), ExchangeUnbindOptions::default());
                answered(ANSWER, channel.exchange_unbind(to, from, key, options, table)).await
            }
        };
        if unbound.is_ok() {
            close(&channel, "unbound").await;
        }
        absent_is_fine(unbound)
    }

    /// Deletes a queue with what is in it, and returns how many messages that were. Quorum queues
    /// refuse `if-empty` and `if-unused`: look before.
    ///
    /// # Errors
    /// [`Fault`] when the broker does not do it.
    pub async fn delete_queue(&self, name: &str) -> Result<u32, Fault> {
        let channel = self.channel().await?;
        let delete = channel.queue_delete(name.into(), QueueDeleteOptions::default());
        match answered(ANSWER, delete).await {
            Ok(messages) => {
                close(&channel, "deleted").await;
                Ok(messages)
            }
            Err(Fault::Missing(_)) => Ok(0),
            Err(fault) => Err(fault),
        }
    }

    /// Deletes an exchange with its bindings; with `if_unused` only if nothing is bound to it, else
    /// [`Fault::Mismatch`].
    ///
    /// # Errors
    /// [`Fault`] when the broker does not do it.
    pub async fn delete_exchange(&self, name: &str, if_unused: bool) -> Result<(), Fault> {
        let channel = self.channel().await?;
        let options = ExchangeDeleteOptions { if_unused, ..Default::default() };
        let deleted = answered(ANSWER, channel.exchange_delete(name.into(), options)).await;
        if deleted.is_ok() {
            close(&channel, "deleted").await;
        }
        absent_is_fine(deleted)
    }

    /// Closes the connection.
    pub async fn close(&self) {
        self.link.close().await;
    }

    async fn channel(&self) -> Result<lapin::Channel, Fault> {
        let opened = self.link.channel(after(self.config.publish_deadline)).await;
        Ok(opened.map_err(|error: ConnectError| Fault::Connection(error.to_string()))?.channel)
    }
}

fn absent_is_fine(done: Result<(), Fault>) -> Result<(), Fault> {
    match done {
        Err(Fault::Missing(_)) => Ok(()),
        done => done,
    }
}
