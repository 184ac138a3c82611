//! The log, on standard error.
//! In: a filter, a format, and events with the spans they happen in. Out: text for people, or one
//! JSON object a line for programs; a line about a job names it.

use std::io::{self, IsTerminal, Write};
use std::panic::{self, PanicHookInfo};

use clap::ValueEnum;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber, error};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For programs: one object a line.
    Json,
}

/// An empty variable counts as none.
pub(crate) fn format(text: &str) -> Result<LogFormat, String> {
    match text {
        "" => Ok(LogFormat::Auto),
        text => LogFormat::from_str(text, false).map_err(|_| "write auto, text or json".to_owned()),
    }
}

/// Any layer of ours.
pub(crate) type AnyLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Begins to log; `beside` is what else listens to spans and events.
pub(crate) fn begin(
    filter: &str,
    format: LogFormat,
    beside: Option<AnyLayer>,
) -> Result<(), String> {
    let filter = EnvFilter::try_new(quiet(filter)).map_err(|error| {
        format!("--log {filter:?} is no filter: {error}; try `info` or `debug`")
    })?;
    let terminal = io::stderr().is_terminal();
    let json = JsonLines { to: StandardError };
    let lines: AnyLayer = match format {
        LogFormat::Json => json.boxed(),
        LogFormat::Auto if !terminal => json.boxed(),
        LogFormat::Auto | LogFormat::Text => {
            let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
            fmt::layer().with_writer(io::stderr).with_ansi(colours).boxed()
        }
    };
    let layers = [Some(lines.with_filter(filter).boxed()), beside];
    tracing_subscriber::registry().with(layers.into_iter().flatten().collect::<Vec<_>>()).init();
    panic::set_hook(Box::new(panicked));
    Ok(())
}

/// The filter, with the libraries off that it does not name: one logs payloads, and at level trace
/// the password; both log errors that they return to us. An empty filter counts as none.
fn quiet(filter: &str) -> String {
    let mut all = if filter.is_empty() { "info" } else { filter }.to_owned();
    for library in ["lapin", "rustls_platform_verifier"] {
        if !filter.contains(library) {
            all = format!("{all},{library}=off");
        }
    }
    all
}

/// A panic is a line like any other, and names the job whose handler it was.
fn panicked(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let payload = panic.payload();
    let words = payload.downcast_ref::<&str>().copied();
    let words = words.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    error!(error = words.unwrap_or("not text"), place, "a thread panicked");
}

/// One JSON object for each event: `timestamp`, `level`, `target`, `message`, the event's own
/// fields, and those of the spans around it, the innermost first. The first of a name counts.
struct JsonLines<P = StandardError> {
    to: P,
}

/// Where lines go.
trait Paper: Send + Sync + 'static {
    fn write(&self, line: &str);
}

struct StandardError;

impl Paper for StandardError {
    fn write(&self, line: &str) {
        // Nobody is left to be told when standard error is gone.
        io::stderr().lock().write_all(line.as_bytes()).ok();
    }
}

/// Named values, in the order they came.
#[derive(Debug, Default)]
struct Fields(Vec<(&'static str, Value)>);

impl<S: Subscriber + for<'a> LookupSpan<'a>, P: Paper> Layer<S> for JsonLines<P> {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        // A value's `Debug` is anybody's code, which may log or panic: never under the lock.
        let mut more = Fields::default();
        values.record(&mut more);
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            fields.put_all(more);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut own = Fields::default();
        event.record(&mut own);
        let mut line = Line::begin(event, &mut own);
        line.put_all(&own);
        for span in context.event_scope(event).into_iter().flatten() {
            #[cfg(feature = "otel")]
            put_trace(&mut line, &span.id());
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.put_all(fields);
            }
        }
        self.to.write(&line.end());
    }
}

/// The ids of a span that is recorded, if the line has none yet.
#[cfg(feature = "otel")]
fn put_trace(line: &mut Line, span: &Id) {
    use opentelemetry::trace::TraceContextExt;

    let context =
        tracing::dispatcher::get_default(|all| tracing_opentelemetry::get_otel_context(span, all));
    let Some(context) = context else { return };
    let span = context.span();
    if span.span_context().is_valid() {
        line.put("trace_id", &span.span_context().trace_id().to_string().into());
        line.put("span_id", &span.span_context().span_id().to_string().into());
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.put_one(field.name(), value.into());
    }

    fn put_all(&mut self, more: Self) {
        more.0.into_iter().for_each(|(name, value)| self.put_one(name, value));
    }

    fn put_one(&mut self, name: &'static str, value: Value) {
        self.take(name);
        self.0.push((name, value));
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(known, _)| *known == name)?;
        Some(self.0.remove(at).1)
    }
}

/// A line as it is put together.
struct Line {
    text: String,
    names: Vec<&'static str>,
}

impl Line {
    fn begin(event: &Event<'_>, own: &mut Fields) -> Self {
        let mut line = Self { text: String::with_capacity(512), names: Vec::with_capacity(16) };
        let mut timestamp = String::new();
        // Writing to a string cannot fail.
        SystemTime.format_time(&mut Writer::new(&mut timestamp)).ok();
        line.put("timestamp", &timestamp.into());
        line.put("level", &event.metadata().level().as_str().into());
        // What comes through the `log` crate says its target in a field.
        let target = own.take("log.target").unwrap_or_else(|| event.metadata().target().into());
        line.put("target", &target);
        line.put("message", &own.take("message").unwrap_or_default());
        line
    }

    fn put_all(&mut self, fields: &Fields) {
        for (name, value) in &fields.0 {
            // Words of tracing's and log's own, not about what happened.
            if !["otel.", "log."].iter().any(|family| name.starts_with(family)) {
                self.put(name, value);
            }
        }
    }

    fn put(&mut self, name: &'static str, value: &Value) {
        if self.names.contains(&name) {
            return;
        }
        self.text.push(if self.names.is_empty() { '{' } else { ',' });
        self.names.push(name);
        self.text.push_str(&Value::from(name).to_string());
        self.text.push(':');
        self.text.push_str(&value.to_string());
    }

    fn end(mut self) -> String {
        self.text.push_str("}\n");
        self.text
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;
    use tracing::{info, info_span};

    use super::*;

    /// What would be written.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<Value>>>);

    fn written(work: impl FnOnce()) -> Vec<Value> {
        let page = Page::default();
        let lines = JsonLines { to: page.clone() };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), work);
        let lines = page.0.lock().unwrap();
        lines.clone()
    }

    impl Paper for Page {
        fn write(&self, line: &str) {
            assert!(line.ends_with('\n') && line.matches('\n').count() == 1, "{line:?}");
            self.0.lock().unwrap().push(serde_json::from_str(line).unwrap());
        }
    }

    #[test]
    fn a_line_has_what_happened_and_the_fields_of_the_spans_around_it() {
        let lines = written(|| {
            let job = info_span!("job", job.id = "1", queue = "mail", attempt = 2, otel.kind = "x");
            let _in_job = job.enter();
            let step = info_span!("step", queue = "inner", late = tracing::field::Empty);
            let _in_step = step.enter();
            step.record("late", 0.5);
            info!(attempt = 7, on = true, error = ?Some("a\nb"), "half \"way\"");
        });
        let mut line = lines[0].clone();
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        line["timestamp"].take();
        assert_eq!(
            line,
            json!({
                "timestamp": null, "level": "INFO", "target": module_path!(),
                "message": "half \"way\"", "attempt": 7, "on": true, "error": "Some(\"a\\nb\")",
                "queue": "inner", "late": 0.5, "job.id": "1",
            })
        );
    }

    #[test]
    fn a_value_may_do_what_it_likes_while_it_is_shown() {
        struct Busy(tracing::Span);
        impl std::fmt::Debug for Busy {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                // Takes the same lock as a log line within the span.
                self.0.record("inner", 1);
                f.write_str("busy")
            }
        }
        let lines = written(|| {
            let empty = tracing::field::Empty;
            let job = info_span!("job", inner = empty, late = empty);
            let _in_job = job.enter();
            job.record("late", tracing::field::debug(Busy(job.clone())));
            info!("done");
        });
        assert_eq!((&lines[0]["inner"], &lines[0]["late"]), (&json!(1), &json!("busy")));
    }

    #[test]
    fn a_field_cannot_take_the_place_of_what_every_line_has() {
        let lines = written(|| info!(level = "none", target = "elsewhere", "so it is"));
        assert_eq!(
            (&lines[0]["level"], &lines[0]["target"]),
            (&json!("INFO"), &json!(module_path!()))
        );
    }

    #[test]
    fn a_format_is_named_or_refused() {
        assert_eq!(format(""), Ok(LogFormat::Auto));
        assert_eq!(format("json"), Ok(LogFormat::Json));
        assert_eq!(format("xml").unwrap_err(), "write auto, text or json");
    }
}
