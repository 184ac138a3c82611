//! What a Socket.IO client asks for: counted when it comes, kept as text, answered one after the
//! other. In: packets of the library. Out: acks `{ok: …}` or `{error: …}`.

use std::convert::Infallible;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use socketioxide::SendError;
use socketioxide::adapter::LocalAdapter;
use socketioxide::extract::AckSender;
use socketioxide::handler::{FromMessageParts, Value as Packed};
use socketioxide::socket::Socket;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::flow::Flow;
use super::full;
use crate::doors::{Bye, Conversation};
use crate::haste::Haste;
use crate::limits::Limits;
use crate::refusal::{Code, Refusal};
use crate::request::Fields;
use crate::traffic;

const VERBS: [&str; 4] = ["publish", "subscribe", "unsubscribe", "job"];
const UNKNOWN: &str = "unknown";
/// Requests of one client that wait for their turn.
const QUEUE: usize = 64;
/// How many of the largest they may be, all together.
const LARGEST: usize = 2;
/// How soon an ack that found no room is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// Takes whatever the client sends from now on. The token is cancelled when it sends too fast and
/// does not listen.
pub(super) fn open(socket: &Socket, limits: &Limits) -> (mpsc::Receiver<Wish>, CancellationToken) {
    let (wishes, queue) = mpsc::channel(QUEUE);
    let most = limits.message * LARGEST;
    let (room, deaf) = (Arc::new(Semaphore::new(most)), CancellationToken::new());
    let haste = Mutex::new(Haste::new(limits.frames));
    let intake = Arc::new(Intake { haste, wishes, room, most, deaf: deaf.clone() });
    let taking = |verb| {
        let intake = Arc::clone(&intake);
        // This is run before the library begins a task, so it is in the order of arrival.
        move |Packet(packed), back: WayBack| {
            intake.take(verb, &packed, &back);
            async {}
        }
    };
    VERBS.into_iter().for_each(|verb| socket.on(verb, taking(verb)));
    socket.on_fallback(taking(UNKNOWN));
    (queue, deaf)
}

/// Answers one request after the other.
pub(super) async fn answer(
    mut conversation: Conversation,
    mut queue: mpsc::Receiver<Wish>,
    flow: &Flow,
    slow: Duration,
) -> Option<Bye> {
    while let Some(Wish { verb, body, back }) = queue.recv().await {
        let fields = body.and_then(|body| fields(&body.text));
        let answer = match conversation.answer_counted(verb, fields).await {
            Ok(done) => json!({ "ok": done }),
            Err(refusal) => json!({ "error": refusal }),
        };
        if !back.answer(&answer, flow, slow).await {
            return Some(Bye::Slow);
        }
    }
    None
}

/// One request with the way back.
#[derive(Debug)]
pub(super) struct Wish {
    verb: &'static str,
    body: Result<Body, Refusal>,
    back: WayBack,
}

/// A packet's text and its share of what may wait.
#[derive(Debug)]
struct Body {
    text: Box<str>,
    _share: OwnedSemaphorePermit,
}

/// `["verb", {…}]`, without what else could stand there.
fn fields(text: &str) -> Result<Fields, Refusal> {
    match serde_json::from_str::<(IgnoredAny, &RawValue)>(text) {
        Ok((_, body)) => Fields::parse(body.get()),
        Err(_) => Err(form()),
    }
}

fn form() -> Refusal {
    Refusal::bad(
        "the event carries something else than one object",
        "emit(verb, { … }, ack): one object of JSON, nothing binary",
    )
}

/// Where the requests of one client come in.
struct Intake {
    haste: Mutex<Haste>,
    wishes: mpsc::Sender<Wish>,
    /// Bytes.
    room: Arc<Semaphore>,
    most: usize,
    deaf: CancellationToken,
}

impl Intake {
    /// Takes a request, or says at once why not.
    fn take(&self, verb: &'static str, packed: &Packed, back: &WayBack) {
        let mut haste = self.haste.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = haste.count(|| self.queue(verb, packed, back));
        let deaf = haste.is_deaf();
        drop(haste);
        if let Err(refusal) = taken {
            traffic::requested(verb, Err(refusal.code()));
            _ = back.send(&json!({ "error": refusal }));
        }
        if deaf {
            self.deaf.cancel();
        }
    }

    fn queue(&self, verb: &'static str, packed: &Packed, back: &WayBack) -> Result<(), Refusal> {
        let place = match self.wishes.try_reserve() {
            Ok(place) => place,
            Err(TrySendError::Full(())) => return Err(waiting(&format!("{QUEUE} requests"))),
            // It was said goodbye to.
            Err(TrySendError::Closed(())) => return Ok(()),
        };
        let body = match packed {
            _ if verb == UNKNOWN => Err(Refusal::new(
                Code::Unknown,
                "there is no such verb",
                format!("the verbs are {}", VERBS.join(", ")),
            )),
            Packed::Str(text, binary) if binary.as_ref().is_none_or(|parts| parts.is_empty()) => {
                let bytes = u32::try_from(text.len()).unwrap_or(u32::MAX);
                let share = Arc::clone(&self.room).try_acquire_many_owned(bytes);
                let _share = share.map_err(|_| {
                    waiting(&format!("requests that have nearly {} bytes", self.most))
                })?;
                // A copy: the packet is a part of what was read at once, and would keep all of it.
                Ok(Body { text: text.as_str().into(), _share })
            }
            _ => Err(form()),
        };
        place.send(Wish { verb, body, back: back.clone() });
        Ok(())
    }
}

fn waiting(what: &str) -> Refusal {
    let message = format!("{what} of this connection wait already");
    Refusal::new(Code::TooMany, message, "wait for their acks")
}

/// A packet as it came: nothing is parsed before it is counted.
struct Packet(Packed);

impl FromMessageParts<LocalAdapter> for Packet {
    type Error = Infallible;

    fn from_message_parts(
        _: &Arc<Socket>,
        packed: &mut Packed,
        _: &Option<i64>,
    ) -> Result<Self, Infallible> {
        Ok(Self(mem::replace(packed, Packed::Bytes(Bytes::new()))))
    }
}

/// The library's sender of an ack is used up by its first try, which fails while the buffer is
/// full. This makes another.
#[derive(Debug, Clone)]
struct WayBack {
    socket: Arc<Socket>,
    ack: Option<i64>,
}

impl FromMessageParts<LocalAdapter> for WayBack {
    type Error = Infallible;

    fn from_message_parts(
        socket: &Arc<Socket>,
        _: &mut Packed,
        ack: &Option<i64>,
    ) -> Result<Self, Infallible> {
        Ok(Self { socket: Arc::clone(socket), ack: *ack })
    }
}

impl WayBack {
    /// Tries once.
    fn send(&self, answer: &Value) -> Result<(), SendError> {
        let mut nothing = Packed::Bytes(Bytes::new());
        match AckSender::from_message_parts(&self.socket, &mut nothing, &self.ack) {
            Ok(sender) => sender.send(answer),
            Err(never) => match never {},
        }
    }

    /// Tries until there is room, but no longer than a client may take nothing.
    async fn answer(&self, answer: &Value, flow: &Flow, slow: Duration) -> bool {
        // Who asked for no ack is sent none.
        let bytes = if self.ack.is_some() { answer.to_string().len() } else { 0 };
        if !flow.room(slow).await {
            return false;
        }
        let since = Instant::now();
        flow.give(bytes);
        while full(&self.send(answer)) {
            if since.elapsed() >= slow {
                return false;
            }
            time::sleep(AGAIN).await;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_object_whatever_its_keys_and_numbers_look_like() {
        let text = r#"["publish",{"payload":{"gr\u00f6\u00dfe":1,"in":[{"\u00fc":1e999}]}}]"#;
        let payload = fields(text).unwrap().raw("payload").unwrap();
        assert_eq!(payload.get(), r#"{"gr\u00f6\u00dfe":1,"in":[{"\u00fc":1e999}]}"#);
        for wrong in [r#"["job"]"#, r#"["job",{},{}]"#, r#"["job",7]"#, r#"["job","a"]"#, "[]", ""]
        {
            assert_eq!(fields(wrong).unwrap_err().code(), Code::BadRequest, "{wrong}");
        }
    }
}
