//! Publishes one job and returns once the broker has routed and stored it.
//!
//! ```text
//! AMQP_URL=amqp://guest:guest@localhost/%2f cargo run --example publish
//! ```

use forebay_producer::{Config, Job, Producer};
use serde::{Deserialize, Serialize};

/// The payload; it travels as JSON: `{"to":"ada@example.org"}`.
#[derive(Serialize, Deserialize)]
struct SendEmail {
    to: String,
}

/// All that sender and worker have to agree on.
impl Job for SendEmail {
    const KIND: &'static str = "email.send";
    const QUEUE: &'static str = "mail";
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Where the broker is: AMQP_URL, or localhost. Wrong credentials are told here.
    let producer = Producer::connect(&Config::from_env()?).await?;

    // The queue is declared if it is not there. An error says what became of the job and what to
    // do: not routed, refused, too large, or not confirmed in time.
    let receipt = producer.publish(&SendEmail { to: "ada@example.org".into() }).await?;
    println!("job {} is on queue {}", receipt.id, receipt.queue);

    producer.close().await;
    Ok(())
}
