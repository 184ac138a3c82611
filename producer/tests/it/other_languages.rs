//! What is published by the wire contract alone, in another language, is a job like any other.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use forebay_producer::testing::{Broker, broker};
use forebay_producer::{Delay, Envelope, Producer, PublishOptions, SigningKeys};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::{Plain, note, read, within};

const WIRE: &str = include_str!("../../../docs/wire.md");

#[tokio::test]
async fn what_pika_publishes_is_understood() {
    let (namespace, jobs) = understood(python(), "/tests/pika/publish.py", "from-python", |n| {
        format!("{{\"n\": {n}}}")
    })
    .await;
    let keys = SigningKeys::parse("test=0123456789abcdef0123456789abcdef").unwrap();
    assert_eq!(jobs[0].verify(&keys, &namespace), Ok(()));
}

#[tokio::test]
async fn what_amqplib_publishes_is_understood() {
    let (_, jobs) =
        understood(node(), "/tests/amqplib/publish.mjs", "from-node", |n| format!("{{\"n\":{n}}}"))
            .await;
    // More than 32 bits: written as a long, not as a double.
    assert!(jobs[0].published_at_ms.is_some_and(|at| at > 1 << 40), "{:?}", jobs[0]);
}

#[tokio::test]
async fn the_examples_of_the_wire_contract_run_as_they_stand() {
    let folder = TempDir::new().unwrap();
    let modules = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/amqplib/node_modules");
    std::os::unix::fs::symlink(modules, folder.path().join("node_modules")).unwrap();
    for (mut program, name, fence) in
        [(python(), "example.py", "```python\n"), (node(), "example.mjs", "```js\n")]
    {
        let (broker, producer) = declared("mail", Duration::from_secs(5)).await;
        let (_, rest) = WIRE.split_once(fence).unwrap();
        let (example, _) = rest.split_once("```\n").unwrap();
        let example = example
            .replace("amqp://guest:guest@127.0.0.1:5672/%2f", broker.url())
            .replace("\"forebay\"", &format!("\"{}\"", broker.namespace()))
            .replace("forebay.delay.", &format!("{}.delay.", broker.namespace()));
        let file = folder.path().join(name);
        std::fs::write(&file, example).unwrap();
        output(program.arg(&file), name).await;

        let jobs = taken(&broker, &producer, "mail", 3).await;
        let seen: BTreeSet<_> = jobs
            .iter()
            .map(|job| {
                let payload: serde_json::Value = serde_json::from_slice(&job.payload).unwrap();
                (job.kind.as_deref(), payload["to"].as_str().unwrap().to_owned())
            })
            .collect();
        let expected = ["ada@example.org", "bob@example.org"];
        assert_eq!(seen, expected.map(|to| (Some("email.send"), to.to_owned())).into(), "{name}");
        assert!(jobs.iter().all(|job| job.header("tenant").as_deref() == Some("acme")), "{name}");
    }
}

/// Runs one of our scripts, which publishes four jobs: with headers, delayed, bare, and to a queue
/// that is not there.
async fn understood(
    mut program: Command,
    script: &str,
    by: &str,
    payload: impl Fn(u32) -> String,
) -> (String, Vec<Envelope>) {
    let delay = Duration::from_millis(700);
    let (broker, producer) = declared("notes", delay).await;
    program.arg(format!("{}{script}", env!("CARGO_MANIFEST_DIR")));
    let printed =
        output(program.args([broker.namespace(), "notes"]).env("AMQP_URL", broker.url()), script);
    let printed = printed.await;

    let jobs = taken(&broker, &producer, "notes", 4).await;
    let seen: Vec<_> = jobs
        .iter()
        .map(|job| (job.id.clone(), job.kind.as_deref(), job.queue.as_str(), job.attempt))
        .collect();
    assert_eq!(
        seen,
        [
            (format!("{by}-1"), Some("note.take"), "notes", 1),
            (format!("{by}-2-later"), Some("note.take"), "notes", 1),
            (format!("{by}-3-bare"), None, "notes", 1),
        ]
    );
    for (job, n) in jobs.iter().zip(1..) {
        assert_eq!(job.payload, payload(n));
    }
    assert_eq!(jobs[0].header("tenant").as_deref(), Some("acme"));
    // The script works the routing key out by itself.
    let ours = Delay::new(delay).unwrap().unwrap();
    assert!(printed.contains(&ours.routing_key("notes")), "{printed}");
    assert!(printed.contains("unroutable: nowhere"), "{printed}");
    (broker.namespace().to_owned(), jobs)
}

/// A broker with what a worker declares when it starts, and the ladder as far as the delay needs
/// it. One job of ours is on its way to the queue.
async fn declared(queue: &str, delay: Duration) -> (Broker, Producer) {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let options = PublishOptions::new().queue(queue).delay(delay);
    producer.publish_with(&note(0), options).await.unwrap();
    (broker, producer)
}

/// So many jobs of a queue by id, without ours.
async fn taken(broker: &Broker, producer: &Producer, queue: &str, count: usize) -> Vec<Envelope> {
    let plain = Plain::at(broker.url()).await;
    let queue = producer.topology().queue(queue);
    let mut jobs: Vec<_> = plain.take(&queue, count).await.iter().map(read).collect();
    jobs.retain(|job| job.payload != r#"{"n":0}"#);
    jobs.sort_by(|a, b| a.id.cmp(&b.id));
    jobs
}

fn python() -> Command {
    Command::new(std::env::var("FOREBAY_PYTHON").unwrap_or_else(|_| "python3".to_owned()))
}

fn node() -> Command {
    let amqplib = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/amqplib/node_modules/amqplib");
    assert!(
        Path::new(amqplib).is_dir(),
        "amqplib is not installed: npm ci --prefix producer/tests/amqplib"
    );
    Command::new("node")
}

/// Runs a program to its end; what it printed.
async fn output(program: &mut Command, what: &str) -> String {
    let name = program.as_std().get_program().display().to_string();
    let run = within(what, program.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let run = run.unwrap_or_else(|error| panic!("cannot start {name}: {error}; install it"));
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(
        !errors.contains("No module named 'pika'"),
        "{name} has no pika: apt-get install python3-pika, then set FOREBAY_PYTHON=/usr/bin/python3"
    );
    assert!(run.status.success(), "{what}: {errors}");
    String::from_utf8_lossy(&run.stdout).into_owned()
}
