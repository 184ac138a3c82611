//! One run under a claim: claim, heartbeat, then complete or release.
//! In: a job's envelope and what became of its run. Out: what that means for the job.

use std::time::Duration;

use bytes::Bytes;
use forebay_producer::Envelope;
use forebay_producer::link::after;
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument, Span, error, info, warn};

use super::Idempotency;
use super::store::{Claim, Key, StoreError};
use crate::error::JobError;
use crate::execute::Outcome;
use crate::handler::Output;

/// Longest that one call to a store may take.
const ANSWER: Duration = Duration::from_secs(5);
/// Between two tries to reach the store.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a job is put off when the store has not answered for as long as it may wait.
const STORE_DOWN: Duration = Duration::from_secs(10);
/// Soonest that a held claim is looked at again.
const SOONEST: Duration = Duration::from_millis(100);

/// A claim that is ours, kept alive by a task of its own: the handler may hog its thread.
pub(crate) struct Guard {
    rules: Idempotency,
    key: Key,
    number: u64,
    stop: CancellationToken,
    /// Another run has the claim, or may have it.
    lost: CancellationToken,
    /// Ends the heartbeat, also where this is dropped by somebody's panic: then the lease passes.
    over: DropGuard,
    heartbeat: JoinHandle<()>,
}

impl Guard {
    /// Claims the job's key. `Ok(None)`: the job runs without a claim.
    ///
    /// # Errors
    /// What becomes of a job that is not to run now. `cancelled` ends the wait for a store.
    pub(crate) async fn enter(
        rules: &Idempotency,
        namespace: &str,
        job: &Envelope,
        cancelled: &CancellationToken,
    ) -> Result<Option<Self>, Outcome> {
        let key = match rules.key(namespace, job) {
            None => return Ok(None),
            Some(Ok(key)) => key,
            Some(Err(why)) => return Err(Outcome::Failed(JobError::reject(anyhow::anyhow!(why)))),
        };
        // Dropping a claim halfway may leave one behind: its lease passes.
        match cancelled.run_until_cancelled(claim(rules, &key, job)).await {
            None => Err(Outcome::Cancelled),
            Some(Claimed::Ours { number, asked_at }) => {
                Ok(Some(Self::begin(rules.clone(), key, number, asked_at, cancelled)))
            }
            Some(Claimed::Unprotected) => Ok(None),
            Some(Claimed::NotNow(wait)) => Err(Outcome::Waits(wait)),
            Some(Claimed::Completed(result)) => {
                let id = job.id.as_str();
                let kind = job.kind.as_deref().unwrap_or("-");
                let answered = result.is_some();
                info!(
                    job.id = id,
                    job.kind = kind,
                    attempt = job.attempt,
                    answered,
                    "a job with this key is done already; this one is acked without a run"
                );
                Err(Outcome::Duplicate(result.map(Output::from_json)))
            }
        }
    }

    fn begin(
        rules: Idempotency,
        key: Key,
        number: u64,
        asked_at: Instant,
        cancelled: &CancellationToken,
    ) -> Self {
        let (lost, over) = (CancellationToken::new(), CancellationToken::new());
        let stop = cancelled.child_token();
        let beat = Heartbeat {
            rules: rules.clone(),
            key: key.clone(),
            number,
            stop: stop.clone(),
            lost: lost.clone(),
            over: over.clone(),
        };
        let beat = beat.run(asked_at).instrument(Span::current());
        let over = over.drop_guard();
        Self { rules, key, number, stop, lost, over, heartbeat: tokio::spawn(beat) }
    }

    /// The claim number.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// What stops the handler: that its run is cancelled, or that the claim may be another's.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Completes or releases, by what became of the run. `thread_ended` is there when the run left
    /// a thread behind that cannot be stopped: then the claim is kept until that has ended.
    pub(crate) async fn leave(
        self,
        outcome: Outcome,
        thread_ended: Option<CancellationToken>,
    ) -> Outcome {
        match outcome {
            Outcome::Done(output) => self.complete(output).await,
            // Not by a verdict on the job: another run has taken over, or may have.
            Outcome::Cancelled if self.lost.is_cancelled() => Outcome::Waits(self.rules.recheck),
            other => {
                match thread_ended {
                    None => self.release().await,
                    // Nobody waits for this task: when the process ends first, the lease passes.
                    Some(ended) => {
                        _ = tokio::spawn(async move {
                            ended.cancelled().await;
                            self.release().await;
                        })
                    }
                }
                other
            }
        }
    }

    /// The work is done: the mark is worth some patience, even when the run was cancelled since.
    async fn complete(self, output: Output) -> Outcome {
        let json = output.json().cloned().unwrap_or_else(|| Bytes::from_static(b"null"));
        let size = json.len();
        let kept = (size <= self.rules.max_result).then_some(json);
        if kept.is_none() {
            let most = self.rules.max_result;
            warn!(size, most, "the result is too large to be kept for duplicates");
        }
        let give_up_at = after(self.rules.patience);
        let mut pause = FIRST_PAUSE;
        let completed = loop {
            let (key, keep) = (&self.key, self.rules.keep);
            let asked = self.rules.store.complete(key, self.number, kept.as_ref(), keep);
            match answered(asked).await {
                Ok(completed) => break completed,
                Err(error) if Instant::now() + pause >= give_up_at => {
                    error!(key = %self.key, %error,
                        "the job is done but could not be marked so; a duplicate will run again");
                    break true;
                }
                Err(error) => {
                    warn!(key = %self.key, %error, "marking the job as done is tried again");
                    time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        };
        let number = self.number;
        self.end_heartbeat().await;
        if completed {
            return Outcome::Done(output);
        }
        warn!(claim = number, "another run has taken this job over; this result is dropped");
        Outcome::Waits(SOONEST)
    }

    async fn release(self) {
        let (rules, key, number) = (self.rules.clone(), self.key.clone(), self.number);
        // Before the release: a renewal on its way would write the claim again.
        self.end_heartbeat().await;
        if let Err(error) = answered(rules.store.release(&key, number)).await {
            warn!(%key, %error, "the claim could not be released; it ends with its lease");
        }
    }

    async fn end_heartbeat(self) {
        drop(self.over);
        // At most as long as one call may take. A panic in a store ends its heartbeat only.
        _ = self.heartbeat.await;
    }
}

enum Claimed {
    Ours { number: u64, asked_at: Instant },
    Unprotected,
    NotNow(Duration),
    Completed(Option<Bytes>),
}

/// Claims a key, however long the store takes to answer: up to the patience, with the job's place
/// held meanwhile, which is back-pressure.
async fn claim(rules: &Idempotency, key: &Key, job: &Envelope) -> Claimed {
    let give_up_at = after(rules.patience);
    let kind = job.kind.as_deref().unwrap_or("-");
    let mut pause = FIRST_PAUSE;
    loop {
        let asked_at = Instant::now();
        let error = match answered(rules.store.claim(key, rules.lease)).await {
            Ok(Claim::Granted { number }) => return Claimed::Ours { number, asked_at },
            Ok(Claim::Held { expires_in }) => {
                return Claimed::NotNow(rules.recheck.min(expires_in).max(SOONEST));
            }
            Ok(Claim::Completed { result }) => return Claimed::Completed(result),
            Err(error) => error,
        };
        if rules.fail_open {
            warn!(job.id, job.kind = kind, %error, "running without protection from duplicates");
            return Claimed::Unprotected;
        }
        if Instant::now() + pause >= give_up_at {
            warn!(job.id, job.kind = kind, %error, "not run without a claim; put off");
            return Claimed::NotNow(STORE_DOWN);
        }
        if pause == FIRST_PAUSE {
            warn!(job.id, job.kind = kind, %error, "not run without a claim; waiting for the store");
        }
        time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn answered<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let timed = time::timeout(ANSWER, call).await;
    timed.unwrap_or_else(|_| Err(StoreError::because("no answer within 5 s")))
}

/// Renews a claim at a third of its lease.
struct Heartbeat {
    rules: Idempotency,
    key: Key,
    number: u64,
    stop: CancellationToken,
    lost: CancellationToken,
    over: CancellationToken,
}

impl Heartbeat {
    fn lose(&self) {
        self.lost.cancel();
        self.stop.cancel();
    }

    async fn run(self, claimed_at: Instant) {
        let lease = self.rules.lease;
        // By our clock, from before we asked: the store's lease cannot end sooner.
        let mut sure_until = claimed_at + lease;
        let mut pause = lease / 3;
        // Only between two renewals: one that is under way is waited for.
        while self.over.run_until_cancelled(time::sleep(pause)).await.is_some() {
            let asked_at = Instant::now();
            let renewal = answered(self.rules.store.renew(&self.key, self.number, lease));
            let renewed = match time::timeout_at(sure_until.max(asked_at), renewal).await {
                Ok(renewed) => renewed,
                Err(_) => Err(StoreError::because("no answer before the lease was over")),
            };
            match renewed {
                Ok(true) => (sure_until, pause) = (asked_at + lease, lease / 3),
                Ok(false) => {
                    warn!(key = %self.key, claim = self.number,
                        "another run has taken this job over; this one is stopped");
                    return self.lose();
                }
                Err(error) if Instant::now() >= sure_until && !self.rules.fail_open => {
                    warn!(key = %self.key, claim = self.number, %error,
                        "the lease is over and could not be renewed; the run is stopped");
                    return self.lose();
                }
                Err(error) => {
                    warn!(key = %self.key, claim = self.number, %error, "renewal is tried again");
                    pause = lease / 10;
                }
            }
        }
    }
}
