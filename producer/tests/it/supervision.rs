//! Whatever happens to the broker and the way to it: what was confirmed is there, and every publish
//! has its verdict by its deadline.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use forebay_producer::testing::{Broker, Meddle, Proxy, broker};
use forebay_producer::{
    Config, ConnectError, Declare, Producer, PublishError, PublishOptions, Receipt,
};
use futures_util::{StreamExt, future, stream};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::publishing::good_full_and_nowhere;
use crate::support::{
    PATIENCE, Plain, eventually, ids, kill_and_revive, note, own_broker, publish, publish_to,
    through, within,
};

fn within_secs(secs: u64) -> PublishOptions {
    PublishOptions::new().deadline(Duration::from_secs(secs))
}

/// Publishes `count` jobs, at most 50 at a time, and does something when so many are confirmed.
async fn publish_while(
    producer: &Producer,
    count: u64,
    at: usize,
    happens: impl Future<Output = ()>,
) -> BTreeSet<String> {
    let (tell, mut told) = tokio::sync::watch::channel(0);
    let publishes = stream::iter(0..count).map(|n| {
        let tell = &tell;
        async move {
            let receipt = producer.publish_with(&note(n), within_secs(PATIENCE.as_secs())).await;
            tell.send_modify(|confirmed| *confirmed += 1);
            receipt.unwrap_or_else(|error| panic!("job {n}: {error}")).id
        }
    });
    let happens = async {
        told.wait_for(|confirmed| *confirmed >= at).await.expect("the sender is here");
        happens.await;
    };
    let all = publishes.buffer_unordered(50).collect::<Vec<_>>();
    within(&format!("{count} verdicts"), future::join(all, happens)).await.0.into_iter().collect()
}

async fn assert_stored(plain: &Plain, broker: &Broker, confirmed: &BTreeSet<String>) {
    let stored = ids(&plain.drain(&broker.config().topology().queue("notes")).await);
    let missing: Vec<_> = confirmed.difference(&stored).collect();
    assert!(missing.is_empty(), "{} confirmed, but not there: {missing:?}", missing.len());
}

#[tokio::test]
async fn publishes_wait_for_a_broker_that_restarts_and_none_is_lost() {
    let (own, _place) = own_broker("").await;
    let broker = own.broker();
    let producer = Producer::new(&broker.config());
    let restart = async {
        own.stop().await;
        own.start().await;
    };
    let confirmed = publish_while(&producer, 500, 200, restart).await;
    assert_eq!(confirmed.len(), 500);
    assert_stored(&Plain::at(own.url()).await, &broker, &confirmed).await;
}

#[tokio::test]
async fn publishes_wait_for_a_broker_that_was_killed_and_none_is_lost() {
    let (own, _place) = own_broker("").await;
    let broker = own.broker();
    let producer = Producer::new(&broker.config());
    let confirmed = publish_while(&producer, 500, 200, kill_and_revive(&own)).await;
    assert_eq!(confirmed.len(), 500);
    assert_stored(&Plain::at(own.url()).await, &broker, &confirmed).await;
}

#[tokio::test]
async fn what_a_broker_had_confirmed_before_it_was_killed_is_still_there() {
    let (own, _place) = own_broker("").await;
    let broker = own.broker();
    let producer = Producer::new(&broker.config());
    let jobs = stream::iter((0..2_000).map(note));
    assert_eq!(within("2,000 jobs", producer.publish_all(jobs)).await.unwrap(), 2_000);
    kill_and_revive(&own).await;
    let queue = broker.config().topology().queue("notes");
    let stored = Plain::at(own.url()).await.drain(&queue).await;
    assert_eq!(ids(&stored).len(), 2_000);
}

#[tokio::test]
async fn a_connection_that_is_cut_again_and_again_loses_nothing() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let producer = Producer::new(&through(&proxy.url(), &broker.config()));
    let mut confirmed = BTreeSet::new();
    for _ in 0..8 {
        confirmed.extend(publish_while(&producer, 300, 100, async { proxy.cut() }).await);
    }
    assert_eq!(confirmed.len(), 2_400);
    assert_stored(&Plain::at(broker.url()).await, &broker, &confirmed).await;
}

/// Without confirm mode a full queue would say nothing, and a missing one no more than that it was
/// returned.
#[tokio::test]
async fn after_a_recovery_every_verdict_is_given_as_before() {
    let broker = broker().await;
    let (direct, _plain) = good_full_and_nowhere(&broker).await;
    let proxy = Proxy::to(&broker.address()).await;
    let config = through(&proxy.url(), &broker.config()).declare(Declare::Never);
    let producer = Producer::new(&config);
    for round in 0..4 {
        let verdict = async |queue: &str| {
            let id = format!("{queue} {round}");
            within("a verdict", publish_to(&producer, queue, &id)).await
        };
        verdict("good").await.unwrap();
        let error = verdict("full").await.unwrap_err();
        assert!(matches!(error, PublishError::Refused { .. }), "round {round}: {error}");
        let error = verdict("nowhere").await.unwrap_err();
        assert!(matches!(error, PublishError::Unroutable { .. }), "round {round}: {error}");
        proxy.cut();
    }
    direct.close().await;
}

/// A window of a single job must not take the end of its connection for the broker's verdict.
#[tokio::test]
async fn a_lone_publish_outlives_a_cut_too() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let producer = Producer::new(&through(&proxy.url(), &broker.config()));
    let mut confirmed = BTreeSet::new();
    for n in 0..60 {
        let publishing = publish(&producer, n, within_secs(PATIENCE.as_secs()));
        let cut = async {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..3_000))).await;
            proxy.cut();
        };
        let (receipt, ()) = future::join(publishing, cut).await;
        confirmed.insert(receipt.unwrap_or_else(|error| panic!("job {n}: {error}")).id);
    }
    assert_stored(&Plain::at(broker.url()).await, &broker, &confirmed).await;
}

#[tokio::test]
async fn on_a_half_open_connection_publishes_end_by_their_deadline_and_later_ones_work() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let producer = Producer::new(&through(&proxy.url(), &broker.config()));
    producer.publish(&note(0)).await.unwrap();
    proxy.hold();
    let publishes = (1..100).map(|n| publish(&producer, n, within_secs(2)));
    for verdict in within("verdicts", future::join_all(publishes)).await {
        let error = verdict.unwrap_err();
        assert!(matches!(error, PublishError::Unconfirmed { .. }), "{error}");
    }
    proxy.pass();
    let later = publish(&producer, 100, within_secs(PATIENCE.as_secs()));
    within("a publish", later).await.unwrap();
}

#[tokio::test]
async fn publishes_that_must_declare_end_by_their_deadline_too() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let producer = Producer::new(&through(&proxy.url(), &broker.config()));
    producer.publish(&note(0)).await.unwrap();
    proxy.hold();
    let publishes = (1..20).map(|n| {
        let options = within_secs(2).queue(format!("new-{n}")).delay(Duration::from_secs(5));
        publish(&producer, n, options)
    });
    for verdict in within("verdicts", future::join_all(publishes)).await {
        let error = verdict.unwrap_err();
        let PublishError::Unconfirmed { may_have_arrived, .. } = &error else { panic!("{error}") };
        assert!(!may_have_arrived, "{error}");
    }
}

/// The path falls silent at some point of a declaration, not before it.
#[tokio::test]
async fn a_declaration_that_is_not_answered_ends_by_the_deadline() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    for round in 0..6 {
        let producer = Producer::new(&through(&proxy.url(), &broker.config()));
        producer.publish(&note(0)).await.unwrap();
        let hold = async {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(5..60))).await;
            proxy.hold();
        };
        let options = within_secs(2).queue(format!("new-{round}")).delay(Duration::from_secs(100));
        match within("a verdict", future::join(publish(&producer, 1, options), hold)).await.0 {
            Ok(_) | Err(PublishError::Unconfirmed { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        proxy.pass();
    }
}

#[tokio::test]
async fn publishes_that_must_declare_wait_for_the_broker_like_any_other() {
    let broker = broker().await;
    let proxy = Proxy::to(&broker.address()).await;
    let producer = Producer::new(&through(&proxy.url(), &broker.config()));
    let publishes = (0..40).map(|n| {
        let options = within_secs(PATIENCE.as_secs()).queue(format!("new-{}", n % 8));
        publish(&producer, n, options.delay(Duration::from_millis(100)))
    });
    let cuts = async {
        for _ in 0..15 {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(20..250))).await;
            proxy.cut();
        }
    };
    let (verdicts, ()) = within("verdicts", future::join(future::join_all(publishes), cuts)).await;
    for verdict in verdicts {
        verdict.unwrap();
    }
}

#[tokio::test]
async fn while_the_broker_has_no_memory_publishes_end_with_its_words_and_later_ones_work() {
    let (own, _place) = own_broker("").await;
    let broker = own.broker();
    let producer = Producer::new(&broker.config());
    producer.publish(&note(0)).await.unwrap();
    own.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    // The broker says so in answer to the first publish that it does not read.
    eventually("an error with the broker's words", async || {
        match producer.publish_with(&note(1), within_secs(1)).await {
            Err(error @ PublishError::Unconfirmed { .. }) => {
                error.to_string().contains("the broker blocks publishers")
            }
            Ok(_) => false,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    let new_queue = within_secs(1).queue("new").delay(Duration::from_secs(60));
    let error = within("a verdict", publish(&producer, 2, new_queue)).await.unwrap_err();
    assert!(matches!(error, PublishError::Unconfirmed { .. }), "{error}");
    assert!(error.to_string().contains("the broker blocks publishers"), "{error}");

    own.ctl(&["set_vm_memory_high_watermark", "0.6"]).await;
    let later = publish(&producer, 3, within_secs(PATIENCE.as_secs()));
    within("a publish", later).await.unwrap();
    assert_eq!(producer.link().trouble(), "");
}

#[tokio::test]
async fn publishes_wait_for_a_broker_that_is_not_there_yet() {
    let broker = broker().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here: SocketAddr = listener.local_addr().unwrap();
    drop(listener);
    let url = format!("amqp://guest:guest@{here}/%2f");
    let producer = Producer::new(&through(&url, &broker.config()));
    let publishing = publish(&producer, 1, within_secs(PATIENCE.as_secs()));
    let appear = async {
        let mut status = producer.link().status();
        status.wait_for(|status| status.last_fault.is_some()).await.unwrap();
        let listener = TcpListener::bind(here).await.unwrap();
        let target = broker.address();
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(&target).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    };
    let receipt: Receipt = tokio::select! {
        published = within("a publish", publishing) => published.unwrap(),
        () = appear => unreachable!("it accepts for ever"),
    };
    assert_stored(&Plain::at(broker.url()).await, &broker, &[receipt.id].into()).await;
}

#[tokio::test]
async fn of_several_hosts_one_that_answers_is_enough() {
    let broker = broker().await;
    let live = broker.address();
    let url = broker.url().replace(&live, &format!("127.0.0.1:1,{live},127.0.0.1:2"));
    let producer = Producer::connect(&through(&url, &broker.config())).await.unwrap();
    producer.publish(&note(1)).await.unwrap();
}

/// A configuration with a password that is wrong.
fn refused(broker: &Broker, patience: Duration) -> Config {
    let url = format!("amqp://guest:hush-hush@{}/%2f", broker.address());
    through(&url, &broker.config()).access_patience(patience)
}

#[tokio::test]
async fn a_wrong_password_is_an_error_that_names_the_user_and_not_the_password() {
    let broker = broker().await;
    let config = refused(&broker, Duration::from_secs(1));
    let error = within("an error", Producer::connect(&config)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Denied { .. }), "{error}");
    let words = format!("{error} {error:?}");
    assert!(words.contains("guest") && !words.contains("hush-hush"), "{words}");
}

#[tokio::test]
async fn a_missing_virtual_host_is_an_error_that_names_it() {
    let broker = broker().await;
    let url = broker.url().replace("/%2f", "/not-there");
    let config = through(&url, &broker.config()).access_patience(Duration::from_secs(1));
    let error = within("an error", Producer::connect(&config)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Vhost { .. }), "{error}");
    assert!(error.to_string().contains("rabbitmqctl add_vhost not-there"), "{error}");
}

#[tokio::test]
async fn a_producer_that_was_refused_ends_its_publishes_and_leaves_others_alone() {
    let broker = broker().await;
    let producer = Producer::new(&refused(&broker, Duration::ZERO));
    let publishing = publish(&producer, 1, within_secs(3_600));
    let other = Producer::new(&broker.config());
    let (refused, published) =
        within("both verdicts", future::join(publishing, publish(&other, 2, within_secs(60))))
            .await;
    published.unwrap();
    let error = refused.unwrap_err();
    assert!(error.to_string().contains("ACCESS_REFUSED"), "{error}");
}

#[tokio::test]
async fn closing_waits_for_what_is_under_way() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    producer.publish(&note(0)).await.unwrap();
    let publishes = future::join_all((1..=1_000).map(|n| {
        let producer = &producer;
        async move { publish_to(producer, "notes", &n.to_string()).await }
    }));
    let (verdicts, ()) = within("all ends", future::join(publishes, producer.close())).await;
    for verdict in verdicts {
        verdict.unwrap();
    }
}

#[tokio::test]
async fn a_publish_after_closing_ends_at_once() {
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    producer.publish(&note(1)).await.unwrap();
    producer.close().await;
    let publishing = publish(&producer, 2, within_secs(3_600));
    let error = within("a verdict", publishing).await.unwrap_err();
    assert!(error.to_string().contains("closed"), "{error}");
}

/// Ten times what may wait, in jobs and in bytes.
#[tokio::test]
async fn with_the_broker_away_everybody_is_told_by_the_deadline() {
    let config = Config::new("amqp://127.0.0.1:1").unwrap();
    let producer = Producer::new(&config);
    let payload = bytes::Bytes::from(vec![b'1'; 10_000]);
    let publishes = (0..10_000)
        .map(|_| producer.publish_raw("note.take", payload.clone(), within_secs(2).queue("notes")));
    for verdict in within("10,000 verdicts", future::join_all(publishes)).await {
        let error = verdict.unwrap_err();
        let PublishError::Unconfirmed { may_have_arrived, .. } = &error else { panic!("{error}") };
        assert!(!may_have_arrived && error.to_string().contains("127.0.0.1:1"), "{error}");
    }
}

#[tokio::test]
async fn a_connection_cut_at_any_step_of_its_handshake_is_opened_again_at_once() {
    let broker = broker().await;
    for step in 0..8 {
        let proxy = Proxy::to(&broker.address()).await;
        let frames = AtomicUsize::new(0);
        proxy.meddle(move |_| {
            let cut = frames.fetch_add(1, Ordering::AcqRel) == step;
            if cut { Meddle::Cut } else { Meddle::Pass }
        });
        let producer = Producer::new(&through(&proxy.url(), &broker.config()));
        // Far below the deadline after which a broker that says nothing is given up.
        let options = PublishOptions::new().deadline(Duration::from_secs(8)).queue("notes");
        let published = producer.publish_with(&note(1), options).await;
        published.unwrap_or_else(|error| panic!("cut at frame {step}: {error}"));
        producer.close().await;
    }
}

#[tokio::test]
async fn a_connect_that_is_never_answered_does_not_hold_up_the_next() {
    let broker = broker().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://guest:guest@{}/%2f", listener.local_addr().unwrap());
    let target = broker.address();
    let serve = tokio::spawn(async move {
        let (_silent, _) = listener.accept().await.unwrap();
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(&target).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    let producer = Producer::new(&through(&url, &broker.config()));
    // Far below the deadline after which a broker that says nothing is given up.
    publish(&producer, 1, within_secs(8)).await.unwrap();
    serve.abort();
}
