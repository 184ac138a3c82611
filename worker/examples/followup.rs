//! A handler that publishes a follow-up job with a delay.

use std::time::Duration;

use forebay_worker::{
    Config, Context, Job, JobResult, Producer, PublishOptions, QueueOptions, Worker,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct PlaceOrder {
    number: u64,
}

impl Job for PlaceOrder {
    const KIND: &'static str = "order.place";
}

#[derive(Serialize, Deserialize)]
struct RemindToPay {
    number: u64,
}

impl Job for RemindToPay {
    const KIND: &'static str = "payment.remind";
}

async fn place_order(job: PlaceOrder, cx: Context<()>) -> JobResult {
    // Done twice after a crash in between: the id makes the second reminder recognisable.
    let later = PublishOptions::new()
        .delay(Duration::from_millis(300))
        .id(format!("remind-{}", job.number));
    cx.producer().publish_with(&RemindToPay { number: job.number }, later).await?;
    Ok(())
}

async fn remind_to_pay(job: RemindToPay, cx: Context<()>) -> JobResult {
    println!("order {} is not paid yet, says {}", job.number, cx.id());
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::from_env()?;
    let worker = Worker::builder(())
        .queue("default", QueueOptions::new())
        .handle(place_order)
        .handle(remind_to_pay)
        .build()?;
    let running = worker.start(&config);
    Producer::connect(&config).await?.publish(&PlaceOrder { number: 1 }).await?;
    while running.controls().summary().succeeded < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    running.controls().drain();
    println!("{}", running.finished().await?);
    Ok(())
}
