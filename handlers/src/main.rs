//! `forebay-run`: a worker from a `forebay.toml`.
//! In: flags, the environment, a manifest, signals. Out: jobs done; a summary on standard output,
//! logs on standard error, an exit code.

mod arguments;
mod logs;
mod signals;
mod spans;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use forebay_handlers::app::{self, App};
use forebay_worker::{Config, RunError};
use tracing::error;

use crate::arguments::Arguments;
use crate::signals::Signals;
use crate::spans::Spans;

/// How the process ends; `--help` lists them.
const WORK_FAILED: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let overrides = arguments.overrides();
    let opened = app::open(&arguments.config, &overrides).map_err(|faults| {
        let count = faults.0.len();
        format!("{faults}\n{count} fault{} found", if count == 1 { "" } else { "s" })
    });
    let ready = opened.and_then(|app| {
        let config = app::config(&app.manifest.broker, &overrides);
        let mut spans = if arguments.check { Spans::none() } else { Spans::begin() };
        logs::begin(&arguments.log, arguments.log_format, spans.layer())?;
        Ok((app, config.map_err(|error| error.to_string())?, spans))
    });
    match ready {
        Err(faults) => {
            eprintln!("{faults}");
            ExitCode::from(USAGE)
        }
        Ok((app, config, _)) if arguments.check => {
            println!("{}", table::summary(&app.manifest, &config));
            ExitCode::SUCCESS
        }
        Ok((app, config, spans)) => spans.during(|| run(app, &config)),
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
