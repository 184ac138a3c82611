//! The gate: who comes in.
//! In: what a request shows, and the page it comes from. Out: a [`Caller`], or a refusal.

use std::net::IpAddr;
use std::time::SystemTime;

use super::claims::{self, ClaimNames};
use super::keys::Keys;
use super::ticket::Tickets;
use super::{Caller, Grants, Identity};
use crate::refusal::{Code, Refusal};

/// Lets clients in.
#[derive(Debug)]
pub(crate) struct Gate {
    /// None: no token is taken.
    pub(crate) keys: Option<Keys>,
    pub(crate) names: ClaimNames,
    /// What everybody with a token may do besides.
    pub(crate) everybody: Grants,
    /// What those without one may do; none of them comes in if it is not said.
    pub(crate) anonymous: Option<Grants>,
    pub(crate) tickets: Tickets,
    pub(crate) origins: Origins,
}

/// What a client shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown<'a> {
    Token(&'a str),
    Ticket(&'a str),
    Nothing,
}

impl Gate {
    /// Who it is.
    pub(crate) async fn admit(&self, shown: Shown<'_>) -> Result<Caller, Refusal> {
        match (shown, &self.keys, &self.anonymous) {
            (Shown::Token(token), Some(keys), _) => {
                let claims = keys.verify(token).await?;
                let mut identity = claims::identity(&claims, &self.names, &self.everybody)?;
                // As long as the token is taken at the gate.
                let leeway = keys.leeway().as_secs();
                identity.expires = identity.expires.map(|at| at.saturating_add(leeway));
                Caller::new(identity)
            }
            (Shown::Token(_), None, _) => Err(Refusal::unauthenticated(
                "no token is taken here: the gateway has no keys",
                "set secret_file or jwks in [auth] of gateway.toml",
            )),
            (Shown::Ticket(ticket), _, _) => {
                self.tickets.redeem(ticket, SystemTime::now()).and_then(Caller::new)
            }
            (Shown::Nothing, _, Some(grants)) => Caller::anonymous(grants),
            (Shown::Nothing, _, None) => Err(Refusal::unauthenticated(
                "no token was shown",
                "send `Authorization: Bearer TOKEN`; over Socket.IO `auth: { token }`; from \
                 EventSource or WebSocket in a browser `?ticket=`, from POST /ticket",
            )),
        }
    }

    /// A ticket for somebody who has shown a token.
    pub(crate) fn ticket(&self, identity: &Identity) -> Result<String, Refusal> {
        self.tickets.issue(identity, SystemTime::now())
    }
}

/// Which pages may speak to us. A request without an origin comes from no page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origins {
    /// Pages served from this machine: for development.
    Loopback,
    /// Any page.
    Any,
    /// These, each `scheme://host[:port]`, or `scheme://*.domain`.
    Listed(Vec<String>),
}

impl Origins {
    /// Whether a page of this origin may; the origin as a browser writes it.
    pub(crate) fn allow(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Loopback => host(origin).is_some_and(is_loopback),
            Self::Listed(listed) => listed.iter().any(|entry| fits(entry, origin)),
        }
    }

    /// Whether a request that comes from no page, and shows nothing, may come by this name. A page
    /// can have its own name lead to this machine, and its requests then look like ours: not by an
    /// address, and hardly by a name without dots.
    pub(crate) fn allow_host(&self, stated: &str) -> bool {
        let origin = format!("http://{stated}");
        *self != Self::Loopback
            || host(&origin)
                .is_some_and(|host| !host.contains('.') || host.parse::<IpAddr>().is_ok())
    }

    /// The same as a verdict.
    pub(crate) fn check(&self, origin: Option<&str>) -> Result<(), Refusal> {
        match origin {
            Some(origin) if !self.allow(origin) => Err(Refusal::new(
                Code::OriginRefused,
                format!("pages of {origin:?} may not use this gateway"),
                "add the origin to `origins` in gateway.toml",
            )),
            _ => Ok(()),
        }
    }

    /// Whether a text of the settings can be an origin.
    pub(crate) fn is_entry(text: &str) -> bool {
        let bare = |text: &str| !text.is_empty() && !text.contains(['/', '*', '?', '#', '@', ' ']);
        text == "null"
            || text.split_once("://").is_some_and(|(scheme, host)| {
                let host = host.strip_prefix("*.").unwrap_or(host);
                bare(scheme) && bare(host) && *text == text.to_ascii_lowercase()
            })
    }
}

fn fits(entry: &str, origin: &str) -> bool {
    let Some((scheme, domain)) = entry.split_once("://*.") else {
        return entry == origin;
    };
    let host = origin.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://"));
    host.and_then(|host| host.strip_suffix(domain))
        .is_some_and(|label| label.len() > 1 && label.ends_with('.') && !label.contains(['/', '@']))
}

/// The host of an origin, without its port.
fn host(origin: &str) -> Option<&str> {
    let (_, host) = origin.split_once("://")?;
    match host.strip_prefix('[') {
        Some(six) => six.split_once(']').map(|(host, _)| host),
        None => Some(host.split_once(':').map_or(host, |(host, _)| host)),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(anonymous: Option<Grants>) -> Gate {
        Gate {
            keys: None,
            names: ClaimNames::default(),
            everybody: Grants::default(),
            anonymous,
            tickets: Tickets::new(None),
            origins: Origins::Loopback,
        }
    }

    #[tokio::test]
    async fn without_a_token_nobody_comes_in_unless_it_is_said() {
        let closed = gate(None).admit(Shown::Nothing).await.unwrap_err();
        assert_eq!(closed.code(), Code::Unauthenticated);
        let open = gate(Some(Grants::default())).admit(Shown::Nothing).await.unwrap();
        assert!(open.is_anonymous());
        let wrong = gate(Some(Grants::default())).admit(Shown::Token("x.y.z")).await.unwrap_err();
        assert!(wrong.to_string().contains("has no keys"), "a token is never ignored: {wrong}");
    }

    #[tokio::test]
    async fn a_ticket_stands_for_the_token_that_it_was_made_for() {
        let gate = gate(None);
        let ada = crate::auth::tests::caller("ada", &["note.*"], &["kind:note.*"], false);
        let ticket = gate.ticket(ada.identity()).unwrap();
        let again = gate.admit(Shown::Ticket(&ticket)).await.unwrap();
        assert_eq!((again.subject(), again.owner()), ("ada", "ada"));
        assert!(again.may_publish("note.take").is_ok() && again.may_read_kind("note.take").is_ok());
        assert!(gate.admit(Shown::Ticket(&ticket)).await.is_err());
    }

    #[test]
    fn pages_of_this_machine_may_and_of_the_list_if_there_is_one() {
        for (origin, allowed) in [
            ("http://localhost", true),
            ("http://localhost:3000", true),
            ("http://127.0.0.1:8090", true),
            ("http://[::1]:80", true),
            ("http://localhost.evil.example", false),
            ("http://127.0.0.1.evil.example", false),
            ("https://example.org", false),
            ("null", false),
            ("", false),
        ] {
            assert_eq!(Origins::Loopback.allow(origin), allowed, "{origin}");
        }
        let listed = ["https://app.example.org", "https://*.example.com", "null"];
        let listed = Origins::Listed(listed.map(str::to_owned).into());
        for (origin, allowed) in [
            ("https://app.example.org", true),
            ("https://app.example.org:444", false),
            ("http://app.example.org", false),
            ("https://a.example.com", true),
            ("https://a.b.example.com", true),
            ("https://example.com", false),
            ("https://.example.com", false),
            ("https://evilexample.com", false),
            ("https://evil.org/.example.com", false),
            ("null", true),
            ("http://localhost", false),
        ] {
            assert_eq!(listed.allow(origin), allowed, "{origin}");
        }
        assert!(Origins::Any.allow("null") && Origins::Loopback.check(None).is_ok());
    }

    #[test]
    fn a_name_that_leads_here_is_not_ours() {
        for (host, allowed) in [
            ("localhost:8090", true),
            ("127.0.0.1:8090", true),
            ("[::1]:8090", true),
            ("gateway:8090", true),
            ("evil.example:8090", false),
            ("evil.example", false),
        ] {
            assert_eq!(Origins::Loopback.allow_host(host), allowed, "{host}");
        }
        assert!(Origins::Listed(Vec::new()).allow_host("gateway.example.org"));
    }

    #[test]
    fn what_is_no_origin_is_found_in_the_settings() {
        for good in ["https://a.example", "http://localhost:3000", "https://*.a.example", "null"] {
            assert!(Origins::is_entry(good), "{good}");
        }
        for bad in ["", "a.example", "https://", "https://a/", "https://*", "https://A.example"] {
            assert!(!Origins::is_entry(bad), "{bad}");
        }
    }
}
