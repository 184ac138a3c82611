//! Socket.IO: the verbs as events with acks, by socketioxide.
//! In: `emit("publish", {…}, ack)`. Out: acks `{ok: …}` or `{error: …}`; `event`, `gap`,
//! `token` and `bye`.
//!
//! The library runs each incoming event in a task of its own, and its buffer of outgoing packets is
//! bounded and refuses what is beyond it. So each client has a queue here, whose task answers in
//! order, and events are written no faster than the client takes them; what was refused stays.

mod admit;
mod asked;
mod flow;
mod hello;
mod line;
mod listen;
mod speak;
mod transport;

use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use socketioxide::extract::SocketRef;
use socketioxide::handler::ConnectHandler;
use socketioxide::socket::Socket;
use socketioxide::{ParserConfig, SendError, SocketError, SocketIo};
use tokio::sync::mpsc;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use self::listen::Wish;
use self::speak::Teller;
use self::transport::{Transport, Transports};
use crate::crowd::Crowd;
use crate::doors::{Bye, Conversation, Doors, Handed};
use crate::hub::Session;
use crate::pace::{BUFFER, Pace};
use crate::traffic;
use crate::ws::expiry;

const TRANSPORT: &str = "socketio";
/// Binary attachments of one packet; publishing takes JSON, so none is of use.
const ATTACHMENTS: usize = 16;
/// How soon a goodbye that found no room is tried again.
const AGAIN: Duration = Duration::from_millis(20);
/// How long goodbyes may take to be written.
const PARTING: Duration = Duration::from_millis(500);
/// How long they may take to be taken.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Bytes of what one poll brings, for the library: what it leaves for the next poll is lost when the
/// client goes on over WebSocket, so it has to leave nothing. Much less than this can wait for a
/// client. The library tells it to those that begin over WebSocket, who have no use for it: hence no
/// more than any of them can read.
const NO_CUT: u64 = i32::MAX as u64;

/// Answers on `/socket.io`. As long as nobody is let in on it, a transport has a place on the porch.
/// Those of proxies that do not say whom they speak for are not bounded by address.
pub(crate) fn open(doors: &Arc<Doors>, porch: Arc<Crowd>) -> (Router, SocketIo) {
    let most = doors.house.limits.message;
    let parser = ParserConfig::common()
        .max_incoming_binary_buf_size(most)
        .max_incoming_binaries(ATTACHMENTS);
    let (service, io) = SocketIo::builder()
        .max_buffer_size(BUFFER)
        .max_payload(NO_CUT)
        .ws_max_message_size(most)
        .ws_max_frame_size(most)
        .connect_timeout(Duration::from_secs(10))
        .with_parser(parser)
        .build_with_inner_svc(Router::new());
    let transports = Transports::new(doors, service, porch);
    let (admitting, serving) = (Arc::clone(&transports), Arc::clone(&transports));
    let admit = move |socket: SocketRef, auth| {
        let transports = Arc::clone(&admitting);
        async move { admit::admit(&transports.doors, &socket, auth).await }
    };
    let connected = move |socket: SocketRef, io: SocketIo| {
        // Without an await before the handlers are there: the client may send at once.
        begin(&serving, socket, io);
        async {}
    };
    io.ns("/", connected.with(admit));
    let answer = any(transport::answer);
    let routes = Router::new()
        .route("/socket.io", answer.clone())
        .route("/socket.io/", answer.clone())
        .route("/socket.io/{*rest}", answer)
        .with_state(transports);
    (routes, io)
}

fn begin(transports: &Arc<Transports>, socket: SocketRef, io: SocketIo) {
    let (seat, transport) = (admit::seat(&socket), Transport::of(&socket));
    let (Some((conversation, session)), Some(transport)) = (seat, transport) else {
        _ = socket.disconnect();
        return;
    };
    let doors = &transports.doors;
    let (queue, deaf) = listen::open(&socket, &doors.house.limits);
    let gone = CancellationToken::new();
    let left = gone.clone();
    socket.on_disconnect(move || {
        left.cancel();
        async {}
    });
    // The library shows the client before it comes here: who left in between called nothing.
    if !is_there(&io, &socket) {
        gone.cancel();
    }
    let client = Client { transports: Arc::clone(transports), transport, socket, io, gone, deaf };
    doors.tasks.spawn(client.converse(conversation, session, queue));
}

/// Somebody who was let in.
struct Client {
    transports: Arc<Transports>,
    transport: Arc<Transport>,
    socket: SocketRef,
    io: SocketIo,
    /// It is not there any more.
    gone: CancellationToken,
    /// It sends too fast and does not listen.
    deaf: CancellationToken,
}

impl Client {
    async fn converse(
        self,
        conversation: Conversation,
        session: Session,
        queue: mpsc::Receiver<Wish>,
    ) {
        let (doors, flow) = (&self.transports.doors, &self.transport.flow);
        let handle = conversation.handle.clone();
        let time_left = conversation.guest().time_left();
        let mut teller = Teller {
            socket: &self.socket,
            io: &self.io,
            flow,
            session,
            handle: handle.clone(),
            slow: doors.slow,
            pace: Pace::default(),
            handed: Handed::default(),
            known: String::new(),
        };
        let bye = tokio::select! {
            () = self.gone.cancelled() => None,
            () = self.deaf.cancelled() => Some(Bye::TooFast),
            slow = listen::answer(conversation, queue, flow, doors.slow) => slow,
            ended = teller.run() => ended,
            () = doors.closing.cancelled() => Some(Bye::GoingAway),
            () = expiry(time_left) => Some(Bye::TokenExpired),
        };
        let place = teller.handed.place(|| handle.token().to_string());
        drop(teller);
        if let Some(bye) = bye {
            self.part(bye, place.as_deref()).await;
        }
        // At the end of the gateway all transports are closed.
        if bye != Some(Bye::GoingAway) {
            self.transports.end(&self.transport, self.socket.id).await;
        }
    }

    /// The last words.
    async fn part(&self, bye: Bye, place: Option<&str>) {
        traffic::ended(TRANSPORT, bye.word());
        let notice = bye.notice(place);
        let until = Instant::now() + PARTING;
        while full(&self.socket.emit("bye", &notice)) && Instant::now() < until {
            time::sleep(AGAIN).await;
        }
        // The stock client connects again by itself when the transport closes, which is what
        // happens at the end of the gateway, but not when it is disconnected.
        if bye == Bye::GoingAway {
            return;
        }
        while self.socket.clone().disconnect().is_err() && Instant::now() < until {
            time::sleep(AGAIN).await;
        }
        tokio::select! {
            // A client that polls may be on its way to take it.
            () = time::sleep(LAST_WORDS) => {}
            () = self.transports.doors.closing.cancelled() => {}
        }
    }
}

/// Whether the library has this very client; another may have come after it under the same id.
fn is_there(io: &SocketIo, socket: &Socket) -> bool {
    let known = io.of("/").and_then(|all| all.get_socket(socket.id));
    known.is_some_and(|known| ptr::eq(&*known, socket))
}

/// Whether the buffer was full. A client that is gone is found out elsewhere.
fn full(sent: &Result<(), SendError>) -> bool {
    matches!(sent, Err(SendError::Socket(SocketError::InternalChannelFull)))
}
