//! `forebay topology`.

use std::process::Stdio;

use forebay_producer::testing::Broker;
use serde_json::{Value, json};

use super::{broker, forebay, somewhere};

const NOWHERE: &str = "amqp://127.0.0.1:1";

#[tokio::test]
async fn the_topology_is_shown_without_a_broker() {
    let shown = somewhere(NOWHERE, &["topology", "show", "--queue", "mail", "--delays", "0.1s"]);
    let shown = shown.json().await;
    let queues: Vec<&Value> = shown
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|each| each["queue"]["name"].as_str().map(|_| each))
        .collect();
    let names: Vec<_> =
        queues.iter().map(|queue| queue["queue"]["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["forebay.unrouted", "forebay.mail.dead", "forebay.mail", "forebay.delay.00"]
    );

    let table = somewhere(NOWHERE, &["topology", "show", "--queue", "mail"]).succeed().await.out;
    assert!(table.contains("forebay.delay.15"), "an hour takes 16 levels: {table}");
    assert!(table.contains("x-delivery-limit=100"), "{table}");
}

#[tokio::test]
async fn the_stream_of_events_is_part_of_it_where_it_is_asked_for() {
    let manifest = "[events]\nmax_age = \"12h\"\nmax_size = \"5GB\"\nsegment_size = \"4MiB\"";
    let shown = somewhere(NOWHERE, &["topology", "show", "--events"]).manifest(manifest);
    let shown = shown.succeed().await.out;
    let arguments = "x-queue-type=stream x-max-age=43200s x-max-length-bytes=5000000000 \
                     x-stream-max-segment-size-bytes=4194304";
    assert!(shown.contains(arguments), "{shown}");
    let bad = somewhere(NOWHERE, &["topology", "show"]).manifest("[events]\nmax_size = \"5\"");
    bad.run().await.failed(2, &["max_size = \"5\" in [events]", "such as 500MB"]);

    let broker = broker().await;
    let never = |arguments| forebay(&broker, arguments).env("FOREBAY_DECLARE", "never");
    never(&["topology", "apply"]).succeed().await;
    let ran = never(&["follow", "a"]).run().await;
    ran.failed(2, &["forebay topology apply --events"]);
    never(&["topology", "apply", "--events"]).succeed().await;
    never(&["publish", "a.b", "{}", "--id", "x", "--track"]).succeed().await;
    never(&["follow", "x", "--timeout", "5s"]).start();
}

#[tokio::test]
async fn what_is_missing_is_declared_once() {
    let broker = broker().await;
    broker.owns("mail");
    let apply = ["topology", "apply", "--queue", "mail", "--delays", "0.2s"];
    // An explicit order to declare outranks the setting for workers and producers.
    let first = forebay(&broker, &apply).env("FOREBAY_DECLARE", "never").json().await;
    assert_eq!(first["declared"].as_array().map(Vec::len), Some(5));
    let again = forebay(&broker, &apply).json().await;
    assert_eq!(again, json!({ "declared": [], "there_before": 5 }));
    let call = forebay(&broker, &["publish", "a.b", "{}", "--queue", "mail", "--delay", "0.2s"]);
    call.env("FOREBAY_DECLARE", "never").succeed().await;
}

#[tokio::test]
async fn the_ladder_is_as_high_as_the_manifest_wants_it() {
    let functions = "[functions.\"a.b\"]\nqueue = \"mail\"\nexec = [\"true\"]\n\
                     retry = { max_attempts = 3, base = \"5h\" }";
    let top = async |arguments: &[&str]| {
        let call = somewhere(NOWHERE, arguments).manifest(functions);
        let shown = call.json().await.to_string();
        (0..28).rev().find(|level| shown.contains(&format!("forebay.delay.{level:02}")))
    };
    assert_eq!(top(&["topology", "show"]).await, Some(17));
    assert_eq!(top(&["topology", "show", "--delays", "1s"]).await, Some(17));
    assert_eq!(top(&["topology", "show", "--delays", "3days"]).await, Some(21));

    // Applied too low, the doctor tells; its command mends it.
    let broker = broker().await;
    broker.owns("mail");
    let low = ["topology", "apply", "--queue", "mail"];
    forebay(&broker, &low).succeed().await;
    let doctor = async || {
        let call = forebay(&broker, &["doctor", "--output", "json"]).manifest(functions);
        let report = call.env("FOREBAY_DECLARE", "never").run().await.json();
        let checks = report["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|check| check["id"] == "topology.ladder")
    };
    let fault = doctor().await.expect("a finding");
    assert_eq!(fault["level"], "fault");
    assert!(fault["what"].as_str().unwrap().contains("may have a job wait 5h"), "{fault}");
    forebay(&broker, &["topology", "apply"]).manifest(functions).succeed().await;
    assert_eq!(doctor().await, None);
}

#[tokio::test]
async fn other_arguments_are_a_warning_or_with_strict_topology_an_error() {
    let broker = broker().await;
    broker.owns("mail");
    let apply = ["topology", "apply", "--delays", "0s"];
    let classic = "[queues.mail]\ntype = \"classic\"";
    forebay(&broker, &apply).manifest(classic).succeed().await;

    let quorum = "[queues.mail]";
    let lenient = forebay(&broker, &apply).manifest(quorum).succeed().await;
    assert!(lenient.err.contains("exists with other arguments"), "{}", lenient.err);

    let strict = [&apply[..], &["--strict-topology"]].concat();
    let ran = forebay(&broker, &strict).manifest(quorum).run().await;
    ran.failed(2, &["inequivalent arg 'x-", "mail", "delete it once it is empty"]);

    let call = forebay(&broker, &["publish", "a.b", "{}", "--queue", "mail", "--delay", "1s"]);
    let ran = call.env("FOREBAY_STRICT_TOPOLOGY", "true").run().await;
    ran.failed(2, &["inequivalent arg 'x-"]);
}

/// `mail` with one job and nothing else.
async fn one_job(broker: &Broker) {
    broker.owns("mail");
    forebay(broker, &["publish", "a.b", "{}", "--queue", "mail"]).succeed().await;
}

async fn queues(broker: &Broker) -> Value {
    forebay(broker, &["queues", "--queue", "mail"]).json().await["queues"][0].clone()
}

#[tokio::test]
async fn a_queue_that_holds_jobs_is_not_deleted_and_stays_bound() {
    let broker = broker().await;
    one_job(&broker).await;
    let delete = ["topology", "delete", "--queue", "mail"];
    let ran = forebay(&broker, &delete).run().await;
    ran.failed(1, &["nothing was deleted", ".mail` (1 message, 0 consumers)", "--force"]);
    let call = forebay(&broker, &["publish", "a.b", "{}", "--queue", "mail"]);
    call.env("FOREBAY_DECLARE", "never").succeed().await;
    assert_eq!(queues(&broker).await["ready"], 2);

    let force = [&delete[..], &["--force"]].concat();
    forebay(&broker, &force).run().await.failed(2, &["--yes", "2 messages"]);
    assert_eq!(queues(&broker).await["ready"], 2);
}

#[tokio::test]
async fn what_is_forced_is_gone_with_its_jobs_and_a_dry_run_only_tells() {
    let broker = broker().await;
    one_job(&broker).await;
    let force = ["topology", "delete", "--queue", "mail", "--force", "--yes"];
    let dry = forebay(&broker, &[&force[..], &["--dry-run"]].concat()).json().await;
    assert_eq!((&dry["deleted"], &dry["queues"][0]["messages"]), (&json!(false), &json!(1)));
    assert_eq!(queues(&broker).await["ready"], 1);
    let ran = forebay(&broker, &force).succeed().await;
    assert!(ran.out.contains("2 queues, 0 exchanges, 1 message deleted"), "{}", ran.out);
    assert_eq!(queues(&broker).await["exists"], false);
}

#[tokio::test]
async fn the_whole_namespace_can_be_deleted_and_declared_again() {
    let broker = broker().await;
    broker.owns("mail");
    let apply = ["topology", "apply", "--queue", "mail", "--delays", "0.2s"];
    let manifest = "[queues.mail]";
    forebay(&broker, &apply).succeed().await;
    let all = ["topology", "delete", "--all"];
    let gone = forebay(&broker, &all).manifest(manifest).json().await;
    assert_eq!(gone["queues"].as_array().map(Vec::len), Some(5), "{gone}");
    let again = forebay(&broker, &apply).json().await;
    assert_eq!(again["declared"].as_array().map(Vec::len), Some(5), "{again}");
}

#[tokio::test]
async fn names_of_others_are_left_alone() {
    let delete = ["topology", "delete", "--name", "audit"];
    somewhere(NOWHERE, &delete).run().await.failed(2, &["`audit`", "left alone"]);
    somewhere(NOWHERE, &["topology", "delete"]).run().await.failed(2, &["--queue", "--all"]);
}

#[tokio::test]
async fn a_reader_who_has_gone_ends_it_quietly() {
    let mut call = somewhere(NOWHERE, &["topology", "show", "--delays", "300days"]);
    let command = call.command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("forebay starts");
    drop(child.stdout.take());
    let ended = child.wait_with_output().await.expect("forebay ends");
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
}
