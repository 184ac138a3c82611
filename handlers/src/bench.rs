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
mod session;
mod side;
mod site;
mod stats;
mod text;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use forebay_handlers::Manifest;
use forebay_handlers::app::{self, Overrides};
use forebay_handlers::manifest::Broker;
use forebay_worker::{Config, Declare};

pub(crate) use self::arguments::{Arguments, Target};
use self::arguments::{Compare, Format};
use self::machine::Machine;
use self::record::{Measured, Record};
use crate::{UNREACHABLE, USAGE, WORK_FAILED};

/// Why nothing could be measured.
enum Stop {
    Usage(String),
    Broker(String),
    Failed(String),
}

/// Measures, or shows what was measured before.
pub(crate) fn main(arguments: &Arguments) -> ExitCode {
    let record = match arguments.from.split_first() {
        Some((first, others)) => read_all(first, others),
        None => measure(arguments),
    };
    let shown = record.and_then(|record| {
        show(arguments, &record)?;
        Ok(record)
    });
    let (code, words) = match shown {
        // Its reason is among what was shown.
        Ok(record) if record.cut_short.is_some() && arguments.from.is_empty() => {
            (WORK_FAILED, None)
        }
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

fn read_all(first: &Path, others: &[PathBuf]) -> Result<Record, Stop> {
    others.iter().try_fold(read(first)?, |record, file| {
        record.join(read(file)?).map_err(|differs| {
            let (first, file) = (first.display(), file.display());
            let remedy = "show them one by one, or measure them again alike";
            Stop::Usage(format!("{first} and {file} do not go together: {differs}; {remedy}"))
        })
    })
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
        Some(file) if digest::results(record).is_empty() => {
            let file = file.display();
            Err(Stop::Failed(format!("no round was measured; {file} stays as it is")))
        }
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
    if let Some(file) = &arguments.write {
        // Not after all the time that measuring takes.
        document::writable(file).map_err(Stop::Usage)?;
    }
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
    let measured = runtime.block_on(session::run(arguments, &config, begin(arguments)));
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
    let config = app::config(&broker, &overrides).map_err(|error| error.to_string())?;
    // Whoever sits before the screen mends a password sooner than we try it again.
    Ok(config.access_patience(Duration::ZERO))
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
    fn runs_on_one_machine_are_shown_as_one() {
        let record = || digest::tests::drained(&[[900.0, 1000.0, 300.0]; 6]);
        let mut later = record();
        later.command = "forebay bench --scenario burst".to_owned();
        later.notes.push("the time limit was reached".to_owned());
        let both = record().join(later).unwrap();
        assert_eq!(both.cases.len(), 2 * record().cases.len());
        assert!(both.command.ends_with(" and forebay bench --scenario burst"), "{}", both.command);
        assert_eq!(both.notes.len(), record().notes.len() + 1);

        let mut other = record();
        other.broker = "RabbitMQ 3.10.0".to_owned();
        let differs = record().join(other).unwrap_err();
        assert!(differs.contains("RabbitMQ 3.10.0"), "{differs}");
    }

    #[test]
    fn json_can_be_read_again() {
        let record = digest::tests::drained(&[[900.0, 1000.0, 300.0]; 6]);
        let text = json(&record).unwrap();
        let again: Record = serde_json::from_str(&text).unwrap();
        assert_eq!(json(&again).unwrap(), text);
        assert!(text.contains("\"results\"") && text.contains("\"met\": false"), "{text}");
    }
}
