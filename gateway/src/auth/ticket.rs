//! Tickets: how a browser that cannot send headers shows who it is.
//! In: an identity. Out: a text that lets it in once, within half a minute; sealed, so that neither
//! a reader of it nor of a log learns anything.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::Identity;
use crate::refusal::{Code, Refusal};

/// How long a ticket holds.
pub(crate) const LIFETIME: Duration = Duration::from_secs(30);
/// Tickets of two gateways must not differ over the time of day.
const SKEW: u64 = 5;
/// The largest ticket: it has to fit into a URL.
const LARGEST: usize = 4 * 1024;
/// How many used tickets are remembered, each until it would have expired.
const MOST_USED: usize = 100_000;
const PURPOSE: &[u8] = b"forebay ticket 1";

type Id = [u8; NONCE_LEN];

/// Makes tickets and takes them.
#[derive(Debug)]
pub(crate) struct Tickets {
    key: LessSafeKey,
    random: SystemRandom,
    /// What was taken, and when it would have expired.
    used: Mutex<HashMap<Id, u64>>,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    until: u64,
    identity: Identity,
}

impl Tickets {
    /// With a key that several gateways share, else with one that nobody knows.
    pub(crate) fn new(secret: Option<&[u8]>) -> Self {
        let random = SystemRandom::new();
        let mut key = [0; 32];
        match secret {
            Some(secret) => key.copy_from_slice(digest(&SHA256, secret).as_ref()),
            None => random.fill(&mut key).expect("the operating system has random numbers"),
        }
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key).expect("the key has 32 bytes");
        Self { key: LessSafeKey::new(key), random, used: Mutex::default() }
    }

    /// A ticket for somebody who has shown who it is.
    pub(crate) fn issue(&self, identity: &Identity, now: SystemTime) -> Result<String, Refusal> {
        let now = seconds(now);
        let until = identity.expires.unwrap_or(u64::MAX).min(now + LIFETIME.as_secs());
        let sealed = Sealed { until, identity: identity.clone() };
        let mut text = serde_json::to_vec(&sealed).expect("texts and numbers turn into JSON");
        let mut id = [0; NONCE_LEN];
        self.random.fill(&mut id).expect("the operating system has random numbers");
        let nonce = Nonce::assume_unique_for_key(id);
        let sealed = self.key.seal_in_place_append_tag(nonce, Aad::from(PURPOSE), &mut text);
        sealed.expect("a ticket is far shorter than what can be sealed");
        let ticket = URL_SAFE_NO_PAD.encode([&id[..], &text].concat());
        if ticket.len() > LARGEST {
            return Err(Refusal::new(
                Code::TooLarge,
                "the token grants more than fits into a ticket",
                "have the issuer write patterns in place of long lists",
            ));
        }
        Ok(ticket)
    }

    /// Who shows this ticket, if it holds and was not used here before.
    pub(crate) fn redeem(&self, ticket: &str, now: SystemTime) -> Result<Identity, Refusal> {
        let now = seconds(now);
        if ticket.len() > LARGEST {
            return Err(refused());
        }
        let mut text = URL_SAFE_NO_PAD.decode(ticket).map_err(|_| refused())?;
        let (id, sealed) = text.split_at_mut_checked(NONCE_LEN).ok_or_else(refused)?;
        let id: Id = Id::try_from(&*id).map_err(|_| refused())?;
        let nonce = Nonce::assume_unique_for_key(id);
        let opened = self.key.open_in_place(nonce, Aad::from(PURPOSE), sealed);
        let opened = opened.map_err(|_| refused())?;
        let Sealed { until, identity } = serde_json::from_slice(opened).map_err(|_| refused())?;
        if until <= now || until > now + LIFETIME.as_secs() + SKEW {
            return Err(refused());
        }
        self.mark(id, until, now)?;
        Ok(identity)
    }

    fn mark(&self, id: Id, until: u64, now: u64) -> Result<(), Refusal> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= MOST_USED {
            used.retain(|_, until| *until > now);
        }
        if used.len() >= MOST_USED {
            return Err(Refusal::unavailable("too many tickets were used within half a minute"));
        }
        match used.insert(id, until) {
            None => Ok(()),
            Some(_) => Err(refused()),
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn refused() -> Refusal {
    Refusal::unauthenticated(
        "the ticket is unknown, used or older than 30 s",
        "get a new one for each connection: POST /ticket with your token",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Grants;

    fn ada() -> Identity {
        let grants = Grants { read: vec!["channel:news".into()], ..Grants::default() };
        let subject = "ada".to_owned();
        Identity { owner: Some(subject.clone()), subject, grants, expires: None }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    #[test]
    fn a_ticket_lets_in_once_and_for_half_a_minute() {
        let tickets = Tickets::new(None);
        let ticket = tickets.issue(&ada(), at(0)).unwrap();
        assert_eq!(tickets.redeem(&ticket, at(29)).unwrap(), ada());
        assert!(tickets.redeem(&ticket, at(29)).is_err(), "used");
        let late = tickets.issue(&ada(), at(0)).unwrap();
        assert!(tickets.redeem(&late, at(30)).is_err());
    }

    #[test]
    fn it_does_not_outlive_the_token_it_was_made_for() {
        let tickets = Tickets::new(None);
        let brief = Identity { expires: Some(1_000_010), ..ada() };
        let ticket = tickets.issue(&brief, at(0)).unwrap();
        assert!(tickets.redeem(&ticket, at(10)).is_err());
        assert!(tickets.redeem(&ticket, at(9)).is_ok());
    }

    #[test]
    fn nobody_else_can_make_or_read_one() {
        let tickets = Tickets::new(None);
        let ticket = tickets.issue(&ada(), at(0)).unwrap();
        assert!(Tickets::new(None).redeem(&ticket, at(0)).is_err());
        let bytes = URL_SAFE_NO_PAD.decode(&ticket).unwrap();
        assert!(!bytes.windows(3).any(|window| window == b"ada"));
        for place in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[place] ^= 1;
            assert!(tickets.redeem(&URL_SAFE_NO_PAD.encode(forged), at(0)).is_err());
        }
        for garbage in ["", "x", "AAAA", "💥", &"A".repeat(5_000)] {
            assert!(tickets.redeem(garbage, at(0)).is_err(), "{garbage}");
        }
    }

    #[test]
    fn gateways_that_share_a_key_take_each_other_s() {
        let (one, two) = (Tickets::new(Some(b"shared")), Tickets::new(Some(b"shared")));
        let ticket = one.issue(&ada(), at(0)).unwrap();
        assert_eq!(two.redeem(&ticket, at(1)).unwrap(), ada());
    }

    #[test]
    fn what_does_not_fit_into_a_url_is_refused() {
        let mut wide = ada();
        wide.grants.publish = (0..1_000).map(|n| format!("kind.{n}")).collect();
        let error = Tickets::new(None).issue(&wide, at(0)).unwrap_err();
        assert_eq!(error.code(), Code::TooLarge);
    }
}
