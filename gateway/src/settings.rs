//! `gateway.toml`: where the gateway listens, whom it lets in, and how much each may ask for.
//! In: its text. Out: [`Settings`], or what is wrong with it and how to mend it.

mod check;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_producer::{Config, ConfigError, Declare};
use serde::Deserialize;

pub(crate) use self::check::address;
use crate::limits::{Limits, Rate};

/// Everything that can be set, with its defaults; `docs/gateway.md` describes each key. Unknown keys
/// are errors. Durations are texts with a unit (`"30s"`), sizes too (`"256KiB"`). Paths are relative
/// to the folder that the file is in.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Settings {
    /// Where clients come in: `ADDRESS:PORT`. Port 0 means any free one. Default: `127.0.0.1:8090`.
    pub listen: String,
    /// Whether other machines may come in without TLS: something in front of us does it. Default:
    /// false.
    pub insecure_http: bool,
    /// Connections at once. Default: 10,000.
    pub max_connections: usize,
    /// Connections of one address at once; of IPv6, of one /64. Those of `trusted_proxies` do not
    /// count. Default: a tenth of `max_connections`.
    pub max_connections_per_address: Option<usize>,
    /// Addresses and networks whose `X-Forwarded-For` says whom a request comes from. Default: this
    /// machine.
    pub trusted_proxies: Vec<String>,
    /// How long connections may still take when the gateway ends. Default: 10 s.
    #[serde(deserialize_with = "units::duration")]
    pub grace: Duration,
    /// Pages that may use us: `scheme://host[:port]`, `scheme://*.domain`, `null`, or `*` for all.
    /// Default: pages of this machine.
    pub origins: Option<Vec<String>>,
    /// Whether a page to try it with is at `/`. Default: false.
    pub page: bool,
    /// `[tls]`.
    pub tls: Option<Tls>,
    /// `[broker]`.
    pub broker: Broker,
    /// `[auth]`.
    pub auth: Auth,
    /// `[anonymous]`: what those without a token may do. Without the section nobody comes in
    /// without one.
    pub anonymous: Option<Anonymous>,
    /// `[publish]`.
    pub publish: PublishSettings,
    /// `[limits]`.
    pub limits: LimitSettings,
    /// `[replay]`.
    pub replay: Replay,
    /// `[operation]`.
    pub operation: OperationSettings,
}

/// `[tls]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Tls {
    /// Our certificate and its chain, PEM.
    pub cert_file: PathBuf,
    /// Its key, PEM.
    pub key_file: PathBuf,
}

/// `[broker]`. `Debug` does not show the URL: it may hold a password.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Broker {
    /// Where the broker is; `AMQP_URL` comes before it.
    pub url: Option<String>,
    /// The first part of every name on the broker.
    pub namespace: Option<String>,
    /// What may be declared on the broker. Default: what is missing.
    #[serde(deserialize_with = "units::declare")]
    pub declare: Option<Declare>,
    /// Whether what exists with other arguments is refused, instead of one warning. Default: false.
    pub strict_topology: Option<bool>,
    /// The file with the password.
    pub password_file: Option<PathBuf>,
    /// The file with the issuers to trust.
    pub ca_file: Option<PathBuf>,
    /// Our certificate for the broker.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
}

/// `[auth]`: whose tokens are taken, and what they grant.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Auth {
    /// The secret of tokens signed with HS256, at least 32 bytes. A last line break is not part of it.
    pub secret_file: Option<PathBuf>,
    /// The key set of tokens signed with RS256, RS384, RS512, ES256 or EdDSA: an address or a file.
    pub jwks: Option<String>,
    /// How often the key set is read again. Default: 10 min.
    #[serde(deserialize_with = "units::duration")]
    pub jwks_refresh: Duration,
    /// What `iss` has to be. Default: anything.
    pub issuer: Option<String>,
    /// One of these has to be in `aud`. Default: anything.
    #[serde(deserialize_with = "units::one_or_more")]
    pub audience: Vec<String>,
    /// How far clocks may differ. Default: 5 s.
    #[serde(deserialize_with = "units::duration")]
    pub leeway: Duration,
    /// The claim that says whose jobs somebody's jobs are. Default: `sub`.
    pub owner_claim: String,
    /// The claim that says what somebody may do. Default: `forebay`.
    pub grants_claim: String,
    /// Kinds that everybody with a token may publish.
    pub publish: Vec<String>,
    /// What everybody with a token may read: `kind:PATTERN`, `channel:PATTERN`.
    pub read: Vec<String>,
    /// The key that tickets are sealed with, at least 32 bytes; gateways behind one address share
    /// it. Default: one of this process.
    pub ticket_key_file: Option<PathBuf>,
}

/// `[anonymous]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Anonymous {
    /// Kinds that may be published.
    pub publish: Vec<String>,
    /// `kind:PATTERN`, `channel:PATTERN`.
    pub read: Vec<String>,
}

/// `[publish]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct PublishSettings {
    /// Queues that a client may name. Default: `default` alone.
    pub queues: Vec<String>,
    /// The queue of kinds, for clients that name none: `"PATTERN" = "queue"`. Default: `default`.
    pub routes: BTreeMap<String, String>,
    /// The longest delay that a client may ask for. Default: 1 day.
    #[serde(deserialize_with = "units::duration")]
    pub max_delay: Duration,
    /// How long a publish waits for the broker's confirm. Default: 10 s.
    #[serde(deserialize_with = "units::duration")]
    pub deadline: Duration,
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct LimitSettings {
    /// Bytes of one message or request. Default: 256 KiB.
    #[serde(deserialize_with = "units::size")]
    pub message: usize,
    /// Messages of one connection, a second. Default: 20.
    pub messages_per_second: f64,
    /// How many messages may come at once. Default: 100.
    pub messages_burst: u32,
    /// Jobs, kinds and channels that one connection follows. Default: 100.
    pub subscriptions: usize,
    /// Connections of one subject; of those without a token, of one address. Default: 50.
    pub connections: usize,
    /// Jobs that one subject publishes, a second. Default: 20.
    pub publishes_per_second: f64,
    /// How many jobs may come at once. Default: 100.
    pub publishes_burst: u32,
    /// HTTP requests of one subject, a second. Default: 20.
    pub requests_per_second: f64,
    /// How many requests may come at once. Default: 100.
    pub requests_burst: u32,
    /// A client that takes nothing for so long is sent away. Default: 30 s.
    #[serde(deserialize_with = "units::duration")]
    pub slow: Duration,
}

/// `[replay]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Replay {
    /// How far back the memory of this process reaches. Default: 10 min.
    #[serde(deserialize_with = "units::duration")]
    pub window: Duration,
    /// How many bytes it has. Default: 64 MiB.
    #[serde(deserialize_with = "units::size")]
    pub window_bytes: usize,
    /// Readers of the stream for what is older. Default: 8.
    pub readers: usize,
}

/// `[operation]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct OperationSettings {
    /// Where `/livez`, `/readyz` and `/metrics` are answered, without TLS or tokens: `ADDRESS:PORT`,
    /// or `off`. Default: `127.0.0.1:9465`.
    pub listen: String,
}

/// What is wrong with the settings, all of it where it can be told at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Faults {}

impl Settings {
    /// Reads a file. Call [`Settings::check`] once everything else that is to be set is set.
    ///
    /// # Errors
    /// Where the file is wrong.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, Faults> {
        let file = file.as_ref();
        let text = fs::read_to_string(file).map_err(|error| {
            let file = file.display();
            Faults(vec![format!("{file}: cannot be read: {error}; name another with --config")])
        })?;
        Self::parse(&text, file)
    }

    /// Reads a text; `file` is its name in faults, and its folder is where relative paths begin.
    ///
    /// # Errors
    /// Where the text is wrong.
    pub fn parse(text: &str, file: impl AsRef<Path>) -> Result<Self, Faults> {
        let file = file.as_ref();
        let mut settings: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(text.len(), |span| span.start);
            let before = text.get(..start).unwrap_or(text);
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            let what = error.message().replace('\n', ", ");
            Faults(vec![format!("{}:{line}:{column}: {what}; see docs/gateway.md", file.display())])
        })?;
        settings.place(file.parent().unwrap_or(Path::new("")));
        Ok(settings)
    }

    fn place(&mut self, folder: &Path) {
        let broker = &mut self.broker;
        let files = [
            &mut broker.password_file,
            &mut broker.ca_file,
            &mut broker.cert_file,
            &mut broker.key_file,
            &mut self.auth.secret_file,
            &mut self.auth.ticket_key_file,
        ];
        let tls = self.tls.iter_mut().flat_map(|tls| [&mut tls.cert_file, &mut tls.key_file]);
        for file in files.into_iter().flatten().chain(tls) {
            *file = folder.join(&*file);
        }
        if let Some(jwks) = self.auth.jwks.as_mut().filter(|jwks| !jwks.contains("://")) {
            *jwks = folder.join(&*jwks).display().to_string();
        }
    }

    /// The connection's settings: `[broker]`, then the defaults; without a URL there, what the
    /// environment says is the default. The files that lead to the broker's secrets and how long
    /// events are kept are the environment's first.
    ///
    /// # Errors
    /// [`ConfigError`] when one of them cannot be used.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let broker = &self.broker;
        let mut config = match &broker.url {
            Some(url) => Config::new(url)?,
            None => Config::from_env()?,
        };
        if let Some(namespace) = &broker.namespace {
            config = config.namespace(namespace)?;
        }
        if let Some(declare) = broker.declare {
            config = config.declare(declare);
        }
        if let Some(strict) = broker.strict_topology {
            config = config.strict_topology(strict);
        }
        if let Some(file) = &broker.password_file {
            config = config.password_file(file);
        }
        if let Some(file) = &broker.ca_file {
            config = config.ca_file(file);
        }
        if let (Some(cert), Some(key)) = (&broker.cert_file, &broker.key_file) {
            config = config.client_certificate(cert, key);
        }
        let config = config.secrets_from_env()?.retention_from_env()?;
        Ok(config.publish_deadline(self.publish.deadline))
    }

    pub(crate) fn per_address(&self) -> usize {
        self.max_connections_per_address.unwrap_or_else(|| (self.max_connections / 10).max(1))
    }

    pub(crate) fn limits(&self) -> Limits {
        let limits = &self.limits;
        let rate = |per_second, burst| Rate { per_second, burst: f64::from(burst) };
        Limits {
            message: limits.message,
            frames: rate(limits.messages_per_second, limits.messages_burst),
            subscriptions: limits.subscriptions,
            connections: limits.connections,
            publishes: rate(limits.publishes_per_second, limits.publishes_burst),
            requests: rate(limits.requests_per_second, limits.requests_burst),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8090".to_owned(),
            insecure_http: false,
            max_connections: 10_000,
            max_connections_per_address: None,
            trusted_proxies: vec!["127.0.0.0/8".to_owned(), "::1".to_owned()],
            grace: Duration::from_secs(10),
            origins: None,
            page: false,
            tls: None,
            broker: Broker::default(),
            auth: Auth::default(),
            anonymous: None,
            publish: PublishSettings::default(),
            limits: LimitSettings::default(),
            replay: Replay::default(),
            operation: OperationSettings::default(),
        }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            secret_file: None,
            jwks: None,
            jwks_refresh: Duration::from_secs(600),
            issuer: None,
            audience: Vec::new(),
            leeway: Duration::from_secs(5),
            owner_claim: "sub".to_owned(),
            grants_claim: "forebay".to_owned(),
            publish: Vec::new(),
            read: Vec::new(),
            ticket_key_file: None,
        }
    }
}

impl Default for PublishSettings {
    fn default() -> Self {
        Self {
            queues: vec!["default".to_owned()],
            routes: BTreeMap::new(),
            max_delay: Duration::from_secs(24 * 3600),
            deadline: Duration::from_secs(10),
        }
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            message: 256 * 1024,
            messages_per_second: 20.0,
            messages_burst: 100,
            subscriptions: 100,
            connections: 50,
            publishes_per_second: 20.0,
            publishes_burst: 100,
            requests_per_second: 20.0,
            requests_burst: 100,
            slow: Duration::from_secs(30),
        }
    }
}

impl Default for Replay {
    fn default() -> Self {
        Self { window: Duration::from_secs(600), window_bytes: 64 << 20, readers: 8 }
    }
}

impl Default for OperationSettings {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9465".to_owned() }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("listen", &self.listen)
            .field("auth", &self.auth)
            .field("anonymous", &self.anonymous)
            .field("publish", &self.publish)
            .field("limits", &self.limits)
            .field("operation", &self.operation)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("url", &self.url.as_ref().map(|_| "…"))
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}
