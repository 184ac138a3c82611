//! The flags that every verb takes, and what becomes of them.
//! In: flags, environment, `forebay.toml`, in this order of precedence. Out: a [`Session`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, ValueEnum};
use forebay_producer::{Config, Declare, Producer, SigningKeys};
use serde::Deserialize;
use tokio::time;

use crate::exit::Stop;
use crate::manifest::{Files, Manifest};
use crate::screen::quoted;
use crate::{moment, screen};

/// Flags that every verb takes.
// No `Debug`: the URL holds a password.
#[derive(Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// The broker: amqp://user:password@host:5672/vhost, several hosts separated by commas; amqps://
    /// for TLS. With a password, better by the variable, because others can see the arguments of a
    /// process [default: amqp://guest:guest@127.0.0.1:5672/%2f]
    // Hidden values: help must not print a password.
    #[arg(long, global = true, env = "AMQP_URL", hide_env_values = true, value_name = "URL")]
    url: Option<String>,

    /// Take the password from this file, in place of the URL's
    #[arg(long, global = true, env = "AMQP_PASSWORD_FILE", value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// Trust brokers whose certificate comes from an issuer in this file, PEM, and no others
    /// [default: the issuers that this machine trusts]
    #[arg(long, global = true, env = "AMQP_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Show the broker this certificate, PEM with its chain
    #[arg(long, global = true, env = "AMQP_CERT_FILE", value_name = "FILE")]
    cert_file: Option<PathBuf>,

    /// The certificate's key, PEM without a passphrase
    #[arg(long, global = true, env = "AMQP_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,

    /// Sign what is published with the first key in this file, a line NAME=SECRET for each; or put
    /// them into FOREBAY_SIGNING_KEYS
    #[arg(long, global = true, env = "FOREBAY_SIGNING_KEYS_FILE", value_name = "FILE")]
    signing_keys_file: Option<PathBuf>,

    /// First part of every queue and exchange name [default: forebay]
    #[arg(
        long,
        global = true,
        env = "FOREBAY_NAMESPACE",
        hide_env_values = true,
        value_name = "NS"
    )]
    namespace: Option<String>,

    /// The manifest [default: ./forebay.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,

    /// How long to wait for the broker
    #[arg(
        long,
        global = true,
        default_value = "10s",
        value_parser = moment::wait,
        value_name = "DURATION"
    )]
    pub(crate) timeout: Duration,

    /// Whether what is missing on the broker may be declared [default: auto]
    #[arg(
        long,
        global = true,
        env = "FOREBAY_DECLARE",
        hide_env_values = true,
        value_enum,
        value_name = "WHAT"
    )]
    pub(crate) declare: Option<MayDeclare>,

    /// Refuse a queue that exists with other arguments, instead of warning
    #[arg(
        long,
        global = true,
        env = "FOREBAY_STRICT_TOPOLOGY",
        hide_env_values = true,
        num_args = 0,
        default_missing_value = "true"
    )]
    pub(crate) strict_topology: Option<bool>,

    /// The management API: http://host:15672; with a password, better by the variable, because others
    /// can see the arguments of a process [default: none]
    #[arg(
        long,
        global = true,
        env = "FOREBAY_MANAGEMENT_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    management_url: Option<String>,

    /// Log to stderr what goes on
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,

    /// Where each value comes from, by the flag's name.
    #[arg(skip)]
    origins: BTreeMap<String, ValueSource>,
}

/// How results are printed: for people or for programs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
}

/// [`Declare`] as an argument and in the manifest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MayDeclare {
    #[default]
    Auto,
    Never,
}

/// What a verb needs to know besides its own arguments.
pub(crate) struct Session {
    pub(crate) config: Config,
    pub(crate) manifest: Manifest,
    pub(crate) format: Format,
    pub(crate) timeout: Duration,
    /// The management API's URL; it holds credentials and is never shown.
    pub(crate) management: Option<String>,
}

impl Globals {
    /// The broker's URL. An empty variable counts as none: compose files set such.
    pub(crate) fn url(&self) -> Option<String> {
        self.url.clone().filter(|url| !url.is_empty())
    }

    /// The namespace, with the same rule.
    pub(crate) fn namespace(&self) -> Option<String> {
        self.namespace.clone().filter(|namespace| !namespace.is_empty())
    }

    /// Remembers where each value comes from.
    pub(crate) fn note_origins(&mut self, matches: &ArgMatches) {
        for id in matches.ids() {
            if let Some(source) = matches.value_source(id.as_str()) {
                self.origins.insert(id.to_string(), source);
            }
        }
    }

    /// Where a value comes from, in words; `None` if it was not given.
    pub(crate) fn origin(&self, id: &str) -> Option<&'static str> {
        match self.origins.get(id)? {
            ValueSource::CommandLine => Some("from a flag"),
            ValueSource::EnvVariable => Some("from the environment"),
            _ => None,
        }
    }

    /// The flags that a further command must have to mean the same broker and namespace. The URL
    /// is not among them: it holds a password.
    pub(crate) fn repeated(&self) -> String {
        let flag = |id: &str| self.origins.get(id) == Some(&ValueSource::CommandLine);
        let mut flags = String::new();
        if let Some(file) = self.config.as_ref().filter(|_| flag("config")) {
            flags += &format!(" --config {}", quoted(&file.display().to_string()));
        }
        if let Some(namespace) = self.namespace().filter(|_| flag("namespace")) {
            flags += &format!(" --namespace {namespace}");
        }
        if flag("url") {
            flags += " --url \"$AMQP_URL\"";
        }
        flags
    }

    /// Reads the manifest and puts everything together.
    pub(crate) fn session(&self) -> anyhow::Result<Session> {
        let manifest = Manifest::find(self.config.as_deref())?;
        let url = self.url().or_else(|| manifest.broker.url.clone());
        let mut config = match &url {
            Some(url) => Config::new(url)?,
            None => Config::from_env()?,
        };
        let files = manifest.files();
        files.check("cert_file and key_file of [broker]")?;
        config = self.secrets(files.onto(config))?;
        config = config.retention(manifest.retention()?).retention_from_env()?;
        if let Some(namespace) = self.namespace().or(manifest.broker.namespace.clone()) {
            config = config.namespace(&namespace)?;
        }
        let declare = self.declare.or(manifest.broker.declare).unwrap_or_default();
        let strict = self.strict_topology.or(manifest.broker.strict_topology).unwrap_or(false);
        for queue in manifest.queue_names() {
            config = config.queue_type(&queue, manifest.queue_type(&queue));
        }
        let config = config
            .declare(declare.into())
            .strict_topology(strict)
            .publish_deadline(self.timeout)
            // Whoever sits before the screen mends a password sooner than we try it again.
            .access_patience(Duration::ZERO);
        let management = self.management_url.clone().filter(|url| !url.is_empty());
        let (format, timeout) = (self.output, self.timeout);
        Ok(Session { config, manifest, format, timeout, management })
    }
}

impl Globals {
    /// Files of secrets, by the variables that name them.
    pub(crate) fn named_files(&self) -> [(&'static str, Option<&PathBuf>); 5] {
        [
            ("AMQP_PASSWORD_FILE", self.password_file.as_ref()),
            ("AMQP_CA_FILE", self.ca_file.as_ref()),
            ("AMQP_CERT_FILE", self.cert_file.as_ref()),
            ("AMQP_KEY_FILE", self.key_file.as_ref()),
            ("FOREBAY_SIGNING_KEYS_FILE", self.signing_keys_file.as_ref()),
        ]
    }

    /// The files that lead to secrets: the manifest's are there, then come the environment's and
    /// the flags'.
    fn secrets(&self, config: Config) -> anyhow::Result<Config> {
        let flags = Files {
            password_file: self.password_file.clone(),
            ca_file: self.ca_file.clone(),
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
        };
        let flags = flags.stated();
        flags.check("--cert-file and --key-file")?;
        let config = flags.onto(config.secrets_from_env()?);
        let by_flag = self.origins.get("signing_keys_file") == Some(&ValueSource::CommandLine);
        let Some(file) = self.signing_keys_file.as_ref().filter(|_| by_flag) else {
            return Ok(config);
        };
        let unusable =
            |why: String| Stop::Usage(format!("cannot use the keys in {}: {why}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|why| unusable(why.to_string()))?;
        let keys = SigningKeys::parse(&text).map_err(|why| unusable(why.to_string()))?;
        Ok(config.signing_keys(keys))
    }
}

impl MayDeclare {
    /// As `FOREBAY_DECLARE` spells it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Never => "never",
        }
    }
}

impl From<MayDeclare> for Declare {
    fn from(may: MayDeclare) -> Self {
        match may {
            MayDeclare::Auto => Self::Auto,
            MayDeclare::Never => Self::Never,
        }
    }
}

impl Session {
    /// Whether a person reads the result.
    pub(crate) fn for_people(&self) -> bool {
        self.format == Format::Table
    }

    /// A producer that is connected.
    pub(crate) async fn producer(&self) -> anyhow::Result<Producer> {
        Ok(self.patiently(Producer::connect(&self.config)).await?)
    }

    /// Waits for the broker, and says so when that takes longer than a second.
    pub(crate) async fn patiently<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = std::pin::pin!(answer);
        if let Ok(quick) = time::timeout(Duration::from_secs(1), &mut answer).await {
            return quick;
        }
        let (broker, most) = (self.config.broker(), moment::short(self.timeout));
        screen::aside(format_args!("waiting for the broker at {broker}, at most {most}…"));
        answer.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        globals: Globals,
    }

    fn parse(arguments: &[&str]) -> Globals {
        Only::try_parse_from([&["forebay"], arguments].concat()).unwrap().globals
    }

    #[test]
    fn flags_come_before_the_manifest() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("forebay.toml");
        let text = "[broker]\nurl = \"amqp://a\"\nnamespace = \"toml\"\nstrict_topology = true";
        std::fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();

        let session = parse(&["--config", file]).session().unwrap();
        assert_eq!(session.config.topology().namespace(), "toml");
        assert_eq!(session.config.broker(), "a:5672");

        let flags = ["--config", file, "--namespace", "flag", "--url", "amqp://b"];
        let session = parse(&flags).session().unwrap();
        assert_eq!(session.config.topology().namespace(), "flag");
        assert_eq!(session.config.broker(), "b:5672");
    }

    #[test]
    fn the_timeout_is_how_long_a_publish_waits() {
        let session = parse(&["--timeout", "3s", "--url", "amqp://a"]).session().unwrap();
        assert_eq!(session.config.deadline(), Duration::from_secs(3));
    }
}
