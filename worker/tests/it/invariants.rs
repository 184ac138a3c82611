//! The invariants of ARCHITECTURE.md, by number. Those about where something may stand in the code
//! are checked in the code.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_worker::testing::{Broker, Proxy, broker, broker_of_its_own};
use forebay_worker::{
    Context, HandlerOptions, JobError, JobResult, QueueOptions, Retry, Worker, WorkerBuilder,
};

use crate::support::{Bench, Notes, Work, eventually, note, work};

/// Files of the libraries, without tests, that contain one of the words.
fn files_with(words: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    for library in ["producer/src", "worker/src"] {
        for path in rust_files(&root.join(library)) {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if name.contains("/bin/") || name.contains("/testing") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            let code_lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            if code_lines.into_iter().any(|line| words.iter().any(|word| line.contains(word))) {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|end| end == "rs"))
        .collect()
}

fn on_default(notes: &Notes) -> WorkerBuilder<Notes> {
    Worker::builder(notes.clone()).queue("default", QueueOptions::new())
}

#[test]
fn invariant_1_a_delivery_is_settled_exactly_once_and_only_in_settle() {
    // Said in one place, sent in one place. Dead letters are acknowledged elsewhere, and events, of
    // which an ack takes nothing.
    assert_eq!(files_with(&[".settle(self.tag", "generation.settle("]), ["worker/src/settle.rs"]);
    let acknowledging = files_with(&["basic_ack(", "basic_nack(", "basic_reject(", "acker.ack("]);
    let rooms =
        ["dead", "stream/life", "stream/probe"].map(|room| format!("producer/src/link/{room}"));
    let allowed = [&rooms[..], &["worker/src/generation".to_owned()]].concat();
    assert_eq!(acknowledging, allowed.iter().map(|room| format!("{room}.rs")).collect::<Vec<_>>());
    // That no tag is ever settled twice is a property test of `acker`.
}

#[tokio::test]
async fn invariant_2_publish_then_confirm_then_ack() {
    let notes = Notes::default();
    async fn fails(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        if cx.attempt() == 1 { Err(anyhow::anyhow!("first").into()) } else { Ok(()) }
    }
    let own = broker_of_its_own("").await;
    let retry = HandlerOptions::new().retry(Retry::fixed(2, Duration::from_millis(100)));
    let one_by_one = QueueOptions::new().concurrency(1).prefetch(1);
    let worker = Worker::builder(notes.clone()).queue("default", one_by_one);
    let mut bench = Bench::on(own.broker(), worker.handle_with(retry, fails));
    bench.consuming("default").await;
    bench.controls.pause("default");
    bench.idle("default").await;
    for n in 1..=3 {
        bench.producer.publish(&work(n)).await.unwrap();
    }
    own.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    eventually("the alarm is up", async || {
        own.ctl(&["eval", "rabbit_alarm:get_alarms()."]).await.contains("memory")
    })
    .await;
    bench.controls.resume("default");
    let queue = format!("{}\t", bench.config().topology().queue("default"));
    let unacked = async || -> u32 {
        let table = own.ctl(&["-q", "list_queues", "name", "messages_unacknowledged"]).await;
        table.lines().find_map(|line| line.strip_prefix(&queue)?.trim().parse().ok()).unwrap()
    };
    // The broker takes no copy now, at the latest from the second on: a delivery whose copy is not
    // confirmed must stay unacknowledged, although its handler has long returned.
    eventually("a delivery is held", async || {
        let decided = bench.controls.summary().retried;
        decided >= 1 && unacked().await == 1 && bench.controls.summary().retried == decided
    })
    .await;
    assert!(bench.controls.running().is_empty());
    own.ctl(&["set_vm_memory_high_watermark", "0.6"]).await;
    bench.until("all three are done", |summary| summary.succeeded == 3).await;
    eventually("the broker has nothing left", async || unacked().await == 0).await;
    assert_eq!(notes.all().len(), 6);
    bench.drain().await;
}

#[tokio::test]
async fn invariant_3_a_handler_can_neither_lose_nor_stall_the_runtime() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        match job.n {
            0 => panic!("zero"),
            1 => std::future::pending().await,
            2 => Err(JobError::reject(anyhow::anyhow!("two"))),
            3 => {
                // Hogs the only thread of this runtime for longer than two heartbeats.
                std::thread::sleep(Duration::from_secs(6));
                Ok(())
            }
            _ => Ok(()),
        }
    }
    let shared = broker().await;
    let options = HandlerOptions::new().retry(Retry::never()).timeout(Duration::from_secs(20));
    let behind = Broker::at(&format!("{}?heartbeat=2", shared.url()));
    let mut bench = Bench::on(behind, on_default(&notes).handle_with(options, handler));
    bench.consuming("default").await;
    for n in 0..20 {
        bench.producer.publish(&work(n)).await.unwrap();
    }
    bench.until("every job has its verdict", |s| s.succeeded + s.dead == 20).await;
    let mut reasons: Vec<_> =
        bench.dead("default", 3).await.into_iter().map(|letter| letter.reason).collect();
    reasons.sort();
    assert_eq!(reasons, ["panic", "rejected", "timeout"]);
    let summary = bench.drain().await;
    // Had the connection been lost, something would have been given back and run twice.
    assert_eq!((summary.succeeded, notes.all().len(), summary.given_back), (17, 20, 0));
}

#[test]
fn invariant_4_names_are_built_in_topology_and_envelope_alone() {
    // Header names. `headers` holds the rule for whole families of them.
    let headers = files_with(&["\"forebay-", "\"x-d", "\"x-death"]);
    let wire =
        ["envelope", "headers", "topology"].map(|room| format!("producer/src/wire/{room}.rs"));
    assert_eq!(headers, wire);
    // Names of queues and exchanges.
    let names = files_with(&["\"{}.{", "{}.delay.", "\".dead\"", ".dead-letters", ".unrouted\""]);
    assert_eq!(names, ["producer/src/wire/topology.rs"]);
}

#[tokio::test]
async fn invariant_5_an_ack_on_an_ended_generation_is_not_believed() {
    let notes = Notes::default();
    // A thread cannot be stopped: it says "done" on a generation that has ended.
    fn slow_at_first(job: Work, cx: Context<Notes>) -> JobResult {
        let first = cx.state().all().is_empty();
        note(cx.state(), &job, &cx);
        while first && !cx.is_cancelled() {
            std::thread::sleep(Duration::from_millis(10));
        }
        cx.state().add("done");
        Ok(())
    }
    let shared = broker().await;
    let proxy = Proxy::to(&shared.address()).await;
    let behind = Broker::at(&proxy.url());
    let mut bench = Bench::on(behind, on_default(&notes).handle_blocking(slow_at_first));
    bench.producer.publish(&work(1)).await.unwrap();
    assert_eq!(notes.wait_for(1).await, ["1#1"]);
    proxy.cut();
    notes.wait_for(4).await;
    bench.until("the second run is believed", |summary| summary.succeeded == 1).await;
    assert_eq!(bench.drain().await.succeeded, 1);
    let noted = notes.all();
    assert_eq!(noted.iter().filter(|note| *note == "1#1").count(), 2, "{noted:?}");
}

#[tokio::test]
async fn invariant_6_a_lost_consumer_is_restored() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        Ok(())
    }
    let mut bench = Bench::start(on_default(&notes).handle(handler)).await;
    bench.consuming("default").await;
    let topology = bench.config().topology().clone();
    let channel = crate::support::raw_channel(&bench.config()).await;
    // Everything is gone, not only the queue: the binding and the dead letters come back as well.
    for queue in [topology.queue("default"), topology.dead_queue("default")] {
        channel.queue_delete(queue.as_str().into(), Default::default()).await.unwrap();
    }
    channel.exchange_delete(topology.jobs_exchange().into(), Default::default()).await.unwrap();
    bench.idle("default").await;
    bench.consuming("default").await;
    bench.producer.publish(&work(1)).await.unwrap();
    assert_eq!(notes.wait_for(1).await, ["1#1"]);
    bench.drain().await;
}

#[tokio::test]
async fn invariant_7_shutdown_drains_in_order() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        cx.state().add(format!("begin {}", job.n));
        cx.state().wait_for_text(&format!("go {}", job.n)).await;
        Ok(())
    }
    let one = QueueOptions::new().concurrency(1).prefetch(3);
    let worker = Worker::builder(notes.clone()).queue("default", one).handle(handler);
    let mut bench = Bench::start(worker).await;
    for n in 0..3 {
        bench.producer.publish(&work(n)).await.unwrap();
    }
    notes.wait_for_text("begin 0").await;
    eventually("all are delivered", async || bench.ready("default").await == 0).await;
    bench.controls.drain();
    // First no more deliveries, and what was not started is back, while the first still runs.
    eventually("two are back", async || bench.ready("default").await == 2).await;
    assert_eq!(bench.controls.running().len(), 1);
    notes.add("go 0");
    let summary = bench.drain().await;
    assert_eq!((summary.succeeded, summary.given_back), (1, 2));
    assert_eq!(bench.ready("default").await, 2);
}

#[test]
fn invariant_8_libraries_touch_neither_argv_nor_signals() {
    assert_eq!(files_with(&["env::args", "tokio::signal", "signal_hook", "libc::"]), [""; 0]);
    assert_eq!(files_with(&["env::var("]), ["producer/src/config.rs"]);
}

#[test]
fn invariant_9_nothing_takes_from_a_job_queue_to_look() {
    // The worker consumes job queues; dead letters and answers are queues of their own, events a
    // stream.
    let consuming = files_with(&["basic_consume("]);
    let rooms = ["dead", "examine", "stream/attach", "stream/probe"];
    let rooms = rooms.map(|room| format!("producer/src/link/{room}"));
    let allowed =
        [&["producer/src/call".to_owned()], &rooms[..], &["worker/src/consumer".to_owned()]];
    let allowed = allowed.concat();
    assert_eq!(consuming, allowed.iter().map(|room| format!("{room}.rs")).collect::<Vec<_>>());
    // `examine` asks for a consumer whose priority is no number: it is refused before it is made.
    assert_eq!(files_with(&["\"x-priority\".into()"]), ["producer/src/link/examine.rs"]);
    assert_eq!(files_with(&["basic_get("]), ["producer/src/link/dead.rs"]);
    let dead = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../producer/src/link/dead.rs"),
    )
    .unwrap();
    assert!(!dead.contains("topology.queue(") && !dead.contains("topology.delay("));
}
