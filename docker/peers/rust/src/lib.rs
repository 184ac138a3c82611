//! What the compiled programs have in common: the job, its tally, and how they are called.
//! In: `publish` or `work`, the environment. Out: how long publishing took; the tally's file.

use std::env;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

/// Deliveries that the broker hands out ahead, the same for every system that lets us say it.
pub const PREFETCH: u16 = 200;

/// Publishes that may wait for their confirm.
pub const WINDOW: usize = 1_000;

/// About 200 bytes of JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Work {
    pub n: u64,
    pub to: String,
    pub padding: String,
}

impl Work {
    #[must_use]
    pub fn new(n: u64) -> Self {
        Self { n, to: format!("user-{n}@example.org"), padding: "x".repeat(140) }
    }
}

/// What this program is asked to do.
pub enum Task {
    Publish { jobs: u64 },
    Work,
}

/// # Errors
/// When the command line or `PEERS_JOBS` makes no sense.
pub fn task() -> anyhow::Result<Task> {
    match env::args().nth(1).as_deref() {
        Some("publish") => Ok(Task::Publish { jobs: variable("PEERS_JOBS")?.parse()? }),
        Some("work") => Ok(Task::Work),
        _ => anyhow::bail!("usage: PROGRAM publish|work; docker/peers/run.sh calls it"),
    }
}

/// # Errors
/// When it is not set.
pub fn variable(name: &str) -> anyhow::Result<String> {
    env::var(name).with_context(|| format!("{name} is not set"))
}

/// Tells the script how long it took.
pub fn published(took: Duration) {
    println!("{{\"seconds\": {}}}", took.as_secs_f64());
}

/// Until the script says that it is enough.
pub async fn told_to_stop() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => _ = terminate.recv().await,
        Err(_) => std::future::pending().await,
    }
}

/// Jobs that ran, and the sum of their numbers: a job that ran twice does not hide one that did not.
#[derive(Debug, Default)]
pub struct Tally {
    count: AtomicU64,
    sum: AtomicU64,
}

impl Tally {
    /// A thread writes it to a file a hundred times a second, whatever the rate.
    ///
    /// # Errors
    /// When the file in folder `PEERS_TALLY` cannot be made.
    pub fn begin() -> anyhow::Result<&'static Self> {
        let tally: &'static Self = Box::leak(Box::default());
        let path = PathBuf::from(variable("PEERS_TALLY")?).join(process::id().to_string());
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        thread::spawn(move || {
            while tally.write(&file).is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        Ok(tally)
    }

    pub fn job(&self, work: &Work) {
        self.sum.fetch_add(work.n, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Release);
    }

    fn write(&self, file: &File) -> std::io::Result<()> {
        let mut record = [0; 16];
        // The count first: the sum has then at least what it counts.
        record[..8].copy_from_slice(&self.count.load(Ordering::Acquire).to_le_bytes());
        record[8..].copy_from_slice(&self.sum.load(Ordering::Relaxed).to_le_bytes());
        file.write_all_at(&record, 0)
    }
}
