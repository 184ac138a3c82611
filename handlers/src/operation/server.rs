//! The HTTP side: who may ask, for how long, and which page answers.
//! In: connections. Out: one answer each. A scraper that is stuck holds one of a few places, until
//! somebody else wants it and for ten seconds at most.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::AbortHandle;
use tokio::time;
use tracing::debug;

use super::pages::{self, Page};
use super::{Pulse, metrics, process};

/// Connections at once; for the next one the oldest has to go.
const MOST: usize = 16;
/// From the first byte of the question to the last one of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(2);
/// The smallest that hyper allows; a longer head is refused.
const BUFFER: usize = 8 * 1024;
const PAUSE: Duration = Duration::from_millis(100);

/// What the pages are made from.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) pulse: Pulse,
    pub(crate) scrape: PrometheusHandle,
}

/// Takes an address.
///
/// # Errors
/// As the operating system says.
pub(crate) fn bind(address: &str) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers for ever.
pub(crate) async fn serve(listener: TcpListener, site: Site) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            debug!(%error, "no page can be asked for");
            return std::future::pending().await;
        }
    };
    let site = Arc::new(site);
    let mut house = House::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let conversation = time::timeout(PATIENCE, converse(stream, Arc::clone(&site)));
                house.admit(tokio::spawn(conversation).abort_handle());
            }
            // Out of file descriptors, most likely: it may pass.
            Err(error) => {
                debug!(%error, "a question was not heard");
                time::sleep(PAUSE).await;
            }
        }
    }
}

/// Who is being talked to, the oldest first. They go with it.
#[derive(Default)]
struct House(VecDeque<AbortHandle>);

impl House {
    /// Takes one in. If it is full, the oldest goes: an honest question is answered in no time, and
    /// silent ones must not keep a health check waiting.
    fn admit(&mut self, guest: AbortHandle) {
        self.0.retain(|guest| !guest.is_finished());
        if self.0.len() >= MOST
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(guest);
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// One connection, one question.
async fn converse(stream: tokio::net::TcpStream, site: Arc<Site>) {
    let answer = service_fn(|request| {
        let response = answer(&site, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = conversation.await {
        debug!(%error, "a question was broken off");
    }
}

fn answer(site: &Site, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = respond(Page::text(405, "only GET and HEAD are answered\n"));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let json = accept.is_some_and(|accept| accept.contains("application/json"));
    let controls = &site.pulse.controls;
    respond(match request.uri().path() {
        "/livez" => pages::live(site.pulse.since_tick()),
        "/readyz" => pages::ready(&controls.queues(), controls.is_draining(), json),
        "/scale" => pages::scale(controls.name(), &controls.queues()),
        "/metrics" => Page {
            status: 200,
            kind: metrics::CONTENT_TYPE,
            body: site.scrape.render() + &process::numbers(),
        },
        _ => pages::unknown(),
    })
}

fn respond(page: Page) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(page.body));
    *response.status_mut() =
        StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn when_the_house_is_full_the_oldest_goes() {
        let mut house = House::default();
        let mut guests: VecDeque<_> = (0..=MOST).map(|_| tokio::spawn(pending::<()>())).collect();
        for guest in &guests {
            house.admit(guest.abort_handle());
        }
        assert!(guests.pop_front().unwrap().await.unwrap_err().is_cancelled());
        assert!(guests.iter().all(|guest| !guest.is_finished()));
        // One that left by itself makes room.
        let last = guests.pop_back().unwrap();
        last.abort();
        _ = last.await;
        house.admit(tokio::spawn(pending::<()>()).abort_handle());
        assert_eq!(house.0.len(), MOST);
        assert!(guests.iter().all(|guest| !guest.is_finished()));
        drop(house);
        for guest in guests {
            assert!(guest.await.unwrap_err().is_cancelled());
        }
    }
}
