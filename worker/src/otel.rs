//! The span of a run by OpenTelemetry (feature `otel`).
//! In: the job's `tracing` span, the job, the verdict. Out: a span of kind consumer with what the
//! messaging conventions want, ended when the verdict is known.

use forebay_producer::{Envelope, otel};
use opentelemetry::Context;
use opentelemetry::trace::{Status, TraceContextExt};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::verdict::{Verdict, Why};

/// Makes the job's span one of kind consumer, below whoever published the job. `false` if no layer
/// records it; then nothing is spent on it.
pub(crate) fn begin(span: &Span, job: &Envelope, exchange: &str) -> bool {
    if span.set_parent(Context::new()).is_err() {
        return false;
    }
    // It has worked a moment ago.
    span.set_parent(otel::remote(job.trace().as_ref())).ok();
    let from = format!("{exchange}:{}", job.queue);
    span.record("otel.kind", "consumer");
    span.record("otel.name", format!("process {from}"));
    for attribute in otel::attributes("process", from, job) {
        span.set_attribute(attribute.key, attribute.value);
    }
    span.set_attribute("forebay.attempt", i64::from(job.attempt));
    if job.redrives > 0 {
        span.set_attribute("forebay.redrives", i64::from(job.redrives));
    }
    otel::context_of(span).is_some()
}

/// Says what became of the run and ends its span. The `tracing` span goes on: its log lines about
/// the settling, which may have to wait for the broker, are no part of the run.
pub(crate) fn end(span: &Span, verdict: &Verdict) {
    let context = span.context();
    let run = context.span();
    if !run.is_recording() {
        return;
    }
    let (outcome, trouble) = said(verdict);
    span.set_attribute("forebay.outcome", outcome);
    if let Some((kind, message)) = trouble {
        span.set_attribute("error.type", kind.to_owned());
        run.set_status(Status::error(message.to_owned()));
    }
    run.end();
}

/// The outcome, and for a failure its kind and message.
fn said(verdict: &Verdict) -> (&'static str, Option<(&str, &str)>) {
    match verdict {
        Verdict::Ack(_) => ("done", None),
        Verdict::Duplicate(_) => ("duplicate", None),
        Verdict::Again { why: Why::Retry, envelope, .. } => ("retried", failure(envelope)),
        Verdict::Again { why: Why::Grace, .. } => {
            ("put_off", Some(("unknown_kind", "no handler takes this job yet")))
        }
        Verdict::Again { why: Why::Suspect, .. } => {
            ("suspected", Some(("crashed", "a process died under this job")))
        }
        Verdict::Again { why: Why::Deferral(_) | Why::Waits, .. } => ("put_off", None),
        Verdict::Dead(letter) => ("dead", failure(letter)),
        Verdict::GiveBack => ("given_back", None),
    }
}

fn failure(job: &Envelope) -> Option<(&str, &str)> {
    let last = job.failures.last()?;
    Some((last.reason.as_str(), &last.message))
}
