//! The log, on standard error.
//! In: a filter and a format. Out: text for people, or one JSON object a line for programs.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For programs: one object a line.
    Json,
}

/// An empty variable counts as none.
pub(crate) fn format(text: &str) -> Result<LogFormat, String> {
    match text {
        "" => Ok(LogFormat::Auto),
        text => LogFormat::from_str(text, false).map_err(|_| "write auto, text or json".to_owned()),
    }
}

/// Begins to log.
pub(crate) fn begin(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::try_new(quiet(filter)).map_err(|error| {
        format!("--log {filter:?} is no filter: {error}; try `info` or `debug`")
    })?;
    let terminal = io::stderr().is_terminal();
    let layer = fmt::layer().with_writer(io::stderr);
    let lines = match format {
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Auto if !terminal => layer.json().flatten_event(true).boxed(),
        LogFormat::Auto | LogFormat::Text => {
            let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
            layer.with_ansi(colours).boxed()
        }
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    Ok(())
}

/// The filter, with the libraries off that it does not name: they log payloads, tokens, the broker's
/// password; or errors that they return to us.
fn quiet(filter: &str) -> String {
    let mut all = if filter.is_empty() { "info" } else { filter }.to_owned();
    for library in ["lapin", "rustls_platform_verifier", "tungstenite"] {
        if !filter.contains(library) {
            all = format!("{all},{library}=off");
        }
    }
    all
}
