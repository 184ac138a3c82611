//! What every load has: a namespace of its own on the broker, somebody who tells channels, clients.
//! In: how many. Out: clients that follow their channels, and events that are confirmed.

use std::time::{Duration, Instant};

use forebay_producer::testing::{Broker, broker};
use forebay_producer::{Inspector, Producer};
use futures_util::{StreamExt, stream};
use tokio::time;

use super::client::{Client, Heard, Tick};

/// Events that are told at once, at most.
const UNDER_WAY: usize = 500;
/// Clients that connect at once where nothing is said of it.
const GUESTS: usize = 100;
/// How often it is looked whether the stream is gone.
const LOOK: Duration = Duration::from_millis(50);
const CLEAN_UP: Duration = Duration::from_secs(30);

pub(crate) struct Site {
    pub(crate) broker: Broker,
    pub(crate) producer: Producer,
    began: Instant,
}

impl Site {
    pub(crate) async fn open() -> Self {
        // The client that asks for health and metrics speaks no TLS, and still wants to know how.
        _ = rustls::crypto::ring::default_provider().install_default();
        let broker = broker().await;
        let producer = Producer::connect(&broker.config()).await.unwrap();
        Self { broker, producer, began: Instant::now() }
    }

    /// Removes the stream, and waits until that is done: it may be large.
    pub(crate) async fn close(self) {
        let Self { broker, producer, .. } = self;
        let (config, stream) = (broker.config(), broker.config().topology().events());
        drop(broker);
        let inspector = Inspector::on(producer.link().clone(), &config);
        let gone = async {
            while !matches!(inspector.count(&stream).await, Ok(None)) {
                time::sleep(LOOK).await;
            }
        };
        time::timeout(CLEAN_UP, gone).await.expect("the stream is removed");
        producer.close().await;
    }

    /// Nanoseconds since the load began.
    pub(crate) fn now(&self) -> u64 {
        nanoseconds(self.began)
    }

    /// The clock for others.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Tells one channel.
    pub(crate) async fn tell(&self, channel: &str, tick: Tick) {
        self.producer.emit(channel, "tick", &tick).await.unwrap();
    }

    /// Tells all of it, in this order, as fast as the broker confirms.
    pub(crate) async fn tell_all(&self, ticks: impl Iterator<Item = (usize, u64)>) {
        let telling = stream::iter(ticks).map(|(number, n)| async move {
            self.tell(&channel(number), Tick { n, at: self.now() }).await;
        });
        telling.buffer_unordered(UNDER_WAY).for_each(async |()| {}).await;
    }
}

/// Nanoseconds since then.
pub(crate) fn nanoseconds(since: Instant) -> u64 {
    since.elapsed().as_nanos() as u64
}

/// The name of a room.
pub(crate) fn channel(number: usize) -> String {
    format!("load.{number}")
}

/// So many clients, each of which follows the channel with this number.
pub(crate) async fn gather(
    address: &str,
    count: usize,
    room: impl Fn(usize) -> usize,
) -> Vec<Client> {
    let coming = stream::iter(0..count).map(|number| {
        let channel = channel(room(number));
        async move {
            let mut client = Client::connect(address, number).await.unwrap();
            client.follow(&channel).await.unwrap();
            match client.hear(&channel).await.unwrap() {
                Heard::Joined { .. } => client,
                odd => panic!("not followed: {odd:?}"),
            }
        }
    });
    coming.buffered(GUESTS).collect().await
}
