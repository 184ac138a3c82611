//! Server-Sent Events: what a client follows, in one answer that does not end.
//! In: a session that follows already. Out: lines; each event's `id` is its token, which a browser
//! sends back as `Last-Event-ID`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;
use tokio::time;

use crate::doors::{Bye, Conversation, Doors, fresh};
use crate::hub::{EndReason, Item, Session};
use crate::traffic;
use crate::ws::expiry;

const TRANSPORT: &str = "sse";
/// How often something is sent, so that nobody in between takes the connection for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a browser waits before it connects again.
const RETRY: &str = "retry: 2000\n\n";

/// One client; what is dropped with the answer's body.
struct Listener {
    doors: Arc<Doors>,
    conversation: Conversation,
    session: Session,
    expires: time::Instant,
    state: State,
    /// The newest token that the client was given.
    known: String,
}

enum State {
    Begun(Value),
    Live,
    Over,
}

/// The answer: first how it was joined, then what happens.
pub(crate) fn answer(
    doors: Arc<Doors>,
    conversation: Conversation,
    session: Session,
    joined: Value,
) -> Response {
    let left = conversation.guest().time_left();
    // As far as a timer reaches, if there is no end.
    let left = left.unwrap_or(Duration::from_secs(365 * 24 * 3600));
    let expires = time::Instant::now() + left.min(Duration::from_secs(365 * 24 * 3600));
    let state = State::Begun(joined);
    let known = String::new();
    let listener = Listener { doors, conversation, session, expires, state, known };
    let lines = stream::unfold(listener, |mut listener| async move {
        let lines = listener.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(lines)), listener))
    });
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    // nginx would keep the lines back otherwise.
    (headers, [("x-accel-buffering", "no")], Body::from_stream(lines)).into_response()
}

impl Listener {
    /// The next lines; asked for when the client has taken those before.
    async fn next(&mut self) -> Option<String> {
        match std::mem::replace(&mut self.state, State::Live) {
            State::Over => None,
            State::Begun(joined) => {
                let token = joined["token"].as_str().unwrap_or_default();
                Some(RETRY.to_owned() + &named("subscribed", Some(token), &joined.to_string()))
            }
            State::Live => Some(self.live().await),
        }
    }

    async fn live(&mut self) -> String {
        let expires = self.expires.saturating_duration_since(time::Instant::now());
        tokio::select! {
            // All cancel-safe.
            item = self.session.next() => match item {
                Item::Event { entry, token } => {
                    traffic::sent(TRANSPORT);
                    let event = String::from_utf8_lossy(&entry.bytes);
                    self.known = token.to_string();
                    block(None, Some(&self.known), &event)
                }
                Item::Gap { reason } => {
                    let gap = serde_json::json!({ "reason": reason.as_str() });
                    named("gap", None, &gap.to_string())
                }
                Item::Ended(ended) => self.part(match ended.reason {
                    EndReason::Slow => Bye::Slow,
                    _ => Bye::GoingAway,
                }),
            },
            () = self.doors.closing.cancelled() => self.part(Bye::GoingAway),
            () = expiry(Some(expires)) => self.part(Bye::TokenExpired),
            // A page does not see comments, and from silence it knows a dead connection. Whoever
            // does not listen for it still has the new id.
            () = time::sleep(HEARTBEAT) => {
                let token = fresh(&self.conversation.handle, &mut self.known);
                named("alive", token.as_deref(), "{}")
            }
        }
    }

    fn part(&mut self, bye: Bye) -> String {
        traffic::ended(TRANSPORT, bye.word());
        self.state = State::Over;
        let token = self.conversation.handle.token().to_string();
        named("bye", Some(&token), &bye.notice(Some(&token)).to_string())
    }
}

fn named(name: &str, id: Option<&str>, data: &str) -> String {
    block(Some(name), id, data)
}

/// One event. JSON has line breaks between its parts only, where a space does as well.
fn block(name: Option<&str>, id: Option<&str>, data: &str) -> String {
    let mut text = String::with_capacity(data.len() + 128);
    for (field, value) in [("event", name), ("id", id)] {
        if let Some(value) = value {
            text.extend([field, ": ", value, "\n"]);
        }
    }
    text.push_str("data: ");
    text.extend(data.chars().map(|c| if matches!(c, '\n' | '\r') { ' ' } else { c }));
    text.push_str("\n\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_block_whatever_its_json_looks_like() {
        assert_eq!(block(None, Some("7.a"), "{\"a\":1}"), "id: 7.a\ndata: {\"a\":1}\n\n");
        let foreign = "{\r\n  \"a\": \"\\n\"\n}";
        assert_eq!(named("x", None, foreign), "event: x\ndata: {    \"a\": \"\\n\" }\n\n");
    }
}
