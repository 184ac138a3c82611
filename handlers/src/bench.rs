//! `forebay bench`: Forebay beside the bare client library, on this machine and broker.
//! In: what to measure. Out: ratios with their intervals, as text, JSON or a document; the
//! namespace that was used is removed, whatever happens.

mod arguments;
mod bare;
mod beam;
mod cells;
mod child;
mod digest;
mod document;
mod forebay;
mod job;
mod machine;
mod measure;
mod meter;
mod order;
mod pace;
mod plan;
mod plot;
mod record;
mod scenario;
mod screen;
mod side;
mod site;
mod stats;
mod text;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use forebay_handlers::Manifest;
use forebay_handlers::app::{self, Overrides};
use forebay_handlers::manifest::Broker;
use forebay_producer::link::greeting::greetings;
use forebay_worker::{Config, Declare};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time;

pub(crate) use self::arguments::{Arguments, Target};
use self::arguments::{Compare, Format};
use self::beam::Beam;
use self::machine::{Machine, load};
use self::measure::Ground;
use self::plan::Step;
use self::record::{Measured, Record, Round};
use self::screen::Screen;
use self::side::Place;
use self::site::Site;
use crate::{UNREACHABLE, USAGE, WORK_FAILED};

/// How long a broker may take to say its version.
const GREETING: Duration = Duration::from_secs(5);

/// Why nothing could be measured.
enum Stop {
    Usage(String),
    Broker(String),
    Failed(String),
}

/// Measures, or shows what was measured before.
pub(crate) fn main(arguments: &Arguments) -> ExitCode {
    let record = match &arguments.from {
        Some(file) => read(file),
        None => measure(arguments),
    };
    let shown = record.and_then(|record| {
        show(arguments, &record)?;
        Ok(record)
    });
    let (code, words) = match shown {
        // Its reason is among what was shown.
        Ok(record) if record.cut_short.is_some() && arguments.from.is_none() => (WORK_FAILED, None),
        Ok(_) => return ExitCode::SUCCESS,
        Err(Stop::Usage(words)) => (USAGE, Some(words)),
        Err(Stop::Broker(words)) => (UNREACHABLE, Some(words)),
        Err(Stop::Failed(words)) => (WORK_FAILED, Some(words)),
    };
    if let Some(words) = words {
        eprintln!("error: {words}");
    }
    ExitCode::from(code)
}

/// One measured process; for [`main`] alone.
pub(crate) fn side(target: &Target) -> ExitCode {
    child::main(target)
}

fn read(file: &Path) -> Result<Record, Stop> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Stop::Usage(format!("cannot read {}: {error}", file.display())))?;
    serde_json::from_str(&text).map_err(|error| {
        let file = file.display();
        let remedy = "give it what `forebay bench --output json` has printed";
        Stop::Usage(format!("{file} is no result of a benchmark: {error}; {remedy}"))
    })
}

fn show(arguments: &Arguments, record: &Record) -> Result<(), Stop> {
    let text = match arguments.output {
        Format::Table => text::whole(record),
        Format::Json => json(record).map_err(|error| Stop::Failed(error.to_string()))?,
    };
    // Whoever started us may read it no more.
    _ = writeln!(io::stdout(), "{text}");
    match &arguments.write {
        Some(file) => document::write(file, record).map_err(Stop::Failed),
        None => Ok(()),
    }
}

/// The record, and what it comes to.
fn json(record: &Record) -> serde_json::Result<String> {
    let results = digest::results(record);
    let mut value = serde_json::to_value(record)?;
    value["targets"] = serde_json::to_value(digest::targets(&results))?;
    value["results"] = serde_json::to_value(results)?;
    serde_json::to_string_pretty(&value)
}

fn measure(arguments: &Arguments) -> Result<Record, Stop> {
    let config = config(&arguments.target).map_err(Stop::Usage)?;
    if config.declares() == Declare::Never {
        let why = "a benchmark declares queues in a namespace of its own, and nothing may be \
                   declared here; use a broker of your own, without FOREBAY_DECLARE=never and \
                   `declare = \"never\"`";
        return Err(Stop::Usage(why.to_owned()));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Stop::Failed(format!("no threads to run on: {error}")))?;
    let measured = runtime.block_on(on(arguments, &config));
    runtime.shutdown_timeout(Duration::from_secs(1));
    measured
}

/// Of the manifest only `[broker]` counts, and only if it is there.
fn config(target: &Target) -> Result<Config, String> {
    let usual = target.config == Path::new("forebay.toml");
    let broker = if usual && !target.config.exists() {
        Broker::default()
    } else {
        Manifest::load(&target.config).map_err(|faults| faults.to_string())?.broker
    };
    let stated = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let overrides = Overrides {
        url: stated(&target.url),
        namespace: stated(&target.namespace),
        declare: target.declare.map(Into::into),
        ..Overrides::default()
    };
    app::config(&broker, &overrides).map_err(|error| error.to_string())
}

async fn on(arguments: &Arguments, config: &Config) -> Result<Record, Stop> {
    let failed = |error: io::Error| Stop::Failed(error.to_string());
    let mut ends = Ends::listen().map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let mut record = begin(arguments);
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

fn begin(arguments: &Arguments) -> Record {
    let mut notes = arguments.unused();
    if cfg!(debug_assertions) {
        notes.push("built without optimisation (debug): the figures mean nothing".to_owned());
    }
    let machine = Machine::look();
    if machine.load[0].is_some_and(|load| load > machine.cores as f64 / 2.0) {
        let load = machine.load[0].unwrap_or_default();
        notes.push(format!("the machine was busy: load average {load:.2} at the beginning"));
    }
    if arguments.compare == Compare::None {
        notes.push("nothing to compare with was measured (--compare none)".to_owned());
    }
    // Without a counter there is none in the processes either.
    if meter::Meter::begin().read().instructions.is_none() {
        let why = "instructions are left out: this machine does not count them for us \
                   (perf_event_open; see kernel.perf_event_paranoid)";
        notes.push(why.to_owned());
    }
    let cases = arguments.cases().into_iter();
    Record {
        forebay: env!("CARGO_PKG_VERSION").to_owned(),
        rustc: env!("FOREBAY_RUSTC").to_owned(),
        broker: String::new(),
        machine,
        command: command(std::env::args().skip(1)),
        began: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        seconds: 0.0,
        cut_short: None,
        notes,
        cases: cases.map(|case| Measured { case, rounds: Vec::new() }).collect(),
    }
}

/// What was typed, without the broker's URL, which holds a password.
fn command(arguments: impl Iterator<Item = String>) -> String {
    let (mut words, mut arguments) = (vec!["forebay".to_owned()], arguments);
    while let Some(word) = arguments.next() {
        if word == "--url" {
            _ = arguments.next();
        } else if !word.starts_with("--url=") {
            words.push(word);
        }
    }
    words.join(" ")
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
            whole.runs.insert(who, ground.run(&one.case, who).await?);
            screen.done();
        }
        one.rounds.push(whole);
        screen.so_far(case, so_far(one));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_repeated_without_the_url() {
        let words = "bench --url amqp://u:hush@a -s drain --url=amqp://u:hush@b --rounds 3";
        let repeated = command(words.split(' ').map(str::to_owned));
        assert_eq!(repeated, "forebay bench -s drain --rounds 3");
    }

    #[test]
    fn json_can_be_read_again() {
        let record = digest::tests::drained(&[[900.0, 1000.0, 300.0]]);
        let text = json(&record).unwrap();
        let again: Record = serde_json::from_str(&text).unwrap();
        assert_eq!(json(&again).unwrap(), text);
        assert!(text.contains("\"results\"") && text.contains("\"met\": false"), "{text}");
    }
}
