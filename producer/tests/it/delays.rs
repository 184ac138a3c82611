//! The delay ladder: never early, nothing in the way of anything else, nothing lost at its end.

use std::time::Duration;

use bytes::Bytes;
use forebay_producer::testing::{Broker, broker};
use forebay_producer::{
    DeadLetters, Delay, Destination, Filter, Inspector, Pile, Producer, PublishOptions,
    RedriveOptions,
};
use lapin::BasicProperties;
use tokio::time::Instant;

use crate::support::{Plain, header_names, note, read, soon};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn after(delay: Duration) -> PublishOptions {
    PublishOptions::new().delay(delay)
}

async fn bench() -> (Broker, Producer, Plain, String) {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let plain = Plain::at(broker.url()).await;
    let queue = broker.config().topology().queue("notes");
    (broker, producer, plain, queue)
}

#[tokio::test]
async fn a_delayed_job_does_not_come_early() {
    let (_broker, producer, plain, queue) = bench().await;
    let began = Instant::now();
    let receipt = producer.publish_with(&note(1), after(ms(1_250))).await.unwrap();
    assert_eq!(receipt.delay, Some(ms(1_300)), "rounded up to what the ladder carries");
    let delivery = plain.take(&queue, 1).await.remove(0);
    assert!(began.elapsed() >= ms(1_250), "after {:?}", began.elapsed());
    assert_eq!(read(&delivery).id, receipt.id);
}

#[tokio::test]
async fn a_job_for_a_point_in_time_comes_no_earlier() {
    let (_broker, producer, plain, queue) = bench().await;
    let time = std::time::SystemTime::now() + ms(700);
    producer.publish_with(&note(1), PublishOptions::new().run_at(time)).await.unwrap();
    plain.take(&queue, 1).await;
    assert!(std::time::SystemTime::now() >= time);
}

#[tokio::test]
async fn the_ladder_is_declared_only_as_far_as_it_is_used() {
    let (broker, producer, plain, _) = bench().await;
    let topology = broker.config().topology().clone();
    producer.publish_with(&note(1), after(ms(500))).await.unwrap();
    assert!(plain.count(&topology.delay(2)).await.is_some());
    assert_eq!(plain.count(&topology.delay(3)).await, None);
    let levels = Inspector::new(&broker.config()).delayed().await.unwrap();
    assert_eq!(levels.len(), 3, "{levels:?}");
    producer.publish_with(&note(2), after(ms(900))).await.unwrap();
    assert!(plain.count(&topology.delay(3)).await.is_some(), "grown when needed");
}

#[tokio::test]
async fn no_delay_needs_no_ladder() {
    let (broker, producer, plain, queue) = bench().await;
    let receipt = producer.publish_with(&note(1), after(Duration::ZERO)).await.unwrap();
    assert_eq!(receipt.delay, None);
    assert_eq!(plain.count(&queue).await, Some(1));
    assert_eq!(plain.count(&broker.config().topology().delay(0)).await, None);
}

#[tokio::test]
async fn a_short_delay_overtakes_a_long_one() {
    let (_broker, producer, plain, queue) = bench().await;
    for (n, delay) in [(1, 12_000), (2, 6_400), (3, 800), (4, 100)] {
        producer.publish_with(&note(n), after(ms(delay))).await.unwrap();
    }
    let order: Vec<_> =
        plain.take(&queue, 3).await.iter().map(|delivery| delivery.data.clone()).collect();
    assert_eq!(order.last().unwrap(), br#"{"n":2}"#);
    assert_eq!(plain.count(&queue).await, Some(0), "the longest is still under way");
}

/// In the ladder the broker would take it for its own, run the job early and forget it.
#[tokio::test]
async fn a_foreign_expiration_neither_shortens_a_delay_nor_gets_lost() {
    let (broker, producer, plain, queue) = bench().await;
    producer.declare("notes", Default::default()).await.unwrap();
    let properties =
        BasicProperties::default().with_message_id("7".into()).with_expiration("60000".into());
    plain.publish(broker.namespace(), "notes", b"{}", properties).await;
    let mut envelope = read(&plain.take(&queue, 1).await[0]);
    let expires_at = envelope.expires_at_ms.expect("its expiration");

    // As a worker does it when it tries again later.
    envelope.attempt += 1;
    let (began, delay) = (Instant::now(), Delay::new(ms(3_000)).unwrap().unwrap());
    producer.send(&envelope, Destination::Later(delay), soon()).await.unwrap();
    let delivery = plain.take(&queue, 1).await.remove(0);
    assert!(began.elapsed() >= ms(3_000), "after {:?}", began.elapsed());
    assert_eq!(delivery.properties.expiration(), &None);
    assert_eq!(read(&delivery).expires_at_ms, Some(expires_at));
}

#[tokio::test]
async fn a_job_whose_queue_has_gone_is_kept_does_not_delay_others_and_can_be_redriven() {
    let (broker, producer, plain, queue) = bench().await;
    let config = broker.config();
    let gone = after(ms(1_600)).queue("gone").id("stray");
    producer.publish_with(&note(1), gone).await.unwrap();
    producer.publish_with(&note(2), after(ms(1_600))).await.unwrap();
    plain.delete(&config.topology().queue("gone")).await;
    plain.take(&queue, 1).await;

    let letters = DeadLetters::new(&config);
    let (pile, all) = (Pile::Unrouted, Filter::default());
    let mut found = Vec::new();
    crate::support::eventually("one stray", async || {
        found = letters.list(&pile, &all, 10).await.unwrap().letters;
        !found.is_empty()
    })
    .await;
    assert_eq!((found.len(), found[0].reason.as_str()), (1, "unrouted"));
    assert_eq!(
        (found[0].envelope.id.as_str(), found[0].envelope.queue.as_str()),
        ("stray", "gone")
    );
    let options = RedriveOptions::default();
    let done = letters.redrive(&pile, &all, 10, &options, &producer, |_| {}).await.unwrap();
    assert_eq!((done.done, done.failed.len()), (1, 0));
    let again = plain.drain(&config.topology().queue("gone")).await;
    assert_eq!((read(&again[0]).id.as_str(), read(&again[0]).redrives), ("stray", 1));
}

/// A level hands on 32 messages at a time, and what it cannot hand on it tries again after three
/// minutes only: more strays than that would hold up everything behind them.
#[tokio::test]
async fn a_hundred_jobs_whose_queue_has_gone_hold_up_nothing_behind_them() {
    let (broker, producer, plain, queue) = bench().await;
    let topology = broker.config().topology().clone();
    producer.declare("notes", Default::default()).await.unwrap();
    let publish = async |queue: &'static str, delay: u64| {
        let publishes = (0..100).map(|n| {
            let options = after(ms(delay)).id(format!("{queue}-{n}")).queue(queue);
            producer.publish_raw("note.take", Bytes::from_static(b"{}"), options)
        });
        futures_util::future::try_join_all(publishes).await.unwrap();
    };
    publish("gone", 1_500).await;
    publish("notes", 1_500).await;
    plain.delete(&topology.queue("gone")).await;
    let arrived = plain.take(&queue, 100).await;
    assert!(crate::support::ids(&arrived).iter().all(|id| id.starts_with("notes-")));
    crate::support::eventually("a hundred strays", async || {
        plain.count(&topology.unrouted()).await == Some(100)
    })
    .await;
}

/// The broker drops what it takes for a loop of expiries; a retry is one only if the marks of
/// earlier rounds are sent along.
#[tokio::test]
async fn a_job_may_go_down_the_ladder_forty_times() {
    let (_broker, producer, plain, queue) = bench().await;
    let receipt = producer.publish_with(&note(1), after(ms(100))).await.unwrap();
    let delay = Delay::new(ms(100)).unwrap().unwrap();
    for round in 1..=40 {
        let delivery = plain.take(&queue, 1).await.remove(0);
        assert!(header_names(&delivery).iter().any(|name| name == "x-death"), "round {round}");
        let mut envelope = read(&delivery);
        assert_eq!((envelope.id.as_str(), envelope.attempt), (receipt.id.as_str(), round));
        envelope.attempt += 1;
        producer.send(&envelope, Destination::Later(delay), soon()).await.unwrap();
    }
}

#[tokio::test]
async fn a_thousand_delayed_jobs_all_arrive() {
    let (_broker, producer, plain, queue) = bench().await;
    let publishes = (0..1_000).map(|n| {
        let options = after(ms(100 * fastrand::u64(1..32))).id(n.to_string()).queue("notes");
        producer.publish_raw("note.take", Bytes::from_static(b"{}"), options)
    });
    let confirmed = futures_util::future::try_join_all(publishes).await.unwrap();
    let arrived = plain.take(&queue, 1_000).await;
    assert_eq!(crate::support::ids(&arrived).len(), confirmed.len());
}
