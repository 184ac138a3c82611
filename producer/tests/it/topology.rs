//! What is declared, when, and what happens where somebody else has declared it already.

use forebay_producer::testing::broker;
use forebay_producer::{Declare, Inspector, Producer, PublishError, QueueType, TopologyError};
use futures_util::future;
use lapin::types::AMQPValue;

use crate::support::{Plain, chain, note, publish, publish_to, within};

#[tokio::test]
async fn a_missing_queue_is_declared_with_its_dead_letter_queue_at_the_first_publish() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    producer.publish(&note(1)).await.unwrap();
    let inspector = Inspector::new(&broker.config());
    let topology = broker.config().topology().clone();
    for (queue, ready) in
        [(topology.queue("notes"), 1), (topology.dead_queue("notes"), 0), (topology.unrouted(), 0)]
    {
        let count = inspector.count(&queue).await.unwrap().expect(&queue);
        assert_eq!((count.ready, count.consumers), (ready, 0), "{queue}");
    }
}

#[tokio::test]
async fn what_was_declared_once_is_not_declared_at_every_publish() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let plain = Plain::at(broker.url()).await;
    producer.publish(&note(1)).await.unwrap();
    let dead = broker.config().topology().dead_queue("notes");
    plain.delete(&dead).await;
    producer.publish(&note(2)).await.unwrap();
    assert_eq!(plain.count(&dead).await, None, "it was declared again");
}

#[tokio::test]
async fn a_burst_to_a_new_queue_is_all_published() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let publishes = (0..2_000).map(|n| publish(&producer, n, Default::default()));
    let verdicts = within("2,000 verdicts", future::join_all(publishes)).await;
    assert_eq!(verdicts.iter().filter(|verdict| verdict.is_ok()).count(), 2_000);
    let queue = broker.config().topology().queue("notes");
    assert_eq!(Plain::at(broker.url()).await.drain(&queue).await.len(), 2_000);
}

#[tokio::test]
async fn with_declare_never_a_missing_namespace_is_an_error_with_the_remedy() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config().declare(Declare::Never));
    let error = producer.publish(&note(1)).await.unwrap_err();
    assert!(matches!(error, PublishError::Unroutable { .. }), "{error}");
    assert!(error.to_string().contains("forebay topology apply --queue notes"), "{error}");
    let queue = broker.config().topology().queue("notes");
    assert_eq!(Plain::at(broker.url()).await.count(&queue).await, None);
}

#[tokio::test]
async fn with_declare_never_a_missing_queue_is_an_error_and_the_next_publish_works() {
    let broker = broker().await;
    Producer::new(&broker.config()).declare("notes", QueueType::Quorum).await.unwrap();
    let producer = Producer::new(&broker.config().declare(Declare::Never));
    let error = publish_to(&producer, "other", "1").await.unwrap_err();
    assert!(matches!(error, PublishError::Unroutable { .. }), "{error}");
    producer.publish(&note(1)).await.unwrap();
    let plain = Plain::at(broker.url()).await;
    assert_eq!(plain.count(&broker.config().topology().queue("other")).await, None);
}

#[tokio::test]
async fn with_declare_never_a_missing_ladder_is_an_error() {
    let broker = broker().await;
    Producer::new(&broker.config()).declare("notes", QueueType::Quorum).await.unwrap();
    let producer = Producer::new(&broker.config().declare(Declare::Never));
    let later = forebay_producer::PublishOptions::new().delay(std::time::Duration::from_secs(1));
    let error = publish(&producer, 1, later).await.unwrap_err();
    assert!(matches!(error, PublishError::Unroutable { delay: Some(_), .. }), "{error}");
    let words = "declare it with `forebay topology apply --delays 1s --queue notes`";
    assert!(error.to_string().contains(words), "{error}");
}

#[tokio::test]
async fn a_classic_queue_can_be_asked_for() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config().queue_type("notes", QueueType::Classic));
    producer.publish(&note(1)).await.unwrap();
    // A quorum queue of this name is now a mismatch, which proves the type.
    let strict = Producer::new(&broker.config().strict_topology(true));
    let error = strict.declare("notes", QueueType::Quorum).await.unwrap_err();
    assert!(matches!(error, TopologyError::Mismatch { .. }), "{error}");
}

/// `notes` as somebody else would have it: classic, no dead-lettering.
async fn declared_by_somebody_else(broker: &forebay_producer::testing::Broker) -> Plain {
    let plain = Plain::at(broker.url()).await;
    let kind = AMQPValue::LongString("classic".into());
    plain.declare(&broker.config().topology().queue("notes"), &[("x-queue-type", kind)]).await;
    plain
}

#[tokio::test]
async fn a_queue_that_exists_with_other_arguments_is_used_as_it_is() {
    let broker = broker().await;
    let plain = declared_by_somebody_else(&broker).await;
    let producer = Producer::new(&broker.config());
    producer.publish(&note(1)).await.unwrap();
    let queue = broker.config().topology().queue("notes");
    assert_eq!(plain.count(&queue).await, Some(1));
    let later =
        forebay_producer::PublishOptions::new().delay(std::time::Duration::from_millis(100));
    producer.publish_with(&note(2), later).await.expect("its bindings are there too");
    assert_eq!(plain.take(&queue, 2).await.len(), 2);
}

#[tokio::test]
async fn a_strict_producer_refuses_it_naming_the_argument_and_both_ways_out() {
    let broker = broker().await;
    let plain = declared_by_somebody_else(&broker).await;
    let producer = Producer::new(&broker.config().strict_topology(true));
    let error = producer.publish(&note(1)).await.unwrap_err();
    let (queue, words) = (broker.config().topology().queue("notes"), chain(&error));
    for expected in [&queue, "arg 'x-", "forebay topology delete", "--strict-topology"] {
        assert!(words.contains(expected), "{expected}: {words}");
    }
    assert_eq!(plain.count(&queue).await, Some(0));
}
