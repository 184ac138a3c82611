//! How many allocations a job may cost beyond those of the client library.

use forebay_worker::testing::workbench::{Workbench, delivery};
use forebay_worker::{Context, Envelope, Job, JobResult, QueueOptions, Worker};
use serde::{Deserialize, Serialize};

/// For one no-op job, from the delivery that the client library hands over to the noted ack. Its task
/// is one more.
const JOB: u64 = 11;

#[derive(Serialize, Deserialize)]
struct Nothing {
    n: u64,
}

impl Job for Nothing {
    const KIND: &'static str = "bench.nothing";
}

async fn nothing(job: Nothing, _cx: Context<()>) -> JobResult {
    std::hint::black_box(job.n);
    Ok(())
}

#[test]
fn a_job_that_does_nothing_stays_within_its_budget() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let worker = Worker::builder(()).queue("default", QueueOptions::new()).handle(nothing);
    let worker = worker.build().unwrap();
    let job = Envelope::new(Nothing::KIND, "default", "{\"n\":7}");
    let mut bench = Workbench::new(&worker, "default");
    let mut tag = 0;
    let mut round = || {
        tag += 1;
        let delivery = delivery(&job, tag);
        let counted = allocation_counter::measure(|| {
            assert!(runtime.block_on(bench.work(delivery)));
        });
        counted.count_total
    };
    // What is made once and kept is made by then.
    (0..256).for_each(|_| _ = round());
    let rounds: Vec<u64> = (0..64).map(|_| round()).collect();
    let most = rounds.iter().max().unwrap();
    println!("allocations for one job: {most}, budget {JOB}");
    assert!(*most <= JOB, "{most} allocations, {JOB} are the budget: {rounds:?}");
}
