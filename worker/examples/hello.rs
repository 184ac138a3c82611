//! One job: published, handled, acked. `AMQP_URL=amqp://… cargo run --example hello`

use forebay_worker::{Config, Context, Job, JobResult, Producer, QueueOptions, Worker};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Greet {
    name: String,
}

impl Job for Greet {
    const KIND: &'static str = "person.greet";
}

async fn greet(job: Greet, cx: Context<()>) -> JobResult<String> {
    Ok(format!("hello {}, said in attempt {}", job.name, cx.attempt()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::from_env()?;
    let worker = Worker::builder(()).queue("default", QueueOptions::new()).handle(greet).build()?;
    let running = worker.start(&config);

    let producer = Producer::connect(&config).await?;
    let job = Greet { name: "Ada".into() };
    // `publish` returns once the broker has the job; `call` also waits for the handler's result.
    let answer: String = producer.call(&job, std::time::Duration::from_secs(30)).await?;
    println!("{answer}");

    running.controls().drain();
    println!("{}", running.finished().await?);
    Ok(())
}
