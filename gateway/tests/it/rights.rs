//! Who sees what: own, other and administrator × job, kind and channel × every transport, and GET.

use forebay_producer::EventKind;
use serde_json::{Value, json};

use crate::support::{ALL, Client, Open, Stage, Transport, client, open, token};

/// Ada's job, Bob's, one of nobody; channel `news`, which Ada alone may read.
async fn scene() -> (Open, Stage) {
    let open = open().await;
    open.tell("warm-up", 0).await;
    let stage = Stage::of(&open);
    for (job, owner) in [("of-ada", Some("ada")), ("of-nobody", None), ("of-bob", Some("bob"))] {
        stage.happened(EventKind::Started, job, "note.take", owner).await;
    }
    open.tell("news", 1).await;
    (open, stage)
}

fn ada() -> String {
    token("ada", &json!({ "read": ["kind:note.*", "channel:news"] }))
}

fn bob() -> String {
    token("bob", &json!({ "read": ["kind:note.*", "channel:other"] }))
}

fn stranger() -> String {
    token("eve", &json!({}))
}

fn root() -> String {
    token("root", &json!({ "admin": true }))
}

async fn subjects(client: &mut Client, count: usize) -> Vec<String> {
    let mut seen = Vec::new();
    for _ in 0..count {
        let (event, token) = client.event().await;
        assert!(token.contains(event["id"].as_str().unwrap()), "{event} {token}");
        seen.push(event["subject"].as_str().unwrap().to_owned());
    }
    seen
}

/// What somebody sees of all jobs of the kind, up to the end: the last event, which all may see.
async fn seen(open: &Open, transport: Transport, token: &str, wish: Value) -> Vec<String> {
    let mut client = Client::connect(open, transport, token).await;
    let joined = client.subscribe(&wish).await.unwrap();
    assert_eq!((&joined["recovered"], &joined["reason"]), (&json!(true), &Value::Null));
    let mut all = Vec::new();
    loop {
        let subject = subjects(&mut client, 1).await.remove(0);
        if subject == "end" {
            return all;
        }
        all.push(subject);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn own_jobs_are_seen_others_are_not_and_an_administrator_sees_all() {
    let (open, stage) = scene().await;
    // The last of all, once for each: so that "saw nothing" is told from "has not seen it yet".
    for owner in ["ada", "bob", "root", "eve"] {
        stage.happened(EventKind::Started, "end", "note.take", Some(owner)).await;
    }
    let jobs = || json!({ "job": ["of-ada", "of-bob", "of-nobody", "end"], "from": "beginning" });
    let kind = || json!({ "kind": "note.take", "from": "beginning" });
    let all = ["of-ada", "of-nobody", "of-bob"];
    for transport in ALL {
        assert_eq!(seen(&open, transport, &ada(), jobs()).await, ["of-ada"], "{transport:?}");
        assert_eq!(seen(&open, transport, &ada(), kind()).await, ["of-ada"], "{transport:?}");
        assert_eq!(seen(&open, transport, &bob(), jobs()).await, ["of-bob"], "{transport:?}");
        assert_eq!(seen(&open, transport, &bob(), kind()).await, ["of-bob"], "{transport:?}");
        let nothing = seen(&open, transport, &stranger(), jobs()).await;
        assert_eq!(nothing, Vec::<String>::new(), "{transport:?}");
        assert_eq!(seen(&open, transport, &root(), jobs()).await, all, "{transport:?}");
        assert_eq!(seen(&open, transport, &root(), kind()).await, all, "{transport:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_and_channels_are_followed_by_those_to_whom_they_are_granted() {
    let (open, _stage) = scene().await;
    for transport in ALL {
        for (who, wish, allowed) in [
            (ada(), json!({ "channel": "news", "from": "beginning" }), true),
            (root(), json!({ "channel": "news", "from": "beginning" }), true),
            (bob(), json!({ "channel": "news", "from": "beginning" }), false),
            (stranger(), json!({ "channel": "news", "from": "beginning" }), false),
            (stranger(), json!({ "kind": "note.take" }), false),
            (ada(), json!({ "kind": "mail.send" }), false),
            // One that is not allowed spoils all: no half of a wish is granted.
            (ada(), json!({ "job": "of-ada", "channel": "other" }), false),
        ] {
            let mut client = Client::connect(&open, transport, &who).await;
            match client.subscribe(&wish).await {
                Ok(_) => {
                    assert!(allowed, "{transport:?} {wish}");
                    let (event, _) = client.event().await;
                    assert_eq!(event["subject"], "news");
                    assert_eq!(
                        (&event["event"], &event["data"]),
                        (&json!("told"), &json!({ "n": 1 }))
                    );
                }
                Err(error) => {
                    assert!(!allowed, "{transport:?} {wish}: {error}");
                    assert_eq!(error["code"], "forbidden");
                    assert!(error["remedy"].as_str().unwrap().contains("`read`"), "{error}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_looked_at_by_its_owner_and_by_an_administrator() {
    let (open, _stage) = scene().await;
    for (who, job, status) in [
        (ada(), "of-ada", 200),
        (ada(), "of-bob", 404),
        (ada(), "of-nobody", 404),
        (ada(), "no-such", 404),
        (bob(), "of-ada", 404),
        (stranger(), "of-ada", 404),
        (root(), "of-ada", 200),
        (root(), "of-nobody", 200),
        (String::new(), "of-ada", 401),
        ("x.y.z".to_owned(), "of-ada", 401),
    ] {
        let mut request = client().get(open.http(&format!("/jobs/{job}")));
        if !who.is_empty() {
            request = request.bearer_auth(&who);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{job}");
        let body: Value = answer.json().await.unwrap();
        if status == 200 {
            assert_eq!((&body["job"], &body["state"]), (&json!(job), &json!("started")));
            assert_eq!(body["owner"], Value::Null, "whose it is stays here");
        } else {
            let error = &body["error"];
            assert!(error["code"].is_string() && error["remedy"].is_string(), "{body}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_nobody_comes_in() {
    let (open, _stage) = scene().await;
    for path in ["/events?job=a", "/ws", "/jobs/a"] {
        assert_eq!(client().get(open.http(path)).send().await.unwrap().status(), 401, "{path}");
    }
    for path in ["/jobs", "/ticket"] {
        assert_eq!(client().post(open.http(path)).send().await.unwrap().status(), 401, "{path}");
    }
    let mut node =
        crate::support::Node::start(&open.http(""), "socket.io-client", "websocket").await;
    node.order(&json!(["connect", {}])).await;
    let (name, message) = node.next().await;
    assert_eq!(name, "connect_error");
    assert!(
        message.as_str().unwrap().starts_with("unauthenticated: no token was shown"),
        "{message}"
    );
}
