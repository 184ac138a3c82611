//! The routes: what is answered over HTTP, and where the other transports begin.
//! In: requests. Out: JSON, a stream of events, an upgrade, or a refusal with its status.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ORIGIN, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::time;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::auth::ticket;
use crate::doors::{Doors, Guest};
use crate::peer::Peer;
use crate::refusal::{Code, Refusal};
use crate::request::{Fields, Request as Wish, Subscribe, Topic, Whence};
use crate::settings::Settings;
use crate::{description, page, sse, traffic, ws};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// How long the body of a request may take to arrive.
const BODY: Duration = Duration::from_secs(30);
/// How long a browser need not ask again whether it may.
const ALLOWED_FOR: Duration = Duration::from_secs(600);

type Answer = Result<Response, Refusal>;

/// Everything that is answered at the address for clients.
pub(crate) fn routes(doors: &Arc<Doors>, socketio: Router, settings: &Settings) -> Router {
    let origins = doors.gate.origins.clone();
    let allowed = AllowOrigin::predicate(move |origin: &HeaderValue, _| {
        origin.to_str().is_ok_and(|origin| origins.allow(origin))
    });
    let cors = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([axum::http::header::AUTHORIZATION, CONTENT_TYPE, LAST_EVENT_ID])
        .expose_headers([RETRY_AFTER])
        .max_age(ALLOWED_FOR);
    let described = Bytes::from(description::of(settings));
    let openapi = async move || ([(CONTENT_TYPE, "application/json")], described).into_response();
    let routes = Router::new();
    let routes = if settings.page { routes.route("/", get(page::answer)) } else { routes };
    routes
        .route("/jobs", post(publish))
        .route("/jobs/{id}", get(job))
        .route("/ticket", post(ticket))
        .route("/events", get(events))
        .route("/ws", get(websocket))
        .route("/openapi.json", get(openapi))
        .fallback(unknown)
        .method_not_allowed_fallback(other_method)
        .with_state(Arc::clone(doors))
        .merge(socketio)
        .layer(middleware::from_fn_with_state(Arc::clone(doors), in_time))
        .layer(middleware::from_fn_with_state(Arc::clone(doors), check_origin))
        .layer(cors)
}

/// A page that may not is told so, whatever it asks for; without this it would only not see the
/// answer.
async fn check_origin(State(doors): State<Arc<Doors>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(ORIGIN).map(|origin| origin.to_str().unwrap_or("?"));
    match doors.gate.origins.check(origin) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// A body that does not arrive must not hold its connection for ever. What is only asked for may
/// take as long as it likes: events come without end.
async fn in_time(State(doors): State<Arc<Doors>>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let answered = time::timeout(BODY + doors.deadline, next.run(request)).await;
    answered.unwrap_or_else(|_| {
        Refusal::new(Code::Unavailable, "the request took too long", "send it faster")
            .into_response()
    })
}

async fn publish(State(doors): State<Arc<Doors>>, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let answer = async {
        let guest = admit(&doors, &parts, None).await?;
        let fields = Fields::parse(&text(body, doors.house.limits.message).await?)?;
        match Wish::read("publish", fields)? {
            Wish::Publish(publish) => doors.publish(&guest, publish).await,
            _ => Err(Refusal::unavailable("that is no publish")),
        }
    };
    counted("publish", answer.await).map(|job| json(StatusCode::ACCEPTED, &job))
}

async fn job(State(doors): State<Arc<Doors>>, Path(id): Path<String>, parts: Parts) -> Answer {
    let answer = async {
        let guest = admit(&doors, &parts, None).await?;
        Topic::Job(id.clone()).check()?;
        doors.job(&guest, &id).await
    };
    counted("job", answer.await).map(|job| json(StatusCode::OK, &job))
}

/// For those who cannot send headers: lets in once, as whoever asks for it.
async fn ticket(State(doors): State<Arc<Doors>>, parts: Parts) -> Answer {
    let answer = async {
        let guest = admit(&doors, &parts, None).await?;
        if guest.caller.is_anonymous() {
            return Err(Refusal::unauthenticated(
                "a ticket stands for a token, and none was shown",
                "send `Authorization: Bearer TOKEN`; without a token connect without a ticket",
            ));
        }
        let ticket = doors.gate.ticket(guest.caller.identity())?;
        Ok(json!({ "ticket": ticket, "expires_in": ticket::LIFETIME.as_secs() }))
    };
    counted("ticket", answer.await).map(|ticket| json(StatusCode::OK, &ticket))
}

async fn events(State(doors): State<Arc<Doors>>, parts: Parts) -> Answer {
    let answer = async {
        let query = Query::read(parts.uri.query().unwrap_or_default())?;
        let guest = admit(&doors, &parts, query.ticket.as_deref()).await?;
        let last = parts.headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok());
        // What the browser saw last is newer than what the page asked for when it was loaded.
        let from = match last.filter(|id| !id.is_empty()) {
            Some(token) => Whence::After(token.to_owned()),
            None => query.from,
        };
        query.topics.iter().try_for_each(Topic::check)?;
        let (mut conversation, session) = doors.seat(guest, "sse")?;
        let wish = Subscribe { topics: query.topics, from };
        let joined = conversation.subscribe(wish).await?;
        Ok((conversation, session, joined))
    };
    let (conversation, session, joined) = counted("events", answer.await)?;
    Ok(sse::answer(Arc::clone(&doors), conversation, session, joined))
}

async fn websocket(State(doors): State<Arc<Doors>>, request: Request) -> Answer {
    let (mut parts, _) = request.into_parts();
    let answer = async {
        let query = Query::read(parts.uri.query().unwrap_or_default())?;
        if !query.topics.is_empty() {
            return Err(Refusal::bad(
                "a WebSocket follows nothing by its address",
                "send {\"verb\":\"subscribe\", …} once it is open",
            ));
        }
        let guest = admit(&doors, &parts, query.ticket.as_deref()).await?;
        let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
        let upgrade = upgrade
            .map_err(|error| Refusal::bad(error.body_text(), "connect with a WebSocket client"))?;
        let (conversation, session) = doors.seat(guest, "ws")?;
        Ok((upgrade, conversation, session))
    };
    let (upgrade, conversation, session) = counted("ws", answer.await)?;
    let most = doors.house.limits.message;
    let upgrade = upgrade.max_message_size(most).max_frame_size(most);
    let tracked = Arc::clone(&doors);
    Ok(upgrade.on_upgrade(move |socket| {
        // Tracked, so that the end of the gateway waits for its last words.
        let token = tracked.tasks.token();
        async move {
            let _token = token;
            ws::serve(tracked, socket, conversation, session).await;
        }
    }))
}

async fn unknown() -> Refusal {
    Refusal::new(
        Code::Unknown,
        "there is no such page",
        "there are /jobs, /jobs/ID, /ticket, /events, /ws, /socket.io and /openapi.json",
    )
}

async fn other_method() -> Response {
    let remedy = "see /openapi.json";
    let refusal = Refusal::new(Code::Unknown, "this page does not answer that method", remedy);
    let body = json!({ "error": refusal });
    json(StatusCode::METHOD_NOT_ALLOWED, &body)
}

/// Who asks; each request of a subject counts.
async fn admit(doors: &Doors, parts: &Parts, ticket: Option<&str>) -> Result<Guest, Refusal> {
    let peer = parts.extensions.get::<Peer>().map(|peer| peer.client);
    let guest = doors.admit(&parts.headers, ticket, peer).await?;
    doors.house.request(&guest.who, Instant::now())?;
    Ok(guest)
}

fn counted<T>(verb: &'static str, answer: Result<T, Refusal>) -> Result<T, Refusal> {
    traffic::requested(verb, answer.as_ref().map(|_| ()).map_err(Refusal::code));
    answer
}

/// The body, if it is not too large and is text.
async fn text(body: Body, most: usize) -> Result<String, Refusal> {
    let bytes = to_bytes(body, most).await.map_err(|_| {
        Refusal::new(
            Code::TooLarge,
            format!("the request has more than {most} bytes, or was broken off"),
            "send less, or a reference to where it is",
        )
    })?;
    String::from_utf8(bytes.into())
        .map_err(|_| Refusal::bad("the body is not UTF-8", "send one JSON object"))
}

fn json(status: StatusCode, body: &Value) -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    (status, headers, body.to_string()).into_response()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code().status());
        let mut response =
            json(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &json!({ "error": self }));
        if let Some(wait) = self.wait() {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// `?job=…&kind=…&channel=…&from=…&ticket=…`; each of the first three may stand several times.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    topics: Vec<Topic>,
    from: Whence,
    ticket: Option<String>,
}

impl Query {
    fn read(text: &str) -> Result<Self, Refusal> {
        let mut query = Self::default();
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            let value = value.into_owned();
            match name.as_ref() {
                "job" => query.topics.push(Topic::Job(value)),
                "kind" => query.topics.push(Topic::Kind(value)),
                "channel" => query.topics.push(Topic::Channel(value)),
                "from" => query.from = Whence::read(&value),
                "ticket" => query.ticket = Some(value),
                other => {
                    let other: String = other.chars().take(40).collect();
                    return Err(Refusal::bad(
                        format!("there is no parameter `{other}`"),
                        "the parameters are job, kind, channel, from and ticket",
                    ));
                }
            }
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_what_is_followed() {
        let read = Query::read("job=a&job=b%20c&channel=news&from=7.x&ticket=t").unwrap();
        let job = |id: &str| Topic::Job(id.to_owned());
        let topics = vec![job("a"), job("b c"), Topic::Channel("news".into())];
        let from = Whence::After("7.x".into());
        assert_eq!(read, Query { topics, from, ticket: Some("t".into()) });
        assert_eq!(Query::read("").unwrap(), Query::default());
        assert_eq!(Query::read("jbo=a").unwrap_err().code(), Code::BadRequest);
    }
}
