//! Spans by OpenTelemetry (feature `otel`): a publish as the messaging conventions want it.
//! In: a job that is published, and the span that is current. Out: a span of kind producer, and its
//! context on the job.
//!
//! Public for the worker's sake; types of `opentelemetry` are shown nowhere else.

use std::str::FromStr;

use opentelemetry::trace::{
    SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Context, KeyValue};
use tokio::time::Instant;
use tracing::{Instrument, Span, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::error::PublishError;
use crate::producer::{Destination, Producer};
use crate::wire::envelope::Envelope;
use crate::wire::trace::TraceContext;

/// The context of a span, if somebody records it or would: a sampler may have decided against it.
pub fn context_of(span: &Span) -> Option<TraceContext> {
    written(&span.context())
}

/// The context that is current: that of the current span, else the one that was attached by hand.
pub fn current() -> Option<TraceContext> {
    written(&surroundings())
}

/// A parent from elsewhere, or none: then a new trace begins.
pub fn remote(trace: Option<&TraceContext>) -> Context {
    trace
        .and_then(read)
        .map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent))
}

fn surroundings() -> Context {
    let context = Span::current().context();
    if context.span().span_context().is_valid() { context } else { Context::current() }
}

fn read(trace: &TraceContext) -> Option<SpanContext> {
    let state = TraceState::from_str(trace.tracestate().unwrap_or_default()).unwrap_or_default();
    let flags = if trace.sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let trace_id = TraceId::from_hex(trace.trace_id()).ok()?;
    Some(SpanContext::new(trace_id, SpanId::from_hex(trace.span_id()).ok()?, flags, true, state))
}

fn written(context: &Context) -> Option<TraceContext> {
    let span = context.span();
    let of = span.span_context();
    if !of.is_valid() {
        return None;
    }
    let (trace_id, span_id, flags) = (of.trace_id(), of.span_id(), of.trace_flags().to_u8());
    let trace = TraceContext::parse(&format!("00-{trace_id}-{span_id}-{flags:02x}")).ok()?;
    Some(trace.with_state(&of.trace_state().header()))
}

impl Producer {
    /// Publishes within a span of its own, where a layer records it. The span's parent is the
    /// trace that the options name, else the current span, else this producer's trace.
    pub(crate) async fn send_traced(
        &self,
        mut envelope: Envelope,
        destination: Destination,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        let span = self.begin(&mut envelope, destination);
        let sent = self.send_owned(envelope, destination, deadline).instrument(span.clone()).await;
        end(&span, &sent);
        sent
    }

    /// The span of one publish, which the envelope's trace then names.
    pub(crate) fn begin(&self, envelope: &mut Envelope, destination: Destination) -> Span {
        let span = info_span!("send", otel.name = field::Empty, otel.kind = field::Empty);
        let named = envelope.trace();
        // Fails without a layer that records spans: then nothing more is spent on it.
        if span.set_parent(Context::new()).is_err() {
            let passed_on = || current().or_else(|| self.trace().cloned());
            if let (None, Some(trace)) = (named, passed_on()) {
                envelope.set_trace(&trace);
            }
            return Span::none();
        }
        let around = surroundings();
        let parent = match named {
            None if around.span().span_context().is_valid() => around,
            None => remote(self.trace()),
            Some(named) => remote(Some(&named)),
        };
        // It has worked a moment ago.
        span.set_parent(parent.clone()).ok();
        span.record("otel.kind", "producer");
        let to = format!("{}:{}", self.topology().jobs_exchange(), envelope.queue);
        span.record("otel.name", format!("send {to}"));
        for attribute in attributes("send", to, envelope) {
            span.set_attribute(attribute.key, attribute.value);
        }
        if let Destination::Later(delay) = destination {
            let delay_ms = i64::try_from(delay.duration().as_millis()).unwrap_or(i64::MAX);
            span.set_attribute("forebay.delay_ms", delay_ms);
        }
        // None of its own if the layer has a filter that does not let it through.
        if let Some(trace) = context_of(&span).or_else(|| written(&parent)) {
            envelope.set_trace(&trace);
        }
        span
    }
}

/// Says how a publish ended.
pub(crate) fn end(span: &Span, sent: &Result<(), PublishError>) {
    if let Err(error) = sent {
        span.set_attribute("error.type", kind_of(error));
        span.set_status(Status::error(error.to_string()));
    }
}

/// What both ends say of a message, by the conventions for RabbitMQ. A delayed job is sent to where
/// it will be: its way over the delay ladder is another one for every delay.
pub fn attributes(operation: &'static str, to: String, envelope: &Envelope) -> Vec<KeyValue> {
    let size = i64::try_from(envelope.payload.len()).unwrap_or(i64::MAX);
    let mut attributes = vec![
        KeyValue::new("messaging.system", "rabbitmq"),
        KeyValue::new("messaging.operation.name", operation),
        KeyValue::new("messaging.operation.type", operation),
        KeyValue::new("messaging.destination.name", to),
        KeyValue::new("messaging.rabbitmq.destination.routing_key", envelope.queue.clone()),
        KeyValue::new("messaging.message.id", envelope.id.clone()),
        KeyValue::new("messaging.message.body.size", size),
        KeyValue::new("forebay.kind", envelope.kind.clone().unwrap_or_default()),
    ];
    if let Some(id) = &envelope.correlation_id {
        attributes.push(KeyValue::new("messaging.message.conversation_id", id.clone()));
    }
    attributes
}

fn kind_of(error: &PublishError) -> &'static str {
    match error {
        PublishError::Unroutable { .. } => "unroutable",
        PublishError::Refused { .. } => "refused",
        PublishError::TooLarge { .. } => "too_large",
        PublishError::Unconfirmed { .. } => "unconfirmed",
        PublishError::Denied { .. } => "denied",
        PublishError::Topology { .. } => "topology",
        _ => "_OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_comes_back_as_it_went() {
        for text in [
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        ] {
            let trace = TraceContext::parse(text).unwrap().with_state("vendor=1,other=2");
            assert_eq!(written(&remote(Some(&trace))), Some(trace));
        }
        assert_eq!(written(&remote(None)), None);
    }
}
