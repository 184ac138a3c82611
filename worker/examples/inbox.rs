//! Each deposit is booked once, whatever dies when: the booking and its mark commit together.
//! Needs PostgreSQL: `DATABASE_URL=postgres://… cargo run --features postgres --example inbox`.

use forebay_worker::idempotency::Inbox;
use forebay_worker::{
    Config, Context, Job, JobResult, Producer, PublishOptions, QueueOptions, Worker,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Deposit {
    account: String,
    cents: i64,
}

impl Job for Deposit {
    const KIND: &'static str = "money.deposit";
}

const TABLE: &str = "CREATE TABLE IF NOT EXISTS accounts (name text PRIMARY KEY, cents bigint)";
const BOOK: &str = "INSERT INTO accounts VALUES ($1, $2)
    ON CONFLICT (name) DO UPDATE SET cents = accounts.cents + excluded.cents RETURNING cents";

async fn deposit(job: Deposit, cx: Context<Inbox>) -> JobResult<i64> {
    let inbox = cx.state();
    inbox
        .once(&cx, async |tx| Ok(tx.query_one(BOOK, &[&job.account, &job.cents]).await?.get(0)))
        .await
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::from_env()?;
    let inbox = Inbox::new(&std::env::var("DATABASE_URL")?)?;
    inbox.migrate().await?;
    inbox.pool().get().await?.batch_execute(TABLE).await?;
    let worker =
        Worker::builder(inbox).queue("default", QueueOptions::new()).handle(deposit).build()?;
    let running = worker.start(&config);

    // The same request twice, as an impatient caller sends it.
    let producer = Producer::connect(&config).await?;
    let request = Deposit { account: "ada".to_owned(), cents: 500 };
    let (key, patience) = ("request-4711", std::time::Duration::from_secs(30));
    for _ in 0..2 {
        let options = PublishOptions::new().idempotency_key(key);
        let cents: i64 = producer.call_with(&request, options, patience).await?;
        println!("ada has {cents} cents");
    }
    running.controls().drain();
    println!("{}", running.finished().await?);
    Ok(())
}
