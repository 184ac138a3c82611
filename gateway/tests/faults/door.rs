//! The three doors, as their clients see them.
//! In: an address, what to follow and from where. Out: everything that is told, in the diary, until
//! the connection ends. Each reads when its client is awake, and not ahead.

use anyhow::{Context as _, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::follower::Follower;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// How a client comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    WebSocket,
    Sse,
    SocketIo,
}

impl Door {
    pub(crate) const ALL: [Self; 3] = [Self::WebSocket, Self::Sse, Self::SocketIo];

    /// One session, from the connect to the loss of the connection, which is the error.
    pub(crate) async fn session(self, follower: &Follower) -> anyhow::Result<()> {
        match self {
            Self::WebSocket => web_socket(follower).await,
            Self::Sse => server_sent(follower).await,
            Self::SocketIo => socket_io(follower).await,
        }
    }
}

async fn text(follower: &Follower, socket: &mut Socket) -> anyhow::Result<String> {
    loop {
        follower.awake().await;
        match socket.next().await.context("the connection ended")?? {
            Message::Text(text) => return Ok(text.to_string()),
            Message::Close(close) => bail!("closed: {close:?}"),
            _ => {}
        }
    }
}

async fn web_socket(follower: &Follower) -> anyhow::Result<()> {
    let (mut socket, _) = connect_async(format!("ws://{}/ws", follower.address())).await?;
    let mut wish = follower.wish();
    (wish["verb"], wish["ref"]) = ("subscribe".into(), 1.into());
    socket.send(Message::text(wish.to_string())).await?;
    loop {
        let frame: Value = serde_json::from_str(&text(follower, &mut socket).await?)?;
        let mut diary = follower.diary();
        if let Some(name) = frame["notice"].as_str() {
            diary.notice(name, &frame);
        } else if frame["ref"] == 1 {
            ensure!(frame["error"].is_null(), "refused: {}", frame["error"]);
            diary.joined(&frame["ok"]);
        } else {
            diary.event(&frame["event"], &frame["token"]);
        }
    }
}

/// Engine.IO 4 and Socket.IO 5, as far as it goes.
async fn socket_io(follower: &Follower) -> anyhow::Result<()> {
    let address = format!("ws://{}/socket.io/?EIO=4&transport=websocket", follower.address());
    let (mut socket, _) = connect_async(address).await?;
    loop {
        let packet = text(follower, &mut socket).await?;
        let (kind, body) = packet.split_at(packet.find(['{', '[']).unwrap_or(packet.len()));
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        match kind {
            "0" => socket.send(Message::text("40")).await?,
            "2" => socket.send(Message::text("3")).await?,
            "40" => {
                let ask = format!("421{}", json!(["subscribe", follower.wish()]));
                socket.send(Message::text(ask)).await?;
            }
            "431" => {
                ensure!(body[0]["error"].is_null(), "refused: {}", body[0]["error"]);
                follower.diary().joined(&body[0]["ok"]);
            }
            "42" if body[0] == "event" => {
                follower.diary().event(&body[1]["event"], &body[1]["token"]);
            }
            "42" => follower.diary().notice(body[0].as_str().unwrap_or_default(), &body[1]),
            "41" => bail!("disconnected"),
            _ => bail!("packet {packet}"),
        }
    }
}

/// As a browser does: the same address each time, and the newest id in the head.
async fn server_sent(follower: &Follower) -> anyhow::Result<()> {
    let query = follower.query();
    let mut request = follower.http.get(format!("http://{}/events?{query}", follower.address()));
    if let Some(token) = follower.token() {
        request = request.header("last-event-id", token);
    }
    let mut response = request.send().await?;
    ensure!(response.status() == 200, "refused: {}", response.text().await?);
    let mut bytes = Vec::new();
    loop {
        follower.awake().await;
        let chunk = response.chunk().await?.context("the answer ended")?;
        bytes.extend_from_slice(&chunk);
        while let Some(end) = bytes.windows(2).position(|two| two == b"\n\n") {
            let block: Vec<u8> = bytes.drain(..end + 2).collect();
            take(follower, std::str::from_utf8(&block)?);
        }
    }
}

fn take(follower: &Follower, block: &str) {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
    let data = field("data: ").map(|data| serde_json::from_str(data).unwrap_or_default());
    let id = field("id: ").map_or(Value::Null, Value::from);
    let mut diary = follower.diary();
    match (field("event: "), data) {
        (None, Some(event)) => diary.event(&event, &id),
        (Some("subscribed"), Some(answer)) => diary.joined(&answer),
        (Some("alive"), _) if id.is_string() => diary.notice("token", &json!({ "token": id })),
        (Some(name), Some(body)) => diary.notice(name, &body),
        _ => {}
    }
}
