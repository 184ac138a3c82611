//! `forebay-run`: a worker from a `forebay.toml`.
//! In: flags, the environment, a manifest, signals. Out: jobs done; a summary on standard output,
//! logs on standard error, an exit code.

mod arguments;
mod signals;
mod table;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use forebay_handlers::app::{self, App};
use forebay_worker::{Config, RunError};
use tracing::error;
use tracing_subscriber::EnvFilter;

use crate::arguments::{Arguments, LOG};
use crate::signals::Signals;

/// How the process ends; `--help` lists them.
const WORK_FAILED: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(text) = arguments.about_us() {
        let written = std::io::stdout().write_all(&text);
        return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(WORK_FAILED) };
    }
    let overrides = arguments.overrides();
    let opened = app::open(&arguments.config, &overrides).map_err(|faults| {
        let count = faults.0.len();
        format!("{faults}\n{count} fault{} found", if count == 1 { "" } else { "s" })
    });
    let ready = opened.and_then(|app| {
        let config = app::config(&app.manifest.broker, &overrides);
        log_to_stderr(&arguments.log)?;
        Ok((app, config.map_err(|error| error.to_string())?))
    });
    match ready {
        Err(faults) => {
            eprintln!("{faults}");
            ExitCode::from(USAGE)
        }
        Ok((app, config)) if arguments.check => {
            println!("{}", table::summary(&app.manifest, &config));
            ExitCode::SUCCESS
        }
        Ok((app, config)) => run(app, &config),
    }
}

fn run(app: App, config: &Config) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "no threads to run on");
            return ExitCode::from(WORK_FAILED);
        }
    };
    let code = runtime.block_on(serve(app, config));
    // A blocking read that the kernel never answers must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

async fn serve(app: App, config: &Config) -> ExitCode {
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            error!(%error, "signals cannot be listened to");
            return ExitCode::from(WORK_FAILED);
        }
    };
    let grace = app.manifest.worker.grace;
    let running = app.worker.start(config);
    let controls = running.controls();
    let obey = tokio::spawn(signals.obey(controls.clone(), grace));
    let ended = running.finished().await;
    let unfinished = signals::was_cut_short(obey).await;
    println!("{}", controls.summary());
    match ended {
        Ok(_) if unfinished => ExitCode::from(WORK_FAILED),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = %with_causes(&error), "worker ended");
            ExitCode::from(code_of(&error))
        }
    }
}

fn code_of(error: &RunError) -> u8 {
    match error {
        RunError::Connect(_) | RunError::Queue { .. } => UNREACHABLE,
        _ => WORK_FAILED,
    }
}

fn with_causes(error: &RunError) -> String {
    let mut words = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        words = format!("{words}: {cause}");
        next = cause.source();
    }
    words
}

/// Text for people, JSON for everything else that reads it.
fn log_to_stderr(filter: &str) -> Result<(), String> {
    // An empty RUST_LOG counts as none.
    let filter = if filter.is_empty() { LOG } else { filter };
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        format!("--log {filter:?} is no filter: {error}; try `info` or `debug`")
    })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        log.init();
    } else {
        log.json().flatten_event(true).with_span_list(false).init();
    }
    Ok(())
}
