//! The transports of Socket.IO: polling, WebSocket, or first the one and then the other.
//! In: requests. Out: what the library answers them.
//!
//! The library makes a session for whoever asks, keeps the head of its first request, ends none
//! when it is told to, does not say what a client has taken, and has one bound for what it is sent
//! and what it sends. So requests pass here: who has shown no token yet has a place among few, only
//! what is needed of a head goes on, what is sent to it is bounded, WebSockets run over a connection
//! of ours, and what polls take is counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{
    CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE,
};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use socketioxide::service::SocketIoService;
use socketioxide::socket::{Sid, Socket};
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tungstenite::handshake::derive_accept_key;

use super::asked::{Asked, stamp};
use super::flow::Flow;
use super::line::Line;
use super::{TRANSPORT, hello};
use crate::crowd::{Crowd, Full, Seat};
use crate::doors::Doors;
use crate::peer::Peer;
use crate::refusal::{Code, Refusal};
use crate::traffic;

/// Bytes of the library's first answer.
const HELLO: usize = 4 * 1024;
/// What Engine.IO says to end a session.
const CLOSE: &str = "1";
/// How long a client may go on to poll what waits for it before its WebSocket takes over. If it does
/// not poll, the WebSocket brings that, unless it fills the library's buffer.
const SETTLING: Duration = Duration::from_secs(5);

/// One client's way here, from its first request to its end.
#[derive(Debug)]
pub(super) struct Transport {
    /// Its place among those who have shown nothing. The library keeps what it has of those for the
    /// time that they have for it, even if they go before.
    porch: Mutex<Option<Seat>>,
    /// That of the newest poll.
    stamp: Mutex<Option<String>>,
    pub(super) flow: Arc<Flow>,
    /// Ends it, if it is a WebSocket.
    pub(super) over: CancellationToken,
}

impl Transport {
    /// That of a client. The library keeps the first request's head for as long as it is there.
    pub(super) fn of(socket: &Socket) -> Option<Arc<Self>> {
        socket.req_parts().extensions.get::<Arc<Self>>().cloned()
    }

    /// Somebody is let in, who has a place of its own.
    pub(super) fn let_in(&self) {
        drop(self.porch.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Whether that is the newest poll once more.
    fn is_repeated(&self, stamp: Option<String>) -> bool {
        let mut newest = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        let repeated = stamp.is_some() && *newest == stamp;
        *newest = stamp;
        repeated
    }
}

/// All of them, and the library that serves them.
pub(super) struct Transports {
    pub(super) doors: Arc<Doors>,
    service: SocketIoService<Router>,
    porch: Arc<Crowd>,
    /// Those that began by polling, whose next requests name them.
    polling: Mutex<HashMap<Sid, Weak<Transport>>>,
}

/// Answers on `/socket.io`.
pub(super) async fn answer(State(all): State<Arc<Transports>>, request: Request) -> Response {
    all.serve(request).await.unwrap_or_else(Refusal::into_response)
}

impl Transports {
    pub(super) fn new(
        doors: &Arc<Doors>,
        service: SocketIoService<Router>,
        porch: Arc<Crowd>,
    ) -> Arc<Self> {
        let (doors, polling) = (Arc::clone(doors), Mutex::default());
        Arc::new(Self { doors, service, porch, polling })
    }

    /// Ends a client's transport: the library ends its part in a namespace only.
    pub(super) async fn end(&self, transport: &Transport, sid: Sid) {
        transport.over.cancel();
        self.close(sid).await;
    }

    async fn serve(self: &Arc<Self>, request: Request) -> Result<Response, Refusal> {
        let asked = Asked::read(request.uri().query().unwrap_or_default())?;
        match (asked.sid, asked.websocket) {
            (None, false) => self.begin(request, asked).await,
            (Some(sid), false) => self.poll(request, asked, sid).await,
            (_, true) => self.connect(request, asked),
        }
    }

    /// A first poll.
    async fn begin(&self, request: Request, asked: Asked) -> Result<Response, Refusal> {
        if request.method() != Method::GET {
            return Err(Refusal::bad("a session begins with GET", "use a Socket.IO client"));
        }
        let (parts, _) = request.into_parts();
        let transport = self.knock(&parts)?;
        let first = asked.first(&parts, &transport).map(|()| Body::empty());
        let (mut parts, body) = self.ask(first).await.into_parts();
        let answer = to_bytes(body, HELLO).await;
        let answer = answer.map_err(|_| Refusal::unavailable("the session could not begin"))?;
        let Some((sid, told)) = hello::read(&answer, self.most()) else {
            return Ok(Response::from_parts(parts, Body::from(answer)));
        };
        self.list(sid, &transport);
        // That of another text.
        parts.headers.remove(CONTENT_LENGTH);
        Ok(Response::from_parts(parts, Body::from(told)))
    }

    /// Another poll, or what a client sends between them.
    async fn poll(&self, request: Request, asked: Asked, sid: Sid) -> Result<Response, Refusal> {
        let takes = request.method() == Method::GET;
        if takes {
            self.end_if_repeated(request.uri().query().unwrap_or_default(), sid).await?;
        }
        let (mut parts, body) = request.into_parts();
        let Ok(sent) = to_bytes(body, self.most()).await else {
            // As the library does when it is sent too much, or what was sent broke off.
            self.close(sid).await;
            return Ok(StatusCode::PAYLOAD_TOO_LARGE.into_response());
        };
        parts.uri = asked.address();
        let response = self.ask(Request::from_parts(parts, Body::from(sent))).await;
        if takes && let Some(transport) = self.listed(sid) {
            let bytes = response.body().size_hint().lower();
            transport.flow.take(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        Ok(response)
    }

    /// Bytes that a client may send at once.
    fn most(&self) -> usize {
        self.doors.house.limits.message
    }

    /// When a connection breaks before the head of an answer, browsers repeat a GET by themselves,
    /// and tell the page nothing. What the lost answer carried counts as handed over, so the
    /// repeated poll would bring what comes after it. The client connects again instead, and goes
    /// on from its newest token.
    async fn end_if_repeated(&self, query: &str, sid: Sid) -> Result<(), Refusal> {
        let Some(transport) = self.listed(sid) else { return Ok(()) };
        if !transport.is_repeated(stamp(query)) {
            return Ok(());
        }
        self.end(&transport, sid).await;
        Err(Refusal::bad(
            "this poll was made before, and what was answered may be lost",
            "connect again, and subscribe from the newest token",
        ))
    }

    /// A WebSocket, which begins a session or takes over from polling.
    fn connect(self: &Arc<Self>, request: Request, asked: Asked) -> Result<Response, Refusal> {
        let (mut parts, _) = request.into_parts();
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        let key = parts.headers.get(SEC_WEBSOCKET_KEY);
        let (Some(upgrade), Some(key), &Method::GET) = (upgrade, key, &parts.method) else {
            return Err(Refusal::bad("that is no WebSocket handshake", "use a Socket.IO client"));
        };
        let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
        let accept = accept.expect("base64 is a header");
        let transport = match asked.sid {
            None => self.knock(&parts)?,
            Some(sid) => self.listed(sid).ok_or_else(|| {
                Refusal::bad("there is no such session", "connect again, without `sid`")
            })?,
        };
        let first = asked.first(&parts, &transport);
        let (all, sid) = (Arc::clone(self), asked.sid);
        let serving = async move {
            let Ok(stream) = upgrade.await else { return };
            let hold = match sid {
                Some(_) => Some(transport.flow.settle(SETTLING).await),
                None => None,
            };
            let ended = CancellationToken::new();
            let line = Line::new(stream, transport, hold, ended.clone().drop_guard());
            if all.service.clone().call((line, first)).await.is_ok()
                && let Some(sid) = sid
            {
                ended.cancelled().await;
                // If it did not take over, polling would wait for it for ever.
                all.close(sid).await;
            }
        };
        let closing = self.doors.closing.clone();
        self.doors.tasks.spawn(async move {
            _ = closing.run_until_cancelled(serving).await;
        });
        let headers = [
            (UPGRADE, HeaderValue::from_static("websocket")),
            (CONNECTION, HeaderValue::from_static("Upgrade")),
            (SEC_WEBSOCKET_ACCEPT, accept),
        ];
        Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
    }

    /// A transport of somebody who has shown nothing yet.
    fn knock(&self, parts: &Parts) -> Result<Arc<Transport>, Refusal> {
        let peer = parts.extensions.get::<Peer>().filter(|peer| !peer.is_proxy);
        let address = peer.map(|peer| peer.client);
        let seat = match self.porch.enter(address) {
            Ok(seat) => seat,
            Err(full) => {
                traffic::requested(TRANSPORT, Err(Code::TooMany));
                return Err(crowded(full));
            }
        };
        let (flow, over) = (Arc::default(), CancellationToken::new());
        let (porch, stamp) = (Mutex::new(Some(seat)), Mutex::default());
        Ok(Arc::new(Transport { porch, stamp, flow, over }))
    }

    /// Ends a session that polls, as its client would; a WebSocket does not mind.
    async fn close(&self, sid: Sid) {
        let mut request = Request::new(Body::from(CLOSE));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Asked { websocket: false, sid: Some(sid) }.address();
        _ = self.ask(request).await;
    }

    async fn ask(&self, request: Request) -> Response {
        match self.service.clone().call(request).await {
            Ok(response) => response.map(Body::new),
            Err(never) => match never {},
        }
    }

    fn list(&self, sid: Sid, transport: &Arc<Transport>) {
        let mut polling = self.polling();
        if polling.len() == polling.capacity() {
            polling.retain(|_, transport| transport.strong_count() > 0);
            // Amortised: a sweep makes room for as many as it left.
            let left = polling.len();
            polling.reserve(left);
        }
        polling.insert(sid, Arc::downgrade(transport));
    }

    fn listed(&self, sid: Sid) -> Option<Arc<Transport>> {
        self.polling().get(&sid)?.upgrade()
    }

    fn polling(&self) -> MutexGuard<'_, HashMap<Sid, Weak<Transport>>> {
        self.polling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn crowded(full: Full) -> Refusal {
    let whose = match full {
        Full::All => "",
        Full::Address => " of this address",
    };
    let message = format!("too many connections{whose} have shown no token yet");
    Refusal::new(Code::TooMany, message, "connect again later, and show a token at once")
        .retry_after(Duration::from_secs(1))
}
