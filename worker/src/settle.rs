//! Carries out a verdict: the only place that settles a job's delivery.
//! In: a verdict and the delivery it is about. Out: publish, wait for the confirm, then ack; never
//! the other order.

use std::time::Duration;

use forebay_producer::wire::delay::Delay;
use forebay_producer::{Destination, Envelope, Producer, PublishError};
use serde_json::json;
use tokio::time::{self, Instant};
use tracing::{debug, error, warn};

use crate::acker::How;
use crate::context::LazyProducer;
use crate::generation::Generation;
use crate::handler::Output;
use crate::verdict::Verdict;

const TRY: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);
const REPLY: Duration = Duration::from_secs(5);

/// One delivery that is to be settled.
#[derive(Clone, Copy)]
pub(crate) struct Settlement<'a> {
    /// The consumer generation that it was delivered to.
    pub(crate) generation: &'a Generation,
    pub(crate) tag: u64,
    pub(crate) producers: &'a LazyProducer,
    /// Past this the broker would take it back: we give it back before.
    pub(crate) give_back_at: Instant,
}

/// Gives back a delivery that was never looked at.
pub(crate) fn give_back(generation: &Generation, tag: u64) {
    generation.settle(tag, How::GiveBack);
}

enum Forwarded {
    Confirmed,
    Refused(PublishError),
    /// Nobody answered in time, or the delivery is not ours any more.
    NotNow,
}

impl Settlement<'_> {
    /// Settles the delivery. Returns when nothing is left to do for it here; a delivery whose
    /// generation has ended is the broker's again, and nothing is done.
    pub(crate) async fn apply(self, job: &Envelope, verdict: Verdict) {
        let how = match verdict {
            Verdict::Ack(output) => {
                self.reply(job, Ok(&output)).await;
                How::Ack
            }
            Verdict::GiveBack => How::GiveBack,
            Verdict::Again { after, envelope, .. } => match Delay::new(after) {
                Ok(Some(delay)) => self.go_on(&envelope, Destination::Later(delay)).await,
                Ok(None) => self.go_on(&envelope, Destination::Queue).await,
                Err(error) => {
                    error!(job.id, %error, "cannot be delayed so long");
                    How::Reject
                }
            },
            Verdict::Dead(letter) => {
                let how = self.go_on(&letter, Destination::DeadLetters).await;
                if how != How::GiveBack {
                    self.reply(job, Err(&letter)).await;
                }
                how
            }
        };
        self.generation.settle(self.tag, how);
    }

    /// Publish before ack: a crash in between runs the job twice, the other order loses it.
    async fn go_on(&self, envelope: &Envelope, destination: Destination) -> How {
        match self.forward(envelope, destination).await {
            Forwarded::Confirmed => How::Ack,
            Forwarded::NotNow => How::GiveBack,
            Forwarded::Refused(error) => {
                error!(
                    job.id = envelope.id, error = %chain(&error),
                    "cannot be published; the broker's own dead-lettering takes the job"
                );
                How::Reject
            }
        }
    }

    /// Tries until the broker takes it: that is back-pressure, because the permit is kept.
    async fn forward(&self, envelope: &Envelope, destination: Destination) -> Forwarded {
        let producer = self.producers.get();
        let mut warned = false;
        while Instant::now() < self.give_back_at {
            let deadline = self.give_back_at.min(Instant::now() + TRY);
            let send = producer.send(envelope, destination, deadline);
            match self.generation.while_ours(send).await {
                None => return Forwarded::NotNow,
                Some(Ok(())) => return Forwarded::Confirmed,
                Some(Err(error)) if waits(&error) => {
                    if !warned {
                        warn!(job.id = envelope.id, error = %chain(&error), "waiting for the broker");
                        warned = true;
                    }
                    if self.generation.while_ours(time::sleep(PAUSE)).await.is_none() {
                        return Forwarded::NotNow;
                    }
                }
                Some(Err(error)) => return Forwarded::Refused(error),
            }
        }
        Forwarded::NotNow
    }

    /// Answers a caller that waits; a lost answer never fails the job.
    async fn reply(&self, job: &Envelope, result: Result<&Output, &Envelope>) {
        let Some(address) = job.reply_to.as_deref() else { return };
        let producer = self.producers.get();
        if !producer.topology().is_reply_address(address) {
            debug!(job.id, address, "not a reply queue; no answer is sent");
            return;
        }
        let answer = answer(job, address, result);
        if let Err(error) = send_reply(producer, &answer).await {
            debug!(job.id, %error, "the answer was not delivered");
        }
    }
}

async fn send_reply(producer: &Producer, answer: &Envelope) -> Result<(), PublishError> {
    producer.reply(answer, Instant::now() + REPLY).await
}

fn answer(job: &Envelope, address: &str, result: Result<&Output, &Envelope>) -> Envelope {
    let (kind, body) = match result {
        Ok(output) => ("reply.ok", output.json().cloned().unwrap_or_else(|| "null".into())),
        Err(letter) => {
            let reason = letter.dead.as_ref().map_or("failed", |mark| mark.reason.as_str());
            let message = letter.failures.last().map_or("", |failure| failure.message.as_str());
            let body = json!({ "reason": reason, "message": message }).to_string();
            ("reply.dead", body.into())
        }
    };
    let mut answer = Envelope::new(kind, address, body);
    answer.correlation_id = Some(job.correlation_id.clone().unwrap_or_else(|| job.id.clone()));
    answer
}

/// Whether waiting can help: the broker is away, blocked or slow.
fn waits(error: &PublishError) -> bool {
    use forebay_producer::TopologyError;
    match error {
        PublishError::Unconfirmed { .. } => true,
        PublishError::Topology { source, .. } => matches!(**source, TopologyError::Broker { .. }),
        _ => false,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
