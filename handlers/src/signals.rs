//! What signals do to the worker.
//! In: TERM, INT, USR1. Out: calls on its controls, and log lines about what is awaited.

use std::io;
use std::time::Duration;

use forebay_handlers::{Server, ServerStatus};
use forebay_worker::Controls;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

/// The worker's own default, if the manifest says nothing.
const GRACE: Duration = Duration::from_secs(25);

/// The same signal within so short a time counts as one: `timeout` tells the process and its group.
const ECHO: Duration = Duration::from_millis(500);

/// What was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Jobs,
    /// Told to end at once while no job ran.
    Nothing,
}

/// Signals are kept from the moment this exists.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    inspect: Signal,
}

impl Signals {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            inspect: signal(SignalKind::user_defined1())?,
        })
    }

    /// Obeys until the worker has to end at once, by a second signal or because the grace period is
    /// over.
    pub(crate) async fn obey(
        &mut self,
        controls: &Controls,
        servers: &[Server],
        grace: Option<Duration>,
    ) -> Cut {
        let signal = self.next(controls, servers).await;
        let began = Instant::now();
        info!(signal, running = controls.running().len(), "draining; another signal ends at once");
        list(controls, servers);
        controls.drain();
        let end = Instant::now() + grace.unwrap_or(GRACE);
        tokio::select! {
            // Cancel-safe: a signal that has come is seen by the next call.
            signal = self.another(signal, began, controls, servers) => {
                let running = controls.running().len();
                warn!(signal, running, "ending at once");
                list(controls, servers);
                controls.force();
                // Shells and supervisors like to send the same signal twice.
                if running > 0 { Cut::Jobs } else { Cut::Nothing }
            }
            // Cancel-safe, a clock. The worker ends sooner unless something still runs.
            () = sleep_until(end) => Cut::Jobs,
        }
    }

    /// The next signal to end that is no echo of the first.
    async fn another(
        &mut self,
        first: &str,
        began: Instant,
        controls: &Controls,
        servers: &[Server],
    ) -> &'static str {
        loop {
            let signal = self.next(controls, servers).await;
            if signal != first || began.elapsed() >= ECHO {
                return signal;
            }
        }
    }

    /// Waits for a signal to end, when the worker has ended and its programs have not.
    pub(crate) async fn hurry(&mut self, controls: &Controls, servers: &[Server]) {
        let signal = self.next(controls, servers).await;
        warn!(signal, "ending at once; programs are killed");
    }

    /// The next signal to end; on the way, USR1 is answered.
    async fn next(&mut self, controls: &Controls, servers: &[Server]) -> &'static str {
        loop {
            tokio::select! {
                // All three are cancel-safe.
                _ = self.terminate.recv() => return "TERM",
                _ = self.interrupt.recv() => return "INT",
                _ = self.inspect.recv() => list(controls, servers),
            }
        }
    }
}

/// One line for every queue, every server and every running job.
fn list(controls: &Controls, servers: &[Server]) {
    for queue in controls.queues() {
        let because = queue.because.as_deref().unwrap_or_default();
        let (losses, last_loss) = (queue.losses, queue.last_loss.as_deref().unwrap_or_default());
        let consuming = queue.consuming;
        info!(queue = queue.queue, consuming, because, losses, last_loss, "queue");
    }
    for server in servers {
        let ServerStatus { name, ready, processes, running, waiting, trouble, .. } =
            server.status();
        let trouble = trouble.unwrap_or_default();
        info!(server = name, ready, processes, running, waiting, trouble, "server");
    }
    for job in controls.running() {
        let since_ms = u64::try_from(job.since.as_millis()).unwrap_or(u64::MAX);
        let progress = job.progress.map(|progress| progress.to_string()).unwrap_or_default();
        info!(
            job.id,
            job.kind,
            queue = job.queue,
            attempt = job.attempt,
            since_ms,
            progress,
            batch = job.batch,
            "running"
        );
    }
}
