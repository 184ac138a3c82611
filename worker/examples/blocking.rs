//! Work that blocks runs on threads of its own; it looks now and then whether it should stop.

use std::time::Duration;

use forebay_worker::{
    Config, Context, HandlerOptions, Job, JobResult, Producer, QueueOptions, Worker,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct CountPrimes {
    below: u32,
}

impl Job for CountPrimes {
    const KIND: &'static str = "primes.count";
}

#[expect(clippy::needless_pass_by_value, reason = "handlers own their job and context")]
fn count_primes(job: CountPrimes, cx: Context<()>) -> JobResult<usize> {
    let mut found: Vec<u32> = Vec::new();
    for n in 2..job.below {
        if n % 10_000 == 0 {
            cx.progress(format!("{n} of {}", job.below));
            if cx.is_cancelled() {
                return Err(anyhow::anyhow!("told to stop at {n}").into());
            }
        }
        if found.iter().take_while(|p| *p * *p <= n).all(|p| n % p != 0) {
            found.push(n);
        }
    }
    Ok(found.len())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::from_env()?;
    let worker = Worker::builder(())
        .queue("default", QueueOptions::new())
        .handle_blocking_with(HandlerOptions::new().timeout(Duration::from_secs(60)), count_primes)
        .build()?;
    let running = worker.start(&config);

    let producer = Producer::connect(&config).await?;
    let primes: usize =
        producer.call(&CountPrimes { below: 50_000 }, Duration::from_secs(60)).await?;
    println!("{primes} primes");

    running.controls().drain();
    println!("{}", running.finished().await?);
    Ok(())
}
