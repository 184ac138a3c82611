//! What sessions get while everything is well.

use std::sync::Arc;
use std::time::Duration;

use forebay_gateway::{EndReason, HubOptions, Room, StartFrom, SubscribeError};
use forebay_producer::testing::broker;
use forebay_producer::{Config, EventKind};

use crate::support::{Client, Stream, eventually, n, number, of_job, open_eyes, range, within};

#[tokio::test]
async fn a_session_gets_what_happens_in_its_rooms_and_nothing_else() {
    let stream = Stream::new().await;
    let hub = stream.hub().await;
    let mut client = Client::of(&hub);
    let rooms = [Room::channel("a"), Room::channel("b"), Room::job("j")];
    let subscribed = client.join(&rooms, StartFrom::Now).await;
    assert!(subscribed.recovered && subscribed.reason.is_none());
    stream
        .tell([
            number("a", 0),
            number("c", 1),
            number("b", 2),
            of_job(EventKind::Started, "other", None),
            of_job(EventKind::Started, "j", None),
            number("a", 3),
        ])
        .await;
    assert_eq!(client.numbers(2).await, [0, 2]);
    let started = client.event().await;
    assert_eq!((started.what, &*started.subject), (EventKind::Started, "j"));
    assert_eq!(client.numbers(1).await, [3]);
}

#[tokio::test]
async fn an_event_in_two_rooms_of_a_session_comes_once() {
    let stream = Stream::new().await;
    let hub = stream.hub().await;
    let mut client = Client::of(&hub);
    client.join(&[Room::job("j"), Room::kind("note.take")], StartFrom::Now).await;
    stream.tell([of_job(EventKind::Started, "j", None), of_job(EventKind::Dead, "k", None)]).await;
    assert_eq!(client.event().await.subject, "j");
    assert_eq!(client.event().await.subject, "k");
}

#[tokio::test]
async fn an_event_that_was_sent_twice_comes_once() {
    let stream = Stream::new().await;
    for window in [100_000, 5] {
        let hub = stream.hub_with(HubOptions::new().window_events(window)).await;
        let (mut live, _) = Client::on(&hub, "a", StartFrom::Now).await;
        let again = number("a", 1);
        stream.tell([number("a", 0), again.clone(), again.clone(), number("a", 2), again]).await;
        stream.count("a", 3..20).await;
        assert_eq!(live.numbers(20).await, range(0..20));
    }
    let hub = stream.forgetful_hub().await;
    let (mut late, _) = Client::on(&hub, "a", StartFrom::Beginning).await;
    assert_eq!(late.numbers(40).await, [range(0..20), range(0..20)].concat());
}

#[tokio::test]
async fn a_session_sees_only_what_it_may_see() {
    let stream = Stream::new().await;
    for window in [100_000, 5] {
        let hub = stream.hub_with(HubOptions::new().window_events(window)).await;
        let mut client = Client::of(&hub);
        client.session = hub.session(Arc::new(|entry| entry.owner.as_deref() == Some("ann")));
        client.join(&[Room::kind("note.take")], StartFrom::Beginning).await;
        let mut told = Vec::new();
        for round in 0..20 {
            told.push(of_job(EventKind::Queued, &format!("bob-{round}"), Some("bob")));
            told.push(of_job(EventKind::Queued, &format!("nobody-{round}"), None));
            told.push(of_job(EventKind::Queued, &format!("ann-{round}"), Some("ann")));
        }
        stream.tell(told).await;
        for round in 0..20 {
            assert_eq!(client.event().await.subject, format!("ann-{round}"));
        }
        stream.recreate().await;
    }
}

#[tokio::test]
async fn a_room_that_was_left_is_quiet_and_may_be_joined_again() {
    let stream = Stream::new().await;
    let hub = stream.hub().await;
    let mut client = Client::of(&hub);
    client.join(&[Room::channel("a"), Room::channel("b")], StartFrom::Now).await;
    stream.count("a", 0..2).await;
    assert_eq!(client.numbers(2).await, [0, 1]);
    let handle = client.session.handle();
    assert!(handle.unsubscribe(&Room::channel("a")));
    assert!(!handle.unsubscribe(&Room::channel("a")), "it has left already");
    assert_eq!(handle.rooms(), 1);
    stream.tell([number("a", 2), number("b", 10)]).await;
    assert_eq!(client.numbers(1).await, [10]);
    client.join(&[Room::channel("a")], StartFrom::Beginning).await;
    assert_eq!(client.numbers(3).await, [0, 1, 2], "it has left, and asks for all of it");
}

#[tokio::test]
async fn a_room_joined_later_brings_its_past_and_nothing_twice() {
    let stream = Stream::new().await;
    for window in [100_000, 5] {
        let hub = stream.hub_with(HubOptions::new().window_events(window)).await;
        let mut client = Client::of(&hub);
        let job = |what: EventKind| of_job(what, "j", None);
        stream.tell([job(EventKind::Queued)]).await;
        eventually("the hub has read it", async || hub.knows("j")).await;
        client.join(&[Room::kind("note.take")], StartFrom::Now).await;
        stream.tell([job(EventKind::Started)]).await;
        stream.count("a", 0..10).await;
        assert_eq!(client.event().await.what, EventKind::Started);
        client.join(&[Room::job("j")], StartFrom::Beginning).await;
        stream.tell([job(EventKind::Succeeded)]).await;
        assert_eq!(client.event().await.what, EventKind::Queued, "it was before it came");
        assert_eq!(client.event().await.what, EventKind::Succeeded);
        stream.recreate().await;
    }
}

#[tokio::test]
async fn a_session_may_be_asked_and_given_up_any_number_of_times() {
    let stream = Stream::new().await;
    let hub = stream.hub().await;
    let (mut client, _) = Client::on(&hub, "a", StartFrom::Now).await;
    let mut got = Vec::new();
    let telling = async {
        for n in 0..200 {
            stream.count("a", n..n + 1).await;
        }
    };
    let getting = async {
        while got.len() < 200 {
            let next = tokio::time::timeout(Duration::from_micros(300), client.session.next());
            if let Ok(forebay_gateway::Item::Event { entry, .. }) = next.await {
                got.push(n(&entry.event().unwrap()));
            }
        }
    };
    within("200 events", async { tokio::join!(telling, getting) }).await;
    assert_eq!(got, range(0..200));
}

#[tokio::test]
async fn a_slow_client_is_ended_with_its_token_and_holds_up_nobody() {
    let stream = Stream::new().await;
    let hub = stream.hub_with(HubOptions::new().stall(Duration::from_millis(500))).await;
    let (mut slow, _) = Client::on(&hub, "a", StartFrom::Now).await;
    let (mut quick, _) = Client::on(&hub, "a", StartFrom::Now).await;
    stream.count("a", 0..10).await;
    assert_eq!(slow.numbers(3).await, [0, 1, 2]);
    // It has been given the third, and asks for no more.
    let handle = slow.session.handle();
    let ending = within("the end of the slow one", handle.ended());
    let (ended, got) = tokio::join!(ending, async { quick.numbers(10).await });
    assert_eq!((ended.reason, got), (EndReason::Slow, range(0..10)));
    assert_eq!(slow.end().await, ended);
    let refused = handle.subscribe(vec![Room::channel("b")], StartFrom::Now).await;
    assert!(matches!(refused, Err(SubscribeError::Ended { reason: EndReason::Slow })));
    let (mut again, subscribed) = Client::on(&hub, "a", StartFrom::After(ended.token)).await;
    assert!(subscribed.recovered);
    let first = again.numbers(1).await[0];
    assert_eq!(first, 2, "whether it had arrived is not known");
    assert_eq!(again.numbers(7).await, range(3..10));
}

#[tokio::test]
async fn a_client_that_waits_is_not_slow() {
    let stream = Stream::new().await;
    let hub = stream.hub_with(HubOptions::new().stall(Duration::from_millis(100))).await;
    let (mut slow, _) = Client::on(&hub, "slow", StartFrom::Now).await;
    let (mut idle, _) = Client::on(&hub, "idle", StartFrom::Now).await;
    stream.count("slow", 0..1).await;
    slow.numbers(1).await;
    // By the time that one is found to be slow, the other would have been too.
    let handle = slow.session.handle();
    let waiting = within("the slow one", handle.ended());
    tokio::select! {
        ended = waiting => assert_eq!(ended.reason, EndReason::Slow),
        other = idle.item() => panic!("nothing was told: {other:?}"),
    }
    stream.count("idle", 0..1).await;
    assert_eq!(idle.numbers(1).await, [0]);
}

#[tokio::test]
async fn what_was_dropped_leaves_nothing_behind() {
    let stream = Stream::new().await;
    let hub = stream.forgetful_hub().await;
    stream.count("a", 0..50).await;
    for _ in 0..50 {
        let (_gone, _) = Client::on(&hub, "a", StartFrom::Beginning).await;
    }
    eventually("nobody is left", async || {
        let status = hub.status();
        (status.sessions, status.readers, status.waiting) == (0, 0, 0)
    })
    .await;
}

#[tokio::test]
async fn a_hub_that_closes_tells_its_sessions() {
    let stream = Stream::new().await;
    let hub = stream.hub().await;
    let (mut client, subscribed) = Client::on(&hub, "a", StartFrom::Now).await;
    hub.close().await;
    let ended = client.end().await;
    assert_eq!((ended.reason, ended.token), (EndReason::GoingAway, subscribed.token));
    let mut late = hub.session(open_eyes());
    assert!(matches!(late.next().await, forebay_gateway::Item::Ended(_)));
}

#[tokio::test]
async fn without_a_broker_a_subscription_says_what_is_missing() {
    let config = Config::new("amqp://guest:guest@127.0.0.1:1/%2f").unwrap();
    let options = HubOptions::new().patience(Duration::from_millis(200));
    let hub = forebay_gateway::Hub::open(&config, options);
    assert!(hub.ready().is_err());
    let session = hub.session(open_eyes());
    let refused = session.handle().subscribe(vec![Room::channel("a")], StartFrom::Now).await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1"), "{error}");
}

#[tokio::test]
async fn without_the_stream_and_the_right_to_declare_it_the_hub_says_so() {
    let broker = broker().await;
    let config = broker.config().declare(forebay_producer::Declare::Never);
    let hub = forebay_gateway::Hub::open(&config, HubOptions::new());
    let error = within("a refusal", hub.opened()).await.unwrap_err().to_string();
    assert!(error.contains(&config.topology().events()), "{error}");
    assert!(!hub.ready().unwrap_err().is_empty());
}
