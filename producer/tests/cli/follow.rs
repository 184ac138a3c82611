//! `forebay follow`, and a publish that is waited for.

use std::process::Stdio;
use std::time::Duration;

use forebay_producer::wire::event::event_data;
use forebay_producer::{
    Envelope, Event, EventKind, EventLog, Events, Failure, Producer, Read, Reason, Start,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time;

use super::{Broker, PATIENCE, Ran, broker, ended, forebay, somewhere};

fn job(id: &str) -> Envelope {
    let mut job = Envelope::new("report.render", "default", "{}");
    job.id = id.to_owned();
    job
}

/// What a worker tells of a job that fails once.
async fn tell_all(producer: &Producer, id: &str) {
    let (first, mut second) = (job(id), job(id));
    second.attempt = 2;
    let failure = Failure::new(1, 1, Reason::Failed, "no paper", "node/1");
    for event in [
        Event::queued(&first, None),
        Event::started(&first),
        Event::retrying(&first, Duration::from_secs(1), &failure),
        Event::started(&second),
        Event::of_job(
            EventKind::Progress,
            &second,
            event_data(&json!({ "page": 1 })).expect("JSON"),
        ),
        Event::succeeded(&second, Some(br#"{"pages": 3}"#)),
    ] {
        producer.emit_event(event, producer.deadline()).await.expect("told");
    }
}

fn lines(ran: &Ran) -> Vec<Value> {
    ran.out.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn types(lines: &[Value]) -> Vec<&str> {
    lines
        .iter()
        .map(|line| line["type"].as_str().expect("a type").rsplit('.').next().expect("a word"))
        .collect()
}

const ALL: [&str; 6] = ["queued", "started", "retrying", "started", "progress", "succeeded"];

#[tokio::test]
async fn a_job_is_followed_to_its_end_and_what_others_do_is_not_shown() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    tell_all(&producer, "other").await;
    tell_all(&producer, "mine").await;
    let ran = forebay(&broker, &["follow", "mine"]).succeed().await;
    let lines = lines(&ran);
    assert_eq!(types(&lines), ALL);
    assert!(lines.iter().all(|line| line["subject"] == "mine"), "{}", ran.out);
    assert_eq!(lines[5]["data"], json!({ "result": { "pages": 3 } }));
    let people = forebay(&broker, &["follow", "mine", "--output", "table"]).succeed().await.out;
    assert!(people.contains("queued     on default"), "{people}");
    assert!(people.contains("again in 1s: failed: no paper"), "{people}");
    assert!(people.contains("attempt 2  {\"pages\":3}"), "{people}");
}

#[tokio::test]
async fn a_dead_letter_is_exit_code_1_unless_it_was_redriven() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let emit = async |event| producer.emit_event(event, producer.deadline()).await.expect("told");
    emit(Event::dead(&job("a"), "rejected", "no such report")).await;
    let ran = forebay(&broker, &["follow", "a", "--output", "table"]).run().await;
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("rejected: no such report"), "{}", ran.out);
    let again = job("a").redriven();
    emit(Event::queued(&again, None)).await;
    emit(Event::succeeded(&again, None)).await;
    assert_eq!(types(&lines(&forebay(&broker, &["follow", "a"]).succeed().await)).len(), 3);
}

#[tokio::test]
async fn what_came_after_a_token_follows_and_a_place_that_is_gone_is_told() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    tell_all(&producer, "a").await;
    let all = lines(&forebay(&broker, &["follow", "a"]).succeed().await);
    let token = all[2]["token"].as_str().unwrap();
    let rest = forebay(&broker, &["follow", "a", "--from", token]).succeed().await;
    assert_eq!(types(&lines(&rest)), ALL[3..]);
    let strange = "3.0199e0a8-7c00-7000-8000-000000000001";
    let ran = forebay(&broker, &["follow", "a", "--from", strange]).succeed().await;
    assert!(ran.err.contains("made anew"), "{}", ran.err);
    assert_eq!(types(&lines(&ran)), ALL);
    forebay(&broker, &["follow", "a", "--from", "then"]).run().await.failed(2, &["`beginning`"]);
}

#[tokio::test]
async fn channels_and_kinds_are_followed_for_as_long_as_one_likes() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    producer.emit("orders", "paid", &json!({ "n": 1 })).await.unwrap();
    tell_all(&producer, "a").await;
    for (arguments, count) in [
        (["follow", "--channel", "orders", "--from", "beginning"], 2),
        (["follow", "--kind", "report.render", "--from", "1h"], 6),
    ] {
        let mut child = forebay(&broker, &arguments).start();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        for n in 0..count {
            if n == 1 && count == 2 {
                producer.emit("orders", "shipped", &()).await.unwrap();
            }
            let line = time::timeout(PATIENCE, out.next_line()).await.expect("a line in time");
            let line: Value = serde_json::from_str(&line.unwrap().unwrap()).unwrap();
            assert!(line["token"].is_string(), "{line}");
        }
        child.kill().await.unwrap();
    }
}

/// Waits for the job of a publish, and lets it end.
async fn end(broker: &Broker, events: &mut Events, event: impl FnOnce(&Envelope) -> Event) {
    let producer = Producer::new(&broker.config());
    let queued = loop {
        match time::timeout(PATIENCE, events.next()).await.expect("an event").expect("read") {
            Read::Event(stored) if stored.event.what == EventKind::Queued => break stored.event,
            _ => {}
        }
    };
    let event = event(&job(&queued.subject));
    producer.emit_event(event, producer.deadline()).await.expect("told");
}

async fn events(broker: &Broker) -> Events {
    let log = EventLog::new(&broker.config());
    log.declare().await.expect("declared");
    log.read(Start::First).await.expect("a reader")
}

#[tokio::test]
async fn a_publish_can_wait_for_the_result() {
    let broker = broker().await;
    let mut events = events(&broker).await;
    let publish = ["publish", "report.render", "{}", "--wait=50s", "--output", "json"];
    let child = forebay(&broker, &publish).start();
    end(&broker, &mut events, |job| Event::succeeded(job, Some(b"[1,2]"))).await;
    let ran = ended(child).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    let shown = ran.json();
    assert_eq!((&shown["state"], &shown["result"]), (&json!("succeeded"), &json!([1, 2])));
    let child = forebay(&broker, &["publish", "report.render", "{}", "--wait"]).start();
    end(&broker, &mut events, |job| Event::dead(job, "rejected", "no paper")).await;
    let ran = ended(child).await;
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    assert!(ran.out.ends_with("dead: rejected: no paper\n"), "{}", ran.out);
}

#[tokio::test]
async fn a_publish_that_waits_in_vain_says_how_to_go_on() {
    let broker = broker().await;
    let call = forebay(&broker, &["publish", "a.b", "{}", "--id", "x", "--wait=100ms"]);
    call.run().await.failed(1, &["job x has not ended within 100ms", "`forebay follow x`"]);
}

#[tokio::test]
async fn a_publish_can_be_followed() {
    let broker = broker().await;
    let mut events = events(&broker).await;
    let mut call = forebay(&broker, &["publish", "report.render", "{}", "--follow"]);
    call.command.stdin(Stdio::null());
    let child = call.start();
    end(&broker, &mut events, |job| Event::succeeded(job, None)).await;
    let ran = ended(child).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert_eq!(types(&lines(&ran)), ["queued", "succeeded"]);
}

#[tokio::test]
async fn without_a_broker_following_ends_with_exit_code_3() {
    let call = somewhere("amqp://127.0.0.1:1", &["follow", "a", "--timeout", "1s"]);
    call.run().await.failed(3, &["127.0.0.1:1"]);
    let call = somewhere("amqp://127.0.0.1:1", &["follow", "--channel", "a b"]);
    call.run().await.failed(2, &["channel `a b`"]);
    somewhere("amqp://127.0.0.1:1", &["follow"]).run().await.failed(2, &["JOB"]);
}
