//! Where one run takes place: a broker, a namespace on it, proxies in front of it, worker processes
//! and a folder with their records and logs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use fastrand::Rng;
use forebay_producer::link::connection::Link;
use forebay_producer::{Inspector, Producer, Topology};
use forebay_worker::Config;
use forebay_worker::testing::{Broker, Cluster, OwnBroker, Proxy};
use lapin::Channel;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{self, Instant};

use crate::child::{ASKED, Asked, Role};
use crate::record::{Entry, Event, Reader, Recorder};
use crate::workload::Plan;

/// Longest that anything may take that is not the fault itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// The broker of one run alone.
#[derive(Clone)]
pub(crate) enum Place {
    Shared,
    Own(Arc<OwnBroker>),
    Cluster(Arc<Cluster>),
}

pub(crate) struct Site {
    place: Place,
    /// The namespace; deleted when this is dropped.
    broker: Broker,
    /// Between the workers and the broker.
    pub(crate) workers_path: Proxy,
    /// Between the publishers and the broker.
    pub(crate) publishers_path: Proxy,
    pub(crate) record: Recorder,
    pub(crate) folder: PathBuf,
    pub(crate) plan: Plan,
    pub(crate) crew: Vec<Member>,
    hired: u32,
    user: Option<String>,
    pub(crate) published: watch::Receiver<bool>,
}

/// One worker process.
pub(crate) struct Member {
    pub(crate) who: String,
    pub(crate) process: Child,
}

impl Site {
    pub(crate) async fn open(
        place: Place,
        plan: Plan,
        folder: &Path,
        published: watch::Receiver<bool>,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let broker = match &place {
            Place::Shared => forebay_worker::testing::broker().await,
            Place::Own(own) => own.broker(),
            Place::Cluster(cluster) => cluster.broker(),
        };
        let address = broker.address();
        Ok(Self {
            workers_path: Proxy::to(&address).await,
            publishers_path: Proxy::to(&address).await,
            record: Recorder::open(folder, "site")?,
            folder: folder.to_owned(),
            place,
            broker,
            plan,
            crew: Vec::new(),
            hired: 0,
            user: None,
            published,
        })
    }

    /// The broker of this run alone.
    pub(crate) fn own(&self) -> &OwnBroker {
        self.owned().expect("the fault asks for a broker of its own")
    }

    /// The same, if there is one.
    pub(crate) fn owned(&self) -> Option<&OwnBroker> {
        match &self.place {
            Place::Own(own) => Some(own),
            _ => None,
        }
    }

    /// The cluster of this run alone.
    pub(crate) fn cluster(&self) -> Arc<Cluster> {
        match &self.place {
            Place::Cluster(cluster) => Arc::clone(cluster),
            _ => panic!("the fault asks for a cluster"),
        }
    }

    /// A configuration that leads straight to the broker, whatever happens to the proxies.
    pub(crate) fn config(&self) -> Config {
        self.broker.config()
    }

    pub(crate) fn topology(&self) -> Topology {
        self.config().topology().clone()
    }

    /// A configuration that leads through the publishers' proxy, or to all nodes of a cluster.
    pub(crate) fn publishers(&self) -> anyhow::Result<Config> {
        let url = self.url_through(&self.publishers_path);
        Ok(Config::new(&url)?.namespace(self.broker.namespace())?)
    }

    fn url_through(&self, path: &Proxy) -> String {
        match &self.place {
            Place::Cluster(cluster) => cluster.url(),
            _ => path.url(),
        }
    }

    /// Workers that are hired from now on log in as this user, with password `pw`.
    pub(crate) fn workers_log_in_as(&mut self, user: &str) {
        self.user = Some(format!("{user}:pw"));
    }

    fn workers_url(&self) -> String {
        let url = self.url_through(&self.workers_path);
        let url = format!("{url}?heartbeat={}", self.plan.heartbeat);
        match &self.user {
            Some(user) => url.replace("guest:guest", user),
            None => url,
        }
    }

    /// Starts a worker process.
    pub(crate) fn hire(&mut self) -> anyhow::Result<()> {
        let knows_new = !self.plan.old_workers;
        self.hire_with(|role| {
            if let Role::Works { knows_new: knows, .. } = role {
                *knows = knows_new;
            }
        })
    }

    pub(crate) fn hire_with(&mut self, change: impl FnOnce(&mut Role)) -> anyhow::Result<()> {
        self.hired += 1;
        let who = format!("worker-{}", self.hired);
        let Plan { prefetch, concurrency, grace, .. } = self.plan;
        let mut role = Role::Works { prefetch, concurrency, grace, knows_new: true };
        change(&mut role);
        let process = self.spawn(&who, role)?;
        self.crew.push(Member { who, process });
        Ok(())
    }

    /// Starts a process of this binary.
    pub(crate) fn spawn(&self, who: &str, role: Role) -> anyhow::Result<Child> {
        let asked = Asked {
            who: who.to_owned(),
            url: self.workers_url(),
            namespace: self.broker.namespace().to_owned(),
            folder: self.folder.clone(),
            role,
        };
        let own_path = std::env::current_exe()?;
        let mut command = match self.plan.file_descriptors {
            None => Command::new(own_path),
            Some(most) => {
                let mut shell = Command::new("/bin/sh");
                let limited = format!("ulimit -n {most}; exec \"$0\" \"$@\"");
                shell.arg("-c").arg(limited).arg(own_path);
                shell
            }
        };
        if self.plan.turned_clock {
            let clock = self.clock_file();
            command
                .env("LD_PRELOAD", LIBRARY)
                .env("FAKETIME_TIMESTAMP_FILE", clock)
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command
            .args(["child::child", "--exact", "--nocapture"])
            .env(ASKED, serde_json::to_string(&asked)?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.folder.join(format!("{who}.log")))?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {who}"))
    }

    /// Where the workers read how far their clock is turned.
    pub(crate) fn clock_file(&self) -> PathBuf {
        self.folder.join("clock")
    }

    /// Whether the workers' clocks can be turned on this machine.
    pub(crate) fn clocks_can_be_turned() -> bool {
        Path::new(LIBRARY).exists()
    }

    /// Kills one worker and hires another.
    pub(crate) async fn kill_one(&mut self, rng: &mut Rng) -> anyhow::Result<()> {
        let mut member = self.crew.swap_remove(rng.usize(0..self.crew.len()));
        self.struck(&format!("kill -9 of {}", member.who));
        member.process.kill().await?;
        self.note_of(&member.who, Event::Gone { how: "killed".to_owned() })?;
        self.healed();
        self.hire()
    }

    /// Asks one worker to end, waits until it has, and hires another.
    pub(crate) async fn dismiss_one(&mut self, rng: &mut Rng) -> anyhow::Result<()> {
        let mut member = self.crew.swap_remove(rng.usize(0..self.crew.len()));
        self.struck(&format!("SIGTERM to {}", member.who));
        self.hire()?;
        end(&mut member).await?;
        self.healed();
        Ok(())
    }

    /// Notes what became of somebody who cannot do it any more.
    pub(crate) fn note_of(&self, who: &str, event: Event) -> anyhow::Result<()> {
        Recorder::open(&self.folder, who)?.note(event);
        Ok(())
    }

    /// A fault begins.
    pub(crate) fn struck(&self, what: &str) {
        self.record.note(Event::Struck { what: what.to_owned() });
    }

    /// It is over, and the broker can be reached.
    pub(crate) fn healed(&self) {
        self.record.note(Event::Healed);
    }

    /// Both paths are cut; they can be taken again at once.
    pub(crate) fn cut(&self) {
        self.struck("connections cut");
        self.workers_path.cut();
        self.publishers_path.cut();
        self.healed();
    }

    /// Waits a random time.
    pub(crate) async fn a_while(&self, rng: &mut Rng, ms: std::ops::Range<u64>) {
        time::sleep(Duration::from_millis(rng.u64(ms))).await;
    }

    /// Notes when the broker first accepts a connection and answers the protocol's greeting. The
    /// accept alone says nothing: Docker's own proxy gives it while nobody listens behind it.
    pub(crate) async fn note_when_it_answers(&self) -> anyhow::Result<()> {
        let address = self.own().address();
        let wait = async {
            while !answers(&address).await {
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        time::timeout(PATIENCE, wait).await.context("the broker does not come back")?;
        self.healed();
        Ok(())
    }

    /// Waits until so many lines are in the records, or asks in vain.
    pub(crate) async fn until(
        &self,
        what: &str,
        so: impl Fn(&[Entry]) -> bool,
    ) -> anyhow::Result<()> {
        let (mut records, until) = (Reader::new(&self.folder), Instant::now() + PATIENCE);
        while !so(records.read()?) {
            ensure!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
            time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Waits until every worker that is there consumes.
    pub(crate) async fn all_consume(&self) -> anyhow::Result<()> {
        let crew: Vec<_> = self.crew.iter().map(|member| member.who.clone()).collect();
        self.until("every worker consumes", |entries| crew.iter().all(|who| consumes(entries, who)))
            .await
    }

    /// Waits until the publishers are through.
    pub(crate) async fn all_published(&mut self) {
        _ = self.published.wait_for(|published| *published).await;
    }

    /// Waits until the jobs are dealt with: every confirmed one has its end, or nothing moves.
    pub(crate) async fn all_settled(&self) -> anyhow::Result<()> {
        let (inspector, until) = (Inspector::new(&self.config()), Instant::now() + PATIENCE);
        let (mut records, mut lines, mut since) = (Reader::new(&self.folder), None, Instant::now());
        while Instant::now() < until {
            let entries = records.read()?;
            if lines != Some(entries.len()) {
                if all_ended(entries) {
                    break;
                }
                (lines, since) = (Some(entries.len()), Instant::now());
            }
            if since.elapsed() > Duration::from_secs(2) && self.nothing_waits(&inspector).await {
                break;
            }
            time::sleep(LOOK).await;
        }
        inspector.close().await;
        Ok(())
    }

    async fn nothing_waits(&self, inspector: &Inspector) -> bool {
        let queue = inspector.count(&self.topology().queue("default")).await;
        let delayed = inspector.delayed().await;
        let none_ready = matches!(queue, Ok(count) if count.is_none_or(|count| count.ready == 0));
        none_ready && delayed.is_ok_and(|levels| levels.iter().all(|ready| *ready == 0))
    }

    /// A channel of a plain client, straight to the broker.
    pub(crate) async fn plain_channel(&self) -> anyhow::Result<(Link, Channel)> {
        let link = Link::open(&self.config(), "plain");
        let channel = link.channel(Instant::now() + PATIENCE).await?.channel;
        Ok((link, channel))
    }

    /// A producer that goes straight to the broker.
    pub(crate) fn producer(&self) -> Producer {
        Producer::new(&self.config())
    }

    /// Writes down what the broker says of its queues, for whoever looks into a loss.
    pub(crate) async fn note_queues(&self, name: &str) -> anyhow::Result<()> {
        let columns = "name messages messages_ready messages_unacknowledged state arguments";
        let mut arguments = vec!["list_queues"];
        arguments.extend(columns.split(' '));
        let said = match &self.place {
            Place::Shared => return Ok(()),
            Place::Own(own) => own.ctl(&arguments).await,
            Place::Cluster(cluster) => cluster.ctl(0, &arguments).await,
        };
        Ok(std::fs::write(self.folder.join(format!("{name}.txt")), said)?)
    }

    /// Ends every worker in good order.
    pub(crate) async fn dismiss_all(&mut self) -> anyhow::Result<()> {
        for mut member in std::mem::take(&mut self.crew) {
            end(&mut member).await?;
        }
        Ok(())
    }
}

pub(crate) async fn end(member: &mut Member) -> anyhow::Result<()> {
    signal("-TERM", member).await?;
    let ended = time::timeout(PATIENCE, member.process.wait()).await;
    match ended {
        Ok(status) => ensure!(status?.success(), "{} did not end with 0", member.who),
        Err(_) => bail!("{} did not end within {PATIENCE:?} of SIGTERM", member.who),
    }
    Ok(())
}

pub(crate) async fn signal(which: &str, member: &Member) -> anyhow::Result<()> {
    let pid = member.process.id().context("it has ended already")?;
    let kill = Command::new("kill").args([which, &pid.to_string()]).status().await?;
    ensure!(kill.success(), "kill {which} {pid} failed");
    Ok(())
}

async fn answers(address: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"AMQP\0\0\x09\x01").await?;
        stream.read_u8().await
    };
    matches!(time::timeout(Duration::from_millis(250), ask).await, Ok(Ok(_)))
}

fn consumes(entries: &[Entry], who: &str) -> bool {
    let mut of_status = entries.iter().rev().filter(|entry| {
        entry.who == who && matches!(entry.event, Event::Consuming | Event::Idle { .. })
    });
    of_status.next().is_some_and(|entry| entry.event == Event::Consuming)
}

fn all_ended(entries: &[Entry]) -> bool {
    let mut open = std::collections::HashSet::new();
    for entry in entries {
        if let Event::Confirmed { id } = &entry.event {
            open.insert(id.as_str());
        }
    }
    for entry in entries {
        if let Event::Ended { id, end, .. } = &entry.event
            && (end == "ok" || end == "reject")
        {
            open.remove(id.as_str());
        }
    }
    open.is_empty()
}
