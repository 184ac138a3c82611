//! What the broker does to clients: the stream is made anew, its oldest events are gone, nobody may
//! read it, the broker is full. They are told, or it is mended without their noticing.

use std::time::Duration;

use forebay_producer::testing::{OwnBroker, broker, broker_of_its_own};
use forebay_producer::{EventLog, Retention};
use lapin::options::QueueDeleteOptions;
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};

use crate::support::{
    ALL, Client, Open, SseStream, Transport, Ws, client, open, open_on, token, within,
};

fn ada() -> String {
    token("ada", &json!({ "publish": ["note.*"], "read": ["channel:news"] }))
}

async fn delete_stream(open: &Open) {
    let properties = ConnectionProperties::default();
    let connection = Connection::connect(open.broker.url(), properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let stream = open.broker.config().topology().events();
    channel.queue_delete(stream.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
}

/// The page of a gateway about itself, once it is so.
async fn page_says(open: &Open, page: &str, so: impl Fn(u16, &str) -> bool) {
    let address = format!("http://{}/{page}", open.operation);
    let asking = async {
        loop {
            let answer = client().get(&address).send().await.unwrap();
            let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
            if so(status, &text) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("the page says so", asking).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_is_told_to_those_who_are_there_and_to_those_who_come_back() {
    let open = open().await;
    open.tell_and_see("news", 0).await;
    let mut here = Vec::new();
    for transport in ALL {
        let mut client = Client::connect(&open, transport, &ada()).await;
        client.subscribe(&json!({ "channel": "news", "from": "beginning" })).await.unwrap();
        let (_, token) = client.event().await;
        here.push((transport, client, token));
    }
    delete_stream(&open).await;
    for n in 100..103 {
        open.tell("news", n).await;
    }
    for (transport, mut client, token) in here {
        let (name, gap) = client.news().await;
        assert_eq!((name.as_str(), &gap["reason"]), ("gap", &json!("recreated")), "{transport:?}");
        for n in 100..103 {
            assert_eq!(client.event().await.0["data"]["n"], n, "{transport:?}");
        }
        let mut client = Client::connect(&open, transport, &ada()).await;
        let joined = client.subscribe(&json!({ "channel": "news", "from": token })).await.unwrap();
        assert_eq!(
            (&joined["recovered"], &joined["reason"]),
            (&json!(false), &json!("recreated")),
            "{transport:?}"
        );
        for n in 100..103 {
            assert_eq!(client.event().await.0["data"]["n"], n, "{transport:?}");
        }
    }
}

/// A gateway with little memory on a stream that keeps little.
async fn forgetful(max_bytes: u64) -> Open {
    let broker = broker().await;
    let mut kept = Retention::default();
    (kept.max_bytes, kept.segment_bytes) = (max_bytes, max_bytes / 2);
    let log = EventLog::new(&broker.config().retention(kept));
    log.declare().await.unwrap();
    log.close().await;
    open_on(broker, |settings| {
        settings.replay.window_bytes = 100_000;
        settings.limits.slow = Duration::from_secs(60);
    })
}

/// One after the other: those that are told at once have no order.
async fn tell_large(open: &Open, numbers: std::ops::Range<u64>, size: usize) {
    let filler = "x".repeat(size);
    for n in numbers {
        let told = open.producer.emit("news", "told", &json!({ "n": n, "filler": filler })).await;
        told.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_after_its_place_was_let_go_is_told_and_gets_all_that_is_kept() {
    let open = forgetful(40_000).await;
    open.tell_and_see("news", 0).await;
    let mut tokens = Vec::new();
    for transport in ALL {
        let mut client = Client::connect(&open, transport, &ada()).await;
        client.subscribe(&json!({ "channel": "news", "from": "beginning" })).await.unwrap();
        tokens.push((transport, client.event().await.1));
    }
    for first in (1..101).step_by(10) {
        tell_large(&open, first..first + 10, 2_000).await;
    }
    for (transport, token) in tokens {
        let mut client = Client::connect(&open, transport, &ada()).await;
        let joined = client.subscribe(&json!({ "channel": "news", "from": token })).await.unwrap();
        assert_eq!(
            (&joined["recovered"], &joined["reason"]),
            (&json!(false), &json!("retention")),
            "{transport:?}"
        );
        let first = client.event().await.0["data"]["n"].as_u64().unwrap();
        assert!(first > 1, "{first}");
        for n in first + 1..101 {
            assert_eq!(client.event().await.0["data"]["n"], n, "{transport:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_retention_overtakes_is_told_where_events_are_missing() {
    let open = forgetful(1_000_000).await;
    open.tell_and_see("news", 0).await;
    let mut clients = Vec::new();
    for transport in [Transport::WebSocket, Transport::Sse] {
        let mut client = Client::connect(&open, transport, &ada()).await;
        client.subscribe(&json!({ "channel": "news" })).await.unwrap();
        clients.push((transport, client));
    }
    // More than fits on the way to those who read nothing meanwhile.
    let last = 800;
    tell_large(&open, 1..last + 1, 30_000).await;
    for (transport, mut client) in clients {
        let (mut next, mut gaps) = (1, 0);
        while next <= last {
            match client.news().await {
                (name, gap) if name == "gap" => {
                    assert_eq!(gap["reason"], "retention", "{transport:?}");
                    gaps += 1;
                }
                (_, told) => {
                    let n = told["event"]["data"]["n"].as_u64().unwrap();
                    assert!(n == next || gaps > 0 && n > next, "{transport:?}: {n} after {next}");
                    if n > next {
                        gaps -= 1;
                    }
                    next = n + 1;
                }
            }
        }
    }
}

async fn gateway_on(own: &OwnBroker, user: &str) -> Open {
    let url = own.url().replace("guest:guest", user);
    open_on(own.broker(), |settings| {
        settings.broker.url = Some(url);
        settings.publish.deadline = Duration::from_secs(1);
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_read_events_it_says_so_and_begins_when_it_has_it() {
    let own = broker_of_its_own("").await;
    own.ctl(&["add_user", "gateway", "pw"]).await;
    own.ctl(&["set_permissions", "gateway", "^$", ".*", "^$"]).await;
    let open = gateway_on(&own, "gateway:pw").await;
    let log = EventLog::new(&open.broker.config());
    log.declare().await.unwrap();
    let stream = open.broker.config().topology().events();
    page_says(&open, "readyz", |status, text| {
        status == 503 && text.contains("events: ") && text.contains(&stream)
    })
    .await;
    page_says(&open, "livez", |status, _| status == 200).await;
    let mut ws = Ws::connect(&open, &ada()).await.unwrap();
    let refused = ws.ask("subscribe", &json!({ "channel": "news" })).await.unwrap_err();
    assert_eq!(refused["code"], "unavailable");
    own.ctl(&["set_permissions", "gateway", "^$", ".*", ".*"]).await;
    page_says(&open, "readyz", |status, _| status == 200).await;
    ws.ask("subscribe", &json!({ "channel": "news" })).await.unwrap();
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_broker_takes_nothing_publishing_is_refused_in_time_and_events_are_read() {
    let own = broker_of_its_own("").await;
    let open = gateway_on(&own, "guest:guest").await;
    open.tell_and_see("news", 0).await;
    let post = async || {
        let body = json!({ "kind": "note.take", "payload": 1 }).to_string();
        let request = client().post(open.http("/jobs")).bearer_auth(ada()).body(body);
        let answer = within("an answer", request.send()).await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    assert_eq!(post().await.0, 202);
    own.ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"]).await;
    for _ in 0..2 {
        let (status, refused) = post().await;
        let code = refused["error"]["code"].as_str().unwrap_or_default();
        assert!(matches!((status, code), (503, "unavailable") | (504, "unconfirmed")), "{refused}");
    }
    let wish = json!({ "channel": "news", "from": "beginning" });
    let mut sse = SseStream::open(&open.http("/events"), &ada(), &wish).await.unwrap();
    assert_eq!(sse.next().await.0, "subscribed");
    assert_eq!(sse.next().await.2["data"]["n"], 0);
    own.ctl(&["set_vm_memory_high_watermark", "0.6"]).await;
    let again = async { while post().await.0 != 202 {} };
    within("a publish that is confirmed", again).await;
}
