//! What all jobs of one `forebay publish` have in common, and each of them.
//! In: options and a payload. Out: a job that can be sent now, or kept and sent later.

use std::time::{Duration, SystemTime};

use forebay_producer::wire::envelope::now_ms;
use forebay_producer::{
    Config, Delay, Destination, Envelope, Producer, PublishError, PublishOptions,
};
use tokio::time::Instant;

use crate::spool::record::Kept;

/// The jobs of one call.
pub(crate) struct Order {
    pub(crate) kind: String,
    pub(crate) options: PublishOptions,
    /// Counts from when the job is made, however much later it is sent.
    pub(crate) earliest: Option<Earliest>,
    /// Of the broker; the namespace is kept with each job, and its keys sign them.
    pub(crate) config: Config,
    /// Tells the jobs of this call from those of others.
    pub(crate) run: String,
}

/// When a job may run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Earliest {
    After(Duration),
    At(SystemTime),
}

/// One job.
pub(crate) struct Made {
    pub(crate) envelope: Envelope,
    pub(crate) delay: Option<Delay>,
    not_before: Option<SystemTime>,
}

impl Order {
    /// Makes a job, with the id that it will have however often it is sent.
    pub(crate) fn make(&self, payload: String) -> Result<Made, PublishError> {
        let now = SystemTime::now();
        let options = self.options.clone();
        let (envelope, delay) = options.into_envelope(&self.config, &self.kind, payload, now)?;
        let not_before = self.earliest.map(|earliest| match earliest {
            Earliest::After(delay) => now + delay,
            Earliest::At(time) => time,
        });
        Ok(Made { envelope, delay, not_before })
    }

    /// What the spool keeps of it.
    pub(crate) fn keep(&self, made: &Made) -> Kept {
        let namespace = self.config.topology().namespace();
        Kept::new(&made.envelope, made.not_before, namespace, &self.run)
    }
}

impl Made {
    /// Publishes it; its delay counts from when it was made.
    pub(crate) async fn send(
        &self,
        producer: &Producer,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        let since = now_ms().saturating_sub(self.envelope.published_at_ms.unwrap_or_default());
        // A publish that begins at once waits as long as was said.
        let delay = match (self.delay, since) {
            (Some(delay), 1_000..) => {
                Delay::new(delay.duration().saturating_sub(Duration::from_millis(since)))?
            }
            (delay, _) => delay,
        };
        let destination = delay.map_or(Destination::Queue, Destination::Later);
        producer.send(&self.envelope, destination, deadline).await?;
        producer.tell_queued(&self.envelope, destination).await;
        Ok(())
    }
}
