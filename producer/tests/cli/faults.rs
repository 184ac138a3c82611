//! What goes wrong between us and the broker: each has its exit code, and none shows a password.

use std::time::{Duration, Instant};

use super::{Ran, broker, forebay, somewhere};

/// Verbs that need a broker.
const VERBS: [&[&str]; 5] = [
    &["publish", "a.b", "{}"],
    &["queues"],
    &["dead", "ls"],
    &["dead", "redrive"],
    &["topology", "apply"],
];

fn refused(ran: &Ran, words: &[&str]) {
    ran.failed(3, words);
    assert!(!ran.err.contains("hush"), "{}", ran.err);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
}

#[tokio::test]
async fn a_broker_out_of_reach_is_named_in_time() {
    for verb in VERBS {
        let began = Instant::now();
        let arguments = [verb, &["--timeout", "1s"]].concat();
        let ran = somewhere("amqp://app:hush@127.0.0.1:1", &arguments).run().await;
        refused(&ran, &["127.0.0.1:1", "refused", "AMQP_URL"]);
        assert!(began.elapsed() < Duration::from_secs(5), "{verb:?}");
    }
}

#[tokio::test]
async fn a_bulk_publish_to_no_broker_says_that_it_has_not_begun() {
    let arguments = ["publish", "a.b", "--jsonl", "-", "--from-line", "3", "--timeout", "1s"];
    let ran = somewhere("amqp://app:hush@127.0.0.1:1", &arguments).input("1\n2\n3\n").run().await;
    refused(&ran, &["127.0.0.1:1", "--from-line 3"]);
}

#[tokio::test]
async fn a_wrong_password_is_told_at_once() {
    let broker = broker().await;
    let url = format!("amqp://nobody:hush@{}/%2f", broker.address());
    for verb in VERBS {
        let began = Instant::now();
        let ran = somewhere(&url, verb).run().await;
        refused(&ran, &["refuses user `nobody`", "password"]);
        assert!(began.elapsed() < Duration::from_secs(9), "{verb:?}");
    }
}

#[tokio::test]
async fn a_missing_virtual_host_is_told_at_once_with_the_way_to_make_it() {
    let broker = broker().await;
    let (address, _) = broker.url().rsplit_once('/').expect("a URL with a vhost");
    let url = format!("{address}/nowhere");
    for verb in VERBS {
        let ran = somewhere(&url, verb).run().await;
        refused(&ran, &["`nowhere`", "rabbitmqctl add_vhost nowhere"]);
    }
}

#[tokio::test]
async fn wrong_use_ends_with_2_and_a_word_about_it() {
    for (arguments, word) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["publish"], "KIND"),
        (&["dead", "ls", "--limit", "0"], "--limit"),
        (&["dead", "redrive", "--rate", "0"], "between 0.001"),
        (&["queues", "--queue", "No.Good"], "`N`"),
        (&["queues", "--url", "nonsense"], "amqp://user:password@host"),
        (&["queues", "--namespace", "A"], "namespace `A`"),
        (&["queues", "--config", "missing.toml"], "missing.toml"),
    ] {
        somewhere("amqp://127.0.0.1:1", arguments).run().await.failed(2, &[word]);
    }
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_is_named_with_its_line_and_without_its_password() {
    let call = somewhere("amqp://127.0.0.1:1", &["queues"]);
    let ran = call.manifest("[broker]\nurl = \"amqp://app:hush@a").run().await;
    ran.failed(2, &["forebay.toml", "line 2"]);
    assert!(!ran.err.contains("hush"), "{}", ran.err);
}

#[tokio::test]
async fn help_is_there_for_every_verb_and_shows_no_password() {
    let broker = broker().await;
    for verb in [
        &["publish"][..],
        &["queues"],
        &["dead"],
        &["dead", "ls"],
        &["dead", "show"],
        &["dead", "redrive"],
        &["dead", "purge"],
        &["dead", "export"],
        &["topology"],
        &["topology", "show"],
        &["topology", "apply"],
        &["topology", "delete"],
        &["spool"],
        &["spool", "ls"],
        &["spool", "flush"],
        &["doctor"],
        &["completions"],
        &["man"],
    ] {
        let ran = forebay(&broker, &[verb, &["--help"]].concat()).succeed().await;
        assert!(ran.out.contains("Examples:\n  forebay "), "{verb:?}: {}", ran.out);
        assert!(!ran.out.contains(broker.url()), "{verb:?}");
    }
    let ran = forebay(&broker, &["--help"]).succeed().await;
    assert!(ran.out.contains("Exit codes:"), "{}", ran.out);
    let ran = forebay(&broker, &["help", "run"]).succeed().await;
    assert!(ran.out.contains("Examples:\n  forebay run"), "{}", ran.out);
}
