//! The export of spans by OTLP over HTTP.
//! In: spans as they end. Out: batches to a collector, from a thread of their own and out of a
//! bounded queue; jobs never wait for it. A collector that is away is told of once.

use std::env;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
};
use reqwest::Url;
use reqwest::blocking::Client;
use tracing::level_filters::LevelFilter;
use tracing::{info, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;

use crate::logs::AnyLayer;

/// How long the end waits for what is still to be exported.
const FLUSH: Duration = Duration::from_secs(3);
/// What one batch may take, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// An export under way.
pub(crate) struct Export {
    provider: SdkTracerProvider,
    watch: Arc<Watch>,
}

impl Export {
    /// Starts it; never waits for the collector.
    pub(crate) fn begin(endpoint: &str) -> Result<(Self, AnyLayer), String> {
        check_settings(|name| env::var(name).ok())?;
        let watch = Arc::new(Watch::of(&check_endpoint(endpoint)?));
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(Wire { client: client()?, watch: Arc::clone(&watch) })
            .with_endpoint(endpoint)
            .build()
            .map_err(|error| error.to_string())?;
        let exporter = Watched { exporter, watch: Arc::clone(&watch) };
        let batches = BatchSpanProcessor::builder(exporter).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Counted { batches, watch: Arc::clone(&watch) })
            .with_resource(resource())
            .build();
        let scope =
            InstrumentationScope::builder("forebay").with_version(env!("CARGO_PKG_VERSION"));
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer_with_scope(scope.build()))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(ours());
        Ok((Self { provider, watch }, layer.boxed()))
    }

    /// Where spans go, as it may be shown.
    pub(crate) fn endpoint(&self) -> &str {
        &self.watch.endpoint
    }

    /// Exports what is left, within a few seconds.
    pub(crate) fn end(self) {
        // An error has been told of by the exporter; a collector that is slow is not waited for.
        self.provider.shutdown_with_timeout(FLUSH).ok();
        let (ended, exported) = (self.watch.ended(), self.watch.exported());
        if exported < ended {
            let lost = ended - exported;
            info!(exported, lost, "not all spans were exported");
        }
    }
}

/// Our own spans, and what is logged inside of them. Other crates' would double them.
fn ours() -> Targets {
    let crates = ["forebay_producer", "forebay_worker", "forebay_handlers", "forebay_run"];
    crates.into_iter().map(|name| (name, LevelFilter::INFO)).collect()
}

/// Settings that the library would pass over in silence.
fn check_settings(variable: impl Fn(&str) -> Option<String>) -> Result<(), String> {
    let stated = |name: &str| variable(name).filter(|value| !value.is_empty());
    let protocols = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
    let protocol = protocols.iter().find_map(|name| Some((name, stated(name)?)));
    if let Some((name, protocol)) = protocol.filter(|(_, protocol)| protocol != "http/protobuf") {
        return Err(format!(
            "{name} is `{protocol}`, and forebay-run speaks http/protobuf only: set it to that, \
             and the endpoint to the collector's HTTP port (4318 by custom)"
        ));
    }
    let sampler = stated("OTEL_TRACES_SAMPLER");
    if let Some(sampler) = sampler.filter(|sampler| !SAMPLERS.contains(&sampler.as_str())) {
        let known = SAMPLERS.join(", ");
        return Err(format!("OTEL_TRACES_SAMPLER is `{sampler}`; it can be {known}"));
    }
    Ok(())
}

/// The text is not repeated: it may hold a password.
fn check_endpoint(endpoint: &str) -> Result<Url, String> {
    let url = Url::parse(endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    url.ok_or_else(|| {
        "OTEL_EXPORTER_OTLP_ENDPOINT, or the one for traces, is no http:// or https:// URL; write \
         it like http://127.0.0.1:4318"
            .to_owned()
    })
}

/// What the spans are about, by `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`.
fn resource() -> Resource {
    let named = env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|all| all.contains("service.name="));
    let resource = Resource::builder();
    if named { resource.build() } else { resource.with_service_name("forebay-run").build() }
}

fn client() -> Result<Client, String> {
    // Refused if there is one already, which is as well.
    rustls::crypto::ring::default_provider().install_default().ok();
    let variables = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
    let timeout = variables.iter().find_map(|name| env::var(name).ok()?.parse().ok());
    Client::builder()
        .timeout(timeout.map_or(TIMEOUT, Duration::from_millis))
        .user_agent(concat!("forebay/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| format!("no HTTP client can be set up: {}", causes(&error)))
}

/// What is known of the export.
#[derive(Debug)]
struct Watch {
    /// Without credentials and query.
    endpoint: String,
    ended: AtomicU64,
    exported: AtomicU64,
    trouble: Mutex<Trouble>,
}

#[derive(Debug, Default)]
struct Trouble {
    /// Why the newest request failed.
    because: String,
    /// Spans lost since the collector is away; `None`: it is there.
    lost: Option<u64>,
}

impl Watch {
    fn of(endpoint: &Url) -> Self {
        let mut shown = endpoint.clone();
        shown.set_query(None);
        shown.set_fragment(None);
        // These fail only for URLs without a host, which HTTP has none of.
        shown.set_username("").ok();
        shown.set_password(None).ok();
        Self {
            endpoint: shown.to_string(),
            ended: AtomicU64::new(0),
            exported: AtomicU64::new(0),
            trouble: Mutex::default(),
        }
    }

    fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    fn exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    fn failed(&self, because: String) {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).because = because;
    }

    /// One warning when it goes away, one line when it is back.
    fn note(&self, spans: u64, exported: bool) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoint = &self.endpoint;
        if exported {
            self.exported.fetch_add(spans, Ordering::Relaxed);
            if let Some(lost) = trouble.lost.take() {
                info!(endpoint, lost, "spans are exported again");
            }
            return;
        }
        if trouble.lost.is_none() {
            let error = &trouble.because;
            warn!(endpoint, error, "spans cannot be exported and are dropped; jobs go on");
        }
        *trouble.lost.get_or_insert(0) += spans;
    }
}

/// The exporter, with its results seen.
#[derive(Debug)]
struct Watched {
    exporter: opentelemetry_otlp::SpanExporter,
    watch: Arc<Watch>,
}

impl SpanExporter for Watched {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.exporter.export(batch).await;
        self.watch.note(spans, result.is_ok());
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// The queue of spans, with what goes in counted: it drops when it is full, and says nothing.
#[derive(Debug)]
struct Counted {
    batches: BatchSpanProcessor,
    watch: Arc<Watch>,
}

impl SpanProcessor for Counted {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.watch.ended.fetch_add(1, Ordering::Relaxed);
        }
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// One request. It blocks, on the thread that the batches have for themselves.
struct Wire {
    client: Client,
    watch: Arc<Watch>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl Wire {
    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        // Through the builder, which turns credentials of the URL into a header.
        let request = self.client.request(head.method, head.uri.to_string()).headers(head.headers);
        let answer = request.body(body).send().inspect_err(|error| {
            self.watch.failed(causes(error));
        })?;
        let status = answer.status();
        if !status.is_success() {
            self.watch.failed(format!("it answered {status}"));
        }
        let mut response = Response::builder().status(status);
        if let Some(headers) = response.headers_mut() {
            headers.clone_from(answer.headers());
        }
        Ok(response.body(answer.bytes()?)?)
    }
}

impl HttpClient for Wire {
    fn send_bytes<'a: 'b, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> futures_util::future::BoxFuture<'b, Result<Response<Bytes>, HttpError>>
    where
        Self: 'b,
    {
        Box::pin(async move { self.send(request) })
    }
}

/// The causes of an error from the second on: the first repeats the URL, credentials and all.
fn causes(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "timed out".to_owned();
    }
    let mut words = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        words.push(cause.to_string());
        next = cause.source();
    }
    if words.is_empty() { "the request failed".to_owned() } else { words.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_shown_without_credentials() {
        let url =
            check_endpoint("https://user:secret@tempo.example/v1/traces?token=secret").unwrap();
        assert_eq!(Watch::of(&url).endpoint, "https://tempo.example/v1/traces");
        let refused = check_endpoint("user:secret@tempo").unwrap_err();
        assert!(refused.contains("OTEL_EXPORTER_OTLP_ENDPOINT") && !refused.contains("secret"));
    }

    #[test]
    fn what_cannot_be_done_is_said_with_the_remedy() {
        let with = |name: &'static str, value: &'static str| {
            check_settings(move |asked| (asked == name).then(|| value.to_owned()))
        };
        assert_eq!(with("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"), Ok(()));
        assert_eq!(with("OTEL_TRACES_SAMPLER", "always_off"), Ok(()));
        let grpc = with("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc").unwrap_err();
        assert!(grpc.contains("OTEL_EXPORTER_OTLP_PROTOCOL") && grpc.contains("4318"), "{grpc}");
        let sampler = with("OTEL_TRACES_SAMPLER", "some").unwrap_err();
        assert!(sampler.contains("`some`") && sampler.contains("always_off"), "{sampler}");
    }
}
