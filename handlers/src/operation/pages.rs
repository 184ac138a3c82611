//! What stands on the pages, pure.
//! In: the worker's status. Out: a code and a text. No token and no payload is on any of them.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_worker::QueueStatus;
use serde::Serialize;
use serde_json::json;

/// The worker's clock ticks every second; so long without a tick, and its runtime hangs.
const STALLED: Duration = Duration::from_secs(10);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) kind: &'static str,
    pub(crate) body: String,
}

impl Page {
    pub(crate) fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, kind: TEXT, body: body.into() }
    }

    fn json(status: u16, body: &impl Serialize) -> Self {
        let body = serde_json::to_string(body).expect("numbers and texts turn into JSON");
        Self { status, kind: JSON, body: body + "\n" }
    }
}

/// Whether the runtime turns.
pub(crate) fn is_alive(since_tick: Duration) -> bool {
    since_tick < STALLED
}

/// `/livez`.
pub(crate) fn live(since_tick: Duration) -> Page {
    if is_alive(since_tick) {
        return Page::text(200, "alive\n");
    }
    let seconds = since_tick.as_secs();
    Page::text(503, format!("stalled: no handler and no ack has had a turn for {seconds} s\n"))
}

/// `/readyz`: whether every queue is consumed, and which is not, and why.
pub(crate) fn ready(queues: &[QueueStatus], draining: bool, json: bool) -> Page {
    let consumed = queues.iter().filter(|queue| queue.consuming).count();
    let ready = !draining && consumed == queues.len();
    let status = if ready { 200 } else { 503 };
    if json {
        let queues: BTreeMap<_, _> = queues.iter().map(reason).collect();
        let body = json!({ "ready": ready, "draining": draining, "queues": queues });
        return Page::json(status, &body);
    }
    let mut text = match (ready, draining) {
        (true, _) => "ready".to_owned(),
        (false, true) => format!("not ready: draining, running jobs: {}", running(queues)),
        (false, false) => "not ready".to_owned(),
    };
    if !draining {
        text += &format!(": {}", consuming(queues));
    }
    for queue in queues.iter().filter(|queue| !queue.consuming) {
        text += &format!("\n{}: {}", queue.queue, because(queue));
    }
    Page::text(status, text + "\n")
}

fn reason(queue: &QueueStatus) -> (&str, serde_json::Value) {
    let because = (!queue.consuming).then(|| because(queue));
    let idle = queue.idle_seconds;
    let state = json!({ "consuming": queue.consuming, "because": because, "idle_seconds": idle });
    (&queue.queue, state)
}

/// `consuming 2 of 3 queues`.
pub(crate) fn consuming(queues: &[QueueStatus]) -> String {
    let consumed = queues.iter().filter(|queue| queue.consuming).count();
    let word = if queues.len() == 1 { "queue" } else { "queues" };
    format!("consuming {consumed} of {} {word}", queues.len())
}

/// Jobs that run, over all queues.
pub(crate) fn running(queues: &[QueueStatus]) -> usize {
    queues.iter().map(|queue| queue.running).sum()
}

/// Why a queue is not consumed, on one line.
pub(crate) fn because(queue: &QueueStatus) -> String {
    queue.because.as_deref().unwrap_or("not consumed").replace(['\n', '\r'], " ")
}

/// What an autoscaler goes by; every field is described in `docs/operation.md`.
#[derive(Debug, Serialize)]
struct Scale<'a> {
    worker: &'a str,
    work: u64,
    ready: Option<u64>,
    running: usize,
    held: usize,
    concurrency: usize,
    rate: f64,
    oldest_seconds: Option<f64>,
    queues: BTreeMap<&'a str, QueueScale>,
}

#[derive(Debug, Serialize)]
struct QueueScale {
    work: u64,
    ready: Option<u32>,
    running: usize,
    held: usize,
    concurrency: usize,
    rate: f64,
    oldest_seconds: Option<f64>,
    dead: Option<u32>,
    seen_seconds: Option<u64>,
    consuming: bool,
}

/// `/scale`.
pub(crate) fn scale(worker: &str, queues: &[QueueStatus]) -> Page {
    let each: BTreeMap<_, _> =
        queues.iter().map(|queue| (queue.queue.as_str(), scale_of(queue))).collect();
    let oldest = queues.iter().filter_map(|queue| queue.oldest_seconds);
    let total = Scale {
        worker,
        work: each.values().map(|queue| queue.work).sum(),
        ready: queues.iter().map(|queue| queue.ready.map(u64::from)).sum(),
        running: running(queues),
        held: queues.iter().map(|queue| queue.held).sum(),
        concurrency: queues.iter().map(|queue| queue.concurrency).sum(),
        rate: rounded(queues.iter().map(|queue| queue.rate).sum()),
        oldest_seconds: oldest.reduce(f64::max).map(rounded),
        queues: each,
    };
    Page::json(200, &total)
}

fn scale_of(queue: &QueueStatus) -> QueueScale {
    let here = (queue.running + queue.held) as u64;
    QueueScale {
        work: u64::from(queue.ready.unwrap_or(0)) + here,
        ready: queue.ready,
        running: queue.running,
        held: queue.held,
        concurrency: queue.concurrency,
        rate: rounded(queue.rate),
        oldest_seconds: queue.oldest_seconds.map(rounded),
        dead: queue.dead,
        seen_seconds: queue.seen_seconds,
        consuming: queue.consuming,
    }
}

fn rounded(number: f64) -> f64 {
    (number * 1_000.0).round() / 1_000.0
}

/// Any other path.
pub(crate) fn unknown() -> Page {
    Page::text(
        404,
        "no such page; there are:\n\
         /livez    whether this process still turns\n\
         /readyz   whether every queue is consumed, and if not, why\n\
         /metrics  numbers for Prometheus\n\
         /scale    numbers for autoscalers, as JSON\n",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn queue(name: &str, because: Option<&str>) -> QueueStatus {
        let mut queue = QueueStatus::default();
        queue.queue = name.to_owned();
        queue.consuming = because.is_none();
        queue.because = because.map(str::to_owned);
        queue.concurrency = 4;
        queue
    }

    #[test]
    fn a_runtime_that_hangs_is_not_alive() {
        assert_eq!(live(Duration::from_secs(9)), Page::text(200, "alive\n"));
        let stalled = live(Duration::from_secs(12));
        assert_eq!(stalled.status, 503);
        assert!(stalled.body.starts_with("stalled: ") && stalled.body.contains("12 s"));
    }

    #[test]
    fn ready_is_who_consumes_every_queue_and_does_not_drain() {
        let up = || queue("default", None);
        let down = || queue("mail", Some("no connection to a:5672:\nrefused"));
        let mut busy = queue("mail", Some("draining"));
        busy.running = 3;
        for (queues, draining, status, text) in [
            (vec![up()], false, 200, "ready: consuming 1 of 1 queue\n"),
            (
                vec![up(), down()],
                false,
                503,
                "not ready: consuming 1 of 2 queues\nmail: no connection to a:5672: refused\n",
            ),
            (
                vec![queue("mail", Some("paused"))],
                false,
                503,
                "not ready: consuming 0 of 1 queue\nmail: paused\n",
            ),
            (vec![up()], true, 503, "not ready: draining, running jobs: 0\n"),
            (vec![busy], true, 503, "not ready: draining, running jobs: 3\nmail: draining\n"),
        ] {
            let page = ready(&queues, draining, false);
            assert_eq!((page.status, page.body.as_str()), (status, text));
            let page = ready(&queues, draining, true);
            assert_eq!((page.status, page.kind), (status, JSON));
            let json: Value = serde_json::from_str(&page.body).unwrap();
            assert_eq!(json["ready"], status == 200);
            assert_eq!(json["draining"], draining);
        }
        let page = ready(&[down()], false, true);
        let json: Value = serde_json::from_str(&page.body).unwrap();
        assert_eq!(json["queues"]["mail"]["because"], "no connection to a:5672: refused");
    }

    #[test]
    fn work_is_what_waits_and_what_is_here() {
        let mut mail = queue("mail", None);
        (mail.running, mail.held, mail.ready, mail.dead) = (4, 3, Some(10), Some(2));
        (mail.rate, mail.oldest_seconds) = (1.23456, Some(9.5));
        let mut slow = queue("slow", None);
        (slow.running, slow.oldest_seconds) = (1, Some(600.0));
        let read = |queues: &[QueueStatus]| -> Value {
            serde_json::from_str(&scale("host/1", queues).body).unwrap()
        };
        let json = read(&[mail.clone(), slow]);
        assert_eq!(json["work"], 18);
        assert_eq!(json["ready"], Value::Null, "it is not known of every queue");
        assert_eq!((&json["running"], &json["held"]), (&json!(5), &json!(3)));
        assert_eq!((&json["concurrency"], &json["rate"]), (&json!(8), &json!(1.235)));
        assert_eq!(json["oldest_seconds"], 600.0);
        assert_eq!(
            (&json["queues"]["mail"]["work"], &json["queues"]["slow"]["work"]),
            (&json!(17), &json!(1))
        );
        assert_eq!(read(&[mail])["ready"], 10);
    }

    #[test]
    fn every_page_is_named_where_one_is_missed() {
        let page = unknown();
        assert_eq!(page.status, 404);
        for path in ["/livez", "/readyz", "/metrics", "/scale"] {
            assert!(page.body.contains(path), "{path}");
        }
    }
}
