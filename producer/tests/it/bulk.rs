//! Streams of jobs: all of them, or which ones not and where to go on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use forebay_producer::testing::{Proxy, broker};
use forebay_producer::{Job, Producer, PublishError};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};

use crate::support::{Plain, note, through, within};

#[tokio::test]
async fn twenty_thousand_jobs_are_all_confirmed_and_all_there() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let jobs = stream::iter((0..20_000).map(note));
    let confirmed = within("20,000 jobs", producer.publish_all(jobs)).await.unwrap();
    assert_eq!(confirmed, 20_000);
    let plain = Plain::at(broker.url()).await;
    let stored = plain.drain(&broker.config().topology().queue("notes")).await;
    assert_eq!(numbers(&stored), (0..20_000).collect::<Vec<_>>());
}

/// The numbers of the jobs that were stored, each once, in order.
fn numbers(stored: &[lapin::message::Delivery]) -> Vec<u64> {
    let read = |body: &[u8]| serde_json::from_slice::<crate::support::Note>(body).unwrap().n;
    let mut all: Vec<_> = stored.iter().map(|delivery| read(&delivery.data)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[derive(Serialize, Deserialize)]
struct Text(String);

impl Job for Text {
    const KIND: &'static str = "text.print";
}

#[tokio::test]
async fn a_stream_with_bad_jobs_says_which_by_their_place() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config().payload_limit(100));
    let bad = [3, 777, 1_500];
    let jobs = (0..2_000_u64).map(|n| Text("x".repeat(if bad.contains(&n) { 200 } else { 20 })));
    let error = within("2,000 jobs", producer.publish_all(stream::iter(jobs))).await.unwrap_err();
    let mut places: Vec<_> = error.failures.iter().map(|(place, _)| *place).collect();
    places.sort_unstable();
    assert_eq!((places, error.failed), (bad.to_vec(), 3));
    assert_eq!((error.confirmed, error.stopped_at), (1_997, None));
    let large = |error: &PublishError| matches!(error, PublishError::TooLarge { .. });
    assert!(error.failures.iter().all(|(_, error)| large(error)), "{error}");
}

#[tokio::test]
async fn of_many_failures_only_the_first_thousand_are_kept() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config().payload_limit(1));
    let jobs = (0..3_000).map(|_| Text("too large".to_owned()));
    let error = within("3,000 jobs", producer.publish_all(stream::iter(jobs))).await.unwrap_err();
    assert_eq!((error.failed, error.failures.len(), error.confirmed), (3_000, 1_000, 0));
}

#[tokio::test]
async fn with_the_broker_away_it_stops_and_says_where_to_go_on() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let config = through(&proxy.url(), &broker.config()).publish_deadline(Duration::from_secs(10));
    let producer = Producer::new(&config);
    producer.declare("notes", Default::default()).await.unwrap();
    let jobs = stream::iter(0..6_000).map(|n| {
        if n == 2_500 {
            proxy.hold();
        }
        note(n)
    });
    let error = within("an end", producer.publish_all(jobs)).await.unwrap_err();
    let stopped_at = error.stopped_at.expect("the broker is out of reach");
    assert!((2_500..6_000).contains(&stopped_at), "{stopped_at}");
    assert_eq!(error.confirmed + error.failed, stopped_at, "every job taken has its verdict");

    proxy.pass();
    let failed = error.failures.iter().map(|(place, _)| *place);
    let rest = stream::iter(failed.chain(stopped_at..6_000).map(note).collect::<Vec<_>>());
    let patient = Producer::new(&through(&proxy.url(), &broker.config()));
    within("the rest", patient.publish_all(rest)).await.unwrap();
    let plain = Plain::at(broker.url()).await;
    let stored = plain.drain(&broker.config().topology().queue("notes")).await;
    assert_eq!(numbers(&stored), (0..6_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn with_no_broker_at_all_it_takes_no_more_than_a_thousand() {
    let config = forebay_producer::Config::new("amqp://127.0.0.1:1").unwrap();
    let producer = Producer::new(&config.publish_deadline(Duration::from_secs(1)));
    let taken = AtomicU64::new(0);
    let jobs = stream::iter(0..).map(|n| {
        taken.fetch_add(1, Ordering::Relaxed);
        note(n)
    });
    let error = within("an end", producer.publish_all(jobs)).await.unwrap_err();
    assert_eq!((error.confirmed, error.stopped_at), (0, Some(1_000)));
    assert_eq!(taken.into_inner(), 1_000);
}

#[tokio::test]
async fn a_producer_that_is_refused_ends_it_before_any_deadline() {
    let broker = broker().await;
    let url = format!("amqp://guest:hush@{}/%2f", broker.address());
    let config = through(&url, &broker.config()).publish_deadline(Duration::from_secs(3_600));
    let producer = Producer::new(&config.access_patience(Duration::ZERO));
    let jobs = stream::iter((0..10).map(note)).chain(stream::pending());
    let error = within("an end", producer.publish_all(jobs)).await.unwrap_err();
    assert_eq!((error.confirmed, error.failed, error.stopped_at), (0, 10, Some(10)));
    let (_, first) = &error.failures[0];
    assert!(first.to_string().contains("ACCESS_REFUSED"), "{first}");
}

#[tokio::test]
async fn a_stream_that_waits_does_not_hold_up_the_close_of_its_producer() {
    let broker = broker().await;
    let config = broker.config().publish_deadline(Duration::from_secs(3_600));
    let producer = Producer::new(&config);
    producer.declare("notes", Default::default()).await.unwrap();
    let (taken, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let jobs = stream::iter((0..10).map(note)).chain(stream::once(async move {
        taken.send(()).unwrap();
        std::future::pending().await
    }));
    let (ours, plain) = (producer.clone(), Plain::at(broker.url()).await);
    let publishing = tokio::spawn(async move { ours.publish_all(jobs).await });
    within("the wait", seen.recv()).await.unwrap();
    let queue = broker.config().topology().queue("notes");
    assert_eq!(within("ten jobs", plain.take(&queue, 10)).await.len(), 10);
    within("the close", producer.close()).await;
    publishing.abort();
}
