//! The worker process: this test binary, started again.
//! In: where the broker is, in one environment variable. Out: jobs that are run, and tell a channel.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use anyhow::Context as _;
use forebay_producer::Config;
use forebay_worker::{Context, HandlerOptions, Job, JobResult, QueueOptions, Worker};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::workload::{KIND, WORKER};

/// The variable that makes a process of this binary a worker: namespace, then URL.
const ASKED: &str = "FOREBAY_FAULTS_WORKER";

#[derive(Debug, Serialize, Deserialize)]
struct Step {
    n: u64,
}

impl Job for Step {
    const KIND: &'static str = KIND;
}

/// Starts one.
pub(crate) fn hire(url: &str, namespace: &str, folder: &Path) -> anyhow::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(["worker::child", "--exact", "--nocapture"])
        .env(ASKED, format!("{namespace} {url}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(folder.join("worker.log"))?)
        .kill_on_drop(true)
        .spawn()
        .context("starting the worker")
}

/// Not a test of its own: what the worker's process runs.
#[tokio::test]
async fn child() {
    let Ok(asked) = std::env::var(ASKED) else { return };
    let (namespace, url) = asked.split_once(' ').unwrap();
    let config = Config::new(url).unwrap().namespace(namespace).unwrap();
    let worker = Worker::builder(())
        .queue("default", QueueOptions::new())
        .handle_with(HandlerOptions::new(), step);
    worker.build().unwrap().start(&config).finished().await.unwrap();
}

async fn step(job: Step, cx: Context<()>) -> JobResult {
    cx.emit(WORKER, "tick", &json!({ "n": job.n })).await?;
    Ok(())
}
