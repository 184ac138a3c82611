//! How it ends: drained, forced, killed.

use std::fs;

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Run, Site, alive, eventually};

/// A function that says that it has begun, with its process number and that of a child, and ends
/// when `go` is there. It reads its job first: from then on it is under guard.
const WAITING: &str = r#"
cat > job.json
echo '{"progress": "half way"}' >&3
sleep 600 &
echo $$ $! > pids.new; mv pids.new pids
until [ -e go ]; do sleep 0.02; done
kill $!
echo '"done"'
"#;

async fn waiting() -> Site {
    let site = Site::with(r#"exec = ["/bin/sh", "wait.sh"]"#).await;
    site.write("wait.sh", WAITING);
    site
}

async fn gone(pids: &str) {
    for pid in pids.split_whitespace() {
        eventually(&format!("process {pid} is gone"), async || !alive(pid)).await;
    }
}

#[tokio::test]
async fn term_lets_a_running_job_finish() {
    let site = waiting().await;
    let run = site.run().await;
    let id = site.publish(json!({})).await;
    site.appeared("pids").await;
    run.signal(Signal::TERM);
    run.logged("what is awaited", |line| line["message"] == "running" && line["job.id"] == *id)
        .await;
    site.write("go", "");
    let (status, summary) = run.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(summary.starts_with("done 1, retried 0, dead 0, "), "{summary}");
}

/// As `timeout` does it: once to the process, once to its group.
#[tokio::test]
async fn the_same_signal_twice_at_once_counts_as_one() {
    let site = waiting().await;
    let run = site.run().await;
    site.publish(json!({})).await;
    site.appeared("pids").await;
    run.signal(Signal::TERM);
    run.signal(Signal::TERM);
    run.logged("it drains", |line| {
        line["message"].as_str().is_some_and(|m| m.starts_with("draining"))
    })
    .await;
    site.write("go", "");
    let (status, summary) = run.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(summary.starts_with("done 1, "), "{summary}");
}

#[tokio::test]
async fn a_second_signal_ends_the_job_and_gives_it_back() {
    let site = waiting().await;
    let run = site.run().await;
    site.publish(json!({})).await;
    let pids = site.appeared("pids").await;
    run.signal(Signal::TERM);
    run.logged("it drains", |line| {
        line["message"].as_str().is_some_and(|m| m.starts_with("draining"))
    })
    .await;
    run.signal(Signal::INT);
    let (status, summary) = run.ended().await;
    assert_eq!(status.code(), Some(1), "{summary}");
    assert!(summary.starts_with("done 0, "), "{summary}");
    assert!(summary.contains("given back 1, "), "{summary}");
    gone(&pids).await;

    fs::remove_file(site.file("pids")).unwrap();
    site.write("go", "");
    let next = site.run().await;
    site.appeared("pids").await;
    assert!(next.drain().await.starts_with("done 1, "));
}

#[tokio::test]
async fn a_grace_period_that_is_over_is_exit_code_1() {
    let site = Site::new(&format!(
        "[worker]\ngrace = \"1s\"\n[functions.\"{}\"]\nexec = [\"/bin/sh\", \"wait.sh\"]\n",
        crate::support::KIND
    ))
    .await;
    site.write("wait.sh", WAITING);
    let run = site.run().await;
    site.publish(json!({})).await;
    let pids = site.appeared("pids").await;
    run.signal(Signal::TERM);
    let (status, summary) = run.ended().await;
    assert_eq!(status.code(), Some(1), "{summary}");
    gone(&pids).await;
}

#[tokio::test]
async fn programs_and_their_children_die_with_the_worker() {
    let site = waiting().await;
    let run = site.run().await;
    site.publish(json!({})).await;
    let pids = site.appeared("pids").await;
    for pid in pids.split_whitespace() {
        assert!(alive(pid), "{pid} has not begun");
    }
    run.signal(Signal::KILL);
    run.ended().await;
    gone(&pids).await;

    fs::remove_file(site.file("pids")).unwrap();
    site.write("go", "");
    let next = site.run().await;
    site.appeared("pids").await;
    assert!(next.drain().await.starts_with("done 1, "));
}

#[tokio::test]
async fn usr1_lists_what_is_running() {
    let site = waiting().await;
    let run = site.run().await;
    let id = site.publish(json!({ "secret": "hush" })).await;
    site.appeared("pids").await;
    eventually("progress is listed", async || {
        run.signal(Signal::USR1);
        run.log().iter().any(|line| {
            line["message"] == "running"
                && line["job.id"] == *id
                && line["attempt"] == 1
                && line["progress"] == "\"half way\""
        })
    })
    .await;
    site.write("go", "");
    run.drain().await;
}

#[tokio::test]
async fn help_and_version_are_answered_without_a_broker() {
    let site = Site::new("").await;
    for (flag, words) in [("--help", "Exit codes:"), ("--version", "forebay-run ")] {
        let mut command = site.command(&[flag]);
        command.env_remove("AMQP_URL");
        let (status, text) = Run::start(command).ended().await;
        assert_eq!((status.code(), text.contains(words)), (Some(0), true), "{text}");
    }
}
