//! Clients that send garbage, take nothing, or send more than anybody can use: they are closed, and
//! nobody else notices.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Client, Open, SOCKET_IO, Transport, Ws, client, open, open_with, token, within,
};

fn ada() -> String {
    token("ada", &json!({ "publish": ["note.*"], "read": ["channel:*"] }))
}

/// A frame of any kind, sometimes near to what is right.
fn any_frame(random: &mut fastrand::Rng) -> Message {
    let near = [
        "",
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
        "6",
        "40",
        "41",
        "42",
        "43",
        "44",
        "45",
        "46",
        "2probe",
        "40{",
        "42[",
        "42[]",
        "42[\"publish\"]",
        "420[\"publish\",{}]",
        "451-[\"publish\",{\"_placeholder\":true,\"num\":0}]",
        "4599999999999-[]",
        "42/other,[\"x\"]",
        "{\"verb\":\"publish\"}",
        "{\"verb\":1}",
        "[[[[",
        "{\"verb\":\"subscribe\",\"job\":[",
    ];
    let length = random.usize(..300);
    let mut bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
    match random.u8(..4) {
        0 => Message::binary(bytes),
        1 => Message::text(near[random.usize(..near.len())]),
        2 => {
            let mut text = near[random.usize(..near.len())].to_owned();
            text.extend((0..random.usize(..20)).map(|_| random.char(' '..'~')));
            Message::text(text)
        }
        _ => {
            bytes.iter_mut().for_each(|byte| *byte &= 0x7f);
            Message::text(String::from_utf8(bytes).unwrap())
        }
    }
}

/// Sends frames on one connection after another until so many were sent.
async fn babble(open: &Open, path: &str, seed: u64, mut left: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    while left > 0 {
        let Ok(mut ws) = Ws::with(format!("ws://{}{path}", open.address)).await else {
            panic!("a new connection is taken")
        };
        while left > 0 {
            left -= 1;
            if ws.socket.send(any_frame(&mut random)).await.is_err() {
                break;
            }
        }
        _ = ws.socket.close(None).await;
        let ended = async { while let Some(Ok(_)) = ws.socket.next().await {} };
        within("the end of a connection that was fed with garbage", ended).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_random_frames_close_their_connections_and_touch_no_other() {
    let open = open_with(|settings| {
        settings.anonymous = Some(crate::support::anonymous(&[], &[]));
        settings.limits.connections = 1_000;
        settings.limits.requests_burst = 1_000_000;
    })
    .await;
    open.tell_and_see("news", 0).await;
    let mut neighbours = Vec::new();
    for transport in [Transport::WebSocket, Transport::Sse, SOCKET_IO] {
        let mut client = Client::connect(&open, transport, &ada()).await;
        client.subscribe(&json!({ "channel": "news" })).await.unwrap();
        neighbours.push(client);
    }
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let paths = ["/ws", "/socket.io/?EIO=4&transport=websocket"];
    let babbling = (0..4).map(|n| babble(&open, paths[n % 2], seed ^ n as u64, 2_500));
    join_all(babbling).await;
    open.tell("news", 1).await;
    for mut neighbour in neighbours {
        assert_eq!(neighbour.event().await.0["data"]["n"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_polling_requests_are_refused_with_a_status() {
    let open = open_with(|settings| settings.limits.message = 10_000).await;
    let base = "/socket.io/?EIO=4&transport=polling";
    for (path, status) in [
        ("/socket.io/?EIO=4", 400),
        ("/socket.io/?EIO=9&transport=polling", 400),
        ("/socket.io/?EIO=4&transport=pigeon", 400),
        ("/socket.io/?EIO=4&transport=polling&sid=nonsense", 400),
        ("/socket.io/?EIO=4&transport=polling&sid=AAAAAAAAAAAAAAAA", 400),
    ] {
        let answer = client().get(open.http(path)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }
    for body in ["x", "4", "4?", "\u{1e}\u{1e}", &"4".repeat(20_000)] {
        let text = client().get(open.http(base)).send().await.unwrap().text().await.unwrap();
        let hello: Value = serde_json::from_str(&text[1..]).unwrap();
        assert_eq!(hello["maxPayload"], 10_000);
        let session = format!("{base}&sid={}", hello["sid"].as_str().unwrap());
        let sent = client().post(open.http(&session)).body(body.to_owned()).send().await.unwrap();
        if sent.status().is_client_error() {
            continue;
        }
        // A packet of Engine.IO that carries none of Socket.IO: the session is over.
        let over = async {
            while client().get(open.http(&session)).send().await.unwrap().status() != 400 {}
        };
        within("the end of the session", over).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_http_is_answered_or_closed() {
    let open = open().await;
    for request in [
        "nonsense\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(100_000)),
        format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(20_000)),
        "POST /jobs HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n".to_owned(),
        "GET /ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
            .to_owned(),
    ] {
        let mut stream = TcpStream::connect(&open.address).await.unwrap();
        _ = stream.write_all(request.as_bytes()).await;
        let mut answer = [0; 64];
        let read = within("an answer or the end", stream.read(&mut answer)).await.unwrap_or(0);
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        let start = &request[..request.len().min(40)];
        assert!(read == 0 || answer.starts_with("HTTP/1.1 4"), "{start}: {answer}");
    }
    assert_eq!(client().get(open.http("/openapi.json")).send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_is_sent_away_and_no_neighbour_waits_for_it() {
    let open = open_with(|settings| settings.limits.slow = Duration::from_secs(2)).await;
    let large = "x".repeat(30_000);
    let told = (0..300).map(|n| {
        let data = json!({ "n": n, "large": large });
        let producer = open.producer.clone();
        async move { producer.emit("news", "told", &data).await.unwrap() }
    });
    join_all(told).await;
    // It asks for everything and reads nothing: about 9 MB do not fit into any buffer on the way.
    let mut deaf = TcpStream::connect(&open.address).await.unwrap();
    let request = format!(
        "GET /events?channel=news&from=beginning HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        ada()
    );
    deaf.write_all(request.as_bytes()).await.unwrap();
    let mut neighbour = Client::connect(&open, Transport::WebSocket, &ada()).await;
    neighbour.subscribe(&json!({ "channel": "news", "from": "beginning" })).await.unwrap();
    for _ in 0..300 {
        neighbour.event().await;
    }
    let numbers = async {
        // Who is gone has left its place.
        loop {
            if closed(&mut deaf).await {
                return;
            }
        }
    };
    within("the end of the deaf client", numbers).await;
}

/// Whether the other side has cut the connection, looked at without taking much from it.
async fn closed(stream: &mut TcpStream) -> bool {
    tokio::time::sleep(Duration::from_millis(500)).await;
    // What is written to a connection that is closed is answered with a reset.
    stream.write_all(b"x").await.is_err()
}
