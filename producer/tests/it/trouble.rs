//! The bounds of what a producer holds while the broker takes nothing, and what it may say of a job
//! that was under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use forebay_producer::testing::{Meddle, Proxy, broker};
use forebay_producer::{Config, Declare, Producer, PublishError, PublishOptions};
use futures_util::{FutureExt, future};
use lapin::types::AMQPValue;

use crate::support::{
    PATIENCE, Plain, eventually, ids, note, own_broker, publish, text, through, within,
};

fn within_secs(secs: u64) -> PublishOptions {
    PublishOptions::new().deadline(Duration::from_secs(secs))
}

/// A payload that is counted for as long as anybody holds it.
struct Counted(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How many of 3,000 jobs a producer without a broker still holds when their callers have gone.
async fn held(size: usize) -> usize {
    let config = Config::new("amqp://127.0.0.1:1").unwrap();
    let producer = Producer::new(&config.publish_deadline(PATIENCE));
    let alive = Arc::new(AtomicUsize::new(0));
    let mut callers = Box::pin(future::join_all((0..3_000).map(|_| {
        alive.fetch_add(1, Ordering::AcqRel);
        let payload = Bytes::from_owner(Counted(vec![b'1'; size], Arc::clone(&alive)));
        producer.publish_raw("note.take", payload, PublishOptions::new().queue("notes"))
    })));
    // The lanes take what they can while the callers wait.
    for _ in 0..20 {
        assert!(callers.as_mut().now_or_never().is_none(), "nobody can have a verdict");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(alive.load(Ordering::Acquire), 3_000, "the callers hold theirs");
    drop(callers);
    let held = alive.load(Ordering::Acquire);
    eventually("what nobody waits for is let go", async || alive.load(Ordering::Acquire) == 0)
        .await;
    held
}

#[tokio::test]
async fn a_producer_holds_no_more_than_a_thousand_jobs_whoever_calls() {
    let held = held(10).await;
    assert!((488..=1_000).contains(&held), "{held}");
}

#[tokio::test]
async fn a_producer_holds_no_more_than_eight_megabytes_whoever_calls() {
    let held = held(100_000).await;
    assert!((1..=83).contains(&held), "{held}");
}

#[tokio::test]
async fn what_is_sent_again_has_the_same_id() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let producer = Producer::new(&through(&proxy.url(), &broker.config()));
    producer.publish(&note(0)).await.unwrap();
    let cut = AtomicBool::new(false);
    proxy.meddle(move |frame| {
        let now = frame.is_confirm() && !cut.swap(true, Ordering::AcqRel);
        if now { Meddle::Cut } else { Meddle::Pass }
    });
    let receipt = publish(&producer, 1, within_secs(PATIENCE.as_secs())).await.unwrap();
    let queue = broker.config().topology().queue("notes");
    let stored = Plain::at(broker.url()).await.drain(&queue).await;
    let again: Vec<_> = stored
        .iter()
        .filter(|stored| ids(std::slice::from_ref(stored)).contains(&receipt.id))
        .collect();
    assert_eq!((stored.len(), again.len()), (3, 2), "sent twice, for want of the first confirm");
}

/// The first try is stored and its confirm lost; the queue is full by then.
#[tokio::test]
async fn a_refusal_after_a_lost_confirm_is_no_proof_that_the_job_is_not_there() {
    let broker = broker().await;
    let (config, plain) = (broker.config(), Plain::at(broker.url()).await);
    Producer::new(&config).declare("other", Default::default()).await.unwrap();
    let full = config.topology().queue("full");
    let arguments =
        [("x-max-length", AMQPValue::LongInt(1)), ("x-overflow", text("reject-publish"))];
    plain.declare(&full, &arguments).await;
    plain.bind(&full, config.topology().jobs_exchange(), "full").await;
    broker.owns("full");
    let proxy = Proxy::to(&broker.address()).await;
    let cut = AtomicBool::new(false);
    proxy.meddle(move |frame| {
        let now = frame.is_confirm() && !cut.swap(true, Ordering::AcqRel);
        if now { Meddle::Cut } else { Meddle::Pass }
    });
    let producer = Producer::new(&through(&proxy.url(), &config).declare(Declare::Never));
    let error = publish(&producer, 1, within_secs(30).queue("full")).await.unwrap_err();
    let PublishError::Unconfirmed { id, may_have_arrived: true, .. } = &error else {
        panic!("{error}")
    };
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(ids(&plain.take(&full, 1).await).contains(id));
}

#[tokio::test]
async fn while_the_broker_is_known_to_block_nothing_is_sent_and_callers_are_told_so() {
    let (own, _place) = own_broker("").await;
    let broker = own.broker();
    let producer = Producer::new(&broker.config());
    producer.publish(&note(0)).await.unwrap();
    own.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    // It says so in answer to a publish, which it may read later.
    _ = publish(&producer, 1, within_secs(5)).await;
    eventually("the broker blocks", async || producer.link().is_blocked()).await;
    let publishes = (100..150).map(|n| publish(&producer, n, within_secs(1).id(n.to_string())));
    for verdict in within("verdicts", future::join_all(publishes)).await {
        let error = verdict.unwrap_err();
        let PublishError::Unconfirmed { may_have_arrived, .. } = &error else { panic!("{error}") };
        assert!(!may_have_arrived, "{error}");
    }
    own.ctl(&["set_vm_memory_high_watermark", "0.6"]).await;
    let last = publish(&producer, 2, within_secs(PATIENCE.as_secs())).await.unwrap().id;
    let queue = broker.config().topology().queue("notes");
    let stored = ids(&Plain::at(own.url()).await.drain(&queue).await);
    assert!(stored.contains(&last), "{stored:?}");
    assert!((100..150).all(|n: u64| !stored.contains(&n.to_string())), "{stored:?}");
}
