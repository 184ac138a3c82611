//! Socket.IO clients that are not as stock ones are.

use std::time::Duration;

use forebay_gateway::Settings;
use futures_util::SinkExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;

use crate::polling::{POLLING, Polls};
use crate::support::{Node, Raw, Ws, client, open, open_with, token, within};

fn ada() -> String {
    token("ada", &json!({ "publish": ["note.*"], "read": ["channel:*"] }))
}

/// A broker that is not there: a publish waits for it, and what is asked for after it waits too.
fn away(settings: &mut Settings) {
    settings.broker.url = Some("amqp://127.0.0.1:1".to_owned());
    settings.publish.deadline = Duration::from_secs(5);
}

const WAITS: &str = r#"["publish",{"kind":"note.take","payload":1}]"#;

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_written_with_escapes_are_keys() {
    let open = open().await;
    // json.dumps writes whatever is not ASCII as an escape.
    let mut python = Node::start(&open.http(""), "python", "websocket").await;
    python.order(&json!(["connect", { "token": ada() }])).await;
    assert_eq!(python.next().await.0, "connect");
    let payload = json!({ "größe": 1, "in": [{ "straße": { "ü": 2 } }] });
    python.ask("publish", &json!({ "kind": "note.take", "payload": payload })).await.unwrap();

    let mut raw = Raw::connect(&open, &ada()).await;
    raw.send(r#"427["publish",{"kind":"note.take","payload":{"gr\u00f6\u00dfe":1e999}}]"#).await;
    let (number, ack) = raw.ack().await;
    assert_eq!(number, 7);
    assert!(ack["ok"]["job"].is_string(), "{ack}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_are_bounded_in_bytes() {
    let open = open_with(|settings| {
        away(settings);
        settings.limits.message = 10_000;
    })
    .await;
    let mut raw = Raw::connect(&open, &ada()).await;
    raw.send(&format!("421{WAITS}")).await;
    let large = json!(["job", { "job": "x".repeat(9_500) }]);
    for number in 2..=4 {
        raw.send(&format!("42{number}{large}")).await;
    }
    let (number, ack) = raw.ack().await;
    assert_eq!((number, &ack["error"]["code"]), (4, &json!("too_many")), "{ack}");
    assert!(ack["error"]["message"].as_str().unwrap().contains("20000 bytes"), "{ack}");
    for (number, code) in [(1, "unavailable"), (2, "bad_request"), (3, "bad_request")] {
        let (answered, ack) = raw.ack().await;
        assert_eq!((answered, &ack["error"]["code"]), (number, &json!(code)), "{ack}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_floods_with_whatever_it_is_and_does_not_listen_is_sent_away() {
    let open = open_with(|settings| {
        away(settings);
        settings.limits.messages_per_second = 0.001;
        settings.limits.messages_burst = 300;
    })
    .await;
    // Unknown events, more than may come; and known ones, more than may wait.
    let unknown = vec![r#"42["nothing",1]"#; 400];
    let known = [vec![WAITS], vec![r#"["job",{"job":"a"}]"#; 164]].concat();
    let known: Vec<_> = known.iter().map(|packet| format!("42{packet}")).collect();
    for flood in [unknown, known.iter().map(String::as_str).collect()] {
        let mut raw = Raw::connect(&open, &ada()).await;
        for packet in flood {
            raw.send(packet).await;
        }
        let bye = raw.next().await.unwrap();
        assert!(bye.starts_with(r#"42["bye",{"reason":"rate_limited""#), "{bye}");
        assert_eq!(raw.next().await.as_deref(), Some("41"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_while_it_comes_leaves_no_seat_taken() {
    const SEATS: usize = 8;
    let open = open_with(|settings| {
        settings.limits.connections = SEATS;
        settings.limits.requests_burst = 1_000_000;
    })
    .await;
    let (open, ada) = (&open, &ada());
    let come_and_go = |n: usize| async move {
        let mut raw = Raw::open(open).await.unwrap();
        raw.send(&format!("40{}", json!({ "token": ada }))).await;
        if !n.is_multiple_of(3) {
            // Nobody reads whether it was let in.
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..400))).await;
            _ = raw.ws.socket.send(Message::text("41")).await;
        }
        if n.is_multiple_of(2) {
            _ = raw.ws.socket.close(None).await;
        }
    };
    for _ in 0..100 {
        join_all((0..SEATS).map(come_and_go)).await;
    }
    let all_seats = async {
        loop {
            let mut there = Vec::new();
            for _ in 0..SEATS {
                let mut raw = Raw::open(open).await.unwrap();
                if raw.enter(ada).await.starts_with("40") {
                    there.push(raw);
                }
            }
            if there.len() == SEATS {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    within("free seats", all_seats).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_have_shown_nothing_are_few() {
    let open = open_with(|settings| settings.max_connections_per_address = Some(3)).await;
    let begin = async |address: &str| {
        let request = client().get(open.http(POLLING)).header("x-forwarded-for", address);
        request.send().await.unwrap()
    };
    let websocket = async |address: &'static str| {
        let request = format!("ws://{}/socket.io/?EIO=4&transport=websocket", open.address);
        let mut request = request.into_client_request().unwrap();
        request.headers_mut().insert("x-forwarded-for", HeaderValue::from_static(address));
        Ws::with(request).await
    };
    let (ada, bob) = ("198.51.100.1", "198.51.100.2");
    for _ in 0..3 {
        assert_eq!(begin(ada).await.status(), 200);
    }
    let refused = begin(ada).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (429, &"1".parse().unwrap())
    );
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["error"]["code"], "too_many");
    assert_eq!(begin(bob).await.status(), 200, "others do not suffer");
    // Those who were let in are not of them.
    let mut there = Vec::new();
    for _ in 0..5 {
        let mut raw = Raw { ws: websocket(bob).await.unwrap() };
        assert!(raw.next().await.unwrap().starts_with("0{"));
        assert!(raw.enter(&self::ada()).await.starts_with("40"));
        there.push(raw);
    }
    // Who shows nothing does not stay.
    assert_eq!(websocket(ada).await.err(), Some(429), "a WebSocket is no way around");
    let again = async {
        while begin(ada).await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    within("the place of one that showed nothing", again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_or_is_sent_away_keeps_no_connection() {
    let open = open_with(|settings| {
        settings.limits.messages_per_second = 0.001;
        settings.limits.messages_burst = 1;
        settings.limits.requests_per_second = 0.001;
        settings.limits.requests_burst = 4;
    })
    .await;
    let mut left = Raw::connect(&open, &ada()).await;
    left.send("41").await;
    assert_eq!(left.next().await, None);
    let mut hasty = Raw::connect(&open, &ada()).await;
    for _ in 0..101 {
        hasty.send(r#"42["nothing"]"#).await;
    }
    assert!(hasty.next().await.unwrap().contains("rate_limited"));
    assert_eq!(hasty.next().await.as_deref(), Some("41"));
    assert_eq!(hasty.next().await, None);

    let polls = Polls::begin(&open).await;
    polls.enter().await;
    polls.send("41").await;
    let end = async { while polls.next().await.is_some() {} };
    within("the end of a session that polls", end).await;

    // To connect counts as a request: these were three.
    Raw::connect(&open, &ada()).await;
    let refused = Raw::open(&open).await.unwrap().enter(&ada()).await;
    assert!(refused.starts_with(r#"44{"message":"rate_limited: "#), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_nothing_is_sent_away_before_many_large_events_wait_for_it() {
    let open = open_with(|settings| {
        settings.limits.slow = Duration::from_secs(1);
        settings.limits.connections = 1;
        settings.limits.requests_burst = 1_000_000;
    })
    .await;
    let large = "x".repeat(60_000);
    for _ in 0..20 {
        open.producer.emit("news", "told", &large).await.unwrap();
    }
    let polls = Polls::begin(&open).await;
    polls.send(&format!("40{}", json!({ "token": ada() }))).await;
    polls.send(r#"42["subscribe",{"channel":"news","from":"beginning"}]"#).await;
    // It says that it is there, and takes nothing: twenty events are far from what the library keeps.
    let seat = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            polls.try_send("3").await;
            let mut next = Raw::open(&open).await.unwrap();
            if next.enter(&ada()).await.starts_with("40") {
                return;
            }
        }
    };
    within("the seat of who takes nothing", seat).await;
}
