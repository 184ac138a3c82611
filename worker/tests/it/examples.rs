//! Every example runs on a real broker and ends by itself.

use std::path::PathBuf;

use forebay_worker::testing::{broker, postgres};
use tokio::process::Command;
use tokio::time;

use crate::support::PATIENCE;

/// Cargo builds the examples beside the tests.
fn built(example: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples").join(example)
}

async fn output_of(example: &str) -> String {
    output_with(example, "").await
}

async fn output_with(example: &str, database: &str) -> String {
    let broker = broker().await;
    broker.owns("default");
    let run = Command::new(built(example))
        .env("AMQP_URL", broker.url())
        .env("FOREBAY_NAMESPACE", broker.namespace())
        .env("DATABASE_URL", database)
        .kill_on_drop(true)
        .output();
    let output = time::timeout(PATIENCE, run).await.expect("it ends").expect("it was built");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[tokio::test]
async fn hello() {
    let text = output_of("hello").await;
    assert!(text.contains("hello Ada, said in attempt 1") && text.contains("done 1"), "{text}");
}

#[tokio::test]
async fn failing() {
    let text = output_of("failing").await;
    assert!(text.contains("charged 500 cents in attempt 3"), "{text}");
    assert!(text.contains("done 1, retried 2, dead 1"), "{text}");
}

#[tokio::test]
async fn blocking() {
    assert!(output_of("blocking").await.contains("5133 primes"));
}

#[tokio::test]
async fn followup() {
    assert!(output_of("followup").await.contains("order 1 is not paid yet, says remind-1"));
}

#[tokio::test]
async fn inbox() {
    let database = postgres().await;
    let text = output_with("inbox", database.url()).await;
    assert!(text.contains("ada has 500 cents\nada has 500 cents"), "{text}");
    assert!(text.contains("done 1") && text.contains("1 duplicates"), "{text}");
}
