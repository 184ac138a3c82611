//! The worker's metrics: all their names, and what is counted by them.
//! In: verdicts, times, a queue's status. Out: numbers for the recorder that the program has
//! installed with the `metrics` facade; without one they go nowhere.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use forebay_producer::Envelope;
use metrics::{Counter, Gauge, Histogram, Unit};
use metrics::{describe_counter, describe_gauge, describe_histogram};

use crate::status::QueueStatus;
use crate::verdict::{Verdict, Why};

const JOBS: &str = "forebay_jobs_total";
const JOB_DURATION: &str = "forebay_job_duration_seconds";
const JOB_WAIT: &str = "forebay_job_wait_seconds";
const JOBS_RUNNING: &str = "forebay_jobs_running";
const CONCURRENCY: &str = "forebay_concurrency";
const HELD: &str = "forebay_deliveries_held";
const DEAD_LETTERS: &str = "forebay_dead_letters_total";
const CONSUMER_UP: &str = "forebay_consumer_up";
const CONSUMER_LOSSES: &str = "forebay_consumer_losses_total";
const READY: &str = "forebay_queue_ready_jobs";
const DEAD: &str = "forebay_dead_jobs";
const BATCH_JOBS: &str = "forebay_batch_jobs";

/// The kind of jobs that this worker has no handler for: a stranger could make up any number.
const UNKNOWN: &str = "unknown";

/// Tells the installed recorder units and meanings of the worker's and the producer's metrics.
///
/// Install the recorder before the worker starts: what was made earlier counts for nobody.
pub fn describe_metrics() {
    forebay_producer::describe_metrics();
    let (one, seconds) = (Unit::Count, Unit::Seconds);
    describe_counter!(JOBS, one, "Deliveries of jobs that were decided on, by outcome.");
    describe_histogram!(JOB_DURATION, seconds, "Time that one run of a job took.");
    describe_histogram!(
        JOB_WAIT,
        seconds,
        "Time from publishing a job to the begin of its first run; not for delayed jobs."
    );
    describe_gauge!(JOBS_RUNNING, one, "Jobs that run now, until they are settled.");
    describe_gauge!(CONCURRENCY, one, "Jobs that may run at once.");
    describe_gauge!(HELD, one, "Deliveries that wait in the worker for a permit.");
    describe_counter!(DEAD_LETTERS, one, "Jobs that became dead letters, by reason.");
    describe_gauge!(CONSUMER_UP, one, "Whether the queue is consumed: 1 or 0.");
    describe_counter!(CONSUMER_LOSSES, one, "How often a consumer was lost; it is restored.");
    describe_gauge!(READY, one, "Jobs ready at the broker, at the last look.");
    describe_gauge!(DEAD, one, "Dead letters at the broker, at the last look.");
    describe_histogram!(BATCH_JOBS, one, "Jobs that a batch handler was given at once.");
}

/// How many jobs the batches of one handler have.
pub(crate) fn batch_sizes(queue: &str, kind: &str) -> Histogram {
    metrics::histogram!(BATCH_JOBS, "queue" => queue.to_owned(), "kind" => kind.to_owned())
}

/// What is counted of one queue's jobs. Handles are made once: looking one up costs more than a
/// job.
pub(crate) struct QueueMeter {
    queue: String,
    kinds: HashMap<String, OnceLock<KindMeter>>,
    unknown: OnceLock<KindMeter>,
    wait: Histogram,
    losses: Counter,
}

struct KindMeter {
    done: Counter,
    duplicate: Counter,
    retried: Counter,
    put_off: Counter,
    suspected: Counter,
    dead: Counter,
    given_back: Counter,
    duration: Histogram,
}

impl QueueMeter {
    /// With the kinds that have a handler, and whether this is the handler's own queue: then its
    /// numbers are there from the beginning, as zeros.
    pub(crate) fn new<'a>(queue: &str, kinds: impl Iterator<Item = (&'a str, bool)>) -> Self {
        let handle = |(kind, own): (&str, bool)| {
            let handle = OnceLock::new();
            if own {
                handle.get_or_init(|| KindMeter::new(queue, kind));
            }
            (kind.to_owned(), handle)
        };
        Self {
            kinds: kinds.map(handle).collect(),
            unknown: OnceLock::new(),
            wait: metrics::histogram!(JOB_WAIT, "queue" => queue.to_owned()),
            losses: metrics::counter!(CONSUMER_LOSSES, "queue" => queue.to_owned()),
            queue: queue.to_owned(),
        }
    }

    /// Counts what is about to be done with a delivery.
    pub(crate) fn decided(&self, job: &Envelope, verdict: &Verdict) {
        let (kind, meter) = self.of(job);
        let outcome = match verdict {
            Verdict::Ack(_) => &meter.done,
            Verdict::Duplicate(_) => &meter.duplicate,
            Verdict::Again { why: Why::Retry, .. } => &meter.retried,
            Verdict::Again { why: Why::Suspect, .. } => &meter.suspected,
            Verdict::Again { why: Why::Grace | Why::Deferral(_) | Why::Waits, .. } => {
                &meter.put_off
            }
            Verdict::Dead(_) => &meter.dead,
            Verdict::GiveBack => &meter.given_back,
        };
        if let Verdict::Dead(letter) = verdict {
            let reason = letter.dead.as_ref().map(|mark| mark.reason.to_string());
            let labels = [
                ("queue", self.queue.clone()),
                ("kind", kind.to_owned()),
                ("reason", reason.unwrap_or_default()),
            ];
            // Looked up each time: a dead letter costs a publish anyway.
            metrics::counter!(DEAD_LETTERS, &labels).increment(1);
        }
        // Last: who sees it sees the rest as well.
        outcome.increment(1);
    }

    /// Counts a delivery that was given back without being looked at: its kind is not known.
    pub(crate) fn unseen(&self) {
        self.unknown.get_or_init(|| KindMeter::new(&self.queue, UNKNOWN)).given_back.increment(1);
    }

    /// Notes how long a run took.
    pub(crate) fn ran(&self, job: &Envelope, took: Duration) {
        self.of(job).1.duration.record(took);
    }

    /// Notes how long a job has waited for its first run.
    pub(crate) fn waited(&self, time: Duration) {
        self.wait.record(time);
    }

    /// Counts a consumer that ended while nobody asked it to.
    pub(crate) fn lost(&self) {
        self.losses.increment(1);
    }

    fn of(&self, job: &Envelope) -> (&str, &KindMeter) {
        let known = job.kind.as_deref().and_then(|kind| self.kinds.get_key_value(kind));
        let (kind, meter) = match known {
            Some((kind, meter)) => (kind.as_str(), meter),
            None => (UNKNOWN, &self.unknown),
        };
        (kind, meter.get_or_init(|| KindMeter::new(&self.queue, kind)))
    }
}

impl fmt::Debug for QueueMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueMeter").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl KindMeter {
    fn new(queue: &str, kind: &str) -> Self {
        let labels = [("queue", queue.to_owned()), ("kind", kind.to_owned())];
        let count = |outcome: &'static str| {
            let [queue, kind] = labels.clone();
            metrics::counter!(JOBS, &[queue, kind, ("outcome", outcome.to_owned())])
        };
        Self {
            done: count("done"),
            duplicate: count("duplicate"),
            retried: count("retried"),
            put_off: count("put_off"),
            suspected: count("suspected"),
            dead: count("dead"),
            given_back: count("given_back"),
            duration: metrics::histogram!(JOB_DURATION, &labels),
        }
    }
}

/// One queue's gauges; the worker sets them once a second.
pub(crate) struct QueueGauges {
    up: Gauge,
    running: Gauge,
    concurrency: Gauge,
    held: Gauge,
    ready: Sometimes,
    dead: Sometimes,
}

/// A gauge that is not there until its value is known.
struct Sometimes {
    name: &'static str,
    queue: String,
    gauge: OnceLock<Gauge>,
}

impl QueueGauges {
    pub(crate) fn new(queue: &str) -> Self {
        let gauge = |name: &'static str| metrics::gauge!(name, "queue" => queue.to_owned());
        let sometimes = |name| Sometimes { name, queue: queue.to_owned(), gauge: OnceLock::new() };
        Self {
            up: gauge(CONSUMER_UP),
            running: gauge(JOBS_RUNNING),
            concurrency: gauge(CONCURRENCY),
            held: gauge(HELD),
            ready: sometimes(READY),
            dead: sometimes(DEAD),
        }
    }

    pub(crate) fn set(&self, status: &QueueStatus) {
        self.up.set(if status.consuming { 1.0 } else { 0.0 });
        self.running.set(status.running as f64);
        self.concurrency.set(status.concurrency as f64);
        self.held.set(status.held as f64);
        self.ready.set(status.ready);
        self.dead.set(status.dead);
    }
}

impl Sometimes {
    fn set(&self, value: Option<u32>) {
        let make = || metrics::gauge!(self.name, "queue" => self.queue.clone());
        match value {
            Some(value) => self.gauge.get_or_init(make).set(value),
            // A gauge cannot be taken back; this is how Prometheus spells "no value".
            None => self.gauge.get().into_iter().for_each(|gauge| gauge.set(f64::NAN)),
        }
    }
}
