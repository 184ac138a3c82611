//! Calls: a job whose sender waits for the answer, here from a worker written by hand.

use std::time::Duration;

use forebay_producer::testing::broker;
use forebay_producer::{CallError, Config, Producer};
use futures_util::StreamExt;
use lapin::BasicProperties;
use serde::Deserialize;

use crate::support::{PATIENCE, Plain, note, read, within};

#[derive(Debug, PartialEq, Deserialize)]
struct Seen {
    doubled: u64,
}

/// Answers one job with `body`, as the wire contract has it.
async fn answer_one(config: &Config, url: &str, kind: &'static str, body: &'static str) {
    let producer = Producer::new(config);
    producer.declare("notes", Default::default()).await.unwrap();
    let (plain, queue) = (Plain::at(url).await, config.topology().queue("notes"));
    let topology = config.topology().clone();
    let mut jobs = plain.consume(&queue).await;
    tokio::spawn(async move {
        let job = read(&jobs.next().await.unwrap().unwrap());
        let address = job.reply_to.expect("a call says where to answer");
        assert!(topology.is_reply_address(&address), "{address}");
        let properties = BasicProperties::default()
            .with_type(kind.into())
            .with_correlation_id(job.id.as_str().into());
        plain.publish("", &address, body.as_bytes(), properties).await;
    });
}

#[tokio::test]
async fn a_call_returns_what_the_handler_returned() {
    let broker = broker().await;
    answer_one(&broker.config(), broker.url(), "reply.ok", r#"{"doubled":42}"#).await;
    let producer = Producer::new(&broker.config());
    let answer: Seen = producer.call(&note(21), PATIENCE).await.unwrap();
    assert_eq!(answer, Seen { doubled: 42 });
}

#[tokio::test]
async fn a_call_of_a_job_that_dies_returns_why() {
    let broker = broker().await;
    let body = r#"{"reason":"rejected","message":"no such note"}"#;
    answer_one(&broker.config(), broker.url(), "reply.dead", body).await;
    let producer = Producer::new(&broker.config());
    let error = producer.call::<_, Seen>(&note(21), PATIENCE).await.unwrap_err();
    let CallError::Dead { reason, message, .. } = &error else { panic!("{error}") };
    assert_eq!((reason.as_str(), message.as_str()), ("rejected", "no such note"));
}

#[tokio::test]
async fn an_answer_of_another_shape_is_an_error_with_the_job() {
    let broker = broker().await;
    answer_one(&broker.config(), broker.url(), "reply.ok", r#"{"halved":42}"#).await;
    let producer = Producer::new(&broker.config());
    let error = producer.call::<_, Seen>(&note(21), PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::Decode { .. }), "{error}");
}

#[tokio::test]
async fn a_call_that_nobody_answers_ends_and_its_reply_queue_goes() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let job = note(1);
    let call = producer.call::<_, Seen>(&job, Duration::from_secs(2));
    let error = within("an end of the call", call).await.unwrap_err();
    let CallError::TimedOut { id } = &error else { panic!("{error}") };
    let (plain, topology) = (Plain::at(broker.url()).await, broker.config().topology().clone());
    assert_eq!(plain.count(&topology.queue("notes")).await, Some(1), "the job stays");
    crate::support::eventually("the reply queue is gone", async || {
        plain.count(&topology.reply_queue(id)).await.is_none()
    })
    .await;
}

#[tokio::test]
async fn many_calls_at_once_get_their_own_answers() {
    let broker = broker().await;
    let config = broker.config();
    let producer = Producer::new(&config);
    producer.declare("notes", Default::default()).await.unwrap();
    let plain = Plain::at(broker.url()).await;
    let mut jobs = plain.consume(&config.topology().queue("notes")).await;
    let worker = async {
        while let Some(Ok(delivery)) = jobs.next().await {
            let job = read(&delivery);
            let note: crate::support::Note = serde_json::from_slice(&job.payload).unwrap();
            let body = format!("{{\"doubled\":{}}}", note.n * 2);
            let properties = BasicProperties::default().with_type("reply.ok".into());
            plain.publish("", &job.reply_to.unwrap(), body.as_bytes(), properties).await;
        }
    };
    let calls = (0..20).map(|n| {
        let producer = &producer;
        async move { producer.call::<_, Seen>(&note(n), PATIENCE).await.unwrap().doubled }
    });
    let answers = tokio::select! {
        answers = futures_util::future::join_all(calls) => answers,
        () = worker => panic!("the queue stays"),
    };
    assert_eq!(answers, (0..20).map(|n| n * 2).collect::<Vec<_>>());
}
