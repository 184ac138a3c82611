//! What a job costs the worker without a broker:
//! `cargo bench -p forebay-worker --features testing --bench job`.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use forebay_worker::testing::workbench::{Workbench, acknowledge, delivery};
use forebay_worker::{Context, Envelope, Job, JobError, JobResult, QueueOptions, Worker};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Text {
    n: u64,
    padding: String,
}

impl Job for Text {
    const KIND: &'static str = "bench.text";
}

async fn succeed(job: Text, _cx: Context<()>) -> JobResult {
    black_box((job.n, job.padding));
    Ok(())
}

async fn fail(_job: Text, _cx: Context<()>) -> JobResult {
    Err(JobError::retry(std::io::Error::other("no")))
}

fn rooms(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let payload = format!("{{\"n\":7,\"padding\":\"{}\"}}", "x".repeat(170));
    let job = Envelope::new(Text::KIND, "default", payload);
    let queue = || Worker::builder(()).queue("default", QueueOptions::new());
    for (name, worker) in [("acked", queue().handle(succeed)), ("retried", queue().handle(fail))] {
        let worker = worker.build().expect("a worker without faults");
        let mut bench = Workbench::new(&worker, "default");
        let mut tags = 1..;
        criterion.bench_function(&format!("job/{name}"), |criterion| {
            criterion.iter_batched(
                || delivery(&job, tags.next().expect("without end")),
                |delivery| runtime.block_on(bench.work(delivery)),
                BatchSize::SmallInput,
            );
        });
    }
}

fn acker(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("acker");
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("1,000 tags, a slow one in ten", |bench| {
        bench.iter(|| acknowledge(black_box(1_000)));
    });
    group.finish();
}

criterion_group!(benches, rooms, acker);
criterion_main!(benches);
