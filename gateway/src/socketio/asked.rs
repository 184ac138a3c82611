//! What a request on `/socket.io` asks of the library.
//! In: an address and a head. Out: which transport of which session, and as much of the head as the
//! library gets. Pure.

use std::sync::Arc;

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Request, Uri};
use socketioxide::socket::Sid;

use super::transport::Transport;
use crate::peer::Peer;
use crate::refusal::Refusal;

/// Of a `t`, which has a few bytes; nobody has a longer one kept.
const LONGEST: usize = 64;

/// `?EIO=4&transport=…&sid=…`; clients add what they like, and it is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) websocket: bool,
    pub(super) sid: Option<Sid>,
}

impl Asked {
    pub(super) fn read(query: &str) -> Result<Self, Refusal> {
        let remedy = "use a Socket.IO client of version 3 or 4";
        let (mut version, mut transport, mut sid) = (None, None, None);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "EIO" => version = Some(value),
                "transport" => transport = Some(value),
                "sid" => sid = Some(value),
                _ => {}
            }
        }
        if version.as_deref() != Some("4") {
            return Err(Refusal::bad("`EIO` is not 4", remedy));
        }
        let websocket = match transport.as_deref() {
            Some("polling") => false,
            Some("websocket") => true,
            _ => return Err(Refusal::bad("`transport` is neither polling nor websocket", remedy)),
        };
        let sid = sid.map(|sid| sid.parse::<Sid>()).transpose();
        let sid = sid.map_err(|_| Refusal::bad("`sid` is no id of a session", remedy))?;
        Ok(Self { websocket, sid })
    }

    pub(super) fn address(self) -> Uri {
        let transport = if self.websocket { "websocket" } else { "polling" };
        let mut address = format!("/socket.io/?EIO=4&transport={transport}");
        if let Some(sid) = self.sid {
            address.extend(["&sid=", sid.as_str()]);
        }
        address.try_into().expect("it is made of what an address may have")
    }

    /// The head that the library keeps: copies of what is needed of it.
    pub(super) fn first(self, parts: &Parts, transport: &Arc<Transport>) -> Request<()> {
        let mut first = Request::new(());
        *first.uri_mut() = self.address();
        for name in [AUTHORIZATION, ORIGIN, HOST] {
            if let Some(value) = parts.headers.get(&name)
                && let Ok(value) = HeaderValue::from_bytes(value.as_bytes())
            {
                first.headers_mut().insert(name, value);
            }
        }
        if let Some(peer) = parts.extensions.get::<Peer>() {
            first.extensions_mut().insert(*peer);
        }
        first.extensions_mut().insert(Arc::clone(transport));
        first
    }
}

/// What a poll is told from the one before by: the client gives each another `t`, so that nothing
/// answers from a cache.
pub(super) fn stamp(query: &str) -> Option<String> {
    let mut fields = form_urlencoded::parse(query.as_bytes());
    let (_, stamp) = fields.find(|(name, _)| name == "t")?;
    (stamp.len() <= LONGEST).then(|| stamp.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Code;

    #[test]
    fn an_address_is_read_and_written_without_what_clients_add() {
        let sid = Sid::new();
        let read = Asked::read(&format!("t=abc&EIO=4&transport=polling&sid={sid}&x=y")).unwrap();
        assert_eq!(read, Asked { websocket: false, sid: Some(sid) });
        let address = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
        assert_eq!(read.address(), address.as_str());
        let begins = Asked::read("EIO=4&transport=websocket").unwrap();
        assert_eq!(begins, Asked { websocket: true, sid: None });
        for wrong in ["", "EIO=4", "EIO=3&transport=polling", "EIO=4&transport=pigeon"] {
            assert_eq!(Asked::read(wrong).unwrap_err().code(), Code::BadRequest, "{wrong}");
        }
        for sid in ["", "x", "AAAAAAAAAAAAAAA!"] {
            assert!(Asked::read(&format!("EIO=4&transport=polling&sid={sid}")).is_err());
        }
    }

    #[test]
    fn a_poll_has_the_stamp_that_its_client_gave_it() {
        assert_eq!(stamp("EIO=4&t=x1&sid=a"), Some("x1".to_owned()));
        assert_eq!(stamp("EIO=4&transport=polling"), None);
        assert_eq!(stamp(&format!("t={}", "x".repeat(65))), None);
    }
}
