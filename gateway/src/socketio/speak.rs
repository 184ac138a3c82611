//! What a Socket.IO client is told: events, gaps and fresh tokens, no faster than it takes them.
//! In: a session. Out: packets of the library, whose buffer refuses what is beyond it; what was
//! refused stays.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use socketioxide::extract::SocketRef;
use socketioxide::{SendError, SocketIo};
use tokio::time::{self, Instant, MissedTickBehavior};

use super::flow::Flow;
use super::{TRANSPORT, full, is_there};
use crate::doors::{Bye, Handed, fresh};
use crate::hub::{EndReason, Entry, Item, Session, SessionHandle};
use crate::pace::Pace;
use crate::traffic;

/// How often a client of quiet rooms is given a fresh token.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// What the library writes around an event and its token, at least.
const AROUND: &str = r#"42["event",{"event":,"token":""}]"#;
/// After so long without a word the library's buffer is as good as empty.
const QUIET: Duration = Duration::from_millis(100);

/// Hands over what happens, as fast as it is taken.
pub(super) struct Teller<'s> {
    pub(super) socket: &'s SocketRef,
    pub(super) io: &'s SocketIo,
    pub(super) flow: &'s Flow,
    pub(super) session: Session,
    pub(super) handle: SessionHandle,
    pub(super) slow: Duration,
    pub(super) pace: Pace,
    pub(super) handed: Handed,
    /// The newest token that the client was given.
    pub(super) known: String,
}

impl Teller<'_> {
    pub(super) async fn run(&mut self) -> Option<Bye> {
        let mut beats = time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let before = Instant::now();
            let item = tokio::select! {
                // Both cancel-safe.
                item = self.session.next() => item,
                _ = beats.tick() => {
                    // It may have left in the moment in which it came, without a word.
                    if !is_there(self.io, self.socket) {
                        return None;
                    }
                    if let Some(token) = fresh(&self.handle, &mut self.known) {
                        // If there is no room now, there is more to tell than a token.
                        _ = self.socket.emit("token", &json!({ "token": token }));
                    }
                    continue;
                }
            };
            if before.elapsed() > QUIET {
                self.pace.idle();
            }
            if let Err(bye) = self.hand(item).await {
                return bye;
            }
        }
    }

    /// Hands over one thing. The error is the end, and what the client is told of it.
    async fn hand(&mut self, item: Item) -> Result<(), Option<Bye>> {
        self.handed.begin();
        let (name, body, token) = match item {
            Item::Event { entry, token } => {
                let token = token.to_string();
                ("event", Body::told(&entry, &token), Some(token))
            }
            Item::Gap { reason } => {
                ("gap", Body::Notice(json!({ "reason": reason.as_str() })), None)
            }
            Item::Ended(ended) => {
                self.handed.done(None);
                return Err(match ended.reason {
                    EndReason::Slow => Some(Bye::Slow),
                    EndReason::GoingAway => Some(Bye::GoingAway),
                    _ => None,
                });
            }
        };
        if !self.flow.room(self.slow).await {
            return Err(Some(Bye::Slow));
        }
        let since = Instant::now();
        self.flow.give(body.len());
        while full(&body.emit(self.socket, name)) {
            if since.elapsed() >= self.slow {
                return Err(Some(Bye::Slow));
            }
            time::sleep(self.pace.refused()).await;
        }
        if let Some(token) = &token {
            traffic::sent(TRANSPORT);
            self.known.clone_from(token);
        }
        self.handed.done(token);
        if let Some(rest) = self.pace.taken() {
            time::sleep(rest).await;
        }
        Ok(())
    }
}

enum Body {
    Told(Box<RawValue>, String),
    Notice(Value),
}

impl Body {
    fn told(entry: &Entry, token: &str) -> Self {
        // It was read as JSON when it came.
        let text = std::str::from_utf8(&entry.bytes).unwrap_or("null");
        let event: &RawValue = serde_json::from_str(text).unwrap_or(RawValue::NULL);
        Self::Told(event.to_owned(), token.to_owned())
    }

    /// Bytes at least.
    fn len(&self) -> usize {
        match self {
            Self::Told(event, token) => AROUND.len() + event.get().len() + token.len(),
            Self::Notice(_) => 0,
        }
    }

    fn emit(&self, socket: &SocketRef, name: &str) -> Result<(), SendError> {
        match self {
            Self::Told(event, token) => socket.emit(name, &Told { event, token }),
            Self::Notice(value) => socket.emit(name, value),
        }
    }
}

#[derive(Serialize)]
struct Told<'a> {
    event: &'a RawValue,
    token: &'a str,
}
