//! What the tests of the doors need: a gateway on a free port with a broker's namespace of its own,
//! tokens, and clients of each transport that are told and asked the same.

use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use forebay_gateway::{Anonymous, Gateway, Settings};
use forebay_producer::testing::{Broker, broker};
use forebay_producer::{Envelope, Event, EventKind, Producer};
use futures_util::{SinkExt, StreamExt};
use ring::hmac;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::{task, time};
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for something, and says what did not happen.
pub(crate) async fn within<T>(what: &str, happens: impl Future<Output = T>) -> T {
    let happened = time::timeout(PATIENCE, happens).await;
    happened.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// A gateway that runs in this process, on a thread of its own: dropped, it ends before its namespace
/// is deleted, which it would declare again otherwise.
pub(crate) struct Open {
    pub(crate) producer: Producer,
    pub(crate) address: String,
    pub(crate) operation: String,
    running: Option<Running>,
    pub(crate) broker: Broker,
    _folder: TempDir,
}

struct Running {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<bool>,
}

pub(crate) async fn open() -> Open {
    open_with(|_| {}).await
}

pub(crate) async fn open_with(edit: impl FnOnce(&mut Settings)) -> Open {
    open_on(broker().await, edit)
}

/// The same in a namespace that is there already.
pub(crate) fn open_on(broker: Broker, edit: impl FnOnce(&mut Settings)) -> Open {
    let folder = TempDir::new().unwrap();
    let mut settings = Settings::default();
    settings.listen = "127.0.0.1:0".to_owned();
    settings.operation.listen = "127.0.0.1:0".to_owned();
    settings.grace = Duration::from_secs(2);
    settings.broker.url = Some(broker.url().to_owned());
    settings.broker.namespace = Some(broker.namespace().to_owned());
    let secret = folder.path().join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    settings.auth.secret_file = Some(secret);
    edit(&mut settings);
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let gateway = {
        let _in = runtime.enter();
        Gateway::open(&settings).unwrap()
    };
    let address = gateway.address().to_string();
    let operation = gateway.operation().map(|at| at.to_string()).unwrap_or_default();
    let (stop, stopped) = oneshot::channel();
    let thread = thread::spawn(move || {
        runtime.block_on(gateway.run(async {
            _ = stopped.await;
        }))
    });
    let producer = Producer::new(&broker.config());
    let running = Some(Running { stop, thread });
    Open { producer, address, operation, running, broker, _folder: folder }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(Running { stop, thread }) = self.running.take() {
            _ = stop.send(());
            _ = thread.join();
        }
    }
}

/// Lets those in who show nothing.
pub(crate) fn anonymous(publish: &[&str], read: &[&str]) -> Anonymous {
    let mut anonymous = Anonymous::default();
    anonymous.publish = publish.iter().map(|text| (*text).to_owned()).collect();
    anonymous.read = read.iter().map(|text| (*text).to_owned()).collect();
    anonymous
}

impl Open {
    pub(crate) fn http(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn close(&mut self) -> bool {
        let Some(Running { stop, thread }) = self.running.take() else { return true };
        _ = stop.send(());
        let ended = task::spawn_blocking(move || thread.join().unwrap());
        within("the gateway's end", ended).await.unwrap()
    }

    /// Tells a channel, and waits until the gateway has it: what begins now begins after it.
    pub(crate) async fn tell_and_see(&self, channel: &str, n: u64) {
        self.tell(channel, n).await;
        let root = token("root of the test", &json!({ "admin": true }));
        let mut ws = Ws::connect(self, &root).await.unwrap();
        let wish = json!({ "channel": channel, "from": "beginning" });
        ws.ask("subscribe", &wish).await.unwrap();
        while ws.news().await.1["event"]["data"]["n"] != n {}
    }

    /// What a handler or a producer tells a channel.
    pub(crate) async fn tell(&self, channel: &str, n: u64) {
        let data = json!({ "n": n });
        let told = self.producer.emit(channel, "told", &data);
        within("an event on the stream", told).await.unwrap();
    }
}

/// A token of somebody who may do what is said.
pub(crate) fn token(subject: &str, grants: &Value) -> String {
    let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
    signed(&json!({ "sub": subject, "exp": exp, "forebay": grants }))
}

pub(crate) fn signed(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(&json!({ "alg": "HS256" })), part(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, text.as_bytes()));
    format!("{text}.{signature}")
}

/// How a client comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    WebSocket,
    Sse,
    SocketIo { library: &'static str, transports: &'static str },
}

pub(crate) const SOCKET_IO: Transport =
    Transport::SocketIo { library: "socket.io-client", transports: "websocket" };

pub(crate) const ALL: [Transport; 3] = [Transport::WebSocket, Transport::Sse, SOCKET_IO];

/// A client of any transport.
pub(crate) enum Client {
    WebSocket(Ws),
    /// Follows by its address, so it has no connection before.
    Sse {
        address: String,
        token: String,
        open: Option<SseStream>,
    },
    SocketIo(Node),
}

impl Client {
    /// Connects; panics when it is refused.
    pub(crate) async fn connect(open: &Open, transport: Transport, token: &str) -> Self {
        match transport {
            Transport::WebSocket => Self::WebSocket(Ws::connect(open, token).await.unwrap()),
            Transport::Sse => {
                Self::Sse { address: open.http("/events"), token: token.to_owned(), open: None }
            }
            Transport::SocketIo { library, transports } => {
                let mut node = Node::start(&open.http(""), library, transports).await;
                node.order(&json!(["connect", { "token": token }])).await;
                let (name, _) = node.next().await;
                assert_eq!(name, "connect", "{:?}", node.last);
                Self::SocketIo(node)
            }
        }
    }

    /// Follows; what was answered, or the error.
    pub(crate) async fn subscribe(&mut self, wish: &Value) -> Result<Value, Value> {
        match self {
            Self::WebSocket(ws) => ws.ask("subscribe", wish).await,
            Self::SocketIo(node) => node.ask("subscribe", wish).await,
            Self::Sse { address, token, open } => {
                let mut stream = SseStream::open(address, token, wish).await?;
                let (name, _, data) = stream.next().await;
                assert_eq!(name, "subscribed");
                *open = Some(stream);
                Ok(data)
            }
        }
    }

    /// The next event, with its token.
    pub(crate) async fn event(&mut self) -> (Value, String) {
        let (name, mut body) = self.news().await;
        assert_eq!(name, "event", "{body}");
        let token = body["token"].as_str().unwrap().to_owned();
        (body["event"].take(), token)
    }

    /// The next thing that is told without being asked for: `event`, `gap`, `bye`, `close`.
    pub(crate) async fn news(&mut self) -> (String, Value) {
        match self {
            Self::WebSocket(ws) => ws.news().await,
            Self::SocketIo(node) => node.news().await,
            Self::Sse { open, .. } => {
                let (name, id, data) = open.as_mut().expect("it follows").next().await;
                match name.as_str() {
                    "" => ("event".to_owned(), json!({ "event": data, "token": id })),
                    "alive" => Box::pin(self.news()).await,
                    other => (other.to_owned(), data),
                }
            }
        }
    }
}

/// A plain WebSocket.
pub(crate) struct Ws {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    aside: Vec<Value>,
    asked: u64,
}

impl Ws {
    pub(crate) async fn connect(open: &Open, token: &str) -> Result<Self, u16> {
        let mut request = format!("ws://{}/ws", open.address).into_client_request().unwrap();
        if !token.is_empty() {
            let bearer = format!("Bearer {token}").parse().unwrap();
            request.headers_mut().insert("authorization", bearer);
        }
        Self::with(request).await
    }

    pub(crate) async fn with(request: impl IntoClientRequest + Unpin) -> Result<Self, u16> {
        match within("a WebSocket", tokio_tungstenite::connect_async(request)).await {
            Ok((socket, _)) => Ok(Self { socket, aside: Vec::new(), asked: 0 }),
            Err(tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn send(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    /// Asks, and waits for the answer; what comes before it is kept.
    pub(crate) async fn ask(&mut self, verb: &str, body: &Value) -> Result<Value, Value> {
        self.asked += 1;
        let mut frame = body.clone();
        (frame["verb"], frame["ref"]) = (verb.into(), self.asked.into());
        self.send(Message::text(frame.to_string())).await;
        loop {
            let mut frame = self.frame().await.unwrap_or_else(|close| panic!("closed: {close:?}"));
            if frame["ref"] != self.asked {
                self.aside.push(frame);
            } else if frame["error"].is_null() {
                return Ok(frame["ok"].take());
            } else {
                return Err(frame["error"].take());
            }
        }
    }

    /// The next frame; the error is how it was closed.
    pub(crate) async fn frame(&mut self) -> Result<Value, (u16, String)> {
        loop {
            match within("a frame", self.socket.next()).await {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(Some(close)))) => {
                    return Err((close.code.into(), close.reason.to_string()));
                }
                Some(Ok(Message::Close(None)) | Err(_)) | None => return Err((0, String::new())),
                Some(Ok(_)) => {}
            }
        }
    }

    async fn news(&mut self) -> (String, Value) {
        let frame = match self.aside.is_empty() {
            true => self.frame().await,
            false => Ok(self.aside.remove(0)),
        };
        match frame {
            // It is no news.
            Ok(frame) if frame["notice"] == "alive" => Box::pin(self.news()).await,
            Ok(frame) if frame["notice"].is_null() => ("event".to_owned(), frame),
            Ok(frame) => (frame["notice"].as_str().unwrap().to_owned(), frame),
            Err((code, reason)) => ("close".to_owned(), json!({ "code": code, "reason": reason })),
        }
    }
}

/// Server-Sent Events, read line by line.
pub(crate) struct SseStream {
    response: reqwest::Response,
    text: String,
}

impl SseStream {
    pub(crate) async fn open(address: &str, token: &str, wish: &Value) -> Result<Self, Value> {
        let mut query = Vec::new();
        for (name, value) in wish.as_object().unwrap() {
            match value {
                Value::Array(all) => {
                    query.extend(
                        all.iter().map(|value| format!("{name}={}", value.as_str().unwrap())),
                    );
                }
                value => query.push(format!("{name}={}", value.as_str().unwrap())),
            }
        }
        let mut request = client().get(format!("{address}?{}", query.join("&")));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        Self::of(request).await
    }

    pub(crate) async fn of(request: reqwest::RequestBuilder) -> Result<Self, Value> {
        let response = within("an answer", request.send()).await.unwrap();
        if response.status() != 200 {
            let mut body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
            return Err(body["error"].take());
        }
        Ok(Self { response, text: String::new() })
    }

    /// Name, id and data of the next event; `close` at the end.
    pub(crate) async fn next(&mut self) -> (String, String, Value) {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    let line = block.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_default().to_owned()
                };
                let data = field("data: ");
                if !data.is_empty() {
                    let data = serde_json::from_str(&data).unwrap();
                    return (field("event: "), field("id: "), data);
                }
            }
            match within("more of the answer", self.response.chunk()).await {
                Ok(Some(chunk)) => self.text.push_str(std::str::from_utf8(&chunk).unwrap()),
                _ => return ("close".to_owned(), String::new(), Value::Null),
            }
        }
    }
}

pub(crate) fn client() -> reqwest::Client {
    _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().build().unwrap()
}

/// A stock Socket.IO client, in node or python.
pub(crate) struct Node {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    aside: Vec<(String, Value)>,
    pub(crate) last: Value,
}

impl Node {
    pub(crate) async fn start(address: &str, library: &str, transports: &str) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/socketio");
        let (program, script) = match library {
            "python" => {
                let python = std::env::var("FOREBAY_PYTHON");
                (python.unwrap_or_else(|_| "python3".to_owned()), "client.py")
            }
            _ => {
                assert!(
                    Path::new(folder).join("node_modules/socket.io-client").is_dir(),
                    "socket.io-client is not installed: npm ci --ignore-scripts --prefix \
                     gateway/tests/socketio"
                );
                ("node".to_owned(), "client.mjs")
            }
        };
        let mut child = Command::new(&program)
            .args([&format!("{folder}/{script}"), address, library, transports])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {program}: {error}; install it"));
        let stdin = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { _child: child, stdin, lines, aside: Vec::new(), last: Value::Null }
    }

    pub(crate) async fn order(&mut self, order: &Value) {
        self.stdin.write_all(format!("{order}\n").as_bytes()).await.unwrap();
    }

    /// The next line: its name, and what it carries.
    pub(crate) async fn next(&mut self) -> (String, Value) {
        let line = within("a line of the client", self.lines.next_line()).await.unwrap();
        let line = line.expect("the client runs; if it is python's, with python3-socketio");
        let line: Vec<Value> = serde_json::from_str(&line).unwrap();
        let name = line[0].as_str().unwrap().to_owned();
        self.last = line.get(1).cloned().unwrap_or_default();
        (name, self.last.clone())
    }

    pub(crate) async fn ask(&mut self, verb: &str, body: &Value) -> Result<Value, Value> {
        self.order(&json!([verb, body])).await;
        loop {
            match self.next().await {
                (name, mut answer) if name == "ack" => {
                    return match answer["error"].is_null() {
                        true => Ok(answer["ok"].take()),
                        false => Err(answer["error"].take()),
                    };
                }
                other => self.aside.push(other),
            }
        }
    }

    pub(crate) async fn news(&mut self) -> (String, Value) {
        match self.aside.is_empty() {
            true => self.next().await,
            false => self.aside.remove(0),
        }
    }
}

/// A Socket.IO client that sends what a stock one would not, over WebSocket.
pub(crate) struct Raw {
    pub(crate) ws: Ws,
}

impl Raw {
    /// Connects, and shows nothing yet.
    pub(crate) async fn open(open: &Open) -> Result<Self, u16> {
        let address = format!("ws://{}/socket.io/?EIO=4&transport=websocket", open.address);
        let mut raw = Self { ws: Ws::with(address).await? };
        assert!(raw.next().await.unwrap().starts_with("0{"));
        Ok(raw)
    }

    /// Connects and is let in.
    pub(crate) async fn connect(open: &Open, token: &str) -> Self {
        let mut raw = Self::open(open).await.unwrap();
        let packet = raw.enter(token).await;
        assert!(packet.starts_with("40"), "{packet}");
        raw
    }

    /// Shows a token; what is said to it.
    pub(crate) async fn enter(&mut self, token: &str) -> String {
        self.send(&format!("40{}", json!({ "token": token }))).await;
        self.next().await.unwrap()
    }

    pub(crate) async fn send(&mut self, packet: &str) {
        self.ws.send(Message::text(packet)).await;
    }

    /// The next packet that is no ping; none at the end.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            match within("a packet", self.ws.socket.next()).await {
                Some(Ok(Message::Text(ping))) if ping == "2" => self.send("3").await,
                Some(Ok(Message::Text(text))) => return Some(text.to_string()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// The next ack: its number and what it carries.
    pub(crate) async fn ack(&mut self) -> (u64, Value) {
        let packet = self.next().await.expect("an ack");
        let ack = packet.strip_prefix("43").unwrap_or_else(|| panic!("no ack: {packet}"));
        let (number, body) = ack.split_at(ack.find('[').unwrap());
        let body: Value = serde_json::from_str(body).unwrap();
        (number.parse().unwrap(), body[0].clone())
    }
}

/// Tells job events as a worker would.
pub(crate) struct Stage(Producer);

impl Stage {
    pub(crate) fn of(open: &Open) -> Self {
        Self(open.producer.clone())
    }

    /// What happened to a job of somebody.
    pub(crate) async fn happened(
        &self,
        what: EventKind,
        job: &str,
        kind: &str,
        owner: Option<&str>,
    ) {
        self.happened_with(what, job, kind, owner, &json!({})).await;
    }

    pub(crate) async fn happened_with(
        &self,
        what: EventKind,
        job: &str,
        kind: &str,
        owner: Option<&str>,
        data: &Value,
    ) {
        let mut envelope = Envelope::new(kind, "default", "{}");
        job.clone_into(&mut envelope.id);
        envelope.owner = owner.map(str::to_owned);
        let data = serde_json::value::to_raw_value(data).unwrap();
        let event = Event::of_job(what, &envelope, data);
        let told = self.0.emit_event(event, time::Instant::now() + PATIENCE);
        within("an event on the stream", told).await.unwrap();
    }
}
