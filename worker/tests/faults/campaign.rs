//! All faults, side by side as far as a small machine bears it, for as long as is asked for.
//! In: `FOREBAY_FAULTS_…` variables, or none. Out: a table; failed if a row is red.

use std::collections::{HashMap, VecDeque};
use std::io::IsTerminal as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use forebay_worker::testing::{broker_of_its_own, cluster};
use futures_util::FutureExt;
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::Instant;

use crate::checker::Verdict;
use crate::document::{self, Told};
use crate::fault::{self, Fault, Ground};
use crate::run;
use crate::site::Place;
use crate::table::{self, Row};

/// Brokers of their own that run at once, and faults at once on the shared one.
const OWN: usize = 2;
const SHARED: usize = 2;

/// What is asked for.
struct Wanted {
    /// How long to repeat; none: each fault once.
    minutes: Option<f64>,
    /// Part of the names of faults.
    only: Option<String>,
    seed: u64,
    /// The document that the table is written into.
    write: Option<PathBuf>,
    /// Recovery beyond the limit is a failure too.
    timed: bool,
    /// Records and logs of good runs stay as well.
    keep: bool,
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let text =
        std::env::var(format!("FOREBAY_FAULTS_{name}")).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("FOREBAY_FAULTS_{name}={text} is not allowed")))
}

impl Wanted {
    fn read() -> Self {
        let minutes = variable("MINUTES");
        Self {
            minutes,
            only: variable("ONLY"),
            seed: variable("SEED").unwrap_or_else(|| fastrand::u64(0..1_000_000_000)),
            write: variable("WRITE"),
            timed: minutes.is_some(),
            keep: variable("KEEP").unwrap_or(false),
        }
    }

    /// What was run, for whoever reads the table.
    fn told(&self, took: Duration) -> Told {
        let cores = thread::available_parallelism().map_or(0, usize::from);
        let image = std::env::var("FOREBAY_RABBITMQ_IMAGE").unwrap_or_default();
        // Of other programs, too.
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').nth(2).unwrap_or("unknown");
        let what = match &self.only {
            None => "All faults".to_owned(),
            Some(part) => format!("Faults with \"{part}\" in their name"),
        };
        let minutes = took.as_secs_f64() / 60.0;
        let rest = format!(
            "{minutes:.0} minutes on {cores} cores under a load of {load}, `{image}`, seed {}.",
            self.seed
        );
        Told { what, rest, whole: self.only.is_none() }
    }

    fn faults(&self) -> Vec<&'static Fault> {
        let mut faults = fault::all();
        faults.retain(|fault| self.only.as_ref().is_none_or(|part| fault.name.contains(&**part)));
        let short = self.minutes.is_none() && self.only.is_none();
        faults.retain(|fault| !(short && fault.long));
        faults.retain(|fault| {
            let missing = (fault.missing)();
            if let Some(what) = missing {
                println!("left out: {}: it needs {what}", fault.name);
            }
            missing.is_none()
        });
        faults
    }
}

/// One fault that is to be carried out once.
#[derive(Clone, Copy)]
struct Turn {
    fault: &'static Fault,
    seed: u64,
}

/// The turns that are left. Rounds follow each other until the time is over.
struct Turns {
    own: VecDeque<Turn>,
    shared: VecDeque<Turn>,
    faults: Vec<&'static Fault>,
    rounds: u64,
    seed: u64,
    until: Option<Instant>,
}

impl Turns {
    fn next(&mut self, shared: bool) -> Option<Turn> {
        let over = self.until.is_some_and(|until| Instant::now() >= until);
        // Each fault has its turn once, however short the time.
        if over && self.rounds > 1 {
            return None;
        }
        let queue = if shared { &mut self.shared } else { &mut self.own };
        if let Some(turn) = queue.pop_front() {
            return Some(turn);
        }
        if self.rounds > 0 && self.until.is_none() || over {
            return None;
        }
        self.refill();
        let queue = if shared { &mut self.shared } else { &mut self.own };
        queue.pop_front()
    }

    fn refill(&mut self) {
        let seed = self.seed + self.rounds;
        self.rounds += 1;
        // Of their own brokers those last that are configured: each costs a start.
        let mut faults = self.faults.clone();
        faults.sort_by_key(|fault| matches!(fault.ground, Ground::Own(with) if !with.is_empty()));
        for fault in faults {
            let turn = Turn { fault, seed };
            match fault.ground {
                Ground::Shared => self.shared.push_back(turn),
                // A cluster is three brokers: the lanes for one take it in turn.
                Ground::Own(_) | Ground::Cluster => self.own.push_back(turn),
            }
        }
    }
}

type Outcome = (Turn, anyhow::Result<(Verdict, Option<String>)>);

#[tokio::test]
#[ignore = "takes some minutes and two brokers of its own: docker/faults.sh"]
async fn no_fault_loses_a_job() {
    let wanted = Wanted::read();
    let faults = wanted.faults();
    if variable::<String>("LIST").is_some() {
        faults.iter().for_each(|fault| println!("fault: {}", fault.name));
        return;
    }
    if faults.is_empty() {
        println!("no fault of workers is called {:?}", wanted.only);
        return;
    }
    println!("seed {}", wanted.seed);
    let began = Instant::now();
    let rows = carry_out(&wanted, faults).await;
    let (lines, legend) = table::of(&rows);
    println!("\n{}\n{}", table::markdown(&lines), legend.concat());
    if let Some(path) = &wanted.write {
        document::write(path, &rows, &wanted.told(began.elapsed())).unwrap();
    }
    let failed = |row: &&Row| row.red > 0 || (wanted.timed && row.is_late());
    let failed: Vec<_> = rows.iter().filter(failed).map(|row| row.fault.name).collect();
    assert!(failed.is_empty(), "lost, doubled without need, or not back in time: {failed:?}");
}

async fn carry_out(wanted: &Wanted, faults: Vec<&'static Fault>) -> Vec<Row> {
    let mut rows: Vec<_> = faults.iter().map(|fault| Row::new(fault)).collect();
    let places: HashMap<_, _> =
        rows.iter().enumerate().map(|(n, row)| (row.fault.name, n)).collect();
    let until =
        wanted.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    let (own, shared) = (VecDeque::new(), VecDeque::new());
    let turns = Turns { own, shared, faults, rounds: 0, seed: wanted.seed, until };
    let turns = Arc::new(Mutex::new(turns));
    let folder = std::env::temp_dir().join(format!("forebay-faults-{}", std::process::id()));
    let (tell, mut outcomes) = mpsc::channel(1);
    let keep = wanted.keep;
    let mut lanes = Vec::new();
    for lane in 0..OWN + SHARED {
        let (turns, folder, tell) = (Arc::clone(&turns), folder.clone(), tell.clone());
        // What speaks to Docker cannot move between threads: each lane has one of its own.
        lanes.push(thread::spawn(move || {
            let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
            runtime.unwrap().block_on(keep_going(lane >= OWN, turns, folder, keep, tell));
        }));
    }
    drop(tell);
    let began = Instant::now();
    while let Some((turn, outcome)) = outcomes.recv().await {
        let row = &mut rows[places[turn.fault.name]];
        match outcome {
            Ok((verdict, report)) => {
                row.add(&verdict);
                if let Some(report) = report {
                    let word = if verdict.is_red() { "RED" } else { "LATE" };
                    println!("{word} {}\n{report}", turn.fault.name);
                }
            }
            Err(error) => {
                row.runs += 1;
                row.red += 1;
                println!("RED {}\n  seed {}: {error:#}", turn.fault.name, turn.seed);
            }
        }
        progress(began, &rows, turn.fault.name);
    }
    lanes.into_iter().for_each(|lane| lane.join().unwrap());
    _ = std::fs::remove_dir(&folder); // stays while something red is in it
    rows
}

/// One lane: takes turns until there are none. A broker of its own is kept for the next turn.
async fn keep_going(
    shared: bool,
    turns: Arc<Mutex<Turns>>,
    folder: PathBuf,
    keep: bool,
    tell: mpsc::Sender<Outcome>,
) {
    /// Three brokers are enough for two cores.
    static CLUSTERS: Semaphore = Semaphore::const_new(1);
    let mut kept: Option<(Ground, Place, Option<SemaphorePermit<'static>>)> = None;
    loop {
        let Some(turn) = turns.lock().unwrap().next(shared) else { return };
        let ground = turn.fault.ground;
        if kept.as_ref().is_none_or(|(known, ..)| *known != ground) {
            drop(kept.take());
            let permit = match ground {
                Ground::Cluster => Some(CLUSTERS.acquire().await.unwrap()),
                _ => None,
            };
            let place = match ground {
                Ground::Shared => Place::Shared,
                Ground::Own(settings) => Place::Own(Arc::new(broker_of_its_own(settings).await)),
                Ground::Cluster => Place::Cluster(Arc::new(cluster("").await)),
            };
            kept = Some((ground, place, permit));
        }
        let place = kept.as_ref().map_or(Place::Shared, |(_, place, _)| place.clone());
        let slug: String =
            turn.fault.name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        let here = folder.join(format!("{slug}-{}", turn.seed));
        let outcome = without_panic(turn, place, &here).await;
        match &outcome {
            Ok((_, None)) if !keep => _ = std::fs::remove_dir_all(&here),
            Ok((verdict, _)) if !verdict.is_red() => {}
            // It may be in any state.
            _ => kept = None,
        }
        _ = tell.send((turn, outcome)).await;
    }
}

async fn without_panic(
    turn: Turn,
    place: Place,
    folder: &Path,
) -> anyhow::Result<(Verdict, Option<String>)> {
    let run = run::once(turn.fault, place, turn.seed, folder);
    let ended = AssertUnwindSafe(run).catch_unwind().await;
    let ended = ended.unwrap_or_else(|_| bail!("the run panicked; the reason is above"));
    ended.with_context(|| format!("logs in {}", folder.display()))
}

/// One line, on a terminal over the one before.
fn progress(began: Instant, rows: &[Row], newest: &str) {
    let (runs, red) = rows.iter().fold((0, 0), |(runs, red), row| (runs + row.runs, red + row.red));
    let seconds = began.elapsed().as_secs();
    let line = format!("{seconds:>5} s  {runs} runs, {red} red; {newest}");
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{line}");
    } else {
        eprintln!("{line}");
    }
}
