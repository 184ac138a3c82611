//! Sees to it that the stream of events is there, for who tells them.
//! In: a declarer. Out: the stream is there, or an error.
//!
//! A broker that cannot make a stream ends the connection that asked for it (541), so nobody asks
//! over one that jobs need.

use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::time::{self, Instant};
use tracing::debug;

use super::{Declarer, Pass, patience};
use crate::error::TopologyError;
use crate::link::fault::{Fault, answered, close};

/// Between two tries of what may be there in a moment.
const AGAIN: Duration = Duration::from_secs(1);

impl Declarer {
    /// As [`Declarer::ensure_events`]; but what passes is waited for, and what does not is not tried
    /// again.
    ///
    /// # Errors
    /// [`TopologyError`], by `deadline` at the latest.
    pub(crate) async fn obtain_events(&self, deadline: Instant) -> Result<(), TopologyError> {
        if self.has_events() || !self.may_declare() {
            return Ok(());
        }
        loop {
            let passing = match self.try_events(deadline).await {
                Ok(Pass::Done(_)) => return Ok(()),
                // A broker that has just started may not have a leader for it.
                Ok(Pass::Away(error)) | Err(error @ TopologyError::Broker { .. }) => error,
                Ok(Pass::Cut(error)) | Err(error) => return Err(error),
            };
            if Instant::now() + AGAIN >= deadline {
                return Err(passing);
            }
            debug!(error = %passing, "the stream of events is not there yet");
            time::sleep(AGAIN).await;
        }
    }

    async fn try_events(&self, deadline: Instant) -> Result<Pass, TopologyError> {
        let config = &self.shared.config;
        let declarations = config.topology().for_events(&config.retention);
        let there = self.has_stream(deadline).await?;
        Ok(match (self.attempt(&declarations, deadline).await?, there) {
            (Pass::Done(generation), _) => {
                self.remember(generation, |known| known.events = true);
                Pass::Done(generation)
            }
            // What is there is only compared and bound: if the connection ends, it is not over that.
            (Pass::Cut(error), true) => Pass::Away(error),
            (other, _) => other,
        })
    }

    async fn has_stream(&self, deadline: Instant) -> Result<bool, TopologyError> {
        let Self { shared } = self;
        let name = shared.config.topology().events();
        let channel = shared.link.channel(deadline).await?.channel;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let look = channel.queue_declare(name.as_str().into(), options, FieldTable::default());
        let what = format!("queue `{name}`");
        match answered(patience(deadline), look).await {
            Ok(_) => {
                close(&channel, "seen").await;
                Ok(true)
            }
            Err(Fault::Missing(_)) => Ok(false),
            Err(Fault::Denied(because)) => Err(TopologyError::Denied { what, because }),
            Err(other) => Err(TopologyError::Broker { what, because: other.to_string() }),
        }
    }
}
