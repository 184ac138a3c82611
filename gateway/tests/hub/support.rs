//! A stream to tell events to, sessions that write down what they get, and waiting for what happens
//! instead of sleeping.

use std::sync::Arc;
use std::time::Duration;

use forebay_gateway::{Ended, Eyes, Hub, HubOptions, Item, Room, Session, StartFrom, Subscribed};
use forebay_producer::testing::{Broker, OwnBroker, broker, broker_of_its_own};
use forebay_producer::wire::event::event_data;
use forebay_producer::{Config, Envelope, Event, EventKind, EventLog, Gap, Token};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeleteOptions};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time;

/// Longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for something, and says what did not happen.
pub(crate) async fn within<T>(what: &str, happens: impl Future<Output = T>) -> T {
    let happened = time::timeout(PATIENCE, happens).await;
    happened.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// Asks again until it is so. For facts that nobody announces.
pub(crate) async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !so().await {
            time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// A broker of its own, two at a time: each takes memory and, while it starts, a core.
pub(crate) async fn own_broker() -> (OwnBroker, SemaphorePermit<'static>) {
    static PLACES: Semaphore = Semaphore::const_new(2);
    let place = PLACES.acquire().await.expect("never closed");
    (broker_of_its_own("").await, place)
}

/// A stream of its own, and somebody who tells it things.
pub(crate) struct Stream {
    broker: Arc<Broker>,
    emitter: Channel,
    _connection: Connection,
}

impl Stream {
    pub(crate) async fn new() -> Self {
        Self::on(broker().await).await
    }

    pub(crate) async fn on(broker: Broker) -> Self {
        let config = broker.config();
        Self::with(broker, &config).await
    }

    /// Declared as `config` says.
    pub(crate) async fn with(broker: Broker, config: &Config) -> Self {
        EventLog::new(config).declare().await.unwrap();
        let connection =
            Connection::connect(broker.url(), ConnectionProperties::default()).await.unwrap();
        let emitter = connection.create_channel().await.unwrap();
        emitter.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { broker: Arc::new(broker), emitter, _connection: connection }
    }

    /// The same, over a new connection.
    pub(crate) async fn on_again(stream: &Self) -> Self {
        let url = stream.broker.url();
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let emitter = connection.create_channel().await.unwrap();
        emitter.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { broker: Arc::clone(&stream.broker), emitter, _connection: connection }
    }

    pub(crate) fn config(&self) -> Config {
        self.broker.config()
    }

    fn name(&self) -> String {
        self.broker.config().topology().events()
    }

    /// Tells all of them, in this order, and waits until the broker has them.
    pub(crate) async fn tell(&self, events: impl IntoIterator<Item = Event>) {
        let mut confirms = Vec::new();
        for event in events {
            let (exchange, key, body) = (self.name(), event.routing_key(), event.encode());
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let (exchange, key) = (exchange.as_str().into(), key.as_str().into());
            let properties = event.properties();
            let sent = self.emitter.basic_publish(exchange, key, options, &body, properties);
            confirms.push(sent.await.unwrap());
        }
        for confirm in confirms {
            let confirm = within("a confirm", confirm).await.unwrap();
            assert!(confirm.is_ack() && confirm.take_message().is_none(), "kept");
        }
    }

    /// Tells a channel these numbers.
    pub(crate) async fn count(&self, channel: &str, numbers: std::ops::Range<u64>) {
        self.tell(numbers.map(|n| number(channel, n))).await;
    }

    /// Tells something that is no event.
    pub(crate) async fn babble(&self) {
        let (exchange, options) = (self.name(), BasicPublishOptions::default());
        let properties = BasicProperties::default();
        let sent = self.emitter.basic_publish(
            exchange.as_str().into(),
            "job.x".into(),
            options,
            b"?",
            properties,
        );
        assert!(within("a confirm", sent.await.unwrap()).await.unwrap().is_ack());
    }

    /// Deletes the stream, and makes it anew.
    pub(crate) async fn recreate(&self) {
        self.delete().await;
        self.declare().await;
    }

    pub(crate) async fn delete(&self) {
        let options = QueueDeleteOptions::default();
        self.emitter.queue_delete(self.name().as_str().into(), options).await.unwrap();
    }

    pub(crate) async fn declare(&self) {
        EventLog::new(&self.config()).declare().await.unwrap();
    }

    pub(crate) async fn hub(&self) -> Hub {
        self.hub_with(HubOptions::new()).await
    }

    /// A hub that keeps so few recent events that it has to read the others.
    pub(crate) async fn forgetful_hub(&self) -> Hub {
        self.hub_with(HubOptions::new().window_events(5)).await
    }

    pub(crate) async fn hub_with(&self, options: HubOptions) -> Hub {
        open(&self.config(), options).await
    }
}

pub(crate) async fn open(config: &Config, options: HubOptions) -> Hub {
    // Nobody restarts the broker at the same time.
    let hub = Hub::open(config, options.empty_for(Duration::ZERO));
    within("the hub", hub.opened()).await.unwrap();
    hub
}

/// What a channel is told.
pub(crate) fn number(channel: &str, n: u64) -> Event {
    Event::of_channel(channel, "tick", event_data(&json!({ "n": n })).unwrap()).unwrap()
}

/// A job's event.
pub(crate) fn of_job(what: EventKind, id: &str, owner: Option<&str>) -> Event {
    let mut job = Envelope::new("note.take", "notes", "{}");
    (job.id, job.owner) = (id.to_owned(), owner.map(str::to_owned));
    Event::of_job(what, &job, event_data(&json!({})).unwrap())
}

/// Sees everything.
pub(crate) fn open_eyes() -> Eyes {
    Arc::new(|_| true)
}

/// One client with one session.
pub(crate) struct Client {
    pub(crate) session: Session,
    /// The newest token it was given.
    pub(crate) token: Token,
}

impl Client {
    pub(crate) fn of(hub: &Hub) -> Self {
        Self { session: hub.session(open_eyes()), token: Token::BEGINNING }
    }

    /// In the room of a channel, from there on.
    pub(crate) async fn on(hub: &Hub, channel: &str, from: StartFrom) -> (Self, Subscribed) {
        let mut client = Self::of(hub);
        let subscribed = client.join(&[Room::channel(channel)], from).await;
        (client, subscribed)
    }

    pub(crate) async fn join(&mut self, rooms: &[Room], from: StartFrom) -> Subscribed {
        let subscribing = self.session.handle();
        let subscribed = within("an answer", subscribing.subscribe(rooms.to_vec(), from)).await;
        let subscribed = subscribed.unwrap();
        self.token = subscribed.token.clone();
        subscribed
    }

    pub(crate) async fn item(&mut self) -> Item {
        let item = within("something for the session", self.session.next()).await;
        if let Item::Event { token, .. } = &item {
            self.token = token.clone();
        }
        item
    }

    pub(crate) async fn event(&mut self) -> Event {
        match self.item().await {
            Item::Event { entry, .. } => entry.event().unwrap(),
            other => panic!("not an event: {other:?}"),
        }
    }

    pub(crate) async fn gap(&mut self) -> Gap {
        match self.item().await {
            Item::Gap { reason } => reason,
            other => panic!("not a gap: {other:?}"),
        }
    }

    pub(crate) async fn end(&mut self) -> Ended {
        match self.item().await {
            Item::Ended(ended) => ended,
            other => panic!("not the end: {other:?}"),
        }
    }

    /// The numbers of the next events.
    pub(crate) async fn numbers(&mut self, count: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            numbers.push(n(&self.event().await));
        }
        numbers
    }
}

pub(crate) fn n(event: &Event) -> u64 {
    let data: serde_json::Value = serde_json::from_str(event.data.get()).unwrap();
    data["n"].as_u64().unwrap()
}

pub(crate) fn range(numbers: std::ops::Range<u64>) -> Vec<u64> {
    numbers.collect()
}
