//! Socket.IO over polling, request by request: what browsers do behind a client's back, and what a
//! client does that goes on over WebSocket.

use futures_util::future::join_all;
use reqwest::Client;
use serde_json::{Value, json};

use crate::support::{Open, Raw, Ws, client, open, open_with, token, within};

pub(crate) const POLLING: &str = "/socket.io/?EIO=4&transport=polling";

fn ada() -> String {
    token("ada", &json!({ "read": ["channel:*"] }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_that_is_made_again_ends_the_session_and_so_loses_nothing() {
    let (open, http) = (open().await, client());
    let address = open.http(POLLING);
    let poll = async |more: &str| {
        let answer = within("an answer", http.get(format!("{address}{more}")).send()).await;
        let answer = answer.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (_, hello) = poll("&t=0").await;
    let hello: Value = serde_json::from_str(&hello[1..]).unwrap();
    let session = format!("&sid={}", hello["sid"].as_str().unwrap());
    let connect = format!("40{}", json!({ "token": ada() }));
    let sent = http.post(format!("{address}{session}&t=1")).body(connect).send().await.unwrap();
    assert_eq!(sent.status(), 200);
    let mut t = 2;
    loop {
        let (status, packets) = poll(&format!("{session}&t={t}")).await;
        assert_eq!(status, 200, "{packets}");
        // A ping may come before it, or along with it.
        if packets.split('\u{1e}').any(|packet| packet.starts_with("40{")) {
            break;
        }
        t += 1;
    }

    // As if that answer had not arrived.
    let (status, refused) = poll(&format!("{session}&t={t}")).await;
    assert!(status == 400 && refused.contains("subscribe from the newest token"), "{refused}");
    assert_eq!(poll(&format!("{session}&t={}", t + 1)).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_may_send_at_once_is_told_to_it_and_bounded() {
    let open = open_with(|settings| settings.limits.message = 10_000).await;
    let hello = client().get(open.http(POLLING)).send().await.unwrap().text().await.unwrap();
    let hello: Value = serde_json::from_str(&hello[1..]).unwrap();
    assert_eq!(hello["maxPayload"], 10_000);
    assert_eq!(hello["upgrades"], json!(["websocket"]));
    let polls = Polls::begin(&open).await;
    polls.enter().await;
    let fits = format!("42{}", json!(["nothing", "x".repeat(9_900)]));
    assert_eq!(polls.try_send(&fits).await, 200);
    let too_large = format!("42{}", json!(["nothing", "x".repeat(10_000)]));
    assert_eq!(polls.try_send(&too_large).await, 413);
    assert_eq!(polls.try_send("3").await, 400, "that was its end");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_on_over_websocket_amid_large_events_misses_none() {
    // Less than what waits for a client.
    let open = open_with(|settings| settings.limits.message = 10_000).await;
    catch_up_and_go_on(&open, 300, &"x".repeat(4_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_on_over_websocket_amid_many_events_misses_none() {
    let open = open().await;
    catch_up_and_go_on(&open, 1_000, "").await;
}

/// Several clients catch up with so many events, and go on over WebSocket in the middle of it.
async fn catch_up_and_go_on(open: &Open, many: u64, fill: &str) {
    for n in 0..many {
        let data = json!({ "n": n, "fill": fill });
        let told = open.producer.emit("news", "told", &data);
        within("an event on the stream", told).await.unwrap();
    }
    join_all((0..8).map(|_| async {
        let polls = Polls::begin(open).await;
        polls.enter().await;
        polls.send(r#"42["subscribe",{"channel":"news","from":"beginning"}]"#).await;
        let mut seen = Vec::new();
        // By then more of them wait.
        while seen.is_empty() {
            seen.extend(polls.next().await.unwrap().iter().filter_map(number));
        }
        let mut raw = polls.go_on(open, &mut seen).await;
        while seen.last() != Some(&many) {
            if seen.last() == Some(&(many - 1)) {
                open.tell("news", many).await;
            }
            seen.extend(number(raw.next().await.expect("the session goes on")));
        }
        assert!(seen.iter().copied().eq(0..=many), "{seen:?}");
    }))
    .await;
}

/// That of an event.
fn number(packet: impl AsRef<str>) -> Option<u64> {
    let body: Value = serde_json::from_str(packet.as_ref().strip_prefix("42")?).unwrap();
    (body[0] == "event").then(|| body[1]["event"]["data"]["n"].as_u64().unwrap())
}

/// A client that polls.
pub(crate) struct Polls {
    http: Client,
    sid: String,
    address: String,
}

impl Polls {
    pub(crate) async fn begin(open: &Open) -> Self {
        let http = client();
        let text = http.get(open.http(POLLING)).send().await.unwrap().text().await.unwrap();
        let hello: Value = serde_json::from_str(&text[1..]).unwrap();
        let sid = hello["sid"].as_str().unwrap().to_owned();
        let address = open.http(&format!("{POLLING}&sid={sid}"));
        Self { http, sid, address }
    }

    pub(crate) async fn try_send(&self, packet: &str) -> u16 {
        let sent = self.http.post(&self.address).body(packet.to_owned()).send().await.unwrap();
        sent.status().as_u16()
    }

    pub(crate) async fn send(&self, packet: &str) {
        assert_eq!(self.try_send(packet).await, 200);
    }

    /// Shows a token and is let in.
    pub(crate) async fn enter(&self) {
        self.send(&format!("40{}", json!({ "token": ada() }))).await;
        while !self.next().await.unwrap().iter().any(|packet| packet.starts_with("40{")) {}
    }

    /// What the next poll brings, without pings; none at the end.
    pub(crate) async fn next(&self) -> Option<Vec<String>> {
        let taken = within("an answer", self.http.get(&self.address).send()).await.unwrap();
        if taken.status() != 200 {
            return None;
        }
        let text = taken.text().await.unwrap();
        let mut packets: Vec<_> = text.split('\u{1e}').map(str::to_owned).collect();
        if packets.iter().any(|packet| packet == "2") {
            // Refused, if the session has just ended, or goes on over WebSocket.
            self.try_send("3").await;
            packets.retain(|packet| packet != "2");
        }
        Some(packets)
    }

    /// Goes on over WebSocket as the stock client does: it polls until it knows that it may.
    async fn go_on(self, open: &Open, seen: &mut Vec<u64>) -> Raw {
        let address =
            format!("ws://{}/socket.io/?EIO=4&transport=websocket&sid={}", open.address, self.sid);
        let mut raw = Raw { ws: Ws::with(address).await.unwrap() };
        raw.send("2probe").await;
        let polling = async {
            loop {
                let packets = self.next().await.expect("the session goes on");
                seen.extend(packets.iter().filter_map(number));
                if packets.iter().any(|packet| packet == "6") {
                    return;
                }
            }
        };
        let (probed, ()) = tokio::join!(raw.next(), polling);
        assert_eq!(probed.as_deref(), Some("3probe"));
        raw.send("5").await;
        raw
    }
}
