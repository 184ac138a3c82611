//! `forebay-gateway`: jobs in and events out, for clients that have no AMQP.
//! In: flags, the environment, `gateway.toml`, signals. Out: doors that are open; an exit code.

mod arguments;
mod descriptors;
mod logs;
mod probe;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use forebay_gateway::{Gateway, Settings};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info};

use crate::arguments::Arguments;
use crate::probe::Probe;

/// How the process ends; `--help` lists them.
const CUT_OFF: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(text) = arguments.about_us() {
        let written = io::stdout().write_all(&text);
        return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(CUT_OFF) };
    }
    if let Some(page) = arguments.probe {
        return ask(page, &arguments);
    }
    let ready = arguments.settings().and_then(|settings| {
        settings.check().map_err(|faults| {
            let count = faults.0.len();
            format!("{faults}\n{count} fault{} found", if count == 1 { "" } else { "s" })
        })?;
        logs::begin(&arguments.log, arguments.log_format)?;
        Ok(settings)
    });
    match ready {
        Err(faults) => {
            eprintln!("{faults}");
            ExitCode::from(USAGE)
        }
        Ok(settings) if arguments.check => {
            println!("{}", arguments::summary(&settings));
            ExitCode::SUCCESS
        }
        Ok(settings) => run(&settings),
    }
}

/// A health check.
fn ask(page: Probe, arguments: &Arguments) -> ExitCode {
    let answer = arguments.settings().and_then(|settings| page.ask(&settings.operation.listen));
    match answer {
        Ok(answer) => {
            // Whoever started us may read it no more; that is no reason to end otherwise.
            _ = writeln!(io::stdout(), "{}", answer.trim_end());
            ExitCode::SUCCESS
        }
        Err(answer) => {
            eprintln!("{}", answer.trim_end());
            ExitCode::from(CUT_OFF)
        }
    }
}

fn run(settings: &Settings) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no threads to run on: {error}");
            return ExitCode::from(CUT_OFF);
        }
    };
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = match signals() {
            Ok(signals) => signals,
            Err(error) => {
                error!(%error, "signals cannot be listened to");
                return ExitCode::from(CUT_OFF);
            }
        };
        descriptors::provide(settings.max_connections);
        let gateway = match Gateway::open(settings) {
            Ok(gateway) => gateway,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::from(USAGE);
            }
        };
        if let Some(address) = gateway.operation() {
            info!(%address, "answering /livez, /readyz and /metrics");
        }
        let (told, asked) = tokio::sync::oneshot::channel();
        let running = gateway.run(async move {
            _ = asked.await;
        });
        let mut running = std::pin::pin!(running);
        tokio::select! {
            // Cancel-safe: it is awaited on below.
            _ = &mut running => return ExitCode::from(CUT_OFF),
            () = either(&mut terminate, &mut interrupt) => {}
        }
        _ = told.send(());
        tokio::select! {
            finished = running => ExitCode::from(if finished { 0 } else { CUT_OFF }),
            () = either(&mut terminate, &mut interrupt) => {
                info!("a second signal: ending at once");
                ExitCode::from(CUT_OFF)
            }
        }
    })
}

fn signals() -> io::Result<(Signal, Signal)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
