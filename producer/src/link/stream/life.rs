//! One consumer of the stream, from attaching to its end.
//! In: what the broker sends. Out: deliveries, and word of a silence and of what a look has shown.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::OptionFuture;
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;
use lapin::{Channel, Consumer};
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};

use super::place::Position;
use super::probe;
use super::watch::{Look, QUIET, Watch};
use crate::link::connection::Link;
use crate::link::fault::{ANSWER, answered, close};
use crate::link::io;

const ACK_EVERY: u16 = 50;

#[derive(Debug)]
pub(super) struct Life {
    pub(super) channel: Channel,
    stream: Consumer,
    unacked: u16,
    /// When the first of them came.
    since: Instant,
    /// The last delivery.
    tag: u64,
    pub(super) watch: Watch,
    look_at: Instant,
    look: Option<JoinHandle<Look>>,
}

/// What comes next.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every one is a delivery")]
pub(super) enum Next {
    /// A delivery, or the end.
    Delivery(Option<lapin::Result<Delivery>>),
    /// Nothing for so long that it is worth a look.
    Silence,
    /// That was seen, and nothing has come meanwhile.
    Seen(Look),
}

impl Life {
    pub(super) fn new(
        (channel, stream): (Channel, Consumer),
        position: &Position,
        (cancelled, deaf): (bool, u32),
    ) -> Self {
        let watch = Watch::new(position, cancelled, deaf);
        let now = Instant::now();
        let look_at = now + watch.first_look(position);
        Self { channel, stream, unacked: 0, since: now, tag: 0, watch, look_at, look: None }
    }

    /// Cancel-safe: a delivery stays in the stream until it is taken, a look goes on by itself.
    pub(super) async fn next(&mut self) -> Next {
        tokio::select! {
            biased;
            delivery = self.stream.next() => Next::Delivery(delivery),
            Some(seen) = OptionFuture::from(self.look.as_mut()), if self.look.is_some() => {
                self.look = None;
                Next::Seen(seen.unwrap_or(Look::Failed))
            }
            () = time::sleep_until(self.look_at), if self.look.is_none() => Next::Silence,
        }
    }

    /// Something came, which makes a look that was begun worthless.
    pub(super) fn note(&mut self, tag: u64, offset: Option<u64>) {
        let now = Instant::now();
        if self.unacked == 0 {
            self.since = now;
        }
        (self.unacked, self.tag, self.look) = (self.unacked + 1, tag, None);
        if let Some(offset) = offset {
            self.watch.note(offset);
        }
        self.look_at = now + self.watch.patience();
    }

    /// The place to go on from has shown itself.
    pub(super) fn proved(&mut self) {
        if std::mem::take(&mut self.watch.proving) {
            self.look_again(QUIET);
        }
    }

    pub(super) fn look(&mut self, link: &Link, queue: String) {
        self.look = Some(io::handle().spawn(probe::look(link.clone(), queue)));
    }

    pub(super) fn look_again(&mut self, after: Duration) {
        self.look_at = Instant::now() + after;
    }

    /// A delivery that nobody acks for long costs the channel: the broker's consumer timeout makes no
    /// exception for streams.
    pub(super) fn wants_ack(&self) -> bool {
        self.unacked >= ACK_EVERY || self.unacked > 0 && self.since.elapsed() >= QUIET
    }

    pub(super) async fn ack(&mut self) {
        // Not kept up by a connection that is about to be found dead, nor repeated.
        self.unacked = 0;
        let up_to_here = BasicAckOptions { multiple: true };
        _ = answered(ANSWER, self.channel.basic_ack(self.tag, up_to_here)).await;
    }
}

impl Drop for Life {
    /// The connection stays, for other readers.
    fn drop(&mut self) {
        let channel = self.channel.clone();
        io::handle().spawn(async move { close(&channel, "read").await });
    }
}
