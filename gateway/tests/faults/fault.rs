//! The faults: each with what it does, and on which broker.

use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tokio::time::{self, Instant};

use crate::follower::{Client, Mood, Taste};
use crate::site::{PATIENCE, Site};
use crate::workload::Plan;

/// Something that goes wrong.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    /// It needs a broker of its own.
    pub(crate) own_broker: bool,
    /// Behind one port.
    pub(crate) gateways: usize,
    /// A proxy takes bytes ahead; without it what a client does not take stays with the gateway.
    pub(crate) behind_a_proxy: bool,
    /// A client that takes nothing for so long is sent away.
    pub(crate) slow: Duration,
    pub(crate) plan: Plan,
    /// Done while events are told.
    pub(crate) strike: Act,
}

type Act = for<'a> fn(&'a mut Site, &'a mut Rng) -> LocalBoxFuture<'a, anyhow::Result<()>>;

impl Fault {
    const fn new(name: &'static str, strike: Act) -> Self {
        Self {
            name,
            strike,
            own_broker: false,
            gateways: 1,
            behind_a_proxy: true,
            slow: Duration::from_secs(30),
            plan: Plan { pause: Duration::from_millis(16), size: 10 },
        }
    }

    const fn on_its_own_broker(mut self) -> Self {
        self.own_broker = true;
        self
    }
}

/// All of them, in the order of the table.
pub(crate) const FAULTS: &[Fault] = &[
    Fault::new("broker killed (kill -9) and started again", |site, rng| {
        broker_killed(site, rng).boxed_local()
    })
    .on_its_own_broker(),
    Fault::new("broker stopped and started in good order", |site, rng| {
        broker_stopped(site, rng).boxed_local()
    })
    .on_its_own_broker(),
    Fault::new("gateway killed (kill -9)", |site, rng| killed(site, rng).boxed_local()),
    Fault::new("gateway ended (SIGTERM)", |site, rng| ended(site, rng).boxed_local()),
    Fault {
        gateways: 2,
        ..Fault::new("two gateways behind one port, killed and ended in turn", |site, rng| {
            in_turn(site, rng).boxed_local()
        })
    },
    Fault::new("connections of the gateway to the broker cut", |site, rng| {
        cut_from_the_broker(site, rng).boxed_local()
    }),
    Fault::new("path from the gateway to the broker half-open", |site, rng| {
        half_open(site, rng).boxed_local()
    }),
    Fault::new("connections of clients cut", |site, rng| cut_clients(site, rng).boxed_local()),
    Fault::new("clients offline for a while", |site, rng| offline(site, rng).boxed_local()),
    Fault {
        behind_a_proxy: false,
        slow: Duration::from_secs(2),
        plan: Plan { pause: Duration::from_millis(12), size: 30_000 },
        ..Fault::new("clients that stop reading", |site, rng| deaf(site, rng).boxed_local())
    },
];

async fn broker_killed(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    // What was declared just before a kill may be gone after it.
    site.a_while(rng, 1_500..3_000).await;
    site.own()?.kill().await;
    site.own()?.revive().await;
    site.healed();
    site.ready(0).await
}

async fn broker_stopped(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 300..2_000).await;
    site.own()?.stop().await;
    site.a_while(rng, 0..1_500).await;
    site.own()?.start().await;
    site.healed();
    site.ready(0).await
}

async fn killed(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..3 {
        site.a_while(rng, 300..1_500).await;
        site.kill(0).await?;
        site.a_while(rng, 0..700).await;
        site.start(0).await?;
        site.healed();
    }
    Ok(())
}

async fn ended(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..3 {
        site.a_while(rng, 300..1_500).await;
        site.terminate(0).await?;
        site.a_while(rng, 0..700).await;
        site.start(0).await?;
        site.healed();
    }
    Ok(())
}

/// One is always there.
async fn in_turn(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for turn in 0..4 {
        let n = turn % site.gateways.len();
        site.a_while(rng, 300..1_000).await;
        if rng.bool() {
            site.kill(n).await?;
        } else {
            site.terminate(n).await?;
        }
        site.healed();
        site.a_while(rng, 0..700).await;
        site.start(n).await?;
    }
    Ok(())
}

async fn cut_from_the_broker(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..6 {
        site.a_while(rng, 50..1_000).await;
        site.broker_path.cut();
        site.healed();
    }
    site.ready(0).await
}

async fn half_open(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    site.a_while(rng, 200..1_500).await;
    site.broker_path.hold();
    site.a_while(rng, 1_000..6_000).await;
    site.broker_path.pass();
    site.healed();
    site.ready(0).await
}

async fn cut_clients(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..10 {
        site.a_while(rng, 20..700).await;
        site.clients_path.cut();
        site.healed();
    }
    Ok(())
}

async fn offline(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    for _ in 0..3 {
        site.a_while(rng, 0..700).await;
        let gone: Vec<_> = site.clients.iter().filter(|_| rng.bool()).collect();
        gone.iter().for_each(|client| client.is(Mood::Away));
        site.a_while(rng, 300..2_000).await;
        gone.iter().for_each(|client| client.is(Mood::Awake));
    }
    Ok(())
}

/// One client of each door reads no more until the gateway has given it up; the others go on.
async fn deaf(site: &mut Site, rng: &mut Rng) -> anyhow::Result<()> {
    /// For the window, for what is handed over, and for itself; what the deaf ones do not take comes
    /// to more than that.
    const MOST_MIB: u64 = 100;
    site.a_while(rng, 100..500).await;
    let (deaf, others): (Vec<_>, Vec<_>) =
        site.clients.iter().partition(|client| client.follower.taste == Taste::AllFromNow);
    deaf.iter().for_each(|client| client.is(Mood::Deaf));
    let seen = |client: &Client| client.follower.diary().notes.len();
    let everything = || others.iter().filter(|client| client.follower.taste != Taste::Rare);
    let before: Vec<_> = everything().map(|client| seen(client)).collect();
    let by = Instant::now() + PATIENCE;
    loop {
        let page = site.page(0, "metrics").await?;
        let left: f64 = page
            .lines()
            .filter(|line| line.starts_with("forebay_gateway_clients{"))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum();
        if left as usize == others.len() {
            break;
        }
        anyhow::ensure!(Instant::now() < by, "{left} clients are there");
        time::sleep(Duration::from_millis(100)).await;
    }
    site.until("the others go on", |_| {
        everything().zip(&before).all(|(client, before)| seen(client) > before + 300)
    })
    .await?;
    let memory = site.most_memory(0)?;
    println!("clients that stop reading: the gateway had {memory} MiB");
    anyhow::ensure!(memory < MOST_MIB, "the gateway had {memory} MiB");
    deaf.iter().for_each(|client| client.is(Mood::Awake));
    Ok(())
}
