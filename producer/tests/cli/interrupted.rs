//! Ctrl-C, and a broker that goes away in the middle: what was done is told, and nothing is lost.

use std::time::Duration;

use forebay_producer::testing::{Broker, Proxy};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time;

use super::{broker, dead, ended, forebay, ready, somewhere};

const BULK: [&str; 4] = ["publish", "a.b", "--jsonl", "-"];

/// Ten lines are written and published; standard input stays open.
async fn ten_published(broker: &Broker, child: &mut Child) -> ChildStdin {
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    stdin.write_all(b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n").await.expect("written");
    until_ready(broker, "default", 10).await;
    stdin
}

async fn until_ready(broker: &Broker, queue: &str, jobs: u64) {
    let wait = async {
        while ready(broker, queue).await != json!(jobs) {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    time::timeout(super::PATIENCE, wait).await.expect("published in time");
}

async fn ctrl_c(child: &Child) {
    let process = child.id().expect("it runs").to_string();
    let sent = Command::new("kill").args(["-INT", &process]).status().await;
    assert!(sent.expect("kill is there").success());
}

#[tokio::test]
async fn a_bulk_publish_says_from_which_line_to_continue_when_the_broker_goes_away() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let call = somewhere(&proxy.url(), &[&BULK[..], &["--timeout", "5s"]].concat());
    let mut child = call.env("FOREBAY_NAMESPACE", broker.namespace()).start();

    let mut stdin = ten_published(&broker, &mut child).await;
    proxy.hold();
    stdin.write_all(b"11\n12\n13\n").await.expect("written");
    // Standard input stays open: it ends because it has given up, not because all is read.
    let ran = ended(child).await;
    ran.failed(3, &["--from-line 11", "not confirmed in time"]);
    assert!(ran.out.starts_with("10 published, 0 bad, 0 failed"), "{}", ran.out);
    drop(stdin);
}

#[tokio::test]
async fn a_bulk_publish_says_from_which_line_to_continue_after_ctrl_c() {
    let broker = broker().await;
    let mut child = forebay(&broker, &[&BULK[..], &["--timeout", "50s"]].concat()).start();
    let stdin = ten_published(&broker, &mut child).await;
    ctrl_c(&child).await;
    let ran = ended(child).await;
    ran.failed(1, &["--from-line 11"]);
    assert!(ran.out.starts_with("10 published, 0 bad, 0 failed"), "{}", ran.out);
    drop(stdin);
}

#[tokio::test]
async fn a_redrive_loses_nothing_by_ctrl_c() {
    let broker = dead::three_letters().await;
    let redrive = dead::mail(&["redrive", "--rate", "0.1"]);
    let child = forebay(&broker, &redrive).start();
    until_ready(&broker, "mail", 1).await;
    // The broker confirms a copy a moment before the letter is removed.
    time::sleep(Duration::from_millis(200)).await;
    ctrl_c(&child).await;
    let ran = ended(child).await;
    ran.failed(1, &["nothing is lost"]);
    assert_eq!(ran.out, "1 dead letter redriven\n");

    let left = async {
        while dead::ids(&broker, &[]).await != json!(["two", "raw"]) {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    time::timeout(Duration::from_secs(30), left).await.expect("the others are there again");
    assert_eq!(ready(&broker, "mail").await, json!(1));
}
