//! Work on a cluster goes on when the node is lost that leads its queues.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::anyhow;
use forebay_producer::link::connection::Link;
use forebay_producer::link::declare::Declarer;
use forebay_producer::{DeadLetters, Filter, Pile, PublishOptions, QueueType};
use forebay_worker::testing::cluster;
use forebay_worker::{
    Config, Context, HandlerOptions, JobError, JobResult, Producer, PublishError, QueueOptions,
    Retry, Worker,
};
use futures_util::{StreamExt, stream};
use tokio::time::{self, Instant};

use crate::support::{Bench, Notes, PATIENCE, Work, eventually_within, work};

const ALL: [usize; 3] = [0, 1, 2];
/// RabbitMQ 4.3 hands out what a lost node's consumers held after a minute.
const RETURNED: Duration = Duration::from_secs(150);

/// Every fifth job fails once, every seventh becomes a dead letter.
async fn take(job: Work, cx: Context<Notes>) -> JobResult {
    if job.n.is_multiple_of(7) {
        return Err(JobError::reject(anyhow!("a seventh")));
    }
    if job.n.is_multiple_of(5) && cx.attempt() == 1 {
        return Err(anyhow!("not at first").into());
    }
    cx.state().add(job.n.to_string());
    Ok(())
}

/// Publishes them, every third one delayed. Each has to be confirmed.
async fn publish(producer: &Producer, jobs: std::ops::Range<u64>) -> BTreeSet<String> {
    let publishes = stream::iter(jobs).map(async |n| {
        let mut options = PublishOptions::new().id(n.to_string()).deadline(PATIENCE);
        if n.is_multiple_of(3) {
            options = options.delay(Duration::from_millis(300 + n % 1_000));
        }
        // RabbitMQ 3.10 refuses what reaches a queue that has no leader for the moment.
        let publish = async || match producer.publish_with(&work(n), options.clone()).await {
            Ok(receipt) => Some(receipt.id),
            Err(PublishError::Refused { .. }) => None,
            Err(error) => panic!("job {n}: {error}"),
        };
        loop {
            match publish().await {
                Some(id) => break id,
                None => time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    publishes.buffer_unordered(30).collect().await
}

async fn declare(config: &Config, queue: &str) {
    let link = Link::open(config, "declare");
    let declarer = Declarer::new(link.clone(), config);
    let deadline = Instant::now() + PATIENCE;
    declarer.ensure_queue(queue, QueueType::Quorum, deadline).await.unwrap();
    declarer.ensure_ladder(5, deadline).await.unwrap();
    link.close().await;
}

async fn dead_ids(config: &Config) -> BTreeSet<String> {
    let letters = DeadLetters::new(config);
    let listed = letters.list(&Pile::Queue("default".to_owned()), &Filter::default(), 1_000).await;
    letters.close().await;
    listed.unwrap().letters.into_iter().map(|letter| letter.envelope.id).collect()
}

#[tokio::test]
async fn no_job_is_lost_with_the_node_that_leads_the_queues() {
    let cluster = cluster("").await;
    let broker = cluster.broker();
    let (config, notes) = (broker.config(), Notes::default());
    declare(&config, "default").await;
    let (topology, queue) = (config.topology(), config.topology().queue("default"));
    for name in [&queue, &topology.dead_queue("default"), &topology.unrouted(), &topology.delay(3)]
    {
        assert_eq!(cluster.members_of(name, 0).await, ALL.into(), "{name}");
    }

    let options = HandlerOptions::new().retry(Retry::fixed(3, Duration::from_millis(200)));
    let worker = Worker::builder(notes.clone())
        .queue("default", QueueOptions::new().concurrency(8))
        .handle_with(options, take);
    let mut bench = Bench::on(broker, worker);
    bench.consuming("default").await;
    let mut confirmed = publish(&bench.producer, 0..300).await;
    let leader = cluster.leader_of(&queue, 0).await.unwrap();
    let producer = bench.producer.clone();
    let meanwhile = tokio::spawn(async move { publish(&producer, 300..1_500).await });
    cluster.kill(leader).await;
    let lost = Instant::now();
    confirmed.extend(publish(&bench.producer, 2_000..2_001).await);
    println!("{:.1?} from the loss of node {leader} to the next confirm", lost.elapsed());
    notes.wait_for_text("2000").await;
    println!("{:.1?} from the loss until a later job was done", lost.elapsed());
    confirmed.extend(meanwhile.await.unwrap());

    let (to_die, to_do): (BTreeSet<_>, BTreeSet<_>) =
        confirmed.into_iter().partition(|id| id.parse::<u64>().unwrap().is_multiple_of(7));
    eventually_within(RETURNED, "every confirmed job is done", async || {
        to_do.is_subset(&notes.all().into_iter().collect())
    })
    .await;
    eventually_within(RETURNED, "every rejected job is a dead letter", async || {
        to_die.is_subset(&dead_ids(&config).await)
    })
    .await;
    println!("{:.1?} from the loss until every job was accounted for", lost.elapsed());
    bench.drain().await;

    // A queue that is declared while a node is away gets its member there all the same.
    declare(&config, "later").await;
    let here = (leader + 1) % ALL.len();
    assert_eq!(cluster.members_of(&topology.queue("later"), here).await, ALL.into());
}
