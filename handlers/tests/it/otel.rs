//! Spans, from a publish to a collector.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use forebay_producer::{DeadLetters, Filter, Pile, PublishOptions, RedriveOptions};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{KIND, Run, Site, eventually};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PUBLISHER: &str = "00f067aa0ba902b7";
const CONSUMER: i32 = 5;
const ERROR: i32 = 2;

/// A collector that keeps what it is sent.
#[derive(Clone)]
struct Collector {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    broken: Arc<AtomicBool>,
}

#[derive(Default)]
struct Seen {
    heads: Vec<String>,
    resources: Vec<BTreeMap<String, String>>,
    spans: Vec<Span>,
}

impl Collector {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            broken: Arc::default(),
        };
        let kept = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let kept = kept.clone();
                tokio::spawn(async move { kept.serve(stream).await });
            }
        });
        collector
    }

    /// Answers the requests of one connection until it is closed.
    async fn serve(&self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        loop {
            let mut chunk = [0; 16 * 1024];
            match stream.read(&mut chunk).await {
                Ok(length @ 1..) => bytes.extend_from_slice(&chunk[..length]),
                _ => return,
            }
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let whole = end + 4 + length.map_or(0, |length| length.parse::<usize>().unwrap());
            if bytes.len() < whole {
                continue;
            }
            let answer = if self.broken.load(Ordering::Relaxed) {
                "500 Internal Server Error"
            } else {
                self.keep(head, &bytes[end + 4..whole]);
                "200 OK"
            };
            bytes.drain(..whole);
            let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.ok();
        }
    }

    fn keep(&self, head: String, body: &[u8]) {
        let mut seen = self.seen.lock().unwrap();
        seen.heads.push(head);
        for batch in ExportTraceServiceRequest::decode(body).unwrap().resource_spans {
            let resource = batch.resource.unwrap_or_default();
            seen.resources.push(texts(&resource.attributes));
            seen.spans.extend(batch.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }

    fn spans(&self) -> Vec<Span> {
        self.seen.lock().unwrap().spans.clone()
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.clone().and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(pair))).collect()
}

fn exporting(site: &Site, endpoint: &str) -> tokio::process::Command {
    let mut command = site.command(&[]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "100");
    command
}

async fn publish(site: &Site, id: &str, payload: serde_json::Value) {
    let parent = format!("00-{TRACE}-{PUBLISHER}-01");
    let options = PublishOptions::new().id(id).traceparent(parent);
    site.producer.publish_raw(KIND, payload.to_string(), options).await.unwrap();
}

#[tokio::test]
async fn all_runs_of_a_job_are_spans_below_its_publisher() {
    let collector = Collector::new().await;
    let site = Site::with(
        r#"exec = ["/bin/sh", "run.sh"]
retry = { max_attempts = 3, base = "100ms", jitter = false }"#,
    )
    .await;
    site.write(
        "run.sh",
        r#"job=$(cat)
echo "$TRACEPARENT" >> "told-$FOREBAY_JOB_ID"
case $job in
*retry*) [ "$FOREBAY_JOB_ATTEMPT" = 2 ] || { echo not yet >&2; exit 1; } ;;
*reject*) [ -e mended ] || { echo never >&2; exit 65; } ;;
esac
"#,
    );
    let mut command = exporting(&site, &collector.url());
    command
        .env("OTEL_SERVICE_NAME", "shop")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-token=s3cret");
    let run = Run::start(command);
    publish(&site, "retried", json!("retry")).await;
    publish(&site, "rejected", json!("reject")).await;
    site.dead().await;
    site.write("mended", "");
    let letters = DeadLetters::new(&site.broker.config());
    let (pile, options) = (Pile::Queue("default".to_owned()), RedriveOptions::default());
    letters.redrive(&pile, &Filter::default(), 10, &options, &site.producer, |_| {}).await.unwrap();
    letters.close().await;
    eventually("all have run", async || collector.spans().len() >= 4).await;
    let log = run.log();
    run.drain().await;

    let spans = collector.spans();
    let to = format!("{}:default", site.broker.namespace());
    let mut runs = Vec::new();
    for span in &spans {
        assert_eq!(
            (hex::encode(&span.trace_id), hex::encode(&span.parent_span_id)),
            (TRACE.to_owned(), PUBLISHER.to_owned())
        );
        assert_eq!((span.kind, &span.name), (CONSUMER, &format!("process {to}")));
        assert!(span.end_time_unix_nano > span.start_time_unix_nano);
        let said = texts(&span.attributes);
        for (name, value) in [
            ("messaging.system", "rabbitmq"),
            ("messaging.operation.name", "process"),
            ("messaging.operation.type", "process"),
            ("messaging.destination.name", &to),
            ("messaging.rabbitmq.destination.routing_key", "default"),
            ("forebay.kind", KIND),
        ] {
            assert_eq!(said[name], value, "{said:#?}");
        }
        let status = span.status.clone().unwrap_or_default();
        let failed = (status.code == ERROR).then_some(status.message);
        assert_eq!(failed.is_some(), said.contains_key("error.type"));
        runs.push([
            said["messaging.message.id"].clone(),
            said["forebay.attempt"].clone(),
            said["forebay.outcome"].clone(),
            said.get("error.type").cloned().unwrap_or_default(),
            failed.unwrap_or_default(),
            said.get("forebay.redrives").cloned().unwrap_or_default(),
        ]);
    }
    runs.sort();
    assert_eq!(
        runs,
        [
            ["rejected", "1", "dead", "rejected", "`/bin/sh` ended with exit code 65: never", ""],
            ["rejected", "1", "done", "", "", "1"],
            ["retried", "1", "retried", "failed", "`/bin/sh` ended with exit code 1: not yet", ""],
            ["retried", "2", "done", "", "", ""],
        ]
    );

    // Programs are told their own run as the parent, and so is the log.
    let mut told = String::new();
    for id in ["retried", "rejected"] {
        told += &fs::read_to_string(site.file(&format!("told-{id}"))).unwrap();
    }
    for span in &spans {
        let id = hex::encode(&span.span_id);
        assert!(told.contains(&format!("00-{TRACE}-{id}-01\n")), "{id} is not in {told}");
    }
    let line = log.iter().find(|line| line["message"] == "job is a dead letter now").unwrap();
    let dead = spans.iter().find(|span| texts(&span.attributes)["forebay.outcome"] == "dead");
    assert_eq!(line["trace_id"], TRACE);
    assert_eq!(line["span_id"], hex::encode(&dead.unwrap().span_id));

    let seen = collector.seen.lock().unwrap();
    assert_eq!(seen.resources[0]["service.name"], "shop");
    assert_eq!(seen.resources[0]["deployment.environment.name"], "test");
    assert!(seen.heads[0].starts_with("POST /v1/traces HTTP/1.1\r\n"), "{}", seen.heads[0]);
    assert!(seen.heads[0].contains("x-token: s3cret"), "{}", seen.heads[0]);
    assert!(!format!("{log:?}").contains("s3cret"));
}

#[tokio::test]
async fn without_a_collector_jobs_go_on_and_one_warning_says_so() {
    let place = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    let site = Site::with("exec = [\"true\"]").await;
    let run = Run::start(exporting(&site, &format!("http://me:s3cret@{address}")));
    site.call(json!(1)).await.unwrap();
    let warning = |line: &serde_json::Value| line["level"] == "WARN";
    let warned = run.logged("the collector is away", warning).await;
    assert_eq!(warned["message"], "spans cannot be exported and are dropped; jobs go on");
    assert_eq!(warned["endpoint"], format!("http://{address}/v1/traces"));
    assert!(warned["error"].to_string().contains("refused"), "{warned}");
    site.call(json!(2)).await.unwrap();
    run.signal(rustix::process::Signal::TERM);
    let log = run.log_to_the_end().await;
    assert_eq!(log.iter().filter(|line| warning(line)).count(), 1, "{log:#?}");
    let lost = log.iter().find(|line| line["message"] == "not all spans were exported").unwrap();
    assert_eq!((&lost["exported"], &lost["lost"]), (&json!(0), &json!(2)));
    assert!(!format!("{log:?}").contains("s3cret"));
}

#[tokio::test]
async fn a_collector_that_comes_back_is_told_of() {
    let collector = Collector::new().await;
    collector.broken.store(true, Ordering::Relaxed);
    let site = Site::with("exec = [\"true\"]").await;
    let run = Run::start(exporting(&site, &collector.url()));
    site.call(json!(1)).await.unwrap();
    let warned = run.logged("it is broken", |line| line["level"] == "WARN").await;
    assert_eq!(warned["error"], "it answered 500 Internal Server Error");
    collector.broken.store(false, Ordering::Relaxed);
    site.call(json!(2)).await.unwrap();
    let back = run.logged("it is back", |line| line["message"] == "spans are exported again").await;
    assert_eq!(back["lost"], 1);
    run.drain().await;
    assert_eq!(collector.spans().len(), 1);
}

#[tokio::test]
async fn a_collector_that_never_answers_does_not_keep_the_worker() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let site = Site::with("exec = [\"true\"]").await;
    let run = Run::start(exporting(&site, &format!("http://{}", silent.local_addr().unwrap())));
    site.call(json!(1)).await.unwrap();
    assert!(run.drain().await.starts_with("done 1, "));
}

#[tokio::test]
async fn a_trace_that_is_not_sampled_is_passed_on_and_not_exported() {
    let collector = Collector::new().await;
    let site = Site::with("exec = [\"/bin/sh\", \"-c\", \"echo $TRACEPARENT\"]").await;
    let mut command = exporting(&site, &collector.url());
    command.env("OTEL_TRACES_SAMPLER", "always_off");
    let run = Run::start(command);
    let told = site.call(json!(1)).await.unwrap();
    assert!(told.as_str().is_some_and(|parent| parent.ends_with("-00")), "{told}");
    run.drain().await;
    assert_eq!(collector.spans().len(), 0);
}

#[tokio::test]
async fn a_setting_that_cannot_be_met_is_named_and_stops_no_job() {
    let site = Site::with("exec = [\"true\"]").await;
    let mut command = exporting(&site, "http://127.0.0.1:4317");
    command.env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let run = Run::start(command);
    site.call(json!(1)).await.unwrap();
    let said = run.logged("why", |line| line["message"] == "spans are not exported").await;
    assert!(said["error"].to_string().contains("http/protobuf"), "{said}");
    run.drain().await;
}
