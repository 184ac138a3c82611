//! Where one run takes place: a broker, gateways that are processes of their own, paths that can be
//! cut, a worker, clients, and a folder for the logs.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use fastrand::Rng;
use forebay_producer::Config;
use forebay_producer::testing::{Broker, OwnBroker, Proxy, broker};
use tokio::process::{Child, Command};
use tokio::time::{self, Instant};

use crate::door::Door;
use crate::fault::Fault;
use crate::follower::{Client, Taste};
use crate::worker;

/// Longest that anything may take that is not the fault itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

pub(crate) struct Site {
    pub(crate) own: Option<Arc<OwnBroker>>,
    /// The namespace; deleted when this is dropped.
    broker: Broker,
    /// Between the gateways and the broker.
    pub(crate) broker_path: Proxy,
    /// Between the clients and the gateways, each in turn.
    pub(crate) clients_path: Proxy,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) clients: Vec<Client>,
    pub(crate) healed: Vec<Instant>,
    pub(crate) folder: PathBuf,
    pub(crate) http: reqwest::Client,
    worker: Option<Child>,
}

/// One gateway, at addresses that stay.
#[derive(Debug)]
pub(crate) struct Gateway {
    name: String,
    pub(crate) address: String,
    operation: String,
    process: Option<Child>,
}

impl Site {
    pub(crate) async fn open(
        fault: &Fault,
        own: Option<Arc<OwnBroker>>,
        folder: &Path,
        rng: &mut Rng,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let broker = match &own {
            Some(own) => own.broker(),
            None => broker().await,
        };
        let mut gateways = Vec::new();
        for n in 1..=fault.gateways {
            let [address, operation] = free_addresses();
            gateways.push(Gateway {
                name: format!("gateway-{n}"),
                address,
                operation,
                process: None,
            });
        }
        let targets: Vec<_> = gateways.iter().map(|gateway| gateway.address.as_str()).collect();
        let clients_path = Proxy::in_turn(&targets).await;
        let broker_path = Proxy::to(&broker.address()).await;
        // With a short window most of what was missed is read from the stream.
        let window = ["10m", "500ms"][rng.usize(..2)];
        fs::write(folder.join("gateway.toml"), settings(window, fault.slow))?;
        _ = rustls::crypto::ring::default_provider().install_default();
        let mut site = Self {
            own,
            broker,
            broker_path,
            clients_path,
            gateways,
            clients: Vec::new(),
            healed: Vec::new(),
            folder: folder.to_owned(),
            http: reqwest::Client::builder().build()?,
            worker: None,
        };
        for n in 0..site.gateways.len() {
            site.start(n).await?;
        }
        site.worker = Some(worker::hire(site.broker.url(), site.broker.namespace(), &site.folder)?);
        let address = match fault.behind_a_proxy {
            true => site.clients_path.address(),
            false => site.gateways[0].address.clone(),
        };
        for door in Door::ALL {
            for taste in Taste::ALL {
                site.clients.push(Client::start(&site.http, &address, door, taste));
            }
        }
        site.until("every client is answered", |site| site.clients.iter().all(Client::has_joined))
            .await?;
        Ok(site)
    }

    /// Straight to the broker, whatever happens to the proxies.
    pub(crate) fn config(&self) -> Config {
        self.broker.config()
    }

    /// The broker of this run alone.
    pub(crate) fn own(&self) -> anyhow::Result<&OwnBroker> {
        self.own.as_deref().context("the fault asks for a broker of its own")
    }

    /// A fault is over.
    pub(crate) fn healed(&mut self) {
        self.healed.push(Instant::now());
    }

    /// Waits a random time.
    pub(crate) async fn a_while(&self, rng: &mut Rng, ms: std::ops::Range<u64>) {
        time::sleep(Duration::from_millis(rng.u64(ms))).await;
    }

    pub(crate) async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let by = Instant::now() + PATIENCE;
        while !so(self) {
            ensure!(Instant::now() < by, "not within {PATIENCE:?}: {what}");
            time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Starts a gateway, and waits until it is ready for clients.
    pub(crate) async fn start(&mut self, n: usize) -> anyhow::Result<()> {
        let url = format!("{}?heartbeat=2", self.broker_path.url());
        let gateway = &mut self.gateways[n];
        let log = self.folder.join(format!("{}.log", gateway.name));
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay-gateway"));
        for name in ["AMQP_URL", "FOREBAY_NAMESPACE", "FOREBAY_GATEWAY_LISTEN", "RUST_LOG"] {
            command.env_remove(name);
        }
        command
            .args(["--listen", &gateway.address, "--operation", &gateway.operation])
            .args(["--url", &url, "--namespace", self.broker.namespace()])
            .args(["--log", "info,forebay_gateway=debug,forebay_producer=debug"])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        gateway.process = Some(command.spawn().context("starting a gateway")?);
        self.ready(n).await
    }

    /// Waits until a gateway says that it is.
    pub(crate) async fn ready(&self, n: usize) -> anyhow::Result<()> {
        let by = Instant::now() + PATIENCE;
        loop {
            let said = self.page(n, "readyz").await;
            if said.as_ref().is_ok_and(|said| said == "ready\n") {
                return Ok(());
            }
            ensure!(Instant::now() < by, "{} is not ready: {said:?}", self.gateways[n].name);
            time::sleep(LOOK).await;
        }
    }

    /// What a gateway says of itself.
    pub(crate) async fn page(&self, n: usize, page: &str) -> anyhow::Result<String> {
        let address = format!("http://{}/{page}", self.gateways[n].operation);
        Ok(self.http.get(address).send().await?.text().await?)
    }

    pub(crate) async fn kill(&mut self, n: usize) -> anyhow::Result<()> {
        let mut process = self.gateways[n].process.take().context("it runs")?;
        Ok(process.kill().await?)
    }

    /// Ends a gateway in good order.
    pub(crate) async fn terminate(&mut self, n: usize) -> anyhow::Result<()> {
        let mut process = self.gateways[n].process.take().context("it runs")?;
        let pid = process.id().context("it has ended already")?.to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().await?;
        ensure!(sent.success(), "kill -TERM {pid} failed");
        match time::timeout(PATIENCE, process.wait()).await {
            Ok(status) => ensure!(status?.success(), "the gateway did not end with 0"),
            Err(_) => bail!("the gateway did not end within {PATIENCE:?} of SIGTERM"),
        }
        Ok(())
    }

    /// The most memory that a gateway ever had, in MiB.
    pub(crate) fn most_memory(&self, n: usize) -> anyhow::Result<u64> {
        let pid = self.gateways[n].process.as_ref().and_then(Child::id).context("it runs")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("VmHWM is told")?;
        Ok(kib.trim().parse::<u64>()? / 1024)
    }

    /// No panic is in any log.
    pub(crate) fn panics(&self) -> anyhow::Result<Vec<String>> {
        let mut panics = Vec::new();
        for file in fs::read_dir(&self.folder)? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let text = fs::read_to_string(&path)?;
                panics.extend(
                    text.lines().find(|line| line.contains("panicked at")).map(str::to_owned),
                );
            }
        }
        Ok(panics)
    }
}

fn settings(window: &str, slow: Duration) -> String {
    let slow = slow.as_millis();
    format!(
        "grace = \"5s\"\n\
         [anonymous]\nread = [\"kind:*\", \"channel:*\"]\n\
         [limits]\nslow = \"{slow}ms\"\nconnections = 1000\n\
         requests_per_second = 1000.0\nrequests_burst = 1000\n\
         [replay]\nwindow = \"{window}\"\nwindow_bytes = \"8MiB\"\nreaders = 3\n"
    )
}

/// Below those that the system gives to clients: while a gateway is away its port stays free.
fn free_addresses<const N: usize>() -> [String; N] {
    let bind = || std::net::TcpListener::bind(("127.0.0.1", fastrand::u16(10_000..20_000)));
    let bound = [(); N].map(|()| {
        std::iter::repeat_with(bind).take(1_000).find_map(Result::ok).expect("a free port")
    });
    bound.map(|listener| listener.local_addr().expect("it is bound").to_string())
}
