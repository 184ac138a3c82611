//! The trace that a job belongs to: kept through its life, and passed on.

use forebay_producer::{DeadLetters, Filter, Pile, PublishOptions, RedriveOptions};
use forebay_worker::{Context, HandlerOptions, JobError, JobResult, QueueOptions, Retry, Worker};
use tokio::time::Duration;

use crate::support::{Bench, Notes, Work, work};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn parent() -> String {
    format!("00-{TRACE}-00f067aa0ba902b7-01")
}

fn traced() -> PublishOptions {
    PublishOptions::new().traceparent(parent()).tracestate("vendor=1")
}

/// Notes number, attempt and trace of a job: `1#1 00-… vendor=1`.
fn note(cx: &Context<Notes>, n: u64) {
    let header = |name| cx.header(name).unwrap_or_default();
    let (parent, state) = (header("traceparent"), header("tracestate"));
    cx.state().add(format!("{n}#{} {parent} {state}", cx.attempt()));
}

fn soon() -> HandlerOptions {
    let base = Duration::from_millis(100);
    HandlerOptions::new().retry(Retry { max_attempts: 2, base, ..Retry::default() })
}

#[tokio::test]
async fn every_attempt_and_a_redriven_job_belong_to_the_trace_that_it_was_published_in() {
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(&cx, job.n);
        if cx.redrives() == 0 { Err(JobError::retry(anyhow::anyhow!("not yet"))) } else { Ok(()) }
    }
    let notes = Notes::default();
    let worker = Worker::builder(notes.clone())
        .queue("default", QueueOptions::new())
        .handle_with(soon(), handler);
    let mut bench = Bench::start(worker).await;
    bench.producer.publish_with(&work(1), traced()).await.unwrap();
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!(
        letter.envelope.trace().map(|trace| trace.trace_id().to_owned()).as_deref(),
        Some(TRACE)
    );
    let letters = DeadLetters::new(&bench.config());
    let (pile, options) = (Pile::Queue("default".to_owned()), RedriveOptions::default());
    letters
        .redrive(&pile, &Filter::default(), 10, &options, &bench.producer, |_| {})
        .await
        .unwrap();
    letters.close().await;
    let noted = notes.wait_for(3).await;
    // Attempts 1 and 2, and attempt 1 after the redrive: the same parent for all of them.
    let (first, rest) = noted[0].split_at(3);
    assert_eq!(first, "1#1");
    assert!(rest.contains(TRACE) && rest.ends_with(" vendor=1"), "{noted:?}");
    assert_eq!(noted[1..], [format!("1#2{rest}"), format!("1#1{rest}")]);
    bench.drain().await;
}

#[tokio::test]
async fn a_follow_up_job_belongs_to_the_trace_also_from_a_task_of_its_own() {
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(&cx, job.n);
        if job.n == 1 {
            cx.producer().publish(&work(2)).await?;
            let inner = cx.clone();
            tokio::spawn(async move { inner.producer().publish(&work(3)).await }).await??;
            let other = PublishOptions::new().traceparent(parent().replace("4bf9", "aaaa"));
            cx.producer().publish_with(&work(4), other).await?;
        }
        Ok(())
    }
    let notes = Notes::default();
    let worker =
        Worker::builder(notes.clone()).queue("default", QueueOptions::new()).handle(handler);
    let mut bench = Bench::start(worker).await;
    bench.producer.publish_with(&work(1), traced()).await.unwrap();
    let mut noted = notes.wait_for(4).await;
    noted.sort();
    for (note, trace) in noted.iter().zip([TRACE, TRACE, TRACE, &TRACE.replace("4bf9", "aaaa")]) {
        assert!(note.contains(trace), "{note} is not of trace {trace}");
    }
    // Who records no span passes on what came, byte for byte.
    #[cfg(not(feature = "otel"))]
    assert_eq!(noted[1], format!("2#1 {} vendor=1", parent()));
    bench.drain().await;
}

#[tokio::test]
async fn a_trace_that_cannot_be_read_breaks_no_job_and_is_not_passed_on() {
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(&cx, job.n);
        if job.n == 1 {
            cx.producer().publish(&work(2)).await?;
        }
        Ok(())
    }
    let notes = Notes::default();
    let worker =
        Worker::builder(notes.clone()).queue("default", QueueOptions::new()).handle(handler);
    let mut bench = Bench::start(worker).await;
    let broken = PublishOptions::new().header("traceparent", "00-broken-01");
    bench.producer.publish_with(&work(1), broken).await.unwrap();
    let noted = notes.wait_for(2).await;
    assert!(!noted[1].contains("broken"), "{noted:?}");
    assert_eq!(bench.drain().await.succeeded, 2);
}

#[cfg(feature = "otel")]
mod recorded {
    use std::collections::BTreeMap;
    use std::sync::OnceLock;

    use opentelemetry::trace::{SpanKind, Status, TracerProvider};
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
    use tracing::level_filters::LevelFilter;
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;

    use super::*;

    /// All spans of this process, of whatever test.
    fn spans() -> &'static InMemorySpanExporter {
        static SPANS: OnceLock<InMemorySpanExporter> = OnceLock::new();
        SPANS.get_or_init(|| {
            let kept = InMemorySpanExporter::default();
            let provider = SdkTracerProvider::builder().with_simple_exporter(kept.clone()).build();
            let ours = Targets::new().with_target("forebay", LevelFilter::INFO);
            let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
            tracing_subscriber::registry().with(layer.with_filter(ours)).init();
            // Dropping a provider ends it.
            std::mem::forget(provider);
            kept
        })
    }

    fn of(trace: &str) -> Vec<SpanData> {
        let all = spans().get_finished_spans().unwrap();
        all.into_iter().filter(|span| span.span_context.trace_id().to_string() == trace).collect()
    }

    fn attributes(span: &SpanData) -> BTreeMap<&str, String> {
        let pairs = span.attributes.iter();
        pairs.map(|pair| (pair.key.as_str(), pair.value.to_string())).collect()
    }

    #[tokio::test]
    async fn a_follow_up_job_s_spans_are_below_the_run_that_published_it() {
        async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
            if job.n == 1 {
                cx.producer().publish(&work(2)).await?;
                cx.state().add(cx.trace().unwrap().traceparent());
            }
            cx.state().add("ran");
            Ok(())
        }
        spans();
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let notes = Notes::default();
        let worker =
            Worker::builder(notes.clone()).queue("default", QueueOptions::new()).handle(handler);
        let mut bench = Bench::start(worker).await;
        let options = PublishOptions::new().traceparent(format!("00-{trace}-{span}-01"));
        let receipt = bench.producer.publish_with(&work(1), options).await.unwrap();
        let noted = notes.wait_for(3).await;
        bench.drain().await;

        let found = of(trace);
        assert_eq!(found.len(), 4, "{found:#?}");
        let below = |parent: &str| {
            let mut children =
                found.iter().filter(|span| span.parent_span_id.to_string() == parent);
            let child =
                children.next().unwrap_or_else(|| panic!("none below {parent}: {found:#?}"));
            assert!(children.next().is_none(), "several below {parent}: {found:#?}");
            child
        };
        let id = |span: &SpanData| span.span_context.span_id().to_string();
        let sent = below(span);
        let ran = below(&id(sent));
        let sent_next = below(&id(ran));
        let ran_next = below(&id(sent_next));
        let to = format!("{}:default", bench.broker.namespace());
        for (span, name, kind) in [
            (sent, format!("send {to}"), SpanKind::Producer),
            (ran, format!("process {to}"), SpanKind::Consumer),
            (sent_next, format!("send {to}"), SpanKind::Producer),
            (ran_next, format!("process {to}"), SpanKind::Consumer),
        ] {
            assert_eq!((span.name.as_ref(), &span.span_kind), (name.as_str(), &kind));
            assert_eq!(span.status, Status::Unset);
        }
        assert!(noted.contains(&format!("00-{trace}-{}-01", id(ran))), "{noted:?}");
        let said = attributes(sent);
        assert_eq!(said["messaging.system"], "rabbitmq");
        assert_eq!(said["messaging.operation.type"], "send");
        assert_eq!(said["messaging.destination.name"], to);
        assert_eq!(said["messaging.rabbitmq.destination.routing_key"], "default");
        assert_eq!(said["messaging.message.id"], receipt.id);
        assert_eq!(said["messaging.message.body.size"], "7");
        let said = attributes(ran);
        assert_eq!(said["messaging.operation.name"], "process");
        assert_eq!(
            (said["forebay.kind"].as_str(), said["forebay.attempt"].as_str()),
            ("work.do", "1")
        );
        assert_eq!(said["forebay.outcome"], "done");
    }

    #[tokio::test]
    async fn a_publish_that_fails_is_a_span_that_says_why() {
        spans();
        let trace = "1234567890abcdef1234567890abcdef";
        let broker = forebay_worker::testing::broker().await;
        let config = broker.config().declare(forebay_worker::Declare::Never);
        let producer = forebay_worker::Producer::new(&config);
        let options = PublishOptions::new().traceparent(format!("00-{trace}-b7ad6b7169203331-01"));
        let error = producer.publish_with(&work(1), options).await.unwrap_err().to_string();
        let found = of(trace);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].status, Status::error(error));
        assert!(attributes(&found[0]).contains_key("error.type"), "{found:#?}");
    }
}
