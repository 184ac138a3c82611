//! How jobs fail: one is retried and succeeds, one is rejected and becomes a dead letter.

use std::time::Duration;

use forebay_worker::{
    Config, Context, HandlerOptions, Job, JobError, JobResult, Producer, QueueOptions, Retry,
    Worker,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Charge {
    cents: i64,
}

impl Job for Charge {
    const KIND: &'static str = "card.charge";
}

async fn charge(job: Charge, cx: Context<()>) -> JobResult {
    if job.cents < 0 {
        // Trying again cannot help: a dead letter now.
        return Err(JobError::reject(anyhow::anyhow!("{} cents cannot be charged", job.cents)));
    }
    if cx.attempt() < 3 {
        // Any other error: tried again by the policy below.
        anyhow::Result::Err(anyhow::anyhow!("the bank is busy"))?;
    }
    println!("charged {} cents in attempt {}", job.cents, cx.attempt());
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::from_env()?;
    let options = HandlerOptions::new()
        .timeout(Duration::from_secs(10))
        .retry(Retry::fixed(5, Duration::from_millis(200)));
    let worker = Worker::builder(())
        .queue("default", QueueOptions::new())
        .handle_with(options, charge)
        .build()?;
    let running = worker.start(&config);

    let producer = Producer::connect(&config).await?;
    producer.publish(&Charge { cents: 500 }).await?;
    producer.publish(&Charge { cents: -1 }).await?;
    while running.controls().summary().succeeded + running.controls().summary().dead < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    running.controls().drain();
    println!("{}", running.finished().await?);
    Ok(())
}
