//! The command line of `forebay-gateway`.
//! In: arguments and the environment. Out: [`Settings`]: flags before variables before the file.

use std::path::{Path, PathBuf};

use clap::{ArgAction, CommandFactory, Parser, ValueEnum};
use clap_complete::Shell;
use forebay_gateway::Settings;
use forebay_producer::{Declare, manual};

use crate::logs::{self, LogFormat};
use crate::probe::Probe;

const FILE: &str = "gateway.toml";

const EXAMPLES: &str = "\
Examples:
  forebay-gateway                              serve as ./gateway.toml says
  forebay-gateway --check                      look whether it would, and change nothing
  forebay-gateway -c /etc/forebay/gateway.toml --listen 0.0.0.0:443
  forebay-gateway --listen 0.0.0.0:8090 --insecure-http    behind something that does TLS
  forebay-gateway --probe readyz               ask a gateway that runs here; exit code 0 or 1

Signals:
  TERM, INT   tell clients to connect again, finish (within `grace`), then end; a second one ends
              at once

Exit codes:
  0  closed; nothing wrong (--check); yes (--probe)
  1  connections were cut off; no (--probe)
  2  wrong arguments or settings, where everything wrong is listed; an address that cannot be had

Every key of gateway.toml, every verb and every error: docs/gateway.md";

/// Jobs in and events out over Socket.IO, WebSocket, Server-Sent Events and HTTP.
#[derive(Debug, Parser)]
#[command(name = "forebay-gateway", version, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The settings. Without the flag ./gateway.toml, if it is there.
    #[arg(short, long, value_name = "FILE", env = "FOREBAY_GATEWAY_CONFIG")]
    config: Option<PathBuf>,

    /// Checks the settings and what they name on this machine, prints a summary, and ends.
    #[arg(long)]
    pub(crate) check: bool,

    /// Where clients come in.
    #[arg(long, value_name = "ADDRESS:PORT", env = "FOREBAY_GATEWAY_LISTEN")]
    listen: Option<String>,

    /// Lets other machines in without TLS: something in front of the gateway does it.
    #[arg(long, env = "FOREBAY_GATEWAY_INSECURE_HTTP")]
    insecure_http: bool,

    /// Where /livez, /readyz and /metrics are answered; or `off`.
    #[arg(long, value_name = "ADDRESS:PORT", env = "FOREBAY_GATEWAY_OPERATION")]
    operation: Option<String>,

    /// The secret of tokens signed with HS256.
    #[arg(long, value_name = "FILE", env = "FOREBAY_GATEWAY_SECRET_FILE")]
    secret_file: Option<PathBuf>,

    /// The key set of other tokens: an address with https://, or a file.
    #[arg(long, value_name = "URL|FILE", env = "FOREBAY_GATEWAY_JWKS")]
    jwks: Option<String>,

    /// A page that may use the gateway; several are separated by commas.
    #[arg(
        long = "origin",
        value_name = "ORIGIN",
        value_delimiter = ',',
        env = "FOREBAY_GATEWAY_ORIGINS"
    )]
    origins: Vec<String>,

    /// Serves a page at /: to publish jobs, and to see what becomes of them.
    #[arg(long, env = "FOREBAY_GATEWAY_PAGE")]
    page: bool,

    /// Where the broker is: amqp://user:password@host:5672/vhost.
    #[arg(long, value_name = "URL", env = "AMQP_URL", hide_env_values = true)]
    url: Option<String>,

    /// First part of every name on the broker.
    #[arg(long, value_name = "NAME", env = "FOREBAY_NAMESPACE")]
    namespace: Option<String>,

    /// What may be declared on the broker.
    #[arg(long, value_name = "WHAT", env = "FOREBAY_DECLARE")]
    declare: Option<Declares>,

    /// Refuses what exists on the broker with other arguments.
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

    /// Asks the gateway that runs here about itself, prints its answer, and ends.
    #[arg(long, value_name = "PAGE", num_args = 0..=1, default_missing_value = "livez")]
    pub(crate) probe: Option<Probe>,

    /// Prints a script that completes the flags in this shell.
    #[arg(long, value_name = "SHELL")]
    completions: Option<Shell>,

    /// Prints the manual page.
    #[arg(long)]
    man: bool,

    /// What to log: a level, or levels by module.
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
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Declares {
    Auto,
    Never,
}

impl Arguments {
    /// What is asked about the program itself, if anything.
    pub(crate) fn about_us(&self) -> Option<Vec<u8>> {
        let (mut command, mut text) = (Self::command(), Vec::new());
        if let Some(shell) = self.completions {
            clap_complete::generate(shell, &mut command, "forebay-gateway", &mut text);
        } else if self.man {
            command.build();
            manual::page(&command, &command, &mut text).expect("a vector takes everything");
        } else {
            return None;
        }
        Some(text)
    }

    /// The file's settings with what was said here. An empty variable counts as none.
    pub(crate) fn settings(&self) -> Result<Settings, String> {
        let mut settings = match &self.config {
            Some(file) => Settings::load(file).map_err(|faults| faults.to_string())?,
            None if Path::new(FILE).exists() => {
                Settings::load(FILE).map_err(|faults| faults.to_string())?
            }
            None => Settings::default(),
        };
        let stated = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        if let Some(listen) = stated(&self.listen) {
            settings.listen = listen;
        }
        if let Some(listen) = stated(&self.operation) {
            settings.operation.listen = listen;
        }
        settings.insecure_http |= self.insecure_http;
        settings.page |= self.page;
        if let Some(file) = self.secret_file.as_ref().filter(|file| !file.as_os_str().is_empty()) {
            settings.auth.secret_file = Some(file.clone());
        }
        if let Some(jwks) = stated(&self.jwks) {
            settings.auth.jwks = Some(jwks);
        }
        let origins: Vec<_> = self.origins.iter().filter(|origin| !origin.is_empty()).collect();
        if !origins.is_empty() {
            settings.origins = Some(origins.into_iter().cloned().collect());
        }
        if let Some(url) = stated(&self.url) {
            settings.broker.url = Some(url);
        }
        if let Some(namespace) = stated(&self.namespace) {
            settings.broker.namespace = Some(namespace);
        }
        let broker = &mut settings.broker;
        broker.declare = self.declare.map(Into::into).or(broker.declare);
        broker.strict_topology = self.strict_topology.or(broker.strict_topology);
        Ok(settings)
    }
}

impl From<Declares> for Declare {
    fn from(declares: Declares) -> Self {
        match declares {
            Declares::Auto => Self::Auto,
            Declares::Never => Self::Never,
        }
    }
}

/// What `--check` prints.
pub(crate) fn summary(settings: &Settings) -> String {
    let tls = match (&settings.tls, settings.insecure_http) {
        (Some(_), _) => "with TLS",
        (None, true) => "without TLS, as insecure_http says",
        (None, false) => "without TLS, for this machine",
    };
    let mut keys = Vec::new();
    if settings.auth.secret_file.is_some() {
        keys.push("HS256 by secret_file".to_owned());
    }
    if let Some(jwks) = &settings.auth.jwks {
        keys.push(format!("keys of {jwks}"));
    }
    if settings.anonymous.is_some() {
        keys.push("without a token, as [anonymous] says".to_owned());
    }
    let page = if settings.page { "; a page at /" } else { "" };
    let origins = settings.origins.as_ref().map_or("this machine".to_owned(), |all| all.join(", "));
    format!(
        "clients    {} {tls}{page}\ntokens     {}\npages of   {origins}\noperation  {}\nnothing wrong",
        settings.listen,
        keys.join("; "),
        settings.operation.listen,
    )
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
        let page = Arguments::parse_from(["forebay-gateway", "--man"]).about_us().unwrap();
        let page = String::from_utf8(page).unwrap();
        for part in ["SH NAME", "SH SIGNALS", "SH \"EXIT STATUS\"", "SH ENVIRONMENT", "AMQP_URL"] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }

    #[test]
    fn flags_come_before_the_file() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("gateway.toml");
        std::fs::write(&file, "listen = \"127.0.0.1:1\"\n[operation]\nlisten = \"off\"").unwrap();
        let line = format!(
            "forebay-gateway -c {} --listen 127.0.0.1:2 --origin https://a --origin https://b,null \
             --url amqp://x --namespace shop --secret-file s --insecure-http --page",
            file.display()
        );
        let settings = Arguments::parse_from(line.split_whitespace()).settings().unwrap();
        assert_eq!(
            (settings.listen.as_str(), settings.operation.listen.as_str()),
            ("127.0.0.1:2", "off")
        );
        let origins = ["https://a", "https://b", "null"].map(str::to_owned);
        assert_eq!(settings.origins, Some(origins.to_vec()));
        assert_eq!(settings.broker.namespace.as_deref(), Some("shop"));
        assert!(settings.insecure_http && settings.page && settings.auth.secret_file.is_some());
    }

    #[test]
    fn what_may_be_declared_is_said_by_flags_or_the_file_wherever_the_url_comes_from() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("gateway.toml");
        let broker = "url = \"amqp://x\"\ndeclare = \"never\"\nstrict_topology = true";
        std::fs::write(&file, format!("[broker]\n{broker}")).unwrap();
        let read = |flags: &str| {
            let line = format!("forebay-gateway -c {} {flags}", file.display());
            let settings = Arguments::parse_from(line.split_whitespace()).settings().unwrap();
            let config = settings.config().unwrap();
            (config.declares(), config.is_strict())
        };
        assert_eq!(read(""), (Declare::Never, true));
        assert_eq!(
            read("--url amqp://y --declare auto --strict-topology=false"),
            (Declare::Auto, false)
        );
    }
}
