//! From a client's wish to a job on its queue, and back.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Open, SOCKET_IO, Transport, Ws, client, open, open_with, token};

fn ada() -> String {
    token("ada", &json!({ "publish": ["note.*"] }))
}

async fn post(open: &Open, token: &str, body: &Value) -> (u16, Value) {
    let request = client().post(open.http("/jobs")).bearer_auth(token);
    let answer = request.body(body.to_string()).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Messages on a queue.
async fn on(open: &Open, queue: &str) -> u32 {
    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(open.broker.url(), properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
    let name = format!("{}.{queue}", open.broker.namespace());
    let looked = channel.queue_declare(name.into(), options, Default::default()).await;
    looked.unwrap().message_count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_published_over_every_transport_and_followed_from_its_token_on() {
    let open = open().await;
    let wish = json!({ "kind": "note.take", "payload": { "n": 1 } });
    for transport in [Transport::WebSocket, SOCKET_IO] {
        let mut client = Client::connect(&open, transport, &ada()).await;
        let published = match &mut client {
            Client::WebSocket(ws) => ws.ask("publish", &wish).await.unwrap(),
            Client::SocketIo(node) => node.ask("publish", &wish).await.unwrap(),
            Client::Sse { .. } => unreachable!("it publishes nothing"),
        };
        follow(&mut client, &published).await;
    }
    let (status, published) = post(&open, &ada(), &wish).await;
    assert_eq!((status, &published["queue"]), (202, &json!("default")));
    let mut client = Client::connect(&open, Transport::Sse, &ada()).await;
    follow(&mut client, &published).await;
    assert_eq!(on(&open, "default").await, 3);
}

/// What is published after the job can be missed by nobody who has the answer's token.
async fn follow(client: &mut Client, published: &Value) {
    let wish = json!({ "job": published["job"], "from": published["token"] });
    assert_eq!(client.subscribe(&wish).await.unwrap()["recovered"], true);
    let (event, _) = client.event().await;
    assert_eq!(
        (&event["type"], &event["subject"]),
        (&json!("forebay.job.queued"), &published["job"])
    );
    assert_eq!(event["owner"], "ada");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_publishes_once_however_often_and_by_whom_it_is_asked_for() {
    let open = open().await;
    let wish = json!({ "kind": "note.take", "payload": 1, "options": { "key": "order-7" } });
    let mut one = Ws::connect(&open, &ada()).await.unwrap();
    let first = one.ask("publish", &wish).await.unwrap();
    assert_eq!(first["repeated"], Value::Null);
    let again = one.ask("publish", &wish).await.unwrap();
    assert_eq!((&again["job"], &again["repeated"]), (&first["job"], &json!(true)));
    let (_, over_http) = post(&open, &ada(), &wish).await;
    assert_eq!((&over_http["job"], &over_http["repeated"]), (&first["job"], &json!(true)));

    let together = json!({ "kind": "note.take", "payload": 1, "options": { "key": "order-8" } });
    let ada_s = ada();
    let tries = (0..10).map(|_| post(&open, &ada_s, &together));
    let answers = futures_util::future::join_all(tries).await;
    let fresh = answers.iter().filter(|(_, answer)| answer["repeated"].is_null()).count();
    assert_eq!(fresh, 1, "{answers:?}");
    let bob = token("bob", &json!({ "publish": ["note.*"] }));
    let (_, of_bob) = post(&open, &bob, &wish).await;
    assert_ne!(of_bob["job"], first["job"], "a key is its owner's");
    assert_eq!(on(&open, "default").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_gateway_knows_a_key_from_the_stream() {
    let first = open().await;
    let wish = json!({ "kind": "note.take", "payload": 1, "options": { "key": "k" } });
    let (_, published) = post(&first, &ada(), &wish).await;
    let namespace = first.broker.namespace().to_owned();
    let second = open_with(|settings| settings.broker.namespace = Some(namespace)).await;
    // It has read what came before when it says so.
    let ready = async {
        while client()
            .get(format!("http://{}/readyz", second.operation))
            .send()
            .await
            .unwrap()
            .status()
            != 200
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    crate::support::within("ready", ready).await;
    let (_, again) = post(&second, &ada(), &wish).await;
    assert_eq!((&again["job"], &again["repeated"]), (&published["job"], &json!(true)));
    let mut client = Client::connect(&second, Transport::WebSocket, &ada()).await;
    follow(&mut client, &again).await;
    assert_eq!(on(&first, "default").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_published_is_refused_with_code_and_remedy() {
    let open = open_with(|settings| settings.limits.message = 1_000).await;
    let large = "x".repeat(2_000);
    for (body, status, code) in [
        (json!({ "kind": "mail.send", "payload": 1 }), 403, "forbidden"),
        (json!({ "kind": "note.take" }), 400, "bad_request"),
        (
            json!({ "kind": "note.take", "payload": 1, "options": { "queue": "other" } }),
            403,
            "forbidden",
        ),
        (
            json!({ "kind": "note.take", "payload": 1, "options": { "delay_ms": 1e12 } }),
            400,
            "bad_request",
        ),
        (json!({ "kind": "note.take", "payload": large }), 413, "too_large"),
        (json!([1]), 400, "bad_request"),
    ] {
        let (found, answer) = post(&open, &ada(), &body).await;
        assert_eq!((found, &answer["error"]["code"]), (status, &json!(code)), "{answer}");
        assert!(answer["error"]["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()));
    }
    let missing = client().get(open.http("/nothing")).send().await.unwrap();
    assert_eq!(missing.status(), 404);
    let method = client().put(open.http("/jobs")).send().await.unwrap();
    assert_eq!(method.status(), 405);
    assert_eq!(method.headers()["allow"], "POST");
    let openapi: Value =
        client().get(open.http("/openapi.json")).send().await.unwrap().json().await.unwrap();
    assert_eq!(openapi["openapi"], "3.1.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_goes_to_the_queue_of_its_route() {
    let open = open_with(|settings| {
        settings.publish.routes.insert("note.*".to_owned(), "notes".to_owned());
        settings.publish.queues = vec!["other".to_owned()];
    })
    .await;
    let (_, published) = post(&open, &ada(), &json!({ "kind": "note.take", "payload": 1 })).await;
    assert_eq!(published["queue"], "notes");
    let named = json!({ "kind": "note.take", "payload": 1, "options": { "queue": "other" } });
    assert_eq!(post(&open, &ada(), &named).await.1["queue"], "other");
    assert_eq!((on(&open, "notes").await, on(&open, "other").await), (1, 1));
}
