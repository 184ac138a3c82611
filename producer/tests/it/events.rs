//! What is told is on the stream; what cannot be told costs no job.

use std::time::Duration;

use forebay_producer::testing::{Broker, Meddle, Proxy, broker};
use forebay_producer::wire::event::{EVENT_LIMIT, event_data};
use forebay_producer::{
    Config, Declare, EmitError, Envelope, Event, EventKind, EventLog, Events, Job, Producer,
    PublishOptions, Read, Start,
};
use futures_util::{future, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{
    Note, Plain, kill_and_revive, note, own_broker, publish, soon, through, within,
};

/// A job that always asks to be tracked.
#[derive(Serialize, Deserialize)]
struct Watched {
    n: u64,
}

impl Job for Watched {
    const KIND: &'static str = "note.watch";
    const QUEUE: &'static str = "notes";
    const TRACK: bool = true;
}

fn tracked() -> PublishOptions {
    PublishOptions::new().track(true)
}

async fn reader(broker: &Broker) -> Events {
    let config = broker.config();
    within("a reader", Events::open(&config, Start::First)).await.unwrap()
}

async fn told(events: &mut Events, count: usize) -> Vec<Event> {
    let mut all = Vec::new();
    while all.len() < count {
        let read = within(&format!("event {} of {count}", all.len()), events.next()).await;
        match read.unwrap() {
            Read::Event(stored) => all.push(stored.event),
            other => panic!("{other:?}"),
        }
    }
    all
}

fn data(event: &Event) -> Value {
    serde_json::from_str(event.data.get()).unwrap()
}

#[tokio::test]
async fn a_tracked_publish_tells_that_the_job_is_queued() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let options = tracked().owner("tenant-7").delay(Duration::from_secs(3));
    let receipt = publish(&producer, 1, options).await.unwrap();
    let event = told(&mut reader(&broker).await, 1).await.remove(0);
    assert_eq!((&event.what, event.job_id()), (&EventKind::Queued, Some(&*receipt.id)));
    assert_eq!((event.kind.as_deref(), event.queue.as_deref()), (Some(Note::KIND), Some("notes")));
    assert_eq!((event.owner.as_deref(), event.attempt), (Some("tenant-7"), Some(1)));
    assert_eq!(data(&event)["delay_ms"], receipt.delay.unwrap().as_millis() as u64);
    let source = format!("/forebay/{}/", broker.namespace());
    assert!(event.source.starts_with(&source), "{}", event.source);
}

#[tokio::test]
async fn what_is_not_tracked_declares_no_stream() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    producer.publish(&note(1)).await.unwrap();
    publish(&producer, 2, PublishOptions::new().owner("tenant-7")).await.unwrap();
    let stream = broker.config().topology().events();
    assert_eq!(Plain::at(broker.url()).await.count(&stream).await, None);
}

#[tokio::test]
async fn a_job_type_can_ask_to_be_tracked_and_a_publish_can_decline() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let first = producer.publish(&Watched { n: 1 }).await.unwrap();
    let unwatched = PublishOptions::new().track(false);
    producer.publish_with(&Watched { n: 2 }, unwatched).await.unwrap();
    let last = producer.publish(&Watched { n: 3 }).await.unwrap();
    let events = told(&mut reader(&broker).await, 2).await;
    assert_eq!([&events[0].subject, &events[1].subject], [&first.id, &last.id]);
}

#[tokio::test]
async fn each_job_of_a_tracked_bulk_is_told() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let jobs = stream::iter((0..3_000).map(|n| Watched { n }));
    assert_eq!(within("3,000 jobs", producer.publish_all(jobs)).await.unwrap(), 3_000);
    let events = told(&mut reader(&broker).await, 3_000).await;
    let jobs: std::collections::BTreeSet<_> = events.iter().map(|event| &event.subject).collect();
    assert_eq!(jobs.len(), 3_000);
}

#[tokio::test]
async fn what_a_channel_is_told_can_be_read() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let paid = json!({ "by": "card", "amount": 12.5 });
    producer.emit("order:4711", "paid", &paid).await.unwrap();
    let event = told(&mut reader(&broker).await, 1).await.remove(0);
    assert_eq!((event.channel(), event.event.as_deref()), (Some("order:4711"), Some("paid")));
    assert_eq!((data(&event), event.owner, event.job), (paid, None, None));
}

#[tokio::test]
async fn what_cannot_be_told_is_refused_with_the_reason() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let error = producer.emit("order 4711", "paid", &()).await.unwrap_err();
    assert!(error.to_string().contains("channel `order 4711`"), "{error}");
    let error = producer.emit("orders", "", &()).await.unwrap_err();
    assert!(error.to_string().contains("event ``"), "{error}");
    let error = producer.emit("orders", "paid", &"x".repeat(EVENT_LIMIT)).await.unwrap_err();
    assert!(matches!(error, EmitError::TooLarge { limit: EVENT_LIMIT, .. }), "{error}");
}

#[tokio::test]
async fn events_of_one_producer_stand_in_the_order_in_which_they_were_told() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    for n in 0..500_u64 {
        producer.post_event(Event::of_channel("n", "n", event_data(&n).unwrap()).unwrap());
    }
    producer.emit("n", "n", &500_u64).await.unwrap();
    let events = told(&mut reader(&broker).await, 501).await;
    let numbers: Vec<u64> = events.iter().map(|event| data(event).as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..501).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stream_that_was_deleted_is_declared_again() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    producer.emit("a", "one", &()).await.unwrap();
    let plain = Plain::at(broker.url()).await;
    let events = broker.config().topology().events();
    plain.delete(&events).await;
    producer.emit("a", "two", &()).await.unwrap();
    plain.delete(&events).await;
    plain.delete_exchange(&events).await;
    producer.emit("a", "three", &()).await.unwrap();
    let event = told(&mut reader(&broker).await, 1).await.remove(0);
    assert_eq!(event.event.as_deref(), Some("three"));
}

#[tokio::test]
async fn without_a_stream_a_tracked_job_is_published_all_the_same() {
    let broker = broker().await;
    Producer::new(&broker.config()).publish(&note(1)).await.unwrap();
    let config: Config = broker.config().declare(Declare::Never);
    let producer = Producer::new(&config);
    for n in 2..6 {
        within("a publish", publish(&producer, n, tracked())).await.unwrap();
    }
    let queue = broker.config().topology().queue("notes");
    assert_eq!(Plain::at(broker.url()).await.count(&queue).await, Some(5));
    let error = producer.emit("orders", "paid", &()).await.unwrap_err();
    assert!(matches!(error, EmitError::Topology(_)), "{error}");
    assert!(error.to_string().contains("forebay topology apply"), "{error}");
}

#[tokio::test]
async fn a_stream_that_cannot_be_made_costs_jobs_nothing() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let stream = broker.config().topology().events();
    // As a broker does that fails to make it, or has no streams.
    proxy.meddle(move |frame| match frame.declares() {
        Some(queue) if queue == stream => Meddle::Cut,
        _ => Meddle::Pass,
    });
    let producer = Producer::new(&through(&proxy.url(), &broker.config()));
    for n in 0..20 {
        within("a publish", publish(&producer, n, tracked())).await.unwrap();
    }
    let later = tracked().delay(Duration::from_secs(3_600));
    within("a delayed one", publish(&producer, 20, later)).await.unwrap();
    let error = producer.emit("a", "one", &()).await.unwrap_err();
    assert!(matches!(error, EmitError::Topology(_)), "{error}");
    assert_eq!(producer.link().status().borrow().generation, 1, "the first connection");
}

#[tokio::test]
async fn without_rights_on_the_stream_jobs_are_published_over_the_same_connection() {
    let (own, _place) = own_broker("").await;
    let broker = own.broker();
    own.ctl(&["add_user", "plain", "secret"]).await;
    let all_but = "^(?!.*\\.events$).*$";
    own.ctl(&["set_permissions", "plain", all_but, all_but, all_but]).await;
    let url = broker.url().replace("guest:guest", "plain:secret");
    let producer = Producer::new(&through(&url, &broker.config()));
    for n in 0..20 {
        within("a publish", publish(&producer, n, tracked())).await.unwrap();
    }
    let error = producer.emit("a", "one", &()).await.unwrap_err();
    assert!(error.to_string().contains("grant"), "{error}");
    assert_eq!(producer.link().status().borrow().generation, 1, "the first connection");
}

#[tokio::test]
async fn what_nobody_waits_for_takes_little_room_and_is_lost_beyond_it() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let producer = Producer::new(&through(&proxy.url(), &broker.config()));
    producer.emit("n", "n", &0).await.unwrap();
    proxy.hold();
    for n in 1..5_000_u64 {
        producer.post_event(Event::of_channel("n", "n", event_data(&n).unwrap()).unwrap());
    }
    proxy.pass();
    within("the last", producer.emit("n", "last", &())).await.unwrap();
    let mut events = reader(&broker).await;
    let mut count = 0;
    while told(&mut events, 1).await[0].event.as_deref() != Some("last") {
        count += 1;
    }
    assert!((900..=1_001).contains(&count), "{count}");
}

#[tokio::test]
async fn a_broker_that_is_killed_costs_no_event_that_was_confirmed() {
    let (own, _place) = own_broker("").await;
    let broker = own.broker();
    let producer = Producer::new(&broker.config());
    EventLog::new(&broker.config()).declare().await.unwrap();
    let emit = async |n: u64| {
        let event = Event::of_channel("n", "n", event_data(&n).unwrap()).unwrap();
        producer.emit_event(event, soon()).await
    };
    let tell = async {
        for n in 0..600 {
            emit(n).await.unwrap_or_else(|error| panic!("event {n}: {error}"));
        }
    };
    let kill = async {
        let mut events = reader(&broker).await;
        told(&mut events, 100).await;
        kill_and_revive(&own).await;
    };
    within("600 events", future::join(tell, kill)).await;
    let mut events = reader(&broker).await;
    let mut numbers = Vec::new();
    while numbers.last() != Some(&599) {
        numbers.push(data(&told(&mut events, 1).await[0]).as_u64().unwrap());
    }
    // What was sent again because its confirm was lost may stand there twice, under one id.
    numbers.dedup();
    assert_eq!(numbers, (0..600).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_redriven_job_that_is_tracked_is_told_as_queued_again() {
    use forebay_producer::{
        DeadLetters, DeadMark, Destination, Filter, Pile, Reason, RedriveOptions,
    };
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    let mut letter = Envelope::new("note.take", "notes", "{}");
    letter.track = true;
    letter.dead = Some(DeadMark::new(Reason::Failed, 1));
    producer.send(&letter, Destination::DeadLetters, soon()).await.unwrap();
    let (pile, options) = (Pile::Queue("notes".to_owned()), RedriveOptions::default());
    let letters = DeadLetters::new(&broker.config());
    let filter = Filter::default();
    let redriven = letters.redrive(&pile, &filter, 10, &options, &producer, |_| {});
    assert_eq!(redriven.await.unwrap().done, 1);
    let event = told(&mut reader(&broker).await, 1).await.remove(0);
    assert_eq!((&event.what, event.job_id()), (&EventKind::Queued, Some(&*letter.id)));
}
