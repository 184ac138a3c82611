//! Gathers jobs of one kind into batches, and runs each batch.
//! In: jobs that ask for a seat. Out: seats in batches that begin, and for every job that took its
//! seat the result that the function has for it.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use forebay_producer::link::after;
use futures_util::FutureExt;
use metrics::Histogram;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error, warn};

use super::BatchOptions;
use super::context::BatchContext;
use super::function::{self, Handed, Payload, Together};
use crate::context::Context;
use crate::error::{JobError, JobResult};
use crate::execute::App;
use crate::handler::{Handler, Output};
use crate::meter;

/// How long after its deadline a batch may still be there.
const LATE: Duration = Duration::from_secs(1);

/// A number for each batch of this process.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// Where the jobs of one kind on one queue become batches.
pub(crate) struct Gathering<S> {
    pub(super) handler: Arc<Handler<S>>,
    pub(super) together: Arc<Together<S>>,
    options: BatchOptions,
    /// The queue's.
    places: Arc<Semaphore>,
    sizes: Histogram,
    /// The batch that is filling.
    open: Mutex<Option<Arc<Batch<S>>>>,
}

/// One batch. A task of its own, its keeper, waits until it can begin and runs it.
struct Batch<S> {
    number: u64,
    opened: Instant,
    books: Mutex<Books<S>>,
    /// Wakes the keeper.
    changed: Notify,
    stage: watch::Sender<Stage>,
}

struct Books<S> {
    /// Seats of jobs that may yet hand in their payload.
    expected: usize,
    handed: Vec<(Handed<S>, oneshot::Sender<Answer>)>,
    /// Jobs that have, and wait for their result.
    waiting: usize,
    hurried: bool,
    /// Nobody runs what is handed in now.
    over: bool,
}

/// A result, or what the function panicked with, if that was text.
type Answer = Result<JobResult<Output>, Option<String>>;

#[derive(Clone)]
enum Stage {
    /// Its window is open.
    Filling,
    /// It could begin, but all places are taken.
    Queued,
    Begun(Begun),
    /// Its places are for others now, whoever may still hold a seat.
    Over,
}

/// What a batch's jobs are told when it begins.
#[derive(Clone)]
pub(super) struct Begun {
    pub(super) number: u64,
    pub(super) deadline: Instant,
    /// Returned when the last of them is settled and the function has ended.
    pub(super) places: Arc<Places>,
}

/// One of the handler's places, if it has a limit, and one of the queue's.
pub(crate) struct Places {
    _of_handler: Option<OwnedSemaphorePermit>,
    _of_queue: OwnedSemaphorePermit,
}

/// A job's seat in a batch. Dropping it leaves the batch.
pub(super) struct Seat<S> {
    batch: Arc<Batch<S>>,
    handed_in: bool,
}

/// One for each batch handler, by kind: jobs of any kind may come on any queue.
pub(crate) fn gatherings<S: Send + Sync + 'static>(
    app: &App<S>,
    queue: &str,
    places: &Arc<Semaphore>,
) -> HashMap<String, Arc<Gathering<S>>> {
    let batched = app.registry.iter().filter_map(|handler| {
        let options = handler.options.batch?;
        let gathering = Gathering::new(handler, options, queue, places)?;
        Some((handler.kind.clone(), Arc::new(gathering)))
    });
    batched.collect()
}

impl<S: Send + Sync + 'static> Gathering<S> {
    /// `None`: the handler takes jobs one by one.
    pub(crate) fn new(
        handler: &Arc<Handler<S>>,
        options: BatchOptions,
        queue: &str,
        places: &Arc<Semaphore>,
    ) -> Option<Self> {
        Some(Self {
            together: Arc::clone(handler.together.as_ref()?),
            handler: Arc::clone(handler),
            options,
            places: Arc::clone(places),
            sizes: meter::batch_sizes(queue, &handler.kind),
            open: Mutex::default(),
        })
    }

    /// Takes a seat in the batch that is filling, or opens one, whose keeper becomes one of `tasks`.
    pub(super) fn join(self: &Arc<Self>, tasks: &TaskTracker) -> Seat<S> {
        let mut open = locked(&self.open);
        let is_new = open.is_none();
        let batch = open.get_or_insert_with(|| Arc::new(Batch::new()));
        let (seat, full) = Batch::join(batch, self.options.size);
        if is_new {
            // Not before its first job is there: a keeper of nobody waits for another.
            tasks.spawn(Arc::clone(self).keep(Arc::clone(batch)));
        }
        if full {
            *open = None;
        }
        seat
    }

    /// Stays with a batch from its first job to its end. It ends early when all jobs have left.
    async fn keep(self: Arc<Self>, batch: Arc<Batch<S>>) {
        let places = loop {
            let places = self.places_for(&batch).await;
            // Under its lock: who asks for a seat now gets one in another batch.
            match (self.close(&batch), places) {
                (false, _) => return,
                (true, Some(places)) => break Arc::new(places),
                // All had left, and then one more came.
                (true, None) => {}
            }
        };
        let number = batch.number;
        let deadline = after(self.handler.options.timeout);
        let begun = Begun { number, deadline, places: Arc::clone(&places) };
        batch.stage.send_replace(Stage::Begun(begun));
        // Each job leaves at the deadline by itself, unless middleware has left its run to a task
        // that nobody ends. A place is not to be lost for that.
        let late = deadline.checked_add(LATE).unwrap_or(deadline);
        if time::timeout_at(late, self.run(&batch)).await.is_err() {
            warn!(kind = self.handler.kind, "a batch was ended: its jobs outlasted their timeout");
            batch.books().over = true;
            let without_a_result = std::mem::take(&mut batch.books().handed);
            drop(without_a_result);
        }
        // Not before the function has ended or was dropped.
        batch.stage.send_replace(Stage::Over);
        drop(places);
    }

    /// `None`: all jobs have left.
    async fn places_for(&self, batch: &Batch<S>) -> Option<Places> {
        while let Some(wait) = batch.wait(&self.options)? {
            // Both are cancel-safe, and what has changed is looked at again.
            _ = time::timeout(wait, batch.changed.notified()).await;
        }
        if let Some(places) = self.free_places() {
            return Some(places);
        }
        batch.stage.send_replace(Stage::Queued);
        tokio::select! {
            biased;
            // Cancel-safe: dropping the wait for permits gives back those that were granted.
            () = batch.until(|books| books.expected == 0) => None,
            places = self.next_places() => Some(places),
        }
    }

    fn free_places(&self) -> Option<Places> {
        let of_handler = match &self.handler.gate {
            Some(gate) => Some(Arc::clone(gate).try_acquire_owned().ok()?),
            None => None,
        };
        let of_queue = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Places { _of_handler: of_handler, _of_queue: of_queue })
    }

    async fn next_places(&self) -> Places {
        let closed = "the semaphore is never closed";
        let of_handler = match &self.handler.gate {
            Some(gate) => Some(Arc::clone(gate).acquire_owned().await.expect(closed)),
            None => None,
        };
        let of_queue = Arc::clone(&self.places).acquire_owned().await.expect(closed);
        Places { _of_handler: of_handler, _of_queue: of_queue }
    }

    /// Nobody joins any more. `false`: nobody is there.
    fn close(&self, batch: &Arc<Batch<S>>) -> bool {
        let mut open = locked(&self.open);
        if open.as_ref().is_some_and(|open| Arc::ptr_eq(open, batch)) {
            *open = None;
        }
        batch.books().expected > 0
    }

    /// Runs the function once, for as long as one of the jobs waits for it.
    async fn run(&self, batch: &Batch<S>) {
        // They come from the middleware.
        batch.until(|books| books.expected == 0).await;
        let handed = std::mem::take(&mut batch.books().handed);
        // Who was cancelled meanwhile is not run. A payload may panic when it is dropped.
        let (gone, waiting): (Vec<_>, Vec<_>) =
            handed.into_iter().partition(|(_, answer)| answer.is_closed());
        _ = catch_unwind(AssertUnwindSafe(|| drop(gone)));
        let (jobs, answers): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        let Some(any) = jobs.first().map(|handed| handed.cx.clone()) else { return };
        self.sizes.record(jobs.len() as f64);
        let span = function::span(batch.number, &jobs);
        let cancelled = CancellationToken::new();
        let _cancels = cancelled.clone().drop_guard();
        let cx = BatchContext::new(any, cancelled, span.clone());
        let call = AssertUnwindSafe(self.together.call(jobs, cx)).catch_unwind();
        let ended = tokio::select! {
            biased;
            // Each job has the same deadline, at which it leaves.
            () = batch.until(|books| books.waiting == 0) => return,
            ended = call.instrument(span) => ended,
        };
        tell(answers, ended);
    }
}

/// Gives each job its result.
fn tell(
    answers: Vec<oneshot::Sender<Answer>>,
    ended: Result<JobResult<Vec<JobResult<Output>>>, Box<dyn Any + Send>>,
) {
    let results = match ended {
        Ok(Ok(results)) => Ok(results.into_iter().map(Ok).collect::<Vec<Answer>>()),
        // It is written out, and its `Display` may panic.
        Ok(Err(error)) => catch_unwind(AssertUnwindSafe(|| {
            answers.iter().map(|_| Ok(Err(error.again()))).collect::<Vec<_>>()
        })),
        Err(panic) => Err(panic),
    };
    let results = results.unwrap_or_else(|panic| {
        let text = panic_text(panic.as_ref());
        answers.iter().map(|_| Err(text.clone())).collect()
    });
    for (answer, result) in answers.into_iter().zip(results) {
        // One that was cancelled no longer waits.
        answer.send(result).ok();
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> Option<String> {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
}

impl<S> Batch<S> {
    fn new() -> Self {
        let (hurried, over) = (false, false);
        let books = Books { expected: 0, handed: Vec::new(), waiting: 0, hurried, over };
        Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            opened: Instant::now(),
            books: Mutex::new(books),
            changed: Notify::new(),
            stage: watch::Sender::new(Stage::Filling),
        }
    }

    /// A seat, and whether it was the last.
    fn join(batch: &Arc<Self>, size: usize) -> (Seat<S>, bool) {
        let seat = Seat { batch: Arc::clone(batch), handed_in: false };
        let full = batch.change(|books| {
            books.expected += 1;
            let full = books.expected >= size;
            // Should one of them leave, nobody can take its seat.
            books.hurried |= full;
            full
        });
        (seat, full)
    }

    fn books(&self) -> MutexGuard<'_, Books<S>> {
        locked(&self.books)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Books<S>) -> T) -> T {
        let changed = change(&mut self.books());
        self.changed.notify_one();
        changed
    }

    /// How much longer its window is open: `Some(None)` not at all, `None` if nobody is there.
    fn wait(&self, options: &BatchOptions) -> Option<Option<Duration>> {
        let books = self.books();
        if books.expected == 0 {
            return None;
        }
        let wait = options.wait(books.expected, self.opened.elapsed(), books.hurried);
        Some((!wait.is_zero()).then_some(wait))
    }

    /// For the keeper alone, since one is woken.
    async fn until(&self, so: impl Fn(&Books<S>) -> bool) {
        while !so(&self.books()) {
            self.changed.notified().await;
        }
    }
}

impl<S: Send + Sync + 'static> Seat<S> {
    /// Waits until the batch begins; `None` when it cannot, and this job is to go back: with
    /// `hurry` the window ends, and what then waits for a place goes back.
    pub(super) async fn begun(&self, hurry: impl Future<Output = ()>) -> Option<Begun> {
        let mut stage = self.batch.stage.subscribe();
        tokio::select! {
            biased;
            begun = stage.wait_for(|stage| matches!(stage, Stage::Begun(_) | Stage::Over)) => {
                return begun.ok()?.begun();
            }
            () = hurry => {}
        }
        self.batch.change(|books| books.hurried = true);
        let decided = stage.wait_for(|stage| !matches!(stage, Stage::Filling)).await;
        decided.ok()?.begun()
    }

    /// Hands in the payload and waits for this job's result.
    ///
    /// # Errors
    /// What the function says of this job, or of the whole batch.
    ///
    /// # Panics
    /// When the function does.
    pub(super) async fn hand_in(mut self, payload: Payload, cx: Context<S>) -> JobResult<Output> {
        let (answer, answered) = oneshot::channel();
        self.handed_in = true;
        self.batch.change(|books| {
            books.expected -= 1;
            books.waiting += 1;
            if !books.over {
                books.handed.push((Handed { payload, cx }, answer));
            }
        });
        match answered.await {
            Ok(Ok(result)) => result,
            // Through the middleware, as if it were this job's own.
            Ok(Err(Some(text))) => resume_unwind(Box::new(text)),
            Ok(Err(None)) => resume_unwind(Box::new(())),
            Err(_) => {
                error!("a batch ended without a result for this job");
                Err(JobError::retry(anyhow!("the batch ended without a result for this job")))
            }
        }
    }
}

impl<S> Drop for Seat<S> {
    fn drop(&mut self) {
        let handed_in = self.handed_in;
        self.batch.change(|books| match handed_in {
            true => books.waiting -= 1,
            false => books.expected -= 1,
        });
    }
}

impl Stage {
    fn begun(&self) -> Option<Begun> {
        match self {
            Self::Begun(begun) => Some(begun.clone()),
            Self::Filling | Self::Queued | Self::Over => None,
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S> fmt::Debug for Gathering<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gathering").field("kind", &self.handler.kind).finish_non_exhaustive()
    }
}
