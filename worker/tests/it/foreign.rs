//! Messages that other clients and the broker itself have marked, and headers that must not travel.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_worker::{
    Context, HandlerOptions, JobError, JobResult, PublishOptions, QueueOptions, Retry, Worker,
};
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldArray, FieldTable};

use crate::support::{Bench, Notes, Work, note, raw_channel, work};

async fn fails_once(job: Work, cx: Context<Notes>) -> JobResult {
    note(cx.state(), &job, &cx);
    if cx.attempt() == 1 { Err(anyhow::anyhow!("first").into()) } else { Ok(()) }
}

async fn bench(notes: &Notes) -> Bench {
    let twice = Retry::fixed(2, Duration::from_millis(100));
    let worker = Worker::builder(notes.clone())
        .queue("default", QueueOptions::new())
        .queue("copies", QueueOptions::new())
        .handle_with(HandlerOptions::new().retry(twice), fails_once);
    let bench = Bench::start(worker).await;
    bench.consuming("default").await;
    bench.consuming("copies").await;
    bench
}

async fn publish(bench: &Bench, headers: &[(&str, AMQPValue)], body: &str) {
    let channel = raw_channel(&bench.config()).await;
    let table: BTreeMap<_, _> =
        headers.iter().map(|(name, value)| ((*name).into(), value.clone())).collect();
    let properties = BasicProperties::default()
        .with_type("work.do".into())
        .with_message_id("foreign-1".into())
        .with_headers(table.into());
    let exchange = bench.config().topology().jobs_exchange().into();
    let options = BasicPublishOptions::default();
    let sent =
        channel.basic_publish(exchange, "default".into(), options, body.as_bytes(), properties);
    assert!(sent.await.unwrap().await.unwrap().is_ack());
}

#[tokio::test]
async fn a_forged_delivery_count_is_not_believed() {
    let notes = Notes::default();
    let mut bench = bench(&notes).await;
    publish(&bench, &[("x-delivery-count", AMQPValue::LongInt(50))], r#"{"n":1}"#).await;
    assert_eq!(notes.wait_for(2).await, ["1#1", "1#2"]);
    bench.until("done", |summary| summary.succeeded == 1).await;
    assert_eq!(bench.drain().await.suspects, 0);
}

#[tokio::test]
async fn a_copied_cc_header_does_not_multiply_the_job() {
    let notes = Notes::default();
    let mut bench = bench(&notes).await;
    let copies = FieldArray::from(vec![AMQPValue::LongString("copies".into())]);
    publish(&bench, &[("CC", AMQPValue::FieldArray(copies))], r#"{"n":1}"#).await;
    // The broker itself makes two of it; each of them is retried once, and no more.
    bench.until("both are done", |summary| summary.succeeded == 2).await;
    assert_eq!(bench.drain().await.retried, 2);
    assert_eq!(notes.all().len(), 4);
}

#[tokio::test]
async fn an_old_x_death_header_does_not_make_the_broker_drop_a_retry() {
    let notes = Notes::default();
    let mut bench = bench(&notes).await;
    let queue = bench.config().topology().delay(0);
    let mut death = FieldTable::default();
    death.insert("queue".into(), AMQPValue::LongString(queue.into()));
    death.insert("reason".into(), AMQPValue::LongString("expired".into()));
    death.insert("count".into(), AMQPValue::LongLongInt(1));
    let deaths = FieldArray::from(vec![AMQPValue::FieldTable(death)]);
    publish(&bench, &[("x-death", AMQPValue::FieldArray(deaths))], r#"{"n":1}"#).await;
    assert_eq!(notes.wait_for(2).await, ["1#1", "1#2"]);
    bench.drain().await;
}

#[tokio::test]
async fn headers_of_foreign_types_are_read_as_well_as_they_can_be() {
    let notes = Notes::default();
    let mut bench = bench(&notes).await;
    let headers = [
        ("forebay-attempt", AMQPValue::LongString("2".into())),
        ("forebay-crashes", AMQPValue::FieldTable(FieldTable::default())),
        ("forebay-expires-at", AMQPValue::Boolean(true)),
        ("forebay-failures", AMQPValue::LongString("none".into())),
        ("tenant", AMQPValue::Double(1.5)),
    ];
    publish(&bench, &headers, r#"{"n":1}"#).await;
    assert_eq!(notes.wait_for(1).await, ["1#2"]);
    assert_eq!(bench.drain().await.succeeded, 1);
}

/// A client that negotiates a smaller frame than the server's would lose its connection over it.
#[tokio::test]
async fn a_message_with_very_large_headers_is_handled_and_when_it_fails_it_is_kept() {
    let notes = Notes::default();
    async fn handler(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        Err(JobError::reject(anyhow::anyhow!("no")))
    }
    let worker =
        Worker::builder(notes.clone()).queue("default", QueueOptions::new()).handle(handler);
    let bench = Bench::start(worker).await;
    bench.consuming("default").await;
    let large = AMQPValue::LongString("x".repeat(100_000).into());
    publish(&bench, &[("baggage", large)], r#"{"n":1}"#).await;
    assert_eq!(notes.wait_for(1).await, ["1#1"]);
    let letter = bench.dead("default", 1).await.remove(0);
    assert_eq!((letter.reason.as_str(), letter.envelope.id.as_str()), ("rejected", "foreign-1"));
    bench.producer.publish_with(&work(2), PublishOptions::new()).await.unwrap();
    notes.wait_for(2).await;
}
