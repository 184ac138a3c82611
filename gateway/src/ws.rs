//! Plain WebSocket: JSON frames, the verbs of [`Request`](crate::request::Request).
//! In: `{"verb":"subscribe","ref":1,"job":"…"}`. Out: `{"ref":1,"ok":{…}}` or `{"ref":1,"error":{…}}`,
//! `{"event":{…},"token":"…"}`, `{"notice":"gap"|"token"|"alive"|"bye",…}`. What is no JSON object
//! closes it.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{self, Instant, MissedTickBehavior};
use tungstenite::error::CapacityError;

use crate::doors::{Bye, Conversation, Doors, Handed, fresh};
use crate::hub::{EndReason, Entry, Item, Session, SessionHandle};
use crate::refusal::Refusal;
use crate::request::Fields;
use crate::traffic;

const TRANSPORT: &str = "ws";
/// How often we ask whether the client is still there.
const PING: Duration = Duration::from_secs(20);
/// How long it may say nothing, not even that it is.
const SILENCE: Duration = Duration::from_secs(50);
/// Answers that wait to be written; then nothing more is read.
const ANSWERS: usize = 16;
/// How long a goodbye may take.
const PARTING: Duration = Duration::from_secs(2);

/// Codes of close frames; those from 4000 on are ours, and are those of HTTP besides.
mod code {
    pub(super) const UNSUPPORTED: u16 = 1003;
    pub(super) const INVALID: u16 = 1007;
    pub(super) const TOO_BIG: u16 = 1009;
    pub(super) const RESTART: u16 = 1012;
    pub(super) const PROTOCOL: u16 = 1002;
    pub(super) const BAD_REQUEST: u16 = 4400;
    pub(super) const UNAUTHENTICATED: u16 = 4401;
    pub(super) const SLOW: u16 = 4408;
    pub(super) const TOO_FAST: u16 = 4429;
}

/// Talks to one client until either side ends it.
pub(crate) async fn serve(
    doors: Arc<Doors>,
    socket: WebSocket,
    conversation: Conversation,
    session: Session,
) {
    let (sink, stream) = socket.split();
    let (answers, answered) = mpsc::channel(ANSWERS);
    let handle = conversation.handle.clone();
    let time_left = conversation.guest().time_left();
    let reader = read(stream, conversation, answers);
    let handed = Handed::default();
    let mut writer = Writer {
        sink,
        session,
        handle: handle.clone(),
        slow: doors.slow,
        handed,
        known: String::new(),
    };
    let closing = tokio::select! {
        // Whoever ends first ends it; what the other had half done is nobody's any more.
        closing = reader => closing,
        closing = writer.run(answered) => closing,
        () = doors.closing.cancelled() => Closing::Bye(Bye::GoingAway),
        () = expiry(time_left) => Closing::Bye(Bye::TokenExpired),
    };
    let token = writer.handed.place(|| handle.token().to_string());
    _ = time::timeout(PARTING, writer.part(closing, token.as_deref())).await;
}

/// How a connection ends.
#[derive(Debug)]
enum Closing {
    /// The client is gone, or has said goodbye.
    Gone,
    /// We send it away.
    Bye(Bye),
    /// What it sent cannot be understood.
    Fault { code: u16, reason: String },
}

/// Waits until the token that somebody came in with holds no longer.
pub(crate) async fn expiry(time_left: Option<Duration>) {
    match time_left {
        Some(left) => time::sleep(left).await,
        None => std::future::pending().await,
    }
}

async fn read(
    mut stream: SplitStream<WebSocket>,
    mut conversation: Conversation,
    answers: mpsc::Sender<Value>,
) -> Closing {
    loop {
        let text = match time::timeout(SILENCE, stream.next()).await {
            // It did not even answer our pings.
            Err(_) | Ok(None) => return Closing::Gone,
            Ok(Some(Err(error))) => return fault(&error),
            Ok(Some(Ok(Message::Text(text)))) => text,
            Ok(Some(Ok(Message::Binary(_)))) => {
                return Closing::fault(code::UNSUPPORTED, "send text: JSON, not binary frames");
            }
            Ok(Some(Ok(Message::Close(_)))) => return Closing::Gone,
            Ok(Some(Ok(_))) => continue,
        };
        let answer = match answer(&mut conversation, &text).await {
            Ok(answer) => answer,
            Err(refusal) => return Closing::fault(code::BAD_REQUEST, refusal.to_string()),
        };
        if answers.send(answer).await.is_err() {
            return Closing::Gone;
        }
        if conversation.is_deaf() {
            return Closing::Bye(Bye::TooFast);
        }
    }
}

/// Answers one frame; the error is for what is no JSON object.
async fn answer(conversation: &mut Conversation, text: &str) -> Result<Value, Refusal> {
    let mut fields = Fields::parse(text)?;
    let reference = fields.raw("ref");
    let verb = fields.need::<String>("verb", "publish, subscribe, unsubscribe or job");
    let answered = match verb {
        Ok(verb) => conversation.answer(&verb, Ok(fields)).await,
        Err(refusal) => conversation.answer("", Err(refusal)).await,
    };
    let mut answer = match answered {
        Ok(done) => json!({ "ok": done }),
        Err(refusal) => json!({ "error": refusal }),
    };
    if let Some(reference) = reference
        && let Ok(reference) = serde_json::from_str::<Value>(reference.get())
    {
        answer["ref"] = reference;
    }
    Ok(answer)
}

struct Writer {
    sink: SplitSink<WebSocket, Message>,
    session: Session,
    handle: SessionHandle,
    slow: Duration,
    handed: Handed,
    /// The newest token that the client was given.
    known: String,
}

impl Writer {
    async fn run(&mut self, mut answers: mpsc::Receiver<Value>) -> Closing {
        let mut pings = time::interval_at(Instant::now() + PING, PING);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                // The token of an answer to `subscribe` is older than those of the events that it
                // brings: after them it would send a client back that keeps the newest.
                biased;
                // All cancel-safe: what was not taken comes the next time.
                answer = answers.recv() => match answer {
                    Some(answer) => text(&answer),
                    None => return Closing::Gone,
                },
                _ = pings.tick() => {
                    // A page does not see pings, and from silence it knows a dead connection.
                    let notice = match fresh(&self.handle, &mut self.known) {
                        Some(token) => json!({ "notice": "token", "token": token }),
                        None => json!({ "notice": "alive" }),
                    };
                    if let Some(closing) = self.send(text(&notice)).await {
                        return closing;
                    }
                    Message::Ping(Default::default())
                }
                item = self.session.next() => {
                    if let Some(closing) = self.hand(item).await {
                        return closing;
                    }
                    continue;
                }
            };
            if let Some(closing) = self.send(message).await {
                return closing;
            }
        }
    }

    async fn hand(&mut self, item: Item) -> Option<Closing> {
        self.handed.begin();
        let (message, token) = match item {
            Item::Event { entry, token } => {
                let token = token.to_string();
                (event(&entry, &token), Some(token))
            }
            Item::Gap { reason } => {
                (text(&json!({ "notice": "gap", "reason": reason.as_str() })), None)
            }
            Item::Ended(ended) => {
                self.handed.done(None);
                return Some(Closing::of(ended.reason));
            }
        };
        let closing = self.send(message).await;
        if closing.is_none() {
            if let Some(token) = &token {
                traffic::sent(TRANSPORT);
                self.known.clone_from(token);
            }
            self.handed.done(token);
        }
        closing
    }

    async fn send(&mut self, message: Message) -> Option<Closing> {
        match time::timeout(self.slow, self.sink.send(message)).await {
            Ok(Ok(())) => None,
            Ok(Err(_)) => Some(Closing::Gone),
            Err(_) => Some(Closing::Bye(Bye::Slow)),
        }
    }

    /// The last words.
    async fn part(&mut self, closing: Closing, token: Option<&str>) {
        let (code, reason) = match closing {
            Closing::Gone => {
                _ = self.sink.close().await;
                return;
            }
            Closing::Fault { code, reason } => (code, reason),
            Closing::Bye(bye) => {
                traffic::ended(TRANSPORT, bye.word());
                let mut notice = bye.notice(token);
                notice["notice"] = "bye".into();
                if self.sink.send(text(&notice)).await.is_err() {
                    return;
                }
                (close_code(bye), bye.word().to_owned())
            }
        };
        let close = CloseFrame { code, reason: shortened(&reason) };
        _ = self.sink.send(Message::Close(Some(close))).await;
        _ = self.sink.close().await;
    }
}

impl Closing {
    fn fault(code: u16, reason: impl Into<String>) -> Self {
        Self::Fault { code, reason: reason.into() }
    }

    fn of(reason: EndReason) -> Self {
        match reason {
            EndReason::Slow => Self::Bye(Bye::Slow),
            EndReason::GoingAway => Self::Bye(Bye::GoingAway),
            _ => Self::Gone,
        }
    }
}

fn close_code(bye: Bye) -> u16 {
    match bye {
        Bye::Slow => code::SLOW,
        Bye::GoingAway => code::RESTART,
        Bye::TokenExpired => code::UNAUTHENTICATED,
        Bye::TooFast => code::TOO_FAST,
    }
}

/// What is wrong with a frame, by what the WebSocket library says of it.
fn fault(error: &axum::Error) -> Closing {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<tungstenite::Error>());
    match cause {
        Some(tungstenite::Error::Capacity(CapacityError::MessageTooLong { max_size, .. })) => {
            Closing::fault(code::TOO_BIG, format!("a message may have {max_size} bytes"))
        }
        Some(tungstenite::Error::Utf8(_)) => Closing::fault(code::INVALID, "send UTF-8"),
        Some(tungstenite::Error::Protocol(
            tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        )) => Closing::Gone,
        Some(tungstenite::Error::Protocol(error)) => {
            Closing::fault(code::PROTOCOL, error.to_string())
        }
        _ => Closing::Gone,
    }
}

/// A close frame has room for 123 bytes.
fn shortened(reason: &str) -> Utf8Bytes {
    let end = (0..=reason.len().min(123)).rev().find(|at| reason.is_char_boundary(*at));
    Utf8Bytes::from(&reason[..end.unwrap_or(0)])
}

fn text(value: &Value) -> Message {
    Message::Text(value.to_string().into())
}

fn event(entry: &Entry, token: &str) -> Message {
    // It was read as JSON when it came.
    let event = std::str::from_utf8(&entry.bytes).unwrap_or("null");
    debug_assert!(serde_json::from_str::<&RawValue>(event).is_ok());
    Message::Text(format!("{{\"event\":{event},\"token\":\"{token}\"}}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_between_characters() {
        assert_eq!(shortened("slow").as_str(), "slow");
        assert_eq!(shortened(&"é".repeat(100)).as_str(), "é".repeat(61));
    }
}
