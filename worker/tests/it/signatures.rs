//! A worker that runs signed jobs only.

use std::time::Duration;

use forebay_producer::link::after;
use forebay_producer::{DeadLetters, Destination, Filter, Pile, RedriveOptions};
use forebay_worker::testing::broker;
use forebay_worker::{
    Context, Envelope, HandlerOptions, JobError, JobResult, Producer, PublishOptions, QueueOptions,
    Retry, SigningKeys, Worker, WorkerBuilder,
};

use crate::support::{Bench, Notes, PATIENCE, Work, eventually, note, work};

const OLD: &str = "old=0123456789abcdef0123456789abcdef";
const NEW: &str = "new=fedcba9876543210fedcba9876543210";

fn keys(texts: &[&str]) -> SigningKeys {
    SigningKeys::parse(&texts.join(",")).unwrap()
}

/// 1: fails at first. 2: is rejected until it was redriven. Others: done.
async fn does(job: Work, cx: Context<Notes>) -> JobResult {
    note(cx.state(), &job, &cx);
    match (job.n, cx.attempt(), cx.envelope().redrives) {
        (1, 1, _) => Err(anyhow::anyhow!("first").into()),
        (2, _, 0) => Err(JobError::reject(anyhow::anyhow!("not yet"))),
        _ => Ok(()),
    }
}

fn strict(notes: &Notes, keys: SigningKeys) -> WorkerBuilder<Notes> {
    let retry = HandlerOptions::new().retry(Retry::fixed(2, Duration::from_millis(100)));
    Worker::builder(notes.clone())
        .queue("default", QueueOptions::new())
        .require_signatures(keys)
        .handle_with(retry, does)
}

#[tokio::test]
async fn a_signed_job_is_run_delayed_retried_and_redriven() {
    let notes = Notes::default();
    let mut bench = Bench::on(broker().await, strict(&notes, keys(&[OLD])));
    let signing = bench.config().signing_keys(keys(&[OLD]));
    let producer = Producer::new(&signing);
    let later = PublishOptions::new()
        .delay(Duration::from_millis(200))
        .expires_after(PATIENCE * 2)
        .idempotency_key("once")
        .header("tenant", "acme");
    producer.publish_with(&work(1), later).await.unwrap();
    notes.wait_for_text("1#2").await;
    producer.publish(&work(2)).await.unwrap();
    let letters = bench.dead("default", 1).await;
    assert_eq!(letters[0].reason, "rejected");

    // By an operator without keys: nothing that is signed changes.
    let dead = DeadLetters::new(&bench.config());
    let (pile, options) = (Pile::Queue("default".to_owned()), RedriveOptions::default());
    let plain = &bench.producer;
    let redriven = dead.redrive(&pile, &Filter::default(), 10, &options, plain, |_| {}).await;
    assert_eq!(redriven.unwrap().done, 1);
    bench.until("both are done", |summary| summary.succeeded == 2).await;
    assert_eq!(bench.drain().await.dead, 1);
}

#[tokio::test]
async fn what_is_not_signed_as_it_should_be_is_a_dead_letter_that_says_why() {
    let notes = Notes::default();
    let mut bench = Bench::on(broker().await, strict(&notes, keys(&[OLD])));
    bench.producer.publish(&work(10)).await.unwrap();
    let stranger = Producer::new(&bench.config().signing_keys(keys(&[NEW])));
    stranger.publish(&work(11)).await.unwrap();
    let namespace = bench.broker.namespace().to_owned();
    let mut altered = Envelope::new("work.do", "default", r#"{"n":12}"#);
    altered.sign(&keys(&[OLD]), &namespace).unwrap();
    altered.payload = r#"{"n":13}"#.into();
    // Made for another queue, found on this one.
    let mut moved = Envelope::new("work.do", "elsewhere", r#"{"n":14}"#);
    moved.sign(&keys(&[OLD]), &namespace).unwrap();
    moved.queue = "default".to_owned();
    for envelope in [&altered, &moved] {
        let sent = bench.producer.send(envelope, Destination::Queue, after(PATIENCE));
        sent.await.unwrap();
    }
    let letters = bench.dead("default", 4).await;
    let mut seen: Vec<_> = letters
        .iter()
        .map(|letter| {
            let failure = letter.envelope.failures.last().unwrap();
            (letter.reason.as_str(), failure.message.as_str())
        })
        .collect();
    seen.sort_unstable();
    let altered = "the job is not as it was signed with key `old`";
    assert_eq!(
        seen,
        [
            ("altered", altered),
            ("altered", altered),
            ("unknown_key", "the job is signed with key `new`, and the keys here are `old`"),
            ("unsigned", "the job is not signed, and this worker runs signed jobs only"),
        ]
    );
    assert_eq!(notes.all(), Vec::<String>::new());
    assert_eq!(bench.drain().await.succeeded, 0);
}

#[tokio::test]
async fn keys_are_changed_without_refusing_a_job() {
    let (notes, broker) = (Notes::default(), broker().await);
    let config = broker.config();
    let mut bench = Bench::on(broker, strict(&notes, keys(&[NEW, OLD])));
    for signs in [OLD, NEW] {
        let producer = Producer::new(&config.clone().signing_keys(keys(&[signs])));
        producer.publish(&work(20)).await.unwrap();
    }
    bench.until("both are done", |summary| summary.succeeded == 2).await;
    assert_eq!(bench.drain().await.dead, 0);
}

#[tokio::test]
async fn a_worker_with_keys_signs_its_follow_up_jobs_and_not_what_it_retries() {
    async fn publishes(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        if cx.attempt() == 1 {
            return Err(anyhow::anyhow!("first").into());
        }
        cx.producer().publish_with(&work(31), PublishOptions::new().queue("strict")).await?;
        Err(JobError::reject(anyhow::anyhow!("to be looked at")))
    }
    let (notes, broker) = (Notes::default(), broker().await);
    broker.owns("strict");
    let config = broker.config().signing_keys(keys(&[OLD]));
    let retry = HandlerOptions::new().retry(Retry::fixed(2, Duration::from_millis(100)));
    let worker = Worker::builder(notes.clone())
        .queue("default", QueueOptions::new())
        .handle_with(retry, publishes)
        .build()
        .unwrap();
    let running = worker.start(&config);
    let plain = Producer::new(&broker.config());
    plain.publish(&work(30)).await.unwrap();
    let letter = crate::support::dead_of(&config, "default", 1).await.remove(0);
    assert_eq!(letter.envelope.signature, None);

    let seen = Notes::default();
    let retry = HandlerOptions::new().queue("strict");
    let strict = Worker::builder(seen.clone())
        .queue("strict", QueueOptions::new())
        .require_signatures(keys(&[OLD]))
        .handle_with(retry, does);
    let mut bench = Bench::on(broker, strict);
    eventually("the follow-up job is run", async || !seen.all().is_empty()).await;
    assert_eq!(seen.all(), ["31#1"]);
    bench.drain().await;
    running.controls().drain();
    running.finished().await.unwrap();
}
