//! How it ends: the gateway, a token, a connection; and what a client finds when it comes back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_gateway::Settings;
use forebay_producer::testing::Authority;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{
    ALL, Client, Node, Transport, client, open, open_with, signed, token, within,
};

fn ada() -> String {
    token("ada", &json!({ "publish": ["note.*"], "read": ["channel:news"] }))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_that_the_gateway_ends_and_miss_nothing_with_the_next() {
    let mut first = open().await;
    first.tell("news", 0).await;
    let mut clients = Vec::new();
    for transport in ALL {
        let mut client = Client::connect(&first, transport, &ada()).await;
        client.subscribe(&json!({ "channel": "news", "from": "beginning" })).await.unwrap();
        assert_eq!(client.event().await.0["data"]["n"], 0);
        clients.push((transport, client));
    }
    let ended = first.close();
    let told = async {
        let mut tokens = Vec::new();
        for (transport, mut client) in clients {
            let (name, bye) = client.news().await;
            assert_eq!(
                (name.as_str(), &bye["reason"]),
                ("bye", &json!("going_away")),
                "{transport:?}"
            );
            let (name, how) = client.news().await;
            match transport {
                Transport::WebSocket => assert_eq!(how["code"], 1012),
                Transport::Sse => assert_eq!(name, "close"),
                // With this reason the stock client connects again by itself.
                Transport::SocketIo { .. } => {
                    assert_eq!((name.as_str(), how), ("disconnect", json!("transport close")))
                }
            }
            tokens.push((transport, bye["token"].as_str().unwrap().to_owned()));
        }
        tokens
    };
    let (finished, tokens) = tokio::join!(ended, told);
    assert!(finished, "nobody had to be cut off");

    first.tell("news", 1).await;
    let namespace = first.broker.namespace().to_owned();
    let second = open_with(|settings| settings.broker.namespace = Some(namespace)).await;
    for (transport, token) in tokens {
        let mut client = Client::connect(&second, transport, &ada()).await;
        let joined = client.subscribe(&json!({ "channel": "news", "from": token })).await.unwrap();
        assert_eq!(joined["recovered"], true, "{transport:?}");
        assert_eq!(client.event().await.0["data"]["n"], 1, "{transport:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_gets_what_it_missed_once_and_in_order_then_what_is_new() {
    let open = open().await;
    open.tell_and_see("news", 0).await;
    for transport in ALL {
        let mut client = Client::connect(&open, transport, &ada()).await;
        let joined = client.subscribe(&json!({ "channel": "news" })).await.unwrap();
        // It has seen nothing yet, and has a token all the same.
        let place = joined["token"].clone();
        drop(client);
        for n in 1..=20 {
            open.tell("news", n).await;
        }
        let mut client = Client::connect(&open, transport, &ada()).await;
        let joined = client.subscribe(&json!({ "channel": "news", "from": place })).await.unwrap();
        assert_eq!(joined["recovered"], true);
        open.tell("news", 21).await;
        for n in 1..=21 {
            assert_eq!(client.event().await.0["data"]["n"], n, "{transport:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_io_client_takes_thousands_of_events_and_misses_none() {
    let open = open().await;
    let many = 3_000;
    let tell = (0..many).map(|n| open.tell("news", n));
    let mut telling = futures_util::stream::iter(tell);
    {
        use futures_util::StreamExt;
        let mut all = std::pin::pin!(telling.by_ref().buffered(200));
        while all.next().await.is_some() {}
    }
    for transports in ["websocket", "polling", "polling,websocket"] {
        let transport = Transport::SocketIo { library: "socket.io-client", transports };
        let mut client = Client::connect(&open, transport, &ada()).await;
        client.subscribe(&json!({ "channel": "news", "from": "beginning" })).await.unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..many {
            seen.insert(client.event().await.0["data"]["n"].as_u64().unwrap());
        }
        assert_eq!(seen.len() as u64, many, "{transports}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_and_the_newest_stock_client_come_in_over_every_transport() {
    let open = open().await;
    for library in ["socket.io-client", "oldest", "python"] {
        for (transports, name) in
            [("websocket", "websocket"), ("polling", "polling"), ("polling,websocket", "polling")]
        {
            let mut node = Node::start(&open.http(""), library, transports).await;
            node.order(&json!(["connect", { "token": ada() }])).await;
            let (connected, over) = node.next().await;
            assert_eq!(connected, "connect");
            // With both it begins by polling, and may be further already.
            assert!(over == name || transports.ends_with(over.as_str().unwrap()), "{over}");
            let wish = json!({ "kind": "note.take", "payload": { "n": 1 } });
            let published = node.ask("publish", &wish).await.unwrap();
            let follow = json!({ "job": published["job"], "from": published["token"] });
            node.ask("subscribe", &follow).await.unwrap();
            let (name, told) = node.news().await;
            assert_eq!(
                (name.as_str(), &told["event"]["type"]),
                ("event", &json!("forebay.job.queued"))
            );
            // Its transport breaks: the stock client comes back by itself, and asks again.
            node.order(&json!(["cut"])).await;
            assert_eq!(node.next().await.0, "disconnect", "{library} {transports}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_stays_longer_than_its_token_holds() {
    let open = open_with(|settings| settings.auth.leeway = Duration::ZERO).await;
    // What has to be declared and read first takes as long as it takes.
    open.tell_and_see("news", 0).await;
    let soon = || {
        let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 5;
        signed(&json!({ "sub": "ada", "exp": exp, "forebay": { "read": ["channel:news"] } }))
    };
    let (open, soon) = (&open, &soon);
    join_all(ALL.map(|transport| async move {
        let mut client = Client::connect(open, transport, &soon()).await;
        client.subscribe(&json!({ "channel": "news" })).await.unwrap();
        let (name, bye) = client.news().await;
        assert_eq!((name.as_str(), &bye["reason"]), ("bye", &json!("token_expired")));
        assert!(bye["token"].is_string() && bye["remedy"].is_string());
        let (_, how) = client.news().await;
        match transport {
            Transport::WebSocket => assert_eq!(how["code"], 4401),
            Transport::SocketIo { .. } => assert_eq!(how, "io server disconnect"),
            Transport::Sse => assert_eq!(how, Value::Null),
        }
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_about_itself_at_an_address_of_its_own() {
    let open = open().await;
    let page = async |path: &str| {
        let answer = client().get(format!("http://{}{path}", open.operation)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(page("/livez").await, (200, "alive\n".to_owned()));
    let ready = async {
        while page("/readyz").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("ready", ready).await;
    let (status, text) = page("/nothing").await;
    assert_eq!(status, 404);
    assert!(text.contains("/metrics"));
    for path in ["/livez", "/metrics"] {
        assert_eq!(
            client().get(open.http(path)).send().await.unwrap().status(),
            404,
            "not for clients"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_it_says_so_and_refuses_instead_of_hanging() {
    let away = |settings: &mut Settings| {
        settings.broker.url = Some("amqp://127.0.0.1:1".to_owned());
        settings.publish.deadline = Duration::from_millis(300);
    };
    let open = open_with(away).await;
    let ready = client().get(format!("http://{}/readyz", open.operation)).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    let text = ready.text().await.unwrap();
    assert!(text.contains("events: ") && text.contains("publishing: "), "{text}");
    let body = json!({ "kind": "note.take", "payload": 1 }).to_string();
    let answer =
        client().post(open.http("/jobs")).bearer_auth(ada()).body(body).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["error"]["code"], "unavailable");
    assert!(answer["error"]["retry_after_ms"].is_u64());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_certificate_it_speaks_tls() {
    let authority = Authority::new();
    let folder = tempfile::TempDir::new().unwrap();
    let (cert, key) = authority.issue("localhost", &["localhost"]).write(folder.path(), "us");
    let text = format!("[tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n[anonymous]");
    let tls = Settings::parse(&text, "gateway.toml").unwrap().tls;
    let open = open_with(|settings| settings.tls = tls).await;
    let trusted = reqwest::Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    _ = client();
    let client = reqwest::Client::builder().add_root_certificate(trusted).build().unwrap();
    let port = open.address.rsplit_once(':').unwrap().1;
    let answer = client.get(format!("https://localhost:{port}/jobs/a")).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    assert!(reqwest::get(open.http("/jobs/a")).await.is_err(), "not in the clear");
}
