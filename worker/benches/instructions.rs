//! Runs a number of no-op jobs through the worker's rooms, without a broker, and says nothing:
//! `docker/instructions.sh` counts the instructions of two numbers of them and divides.

use forebay_worker::testing::workbench::{Workbench, delivery};
use forebay_worker::{Context, Envelope, Job, JobResult, QueueOptions, Worker};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Nothing {
    n: u64,
    padding: String,
}

impl Job for Nothing {
    const KIND: &'static str = "bench.nothing";
}

async fn nothing(job: Nothing, _cx: Context<()>) -> JobResult {
    std::hint::black_box(job.n);
    Ok(())
}

fn main() {
    let jobs = std::env::args().filter_map(|argument| argument.parse::<u64>().ok()).next_back();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let worker = Worker::builder(()).queue("default", QueueOptions::new()).handle(nothing);
    let worker = worker.build().expect("a worker without faults");
    let payload = format!("{{\"n\":7,\"padding\":\"{}\"}}", "x".repeat(170));
    let job = Envelope::new(Nothing::KIND, "default", payload);
    let mut bench = Workbench::new(&worker, "default");
    runtime.expect("a runtime").block_on(async {
        for tag in 1..=jobs.unwrap_or(1_000) {
            assert!(bench.work(delivery(&job, tag)).await);
        }
    });
}
