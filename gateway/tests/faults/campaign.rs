//! All faults, some at once, for as long as is asked for.
//! In: the `FOREBAY_FAULTS_…` variables of the worker's suite, or none. Out: a table; failed if a row
//! is red.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use fastrand::Rng;
use forebay_producer::testing::{OwnBroker, broker_of_its_own};
use futures_util::FutureExt;
use tokio::runtime::Builder;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use crate::checker::{self, Seen, Verdict};
use crate::fault::{FAULTS, Fault};
use crate::site::{PATIENCE, Site};
use crate::table::{self, Row};
use crate::{truth, workload};

/// Runs at once on the shared broker; besides one on a broker of its own.
const SHARED: usize = 2;
/// Longest that one run may take.
const LONGEST: Duration = Duration::from_secs(240);
/// Of the time that is asked for, the worker's suite takes all and this one a part more.
const PART: f64 = 0.25;
/// Events are told for so long at least.
const SPAN: Duration = Duration::from_secs(3);

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let name = format!("FOREBAY_FAULTS_{name}");
    let text = std::env::var(&name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not allowed")))
}

/// The turns of one lane's faults, round after round.
struct Turns {
    faults: Vec<&'static Fault>,
    taken: AtomicUsize,
    seed: u64,
    /// None: one round.
    until: Option<Instant>,
}

impl Turns {
    /// Each fault has its turn once, however short the time.
    fn next(&self) -> Option<(&'static Fault, u64)> {
        let n = self.taken.fetch_add(1, Ordering::Relaxed);
        let round = n.checked_div(self.faults.len())?;
        let over = self.until.is_none_or(|until| Instant::now() >= until);
        let fault = self.faults[n % self.faults.len()];
        (round == 0 || !over).then_some((fault, self.seed + round as u64))
    }
}

#[tokio::test]
#[ignore = "takes a minute and a broker of its own: docker/faults.sh"]
async fn no_fault_costs_a_client_an_event() {
    if variable::<String>("LIST").is_some() {
        FAULTS.iter().for_each(|fault| println!("fault: {}", fault.name));
        return;
    }
    let only: Option<String> = variable("ONLY");
    let asked = |fault: &&Fault| only.as_ref().is_none_or(|part| fault.name.contains(&**part));
    let faults: Vec<_> = FAULTS.iter().filter(asked).collect();
    if faults.is_empty() {
        println!("no fault of the gateway is called {only:?}");
        return;
    }
    let minutes: Option<f64> = variable("MINUTES");
    let seed = variable("SEED").unwrap_or_else(|| fastrand::u64(0..1_000_000_000));
    println!("seed {seed}");
    let began = Instant::now();
    let until = minutes.map(|minutes| began + Duration::from_secs_f64(minutes * 60.0 * PART));
    let rows = carry_out(&faults, seed, until).await;
    println!("\n{}", table::markdown(&rows));
    if let Some(path) = variable::<PathBuf>("WRITE").filter(|_| only.is_none()) {
        table::write(&path, &rows, &ran(began.elapsed(), seed)).unwrap();
    }
    let red: Vec<_> = rows.iter().filter(|row| row.red > 0).map(|row| row.name).collect();
    assert!(red.is_empty(), "a client missed an event, or had one twice: {red:?}");
}

/// What was run, for whoever reads the table.
fn ran(took: Duration, seed: u64) -> String {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let image = std::env::var("FOREBAY_RABBITMQ_IMAGE").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').nth(2).unwrap_or("unknown");
    let minutes = took.as_secs_f64() / 60.0;
    format!("{minutes:.0} minutes on {cores} cores under a load of {load}, `{image}`, seed {seed}.")
}

async fn carry_out(faults: &[&'static Fault], seed: u64, until: Option<Instant>) -> Vec<Row> {
    let rows = Arc::new(Mutex::new(faults.iter().map(|fault| Row::new(fault)).collect::<Vec<_>>()));
    let folder =
        std::env::temp_dir().join(format!("forebay-gateway-faults-{}", std::process::id()));
    let of = |own: bool| {
        let faults = faults.iter().copied().filter(|fault| fault.own_broker == own).collect();
        Arc::new(Turns { faults, taken: AtomicUsize::new(0), seed, until })
    };
    let (own, shared) = (of(true), of(false));
    let lanes = (0..=SHARED).map(|lane| if lane == 0 { &own } else { &shared });
    let mut threads = Vec::new();
    for turns in lanes {
        let (turns, rows, folder) = (Arc::clone(turns), Arc::clone(&rows), folder.clone());
        // What speaks to Docker cannot move between threads: each lane has one of its own.
        threads.push(thread::spawn(move || {
            let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
            runtime.unwrap().block_on(keep_going(&turns, &rows, &folder));
        }));
    }
    let joined = tokio::task::spawn_blocking(move || {
        threads.into_iter().for_each(|lane| lane.join().unwrap());
    });
    joined.await.unwrap();
    _ = std::fs::remove_dir(&folder); // stays while something red is in it
    Arc::into_inner(rows).unwrap().into_inner().unwrap()
}

/// One lane: takes turns until there are none. A broker of its own is kept for the next turn.
async fn keep_going(turns: &Turns, rows: &Mutex<Vec<Row>>, folder: &Path) {
    let mut kept: Option<Arc<OwnBroker>> = None;
    let keep: bool = variable("KEEP").unwrap_or(false);
    while let Some((fault, seed)) = turns.next() {
        if fault.own_broker && kept.is_none() {
            kept = Some(Arc::new(broker_of_its_own("").await));
        }
        let slug: String =
            fault.name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        let here = folder.join(format!("{slug}-{seed}"));
        let run = time::timeout(LONGEST, once(fault, kept.clone(), seed, &here));
        let verdict = match AssertUnwindSafe(run).catch_unwind().await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(_)) => Err(anyhow::anyhow!("the run took too long")),
            Err(_) => Err(anyhow::anyhow!("the run panicked; the reason is above")),
        };
        let row = rows.lock().unwrap().iter().position(|row| row.name == fault.name);
        rows.lock().unwrap()[row.unwrap()].add(verdict.as_ref().ok());
        let wrong = match &verdict {
            Ok(verdict) if verdict.is_red() => table::report(verdict),
            Ok(_) if keep => continue,
            Ok(_) => {
                _ = std::fs::remove_dir_all(&here);
                continue;
            }
            Err(error) => format!("  {error:#}\n"),
        };
        println!("RED {}\n{wrong}  seed {seed}; logs: {}", fault.name, here.display());
        kept = None; // it may be in any state
    }
}

/// One run of one fault, from the first gateway to the verdict.
async fn once(
    fault: &Fault,
    own: Option<Arc<OwnBroker>>,
    seed: u64,
    folder: &Path,
) -> anyhow::Result<Verdict> {
    let mut rng = Rng::with_seed(seed);
    let mut site = Site::open(fault, own, folder, &mut rng).await.context("preparing")?;
    let end = CancellationToken::new();
    let telling = tokio::spawn(workload::tell(site.config(), fault.plan, seed, end.clone()));
    let began = Instant::now();
    let struck = (fault.strike)(&mut site, &mut rng).await.context("the fault");
    time::sleep_until(began + SPAN).await;
    end.cancel();
    struck?;
    let confirmed = time::timeout(PATIENCE * 2, telling).await.context("telling events")??;
    let through =
        |site: &Site| site.clients.iter().all(|client| client.follower.diary().is_through);
    let all_through = site.until("every client has the last event", through).await;
    let truth = truth::read(&site.config()).await?;
    let clients: Vec<_> = site
        .clients
        .iter()
        .map(|client| Seen {
            name: client.name(),
            taste: client.follower.taste,
            notes: client.follower.diary().notes.clone(),
        })
        .collect();
    let mut verdict = checker::check(&truth, &confirmed, &clients, &site.healed);
    verdict.broken.extend(all_through.err().map(|error| error.to_string()));
    verdict.broken.extend(site.panics()?);
    if verdict.is_red() {
        std::fs::write(
            folder.join("diaries.txt"),
            format!("{clients:#?}\n{:#?}", confirmed.failed),
        )?;
    }
    if confirmed.told.is_empty() || confirmed.jobs.is_empty() {
        bail!("nothing was told: {:?}", confirmed.failed);
    }
    Ok(verdict)
}
