//! The examples run as they stand.

use std::path::PathBuf;
use std::process::Stdio;

use forebay_producer::testing::{Broker, broker};
use tokio::process::Command;

use crate::support::{Plain, within};

/// Runs an example to its end and returns what it printed.
async fn run(example: &str, broker: &Broker, queue: &str) -> String {
    broker.owns(queue);
    let path = built(example);
    let run = Command::new(&path)
        .env("AMQP_URL", broker.url())
        .env("FOREBAY_NAMESPACE", broker.namespace())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let run = within(&format!("the end of {example}"), run).await.expect("it starts");
    let printed = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success(), "{printed}{}", String::from_utf8_lossy(&run.stderr));
    printed
}

/// `cargo test` without a choice of targets builds the examples beside the tests.
fn built(example: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test knows its place");
    let folder = test.ancestors().nth(2).expect("target/debug/deps/it").join("examples");
    let path = folder.join(example).with_extension(std::env::consts::EXE_EXTENSION);
    let remedy = "build it with: cargo build -p forebay-producer --all-features --examples";
    assert!(path.exists(), "{} is not there; {remedy}", path.display());
    path
}

#[tokio::test]
async fn publish_publishes_one_job() {
    let broker = broker().await;
    let printed = run("publish", &broker, "mail").await;
    assert!(printed.contains("is on queue mail"), "{printed}");
    let queue = broker.config().topology().queue("mail");
    assert_eq!(Plain::at(broker.url()).await.count(&queue).await, Some(1));
}

#[tokio::test]
async fn delayed_publishes_jobs_for_later() {
    let broker = broker().await;
    let printed = run("delayed", &broker, "mail").await;
    assert!(printed.contains("in 2s") && printed.contains("in 1h"), "{printed}");
    let queue = broker.config().topology().queue("mail");
    let plain = Plain::at(broker.url()).await;
    assert_eq!(plain.take(&queue, 1).await[0].data, br#"{"to":"ada@example.org"}"#);
}

#[tokio::test]
async fn bulk_publishes_ten_thousand_jobs() {
    let broker = broker().await;
    let printed = run("bulk", &broker, "thumbnails").await;
    assert!(printed.contains("10000 jobs confirmed"), "{printed}");
    let queue = broker.config().topology().queue("thumbnails");
    assert_eq!(Plain::at(broker.url()).await.drain(&queue).await.len(), 10_000);
}
