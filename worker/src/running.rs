//! Which jobs run at this moment.
//! In: runs as they begin and end. Out: a list for operators.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::context::{Context, Run};

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
    jobs: Mutex<HashMap<u64, Begun>>,
}

/// With the number of its batch, if it has one.
type Begun = (Instant, Arc<dyn Look>, Option<u64>);

/// A run of any worker's state.
trait Look: Send + Sync {
    fn look(&self, since: Duration, batch: Option<u64>) -> RunningJob;
}

impl<S: Send + Sync> Look for Run<S> {
    fn look(&self, since: Duration, batch: Option<u64>) -> RunningJob {
        RunningJob {
            id: self.envelope.id.clone(),
            kind: self.envelope.kind.clone().unwrap_or_default(),
            queue: self.envelope.queue.clone(),
            attempt: self.envelope.attempt,
            since,
            progress: self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            batch,
        }
    }
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
        let run = (Instant::now(), cx.run() as Arc<dyn Look>, batch);
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(number, run);
        Guard { running: Arc::clone(self), number }
    }

    pub(crate) fn list(&self) -> Vec<RunningJob> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut jobs: Vec<_> = jobs.iter().collect();
        jobs.sort_unstable_by_key(|(number, _)| **number);
        jobs.into_iter().map(|(_, (began, run, batch))| run.look(began.elapsed(), *batch)).collect()
    }
}

/// Ends a run in the list when dropped.
pub(crate) struct Guard {
    running: Arc<Running>,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut jobs = self.running.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = jobs.remove(&self.number);
        drop(jobs);
        // May be the last to hold the run, and what its handler left in it.
        drop(ended);
    }
}
