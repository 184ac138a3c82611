//! Which jobs run at this moment.
//! In: runs as they begin and end. Out: a list for operators.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::context::Context;

/// A job that runs now.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RunningJob {
    /// Job id.
    pub id: String,
    /// Kind.
    pub kind: String,
    /// Queue.
    pub queue: String,
    /// Attempt.
    pub attempt: u32,
    /// How long it has been running.
    pub since: Duration,
    /// The newest progress that its handler noted.
    pub progress: Option<Value>,
    /// The number of the batch that it runs in: jobs with the same one run together. `None` for a
    /// job that runs by itself.
    pub batch: Option<u64>,
}

/// All jobs that run, by the order in which they began.
#[derive(Default)]
pub(crate) struct Running {
    begun: AtomicU64,
    jobs: Mutex<BTreeMap<u64, Box<dyn Fn() -> RunningJob + Send>>>,
}

impl Running {
    /// Notes a run; it ends when the guard is dropped.
    pub(crate) fn begin<S: Send + Sync + 'static>(self: &Arc<Self>, cx: &Context<S>) -> Guard {
        self.note(cx, None)
    }

    /// Notes a run in a batch.
    pub(crate) fn begin_in_batch<S: Send + Sync + 'static>(
        self: &Arc<Self>,
        cx: &Context<S>,
        batch: u64,
    ) -> Guard {
        self.note(cx, Some(batch))
    }

    fn note<S: Send + Sync + 'static>(
        self: &Arc<Self>,
        cx: &Context<S>,
        batch: Option<u64>,
    ) -> Guard {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let (cx, began) = (cx.clone(), Instant::now());
        let look = Box::new(move || RunningJob {
            id: cx.id().to_owned(),
            kind: cx.kind().to_owned(),
            queue: cx.queue().to_owned(),
            attempt: cx.attempt(),
            since: began.elapsed(),
            progress: cx.last_progress(),
            batch,
        });
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(number, look);
        Guard { running: Arc::clone(self), number }
    }

    pub(crate) fn list(&self) -> Vec<RunningJob> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.values().map(|look| look()).collect()
    }
}

/// Ends a run in the list when dropped.
pub(crate) struct Guard {
    running: Arc<Running>,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.running.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}
