//! A worker never silently stops consuming: each way in which it can lose its consumer, and what it
//! says when it cannot have one.

use std::time::Duration;

use forebay_producer::QueueType;
use forebay_worker::testing::{Broker, Proxy, broker, broker_of_its_own};
use forebay_worker::{
    Config, Context, Declare, JobResult, Producer, QueueOptions, RunError, Worker, WorkerBuilder,
};
use lapin::options::QueueDeleteOptions;

use crate::support::{Bench, Notes, Work, eventually, note, raw_channel, work};

async fn noting(job: Work, cx: Context<Notes>) -> JobResult {
    note(cx.state(), &job, &cx);
    Ok(())
}

fn noting_worker(notes: &Notes) -> WorkerBuilder<Notes> {
    Worker::builder(notes.clone()).queue("default", QueueOptions::new()).handle(noting)
}

#[tokio::test]
async fn a_deleted_queue_is_declared_again_and_consumed() {
    let notes = Notes::default();
    let mut bench = Bench::start(noting_worker(&notes)).await;
    bench.consuming("default").await;
    let channel = raw_channel(&bench.config()).await;
    let queue = bench.config().topology().queue("default");
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    bench.idle("default").await;
    bench.consuming("default").await;
    bench.producer.publish(&work(1)).await.unwrap();
    assert_eq!(notes.wait_for(1).await, ["1#1"]);
    bench.drain().await;
}

#[tokio::test]
async fn a_cut_connection_is_restored_and_no_job_is_lost() {
    let notes = Notes::default();
    let shared = broker().await;
    let proxy = Proxy::to(&shared.address()).await;
    let behind = Broker::at(&proxy.url());
    let mut bench = Bench::on(behind, noting_worker(&notes));
    bench.consuming("default").await;
    for n in 0..50 {
        bench.producer.publish(&work(n)).await.unwrap();
        if n % 10 == 5 {
            proxy.cut();
        }
    }
    eventually("all fifty were handled", async || {
        (0..50).all(|n| notes.all().iter().any(|note| note.starts_with(&format!("{n}#"))))
    })
    .await;
    bench.drain().await;
}

#[tokio::test]
async fn a_half_open_connection_is_noticed_by_its_heartbeat() {
    let notes = Notes::default();
    let shared = broker().await;
    let proxy = Proxy::to(&shared.address()).await;
    let behind = Broker::at(&format!("{}?heartbeat=2", proxy.url()));
    let mut bench = Bench::on(behind, noting_worker(&notes));
    bench.consuming("default").await;
    proxy.hold();
    bench.idle("default").await;
    proxy.pass();
    bench.consuming("default").await;
    bench.producer.publish(&work(1)).await.unwrap();
    assert_eq!(notes.wait_for(1).await, ["1#1"]);
    bench.drain().await;
}

#[tokio::test]
async fn a_worker_outlives_its_broker_stopped_killed_and_not_yet_there() {
    let notes = Notes::default();
    let own = broker_of_its_own("").await;
    own.stop().await;
    let mut bench = Bench::on(own.broker(), noting_worker(&notes));
    own.start().await;
    bench.consuming("default").await;
    bench.producer.publish(&work(1)).await.unwrap();
    assert_eq!(notes.wait_for(1).await, ["1#1"]);
    for n in [2, 3] {
        if n == 2 {
            own.stop().await;
        } else {
            own.kill().await;
        }
        bench.idle("default").await;
        let producer = bench.producer.clone();
        // Published while nobody is there: it waits, and goes out under the same id.
        let waiting = tokio::spawn(async move { producer.publish(&work(n)).await });
        if n == 2 {
            own.start().await;
        } else {
            own.revive().await;
        }
        waiting.await.unwrap().unwrap();
        notes.wait_for_text(&format!("{n}#1")).await;
    }
    bench.drain().await;
}

#[tokio::test]
async fn a_queue_declared_elsewhere_with_other_arguments_is_used_unless_strict() {
    let notes = Notes::default();
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    producer.declare("default", QueueType::Classic).await.unwrap();
    let strict = broker.config().strict_topology(true).access_patience(Duration::ZERO);
    let refused =
        noting_worker(&notes).build().unwrap().start(&strict).finished().await.unwrap_err();
    let RunError::Queue { because, .. } = &refused else { panic!("{refused}") };
    for part in ["inequivalent arg 'x-", "delete it once it is empty", "--strict-topology"] {
        assert!(because.contains(part), "{because}");
    }
    let mut bench = Bench::on(broker, noting_worker(&notes));
    bench.producer.publish(&work(1)).await.unwrap();
    assert_eq!(notes.wait_for(1).await, ["1#1"]);
    bench.drain().await;
}

#[tokio::test]
async fn a_missing_queue_that_may_not_be_declared_is_named_with_the_remedy() {
    let broker = broker().await;
    let config = broker.config().declare(Declare::Never).access_patience(Duration::ZERO);
    let worker = noting_worker(&Notes::default()).build().unwrap();
    let error = worker.start(&config).finished().await.unwrap_err();
    let RunError::Queue { queue, because } = &error else { panic!("{error}") };
    assert_eq!(queue, "default");
    assert!(because.contains("forebay topology apply"), "{because}");
}

async fn refused(config: Config) -> String {
    let worker = noting_worker(&Notes::default()).build().unwrap();
    let config = config.access_patience(Duration::from_millis(500));
    let error = worker.start(&config).finished().await.unwrap_err();
    format!("{:#}", anyhow::Error::from(error))
}

#[tokio::test]
async fn a_wrong_password_a_missing_vhost_and_a_missing_permission_end_it_with_the_remedy() {
    let own = broker_of_its_own("").await;
    let address = own.address();
    let wrong = refused(Config::new(&format!("amqp://guest:hush@{address}")).unwrap()).await;
    assert!(wrong.contains("user `guest`") && wrong.contains("AMQP_URL"), "{wrong}");
    assert!(!wrong.contains("hush"), "{wrong}");

    let missing =
        refused(Config::new(&format!("amqp://guest:guest@{address}/nowhere")).unwrap()).await;
    assert!(missing.contains("`nowhere`") && missing.contains("add_vhost"), "{missing}");

    let broker = own.broker();
    Producer::new(&broker.config()).declare("default", QueueType::Quorum).await.unwrap();
    own.ctl(&["add_user", "blind", "pw"]).await;
    own.ctl(&["set_permissions", "blind", ".*", ".*", "^$"]).await;
    let blind = Config::new(&format!("amqp://blind:pw@{address}")).unwrap();
    let denied = refused(blind.namespace(broker.namespace()).unwrap()).await;
    assert!(denied.contains("read") && denied.contains(".default"), "{denied}");
}

#[tokio::test]
async fn a_worker_that_prefers_a_restart_ends_when_it_cannot_consume() {
    let nowhere = Config::new("amqp://127.0.0.1:1").unwrap();
    let worker = noting_worker(&Notes::default()).exit_after(Duration::from_secs(1));
    let error = worker.build().unwrap().start(&nowhere).finished().await.unwrap_err();
    let RunError::NotConsuming { because, .. } = &error else { panic!("{error}") };
    assert!(because.contains("127.0.0.1:1"), "{because}");
}

#[test]
fn everything_that_is_wrong_with_a_worker_is_said_at_once() {
    let error = Worker::builder(Notes::default())
        .queue("Mail", QueueOptions::new())
        .queue("slow", QueueOptions::new().concurrency(0))
        .handle(noting)
        .handle(noting)
        .build()
        .unwrap_err();
    let text = error.to_string();
    for part in ["queue `Mail`", "queue `slow`: concurrency 0", "two handlers", "queue(\"default\""]
    {
        assert!(text.contains(part), "{text}");
    }
}
