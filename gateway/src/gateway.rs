//! A gateway: puts the parts together, and takes them apart in order.
//! In: settings. Out: doors that are open until told to close; then clients are told, and what they
//! had begun is finished.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use forebay_producer::{ConfigError, Producer};
use metrics_exporter_prometheus::PrometheusHandle;
use socketioxide::SocketIo;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::crowd::Crowd;
use crate::doors::Doors;
use crate::http;
use crate::hub::{Hub, HubOptions};
use crate::ingress::{Ingress, Rules};
use crate::limits::House;
use crate::operation;
use crate::server::{Server, bind};
use crate::settings::{Faults, Settings, address};
use crate::{socketio, tls};

/// What is still to be written when clients are told, before connections are closed.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Connections of those who ask for health and metrics.
const MOST_PAGES: usize = 64;

/// Why a gateway does not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The settings cannot be used.
    #[error("{0}")]
    Settings(Faults),
    /// The broker's settings cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address cannot be had.
    #[error("cannot listen at {address}: {source}; choose another address with {setting}")]
    Listen {
        /// The address.
        address: String,
        /// Where it is set.
        setting: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A gateway that has its addresses, and is about to serve.
#[derive(Debug)]
pub struct Gateway {
    doors: Arc<Doors>,
    producer: Producer,
    socketio: SocketIo,
    servers: Vec<Server>,
    address: SocketAddr,
    operation: Option<SocketAddr>,
    scrape: Option<PrometheusHandle>,
    grace: Duration,
    /// Ends the pages about ourselves, which go last.
    over: CancellationToken,
}

impl Gateway {
    /// Checks the settings, takes the addresses and begins to connect to the broker, which need not
    /// be there yet. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`OpenError`], with all that is wrong with the settings.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        settings.check().map_err(OpenError::Settings)?;
        let config = settings.config()?;
        let scrape = operation::install();
        let listener = listen(&settings.listen, "--listen, or listen in gateway.toml")?;
        let pages = match settings.operation.listen.as_str() {
            "off" => None,
            stated => Some(listen(stated, "--operation, or listen in [operation]")?),
        };
        let options = HubOptions::new()
            .window_age(settings.replay.window)
            .window_bytes(settings.replay.window_bytes)
            .readers(settings.replay.readers)
            .stall(settings.limits.slow);
        let (tasks, producer) = (TaskTracker::new(), Producer::new(&config));
        let doors = Arc::new(Doors {
            hub: Hub::open(&config, options),
            gate: settings.gate(&mut Vec::new()),
            house: House::new(settings.limits()),
            rules: Rules::new(&settings.publish),
            ingress: Ingress::new(producer.clone(), tasks.clone()),
            slow: settings.limits.slow,
            deadline: settings.publish.deadline,
            tasks,
            closing: CancellationToken::new(),
        });
        Self::assemble(settings, doors, producer, scrape, (listener, pages))
    }

    fn assemble(
        settings: &Settings,
        doors: Arc<Doors>,
        producer: Producer,
        scrape: Option<PrometheusHandle>,
        (listener, pages): ((TcpListener, SocketAddr), Option<(TcpListener, SocketAddr)>),
    ) -> Result<Self, OpenError> {
        let crowd = || Crowd::new(settings.max_connections, settings.per_address());
        let proxies = settings.proxies(&mut Vec::new());
        let (door, socketio) = socketio::open(&doors, crowd());
        let over = CancellationToken::new();
        let acceptor = settings.tls.as_ref().map(tls::acceptor).transpose();
        let acceptor = acceptor.map_err(|fault| OpenError::Settings(Faults(vec![fault])))?;
        let (listener, address) = listener;
        let mut servers = vec![Server {
            listener,
            tls: acceptor,
            routes: http::routes(&doors, door, settings),
            crowd: crowd(),
            proxies,
            slow: settings.limits.slow,
            tasks: doors.tasks.clone(),
            closing: doors.closing.clone(),
        }];
        let operation = pages.as_ref().map(|(_, address)| *address);
        if let Some((listener, _)) = pages {
            servers.push(Server {
                listener,
                tls: None,
                routes: operation::routes(Arc::clone(&doors), producer.clone(), scrape.clone()),
                crowd: Crowd::new(MOST_PAGES, MOST_PAGES),
                proxies: Vec::new(),
                slow: settings.limits.slow,
                tasks: TaskTracker::new(),
                closing: over.clone(),
            });
        }
        let grace = settings.grace;
        Ok(Self { doors, producer, socketio, servers, address, operation, scrape, grace, over })
    }

    /// Where clients come in.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it answers about itself, if it does.
    pub fn operation(&self) -> Option<SocketAddr> {
        self.operation
    }

    /// Serves until `shutdown`, then tells clients to connect again, lets begun requests finish
    /// within the grace period, and returns. `false`: some had to be cut off.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> bool {
        let Self { doors, producer, socketio, servers, scrape, grace, over, .. } = self;
        let serving = TaskTracker::new();
        for server in servers {
            serving.spawn(async move {
                if let Err(error) = server.run().await {
                    error!(%error, "no connection is taken any more");
                }
            });
        }
        if let Some(scrape) = scrape {
            let over = over.clone();
            serving.spawn(async move {
                _ = over.run_until_cancelled(operation::fold(&scrape)).await;
            });
        }
        let keeping = Arc::clone(&doors);
        let keys = over.clone();
        serving.spawn(async move {
            if let Some(known) = &keeping.gate.keys {
                keys.run_until_cancelled(known.keep()).await;
            }
        });
        info!(address = %self.address, "open for clients");
        shutdown.await;
        info!("closing: clients are told to connect again");
        let finished = close(&doors, &socketio, grace).await;
        doors.hub.close().await;
        producer.close().await;
        over.cancel();
        serving.close();
        _ = time::timeout(LAST_WORDS, serving.wait()).await;
        finished
    }
}

async fn close(doors: &Doors, socketio: &SocketIo, grace: Duration) -> bool {
    let by = Instant::now() + grace;
    doors.closing.cancel();
    doors.tasks.close();
    time::sleep(LAST_WORDS.min(grace)).await;
    // The transport is closed, not the name space: a stock client then connects again by itself.
    _ = time::timeout_at(by, socketio.close()).await;
    let finished = time::timeout_at(by, doors.tasks.wait()).await.is_ok();
    if !finished {
        warn!(left = doors.tasks.len(), "clients did not finish in time and are cut off");
    }
    finished
}

fn listen(stated: &str, setting: &'static str) -> Result<(TcpListener, SocketAddr), OpenError> {
    let failed = |source| OpenError::Listen { address: stated.to_owned(), setting, source };
    let address = address(stated)
        .ok_or_else(|| failed(io::Error::new(io::ErrorKind::InvalidInput, "no address")))?;
    let listener = bind(address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}
