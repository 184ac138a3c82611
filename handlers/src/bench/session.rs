//! A whole benchmark on a broker.
//! In: a record without rounds. Out: the same with all that was measured before the last round, the
//! time limit or a signal; the namespaces that were used are removed, whatever ends it.

use std::io;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use forebay_producer::link::greeting::greetings;
use forebay_worker::Config;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time;

use super::arguments::Arguments;
use super::beam::Beam;
use super::machine::load;
use super::measure::Ground;
use super::order::Contestant;
use super::plan::{self, Step};
use super::record::{Measured, Record, Round, Run};
use super::scenario::Case;
use super::screen::Screen;
use super::side::Place;
use super::site::{self, Miscount, Site};
use super::{Stop, cells, stats};

/// How long a broker may take to say its version.
const GREETING: Duration = Duration::from_secs(5);
/// So often a run is tried that does not count.
const TRIES: u32 = 3;

/// Measures what the record names.
pub(super) async fn run(
    arguments: &Arguments,
    config: &Config,
    mut record: Record,
) -> Result<Record, Stop> {
    let failed = |error: io::Error| Stop::Failed(error.to_string());
    let mut ends = Ends::listen().map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let (beam, sites) = tokio::select! {
        opened = open(config, &mut record) => opened?,
        // Nothing is declared yet.
        () = ends.told() => return Err(Stop::Failed("interrupted before the first run".to_owned())),
    };
    let place = |site: &Site| Place {
        program: program.clone(),
        manifest: arguments.target.config.clone(),
        url: arguments.target.url.clone(),
        namespace: site.namespace().to_owned(),
    };
    let with_place = |site| (place(&site), site);
    let places: Vec<(Place, Site)> = sites.into_iter().map(with_place).collect();
    let began = Instant::now();
    record.cut_short = tokio::select! {
        // What is cut off is one round: its processes end with it, and its figures do not count.
        done = rounds(&places, beam.as_ref(), &mut record) => done.err().map(|error| format!("{error:#}")),
        () = time::sleep(arguments.time_limit) => {
            let limit = humantime::format_duration(arguments.time_limit);
            Some(format!("the time limit of {limit} was reached"))
        }
        () = ends.told() => Some("interrupted".to_owned()),
    };
    record.seconds = began.elapsed().as_secs_f64();
    record.machine.load[1] = load();
    tokio::select! {
        () = remove(&places, &mut record.notes) => {}
        () = ends.told() => {
            let left: Vec<_> = places.iter().map(|(_, site)| leftover(site.namespace())).collect();
            return Err(Stop::Failed(format!("interrupted twice; {}", left.join("; "))));
        }
    }
    Ok(record)
}

/// The broker, and a namespace for each type of queue; declares nothing.
async fn open(config: &Config, record: &mut Record) -> Result<(Option<Beam>, Vec<Site>), Stop> {
    let (product, cluster) = broker(config).await;
    record.broker = product;
    let beam = beam(config, &cluster, &mut record.notes);
    let mut types: Vec<_> = record.cases.iter().map(|one| one.case.queue_type).collect();
    types.sort_by_key(ToString::to_string);
    types.dedup();
    let base = format!("{}-bench-{:08x}", config.topology().namespace(), fastrand::u32(..));
    let mut sites = Vec::new();
    for queue_type in types {
        let namespace = format!("{base}-{queue_type}");
        match Site::open(config, &namespace, queue_type).await {
            Ok(site) => sites.push(site),
            Err(error) if site::unreachable(&error) => {
                return Err(Stop::Broker(format!("{error:#}")));
            }
            Err(error) => return Err(Stop::Usage(format!("{error:#}"))),
        }
    }
    Ok((beam, sites))
}

/// Product with version, and the name of the cluster.
async fn broker(config: &Config) -> (String, String) {
    let heard = greetings(config, GREETING).await;
    let greeting = heard.into_iter().find_map(|(_, greeting)| greeting.ok());
    // Whoever does not greet will not let us in either, and then says why.
    greeting.map_or_else(Default::default, |greeting| {
        (format!("{} {}", greeting.product, greeting.version), greeting.cluster)
    })
}

fn beam(config: &Config, cluster: &str, notes: &mut Vec<String>) -> Option<Beam> {
    match Beam::find(config, cluster) {
        Ok(beam) => Some(beam),
        Err(why) => {
            notes.push(format!("the broker's CPU time is left out: {why}"));
            None
        }
    }
}

/// All rounds, as planned. What is measured stands in the record as soon as its round is whole.
async fn rounds(
    places: &[(Place, Site)],
    beam: Option<&Beam>,
    record: &mut Record,
) -> anyhow::Result<()> {
    let cases: Vec<_> = record.cases.iter().map(|one| one.case.clone()).collect();
    let steps = plan::steps(&cases);
    let runs: usize = steps.iter().map(|step| step.order.len()).sum();
    let screen = Screen::begin(runs as u64, cases.len());
    for (_, site) in places {
        site.declare().await?;
    }
    for Step { case, round, order } in steps {
        let one = &mut record.cases[case];
        let ground = places.iter().find(|(_, site)| site.queue_type == one.case.queue_type);
        let (place, site) = ground.context("every type of queue has a site")?;
        let ground = Ground { site, place, beam, screen: &screen };
        let mut whole = Round { order: order.clone(), load: load(), runs: Default::default() };
        for who in order {
            let rounds = one.case.rounds;
            screen.run(format!("round {} of {rounds}: {}, {}", round + 1, one.case, who.label()));
            let run = until_it_counts(&ground, &one.case, who, &mut record.notes).await?;
            whole.runs.insert(who, run);
            screen.done();
        }
        one.rounds.push(whole);
        screen.so_far(case, so_far(one));
    }
    Ok(())
}

/// One run, and another one in its place if jobs came back.
async fn until_it_counts(
    ground: &Ground<'_>,
    case: &Case,
    who: Contestant,
    notes: &mut Vec<String>,
) -> anyhow::Result<Run> {
    for _ in 1..TRIES {
        match ground.run(case, who).await {
            Err(error) if error.downcast_ref().is_some_and(Miscount::is_surplus) => {
                notes.push(format!("a run was repeated: {error:#}"));
                ground.site.empty().await?;
            }
            run => return run,
        }
    }
    ground.run(case, who).await
}

/// One line about a case.
fn so_far(measured: &Measured) -> String {
    let figure = measured.case.scenario.main_figure();
    let mut line = format!("{}:", measured.case);
    for &who in &measured.case.contestants[1..] {
        let pairs = measured.pairs(figure, measured.case.contestants[0], who);
        if let Some(found) = stats::estimate(&stats::ratios(pairs)) {
            line += &format!(
                "  {} ÷ {}: {}",
                figure.label(),
                who.label(),
                cells::with_interval(&found)
            );
        }
    }
    line
}

/// Signals that ask for an end; a terminal that is closed does too.
struct Ends([Signal; 3]);

impl Ends {
    fn listen() -> io::Result<Self> {
        let [terminate, interrupt, hangup] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        Ok(Self([terminate?, interrupt?, hangup?]))
    }

    async fn told(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            // All three are cancel-safe.
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

async fn remove(places: &[(Place, Site)], notes: &mut Vec<String>) {
    for (_, site) in places {
        if let Err(error) = site.remove().await {
            notes.push(format!("{error:#}: {}", leftover(site.namespace())));
        }
    }
}

fn leftover(namespace: &str) -> String {
    format!(
        "namespace {namespace} is still there; remove it with: forebay --namespace {namespace} \
         topology delete --queue bench --force --yes, then the same with --all in place of \
         --queue bench"
    )
}
