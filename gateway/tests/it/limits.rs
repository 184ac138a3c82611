//! What is too much, malformed, or from the wrong page; and that nobody else notices.

use forebay_gateway::Settings;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

use crate::support::{
    Client, Node, Open, SseStream, Transport, Ws, anonymous, client, open, open_with, token, within,
};

fn ada() -> String {
    token("ada", &json!({ "publish": ["note.*"], "read": ["channel:news"] }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_cannot_be_understood_closes_its_connection_with_a_reason_and_no_other() {
    let open = open_with(|settings| settings.limits.message = 1_000).await;
    open.tell_and_see("news", 0).await;
    let mut neighbour = Ws::connect(&open, &ada()).await.unwrap();
    neighbour.ask("subscribe", &json!({ "channel": "news" })).await.unwrap();
    let bad = |opcode, payload: &[u8]| {
        let header = FrameHeader { opcode, ..FrameHeader::default() };
        Message::Frame(Frame::from_payload(header, payload.to_vec().into()).header_masked())
    };
    for (message, code, words) in [
        (Message::text("{"), 4400, "no JSON object"),
        (Message::text("[]"), 4400, "no JSON object"),
        (Message::text(""), 4400, "no JSON object"),
        (Message::binary(vec![1, 2, 3]), 1003, "JSON, not binary"),
        (Message::text("x".repeat(2_000)), 1009, "1000 bytes"),
        (bad(OpCode::Data(Data::Text), &[0xff, 0xfe]), 1007, "UTF-8"),
        (bad(OpCode::Data(Data::Reserved(3)), b"x"), 1002, ""),
        (bad(OpCode::Data(Data::Continue), b"x"), 1002, ""),
    ] {
        let shown = format!("{message:?}");
        let mut ws = Ws::connect(&open, &ada()).await.unwrap();
        ws.send(message).await;
        let (closed, reason) = ws.frame().await.unwrap_err();
        assert_eq!(closed, code, "{shown}: {reason}");
        assert!(reason.contains(words), "{shown}: {reason}");
    }
    open.tell("news", 1).await;
    let frame = neighbour.frame().await.unwrap();
    assert_eq!(frame["event"]["data"], json!({ "n": 1 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_keeps_its_place_until_it_ends() {
    for of_one in [None, Some(2)] {
        let open = open_with(|settings| {
            settings.max_connections = if of_one.is_none() { 2 } else { 100 };
            settings.max_connections_per_address = of_one;
            settings.trusted_proxies.truncate(if of_one.is_none() { 2 } else { 0 });
        })
        .await;
        let one = Ws::connect(&open, &ada()).await.unwrap();
        let _other = Ws::connect(&open, &ada()).await.unwrap();
        // Who gets in is answered, if only that a token is missing.
        let answered = async || client().get(open.http("/jobs/none")).send().await.is_ok();
        assert!(!answered().await, "{of_one:?}: there are two already");
        drop(one);
        within("a place", async { while !answered().await {} }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_a_proxy_are_told_apart() {
    let open = open_with(|settings| {
        settings.anonymous = Some(anonymous(&["note.*"], &[]));
        settings.limits.requests_burst = 1;
        settings.limits.requests_per_second = 0.001;
    })
    .await;
    let ask = async |whom: &str| {
        let request = client().get(open.http("/jobs/none")).header("X-Forwarded-For", whom);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(ask("203.0.113.1").await, 404);
    assert_eq!(ask("203.0.113.1").await, 429);
    assert_eq!(ask("203.0.113.2").await, 404);
    assert_eq!(ask("203.0.113.3, 203.0.113.2").await, 429, "the left one may be anybody's word");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_here_does_not_let_a_page_in() {
    let open = open_with(|settings| {
        settings.anonymous = Some(anonymous(&["note.*"], &[]));
    })
    .await;
    let ask = async |host: &str| {
        let request = client().get(open.http("/jobs/none")).header("Host", host);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(ask("localhost:8090").await, 404);
    assert_eq!(ask("evil.example:8090").await, 403);
}

trait Masked {
    fn header_masked(self) -> Self;
}

impl Masked for Frame {
    fn header_masked(mut self) -> Self {
        self.header_mut().mask = Some([0; 4]);
        self
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_makes_no_sense_is_answered_and_the_connection_stays() {
    let open = open().await;
    let mut ws = Ws::connect(&open, &ada()).await.unwrap();
    for (verb, body, code) in [
        ("stop", json!({}), "unknown"),
        ("subscribe", json!({}), "bad_request"),
        ("subscribe", json!({ "job": "a", "from": "nonsense" }), "bad_request"),
        ("subscribe", json!({ "job": 7 }), "bad_request"),
        ("publish", json!({ "kind": "note.take" }), "bad_request"),
        ("job", json!({ "job": "a", "more": 1 }), "bad_request"),
        ("job", json!({ "job": "no-such" }), "not_found"),
    ] {
        let error = ws.ask(verb, &body).await.unwrap_err();
        assert_eq!(error["code"], code, "{error}");
    }
    ws.send(Message::text(r#"{"verb":7,"ref":{"mine":1}}"#)).await;
    let answer = ws.frame().await.unwrap();
    assert_eq!(
        (&answer["ref"], &answer["error"]["code"]),
        (&json!({ "mine": 1 }), &json!("bad_request"))
    );

    let mut node = Node::start(&open.http(""), "socket.io-client", "websocket").await;
    node.order(&json!(["connect", { "token": ada() }])).await;
    assert_eq!(node.next().await.0, "connect");
    for (event, body, code) in [
        ("stop", json!({}), "unknown"),
        ("publish", json!("text"), "bad_request"),
        ("subscribe", json!([]), "bad_request"),
        ("job", json!({ "job": "no-such" }), "not_found"),
    ] {
        assert_eq!(node.ask(event, &body).await.unwrap_err()["code"], code, "{event} {body}");
    }
    node.order(&json!(["binary"])).await;
    let (name, ack) = node.next().await;
    assert_eq!((name.as_str(), &ack["error"]["code"]), ("ack", &json!("bad_request")));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_over_socket_io_come_in_the_order_of_the_requests() {
    let open = open_with(|settings| settings.limits.messages_burst = 1_000).await;
    let mut node = Node::start(&open.http(""), "socket.io-client", "websocket").await;
    node.order(&json!(["connect", { "token": ada() }])).await;
    assert_eq!(node.next().await.0, "connect");
    node.order(&json!(["flood", 50, "publish", { "kind": "note.take", "payload": 1 }])).await;
    for n in 0..50 {
        assert_eq!(node.next().await, ("ack".to_owned(), json!(n)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_subscriptions_and_messages_are_limited_each_with_its_error() {
    let tight = |settings: &mut Settings| {
        settings.limits.connections = 2;
        settings.limits.subscriptions = 3;
        settings.limits.messages_per_second = 0.001;
        settings.limits.messages_burst = 4;
    };
    let open = open_with(tight).await;
    let mut one = Ws::connect(&open, &ada()).await.unwrap();
    let two = Ws::connect(&open, &ada()).await.unwrap();
    assert_eq!(Ws::connect(&open, &ada()).await.err(), Some(429));
    let refused = SseStream::open(&open.http("/events"), &ada(), &json!({ "job": "a" })).await;
    assert_eq!(refused.err().unwrap()["code"], "too_many");
    let mut node = Node::start(&open.http(""), "socket.io-client", "websocket").await;
    node.order(&json!(["connect", { "token": ada() }])).await;
    let (name, message) = node.next().await;
    assert_eq!(name, "connect_error");
    assert!(message.as_str().unwrap().starts_with("too_many: "), "{message}");
    let other = token("bob", &json!({}));
    assert!(Ws::connect(&open, &other).await.is_ok(), "others do not suffer");
    drop(two);
    let again = async { while Ws::connect(&open, &ada()).await.is_err() {} };
    crate::support::within("the place of one that left", again).await;

    one.ask("subscribe", &json!({ "job": ["a", "b"] })).await.unwrap();
    let many = one.ask("subscribe", &json!({ "job": ["c", "d"] })).await.unwrap_err();
    assert_eq!(many["code"], "too_many");
    one.ask("unsubscribe", &json!({ "job": "a" })).await.unwrap();
    one.ask("subscribe", &json!({ "job": ["c", "d"] })).await.unwrap();
    let hasty = one.ask("job", &json!({ "job": "a" })).await.unwrap_err();
    assert_eq!(hasty["code"], "rate_limited");
    assert!(hasty["retry_after_ms"].as_u64().unwrap() > 1_000, "{hasty}");
    for _ in 1..99 {
        assert_eq!(
            one.ask("job", &json!({ "job": "a" })).await.unwrap_err()["code"],
            "rate_limited"
        );
    }
    one.send(Message::text(r#"{"verb":"job","job":"a"}"#)).await;
    let mut frames = Vec::new();
    let closed = loop {
        match one.frame().await {
            Ok(frame) => frames.push(frame),
            Err(closed) => break closed,
        }
    };
    assert_eq!(closed, (4429, "rate_limited".to_owned()), "{frames:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_publishes_and_asks_so_often_and_is_told_when_to_come_again() {
    let open = open_with(|settings| {
        settings.limits.publishes_per_second = 0.001;
        settings.limits.publishes_burst = 2;
        settings.limits.requests_per_second = 0.001;
        settings.limits.requests_burst = 4;
    })
    .await;
    let post = || {
        let body = json!({ "kind": "note.take", "payload": 1 }).to_string();
        client().post(open.http("/jobs")).bearer_auth(ada()).body(body).send()
    };
    for status in [202, 202, 429] {
        assert_eq!(post().await.unwrap().status(), status);
    }
    let bob = client().get(open.http("/jobs/a")).bearer_auth(token("bob", &json!({})));
    assert_eq!(bob.send().await.unwrap().status(), 404, "others do not suffer");
    assert_eq!(post().await.unwrap().status(), 429);
    let get = client().get(open.http("/jobs/a")).bearer_auth(ada()).send().await.unwrap();
    assert_eq!(get.status(), 429);
    assert!(get.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 1);
}

async fn ticket(open: &Open) -> String {
    let answer = client().post(open.http("/ticket")).bearer_auth(ada()).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["expires_in"], 30);
    answer["ticket"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_lets_in_once_wherever_a_browser_cannot_send_headers() {
    let open = open().await;
    open.tell("news", 1).await;
    let used = ticket(&open).await;
    let wish = json!({ "channel": "news", "from": "beginning", "ticket": used });
    let mut sse = SseStream::open(&open.http("/events"), "", &wish).await.unwrap();
    assert_eq!(sse.next().await.0, "subscribed");
    assert_eq!(sse.next().await.2["subject"], "news");
    let again = SseStream::open(&open.http("/events"), "", &wish).await.err().unwrap();
    assert_eq!(again["code"], "unauthenticated");

    let address = |ticket: &str| format!("ws://{}/ws?ticket={ticket}", open.address);
    let used = ticket(&open).await;
    let mut ws = Ws::with(address(&used)).await.unwrap();
    ws.ask("subscribe", &json!({ "channel": "news" })).await.unwrap();
    assert_eq!(Ws::with(address(&used)).await.err(), Some(401));
    let mut node = Node::start(&open.http(""), "socket.io-client", "websocket").await;
    node.order(&json!(["connect", { "ticket": ticket(&open).await }])).await;
    assert_eq!(node.next().await.0, "connect");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_are_turned_away_and_those_of_the_list_may_read_answers() {
    let open = open_with(|settings| {
        settings.origins = Some(vec!["https://app.example.org".to_owned()]);
    })
    .await;
    let get = |path: &str, origin: &str| {
        client().get(open.http(path)).bearer_auth(ada()).header("origin", origin).send()
    };
    for path in
        ["/jobs/a", "/events?job=a", "/ws", "/socket.io/?EIO=4&transport=polling", "/nothing"]
    {
        let refused = get(path, "https://evil.example").await.unwrap();
        assert_eq!(refused.status(), 403, "{path}");
        assert!(!refused.headers().contains_key("access-control-allow-origin"));
    }
    let mut request = format!("ws://{}/ws", open.address).into_client_request().unwrap();
    request.headers_mut().insert("origin", "https://evil.example".parse().unwrap());
    assert_eq!(Ws::with(request).await.err(), Some(403));
    let good = get("/socket.io/?EIO=4&transport=polling", "https://app.example.org").await.unwrap();
    assert_eq!(good.status(), 200);
    assert_eq!(good.headers()["access-control-allow-origin"], "https://app.example.org");
    let asked = client()
        .request(reqwest::Method::OPTIONS, open.http("/jobs"))
        .header("origin", "https://app.example.org")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type")
        .send();
    let asked = asked.await.unwrap();
    assert_eq!(asked.status(), 200);
    let allowed = asked.headers()["access-control-allow-headers"].to_str().unwrap().to_owned();
    assert!(allowed.contains("authorization") && allowed.contains("last-event-id"), "{allowed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn those_without_a_token_may_what_is_said_and_no_more() {
    let open = open_with(|settings| {
        settings.anonymous = Some(anonymous(&["note.*"], &["channel:public"]));
    })
    .await;
    open.tell("public", 1).await;
    for transport in [Transport::WebSocket, Transport::Sse] {
        let mut nobody = Client::connect(&open, transport, "").await;
        nobody.subscribe(&json!({ "channel": "public", "from": "beginning" })).await.unwrap();
        assert_eq!(nobody.event().await.0["subject"], "public");
        let mut nobody = Client::connect(&open, transport, "").await;
        let refused = nobody.subscribe(&json!({ "channel": "news" })).await.unwrap_err();
        assert_eq!(refused["code"], "forbidden");
    }
    let body = json!({ "kind": "note.take", "payload": 1 }).to_string();
    let published = client().post(open.http("/jobs")).body(body).send().await.unwrap();
    assert_eq!(published.status(), 202);
    let wrong = client().get(open.http("/jobs/a")).bearer_auth("x.y.z").send().await.unwrap();
    assert_eq!(wrong.status(), 401, "a token that does not hold is not ignored");
}
