//! A job that kills its process, among good neighbours: it becomes a dead letter, they are done.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use forebay_producer::Inspector;
use forebay_worker::testing::broker;
use forebay_worker::{Config, Context, JobResult, Producer, QueueOptions, Worker};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time;

use crate::support::{Work, dead_of, work};

const KILLER: u64 = 100;
const JOBS: u64 = 200;

/// Not a test of its own: the worker process that the test below starts again and again.
#[tokio::test]
async fn child() {
    let (Ok(url), Ok(namespace)) =
        (std::env::var("FOREBAY_TEST_CHILD_URL"), std::env::var("FOREBAY_TEST_CHILD_NAMESPACE"))
    else {
        return;
    };
    async fn handler(job: Work, _cx: Context<()>) -> JobResult {
        time::sleep(Duration::from_millis(2)).await;
        if job.n == KILLER {
            std::process::abort();
        }
        println!("done {}", job.n);
        Ok(())
    }
    let config = Config::new(&url).unwrap().namespace(&namespace).unwrap();
    let worker = Worker::builder(())
        .consumer_timeout(Duration::from_secs(24 * 3600))
        .queue("default", QueueOptions::new().concurrency(8).prefetch(100))
        .handle(handler)
        .build()
        .unwrap();
    worker.run(&config, std::future::pending()).await.unwrap();
}

#[tokio::test]
async fn a_job_that_kills_its_process_takes_no_neighbour_with_it() {
    let broker = broker().await;
    broker.owns("default");
    let producer = Producer::new(&broker.config());
    for n in 0..JOBS {
        producer.publish(&work(n)).await.unwrap();
    }
    let mut done = BTreeSet::new();
    let live = async {
        loop {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["crash::child", "--exact", "--nocapture"])
                .env("FOREBAY_TEST_CHILD_URL", broker.url())
                .env("FOREBAY_TEST_CHILD_NAMESPACE", broker.namespace())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            loop {
                // When all is quiet, look whether the killer is dead at last.
                match time::timeout(Duration::from_secs(1), lines.next_line()).await {
                    Ok(Ok(Some(line))) => {
                        done.extend(line.split("done ").nth(1).and_then(|n| n.parse::<u64>().ok()));
                    }
                    Ok(_) => break,
                    Err(_) if is_over(&broker.config()).await => return,
                    Err(_) => {}
                }
            }
            child.wait().await.unwrap();
        }
    };
    time::timeout(Duration::from_secs(240), live).await.expect("it is over within four minutes");
    let letter = dead_of(&broker.config(), "default", 1).await.remove(0);
    assert_eq!(letter.reason, "crashed");
    assert_eq!(letter.envelope.payload, format!(r#"{{"n":{KILLER}}}"#));
    let expected: BTreeSet<_> = (0..JOBS).filter(|n| *n != KILLER).collect();
    assert_eq!(done, expected);
}

async fn is_over(config: &Config) -> bool {
    let inspector = Inspector::new(config);
    let dead = inspector.count(&config.topology().dead_queue("default")).await;
    inspector.close().await;
    matches!(dead, Ok(Some(count)) if count.ready > 0)
}
