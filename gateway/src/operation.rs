//! What the gateway tells about itself: pages over HTTP, for those who run it.
//! In: the hub, the keys, the recorder of metrics. Out: `/livez`, `/readyz`, `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use forebay_producer::Producer;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use tokio::time;

use crate::doors::Doors;
use crate::traffic;

const TEXT: &str = "text/plain; charset=utf-8";
/// The text format of Prometheus.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const FOLD: Duration = Duration::from_secs(5);
const BUILD_INFO: &str = "forebay_gateway_build_info";
const UNKNOWN: &str = "no such page; there are:\n\
    /livez    whether this process turns\n\
    /readyz   whether clients can be served, and if not, why\n\
    /metrics  numbers for Prometheus\n";

/// What the pages are made from.
#[derive(Clone)]
struct Site {
    doors: Arc<Doors>,
    producer: Producer,
    /// None: the program that we are part of keeps its own metrics.
    scrape: Option<PrometheusHandle>,
}

/// Begins to keep what the libraries count, unless somebody does already.
pub(crate) fn install() -> Option<PrometheusHandle> {
    let handle = PrometheusBuilder::new().install_recorder().ok()?;
    forebay_producer::describe_metrics();
    crate::telemetry::describe_metrics();
    traffic::describe();
    metrics::describe_gauge!(BUILD_INFO, "The version that runs; always 1.");
    metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Some(handle)
}

/// Folds what the libraries measured, again and again: it is kept one by one until then.
pub(crate) async fn fold(scrape: &PrometheusHandle) {
    loop {
        time::sleep(FOLD).await;
        scrape.run_upkeep();
    }
}

/// The pages.
pub(crate) fn routes(
    doors: Arc<Doors>,
    producer: Producer,
    scrape: Option<PrometheusHandle>,
) -> Router {
    Router::new()
        .route("/livez", get(async || page(StatusCode::OK, TEXT, "alive\n".to_owned())))
        .route("/readyz", get(ready))
        .route("/metrics", get(numbers))
        .fallback(async || page(StatusCode::NOT_FOUND, TEXT, UNKNOWN.to_owned()))
        .with_state(Site { doors, producer, scrape })
}

async fn ready(State(site): State<Site>) -> Response {
    let troubles = troubles(&site);
    match troubles.is_empty() {
        true => page(StatusCode::OK, TEXT, "ready\n".to_owned()),
        false => {
            let because = troubles.join("\n");
            page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready:\n{because}\n"))
        }
    }
}

/// Whatever keeps clients from being served, each on a line.
fn troubles(site: &Site) -> Vec<String> {
    let mut troubles = Vec::new();
    if site.doors.closing.is_cancelled() {
        troubles.push("the gateway ends".to_owned());
    }
    if let Err(because) = site.doors.hub.ready() {
        troubles.push(format!("events: {}", one_line(&because)));
    }
    let link = site.producer.link();
    if link.status().borrow().connection.is_none() {
        troubles.push(format!("publishing: {}", one_line(&link.trouble())));
    }
    if let Some(because) = site.doors.gate.keys.as_ref().and_then(|keys| keys.trouble()) {
        troubles.push(format!("tokens: {}", one_line(&because)));
    }
    troubles
}

fn one_line(text: &str) -> String {
    if text.is_empty() { "not connected yet".to_owned() } else { text.replace(['\n', '\r'], " ") }
}

async fn numbers(State(site): State<Site>) -> Response {
    match &site.scrape {
        Some(scrape) => {
            scrape.run_upkeep();
            page(StatusCode::OK, METRICS, scrape.render())
        }
        None => page(StatusCode::NOT_FOUND, TEXT, "this program keeps its own metrics\n".into()),
    }
}

fn page(status: StatusCode, kind: &'static str, body: String) -> Response {
    (status, [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store")], body).into_response()
}
