//! `forebay dead`.

use std::time::Duration;

use forebay_producer::testing::Broker;
use forebay_producer::wire::envelope::now_ms;
use forebay_producer::{DeadMark, Destination, Envelope, Failure, Producer, QueueType, Reason};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{broker, forebay, ready};

const HOUR: u64 = 3_600_000;

/// A broker with three dead letters in `mail`, oldest first: `one`, `two`, and `raw`, which is not
/// JSON.
pub(super) async fn three_letters() -> Broker {
    let broker = broker().await;
    broker.owns("mail");
    let producer = Producer::new(&broker.config());
    producer.declare("mail", QueueType::Quorum).await.expect("declared");
    let now = now_ms();
    let letters = [
        letter("one", "email.send", "{\"to\":\"ada\"}", Reason::Failed, now - 2 * HOUR),
        letter("two", "file.digest", "[2]", Reason::Timeout, now - HOUR),
        letter("raw", "file.digest", "\u{1b}[2J", Reason::Undecodable, now),
    ];
    for letter in letters {
        let deadline = Instant::now() + Duration::from_secs(30);
        producer.send(&letter, Destination::DeadLetters, deadline).await.expect("published");
    }
    producer.close().await;
    broker
}

fn letter(id: &str, kind: &str, payload: &'static str, reason: Reason, at_ms: u64) -> Envelope {
    let mut letter = Envelope::new(kind, "mail", payload);
    letter.id = id.to_owned();
    letter.attempt = 5;
    letter.set_header("tenant", "acme").expect("a header");
    let message = "smtp: connection refused\nby mx.example.org";
    letter.failures.push(Failure::new(at_ms, 5, reason.clone(), message, "host/1"));
    letter.dead = Some(DeadMark::new(reason, at_ms));
    letter
}

pub(super) fn mail<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["dead"], arguments, &["--queue", "mail"]].concat()
}

pub(super) async fn ids(broker: &Broker, filter: &[&str]) -> Value {
    let listed = forebay(broker, &mail(&[&["ls"], filter].concat())).json().await;
    listed["letters"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|letter| letter["id"].clone())
        .collect()
}

#[tokio::test]
async fn dead_letters_are_listed_oldest_first_and_by_filter() {
    let broker = three_letters().await;
    let ran = forebay(&broker, &mail(&["ls"])).succeed().await;
    let lines: Vec<_> = ran.out.lines().collect();
    assert_eq!(lines.len(), 4, "{}", ran.out);
    assert!(lines[0].starts_with("id"), "{}", ran.out);
    for part in ["one", "email.send", "mail", "failed", "5", "2h ago", "  by mx.example.org"] {
        assert!(lines[1].contains(part), "{part}: {}", ran.out);
    }
    for (filter, expected) in [
        (&[][..], json!(["one", "two", "raw"])),
        (&["--kind", "file.digest"], json!(["two", "raw"])),
        (&["--reason", "timeout"], json!(["two"])),
        (&["--older-than", "30m"], json!(["one", "two"])),
        (&["--newer-than", "90m", "--kind", "file.digest"], json!(["two", "raw"])),
        (&["--id", "one"], json!(["one"])),
        (&["--id", "none"], json!([])),
    ] {
        assert_eq!(ids(&broker, filter).await, expected, "{filter:?}");
    }
}

#[tokio::test]
async fn more_than_the_limit_are_not_passed_over_in_silence() {
    let broker = three_letters().await;
    let ran = forebay(&broker, &mail(&["ls", "--limit", "2"])).succeed().await;
    assert_eq!(ran.out.lines().count(), 3, "{}", ran.out);
    assert!(ran.err.contains("looked at 2 of 3") && ran.err.contains("--limit 3"), "{}", ran.err);
}

#[tokio::test]
async fn looking_thirty_times_deletes_none() {
    let broker = three_letters().await;
    for _ in 0..30 {
        assert_eq!(ids(&broker, &[]).await, json!(["one", "two", "raw"]));
    }
}

#[tokio::test]
async fn one_letter_is_shown_with_everything_that_is_known_of_it() {
    let broker = three_letters().await;
    let page = forebay(&broker, &mail(&["show", "one"])).succeed().await.out;
    for part in [
        "one",
        "email.send",
        "failed",
        "tenant=acme",
        "attempt 5 on host/1: failed",
        "    by mx.example.org",
        "{\n  \"to\": \"ada\"\n}",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let shown = forebay(&broker, &mail(&["show", "one"])).json().await;
    assert_eq!(shown["payload"], json!({ "to": "ada" }));
    assert_eq!(shown["failures"][0]["worker"], "host/1");

    let raw = forebay(&broker, &mail(&["show", "raw"])).succeed().await.out;
    assert!(raw.contains("\\u{1b}[2J"), "nothing steers the terminal: {raw}");
    let missing = forebay(&broker, &mail(&["show", "none"])).run().await;
    missing.failed(1, &["no dead letter has the id `none`"]);
}

#[tokio::test]
async fn a_dry_run_moves_nothing() {
    let broker = three_letters().await;
    for verb in ["redrive", "purge"] {
        let ran = forebay(&broker, &mail(&[verb, "--dry-run"])).succeed().await;
        assert!(ran.out.contains("3 dead letters would be"), "{}", ran.out);
    }
    assert_eq!(ready(&broker, "mail").await, json!(0));
    assert_eq!(ids(&broker, &[]).await, json!(["one", "two", "raw"]));
}

#[tokio::test]
async fn what_is_redriven_is_on_its_queue_and_no_longer_dead() {
    let broker = three_letters().await;
    let redrive = mail(&["redrive", "--kind", "file.digest", "--rate", "50"]);
    let done = forebay(&broker, &redrive).json().await;
    assert_eq!((&done["redriven"], &done["left"]), (&json!(2), &json!(1)));
    assert_eq!(ready(&broker, "mail").await, json!(2));
    assert_eq!(ids(&broker, &[]).await, json!(["one"]));

    broker.owns("other");
    forebay(&broker, &mail(&["redrive", "--to", "other"])).succeed().await;
    assert_eq!(ready(&broker, "other").await, json!(1));
}

#[tokio::test]
async fn a_purge_wants_to_hear_yes() {
    let broker = three_letters().await;
    let ran = forebay(&broker, &mail(&["purge"])).run().await;
    ran.failed(2, &["about to purge 3 dead letters", "--yes", "--dry-run"]);
    assert_eq!(ids(&broker, &[]).await, json!(["one", "two", "raw"]));

    let purge = mail(&["purge", "--reason", "timeout", "--yes"]);
    assert_eq!(forebay(&broker, &purge).json().await, json!({ "purged": 1 }));
    assert_eq!(ids(&broker, &[]).await, json!(["one", "raw"]));
}

#[tokio::test]
async fn an_export_is_a_copy_that_can_be_published_again() {
    let broker = three_letters().await;
    let out = forebay(&broker, &mail(&["export"])).succeed().await.out;
    let letters: Vec<Value> =
        out.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    assert_eq!(letters[0]["payload"], json!({ "to": "ada" }));
    assert_eq!(letters[0]["headers"], json!({ "tenant": "acme" }));
    assert_eq!((&letters[0]["attempts"], &letters[0]["redrives"]), (&json!(5), &json!(0)));
    assert_eq!(letters[2]["payload_base64"], "G1sySg==");

    let payloads: String =
        letters[..2].iter().map(|letter| format!("{}\n", letter["payload"])).collect();
    let again = ["publish", "email.send", "--queue", "mail", "--jsonl", "-"];
    forebay(&broker, &again).input(payloads).succeed().await;
    assert_eq!(ready(&broker, "mail").await, json!(2));
    assert_eq!(ids(&broker, &[]).await, json!(["one", "two", "raw"]));
}

#[tokio::test]
async fn an_export_does_not_write_over_a_file() {
    let broker = three_letters().await;
    let export = mail(&["export", "--to-file", "dead.jsonl"]);
    let ran = forebay(&broker, &export).succeed().await;
    assert!(ran.err.contains("3 dead letters copied to dead.jsonl"), "{}", ran.err);
    let ran = forebay(&broker, &export).file("dead.jsonl", "precious").run().await;
    ran.failed(2, &["dead.jsonl", "there already"]);
}

#[tokio::test]
async fn a_queue_that_was_named_must_be_there_and_one_that_was_not_need_not() {
    let broker = broker().await;
    let ran = forebay(&broker, &["dead", "ls"]).succeed().await;
    assert!(ran.err.contains("no dead letters found"), "{}", ran.err);
    let ran = forebay(&broker, &mail(&["ls"])).run().await;
    ran.failed(2, &["there is no queue", "mail.dead"]);
}
