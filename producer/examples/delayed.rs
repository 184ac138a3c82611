//! Publishes jobs that run later. No plugin, and nothing is kept in this process: the broker holds
//! them, through restarts too.
//!
//! ```text
//! AMQP_URL=amqp://guest:guest@localhost/%2f cargo run --example delayed
//! ```

use std::time::{Duration, SystemTime};

use forebay_producer::{Config, Job, Producer, PublishOptions};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct SendEmail {
    to: String,
}

impl Job for SendEmail {
    const KIND: &'static str = "email.send";
    const QUEUE: &'static str = "mail";
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let producer = Producer::connect(&Config::from_env()?).await?;
    let job = SendEmail { to: "ada@example.org".into() };

    // Never earlier than said; at most 5 % and 0.1 s later, plus the time of its hops.
    let soon = PublishOptions::new().delay(Duration::from_secs(2));
    let receipt = producer.publish_with(&job, soon).await?;
    println!("job {} comes in {:?}", receipt.id, receipt.delay.unwrap_or_default());

    // At a point in time, and not at all if no worker gets to it within a day after that.
    let in_an_hour = SystemTime::now() + Duration::from_secs(3_600);
    let reminder = PublishOptions::new()
        .run_at(in_an_hour)
        .expires_at(in_an_hour + Duration::from_secs(24 * 3_600));
    let receipt = producer.publish_with(&job, reminder).await?;
    println!("job {} comes in 1h", receipt.id);

    producer.close().await;
    Ok(())
}
