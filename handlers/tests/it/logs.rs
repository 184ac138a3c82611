//! What is logged, and how.

use serde_json::{Value, json};

use crate::support::{KIND, Run, Site};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[tokio::test]
async fn every_line_about_a_job_names_it_and_none_shows_its_payload() {
    let site = Site::with(
        r#"exec = ["/bin/sh", "-c", "cat >/dev/null; echo no-json >&3; exit 1"]
retry = { max_attempts = 2, base = "100ms" }"#,
    )
    .await;
    let run = Run::start(site.command(&["--log", "debug,lapin=off,hyper=off"]));
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let options = forebay_producer::PublishOptions::new().traceparent(parent);
    let payload = json!({ "card": "4111-1111" }).to_string();
    let id = site.producer.publish_raw(KIND, payload, options).await.unwrap().id;
    site.dead().await;
    let dead = run.logged("it died", |line| line["message"] == "job is a dead letter now").await;
    run.signal(rustix::process::Signal::TERM);
    let log = run.log_to_the_end().await;

    let about = ["unknown line on descriptor 3", "job will be retried", "job is a dead letter now"];
    for (message, lines) in [(about[0], 2), (about[1], 1), (about[2], 1)] {
        let found: Vec<_> = log.iter().filter(|line| line["message"] == message).collect();
        assert_eq!(found.len(), lines, "{message}: {log:#?}");
        for line in found {
            assert_eq!(
                [&line["job.id"], &line["job.kind"], &line["queue"], &line["trace_id"]],
                [&json!(id), &json!(KIND), &json!("default"), &json!(TRACE)]
            );
        }
    }
    assert_eq!(
        (&dead["attempt"], &dead["reason"], &dead["level"]),
        (&json!(2), &json!("failed"), &json!("ERROR"))
    );
    assert!(log.iter().all(|line| line["timestamp"].is_string() && line["target"].is_string()));
    assert!(!Value::from(log).to_string().contains("4111-1111"));
}

#[tokio::test]
async fn a_log_of_errors_alone_names_the_job_as_well() {
    let site = Site::with("exec = [\"false\"]\nretry = \"never\"").await;
    let run = Run::start(site.command(&["--log", "error,lapin=off"]));
    let id = site.publish(json!({})).await;
    let dead = run.logged("it died", |line| line["message"] == "job is a dead letter now").await;
    assert_eq!((&dead["job.id"], &dead["attempt"]), (&json!(id), &json!(1)));
    run.drain().await;
}

#[cfg(not(feature = "otel"))]
#[tokio::test]
async fn without_the_feature_one_line_says_that_no_spans_are_exported() {
    let site = Site::with("exec = [\"true\"]").await;
    let mut command = site.command(&[]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
    let run = Run::start(command);
    site.call(json!(1)).await.unwrap();
    let said = run.logged("why", |line| line["message"] == "spans are not exported").await;
    assert!(said["error"].to_string().contains("--features otel"), "{said}");
    run.drain().await;
}

#[tokio::test]
async fn the_format_is_chosen_by_flag_and_variable() {
    let site = Site::with("exec = [\"false\"]\nretry = \"never\"").await;
    let mut command = site.command(&["--log-format", "text"]);
    command.env("FOREBAY_LOG_FORMAT", "json");
    let run = Run::start(command);
    let id = site.publish(json!({})).await;
    let of_job = format!("job{{job.id=\"{id}\" job.kind=\"{KIND}\" queue=\"default\" attempt=1}}");
    run.logged("a line for people", |line| {
        let text = line.as_str().unwrap_or_default();
        text.contains(&of_job)
            && text.contains("ERROR")
            && text.contains("job is a dead letter now")
    })
    .await;
    run.drain().await;

    let mut command = site.command(&[]);
    command.env("FOREBAY_LOG_FORMAT", "xml");
    let run = Run::start(command);
    run.logged("what is wrong", |line| {
        line.as_str().is_some_and(|text| text.contains("write auto, text or json"))
    })
    .await;
    assert_eq!(run.ended().await.0.code(), Some(2));
}
