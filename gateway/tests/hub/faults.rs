//! Whatever happens to the broker and the way to it: each event once, in order, none missing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use forebay_gateway::{Hub, HubOptions, Room, StartFrom};
use forebay_producer::testing::{Meddle, Proxy, broker};
use forebay_producer::{Config, Declare, EventLog, Gap};

use crate::support::{Client, Stream, eventually, open, open_eyes, own_broker, range, within};

fn through(url: &str, config: &Config) -> Config {
    let config = Config::new(url).unwrap().namespace(config.topology().namespace());
    config.unwrap()
}

#[tokio::test]
async fn a_connection_that_is_cut_again_and_again_loses_and_doubles_nothing() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let config = through(&proxy.url(), &broker.config());
    let stream = Stream::on(broker).await;
    for options in [HubOptions::new(), HubOptions::new().window_events(5)] {
        let hub = open(&config, options).await;
        let (mut client, _) = Client::on(&hub, "a", StartFrom::Now).await;
        let telling = async {
            for n in 0..40 {
                stream.count("a", n * 10..n * 10 + 10).await;
                proxy.cut();
            }
        };
        let (got, ()) =
            within("400 events", async { tokio::join!(client.numbers(400), telling) }).await;
        assert_eq!(got, range(0..400));
    }
}

#[tokio::test]
async fn a_replay_whose_connection_is_cut_goes_on() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let config = through(&proxy.url(), &broker.config());
    let stream = Stream::on(broker).await;
    stream.count("a", 0..3_000).await;
    let hub = open(&config, HubOptions::new().window_events(5)).await;
    let (mut client, _) = Client::on(&hub, "a", StartFrom::Beginning).await;
    let mut got = Vec::new();
    for _ in 0..10 {
        got.extend(client.numbers(300).await);
        proxy.cut();
    }
    assert_eq!(got, range(0..3_000));
}

#[tokio::test]
async fn a_broker_that_restarts_costs_no_event() {
    let (own, _place) = own_broker().await;
    let stream = Stream::on(own.broker()).await;
    let hub = stream.hub().await;
    let forgetful = stream.forgetful_hub().await;
    let (mut client, _) = Client::on(&hub, "a", StartFrom::Now).await;
    stream.count("a", 0..50).await;
    assert_eq!(client.numbers(50).await, range(0..50));
    own.stop().await;
    eventually("the hub notices", async || hub.ready().is_err()).await;
    own.start().await;
    // Its connection to the broker is another one.
    let stream = Stream::on_again(&stream).await;
    stream.count("a", 50..100).await;
    assert_eq!(client.numbers(50).await, range(50..100));
    eventually("the hub is ready again", async || hub.ready().is_ok()).await;
    let from = StartFrom::After(client.token.clone());
    let (mut back, subscribed) = Client::on(&forgetful, "a", from).await;
    assert!(subscribed.recovered);
    stream.count("a", 100..101).await;
    assert_eq!(back.numbers(1).await, [100]);
    let (mut all, _) = Client::on(&forgetful, "a", StartFrom::Beginning).await;
    assert_eq!(all.numbers(101).await, range(0..101));
}

#[tokio::test]
async fn a_hub_that_starts_before_its_broker_is_ready_when_that_is() {
    let (own, _place) = own_broker().await;
    let stream = Stream::on(own.broker()).await;
    stream.count("a", 0..10).await;
    own.stop().await;
    let hub = Hub::open(&stream.config(), HubOptions::new());
    assert!(hub.ready().is_err());
    own.start().await;
    within("the hub", hub.opened()).await.unwrap();
    let (mut client, _) = Client::on(&hub, "a", StartFrom::Beginning).await;
    assert_eq!(client.numbers(10).await, range(0..10));
}

#[tokio::test]
async fn a_hub_that_starts_before_its_stream_is_ready_once_that_is_declared() {
    let broker = broker().await;
    let config = broker.config();
    let hub = Hub::open(&config.clone().declare(Declare::Never), HubOptions::new());
    let error = within("a refusal", hub.opened()).await.unwrap_err().to_string();
    assert!(error.contains("forebay topology apply"), "{error}");
    EventLog::new(&config).declare().await.unwrap();
    eventually("the hub is ready", async || hub.ready().is_ok()).await;
    let stream = Stream::on(broker).await;
    let (mut client, _) = Client::on(&hub, "a", StartFrom::Now).await;
    stream.count("a", 0..3).await;
    assert_eq!(client.numbers(3).await, range(0..3));
}

#[tokio::test]
async fn what_a_slow_broker_has_not_shown_yet_is_not_taken_for_news() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let config = through(&proxy.url(), &broker.config());
    let stream = Stream::on(broker).await;
    let slow = Arc::new(AtomicBool::new(true));
    let is_slow = Arc::clone(&slow);
    proxy.meddle(move |frame| {
        let shown = !frame.is_delivery() || !is_slow.load(Ordering::Acquire);
        if shown { Meddle::Pass } else { Meddle::Drop }
    });
    // The broker has not counted these either: it does every 5 s.
    stream.count("a", 0..10).await;
    let hub = Hub::open(&config, HubOptions::new());
    let early = tokio::time::timeout(Duration::from_secs(3), hub.opened()).await;
    assert!(early.is_err(), "it believes that there is nothing: {early:?}");
    slow.store(false, Ordering::Release);
    proxy.cut();
    within("the hub", hub.opened()).await.unwrap();
    let (mut client, _) = Client::on(&hub, "a", StartFrom::Now).await;
    stream.count("a", 10..11).await;
    assert_eq!(client.numbers(1).await, [10], "the others are history");
}

#[tokio::test]
async fn a_token_from_another_hub_is_looked_up_when_this_one_hears_nothing() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let config = through(&proxy.url(), &broker.config());
    let stream = Stream::on(broker).await;
    stream.count("a", 0..10).await;
    let (deaf, tail) = (Arc::new(AtomicBool::new(false)), AtomicU16::new(0));
    let is_deaf = Arc::clone(&deaf);
    proxy.meddle(move |frame| {
        let deaf = is_deaf.load(Ordering::Acquire);
        if frame.is_consume() && !deaf {
            tail.store(frame.channel(), Ordering::Release);
        }
        let missed = deaf && frame.is_delivery() && frame.channel() == tail.load(Ordering::Acquire);
        if missed { Meddle::Drop } else { Meddle::Pass }
    });
    let hubs = [open(&config, HubOptions::new()).await, stream.hub().await];
    deaf.store(true, Ordering::Release);
    let (mut client, _) = Client::on(&hubs[1], "a", StartFrom::Now).await;
    stream.count("a", 10..20).await;
    assert_eq!(client.numbers(6).await, range(10..16));
    let from = StartFrom::After(client.token.clone());
    let (mut client, subscribed) = Client::on(&hubs[0], "a", from).await;
    assert!(subscribed.recovered, "{:?}", subscribed.reason);
    deaf.store(false, Ordering::Release);
    proxy.cut();
    assert_eq!(client.numbers(4).await, range(16..20));
}

#[tokio::test]
async fn messages_that_are_no_events_are_neither_a_gap_nor_in_the_way() {
    let stream = Stream::new().await;
    stream.babble().await;
    let empty = stream.hub().await;
    let (mut client, subscribed) = Client::on(&empty, "a", StartFrom::Beginning).await;
    assert!(subscribed.recovered);
    stream.count("a", 0..20).await;
    stream.babble().await;
    assert_eq!(client.numbers(20).await, range(0..20));
    let hub = stream.forgetful_hub().await;
    let (mut client, subscribed) = Client::on(&hub, "a", StartFrom::Beginning).await;
    assert!(subscribed.recovered, "{:?}", subscribed.reason);
    assert_eq!(client.numbers(20).await, range(0..20));
}

#[tokio::test]
async fn a_stream_that_is_gone_and_may_not_be_declared_is_waited_for_and_said() {
    let stream = Stream::new().await;
    let hub = open(&stream.config().declare(Declare::Never), HubOptions::new()).await;
    let (mut client, _) = Client::on(&hub, "a", StartFrom::Now).await;
    stream.count("a", 0..10).await;
    assert_eq!(client.numbers(10).await, range(0..10));
    stream.delete().await;
    eventually("the hub says what is missing", async || {
        hub.ready().is_err_and(|because| because.contains("the stream is not there"))
    })
    .await;
    stream.declare().await;
    stream.count("a", 10..20).await;
    assert_eq!(client.gap().await, Gap::Recreated);
    assert_eq!(client.numbers(10).await, range(10..20));
    eventually("the hub is ready again", async || hub.ready().is_ok()).await;
}

#[tokio::test]
async fn a_hub_whose_path_to_the_broker_is_half_open_takes_no_token_for_that_of_another_stream() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let behind = through(&proxy.url(), &broker.config());
    let stream = Stream::on(broker).await;
    let hub = stream.hub().await;
    let other = open(&behind, HubOptions::new().patience(Duration::from_secs(4))).await;
    let (mut client, _) = Client::on(&hub, "a", StartFrom::Now).await;
    proxy.hold();
    stream.count("a", 0..10).await;
    assert_eq!(client.numbers(4).await, range(0..4));
    let from = StartFrom::After(client.token.clone());
    let session = other.session(open_eyes());
    let rooms = vec![Room::channel("a")];
    let answer = within("an answer", session.handle().subscribe(rooms, from.clone())).await;
    assert!(answer.is_err(), "not known: {answer:?}");
    proxy.pass();
    // It asks again until the hub has its connection back.
    let mut client = Client::of(&other);
    let joining = async {
        loop {
            let rooms = vec![Room::channel("a")];
            if let Ok(joined) = client.session.handle().subscribe(rooms, from.clone()).await {
                return joined;
            }
        }
    };
    assert!(within("an answer", joining).await.recovered);
    assert_eq!(client.numbers(6).await, range(4..10));
}
