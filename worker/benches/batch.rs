//! What a batch handler saves: rows inserted into PostgreSQL in batches beside one by one.
//!
//! `cargo bench -p forebay-worker --features testing,postgres --bench batch -- [OPTIONS]` prints,
//! from rounds in alternating order on one broker and one database, rows per second of both and the
//! median of their ratios. After each round it compares the table with what was published.
//! Options: `--rounds N` (3), `--jobs N` (100000), `--size N` (500), `--at-once N` (2): batches at
//! once, and four times as many single inserts, each on a connection of the same pool.
//!
//! A PostgreSQL that the bench starts itself does not wait for its disk at a commit (`fsync=off`),
//! which favours the single inserts. `FOREBAY_TEST_POSTGRES_URL` names another.

use std::time::{Duration, Instant};

use forebay_worker::idempotency::Inbox;
use forebay_worker::testing::{Postgres, broker, postgres};
use forebay_worker::{
    BatchContext, BatchOptions, BatchResult, Config, Context, HandlerOptions, Item, Job, JobResult,
    Producer, QueueOptions, Results, Worker, WorkerBuilder,
};
use futures_util::stream;
use serde::{Deserialize, Serialize};

const TABLE: &str = "CREATE TABLE rows (id bigint PRIMARY KEY, name text NOT NULL, cents bigint)";
const ONE: &str = "INSERT INTO rows VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
const MANY: &str = "INSERT INTO rows SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[])
    ON CONFLICT DO NOTHING";
const COUNT: &str = "SELECT count(*), coalesce(sum(id), 0)::bigint, coalesce(max(id), 0) FROM rows";

#[derive(Serialize, Deserialize)]
struct Row {
    id: i64,
    name: String,
    cents: i64,
}

impl Job for Row {
    const KIND: &'static str = "row.insert";
    const QUEUE: &'static str = "bench";
}

async fn insert_one(row: Row, cx: Context<Inbox>) -> JobResult {
    let database = cx.state().pool().get().await?;
    let statement = database.prepare_cached(ONE).await?;
    database.execute(&statement, &[&row.id, &row.name, &row.cents]).await?;
    Ok(())
}

async fn insert_many(items: Vec<Item<Row>>, cx: BatchContext<Inbox>) -> BatchResult {
    let (mut ids, mut names, mut cents) = (Vec::new(), Vec::new(), Vec::new());
    for Item { job, .. } in &items {
        ids.push(job.id);
        names.push(job.name.as_str());
        cents.push(job.cents);
    }
    let database = cx.state().pool().get().await?;
    let statement = database.prepare_cached(MANY).await?;
    database.execute(&statement, &[&ids, &names, &cents]).await?;
    Ok(Results::done())
}

struct Options {
    rounds: usize,
    jobs: i64,
    size: usize,
    at_once: usize,
}

fn options() -> Options {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: usize| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    Options {
        rounds: number("--rounds", 3),
        jobs: number("--jobs", 100_000) as i64,
        size: number("--size", 500),
        at_once: number("--at-once", 2),
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = options();
    let (broker, database) = (broker().await, postgres().await);
    let config = broker.config();
    let inbox = Inbox::new(database.url())?;
    inbox.pool().get().await?.batch_execute(TABLE).await?;
    println!(
        "{} jobs a round, batches of up to {}, {} at once, against single inserts, {} at once; \
         PostgreSQL with fsync={}",
        options.jobs,
        options.size,
        options.at_once,
        4 * options.at_once,
        database.sql("SHOW fsync").await.trim()
    );
    let mut ratios = Vec::new();
    for round in 0..options.rounds {
        let (mut single, mut batch) = (0.0, 0.0);
        for turn in 0..2 {
            if (turn + round) % 2 == 0 {
                single =
                    drained(&options, one_by_one(&options, &inbox), &config, &database).await?;
            } else {
                batch = drained(&options, in_batches(&options, &inbox), &config, &database).await?;
            }
        }
        ratios.push(batch / single);
        println!(
            "round {}: {single:.0} rows/s one by one, {batch:.0} rows/s in batches, × {:.2}",
            round + 1,
            batch / single
        );
    }
    ratios.sort_by(f64::total_cmp);
    if let Some(median) = ratios.get(ratios.len() / 2) {
        println!("median × {median:.2}; each row was there exactly once, every time");
    }
    // Lets the clean-up of the namespace run before the process ends.
    drop(broker);
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

fn one_by_one(options: &Options, inbox: &Inbox) -> WorkerBuilder<Inbox> {
    let (places, prefetch) = (4 * options.at_once, prefetch(options));
    Worker::builder(inbox.clone())
        // Nothing takes the ten seconds it may.
        .consumer_timeout(Duration::from_secs(24 * 3600))
        .queue("bench", QueueOptions::new().concurrency(places).prefetch(prefetch))
        .handle_with(short(), insert_one)
}

fn in_batches(options: &Options, inbox: &Inbox) -> WorkerBuilder<Inbox> {
    let places = options.at_once;
    let batch = BatchOptions::new().size(options.size).window(Duration::from_millis(50));
    Worker::builder(inbox.clone())
        .queue("bench", QueueOptions::new().concurrency(places).prefetch(prefetch(options)))
        .handle_batch_with(short().concurrency(places), batch, insert_many)
}

/// The same for both.
fn prefetch(options: &Options) -> u16 {
    u16::try_from(options.size * (options.at_once + 1)).unwrap_or(u16::MAX)
}

fn short() -> HandlerOptions {
    HandlerOptions::new().timeout(Duration::from_secs(10))
}

/// Publishes all, then starts the worker and waits until it has done them: rows per second.
async fn drained(
    options: &Options,
    worker: WorkerBuilder<Inbox>,
    config: &Config,
    database: &Postgres,
) -> anyhow::Result<f64> {
    database.sql("TRUNCATE rows").await;
    let producer = Producer::connect(config).await?;
    let rows = (1..=options.jobs).map(|id| Row { id, name: format!("row {id}"), cents: 7 * id });
    producer.publish_all(stream::iter(rows)).await?;

    let began = Instant::now();
    let running = worker.build()?.start(config);
    let controls = running.controls();
    while controls.summary().succeeded < options.jobs as u64 {
        anyhow::ensure!(began.elapsed() < Duration::from_secs(600), "{}", controls.summary());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let took = began.elapsed();
    controls.drain();
    running.finished().await?;
    let (count, n) = (database.sql(COUNT).await, options.jobs);
    let expected = format!("{n}|{}|{n}", n * (n + 1) / 2);
    anyhow::ensure!(count.trim() == expected, "the table has {count}, not {expected}");
    Ok(n as f64 / took.as_secs_f64())
}
