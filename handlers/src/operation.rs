//! What `forebay-run` tells about itself: pages over HTTP, notices to the service manager.
//! In: an address, `NOTIFY_SOCKET`, a worker's controls. Out: answers from a thread of its own, so
//! that they come even while a handler hogs every other thread.

mod metrics;
mod notify;
mod pages;
pub(crate) mod probe;
pub(crate) mod process;
mod server;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use forebay_handlers::manifest::Listen;
use forebay_worker::Controls;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use self::notify::Notifier;

const REMEDY: &str = "choose another address with --listen, FOREBAY_LISTEN or `listen` in \
                      [worker], or --listen off";
/// How often what was measured is folded into the histograms.
const FOLD: Duration = Duration::from_secs(5);

/// What is ready to answer, before the worker begins.
pub(crate) struct Operation {
    site: Option<Site>,
    notifier: Option<Notifier>,
}

struct Site {
    listener: TcpListener,
    scrape: PrometheusHandle,
}

/// What the worker tells, and how long ago it was seen to turn.
#[derive(Clone)]
pub(crate) struct Pulse {
    pub(crate) controls: Controls,
    closing: Arc<AtomicBool>,
}

/// The answering thread.
pub(crate) struct Answering {
    closing: Arc<AtomicBool>,
    stop: oneshot::Sender<()>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Takes the address: the one that was stated, else the default one if it is free. From here on
/// what the libraries count is kept for `/metrics`.
///
/// # Errors
/// When the stated address cannot be had; with the reason and the remedy.
pub(crate) fn open(stated: Option<&Listen>) -> Result<Operation, String> {
    let default = Listen::default();
    let listener = match stated.unwrap_or(&default) {
        Listen::At(address) => match server::bind(address) {
            Ok(listener) => Some(listener),
            Err(error) if stated.is_some() => {
                return Err(format!("cannot listen at {address}: {error}; {REMEDY}"));
            }
            Err(error) => {
                let error = error.to_string();
                warn!(address, error, "no health checks and metrics from this worker; {REMEDY}");
                None
            }
        },
        _ => None,
    };
    let site = match listener {
        Some(listener) => {
            let scrape = metrics::install().map_err(|error| format!("no metrics: {error}"))?;
            Some(Site { listener, scrape })
        }
        None => None,
    };
    Ok(Operation { site, notifier: Notifier::from_environment() })
}

impl Pulse {
    /// No time at all while the programs of a worker that has ended are awaited.
    pub(crate) fn since_tick(&self) -> Duration {
        match self.closing.load(Ordering::Relaxed) {
            true => Duration::ZERO,
            false => self.controls.since_tick(),
        }
    }
}

impl Operation {
    /// Answers until told to end.
    pub(crate) fn begin(self, controls: Controls) -> Answering {
        let (stop, stopped) = oneshot::channel();
        let closing = Arc::<AtomicBool>::default();
        let idle = self.site.is_none() && self.notifier.is_none();
        let thread = (!idle).then(|| {
            let name = thread::Builder::new().name("forebay pages".to_owned());
            let pulse = Pulse { controls, closing: Arc::clone(&closing) };
            name.spawn(move || answer(self, &pulse, stopped))
        });
        let thread = thread.transpose().unwrap_or_else(|error| {
            error!(%error, "no thread for health checks and metrics");
            None
        });
        Answering { closing, stop, thread }
    }
}

impl Answering {
    /// The worker has ended, and its clock with it; its programs have a few seconds left.
    pub(crate) fn closing(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Ends the thread, after a last word to the service manager.
    pub(crate) fn end(self) {
        drop(self.stop);
        if let Some(thread) = self.thread
            && thread.join().is_err()
        {
            error!("the thread for health checks and metrics panicked");
        }
    }
}

fn answer(operation: Operation, pulse: &Pulse, stopped: oneshot::Receiver<()>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return error!(%error, "no health checks and metrics"),
    };
    let Operation { site, notifier } = operation;
    runtime.block_on(async {
        tokio::select! {
            // The others never end; what is cut off here is an answer that nobody will miss.
            _ = stopped => {}
            () = pages(site, pulse.clone()) => {}
            () = notify::keep(notifier.as_ref(), pulse) => {}
        }
    });
    if let Some(notifier) = &notifier {
        notifier.stopping();
    }
}

async fn pages(site: Option<Site>, pulse: Pulse) {
    let Some(Site { listener, scrape }) = site else { return std::future::pending().await };
    say_where(&listener);
    let fold = scrape.clone();
    let folding = async {
        loop {
            tokio::time::sleep(FOLD).await;
            fold.run_upkeep();
        }
    };
    tokio::select! {
        // Neither ends.
        () = server::serve(listener, server::Site { pulse, scrape }) => {}
        () = folding => {}
    }
}

fn say_where(listener: &TcpListener) {
    let Ok(address) = listener.local_addr() else { return };
    info!(%address, "answering /livez, /readyz, /metrics and /scale");
    if !address.ip().is_loopback() {
        info!(%address, "whoever reaches this address may read these pages; they have no password");
    }
}
