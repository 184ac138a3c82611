//! `Ok` means routed and confirmed; everything else is an error that says what became of the job.

use std::collections::BTreeSet;

use forebay_producer::testing::{Broker, broker};
use forebay_producer::{Config, Declare, Envelope, Producer, PublishError, PublishOptions};
use futures_util::{StreamExt, future, stream};
use lapin::types::AMQPValue;

use crate::support::{
    Note, Plain, chain, eventually, ids, note, own_broker, publish, publish_to, read, text,
    through, within,
};

#[tokio::test]
async fn a_published_job_is_on_its_queue_and_persistent() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let receipt = producer.publish(&note(7)).await.unwrap();
    let queue = broker.config().topology().queue("notes");
    let deliveries = Plain::at(broker.url()).await.drain(&queue).await;
    assert_eq!(deliveries.len(), 1);
    assert_eq!(deliveries[0].properties.delivery_mode(), &Some(2));
    let envelope = read(&deliveries[0]);
    assert_eq!((envelope.id, envelope.queue), (receipt.id, receipt.queue));
    assert_eq!((envelope.kind.as_deref(), envelope.attempt), (Some("note.take"), 1));
    assert_eq!(envelope.payload, r#"{"n":7}"#);
}

#[tokio::test]
async fn options_travel_with_the_job() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let options = PublishOptions::new()
        .id("order-4711")
        .queue("orders")
        .idempotency_key("4711")
        .correlation_id("request-9")
        .priority(3)
        .header("tenant", "acme");
    publish(&producer, 1, options).await.unwrap();
    let queue = broker.config().topology().queue("orders");
    let envelope = read(&Plain::at(broker.url()).await.drain(&queue).await[0]);
    assert_eq!((envelope.id.as_str(), envelope.queue.as_str()), ("order-4711", "orders"));
    assert_eq!(envelope.idempotency_key.as_deref(), Some("4711"));
    assert_eq!(envelope.correlation_id.as_deref(), Some("request-9"));
    assert_eq!((envelope.priority, envelope.header("tenant").as_deref()), (Some(3), Some("acme")));
}

/// A topology in which `good` takes jobs, `full` refuses them and `nowhere` is not bound.
pub(crate) async fn good_full_and_nowhere(broker: &Broker) -> (Producer, Plain) {
    let (config, plain) = (broker.config(), Plain::at(broker.url()).await);
    let administrator = Producer::new(&config);
    administrator.declare("good", config.type_of("good")).await.unwrap();
    let full = config.topology().queue("full");
    let arguments =
        [("x-max-length", AMQPValue::LongInt(0)), ("x-overflow", text("reject-publish"))];
    plain.declare(&full, &arguments).await;
    plain.bind(&full, config.topology().jobs_exchange(), "full").await;
    broker.owns("full");
    (Producer::new(&config.declare(Declare::Never)), plain)
}

#[tokio::test]
async fn a_full_queue_refuses_the_job() {
    let broker = broker().await;
    let (producer, _plain) = good_full_and_nowhere(&broker).await;
    let error = publish_to(&producer, "full", "1").await.unwrap_err();
    assert!(matches!(error, PublishError::Refused { .. }) && error.is_temporary(), "{error}");
}

/// The client library pins returned messages to the wrong confirms when the broker answers several
/// at once: it takes thousands in flight to see it.
#[tokio::test]
async fn every_verdict_of_a_mixed_burst_is_right() {
    let broker = broker().await;
    let (producer, plain) = good_full_and_nowhere(&broker).await;
    let queues: Vec<_> =
        (0..6_000).map(|_| ["good", "full", "nowhere"][fastrand::usize(..3)]).collect();
    let publishes = queues.iter().enumerate().map(|(n, queue)| {
        let producer = &producer;
        async move { publish_to(producer, queue, &n.to_string()).await }
    });
    let verdicts = within("6,000 verdicts", future::join_all(publishes)).await;
    let mut confirmed = BTreeSet::new();
    for (n, (queue, verdict)) in queues.iter().zip(verdicts).enumerate() {
        let right = match &verdict {
            Ok(_) => {
                confirmed.insert(n.to_string());
                *queue == "good"
            }
            Err(PublishError::Refused { id, .. }) => *queue == "full" && *id == n.to_string(),
            Err(PublishError::Unroutable { id, .. }) => *queue == "nowhere" && *id == n.to_string(),
            Err(_) => false,
        };
        assert!(right, "{n} to {queue}: {verdict:?}");
    }
    let stored = plain.drain(&broker.config().topology().queue("good")).await;
    assert_eq!((ids(&stored), stored.len()), (confirmed.clone(), confirmed.len()));
}

#[tokio::test]
async fn the_same_id_twice_in_one_burst_gets_both_verdicts_right() {
    let broker = broker().await;
    let (producer, plain) = good_full_and_nowhere(&broker).await;
    let queues: Vec<_> = (0..600).map(|_| ["good", "nowhere"][fastrand::usize(..2)]).collect();
    let publishes = queues.iter().enumerate().map(|(n, queue)| {
        let producer = &producer;
        async move { publish_to(producer, queue, &(n % 7).to_string()).await.is_ok() }
    });
    let routed = within("all verdicts", future::join_all(publishes)).await;
    let expected: Vec<_> = queues.iter().map(|queue| *queue == "good").collect();
    assert_eq!(routed, expected);
    let stored = plain.drain(&broker.config().topology().queue("good")).await.len();
    assert_eq!(stored, expected.iter().filter(|good| **good).count());
}

#[tokio::test]
async fn a_payload_over_the_limit_is_refused_before_anything_is_sent() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config().payload_limit(1_000));
    producer.declare("notes", Default::default()).await.unwrap();
    let send = |bytes: usize| {
        let options = PublishOptions::new().queue("notes").id(bytes.to_string());
        producer.publish_raw("note.take", vec![b'1'; bytes], options)
    };
    let error = send(1_001).await.unwrap_err();
    assert!(
        matches!(error, PublishError::TooLarge { what: "payload", bytes: 1_001, limit: 1_000, .. }),
        "{error}"
    );
    send(1_000).await.unwrap();
    let queue = broker.config().topology().queue("notes");
    assert_eq!(ids(&Plain::at(broker.url()).await.drain(&queue).await), ["1000".to_owned()].into());
}

#[tokio::test]
async fn headers_over_the_limit_are_refused_before_they_can_close_the_connection() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    producer.publish(&note(1)).await.unwrap();
    let generation = producer.link().status().borrow().generation;
    let send = |bytes: usize| {
        let options = PublishOptions::new().header("big", "x".repeat(bytes));
        publish(&producer, 2, options)
    };
    let error = send(200_000).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { what: "headers", .. }), "{error}");
    send(65_000).await.expect("just below the limit");
    assert_eq!(producer.link().status().borrow().generation, generation, "the same connection");
}

#[tokio::test]
async fn a_job_larger_than_the_broker_allows_is_unacceptable_and_the_others_go_through() {
    let (own, _place) = own_broker("max_message_size = 10000").await;
    let broker = own.broker();
    let producer = Producer::new(&broker.config());
    producer.publish(&note(0)).await.unwrap();
    let publishes = (0..300).map(|n| {
        let size = if n % 100 == 7 { 10_001 } else { 10 };
        let options = PublishOptions::new().queue("notes").id(n.to_string());
        producer.publish_raw("note.take", vec![b'1'; size], options)
    });
    let verdicts = within("300 verdicts", future::join_all(publishes)).await;
    for (n, verdict) in verdicts.into_iter().enumerate() {
        match verdict {
            Ok(_) => assert_ne!(n % 100, 7),
            Err(PublishError::Unacceptable { .. }) => assert_eq!(n % 100, 7),
            Err(other) => panic!("{n}: {other}"),
        }
    }
}

#[tokio::test]
async fn a_user_without_write_permission_is_denied_and_the_others_go_through() {
    let (own, _place) = own_broker("").await;
    let broker = own.broker();
    let config = broker.config();
    let administrator = Producer::new(&config);
    let first_level = PublishOptions::new().delay(std::time::Duration::from_millis(100));
    administrator.publish_with(&note(0), first_level.clone()).await.unwrap();
    own.ctl(&["add_user", "limited", "hush"]).await;
    // Everything below the namespace, but not the exchange of jobs, which is named like it.
    let write = format!("^{}\\.", broker.namespace());
    own.ctl(&["set_permissions", "limited", "", &write, ""]).await;

    let limited = through(&own.url().replace("guest:guest", "limited:hush"), &config);
    let producer = Producer::new(&limited.declare(Declare::Never));
    let publishes = (0..100).map(|n| {
        let options = PublishOptions::new().id(n.to_string());
        let options = if n % 4 == 0 { options } else { first_level.clone().id(n.to_string()) };
        publish(&producer, n, options)
    });
    let verdicts = within("100 verdicts", future::join_all(publishes)).await;
    let mut expected: BTreeSet<String> = BTreeSet::new();
    for (n, verdict) in verdicts.into_iter().enumerate() {
        match verdict {
            Ok(receipt) => {
                assert_ne!(n % 4, 0, "{n} went where it may not");
                expected.insert(receipt.id);
            }
            Err(error @ PublishError::Denied { .. }) => {
                assert_eq!(n % 4, 0, "{n}: {error}");
                assert!(
                    error.to_string().contains(&format!("'{}'", broker.namespace())),
                    "{error}"
                );
                assert!(!error.to_string().contains("hush"), "{error}");
            }
            Err(other) => panic!("{n}: {other}"),
        }
    }
    assert_eq!(expected.len(), 75);
    let (plain, queue) = (Plain::at(own.url()).await, config.topology().queue("notes"));
    let mut arrived = BTreeSet::new();
    eventually("75 delayed jobs", async || {
        arrived.extend(ids(&plain.drain(&queue).await));
        arrived.is_superset(&expected)
    })
    .await;
}

#[tokio::test]
async fn an_exchange_deleted_under_a_producer_is_declared_again_and_nothing_is_lost() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let plain = Plain::at(broker.url()).await;
    producer.publish(&note(0)).await.unwrap();
    let publishes = stream::iter(1..=1_000_u64).map(|n| {
        let (producer, plain, exchange) = (&producer, &plain, broker.namespace());
        async move {
            if n == 300 {
                plain.delete_exchange(exchange).await;
            }
            producer.publish(&note(n)).await.map(|receipt| receipt.id)
        }
    });
    let published = publishes.buffer_unordered(100).collect::<Vec<_>>();
    let mut confirmed = BTreeSet::new();
    for result in within("1,000 verdicts", published).await {
        confirmed.insert(result.unwrap());
    }
    let stored = plain.drain(&broker.config().topology().queue("notes")).await;
    assert!(ids(&stored).is_superset(&confirmed), "confirmed, but not there");
}

#[tokio::test]
async fn a_queue_deleted_under_a_producer_is_declared_again_at_the_next_publish() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let plain = Plain::at(broker.url()).await;
    let queue = broker.config().topology().queue("notes");
    producer.publish(&note(1)).await.unwrap();
    plain.delete(&queue).await;
    producer.publish(&note(2)).await.unwrap();
    assert_eq!(plain.count(&queue).await, Some(1));
}

#[tokio::test]
async fn an_envelope_goes_where_it_is_sent() {
    use forebay_producer::Destination;
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let envelope = Envelope::new(<Note as forebay_producer::Job>::KIND, "notes", "{}");
    producer.send(&envelope, Destination::DeadLetters, crate::support::soon()).await.unwrap();
    let plain = Plain::at(broker.url()).await;
    let topology = broker.config().topology().clone();
    assert_eq!(plain.count(&topology.dead_queue("notes")).await, Some(1));
    assert_eq!(plain.count(&topology.queue("notes")).await, Some(0));
}

#[tokio::test]
async fn a_job_that_is_no_json_is_refused_with_the_cause() {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};

    /// JSON has only text as keys.
    #[derive(Serialize, Deserialize)]
    struct Map(BTreeMap<Vec<u8>, u8>);
    impl forebay_producer::Job for Map {
        const KIND: &'static str = "map.draw";
    }
    let config = Config::new("amqp://127.0.0.1:1").unwrap();
    let job = Map([(vec![1], 1)].into());
    let error = Producer::new(&config).publish(&job).await.unwrap_err();
    assert!(matches!(error, PublishError::Encode { .. }), "{error}");
    assert!(chain(&error).contains("key must be a string"), "{}", chain(&error));
}

/// "For ever" is a deadline too.
#[tokio::test]
async fn the_longest_of_durations_are_no_fault() {
    let forever = std::time::Duration::MAX;
    let broker = broker().await;
    let producer = Producer::new(&broker.config().publish_deadline(forever));
    producer.publish(&note(1)).await.unwrap();
    let options = PublishOptions::new().deadline(forever).expires_after(forever);
    publish(&producer, 2, options).await.unwrap();
}
