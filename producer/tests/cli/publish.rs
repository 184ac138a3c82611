//! `forebay publish`.

use forebay_producer::link::after;
use forebay_producer::link::connection::Link;
use forebay_producer::testing::Broker;
use forebay_producer::wire::envelope::Raw;
use forebay_producer::{Envelope, SigningKeys};
use lapin::options::BasicGetOptions;
use serde_json::json;

use super::{broker, forebay, ready, somewhere};

/// Nobody listens there: what must be found out before anything is sent is found out all the same.
const NOWHERE: &str = "amqp://127.0.0.1:1";

#[tokio::test]
async fn a_published_job_waits_on_its_queue() {
    let broker = broker().await;
    broker.owns("mail");
    let call = forebay(&broker, &["publish", "email.send", "{\"to\": 1}", "--queue", "mail"]);
    let ran = call.succeed().await;
    assert!(ran.out.contains("mail") && ran.out.contains("none"), "{}", ran.out);
    assert_eq!(ready(&broker, "mail").await, json!(1));
    let table = forebay(&broker, &["queues", "--queue", "mail"]).succeed().await.out;
    assert!(
        table.contains("queue  ready  consumers  dead\nmail       1          0     0\n"),
        "{table}"
    );
}

#[tokio::test]
async fn a_delayed_job_is_counted_on_the_ladder() {
    let broker = broker().await;
    let published = forebay(&broker, &["publish", "email.send", "1", "--delay", "5m", "--id", "x"]);
    let published = published.json().await;
    assert_eq!((&published["id"], &published["queue"]), (&json!("x"), &json!("default")));
    assert!((300_000..=315_100).contains(&published["delay_ms"].as_u64().unwrap()));
    let seen = forebay(&broker, &["queues"]).json().await;
    assert_eq!(seen["queues"][0]["ready"], 0);
    assert_eq!(seen["delayed"]["total"], 1);
}

#[tokio::test]
async fn the_manifest_says_which_queue_a_kind_waits_on() {
    let broker = broker().await;
    broker.owns("mail");
    let manifest = "[functions.\"email.send\"]\nqueue = \"mail\"\nexec = [\"true\"]";
    let call = forebay(&broker, &["publish", "email.send", "{}"]).manifest(manifest);
    assert_eq!(call.json().await["queue"], "mail");
    let seen = forebay(&broker, &["queues"]).manifest(manifest).json().await;
    assert_eq!(
        (&seen["queues"][0]["queue"], &seen["queues"][0]["ready"]),
        (&json!("mail"), &json!(1))
    );
    assert_eq!(seen["sources"], json!(["the manifest"]));
}

#[tokio::test]
async fn a_kind_that_the_manifest_does_not_know_is_told_with_the_one_that_may_be_meant() {
    let broker = broker().await;
    let manifest = "[functions.\"email.send\"]\nqueue = \"mail\"\nexec = [\"true\"]";
    let call = forebay(&broker, &["publish", "email.sent", "{}", "--output", "json"]);
    let ran = call.manifest(manifest).succeed().await;
    assert_eq!(ran.json()["queue"], "default");
    assert!(ran.err.contains("no function `email.sent`"), "{}", ran.err);
    assert!(ran.err.contains("did you mean `email.send`?"), "{}", ran.err);
    let silent = forebay(&broker, &["publish", "email.sent", "{}"]).succeed().await;
    assert_eq!(silent.err, "", "without a manifest there is nothing to compare with");
}

#[tokio::test]
async fn a_queue_that_the_manifest_does_not_know_is_told() {
    let broker = broker().await;
    broker.owns("nope");
    let manifest = "[functions.\"email.send\"]\nexec = [\"true\"]";
    let publish = ["publish", "email.send", "{}", "--queue", "nope"];
    let first = forebay(&broker, &publish).manifest(manifest).succeed().await;
    assert!(first.err.contains("the manifest has no queue `nope`"), "{}", first.err);
    assert_eq!(forebay(&broker, &publish).succeed().await.err, "");
}

#[tokio::test]
async fn data_comes_from_standard_input_if_there_is_no_other() {
    let broker = broker().await;
    for arguments in [&["publish", "a.b", "-"][..], &["publish", "a.b"]] {
        forebay(&broker, arguments).input("{\"a\":\n1}").succeed().await;
    }
    assert_eq!(ready(&broker, "default").await, json!(2));
}

#[tokio::test]
async fn without_data_it_says_how_to_give_it() {
    let ran = somewhere(NOWHERE, &["publish", "a.b"]).run().await;
    ran.failed(2, &["standard input is empty", "'{}'", "single quotes"]);
}

#[tokio::test]
async fn data_that_is_not_json_is_refused_with_its_place() {
    let ran = somewhere(NOWHERE, &["publish", "a.b", "{\"a\": 1,\n b: 2}"]).run().await;
    ran.failed(2, &["not JSON", "line 2 column 2", "single quotes"]);
}

#[tokio::test]
async fn options_that_cannot_be_used_are_refused_before_the_broker_is_asked() {
    for (option, value, why) in [
        ("--queue", "No.Good", "`N`"),
        ("--header", "x-death=1", "belong to the broker"),
        ("--header", "tenant", "tenant=acme"),
        ("--delay", "400days", "310 days"),
        ("--delay", "soon", "30s, 5m"),
        ("--at", "2026-12-01T08:00:00", "no time zone"),
        ("--expires", "0s", "longer than nothing"),
        ("--id", "", "empty"),
        ("--from-line", "2", "--jsonl or --lines"),
    ] {
        let ran = somewhere(NOWHERE, &["publish", "a.b", "{}", option, value]).run().await;
        ran.failed(2, &[why]);
    }
}

#[tokio::test]
async fn a_bad_line_is_named_and_the_others_are_published() {
    let broker = broker().await;
    let lines = "{\"a\": 1}\n\nnope\n[2]\n{\"a\": }\n3";
    let call = forebay(&broker, &["publish", "a.b", "--jsonl", "jobs.jsonl", "--output", "json"]);
    let ran = call.file("jobs.jsonl", lines).run().await;
    ran.failed(1, &["line 3: not JSON", "line 5: not JSON: expected value at column 7"]);
    let counts = ran.json();
    assert_eq!((&counts["published"], &counts["bad"]), (&json!(3), &json!(2)));
    assert_eq!(counts["continue_from_line"], json!(null));
    assert_eq!(ready(&broker, "default").await, json!(3));
}

#[tokio::test]
async fn lines_of_text_are_put_into_a_template() {
    let broker = broker().await;
    let lines = "a \"quoted\" name.jpg\nb.jpg\n";
    forebay(&broker, &["publish", "a.b", "--lines"]).input(lines).succeed().await;
    let template = ["publish", "a.b", "--lines", "-", "--template", "{\"url\": \"http://{}\"}"];
    let ran = forebay(&broker, &template).input(lines).succeed().await;
    assert!(ran.out.starts_with("2 published, 0 bad, 0 failed in "), "{}", ran.out);
    assert_eq!(ready(&broker, "default").await, json!(4));
}

#[tokio::test]
async fn a_run_continues_at_the_line_it_is_told() {
    let broker = broker().await;
    let lines: String = (1..=2_500).map(|n| format!("{n}\n")).collect();
    for (flag, number) in [("--from-line", "2001"), ("--skip", "2400")] {
        let call = forebay(&broker, &["publish", "a.b", "--jsonl", "-", flag, number]);
        call.input(lines.clone()).succeed().await;
    }
    assert_eq!(ready(&broker, "default").await, json!(600));
}

#[tokio::test]
async fn a_payload_that_is_too_large_is_refused_with_both_sizes() {
    let broker = broker().await;
    let large = format!("\"{}\"", "x".repeat(17 * 1024 * 1024));
    let ran = forebay(&broker, &["publish", "a.b", "-"]).input(large).run().await;
    ran.failed(2, &["too large", "17825794", "16777216"]);
}

#[tokio::test]
async fn a_job_without_a_queue_is_not_published_where_nothing_may_be_declared() {
    let broker = broker().await;
    let call = forebay(&broker, &["publish", "a.b", "{}"]).env("FOREBAY_DECLARE", "never");
    call.run().await.failed(1, &["no queue is bound for `default`", "topology apply"]);
    let call = forebay(&broker, &["publish", "a.b", "--jsonl", "-"]);
    let ran = call.input("1\n2\n").env("FOREBAY_DECLARE", "never").run().await;
    ran.failed(1, &["no queue is bound for `default`", "--from-line 1"]);
}

#[tokio::test]
async fn a_delay_without_a_level_says_so_and_its_command_makes_it() {
    let broker = broker().await;
    broker.owns("mail");
    let apply = ["topology", "apply", "--queue", "mail"];
    forebay(&broker, &[&apply[..], &["--delays", "1s"]].concat()).succeed().await;
    let publish = || {
        let publish = ["publish", "a.b", "{}", "--queue", "mail", "--delay", "1m"];
        forebay(&broker, &publish).env("FOREBAY_DECLARE", "never")
    };
    let words = ["lacks a level for a delay of 1m", "topology apply --delays 1m --queue mail"];
    publish().run().await.failed(1, &words);
    forebay(&broker, &[&apply[..], &["--delays", "1m"]].concat()).succeed().await;
    publish().succeed().await;
}

#[tokio::test]
async fn a_job_belongs_to_the_trace_of_the_flag_or_of_the_environment() {
    let broker = broker().await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let other = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let publish = ["publish", "email.send", "{}"];
    let told = |call: super::Call| call.env("TRACEPARENT", parent).env("TRACESTATE", "a=1");

    told(forebay(&broker, &publish)).succeed().await;
    assert_eq!(trace_of_next(&broker).await, Some((parent.to_owned(), Some("a=1".to_owned()))));
    let flag = [&publish[..], &["--traceparent", other]].concat();
    told(forebay(&broker, &flag)).succeed().await;
    assert_eq!(trace_of_next(&broker).await, Some((other.to_owned(), None)));
    forebay(&broker, &publish).succeed().await;
    assert_eq!(trace_of_next(&broker).await, None);
}

#[tokio::test]
async fn a_broken_trace_is_refused_as_a_flag_and_left_out_as_a_variable() {
    let broker = broker().await;
    let ran = forebay(&broker, &["publish", "email.send", "{}"]).env("TRACEPARENT", "00-aa-01");
    let ran = ran.succeed().await;
    assert!(
        ran.err.contains("the variable TRACEPARENT is left out: `00-aa-01` is no traceparent"),
        "{}",
        ran.err
    );
    assert_eq!(trace_of_next(&broker).await, None);
    let ran = somewhere(NOWHERE, &["publish", "email.send", "{}", "--traceparent", "00-aa-01"]);
    ran.run().await.failed(2, &["--traceparent", "it is shorter"]);
}

/// Takes the next job off queue `default`; its traceparent and tracestate.
async fn trace_of_next(broker: &Broker) -> Option<(String, Option<String>)> {
    let trace = taken(broker).await.trace()?;
    Some((trace.traceparent().to_owned(), trace.tracestate().map(str::to_owned)))
}

/// Takes the next job off queue `default`.
async fn taken(broker: &Broker) -> Envelope {
    let config = broker.config();
    let link = Link::open(&config, "look");
    let channel = link.channel(after(super::PATIENCE)).await.expect("a channel").channel;
    let queue = config.topology().queue("default");
    let options = BasicGetOptions { no_ack: true };
    let got = channel.basic_get(queue.as_str().into(), options).await.expect("an answer");
    let got = got.expect("a job");
    link.close().await;
    Envelope::decode(Raw {
        properties: &got.delivery.properties,
        routing_key: got.delivery.routing_key.as_str(),
        redelivered: false,
        payload: got.delivery.data.into(),
    })
}

#[tokio::test]
async fn what_is_published_is_signed_if_there_are_keys() {
    const KEYS: &str = "one=0123456789abcdef0123456789abcdef";
    let broker = broker().await;
    let keys = SigningKeys::parse(KEYS).unwrap();
    let publish = || forebay(&broker, &["publish", "email.send", "{}"]);
    publish().env("FOREBAY_SIGNING_KEYS", KEYS).succeed().await;
    let by_file = publish().file("keys", &format!("{KEYS}\n"));
    by_file.env("FOREBAY_SIGNING_KEYS_FILE", "keys").succeed().await;
    for _ in 0..2 {
        assert_eq!(taken(&broker).await.verify(&keys, broker.namespace()), Ok(()));
    }
    publish().succeed().await;
    assert_eq!(taken(&broker).await.signature, None);

    let short = publish().env("FOREBAY_SIGNING_KEYS", "one=hush").run().await;
    short.failed(2, &["FOREBAY_SIGNING_KEYS", "`one` has 4 bytes"]);
    assert!(!short.err.contains("hush"), "{}", short.err);
    let both = publish().env("FOREBAY_SIGNING_KEYS", KEYS).env("FOREBAY_SIGNING_KEYS_FILE", "x");
    both.run().await.failed(2, &["set one of them"]);
}
