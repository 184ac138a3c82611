//! What all transports share: one client's wishes, and what it may see.
//! In: requests of a client that was let in. Out: answers, or refusals; each is counted.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use forebay_producer::EventKind;
use serde_json::{Value, json};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Caller;
use crate::auth::gate::{Gate, Shown};
use crate::haste::Haste;
use crate::hub::{Entry, Eyes, Hub, Room, Session, SessionHandle, StartFrom, SubscribeError};
use crate::ingress::{Ingress, Rules};
use crate::limits::{House, Place};
use crate::refusal::{Code, Refusal};
use crate::request::{Fields, Publish, Request, Subscribe, Topic, Whence};
use crate::traffic::{self, Present};

/// Everything that a transport needs.
#[derive(Debug)]
pub(crate) struct Doors {
    pub(crate) hub: Hub,
    pub(crate) gate: Gate,
    pub(crate) house: Arc<House>,
    pub(crate) rules: Rules,
    pub(crate) ingress: Ingress,
    /// A client that takes nothing for so long is sent away.
    pub(crate) slow: Duration,
    /// How long a publish waits for the broker.
    pub(crate) deadline: Duration,
    /// Whatever lives longer than a request.
    pub(crate) tasks: TaskTracker,
    /// The gateway ends.
    pub(crate) closing: CancellationToken,
}

impl Doors {
    /// Who it is, by what the request shows: a token in its head, or a ticket.
    pub(crate) async fn admit(
        &self,
        headers: &HeaderMap,
        ticket: Option<&str>,
        peer: Option<IpAddr>,
    ) -> Result<Guest, Refusal> {
        let origin = headers.get(ORIGIN).map(|origin| origin.to_str().unwrap_or("?"));
        self.gate.origins.check(origin)?;
        let shown = match (bearer(headers)?, ticket) {
            (Some(token), _) => Shown::Token(token),
            (None, Some(ticket)) => Shown::Ticket(ticket),
            (None, None) => Shown::Nothing,
        };
        let host = headers.get(HOST).map(|host| host.to_str().unwrap_or("?"));
        if shown == Shown::Nothing && !host.is_none_or(|host| self.gate.origins.allow_host(host)) {
            return Err(Refusal::new(
                Code::OriginRefused,
                "without a token this gateway is asked by an address, or a name without dots",
                "list the pages that may use it under `origins` in gateway.toml",
            ));
        }
        self.admit_as(shown, peer).await
    }

    pub(crate) async fn admit_as(
        &self,
        shown: Shown<'_>,
        peer: Option<IpAddr>,
    ) -> Result<Guest, Refusal> {
        let caller = self.gate.admit(shown).await?;
        let who = match (caller.is_anonymous(), peer) {
            (true, Some(peer)) => format!("address {peer}"),
            (true, None) => "nobody".to_owned(),
            (false, _) => format!("subject {}", caller.subject()),
        };
        Ok(Guest { caller: Arc::new(caller), who })
    }

    /// Publishes for a guest.
    pub(crate) async fn publish(&self, guest: &Guest, publish: Publish) -> Result<Value, Refusal> {
        let plan = self.rules.plan(&guest.caller, publish)?;
        self.house.publish(&guest.who, Instant::now())?;
        if plan.keyed {
            self.remembering().await?;
        }
        // Whatever happens to the job comes after this.
        let token = Some(self.hub.head().to_string());
        let known = if plan.keyed { self.hub.before(&plan.id) } else { None };
        let published = self.ingress.publish(plan, token, known).await?;
        Ok(serde_json::to_value(published).expect("texts turn into JSON"))
    }

    /// Whether a key was used before is read from the stream; until it can be, a job with one may
    /// be there already.
    async fn remembering(&self) -> Result<(), Refusal> {
        match time::timeout(self.deadline, self.hub.opened()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(unavailable(&error)),
            Err(_) => Err(Refusal::unavailable(
                "it cannot be looked up now whether this `key` was used before",
            )),
        }
    }

    /// What is known of a job, if the guest may see it.
    pub(crate) async fn job(&self, guest: &Guest, id: &str) -> Result<Value, Refusal> {
        let found = self
            .hub
            .on_behalf_of(&guest.who)
            .state_of(id)
            .await
            .map_err(|error| unavailable(&error))?;
        let seen = found.filter(|job| guest.caller.may_see_job_of(job.owner.as_deref()));
        let Some(job) = seen else {
            return Err(Refusal::new(
                Code::NotFound,
                "there is no such job, or it is not yours, or what happened to it is not kept",
                "look at the id; jobs are kept as long as the stream of events keeps them",
            ));
        };
        Ok(serde_json::to_value(job).expect("texts turn into JSON"))
    }

    /// Lets a guest stay.
    pub(crate) fn seat(
        self: &Arc<Self>,
        guest: Guest,
        transport: &'static str,
    ) -> Result<(Conversation, Session), Refusal> {
        if self.closing.is_cancelled() {
            return Err(Refusal::unavailable("the gateway ends"));
        }
        let place = self.house.enter(&guest.who)?;
        let session = self.hub.on_behalf_of(&guest.who).session(guest.eyes());
        let conversation = Conversation {
            handle: session.handle(),
            haste: Haste::new(self.house.limits.frames),
            doors: Arc::clone(self),
            guest,
            _place: place,
            _present: Present::client(transport),
        };
        Ok((conversation, session))
    }
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    token.map(Some).ok_or_else(|| {
        Refusal::unauthenticated(
            "the header Authorization is no bearer token",
            "write it as `Authorization: Bearer TOKEN`",
        )
    })
}

/// Somebody who was let in, and under which name its limits are kept.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) caller: Arc<Caller>,
    pub(crate) who: String,
}

impl Guest {
    /// Says of each event whether it may be seen: own jobs, and channels that are granted.
    fn eyes(&self) -> Eyes {
        let caller = Arc::clone(&self.caller);
        Arc::new(move |entry| may_see(&caller, entry))
    }

    /// When it has to leave, or show a new token.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        let expires = self.caller.expires()?;
        Some(expires.duration_since(SystemTime::now()).unwrap_or_default())
    }

    fn check(&self, topic: &Topic) -> Result<(), Refusal> {
        match topic {
            // Nobody knows yet whose it is: what it tells is looked at one by one.
            Topic::Job(_) => Ok(()),
            Topic::Kind(kind) => self.caller.may_read_kind(kind),
            Topic::Channel(channel) => self.caller.may_read_channel(channel),
        }
    }
}

fn may_see(caller: &Caller, entry: &Entry) -> bool {
    if entry.what != EventKind::Channel {
        return caller.may_see_job_of(entry.owner.as_deref());
    }
    entry.rooms.iter().any(|room| match room {
        Room::Channel(channel) => caller.may_see_channel(channel),
        _ => false,
    })
}

/// One client that stays: what it asks for, one thing after the other.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) handle: SessionHandle,
    doors: Arc<Doors>,
    guest: Guest,
    haste: Haste,
    _place: Place,
    _present: Present,
}

impl Conversation {
    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Whether it was told to be slower so often that it does not listen.
    pub(crate) fn is_deaf(&self) -> bool {
        self.haste.is_deaf()
    }

    /// Counts a request and does what is asked for.
    pub(crate) async fn answer(
        &mut self,
        verb: &str,
        fields: Result<Fields, Refusal>,
    ) -> Result<Value, Refusal> {
        let counted = self.haste.count(|| Ok(()));
        self.answer_counted(verb, counted.and(fields)).await
    }

    /// Does what is asked for, for transports that count before they parse.
    pub(crate) async fn answer_counted(
        &mut self,
        verb: &str,
        fields: Result<Fields, Refusal>,
    ) -> Result<Value, Refusal> {
        let known = ["publish", "subscribe", "unsubscribe", "job"];
        let word = known.into_iter().find(|known| *known == verb).unwrap_or("unknown");
        let answer = self.attempt(verb, fields).await;
        traffic::requested(word, answer.as_ref().map(|_| ()).map_err(Refusal::code));
        answer
    }

    async fn attempt(
        &mut self,
        verb: &str,
        fields: Result<Fields, Refusal>,
    ) -> Result<Value, Refusal> {
        match Request::read(verb, fields?)? {
            Request::Publish(publish) => self.doors.publish(&self.guest, publish).await,
            Request::Subscribe(subscribe) => self.subscribe(subscribe).await,
            Request::Unsubscribe(topics) => {
                let left = topics.iter().filter(|topic| self.handle.unsubscribe(&room(topic)));
                Ok(json!({ "left": left.count() }))
            }
            Request::Job(id) => self.doors.job(&self.guest, &id).await,
        }
    }

    /// Follows what is named, from the same place on.
    pub(crate) async fn subscribe(&mut self, wish: Subscribe) -> Result<Value, Refusal> {
        wish.topics.iter().try_for_each(|topic| self.guest.check(topic))?;
        let most = self.doors.house.limits.subscriptions;
        if self.handle.rooms() + wish.topics.len() > most {
            return Err(Refusal::new(
                Code::TooMany,
                format!("one connection may follow {most} jobs, kinds and channels"),
                "leave some with unsubscribe, or follow a kind in place of its jobs",
            ));
        }
        let from = match wish.from {
            Whence::Now => StartFrom::Now,
            Whence::Beginning => StartFrom::Beginning,
            Whence::After(token) => StartFrom::After(token.parse().map_err(|error| {
                Refusal::bad(format!("`from`: {error}"), "send the last token that you have got")
            })?),
        };
        let rooms = wish.topics.iter().map(room).collect();
        let joined = self.handle.subscribe(rooms, from).await;
        let joined = joined.map_err(|error| unavailable(&error))?;
        Ok(json!({
            "recovered": joined.recovered,
            "reason": joined.reason.map(|gap| gap.as_str()),
            "token": joined.token.to_string(),
        }))
    }
}

fn room(topic: &Topic) -> Room {
    match topic {
        Topic::Job(id) => Room::job(id),
        Topic::Kind(kind) => Room::kind(kind),
        Topic::Channel(channel) => Room::channel(channel),
    }
}

fn unavailable(error: &SubscribeError) -> Refusal {
    tracing::warn!(%error, "the stream of events cannot be read for a client");
    Refusal::unavailable("the stream of events cannot be read now")
}

/// A fresh token for a client whose rooms are quiet: the place of its last event may go the way of
/// all old events. `None` if it has the newest, or follows nothing.
pub(crate) fn fresh(handle: &SessionHandle, known: &mut String) -> Option<String> {
    if handle.rooms() == 0 {
        return None;
    }
    let token = handle.token().to_string();
    if *known == token {
        return None;
    }
    known.clone_from(&token);
    Some(token)
}

/// Why a client is sent away, and what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bye {
    Slow,
    GoingAway,
    TokenExpired,
    TooFast,
}

impl Bye {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::GoingAway => "going_away",
            Self::TokenExpired => "token_expired",
            Self::TooFast => "rate_limited",
        }
    }

    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::Slow => "read faster or follow less; connect again with `from` set to this token",
            Self::GoingAway => "connect again with `from` set to this token",
            Self::TokenExpired => {
                "get a new token, then connect again with `from` set to this token"
            }
            Self::TooFast => "wait a while, then connect again and send more slowly",
        }
    }

    pub(crate) fn notice(self, token: Option<&str>) -> Value {
        json!({ "reason": self.word(), "token": token, "remedy": self.remedy() })
    }
}

/// Which events a client was handed for sure. The session goes on when an event is taken from it;
/// whoever is interrupted before that event is written must not tell the client to come back to a
/// place behind it.
#[derive(Debug, Default)]
pub(crate) struct Handed {
    last: Option<String>,
    amid: bool,
}

impl Handed {
    /// Something was taken from the session.
    pub(crate) fn begin(&mut self) {
        self.amid = true;
    }

    /// It was written; with its token, if it was an event.
    pub(crate) fn done(&mut self, token: Option<String>) {
        self.amid = false;
        self.last = token.or_else(|| self.last.take());
    }

    /// Where the client may come back to; `None`: to the last place that it knows. `now` is the
    /// session's own.
    pub(crate) fn place(&self, now: impl FnOnce() -> String) -> Option<String> {
        if self.amid { self.last.clone() } else { Some(now()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn an_event_that_was_not_written_is_not_behind_the_client() {
        let now = || "3.c".to_owned();
        let mut handed = Handed::default();
        assert_eq!(handed.place(now).as_deref(), Some("3.c"));
        handed.begin();
        assert_eq!(handed.place(now), None);
        handed.done(Some("1.a".to_owned()));
        assert_eq!(handed.place(now).as_deref(), Some("3.c"));
        handed.begin();
        assert_eq!(handed.place(now).as_deref(), Some("1.a"));
        handed.done(None);
        handed.begin();
        assert_eq!(handed.place(now).as_deref(), Some("1.a"));
    }

    #[test]
    fn a_bearer_token_is_taken_from_the_head_and_nothing_else() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_str(text).unwrap());
            bearer(&headers).map(|token| token.map(str::to_owned)).map_err(|error| error.code())
        };
        assert_eq!(read("Bearer a.b.c"), Ok(Some("a.b.c".to_owned())));
        assert_eq!(read("bearer  x "), Ok(Some("x".to_owned())));
        assert_eq!(read("Basic YTpi"), Err(Code::Unauthenticated));
        assert_eq!(read("Bearer"), Err(Code::Unauthenticated));
        assert!(bearer(&HeaderMap::new()).unwrap().is_none());
    }
}
