//! The one door to servers for tests (feature `testing`).
//! In: `AMQP_URL`, or a Docker engine. Out: a real RabbitMQ with a namespace that nobody else uses.
//! In the same way a Redis and a PostgreSQL, from the distribution's packages.
//!
//! ```no_run
//! # async fn a_test() {
//! use forebay_producer::{Producer, PublishOptions, testing};
//!
//! let broker = testing::broker().await;
//! let producer = Producer::new(&broker.config());
//! producer.publish_raw("email.send", "{}", PublishOptions::new()).await.expect("published");
//! # }
//! ```
//!
//! Without `AMQP_URL` the first test starts one container, which all tests and later runs share;
//! `docker rm -f $(docker ps -aq --filter label=forebay.test)` removes it.

mod authority;
mod cluster;
mod container;
mod frames;
mod fuzz;
mod postgres;
mod proxy;
mod redis;
mod server;

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use tokio::sync::OnceCell;
use tokio::time::Instant;

pub use self::authority::{Authority, Issued};
pub use self::cluster::{Cluster, cluster};
pub use self::container::{OwnBroker, broker_of_its_own, broker_of_its_own_with};
pub use self::frames::{Frame, Meddle};
pub use self::fuzz::fuzz;
pub use self::postgres::{Postgres, postgres, postgres_of_its_own};
pub use self::proxy::Proxy;
pub use self::redis::{Redis, redis, redis_of_its_own};
use crate::config::Config;
use crate::link::connection::Link;
use crate::link::io;
use crate::wire::delay::LEVELS;
use crate::wire::topology::Topology;

/// Takes a stream of frames through what stands between the socket and the client library, and says
/// how many bytes came out: for measuring.
pub fn sifted(stream: &[u8]) -> usize {
    crate::link::sieve::sifted(stream)
}

/// A real broker and a namespace on it. What this process declared in the namespace is deleted
/// when it is dropped.
#[derive(Debug)]
pub struct Broker {
    url: String,
    config: Config,
    queues: Mutex<HashSet<String>>,
}

/// A broker that all tests share, with a random namespace.
///
/// # Panics
/// When there is none and none can be started: with the reason and the remedy.
pub async fn broker() -> Broker {
    static URL: OnceCell<String> = OnceCell::const_new();
    let url = URL.get_or_init(|| async {
        match std::env::var("AMQP_URL") {
            Ok(url) if !url.is_empty() => url,
            _ => container::shared().await,
        }
    });
    Broker::at(url.await)
}

impl Broker {
    /// A random namespace on the broker at `url`.
    ///
    /// # Panics
    /// When `url` is not an AMQP URL.
    pub fn at(url: &str) -> Self {
        let namespace = format!("test-{:012x}", fastrand::u64(..1 << 48));
        let config = Config::new(url)
            .and_then(|config| config.namespace(&namespace))
            .expect("AMQP_URL names a broker");
        Self { url: url.to_owned(), config, queues: Mutex::default() }
    }

    /// The broker's URL, with credentials.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `host:port`, for a proxy in between.
    pub fn address(&self) -> String {
        self.config.broker()
    }

    /// The random namespace.
    pub fn namespace(&self) -> &str {
        self.config.topology().namespace()
    }

    /// A configuration with URL and namespace set.
    pub fn config(&self) -> Config {
        self.config.clone()
    }

    /// Notes a queue that another process declares, so that it is deleted too.
    pub fn owns(&self, queue: &str) {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.to_owned());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let mut queues =
            std::mem::take(&mut *self.queues.lock().unwrap_or_else(PoisonError::into_inner));
        queues.extend(declared(self.config.topology().namespace()));
        queues.insert("default".to_owned());
        io::handle().spawn(delete(self.config.clone(), queues));
    }
}

/// Queues declared by this process, as `namespace.queue`.
static DECLARED: Mutex<Option<HashSet<(String, String)>>> = Mutex::new(None);

pub(crate) fn note_declared(topology: &Topology, queue: &str) {
    let mut declared = DECLARED.lock().unwrap_or_else(PoisonError::into_inner);
    let pair = (topology.namespace().to_owned(), queue.to_owned());
    declared.get_or_insert_default().insert(pair);
}

fn declared(namespace: &str) -> Vec<String> {
    let declared = DECLARED.lock().unwrap_or_else(PoisonError::into_inner);
    let all = declared.iter().flatten();
    all.filter(|(of, _)| of == namespace).map(|(_, queue)| queue.clone()).collect()
}

/// Deletes everything of a namespace; what is not there is no error.
async fn delete(config: Config, queues: HashSet<String>) {
    let link = Link::open(&config, "test clean-up");
    let Ok(opened) = link.channel(Instant::now() + Duration::from_secs(10)).await else { return };
    let (channel, topology) = (opened.channel, config.topology());
    let mut names: Vec<String> = vec![topology.unrouted(), topology.events()];
    for queue in &queues {
        names.extend([topology.queue(queue), topology.dead_queue(queue)]);
    }
    names.extend((0..LEVELS).map(|level| topology.delay(level)));
    for name in names {
        _ = channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await;
        let options = ExchangeDeleteOptions::default();
        _ = channel.exchange_delete(name.as_str().into(), options).await;
    }
    for name in
        [topology.jobs_exchange().to_owned(), topology.deliver_exchange(), topology.dead_exchange()]
    {
        let options = ExchangeDeleteOptions::default();
        _ = channel.exchange_delete(name.as_str().into(), options).await;
    }
    link.close().await;
}
