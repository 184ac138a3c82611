//! A Socket.IO client as small as can be, so that one process holds thousands: protocol 5 over
//! Engine.IO 4, by WebSocket alone.
//! In: a gateway's address, a channel, a token. Out: what the gateway tells, one thing after another.

use std::net::Ipv4Addr;

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Bytes that one client reads at once.
const BUFFER: usize = 8 * 1024;

/// One client, connected.
pub(crate) struct Client {
    socket: WebSocketStream<TcpStream>,
    /// The newest token that it was given.
    pub(crate) token: String,
    /// Pings of the gateway that it has answered.
    pub(crate) beats: u64,
}

/// What the gateway tells.
#[derive(Debug)]
pub(crate) enum Heard {
    /// An event of a channel that was told by [`Tick`].
    Tick { tick: Tick, offset: u64, ours: bool },
    /// The answer to a subscription.
    Joined { recovered: bool },
    /// Something that none of these loads should see.
    Odd(String),
}

/// What is told to channels here.
#[derive(Debug, Clone, Copy, serde::Serialize, Deserialize)]
pub(crate) struct Tick {
    /// Its number in its room.
    pub(crate) n: u64,
    /// When it should have been told, in nanoseconds since the load began.
    pub(crate) at: u64,
}

#[derive(Deserialize)]
struct Told<'t> {
    #[serde(borrow)]
    event: Event<'t>,
    #[serde(borrow)]
    token: &'t str,
}

#[derive(Deserialize)]
struct Event<'t> {
    #[serde(borrow)]
    subject: &'t str,
    data: Tick,
}

impl Client {
    /// Connects as the person with that number; the error says what the gateway did instead of
    /// letting it in.
    pub(crate) async fn connect(address: &str, number: usize) -> Result<Self, String> {
        let words = |error: &dyn std::error::Error| error.to_string();
        let stream = TcpStream::connect(address).await.map_err(|error| words(&error))?;
        stream.set_nodelay(true).map_err(|error| words(&error))?;
        let url = format!("ws://{address}/socket.io/?EIO=4&transport=websocket");
        let mut request = url.into_client_request().map_err(|error| words(&error))?;
        // As a proxy on this machine would say whom it comes from.
        let person = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + number as u32);
        let person = HeaderValue::try_from(person.to_string()).map_err(|error| words(&error))?;
        request.headers_mut().insert("X-Forwarded-For", person);
        let config = WebSocketConfig::default().read_buffer_size(BUFFER).write_buffer_size(0);
        let opened =
            tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await;
        let (socket, _) = opened.map_err(|error| words(&error))?;
        let mut client = Self { socket, token: String::new(), beats: 0 };
        client.expect("0{").await?;
        client.say("40").await?;
        client.expect("40{").await?;
        Ok(client)
    }

    /// Follows a channel from its newest token on, if it has one.
    pub(crate) async fn follow(&mut self, channel: &str) -> Result<(), String> {
        let mut wish = json!({ "channel": channel });
        if !self.token.is_empty() {
            wish["from"] = self.token.as_str().into();
        }
        self.say(&format!("421{}", json!(["subscribe", wish]))).await
    }

    /// What comes next, for somebody who follows `channel`. Cancel-safe.
    pub(crate) async fn hear(&mut self, channel: &str) -> Result<Heard, String> {
        loop {
            let text = self.packet().await?;
            if let Some(told) = text.strip_prefix("42[\"event\",") {
                let told = told.strip_suffix(']').unwrap_or(told);
                let Told { event, token } =
                    serde_json::from_str(told).map_err(|error| format!("{error}: {text}"))?;
                let offset = token.split_once('.').and_then(|(offset, _)| offset.parse().ok());
                let offset = offset.ok_or_else(|| format!("no offset in the token: {text}"))?;
                let (tick, ours) = (event.data, event.subject == channel);
                token.clone_into(&mut self.token);
                return Ok(Heard::Tick { tick, offset, ours });
            }
            if let Some(answer) = text.strip_prefix("431") {
                let answer: Value = serde_json::from_str(answer).map_err(|e| e.to_string())?;
                let joined = &answer[0]["ok"];
                let Some(token) = joined["token"].as_str() else {
                    return Ok(Heard::Odd(answer.to_string()));
                };
                // An event that came before it may have brought a newer one.
                if self.token.is_empty() {
                    token.clone_into(&mut self.token);
                }
                return Ok(Heard::Joined { recovered: joined["recovered"] == true });
            }
            if text.starts_with("42[\"token\",") {
                continue;
            }
            return Ok(Heard::Odd(text));
        }
    }

    /// The next packet that is no ping.
    async fn packet(&mut self) -> Result<String, String> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) if text.as_str() == "2" => {
                    self.beats += 1;
                    self.say("3").await?;
                }
                Some(Ok(Message::Text(text))) => return Ok(text.as_str().to_owned()),
                Some(Ok(Message::Close(close))) => return Err(format!("closed: {close:?}")),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the connection ended".to_owned()),
            }
        }
    }

    async fn expect(&mut self, beginning: &str) -> Result<(), String> {
        let text = self.packet().await?;
        if text.starts_with(beginning) { Ok(()) } else { Err(text) }
    }

    async fn say(&mut self, text: &str) -> Result<(), String> {
        self.socket.send(Message::text(text)).await.map_err(|error| error.to_string())
    }
}
