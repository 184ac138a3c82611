//! Attaches a reader to the stream, for as long as it takes; declares it first where it is missing.
//! In: where the reader stands. Out: a consumer that begins there.

use std::time::{Duration, SystemTime};

use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::time::{self, Instant};
use tracing::{debug, info};

use super::life::Life;
use super::place::Position;
use super::reader::Events;
use super::watch::SKEW;
use super::{Gap, OFFSET, PREFETCH, Start};
use crate::error::{ConnectError, StreamError, TopologyError};
use crate::link::connection::Link;
use crate::link::fault::{ANSWER, Fault, answered};
use crate::link::transition::{Action, Event as Happened};

/// How often a reader without a connection looks why.
const LOOK: Duration = Duration::from_secs(1);

impl Events {
    /// Cancel-safe: begun again it begins with a new try.
    pub(super) async fn attach(&mut self) -> Result<(), StreamError> {
        if let Some(at) = self.not_before {
            // Otherwise a consumer that the broker cancels at once would be made again at once.
            time::sleep_until(at).await;
        }
        let mut happened = Happened::Begin;
        loop {
            let (next, action) = self.state.clone().next(happened, fastrand::f64());
            self.state = next;
            happened = match action {
                Action::Open => match self.try_to_attach().await {
                    Ok(life) => {
                        self.trouble.send_replace(String::new());
                        if self.told.take().is_some() {
                            info!("reading the stream of events");
                        }
                        self.life = Some(life);
                        Happened::Opened
                    }
                    Err(Refusal::Now(fault)) => {
                        self.note_missing(&fault);
                        self.lost(fault)
                    }
                    Err(Refusal::Never(error)) => return Err(error),
                },
                Action::Declare => match self.declare().await {
                    Ok(()) => Happened::Begin,
                    Err(Refusal::Now(fault)) => self.lost(fault),
                    Err(Refusal::Never(error)) => return Err(error),
                },
                Action::Wait(pause) => {
                    time::sleep(pause).await;
                    Happened::Begin
                }
                Action::GiveUp(fault) => {
                    let stream = self.log.stream();
                    return Err(StreamError::Denied { stream, because: fault.to_string() });
                }
                Action::Watch => return Ok(()),
                Action::Close => return Err(ConnectError::Closed.into()),
            };
        }
    }

    /// What comes after a stream that is not there is another one.
    fn note_missing(&mut self, fault: &Fault) {
        if !matches!(fault, Fault::Missing(_)) || fault.passes() {
            return;
        }
        self.missing = true;
        if matches!(&self.position, Position::After { token, .. } if token.id.is_some()) {
            self.lost_place(Gap::Recreated);
        }
    }

    async fn try_to_attach(&mut self) -> Result<Life, Refusal> {
        let (link, asked) = (&self.log.link, SystemTime::now());
        link.connected(Instant::now() + LOOK).await.map_err(|error| refusal(link, error))?;
        let opened = link.channel(Instant::now() + ANSWER).await;
        let channel = opened.map_err(|error| refusal(link, error))?.channel;
        let mut arguments = FieldTable::default();
        arguments.insert(OFFSET.into(), self.position.offset());
        let queue = self.log.stream();
        let start = async {
            // A stream gives nothing to a consumer without a prefetch.
            channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions::default();
            channel.basic_consume(queue.as_str().into(), "".into(), options, arguments).await
        };
        let stream = answered(ANSWER, start).await.map_err(Refusal::Now)?;
        debug!(queue, position = ?self.position, "attached to the stream of events");
        if matches!(self.position, Position::Begin(Start::Next)) {
            self.position = Position::Since(asked - SKEW);
        }
        Ok(Life::new((channel, stream), &self.position, (self.cancelled, self.deaf)))
    }

    async fn declare(&self) -> Result<(), Refusal> {
        let declarer = &self.log.declarer;
        declarer.forget_events();
        if !declarer.may_declare() {
            if self.state.was_up() {
                return Err(Refusal::Now(Fault::Closed("the stream is not there".to_owned())));
            }
            let what = format!("stream `{}`", self.log.stream());
            return Err(Refusal::Never(TopologyError::Missing { what }.into()));
        }
        let declared = declarer.ensure_events(Instant::now() + ANSWER).await;
        declared.map_err(|error| match error {
            TopologyError::Connect(error) => refusal(&self.log.link, error),
            error if self.state.was_up() => Refusal::Now(Fault::Closed(error.to_string())),
            error => Refusal::Never(error.into()),
        })
    }
}

enum Refusal {
    Now(Fault),
    Never(StreamError),
}

fn refusal(link: &Link, error: ConnectError) -> Refusal {
    match error {
        ConnectError::Unreachable { because, .. } => {
            let trouble = link.trouble();
            Refusal::Now(Fault::Connection(if trouble.is_empty() { because } else { trouble }))
        }
        never => Refusal::Never(never.into()),
    }
}
