//! One job of a batch, from its delivery to the verdict: what `intake` and `execute` do for a job
//! that runs by itself, with a seat in a batch in place of a permit.
//! In: a job of a kind whose handler takes batches. Out: it is settled, like any other.

use std::sync::Arc;

use bytes::Bytes;
use forebay_producer::Envelope;
use forebay_producer::link::after;
use forebay_producer::wire::envelope::now_ms;
use futures_util::FutureExt;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use super::gathering::{Begun, Gathering, Places, Seat};
use crate::builder::start_within;
use crate::context::{Context, LazyProducer};
use crate::execute::{App, Outcome};
use crate::handler::{Handler, Ready};
use crate::intake::Intake;
use crate::load::Here;
use crate::running::Running;
use crate::settle::Settlement;
use crate::telemetry;
use crate::verdict::{self, Verdict, Why};

/// How long a job may wait for its batch, and who runs the batch.
pub(crate) struct Wait<'a> {
    /// By then an open window is run, and what waits for a place goes back.
    pub(crate) start_by: Instant,
    /// The same, at once.
    pub(crate) giving_back: &'a CancellationToken,
    /// The delivery is not ours any more.
    pub(crate) stop: &'a CancellationToken,
    pub(crate) tasks: &'a TaskTracker,
}

/// What became of one job's part in a batch.
pub(crate) struct Ran<S> {
    pub(crate) outcome: Outcome,
    pub(crate) cx: Context<S>,
    /// `None`: the job was not in the batch when it began.
    pub(crate) began: Option<Instant>,
    /// The batch's, held until the job is settled.
    pub(crate) places: Option<Arc<Places>>,
}

impl<S: Send + Sync + 'static> Intake<S> {
    /// Takes a job to its batch, and settles it by what the batch says of it.
    pub(crate) async fn in_batch(
        &self,
        gathering: &Arc<Gathering<S>>,
        settlement: Settlement<'_>,
        job: Envelope,
        mut here: Here,
        span: &mut Span,
    ) {
        let generation = settlement.generation;
        let timeout = gathering.handler.options.timeout;
        let wait = Wait {
            start_by: after(start_within(self.consumer_timeout, timeout)),
            giving_back: &generation.giving_back,
            stop: &generation.stop,
            tasks: &generation.jobs,
        };
        if !self.turn(&wait).await {
            return self.settle(settlement, &job, Verdict::GiveBack, &mut here).await;
        }
        *span = telemetry::span(&job, self.producers.exchange());
        let work = async {
            let begins = |job: &Envelope| _ = self.begins(job, &mut here);
            let (producers, running) = (&self.producers, &self.running);
            let run = self.app.run_in_batch(gathering, job, &wait, producers, running, begins);
            let Ran { outcome, cx, began, places: _until_settled } = run.await;
            let job = cx.envelope();
            let verdict = verdict::decide(outcome, job, &self.facts(Some(&gathering.handler)));
            let ran =
                !matches!(verdict, Verdict::Duplicate(_) | Verdict::Again { why: Why::Waits, .. });
            if let Some(began) = began.filter(|_| ran) {
                self.meter.ran(job, began.elapsed());
            }
            self.settle(settlement, job, verdict, &mut here).await;
        };
        work.instrument(span.clone()).await;
    }

    /// Waits for the queue's rate, which counts jobs; `false` when the job is to go back instead.
    async fn turn(&self, wait: &Wait<'_>) -> bool {
        let Some(pace) = &self.pace else { return true };
        tokio::select! {
            biased;
            () = time::sleep_until(wait.start_by) => false,
            () = wait.giving_back.cancelled() => false,
            () = wait.stop.cancelled() => false,
            () = pace.turn() => true,
        }
    }
}

impl<S: Send + Sync + 'static> App<S> {
    /// Runs a job once, in a batch. What is wrong with it, and a claim that it cannot have, comes
    /// out before it takes a seat.
    pub(crate) async fn run_in_batch(
        &self,
        gathering: &Arc<Gathering<S>>,
        job: Envelope,
        wait: &Wait<'_>,
        producers: &Arc<LazyProducer>,
        running: &Arc<Running>,
        begins: impl FnOnce(&Envelope),
    ) -> Ran<S> {
        let handler = Some(&*gathering.handler);
        let namespace = producers.namespace();
        let context = |job: Envelope, deadline: Instant, stop: &CancellationToken| {
            let (state, producers) = (Arc::clone(&self.state), Arc::clone(producers));
            Context::new(state, job, deadline, stop.clone(), producers)
        };
        let not_run = |outcome, job: Envelope| {
            let cx = context(job, Instant::now(), wait.stop);
            Ran { outcome, cx, began: None, places: None }
        };
        let decode = |_: &Handler<S>, payload: &Bytes| gathering.together.decode(payload);
        let payload = match self.prepare(handler, namespace, &job, now_ms(), decode) {
            Ok(payload) => payload,
            Err(outcome) => return not_run(outcome, job),
        };
        let guard = match self.enter(handler, namespace, &job, wait.stop).await {
            Ok(guard) => guard,
            Err(outcome) => return not_run(outcome, job),
        };
        let stop = guard.as_ref().map_or(wait.stop, |guard| guard.stop()).clone();
        let seated = seat(gathering, wait, &stop).await;
        let (outcome, cx, begun) = match seated {
            None => (Outcome::Cancelled, context(job, Instant::now(), &stop), None),
            Some((seat, begun)) => {
                begins(&job);
                let began = Instant::now();
                let cx = context(job, begun.deadline, &stop);
                let _listed = running.begin_in_batch(&cx, begun.number);
                if let Some(guard) = &guard {
                    cx.put_claim(guard.number());
                }
                let timeout = gathering.handler.options.timeout;
                let outcome = if cx.envelope().expired(now_ms()) {
                    // While it waited. The others do not wait for it.
                    drop(seat);
                    Outcome::Expired
                } else {
                    let ready: Ready<S> = Box::new(|cx| seat.hand_in(payload, cx).boxed());
                    self.attempt(ready, &cx, timeout).await
                };
                (outcome, cx, Some((began, begun.places)))
            }
        };
        let outcome = match guard {
            Some(guard) => guard.leave(outcome, None).await,
            None => outcome,
        };
        let (began, places) = begun.unzip();
        Ran { outcome, cx, began, places }
    }
}

/// A seat in a batch that begins; `None` when the job is to go back instead.
async fn seat<S: Send + Sync + 'static>(
    gathering: &Arc<Gathering<S>>,
    wait: &Wait<'_>,
    stop: &CancellationToken,
) -> Option<(Seat<S>, Begun)> {
    if wait.giving_back.is_cancelled() || Instant::now() >= wait.start_by {
        return None;
    }
    let seat = gathering.join(wait.tasks);
    // A window that is open then is run; none is opened.
    let hurry = async {
        tokio::select! {
            () = wait.giving_back.cancelled() => {}
            () = time::sleep_until(wait.start_by) => {}
        }
    };
    let begun = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        begun = seat.begun(hurry) => begun,
    };
    begun.map(|begun| (seat, begun))
}
