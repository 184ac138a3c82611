//! Messages that break what reads them: any of them is handled or becomes a dead letter, and none
//! takes a worker, a neighbour or the look at the dead letters with it.

use std::time::Duration;

use forebay_producer::{DeadLetters, Filter, Pile, RedriveOptions};
use forebay_worker::testing::broker;
use forebay_worker::{
    Context, HandlerOptions, JobError, JobResult, PublishError, PublishOptions, QueueOptions,
    Retry, Worker,
};
use serde::{Deserialize, Serialize};

use crate::raw::{RawClient, member, nested, properties, text};
use crate::support::{Bench, Notes, PATIENCE, Work, eventually, note, work};

const BODY: &[u8] = br#"{"n":1}"#;
/// Arrays within each other, of which a thousand are too many for the client library.
const DEEP: usize = 20_000;

/// Fails at its first attempt, so that every job is published again by us.
async fn fails_once(job: Work, cx: Context<Notes>) -> JobResult {
    note(cx.state(), &job, &cx);
    cx.state().add(format!("id {}", cx.id()));
    if cx.attempt() == 1 { Err(anyhow::anyhow!("first").into()) } else { Ok(()) }
}

async fn bench(notes: &Notes) -> Bench {
    let twice = Retry::fixed(2, Duration::from_millis(100));
    let worker = Worker::builder(notes.clone())
        .queue("default", QueueOptions::new())
        .handle_with(HandlerOptions::new().retry(twice), fails_once);
    let bench = Bench::start(worker).await;
    bench.consuming("default").await;
    bench
}

/// Publishes one message past every client library, and a good one after it; both are to be done.
async fn survives(routing_key: &[u8], exchange: &str, properties: &[u8]) -> (Bench, Notes) {
    let notes = Notes::default();
    let bench = bench(&notes).await;
    let mut client = RawClient::connect(&bench.broker).await;
    let exchange = format!("{}{exchange}", bench.broker.namespace());
    client.publish(&exchange, routing_key, properties, BODY).await;
    bench.producer.publish(&work(2)).await.unwrap();
    bench.until("both are done", |summary| summary.succeeded == 2).await;
    for note in ["1#2", "2#2"] {
        notes.wait_for_text(note).await;
    }
    (bench, notes)
}

#[tokio::test]
async fn a_header_of_any_depth_takes_no_worker_with_it() {
    let members = member(b"deep", &nested(DEEP));
    let (mut bench, _) = survives(b"default", "", &properties(b"work.do", b"deep", &members)).await;
    let summary = bench.drain().await;
    assert_eq!((summary.retried, summary.suspects), (2, 0), "{summary}");
}

#[tokio::test]
async fn texts_that_are_not_utf8_are_read_as_far_as_they_can_be() {
    let members = member(b"caf\xe9", &text(b"\xff"));
    let properties = properties(b"work.do", b"\xfford-\xe97", &members);
    let (_bench, notes) = survives(b"default", "", &properties).await;
    notes.wait_for_text("id ?ord-?7").await;
}

#[tokio::test]
async fn a_routing_key_that_is_not_utf8_is_no_harm() {
    let properties = properties(b"work.do", b"key", b"");
    survives(b"\xff\xfe.default", ".deliver", &properties).await;
}

/// With the broker's own marks its frame is longer than any that a client may take.
#[tokio::test]
async fn headers_that_fill_a_frame_end_as_a_dead_letter_that_can_be_looked_at_and_redriven() {
    let notes = Notes::default();
    let bench = bench(&notes).await;
    let mut client = RawClient::connect(&bench.broker).await;
    let around = 8 + 12 + properties(b"work.do", b"full", &member(b"fill", &text(b""))).len();
    let fill = text(&vec![b'x'; client.frame_max - around]);
    let properties = properties(b"work.do", b"full", &member(b"fill", &fill));
    client.publish(bench.broker.namespace(), b"default", &properties, BODY).await;
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!((letter.envelope.id.as_str(), &letter.envelope.payload[..]), ("full", BODY));
    assert_eq!(letter.reason, "broker: rejected");
    assert_eq!(letter.envelope.broker.omitted.as_deref(), Some("fill"));
    assert_eq!(redriven(&bench).await, 1);
    bench.producer.publish(&work(2)).await.unwrap();
    bench.until("both are done", |summary| summary.succeeded == 2).await;
}

/// A worker that meets it only after it was given back sees more than was published.
#[tokio::test]
async fn headers_that_fill_a_frame_and_come_again_are_a_dead_letter_that_names_them() {
    let broker = broker().await;
    broker.owns("default");
    let topology = broker.config().topology().clone();
    let producer = forebay_worker::Producer::new(&broker.config());
    producer.declare("default", forebay_worker::QueueType::Quorum).await.unwrap();
    let mut client = RawClient::connect(&broker).await;
    let around = 8 + 12 + properties(b"work.do", b"full", &member(b"fill", &text(b""))).len();
    let fill = text(&vec![b'x'; client.frame_max - around]);
    let properties = properties(b"work.do", b"full", &member(b"fill", &fill));
    client.publish(broker.namespace(), b"default", &properties, BODY).await;
    let channel = crate::support::raw_channel(&broker.config()).await;
    let queue = topology.queue("default");
    let got = channel.basic_get(queue.as_str().into(), Default::default()).await.unwrap();
    // Rejected: only that counts on every version.
    let again = lapin::options::BasicRejectOptions { requeue: true };
    channel.basic_reject(got.expect("it is there").delivery_tag, again).await.unwrap();

    let notes = Notes::default();
    let worker = Worker::builder(notes.clone()).queue("default", QueueOptions::new());
    let bench = Bench::on(broker, worker.handle(fails_once));
    let letter = bench.dead("default", 1).await.remove(0);
    let message = &letter.envelope.failures[0].message;
    assert_eq!((letter.reason.as_str(), &letter.envelope.payload[..]), ("undecodable", BODY));
    assert!(message.contains("left out: fill"), "{message}");
    assert_eq!(notes.all(), Vec::<String>::new());
}

async fn redriven(bench: &Bench) -> u64 {
    let piles = DeadLetters::new(&bench.config());
    let (pile, all) = (Pile::Queue("default".to_owned()), Filter::default());
    let options = RedriveOptions::default();
    let done = piles.redrive(&pile, &all, 100, &options, &bench.producer, |_| {}).await.unwrap();
    piles.close().await;
    assert_eq!(done.failed, Vec::new());
    done.done
}

#[derive(Debug, Serialize, Deserialize)]
struct Picky {
    n: u64,
    #[serde(default)]
    list: Vec<serde_json::Value>,
}

impl forebay_worker::Job for Picky {
    const KIND: &'static str = "picky.do";
}

#[tokio::test]
async fn every_garbage_is_a_dead_letter_whose_reason_names_what_is_wrong_and_redrives_as_it_was() {
    async fn handler(_job: Picky, _cx: Context<()>) -> JobResult {
        Ok(())
    }
    let deep = format!("{{\"n\":1,\"list\":{}{}}}", "[".repeat(30_000), "]".repeat(30_000));
    let table: [(&str, &[u8], &str); 8] = [
        ("nothing", b"", "EOF while parsing"),
        ("no-json", b"{\"n\":", "EOF while parsing"),
        ("two", b"{\"n\":1}{\"n\":2}", "trailing characters"),
        ("bom", b"\xef\xbb\xbf{\"n\":1}", "expected value at line 1 column 1"),
        ("latin-1", b"{\"n\":1,\"list\":[\"\xe9\"]}", "invalid unicode code point"),
        ("deep", deep.as_bytes(), "recursion limit exceeded"),
        ("surrogate", br#"{"n":1,"list":["\ud800"]}"#, "hex escape"),
        ("zeros", &[0; 64], "expected value"),
    ];
    let worker = Worker::builder(()).queue("default", QueueOptions::new()).handle(handler);
    let mut bench = Bench::start(worker).await;
    bench.consuming("default").await;
    let mut client = RawClient::connect(&bench.broker).await;
    for (id, body, _) in &table {
        let properties = properties(b"picky.do", id.as_bytes(), b"");
        client.publish(bench.broker.namespace(), b"default", &properties, body).await;
    }
    let letters = bench.dead("default", table.len()).await;
    for (id, body, why) in &table {
        let letter = letters.iter().find(|letter| letter.envelope.id == *id).expect(id);
        assert_eq!((letter.reason.as_str(), &letter.envelope.payload[..]), ("undecodable", *body));
        let message = &letter.envelope.failures[0].message;
        assert!(message.contains("not JSON") && message.contains(why), "{id}: {message}");
        assert!(message.len() < 200, "{id}: {message}");
    }
    bench.drain().await;
    assert_eq!(redriven(&bench).await, table.len() as u64);
    let channel = crate::support::raw_channel(&bench.config()).await;
    for _ in &table {
        let queue = bench.config().topology().queue("default");
        let got = channel.basic_get(queue.as_str().into(), Default::default()).await.unwrap();
        let delivery = got.expect("it was redriven").delivery;
        let id = delivery.properties.message_id().as_ref().unwrap().to_string();
        let (_, body, _) = table.iter().find(|(known, ..)| *known == id).unwrap();
        assert_eq!(delivery.data, *body, "{id}");
    }
}

/// Numbers that do not fit and keys that come twice are JSON of another shape: graces, and then a
/// dead letter that says so. What a handler reads loosely it gets as it stands.
#[tokio::test]
async fn numbers_that_do_not_fit_and_keys_that_come_twice_are_of_another_shape() {
    let notes = Notes::default();
    async fn handler(job: Picky, cx: Context<Notes>) -> JobResult {
        cx.state().add(format!("{} {}", cx.id(), job.list.len()));
        Ok(())
    }
    let worker = Worker::builder(notes.clone()).queue("default", QueueOptions::new());
    let bench = Bench::start(worker.handle(handler)).await;
    bench.consuming("default").await;
    let mut client = RawClient::connect(&bench.broker).await;
    // The last of its graces: what is of another shape is dead at once.
    let graces = member(b"forebay-graces", b"I\0\0\0\x03");
    let table: [(&str, &[u8], &str); 4] = [
        ("huge", br#"{"n":123456789012345678901234567890}"#, "n: invalid type"),
        ("exponent", br#"{"n":1e400}"#, "number out of range"),
        ("twice", br#"{"n":1,"n":2}"#, "duplicate field"),
        ("negative", br#"{"n":-1}"#, "n: invalid value"),
    ];
    for (id, body, _) in &table {
        let properties = properties(b"picky.do", id.as_bytes(), &graces);
        client.publish(bench.broker.namespace(), b"default", &properties, body).await;
    }
    let letters = bench.dead("default", table.len()).await;
    for (id, _, why) in &table {
        let letter = letters.iter().find(|letter| letter.envelope.id == *id).expect(id);
        let message = &letter.envelope.failures[0].message;
        assert!(message.contains(why), "{id}: {} {message}", letter.reason);
    }
    let loose = br#"{"n":1,"list":[{"a":1,"a":2},1e300,12345678901234567890123]}"#;
    let properties = properties(b"picky.do", b"loose", b"");
    client.publish(bench.broker.namespace(), b"default", &properties, loose).await;
    notes.wait_for_text("loose 3").await;
}

/// Its history is cut to what is left of a frame, and it keeps its retries, its reason and its way
/// back.
#[tokio::test]
async fn headers_just_under_the_limit_leave_room_for_retries_dead_letter_and_redrive() {
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        if cx.state().all().len() > 24 {
            return Ok(());
        }
        Err(JobError::retry(anyhow::anyhow!("long story {}", "é".repeat(500_000))))
    }
    let notes = Notes::default();
    let often = Retry::fixed(12, Duration::from_millis(100));
    let worker = Worker::builder(notes.clone())
        .queue("default", QueueOptions::new())
        .handle_with(HandlerOptions::new().retry(often), handler);
    let bench = Bench::start(worker).await;
    bench.consuming("default").await;

    let headers = |bytes| PublishOptions::new().id("ours").header("baggage", "x".repeat(bytes));
    let refused = bench.producer.publish_with(&work(1), headers(64 * 1024)).await.unwrap_err();
    let PublishError::TooLarge { what, bytes, limit, .. } = &refused else { panic!("{refused}") };
    assert_eq!((*what, *limit), ("headers", 65_536));
    assert!(refused.to_string().contains(&bytes.to_string()), "{refused}");

    bench.producer.publish_with(&work(1), headers(64 * 1024 - 700)).await.unwrap();
    let mut client = RawClient::connect(&bench.broker).await;
    let members = member(b"baggage", &text(&[b'x'; 118_000]));
    let properties = properties(b"work.do", b"foreign", &members);
    client.publish(bench.broker.namespace(), b"default", &properties, BODY).await;

    let letters = bench.dead("default", 2).await;
    for letter in &letters {
        let job = &letter.envelope;
        assert_eq!((letter.reason.as_str(), job.attempt), ("failed", 12), "{}", job.id);
        let newest = job.failures.last().expect("the newest failure is kept");
        assert_eq!(newest.attempt, 12, "{}", job.id);
        assert!(newest.message.starts_with("long story"), "{}", job.id);
        assert!(job.header("baggage").is_some_and(|baggage| baggage.len() > 64_000));
    }
    assert_eq!(redriven(&bench).await, 2);
    bench.until("both are done", |summary| summary.succeeded == 2).await;
}

/// Our copy would be refused; the broker's own dead-lettering has no such limit.
#[tokio::test]
async fn a_payload_over_the_limit_is_refused_when_it_is_published_and_kept_when_it_was_received() {
    let broker = broker().await;
    let config = broker.config().payload_limit(1_000);
    let worker = Worker::builder(()).queue("default", QueueOptions::new()).handle_raw(
        "any.do",
        HandlerOptions::new(),
        async |_payload, _cx: Context<()>| Err(JobError::reject(anyhow::anyhow!("no"))),
    );
    let running = worker.build().unwrap().start(&config);
    let large = format!("\"{}\"", "x".repeat(2_000));
    let producer = forebay_worker::Producer::new(&config);
    let refused = producer.publish_raw("any.do", large.clone(), PublishOptions::new()).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("2002") && refused.contains("1000"), "{refused}");

    let generous = forebay_worker::Producer::new(&broker.config());
    let id = generous.publish_raw("any.do", large.clone(), PublishOptions::new()).await.unwrap().id;
    let letter = crate::support::dead_of(&broker.config(), "default", 1).await.remove(0);
    assert_eq!((letter.reason.as_str(), &letter.envelope.id), ("broker: rejected", &id));
    assert_eq!(letter.envelope.payload, large);
    running.controls().drain();
    tokio::time::timeout(PATIENCE, running.finished()).await.unwrap().unwrap();
}

/// Also for whoever only looks: a producer sees its own message come back, an operator a pile.
#[tokio::test]
async fn dead_letters_that_no_client_library_reads_can_be_looked_at_and_redriven() {
    let notes = Notes::default();
    let bench = bench(&notes).await;
    let mut client = RawClient::connect(&bench.broker).await;
    let members = [member(b"deep", &nested(DEEP)), member(b"\xe9", b"V")].concat();
    let properties = properties(b"work.do", b"\xff", &members);
    let exchange = bench.config().topology().dead_exchange();
    client.publish(&exchange, b"default", &properties, BODY).await;
    let piles = DeadLetters::new(&bench.config());
    let (pile, all) = (Pile::Queue("default".to_owned()), Filter::default());
    for _ in 0..3 {
        let listing = piles.list(&pile, &all, 10).await.unwrap();
        assert_eq!(listing.letters[0].reason, "unknown");
    }
    assert_eq!(redriven(&bench).await, 1);
    eventually("it is done", async || notes.all().iter().any(|note| note == "1#2")).await;
}
