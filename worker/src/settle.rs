//! Carries out a verdict: the only place that settles a job's delivery.
//! In: a verdict and the delivery it is about. Out: publish, wait for the confirm, then ack; never
//! the other order.

use std::time::Duration;

use forebay_producer::{Destination, Envelope, Event, Producer, PublishError};
use futures_util::future::join;
use serde_json::json;
use tokio::time::{self, Instant};
use tracing::{debug, error, warn};

use crate::acker::How;
use crate::context::LazyProducer;
use crate::generation::Generation;
use crate::handler::Output;
use crate::told;
use crate::verdict::Verdict;

const PAUSE: Duration = Duration::from_secs(2);
const SLOW: Duration = Duration::from_secs(5);
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

/// Leaves a delivery to the broker's own dead-lettering.
pub(crate) fn reject(generation: &Generation, tag: u64) {
    generation.settle(tag, How::Reject);
}

enum Forwarded {
    Confirmed,
    Refused(PublishError),
    /// Nobody answered in time, or the delivery is not ours any more.
    NotNow,
}

impl Settlement<'_> {
    /// Settles the delivery, and says how. Returns when nothing is left to do for it here; a
    /// delivery whose generation has ended is the broker's again, and nothing is done.
    pub(crate) async fn apply(self, job: &Envelope, verdict: Verdict) -> How {
        let how = match verdict {
            // Nobody asked for an answer, or to be told.
            Verdict::Ack(_) if job.reply_to.is_none() && !job.track => How::Ack,
            Verdict::GiveBack => How::GiveBack,
            // In a box of its own, so that the task of every job need not be as large.
            verdict => Box::pin(self.carry_out(job, verdict)).await,
        };
        self.generation.settle(self.tag, how);
        how
    }

    async fn carry_out(&self, job: &Envelope, verdict: Verdict) -> How {
        match verdict {
            Verdict::Ack(output) => {
                let event = || Event::succeeded(job, output.json().map(AsRef::as_ref));
                join(self.reply(job, Ok(&output)), self.tell_end(job, event)).await;
                How::Ack
            }
            Verdict::Duplicate(known) => {
                let event = || told::duplicate(job, known.as_ref());
                let reply = async {
                    // Without the first run's result there is nothing true to say.
                    if let Some(output) = &known {
                        self.reply(job, Ok(output)).await;
                    }
                };
                join(reply, self.tell_end(job, event)).await;
                How::Ack
            }
            Verdict::GiveBack => How::GiveBack,
            Verdict::Again { delay, envelope, why } => {
                let destination = delay.map_or(Destination::Queue, Destination::Later);
                let how = self.go_on(&envelope, destination).await;
                if how == How::Ack
                    && let Some(event) = told::retrying(job, delay, &envelope, &why)
                {
                    self.leave(job, event);
                }
                how
            }
            Verdict::Dead(letter) => {
                let how = self.go_on(&letter, Destination::DeadLetters).await;
                if how != How::GiveBack {
                    let end = async {
                        if job.track {
                            self.tell_end(job, || told::dead(job, &letter)).await;
                        } else {
                            self.leave(job, told::dead(job, &letter));
                        }
                    };
                    join(self.reply(job, Err(&letter)), end).await;
                }
                how
            }
        }
    }

    /// Tells it soon, without waiting.
    fn leave(&self, job: &Envelope, event: Event) {
        let producer = self.producers.get();
        if job.track {
            producer.post_event(event);
        } else {
            producer.mention_event(event);
        }
    }

    /// Tells how a job has ended before its delivery is acked, so that no process that dies in
    /// between takes the end with it. Waits no longer than for an answer, and not at all while the
    /// stream confirms nothing; a lost event never fails the job.
    async fn tell_end(&self, job: &Envelope, event: impl FnOnce() -> Event) {
        if job.track {
            let telling = self.producers.get().tell_event(event());
            self.generation.while_ours(telling).await;
        }
    }

    /// Publish before ack: a crash in between runs the job twice, the other order loses it.
    async fn go_on(&self, envelope: &Envelope, destination: Destination) -> How {
        match self.forward(envelope, destination).await {
            Forwarded::Confirmed => How::Ack,
            Forwarded::NotNow => How::GiveBack,
            Forwarded::Refused(error) => {
                error!(
                    error = %chain(&error),
                    "cannot be published; the broker's own dead-lettering takes the job"
                );
                How::Reject
            }
        }
    }

    /// Waits until the broker takes it: that is back-pressure, because the permit is kept. One
    /// publish for all that time: the producer itself sends again what a lost connection left
    /// unanswered, and nothing else.
    async fn forward(&self, envelope: &Envelope, destination: Destination) -> Forwarded {
        let producer = self.producers.get();
        while Instant::now() < self.give_back_at {
            let send = producer.send(envelope, destination, self.give_back_at);
            let sent = self.generation.while_ours(said_when_slow(send)).await;
            match sent {
                None => return Forwarded::NotNow,
                Some(Ok(())) => return Forwarded::Confirmed,
                Some(Err(error)) if waits(&error) => {
                    warn!(error = %chain(&error), "waiting for the broker");
                    if self.generation.while_ours(time::sleep(PAUSE)).await.is_none() {
                        return Forwarded::NotNow;
                    }
                }
                Some(Err(error)) => return Forwarded::Refused(error),
            }
        }
        warn!(
            "given back before the broker would take it back; it runs again as if it had not run"
        );
        Forwarded::NotNow
    }

    /// Answers a caller that waits; a lost answer never fails the job.
    async fn reply(&self, job: &Envelope, result: Result<&Output, &Envelope>) {
        let Some(address) = job.reply_to.as_deref() else { return };
        let producer = self.producers.get();
        if !producer.topology().is_reply_address(address) {
            debug!(address, "not a reply queue; no answer is sent");
            return;
        }
        let answer = answer(job, address, result);
        if let Err(error) = send_reply(producer, &answer).await {
            debug!(%error, "the answer was not delivered");
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

async fn said_when_slow<T>(send: impl Future<Output = T>) -> T {
    let mut send = std::pin::pin!(send);
    match time::timeout(SLOW, &mut send).await {
        Ok(sent) => sent,
        Err(_) => {
            warn!("the broker does not confirm; the job keeps its place meanwhile");
            send.await
        }
    }
}

/// Whether waiting can help: it is about the broker or our rights there, not about this job. What
/// is not allowed today may be after a word with an administrator, and a job is not to pay for it.
fn waits(error: &PublishError) -> bool {
    matches!(
        error,
        PublishError::Unconfirmed { .. }
            | PublishError::Denied { .. }
            | PublishError::Topology { .. }
    )
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
