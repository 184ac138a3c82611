//! `forebay-run bench` in its smallest form: every scenario once, on real RabbitMQ.

use std::fs;

use forebay_producer::Inspector;
use forebay_producer::testing::broker;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Run, Site, eventually};

/// Everything small: its figures mean nothing, and that they are there is what is looked at.
const SMALL: [&str; 9] =
    ["--rounds", "1", "--jobs", "400", "--during", "500ms", "--workers", "2", "--output=json"];

async fn site() -> Site {
    Site::on(broker().await, "")
}

async fn bench(site: &Site, arguments: &[&str]) -> (i32, String, String) {
    let line = [&["bench"], arguments].concat();
    let output = site.command(&line).output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

async fn measured(site: &Site, arguments: &[&str]) -> Value {
    let (code, out, err) = bench(site, &[arguments, &SMALL].concat()).await;
    assert_eq!(code, 0, "{out}\n{err}");
    assert_eq!(err, "", "nobody sits before a screen");
    serde_json::from_str(&out).unwrap()
}

/// Of the first case's only round.
fn figure(result: &Value, contestant: &str, name: &str) -> f64 {
    let found = &result["cases"][0]["rounds"][0]["runs"][contestant]["figures"][name];
    found.as_f64().unwrap_or_else(|| panic!("no {name} of {contestant} in {result:#}"))
}

async fn is_measured(scenario: &str, queue_type: &str, figures: &[&str], reference: &str) {
    let site = site().await;
    let result = measured(&site, &["-s", scenario, "--queue-type", queue_type]).await;
    for contestant in ["forebay", reference] {
        for name in figures {
            let found = figure(&result, contestant, name);
            assert!(found >= 0.0, "{scenario}: {name} of {contestant} is {found}");
        }
    }
    let ratio = &result["results"][0]["ratios"][reference][figures[0]];
    assert!(ratio["median"].as_f64().is_some_and(|found| found > 0.0), "{scenario}: {result:#}");
    assert_eq!(result["cut_short"], Value::Null);
}

#[tokio::test]
async fn a_drain_is_measured_against_both_references_and_the_targets() {
    for queue_type in ["quorum", "classic"] {
        let site = site().await;
        let result = measured(&site, &["-s", "drain", "--queue-type", queue_type]).await;
        for contestant in ["forebay", "bare-batched", "bare-awaited"] {
            for name in ["jobs_per_second", "cpu_micros", "peak_mb"] {
                assert!(figure(&result, contestant, name) > 0.0, "{name} of {contestant}");
            }
        }
        let targets = result["targets"].as_array().unwrap();
        assert_eq!(targets.len(), 3, "{targets:#?}");
        assert!(targets.iter().all(|target| target["queue_type"] == queue_type));
        assert!(result["broker"].as_str().unwrap().starts_with("RabbitMQ "), "{result:#}");
        let notes = result["notes"].to_string();
        assert!(notes.contains("fewer than 15 rounds"), "{notes}");
    }
}

#[tokio::test]
async fn every_way_to_publish_is_measured() {
    for (scenario, reference) in [
        ("publish-one", "bare-one-by-one"),
        ("publish-windowed", "bare-windowed"),
        ("publish-bulk", "bare-windowed"),
    ] {
        is_measured(scenario, "classic", &["jobs_per_second", "cpu_micros"], reference).await;
    }
}

#[tokio::test]
async fn jobs_that_wait_compute_or_fail_are_measured() {
    for scenario in ["drain-sleep", "drain-cpu", "drain-failing"] {
        is_measured(scenario, "quorum", &["jobs_per_second", "cpu_micros"], "bare-tasks").await;
    }
}

#[tokio::test]
async fn latencies_are_measured_to_the_largest() {
    let names = ["p99_ms", "p50_ms", "p90_ms", "p999_ms", "max_ms", "pace_late_ms"];
    is_measured("latency", "classic", &names, "bare-batched").await;
}

#[tokio::test]
async fn a_burst_shows_its_backlog() {
    let site = site().await;
    let result = measured(&site, &["-s", "burst", "--queue-type", "classic"]).await;
    for contestant in ["forebay", "bare-tasks"] {
        assert!(figure(&result, contestant, "seconds") > 0.0);
        let backlog = &result["cases"][0]["rounds"][0]["runs"][contestant]["backlog"];
        assert!(!backlog.as_array().unwrap().is_empty(), "{result:#}");
    }
}

#[tokio::test]
async fn several_processes_share_a_queue() {
    is_measured("workers", "quorum", &["jobs_per_second", "least_share"], "bare-batched").await;
}

#[tokio::test]
async fn memory_and_starts_are_measured() {
    for (scenario, name) in [
        ("memory-backlog", "peak_mb"),
        ("memory-payload", "peak_mb"),
        ("idle", "resident_mb"),
        ("start", "start_ms"),
        ("start-fresh", "start_ms"),
    ] {
        is_measured(scenario, "classic", &[name], "bare-batched").await;
    }
}

#[tokio::test]
async fn a_result_becomes_a_document_without_a_broker() {
    let site = site().await;
    let result = measured(&site, &["-s", "idle", "--queue-type", "classic"]).await;
    site.write("run.json", &result.to_string());
    let line = ["bench", "--from", "run.json", "--write", "out.md"];
    let mut command = site.command(&line);
    command.env("AMQP_URL", "amqp://nobody@127.0.0.1:1");
    let output = command.output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("idle classic: "), "{text}");
    let document = fs::read_to_string(site.file("out.md")).unwrap();
    assert!(document.contains("## idle") && document.contains("](out.svg)"), "{document}");
    assert!(fs::read_to_string(site.file("out.svg")).unwrap().starts_with("<svg "));
}

#[tokio::test]
async fn a_run_that_is_cut_short_leaves_nothing_on_the_broker() {
    for how in ["interrupted", "time limit"] {
        let site = site().await;
        let limit = if how == "time limit" { "3s" } else { "10m" };
        let arguments = ["bench", "-s", "idle", "--queue-type", "classic", "--output", "json"];
        let run = Run::start(site.command(&[&arguments[..], &["--time-limit", limit]].concat()));
        // A measured process is there, and so is what it consumes.
        eventually("a process is measured", async || namespace(&run).is_some()).await;
        let config = site.broker.config().namespace(&namespace(&run).unwrap()).unwrap();
        let queue = config.topology().queue("bench");
        let inspector = Inspector::new(&config);
        eventually("there is a queue", async || inspector.count(&queue).await.unwrap().is_some())
            .await;
        if how == "interrupted" {
            run.signal(Signal::INT);
        }
        let (status, out) = run.ended().await;
        assert_eq!(status.code(), Some(1), "{out}");
        let result: Value = serde_json::from_str(&out).unwrap();
        assert!(result["cut_short"].as_str().unwrap().contains(how), "{result:#}");
        let notes = result["notes"].to_string();
        assert!(!notes.contains("still there"), "{notes}");
        assert!(inspector.count(&queue).await.unwrap().is_none());
        inspector.close().await;
    }
}

/// Where a process that it has started works.
fn namespace(run: &Run) -> Option<String> {
    let pid = run.pid.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let environment = fs::read(format!("/proc/{}/environ", children.split_whitespace().next()?));
    let environment = String::from_utf8(environment.ok()?).ok()?;
    let named = |line: &str| line.strip_prefix("FOREBAY_NAMESPACE=").map(str::to_owned);
    environment.split('\0').find_map(named).filter(|name| name.contains("-bench-"))
}

#[tokio::test]
async fn what_it_cannot_do_it_says() {
    let site = site().await;
    for (arguments, code, words) in [
        (&["-s", "nothing"][..], 2, "there is no such scenario; use targets, all, or of: drain"),
        (&["--write", "missing/page.md"], 2, "cannot write missing/page.md"),
        (&["--during", "5"], 2, "write it as 30s"),
        (&["--from", "missing.json"], 2, "cannot read missing.json"),
        (&["--url", "http://u:hush@a"], 2, "it does not begin with amqp://"),
        (&["--url", "amqp://guest:hush@127.0.0.1:1"], 3, "127.0.0.1:1"),
        (&["--config", "missing.toml"], 2, "missing.toml"),
    ] {
        let (ended, out, err) = bench(&site, arguments).await;
        assert_eq!(ended, code, "{arguments:?}: {out}{err}");
        assert!(err.contains(words), "{arguments:?}: {err}");
        assert!(!err.contains("hush"), "{err}");
    }
    let mut command = site.command(&["bench", "-s", "idle"]);
    let output = command.env("FOREBAY_DECLARE", "never").output().await.unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("FOREBAY_DECLARE=never"), "{err}");
}
