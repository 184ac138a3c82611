//! `forebay-run`: a worker from a `forebay.toml`.
//! In: flags, the environment, a manifest, signals. Out: jobs done; a summary on standard output,
//! logs on standard error, an exit code.

mod arguments;
#[cfg(feature = "bench")]
mod bench;
mod logs;
mod operation;
mod signals;
mod spans;
mod table;

use std::io::{self, Write};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use forebay_handlers::Server;
use forebay_handlers::app::{self, App};
use forebay_worker::{Config, RunError};
use futures_util::future::join_all;
use tracing::error;

use crate::arguments::Arguments;
#[cfg(feature = "bench")]
use crate::arguments::Verb;
use crate::operation::Operation;
use crate::operation::probe::Probe;
use crate::signals::{Cut, Signals};
use crate::spans::Spans;

/// How the process ends; `--help` lists them.
const WORK_FAILED: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(text) = arguments.about_us() {
        let written = io::stdout().write_all(&text);
        return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(WORK_FAILED) };
    }
    #[cfg(feature = "bench")]
    match &arguments.verb {
        Some(Verb::Bench(bench)) => return bench::main(bench),
        Some(Verb::BenchSide(target)) => return bench::side(target),
        None => {}
    }
    if let Some(probe) = arguments.probe {
        return ask(probe, &arguments);
    }
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
            println!("{}", table::summary(&app, &config));
            ExitCode::SUCCESS
        }
        Ok((app, config, spans)) => match open(&arguments, &app) {
            Ok(operation) => spans.during(|| run(app, &config, operation)),
            Err(fault) => {
                eprintln!("{fault}");
                ExitCode::from(USAGE)
            }
        },
    }
}

fn open(arguments: &Arguments, app: &App) -> Result<Operation, String> {
    let stated = arguments.listen()?;
    operation::open(stated.as_ref().or(app.manifest.worker.listen.as_ref()))
}

/// A health check, which must not fail over anything that is not the worker's health.
fn ask(probe: Probe, arguments: &Arguments) -> ExitCode {
    let answer = arguments.listen().and_then(|stated| {
        let listen = stated.or_else(|| app::listen(&arguments.config)).unwrap_or_default();
        probe.ask(&listen)
    });
    match answer {
        Ok(answer) => {
            print(answer.trim_end());
            ExitCode::SUCCESS
        }
        Err(answer) => {
            eprintln!("{}", answer.trim_end());
            ExitCode::from(WORK_FAILED)
        }
    }
}

fn run(app: App, config: &Config, operation: Operation) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "no threads to run on");
            return ExitCode::from(WORK_FAILED);
        }
    };
    let code = runtime.block_on(serve(app, config, operation));
    // A blocking read that the kernel never answers must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

async fn serve(app: App, config: &Config, operation: Operation) -> ExitCode {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            error!(%error, "signals cannot be listened to");
            return ExitCode::from(WORK_FAILED);
        }
    };
    let grace = app.manifest.worker.grace;
    let servers = app.servers;
    // Now and not with the first job, so that a broken program is seen at once.
    servers.iter().for_each(Server::start);
    let running = app.worker.start(config);
    let controls = running.controls();
    let answering = operation.begin(controls.clone());
    let mut finished = pin!(running.finished());
    let (ended, cut) = tokio::select! {
        biased;
        // Cancel-safe: what signals have come is seen later.
        cut = signals.obey(&controls, &servers, grace) => (finished.await, Some(cut)),
        ended = &mut finished => (ended, None),
    };
    if cut.is_none() {
        answering.closing();
        tokio::select! {
            _ = join_all(servers.iter().map(Server::close)) => {}
            // Then, and if the end was cut short, the guardian sees to them.
            () = signals.hurry(&controls, &servers) => {}
        }
    }
    let unfinished = cut == Some(Cut::Jobs);
    print(&controls.summary().to_string());
    answering.end();
    match ended {
        Ok(_) if unfinished => ExitCode::from(WORK_FAILED),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = %with_causes(&error), "worker ended");
            ExitCode::from(code_of(&error))
        }
    }
}

/// Whoever started us may read it no more; that is no reason to end otherwise than we would.
fn print(line: &str) {
    _ = writeln!(io::stdout(), "{line}");
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
