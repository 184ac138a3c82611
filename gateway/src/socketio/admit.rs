//! Who may connect over Socket.IO.
//! In: what a client shows, in `auth` or in the head of its first request. Out: a seat, or a
//! `connect_error`.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::http::request::Parts;
use serde::Deserialize;
use serde_json::value::RawValue;
use socketioxide::extract::{SocketRef, TryData};
use socketioxide::socket::Socket;

use super::TRANSPORT;
use super::transport::Transport;
use crate::auth::gate::Shown;
use crate::doors::{Conversation, Doors};
use crate::hub::Session;
use crate::peer::Peer;
use crate::refusal::Refusal;
use crate::traffic;

/// A refusal becomes the message of `connect_error`.
pub(super) async fn admit(
    doors: &Arc<Doors>,
    socket: &SocketRef,
    TryData(auth): TryData<Box<RawValue>>,
) -> Result<(), Refusal> {
    let seat = let_in(doors, socket, auth.as_ref().map_or("not JSON", |auth| auth.get())).await;
    traffic::requested(TRANSPORT, seat.as_ref().map(|_| ()).map_err(Refusal::code));
    socket.extensions.insert(Seat(Arc::new(Mutex::new(Some(seat?)))));
    if let Some(transport) = Transport::of(socket) {
        transport.let_in();
    }
    Ok(())
}

async fn let_in(
    doors: &Arc<Doors>,
    socket: &SocketRef,
    auth: &str,
) -> Result<(Conversation, Session), Refusal> {
    let parts = socket.req_parts();
    let auth = Auth::read(auth)?;
    let guest = match (&auth.token, &auth.ticket) {
        (Some(token), _) => doors.admit_as(Shown::Token(token), peer(parts)).await?,
        (None, ticket) => doors.admit(&parts.headers, ticket.as_deref(), peer(parts)).await?,
    };
    doors.house.request(&guest.who, Instant::now())?;
    doors.seat(guest, TRANSPORT)
}

/// A client's seat, from the moment it is admitted to that at which it is connected.
#[derive(Clone)]
struct Seat(Arc<Mutex<Option<(Conversation, Session)>>>);

/// Takes the seat of who was let in.
pub(super) fn seat(socket: &Socket) -> Option<(Conversation, Session)> {
    let Seat(seat) = socket.extensions.remove::<Seat>()?;
    seat.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn peer(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<Peer>().map(|peer| peer.client)
}

/// What a client shows when it connects: `io(url, { auth: { token } })`.
#[derive(Debug, Default, Deserialize)]
struct Auth {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    ticket: Option<String>,
}

impl Auth {
    /// Nothing at all is no fault: a token may stand in the head. But what cannot be read must not
    /// be taken for nothing.
    fn read(auth: &str) -> Result<Self, Refusal> {
        serde_json::from_str::<Option<Self>>(auth).map(Option::unwrap_or_default).map_err(|_| {
            Refusal::unauthenticated(
                "`auth` has the wrong form",
                "connect with { auth: { token } } or { auth: { ticket } }, each a text",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_shows_is_never_taken_for_nothing() {
        for nothing in ["null", "{}", r#"{"token":null}"#, r#"{"other":1}"#] {
            let auth = Auth::read(nothing).unwrap();
            assert!(auth.token.is_none() && auth.ticket.is_none());
        }
        assert_eq!(Auth::read(r#"{"token":"x"}"#).unwrap().token.as_deref(), Some("x"));
        for wrong in [r#"{"token":7}"#, r#""x.y.z""#, r#"{"ticket":{}}"#, "not JSON"] {
            assert!(Auth::read(wrong).is_err());
        }
    }
}
