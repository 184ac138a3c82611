//! `[idempotency]`: what is asked for twice runs once.

use std::fs;

use forebay_producer::PublishOptions;
use forebay_producer::testing::{broker, postgres, redis};
use serde_json::{Value, json};

use crate::support::{Any, KIND, PATIENCE, Site};

/// A program that writes down what it was told, and answers with a number of its own.
const PROGRAM: &str = "echo $FOREBAY_JOB_IDEMPOTENCY_KEY ${FOREBAY_JOB_CLAIM:+claimed} >> ran\n\
                       wc -l < ran\n";

async fn site(idempotency: &str, function: &str) -> Site {
    let run = "exec = [\"/bin/sh\", \"book.sh\"]";
    let manifest =
        format!("[idempotency]\n{idempotency}\n[functions.\"{KIND}\"]\n{run}\n{function}\n");
    let site = Site::on(broker().await, &manifest);
    site.write("book.sh", PROGRAM);
    site
}

/// Asks once more what is known by this key, and waits for the result.
async fn call_once(site: &Site, key: &str) -> Value {
    let options = PublishOptions::new().idempotency_key(key);
    site.producer.call_with(&Any(json!({})), options, PATIENCE).await.unwrap()
}

async fn runs_once(idempotency: &str) {
    let site = site(idempotency, "").await;
    let run = site.run().await;
    // A repeated call gets the answer of the run that there was.
    for (key, answer) in [("order-1", 1), ("order-1", 1), ("order-2", 2), ("order-1", 1)] {
        assert_eq!(call_once(&site, key).await, json!(answer), "{key}");
    }
    assert_eq!(fs::read_to_string(site.file("ran")).unwrap(), "order-1 claimed\norder-2 claimed\n");
    let summary = run.drain().await;
    assert!(summary.starts_with("done 2, ") && summary.contains("; 2 duplicates"), "{summary}");
}

#[tokio::test]
async fn what_is_asked_for_twice_runs_once_with_claims_in_memory() {
    runs_once("store = \"memory\"").await;
}

#[tokio::test]
async fn what_is_asked_for_twice_runs_once_with_claims_in_redis() {
    runs_once(&format!("store = \"{}\"", redis().await.url())).await;
}

#[tokio::test]
async fn what_is_asked_for_twice_runs_once_with_claims_in_postgresql_whose_table_is_made() {
    runs_once(&format!("store = \"{}\"", postgres().await.url())).await;
}

#[tokio::test]
async fn a_function_may_be_left_out() {
    let site = site("store = \"memory\"", "idempotent = false").await;
    let run = site.run().await;
    assert_eq!(call_once(&site, "order-1").await, json!(1));
    assert_eq!(call_once(&site, "order-1").await, json!(2));
    assert_eq!(fs::read_to_string(site.file("ran")).unwrap(), "order-1\norder-1\n");
    run.drain().await;
}

#[tokio::test]
async fn a_store_that_cannot_be_used_is_told_before_the_first_job() {
    let site = site("store_env = \"FOREBAY_TEST_CLAIMS\"", "").await;
    for (value, words) in [
        ("", "variable `FOREBAY_TEST_CLAIMS` with the store's URL is not set; set it to redis://"),
        ("mysql://u:hush@a", "cannot be used: it is neither a redis:// nor a postgres:// URL; set"),
        ("postgres://u:hush@a:port/b", "the URL of the PostgreSQL store cannot be read"),
    ] {
        let mut command = site.command(&["--check"]);
        let output = command.env("FOREBAY_TEST_CLAIMS", value).output().await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.starts_with("forebay.toml:1: [idempotency]: ") && text.contains(words),
            "{text}"
        );
        assert!(!text.contains("hush"), "{text}");
    }
    let mut command = site.command(&["--check"]);
    let url = "redis://u:hush@127.0.0.1:7000/1";
    let output = command.env("FOREBAY_TEST_CLAIMS", url).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains(
            "\neach job once: claims are in the store that `FOREBAY_TEST_CLAIMS` names\n"
        ),
        "{text}"
    );
}
