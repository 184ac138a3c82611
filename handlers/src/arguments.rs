//! The command line of `forebay-run`.
//! In: arguments and the environment. Out: [`Arguments`], and what of them comes before the
//! manifest.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, CommandFactory, Parser, ValueEnum};
use clap_complete::Shell;
use forebay_handlers::app::Overrides;
use forebay_handlers::manifest::{InvalidListen, Listen};
use forebay_producer::manual;
use forebay_worker::Declare;

use crate::logs::{self, LogFormat};
use crate::operation::probe::Probe;

const EXAMPLES: &str = "\
Examples:
  forebay-run                              work as ./forebay.toml says
  forebay-run --check                      look whether it would work, and change nothing
  forebay-run -c /etc/shop.toml -q mail    consume queue `mail` only
  forebay-run --log forebay_worker=debug   tell more
  forebay-run --listen 0.0.0.0:9464        answer probes and scrapes from other machines
  forebay-run --probe readyz               ask a worker that runs here; exit code 0 or 1

Signals:
  TERM, INT   finish the running jobs (within `grace`), then end; a second one ends at once
  USR1        log what is running

Exit codes:
  0  drained; nothing wrong (--check); yes (--probe)
  1  jobs were stopped unfinished, or the worker ended by itself; no (--probe)
  2  wrong arguments or a wrong manifest, where everything wrong is listed; an address of --listen
     that cannot be had
  3  the broker refused us

What it answers at --listen, and every metric: docs/operation.md";

/// Runs the functions of a forebay.toml for the jobs on RabbitMQ.
#[derive(Debug, Parser)]
#[command(name = "forebay-run", version, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The manifest.
    #[arg(short, long, value_name = "FILE", default_value = "forebay.toml")]
    pub(crate) config: PathBuf,

    /// Checks the manifest and what it names on this machine, prints a summary, and ends.
    #[arg(long)]
    pub(crate) check: bool,

    /// Consumes only these queues of the manifest.
    #[arg(short, long = "queue", value_name = "NAME", value_delimiter = ',')]
    queues: Vec<String>,

    /// Where the broker is: amqp://user:password@host:5672/vhost.
    #[arg(long, value_name = "URL", env = "AMQP_URL", hide_env_values = true)]
    url: Option<String>,

    /// First part of every name on the broker.
    #[arg(long, value_name = "NAME", env = "FOREBAY_NAMESPACE")]
    namespace: Option<String>,

    /// What may be declared on the broker.
    #[arg(long, value_name = "WHAT", env = "FOREBAY_DECLARE")]
    declare: Option<Declares>,

    /// Refuses queues that exist with other arguments.
    #[arg(
        long,
        env = "FOREBAY_STRICT_TOPOLOGY",
        value_name = "true|false",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        action = ArgAction::Set
    )]
    strict_topology: Option<bool>,

    /// Ends, with code 1, when a queue was not consumed for so long.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    exit_after: Option<Duration>,

    /// Where it answers /livez, /readyz, /metrics and /scale; or `off`. Default: 127.0.0.1:9464, if
    /// it is free.
    #[arg(long, value_name = "HOST:PORT", env = "FOREBAY_LISTEN")]
    listen: Option<String>,

    /// Asks the worker that listens there, prints its answer, and ends.
    #[arg(long, value_name = "PAGE", num_args = 0..=1, default_missing_value = "livez")]
    pub(crate) probe: Option<Probe>,

    /// What to log: a level, or levels by module. The client library lapin stays off unless it is
    /// named: it logs payloads, and at level trace the password.
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = "info")]
    pub(crate) log: String,

    /// How it is logged: auto (text on a terminal, JSON elsewhere), text or json.
    #[arg(
        long,
        value_name = "FORMAT",
        env = "FOREBAY_LOG_FORMAT",
        default_value = "auto",
        value_parser = logs::format
    )]
    pub(crate) log_format: LogFormat,

    /// Prints a script that completes the flags in this shell.
    #[arg(long, value_name = "SHELL")]
    pub(crate) completions: Option<Shell>,

    /// Prints the manual page.
    #[arg(long)]
    pub(crate) man: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Declares {
    Auto,
    Never,
}

impl Arguments {
    /// Where to answer, if it was said here. An empty variable counts as none.
    ///
    /// # Errors
    /// When it is no address.
    pub(crate) fn listen(&self) -> Result<Option<Listen>, String> {
        let Some(text) = self.listen.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let refused = |error: InvalidListen| format!("--listen {error}; {}", InvalidListen::REMEDY);
        text.parse().map(Some).map_err(refused)
    }

    /// What is asked about the program itself, if anything.
    pub(crate) fn about_us(&self) -> Option<Vec<u8>> {
        let (mut command, mut text) = (Self::command(), Vec::new());
        if let Some(shell) = self.completions {
            clap_complete::generate(shell, &mut command, "forebay-run", &mut text);
        } else if self.man {
            command.build();
            manual::page(&command, &command, &mut text).expect("a vector takes everything");
        } else {
            return None;
        }
        Some(text)
    }

    /// What comes before the manifest. An empty variable counts as none.
    pub(crate) fn overrides(&self) -> Overrides {
        let stated = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        Overrides {
            queues: self.queues.clone(),
            url: stated(&self.url),
            namespace: stated(&self.namespace),
            declare: self.declare.map(|declare| match declare {
                Declares::Auto => Declare::Auto,
                Declares::Never => Declare::Never,
            }),
            strict_topology: self.strict_topology,
            exit_after: self.exit_after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_manual_page_says_what_the_help_says() {
        let page = Arguments::parse_from(["forebay-run", "--man"]).about_us().unwrap();
        let page = String::from_utf8(page).unwrap();
        for part in ["SH NAME", "SH SIGNALS", "SH \"EXIT STATUS\"", "SH ENVIRONMENT", "AMQP_URL"] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }

    #[test]
    fn flags_become_overrides() {
        let line = "forebay-run -q a,b -q c --url amqp://x --namespace shop --declare never \
                    --strict-topology --exit-after 5m";
        let overrides = Arguments::parse_from(line.split_whitespace()).overrides();
        assert_eq!(overrides.queues, ["a", "b", "c"]);
        assert_eq!(overrides.url.as_deref(), Some("amqp://x"));
        assert_eq!(overrides.namespace.as_deref(), Some("shop"));
        assert_eq!(overrides.declare, Some(Declare::Never));
        assert_eq!(overrides.strict_topology, Some(true));
        assert_eq!(overrides.exit_after, Some(Duration::from_secs(300)));
        for (line, probe) in
            [("forebay-run --probe", Probe::Livez), ("forebay-run --probe readyz", Probe::Readyz)]
        {
            assert_eq!(Arguments::parse_from(line.split_whitespace()).probe, Some(probe));
        }
        let listen = |text| Arguments::parse_from(["forebay-run", "--listen", text]).listen();
        assert_eq!(listen("off"), Ok(Some(Listen::Off)));
        assert_eq!(listen(""), Ok(None));
        assert!(listen("9464").unwrap_err().starts_with("--listen is \"9464\", which is no "));
        let line = ["forebay-run", "--strict-topology=false"];
        assert_eq!(Arguments::parse_from(line).overrides().strict_topology, Some(false));
    }
}
