//! Each way in which a consumer ends: what the worker says of it, and that afterwards everything is
//! as it was before.

use std::sync::atomic::{AtomicBool, Ordering};

use forebay_producer::QueueType;
use forebay_worker::testing::{Broker, Meddle, Proxy, broker, broker_of_its_own};
use forebay_worker::{
    Context, HandlerOptions, JobError, JobResult, Producer, QueueOptions, Retry, Worker,
    WorkerBuilder,
};
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, ExchangeDeleteOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::FieldTable;

use crate::support::{Bench, Notes, Work, eventually, note, raw_channel, work};

async fn noting(job: Work, cx: Context<Notes>) -> JobResult {
    note(cx.state(), &job, &cx);
    Ok(())
}

fn noting_worker(notes: &Notes) -> WorkerBuilder<Notes> {
    Worker::builder(notes.clone()).queue("default", QueueOptions::new()).handle(noting)
}

/// Waits until the consumer was lost so often, or more often, and returns why it was the last time.
async fn lost(bench: &Bench, times: u64) -> String {
    let mut because = None;
    eventually("the consumer is lost", async || {
        let status = bench.controls.queues().remove(0);
        because = status.last_loss;
        status.losses >= times
    })
    .await;
    because.unwrap()
}

/// Waits until the worker says this of a queue that it cannot consume.
async fn says(bench: &Bench, parts: &[&str]) {
    let all = |said: &str| parts.iter().all(|part| said.contains(part));
    eventually(&format!("{parts:?} is said"), async || {
        bench.controls.queues().remove(0).because.is_some_and(|said| all(&said))
    })
    .await;
}

async fn still_works(bench: &mut Bench, notes: &Notes, n: u64) {
    bench.consuming("default").await;
    bench.producer.publish(&work(n)).await.unwrap();
    notes.wait_for_text(&format!("{n}#1")).await;
}

#[tokio::test]
async fn a_consumer_that_only_the_worker_believes_in_is_lost_and_restored() {
    async fn waits_for_its_end(job: Work, cx: Context<Notes>) -> JobResult {
        note(cx.state(), &job, &cx);
        if job.n == 1 {
            cx.cancelled().await;
            cx.state().add("1 stopped");
            std::future::pending::<()>().await;
        }
        Ok(())
    }
    let notes = Notes::default();
    let shared = broker().await;
    let proxy = Proxy::to(&shared.address()).await;
    let behind = Broker::at(&proxy.url());
    let queue = QueueOptions::new();
    let worker = Worker::builder(notes.clone()).queue("default", queue).handle(waits_for_its_end);
    let mut bench = Bench::on(behind, worker);
    bench.producer.publish(&work(1)).await.unwrap();
    notes.wait_for(1).await;
    // The queue is deleted and made anew, and the word about it does not reach the worker.
    proxy.meddle(|frame| if frame.is_cancel() { Meddle::Drop } else { Meddle::Pass });
    let direct = Broker::at(shared.url()).config().namespace(bench.broker.namespace()).unwrap();
    let channel = raw_channel(&direct).await;
    let name = direct.topology().queue("default");
    channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let producer = Producer::new(&direct);
    producer.publish(&work(2)).await.unwrap();
    assert!(lost(&bench, 1).await.contains("no consumer on the queue"));
    notes.wait_for_text("1 stopped").await;
    notes.wait_for_text("2#1").await;
    bench.consuming("default").await;
    assert_eq!(bench.drain().await.succeeded, 1);
}

#[tokio::test]
async fn what_an_operator_or_the_network_did_is_said_in_the_brokers_words() {
    let notes = Notes::default();
    let own = broker_of_its_own("").await;
    let proxy = Proxy::to(&own.address()).await;
    let behind = Broker::at(&format!("{}?heartbeat=5", proxy.url()));
    let mut bench = Bench::on(behind, noting_worker(&notes));
    still_works(&mut bench, &notes, 1).await;

    own.ctl(&["close_all_connections", "--vhost", "/", "maintenance of rack 7"]).await;
    let because = lost(&bench, 1).await;
    assert!(because.contains("CONNECTION_FORCED - maintenance of rack 7"), "{because}");
    still_works(&mut bench, &notes, 2).await;

    proxy.hold();
    let because = lost(&bench, 2).await;
    assert!(because.contains("no heartbeat from the broker"), "{because}");
    says(&bench, &["no connection to 127.0.0.1:"]).await;
    proxy.pass();
    still_works(&mut bench, &notes, 3).await;

    // The same ack twice: the second one is for a delivery that the broker does not know any more.
    let once = AtomicBool::new(false);
    proxy.meddle(move |frame| {
        let repeat = frame.is_ack() && !once.swap(true, Ordering::AcqRel);
        if repeat { Meddle::Repeat } else { Meddle::Pass }
    });
    still_works(&mut bench, &notes, 4).await;
    let because = lost(&bench, 3).await;
    assert!(because.contains("unknown delivery tag"), "{because}");
    still_works(&mut bench, &notes, 5).await;

    proxy.cut();
    lost(&bench, 4).await;
    still_works(&mut bench, &notes, 6).await;
    bench.drain().await;
}

#[tokio::test]
async fn a_queue_that_another_consumer_has_for_itself_is_waited_for() {
    let notes = Notes::default();
    let broker = broker().await;
    let producer = Producer::new(&broker.config());
    // Quorum queues do not know of exclusive consumers.
    producer.declare("default", QueueType::Classic).await.unwrap();
    let channel = raw_channel(&broker.config()).await;
    let name = broker.config().topology().queue("default");
    let options = BasicConsumeOptions { exclusive: true, ..Default::default() };
    let (queue, tag) = (name.as_str().into(), "selfish".into());
    // Dropping it would cancel it.
    let _selfish = channel.basic_consume(queue, tag, options, FieldTable::default()).await.unwrap();
    let queue = QueueOptions::new().queue_type(QueueType::Classic);
    let worker = Worker::builder(notes.clone()).queue("default", queue).handle(noting);
    let mut bench = Bench::on(broker, worker);
    says(&bench, &["in exclusive use", "wait for its end", "rabbitmqctl list_consumers"]).await;
    channel.basic_cancel("selfish".into(), BasicCancelOptions::default()).await.unwrap();
    still_works(&mut bench, &notes, 1).await;
    bench.drain().await;
}

#[tokio::test]
async fn a_queue_that_belongs_to_another_connection_is_waited_for() {
    let notes = Notes::default();
    let broker = broker().await;
    let channel = raw_channel(&broker.config()).await;
    let name = broker.config().topology().queue("default");
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    channel.queue_declare(name.as_str().into(), options, FieldTable::default()).await.unwrap();
    let mut bench = Bench::on(broker, noting_worker(&notes));
    says(&bench, &["RESOURCE_LOCKED", "wait for its end"]).await;
    channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    still_works(&mut bench, &notes, 1).await;
    bench.drain().await;
}

#[tokio::test]
async fn a_queue_deleted_with_all_that_belongs_to_it_is_said_to_be_cancelled_for_that() {
    let notes = Notes::default();
    let mut bench = Bench::start(noting_worker(&notes)).await;
    still_works(&mut bench, &notes, 1).await;
    let channel = raw_channel(&bench.config()).await;
    let name = bench.config().topology().queue("default");
    channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let because = lost(&bench, 1).await;
    assert!(because.contains("its queue was deleted"), "{because}");
    still_works(&mut bench, &notes, 2).await;
    bench.drain().await;
}

#[tokio::test]
async fn after_a_recovery_prefetch_topology_and_consumer_are_as_before() {
    async fn obeys(job: Work, cx: Context<Notes>) -> JobResult {
        cx.state().add(format!("begin {}", job.n));
        cx.state().wait_for_text("go").await;
        if job.n == 100 { Err(JobError::reject(anyhow::anyhow!("no"))) } else { Ok(()) }
    }
    let notes = Notes::default();
    let shared = broker().await;
    let proxy = Proxy::to(&shared.address()).await;
    let behind = Broker::at(&proxy.url());
    let queue = QueueOptions::new().concurrency(1).prefetch(3);
    let never = HandlerOptions::new().retry(Retry::never());
    let worker = Worker::builder(notes.clone()).queue("default", queue).handle_with(never, obeys);
    let mut bench = Bench::on(behind, worker);
    for n in 0..8 {
        bench.producer.publish(&work(n)).await.unwrap();
    }
    let direct = Broker::at(shared.url()).config().namespace(bench.broker.namespace()).unwrap();
    let topology = direct.topology().clone();
    let inspector = forebay_producer::Inspector::new(&direct);
    let ready = async |queue: &str| inspector.count(queue).await.unwrap().map(|seen| seen.ready);
    let (jobs, letters) = (topology.queue("default"), topology.dead_queue("default"));
    eventually("three are delivered", async || ready(&jobs).await == Some(5)).await;

    // The path is down; meanwhile an operator deletes all but the queue itself.
    proxy.meddle(|_| Meddle::Cut);
    proxy.cut();
    bench.idle("default").await;
    let channel = raw_channel(&direct).await;
    channel.queue_delete(letters.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let exchanges = [topology.jobs_exchange().to_owned(), topology.dead_exchange()];
    for exchange in exchanges.into_iter().chain([topology.deliver_exchange()]) {
        let options = ExchangeDeleteOptions::default();
        channel.exchange_delete(exchange.as_str().into(), options).await.unwrap();
    }
    eventually("all are back", async || ready(&jobs).await == Some(8)).await;
    proxy.pass();
    bench.consuming("default").await;

    eventually("no more than three are delivered", async || ready(&jobs).await == Some(5)).await;
    eventually("dead letters have their queue", async || ready(&letters).await == Some(0)).await;
    // By a client that declares nothing: exchange and binding are there.
    eventually("a foreign publish is routed", async || {
        let channel = raw_channel(&direct).await;
        let exchange = topology.jobs_exchange().into();
        let options = lapin::options::BasicPublishOptions { mandatory: true, ..Default::default() };
        let kind = lapin::BasicProperties::default().with_type("work.do".into());
        let sent = channel.basic_publish(exchange, "default".into(), options, b"{\"n\":100}", kind);
        let confirmed = sent.await.unwrap().await;
        confirmed.is_ok_and(|confirm| confirm == lapin::Confirmation::Ack(None))
    })
    .await;
    notes.add("go");
    bench.dead("default", 1).await;
    let status = bench.controls.queues().remove(0);
    assert_eq!((status.losses, status.consuming), (1, true));
    assert_eq!(bench.drain().await.succeeded, 8);
    inspector.close().await;
}
