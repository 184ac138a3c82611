//! What a sender may say about one job.
//! In: setters. Out: an envelope and, for a delayed job, its delay.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tracing::debug;

use crate::config::Config;
use crate::error::PublishError;
use crate::wire::delay::Delay;
use crate::wire::envelope::{Envelope, as_ms, to_ms};
use crate::wire::failure::beginning;
use crate::wire::job::Job;
use crate::wire::topology::{check_kind, check_queue_name};
use crate::wire::trace::TraceContext;

const LONGEST_TEXT: usize = 255;
/// What a sender may use for properties and headers: about half a frame. The rest is for what is
/// added on the way: the history of failures, and the broker's own marks.
const HEADER_LIMIT: usize = 64 * 1024;

/// Options of one publish; each defaults to what the job type says, or to nothing.
///
/// ```
/// use forebay_producer::PublishOptions;
/// use std::time::Duration;
///
/// let options = PublishOptions::new()
///     .id("order-4711")
///     .delay(Duration::from_secs(300))
///     .header("tenant", "acme");
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct PublishOptions {
    id: Option<String>,
    queue: Option<String>,
    when: Option<When>,
    expires: Option<Expiry>,
    key: Option<String>,
    owner: Option<String>,
    track: Option<bool>,
    headers: Vec<(String, String)>,
    traceparent: Option<String>,
    tracestate: Option<String>,
    correlation_id: Option<String>,
    reply_to: Option<String>,
    priority: Option<u8>,
    pub(crate) deadline: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
enum When {
    After(Duration),
    At(SystemTime),
}

#[derive(Debug, Clone, Copy)]
enum Expiry {
    After(Duration),
    At(SystemTime),
}

impl PublishOptions {
    /// No options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the job id, at most 255 bytes. Default: a new UUIDv7.
    ///
    /// The broker does not deduplicate: a second publish under the same id is a second job.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the queue. Default: the job type's.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// Runs the job no earlier than after `delay`, up to 310 days, by the broker's clock. It comes
    /// at most 5 % (never more than a minute) and 0.1 s later, plus the time of its hops.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.when = Some(When::After(delay));
        self
    }

    /// Runs the job no earlier than at `time`; now if that has passed. This machine's clock turns
    /// it into a delay.
    pub fn run_at(mut self, time: SystemTime) -> Self {
        self.when = Some(When::At(time));
        self
    }

    /// Dead-letters the job as `expired` instead of running it later than this from now.
    pub fn expires_after(mut self, time: Duration) -> Self {
        self.expires = Some(Expiry::After(time));
        self
    }

    /// Dead-letters the job as `expired` instead of running it later than `time`.
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        self.expires = Some(Expiry::At(time));
        self
    }

    /// Names the piece of work, for handlers that must do it once: a second job with the same key
    /// is the same work.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Says whose job it is, at most 255 bytes: a user or a tenant, as your program knows them. It
    /// stays on the job and stands in its events, so that a gateway shows them to nobody else.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Tells what happens to the job as events (`queued`, `started`, `progress`, `retrying`,
    /// `succeeded` with its result, `dead` with the reason), to be read with
    /// [`EventLog`](crate::EventLog), `forebay follow` and the gateway. Default: the job type's
    /// [`TRACK`](crate::Job::TRACK); for a kind known only at run time `false`.
    ///
    /// A tracked publish returns when its event `queued` is confirmed too, or 5 s after the job is:
    /// an event that cannot be told is logged and counted, and never fails the publish.
    pub fn track(mut self, track: bool) -> Self {
        self.track = Some(track);
        self
    }

    /// Adds a header of your own; it stays on the job through retries and redrives.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Makes the job part of a trace: a W3C `traceparent`, such as a web request came with. One
    /// that cannot be read is left out, as the standard asks for, and never fails the publish.
    ///
    /// Without it, a follow-up job belongs to the trace of the job that is being handled (see
    /// [`Producer::with_trace`](crate::Producer::with_trace)), any other to none. With feature
    /// `otel` it is the parent of the publish's own span.
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.traceparent = Some(traceparent.into());
        self
    }

    /// Sets the `tracestate` that came with the `traceparent`; it goes along with that alone.
    pub fn tracestate(mut self, tracestate: impl Into<String>) -> Self {
        self.tracestate = Some(tracestate.into());
        self
    }

    /// Sets the `correlation_id` property.
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.correlation_id = Some(id.into());
        self
    }

    /// Sets the `priority` property, passed through to the broker.
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Sets how long this publish waits for its confirm. Default: the configuration's.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    pub(crate) fn reply_to(mut self, address: String) -> Self {
        self.reply_to = Some(address);
        self
    }

    /// What the job's type says, where nothing else was said.
    pub(crate) fn of_type<J: Job>(mut self) -> Self {
        self.queue.get_or_insert_with(|| J::QUEUE.to_owned());
        self.track.get_or_insert(J::TRACK);
        self
    }

    /// What a publish with these options and this configuration would send at `now`, signed if the
    /// configuration has keys, and its delay: for those who keep a job in a place of their own and
    /// send it later with [`Producer::send`](crate::Producer::send), under the same id however
    /// often. The expiry counts from `now`; the delay counts from when it is sent.
    ///
    /// # Errors
    /// [`PublishError`] for an option that cannot be used.
    pub fn into_envelope(
        self,
        config: &Config,
        kind: &str,
        payload: impl Into<Bytes>,
        now: SystemTime,
    ) -> Result<(Envelope, Option<Delay>), PublishError> {
        let payload = payload.into();
        check_kind(kind)?;
        let queue = self.queue.unwrap_or_else(|| "default".to_owned());
        check_queue_name(&queue)?;
        let mut envelope = Envelope::new(kind, queue, payload);
        if let Some(id) = self.id {
            envelope.id = checked("id", id)?;
        }
        envelope.idempotency_key = self.key.map(|key| checked("key", key)).transpose()?;
        envelope.owner = self.owner.map(|owner| checked("owner", owner)).transpose()?;
        envelope.track = self.track.unwrap_or_default();
        envelope.correlation_id =
            self.correlation_id.map(|id| checked("correlation id", id)).transpose()?;
        envelope.reply_to = self.reply_to;
        envelope.priority = self.priority;
        envelope.expires_at_ms = self.expires.map(|expiry| match expiry {
            Expiry::After(time) => to_ms(now).saturating_add(as_ms(time)),
            Expiry::At(time) => to_ms(time),
        });
        if let Some(trace) = trace(self.traceparent.as_deref(), self.tracestate.as_deref()) {
            envelope.set_trace(&trace);
        }
        for (name, value) in &self.headers {
            envelope.set_header(name, value).map_err(|why| PublishError::Option {
                option: "header",
                value: beginning(name),
                why,
            })?;
        }
        let delay = match self.when {
            None => None,
            Some(When::After(delay)) => Delay::new(delay)?,
            Some(When::At(time)) => Delay::new(time.duration_since(now).unwrap_or_default())?,
        };
        envelope.check_headers(HEADER_LIMIT)?;
        if let Some(keys) = &config.signing_keys {
            let signed = envelope.sign(keys, config.topology().namespace());
            signed.expect("headers of our own are texts, which are all covered");
        }
        Ok((envelope, delay))
    }
}

/// Returns are told apart by id: one that is cut on the wire would not be found again.
pub(crate) fn check_id(id: &str) -> Result<(), PublishError> {
    checked("id", id.to_owned()).map(|_| ())
}

fn trace(parent: Option<&str>, state: Option<&str>) -> Option<TraceContext> {
    let trace = TraceContext::parse(parent?);
    let trace =
        trace.inspect_err(|error| debug!(%error, "the job is published without it")).ok()?;
    Some(trace.with_state(state.unwrap_or_default()))
}

fn checked(option: &'static str, value: String) -> Result<String, PublishError> {
    let why = if value.is_empty() {
        "it is empty".to_owned()
    } else if value.len() > LONGEST_TEXT {
        format!("it has {} bytes, {LONGEST_TEXT} are the most", value.len())
    } else {
        return Ok(value);
    };
    Err(PublishError::Option { option, value: beginning(&value), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(options: PublishOptions) -> Result<(Envelope, Option<Delay>), PublishError> {
        let config = Config::new("amqp://127.0.0.1").unwrap();
        options.into_envelope(&config, "email.send", Bytes::from_static(b"{}"), SystemTime::now())
    }

    #[test]
    fn nothing_said_means_a_new_id_and_the_default_queue_now() {
        let (envelope, delay) = build(PublishOptions::new()).unwrap();
        assert_eq!((envelope.queue.as_str(), delay), ("default", None));
        assert_eq!(envelope.id.len(), 36);
    }

    #[test]
    fn a_time_that_has_passed_means_now() {
        let past = SystemTime::now() - Duration::from_secs(60);
        assert_eq!(build(PublishOptions::new().run_at(past)).unwrap().1, None);
    }

    #[test]
    fn a_trace_goes_along_and_one_that_cannot_be_read_is_left_out() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let options = PublishOptions::new().tracestate("vendor=1");
        assert_eq!(build(options.clone()).unwrap().0.trace(), None);
        assert_eq!(build(options.clone().traceparent("00-aa-bb-01")).unwrap().0.trace(), None);
        let (envelope, _) = build(options.traceparent(parent)).unwrap();
        assert_eq!(envelope.header("traceparent").as_deref(), Some(parent));
        assert_eq!(envelope.header("tracestate").as_deref(), Some("vendor=1"));
    }

    #[test]
    fn what_cannot_be_sent_is_refused_with_option_value_and_reason() {
        for (options, expected) in [
            (PublishOptions::new().id(""), "id ``"),
            (PublishOptions::new().id("x".repeat(256)), "256 bytes"),
            (PublishOptions::new().queue("No"), "queue `No`"),
            (PublishOptions::new().header("x-death", "1"), "belong to the broker"),
            (PublishOptions::new().header("CC", "1"), "belong to the broker"),
            (PublishOptions::new().header("forebay-attempt", "1"), "publish options"),
            (PublishOptions::new().delay(Duration::from_secs(u64::MAX / 2000)), "310 days"),
        ] {
            let error = build(options).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
