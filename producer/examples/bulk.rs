//! Publishes a stream of jobs with confirms, up to a thousand at a time, and says which failed.
//!
//! ```text
//! AMQP_URL=amqp://guest:guest@localhost/%2f cargo run --release --example bulk
//! ```

use forebay_producer::{Config, Job, Producer};
use futures_util::stream;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct MakeThumbnail {
    picture: u64,
}

impl Job for MakeThumbnail {
    const KIND: &'static str = "thumbnail.make";
    const QUEUE: &'static str = "thumbnails";
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let producer = Producer::connect(&Config::from_env()?).await?;

    // Any stream will do: rows of a database, lines of a file. It is read no faster than the
    // broker confirms.
    let jobs = stream::iter((0..10_000).map(|picture| MakeThumbnail { picture }));
    match producer.publish_all(jobs).await {
        Ok(confirmed) => println!("{confirmed} jobs confirmed"),
        Err(error) => {
            // Places count from 0. Publish the failed ones again, then go on at `stopped_at`.
            for (place, why) in &error.failures {
                eprintln!("job {place}: {why}");
            }
            return Err(error.into());
        }
    }

    producer.close().await;
    Ok(())
}
