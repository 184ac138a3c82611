//! What every test here needs: a kind of job, a client that knows nothing of Forebay, and waiting
//! for what happens instead of sleeping.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use forebay_producer::testing::{OwnBroker, broker_of_its_own};
use forebay_producer::wire::envelope::Raw;
use forebay_producer::{Config, Envelope, Job, Producer, PublishError, PublishOptions, Receipt};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{self, Instant};

/// Longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A job that carries a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) n: u64,
}

impl Job for Note {
    const KIND: &'static str = "note.take";
    const QUEUE: &'static str = "notes";
}

pub(crate) fn note(n: u64) -> Note {
    Note { n }
}

pub(crate) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Publishes an empty payload to a queue.
pub(crate) async fn publish_to(
    producer: &Producer,
    queue: &str,
    id: &str,
) -> Result<Receipt, PublishError> {
    let options = PublishOptions::new().queue(queue).id(id);
    producer.publish_raw(Note::KIND, "{}", options).await
}

/// Publishes a note with options; a future that owns it.
pub(crate) async fn publish(
    producer: &Producer,
    n: u64,
    options: PublishOptions,
) -> Result<Receipt, PublishError> {
    producer.publish_with(&note(n), options).await
}

/// Waits for something, and says what did not happen.
pub(crate) async fn within<T>(what: &str, happens: impl Future<Output = T>) -> T {
    let happened = time::timeout(PATIENCE, happens).await;
    happened.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// Asks again until it is so. For facts that the broker does not announce.
pub(crate) async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !so().await {
            time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// The same namespace through another URL.
pub(crate) fn through(url: &str, config: &Config) -> Config {
    let config = Config::new(url).unwrap().namespace(config.topology().namespace());
    config.unwrap()
}

/// A broker of its own, two at a time: each takes memory and, while it starts, a core.
pub(crate) async fn own_broker(settings: &str) -> (OwnBroker, SemaphorePermit<'static>) {
    let place = place_for_a_broker().await;
    (broker_of_its_own(settings).await, place)
}

/// The right to start one, while it is held.
pub(crate) async fn place_for_a_broker() -> SemaphorePermit<'static> {
    static PLACES: Semaphore = Semaphore::const_new(2);
    PLACES.acquire().await.expect("never closed")
}

/// Kills a broker and starts it again.
///
/// RabbitMQ 4.3.6 writes the name of a new quorum queue to disk some seconds late; killed before
/// that, it starts the queue anew and empty, whatever it had confirmed. So the names are written
/// first.
pub(crate) async fn kill_and_revive(own: &OwnBroker) {
    own.ctl(&["eval", "[dets:sync(Table) || Table <- dets:all()]."]).await;
    own.kill().await;
    own.revive().await;
}

/// A plain AMQP client: what any program in any language may do.
pub(crate) struct Plain {
    connection: Connection,
    pub(crate) channel: Channel,
}

impl Plain {
    pub(crate) async fn at(url: &str) -> Self {
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(url, properties).await.expect("a broker");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Self { connection, channel }
    }

    /// Jobs that are ready; `None` if there is no such queue. A passive look at a missing queue
    /// closes its channel, so it gets one of its own.
    pub(crate) async fn count(&self, queue: &str) -> Option<u32> {
        let channel = self.connection.create_channel().await.expect("a channel");
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let looked = channel.queue_declare(queue.into(), options, FieldTable::default()).await;
        looked.ok().map(|queue| queue.message_count())
    }

    pub(crate) async fn declare(&self, queue: &str, arguments: &[(&str, AMQPValue)]) {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        self.channel.queue_declare(queue.into(), options, table).await.expect("declared");
    }

    pub(crate) async fn bind(&self, queue: &str, exchange: &str, key: &str) {
        let options = QueueBindOptions::default();
        let (queue, exchange, key) = (queue.into(), exchange.into(), key.into());
        let bound = self.channel.queue_bind(queue, exchange, key, options, FieldTable::default());
        bound.await.expect("bound");
    }

    pub(crate) async fn delete(&self, queue: &str) {
        let options = QueueDeleteOptions::default();
        self.channel.queue_delete(queue.into(), options).await.expect("deleted");
    }

    pub(crate) async fn delete_exchange(&self, exchange: &str) {
        let options = ExchangeDeleteOptions::default();
        self.channel.exchange_delete(exchange.into(), options).await.expect("deleted");
    }

    /// Publishes and waits for the confirm.
    pub(crate) async fn publish(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let (exchange, key) = (exchange.into(), key.into());
        let sent = self.channel.basic_publish(exchange, key, options, body, properties);
        let confirm = sent.await.expect("sent").await.expect("answered");
        assert!(confirm.is_ack() && confirm.take_message().is_none(), "routed and confirmed");
    }

    /// Consumes with acks.
    pub(crate) async fn consume(&self, queue: &str) -> Consumer {
        let options = BasicConsumeOptions::default();
        let consumer =
            self.channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        consumer.await.expect("consumed")
    }

    /// Takes the next `count` messages and removes them.
    pub(crate) async fn take(&self, queue: &str, count: usize) -> Vec<Delivery> {
        let mut taken = Vec::new();
        let take = self.take_while(queue, count.try_into().expect("a prefetch"), |delivery| {
            taken.push(delivery);
            taken.len() < count
        });
        within(&format!("{count} messages in {queue}"), take).await;
        taken
    }

    /// Takes everything that is in the queue now.
    pub(crate) async fn drain(&self, queue: &str) -> Vec<Delivery> {
        // What comes before a marker was there before it: no need to wait for silence. On 4.3 a
        // higher priority comes first, so the marker has the lowest.
        let marker = BasicProperties::default().with_type("end".into()).with_priority(0);
        self.publish("", queue, b"", marker).await;
        let mut taken = Vec::new();
        let take = self.take_while(queue, 1_000, |delivery| {
            let end =
                delivery.properties.kind().as_ref().is_some_and(|kind| kind.as_str() == "end");
            if !end {
                taken.push(delivery);
            }
            !end
        });
        within(&format!("the end of {queue}"), take).await;
        taken
    }

    /// Consumes and acks until `wanted` says that there were enough.
    async fn take_while(
        &self,
        queue: &str,
        prefetch: u16,
        mut wanted: impl FnMut(Delivery) -> bool,
    ) {
        let channel = self.connection.create_channel().await.expect("a channel");
        channel.basic_qos(prefetch, BasicQosOptions::default()).await.expect("a limit");
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let mut consumer = consumer.await.expect("consumed");
        loop {
            let delivery = consumer.next().await.expect("the queue stays").expect("a delivery");
            let tag = delivery.delivery_tag;
            let more = wanted(delivery);
            if !more || tag % 100 == 0 || prefetch < 100 {
                let up_to_here = BasicAckOptions { multiple: true };
                channel.basic_ack(tag, up_to_here).await.expect("acked");
            }
            if !more {
                break;
            }
        }
        // What was delivered beyond goes back.
        channel.close(200, "taken".into()).await.expect("closed");
    }
}

/// Reads a delivery by the wire contract.
pub(crate) fn read(delivery: &Delivery) -> Envelope {
    Envelope::decode(Raw {
        properties: &delivery.properties,
        routing_key: delivery.routing_key.as_str(),
        redelivered: delivery.redelivered,
        payload: Bytes::from(delivery.data.clone()),
    })
}

pub(crate) fn ids(deliveries: &[Delivery]) -> BTreeSet<String> {
    deliveries.iter().map(|delivery| read(delivery).id).collect()
}

/// Names of all headers of a delivery.
pub(crate) fn header_names(delivery: &Delivery) -> Vec<String> {
    let headers = delivery.properties.headers().as_ref();
    headers.map_or_else(Vec::new, |table| {
        table.inner().keys().map(|name| name.as_str().to_owned()).collect()
    })
}

/// An error with its causes, as a program would print it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

pub(crate) fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
