//! What is published by the wire contract alone, in another language, is a job like any other.

use std::process::Stdio;
use std::time::Duration;

use forebay_producer::testing::broker;
use forebay_producer::{Delay, Producer, PublishOptions};
use tokio::process::Command;

use crate::support::{Plain, note, read, within};

#[tokio::test]
async fn what_pika_publishes_is_understood() {
    let broker = broker().await;
    let config = broker.config();
    // What a worker declares when it starts, and the ladder as far as the delay needs it.
    let producer = Producer::new(&config);
    let delay = Duration::from_millis(700);
    producer.publish_with(&note(0), PublishOptions::new().delay(delay)).await.unwrap();

    let python = std::env::var("FOREBAY_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pika/publish.py");
    let run = Command::new(&python)
        .args([script, broker.namespace(), "notes"])
        .env("AMQP_URL", broker.url())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let run = within("the end of publish.py", run).await;
    let run = run.unwrap_or_else(|error| panic!("cannot start {python}: {error}"));
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(
        !errors.contains("No module named 'pika'"),
        "{python} has no pika: apt-get install python3-pika, then set FOREBAY_PYTHON=/usr/bin/python3"
    );
    assert!(run.status.success(), "{errors}");

    let queue = config.topology().queue("notes");
    let plain = Plain::at(broker.url()).await;
    let mut jobs: Vec<_> = plain.take(&queue, 4).await.iter().map(read).collect();
    jobs.retain(|job| job.payload != r#"{"n":0}"#);
    jobs.sort_by(|a, b| a.id.cmp(&b.id));
    let seen: Vec<_> = jobs
        .iter()
        .map(|job| (job.id.as_str(), job.kind.as_deref(), job.queue.as_str(), job.attempt))
        .collect();
    assert_eq!(
        seen,
        [
            ("from-python-1", Some("note.take"), "notes", 1),
            ("from-python-2-later", Some("note.take"), "notes", 1),
            ("from-python-3-bare", None, "notes", 1),
        ]
    );
    let payloads: Vec<_> = jobs.iter().map(|job| job.payload.as_ref()).collect();
    assert_eq!(payloads, [br#"{"n": 1}"#, br#"{"n": 2}"#, br#"{"n": 3}"#]);
    assert_eq!(jobs[0].header("tenant").as_deref(), Some("acme"));
    // The script works the routing key out by itself.
    let ours = Delay::new(delay).unwrap().unwrap();
    let printed = String::from_utf8_lossy(&run.stdout);
    assert!(printed.contains(&ours.routing_key("notes")), "{printed}");
    assert!(printed.contains("unroutable: nowhere"), "{printed}");
}
