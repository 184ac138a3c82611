//! Where the broker is and how we deal with it.
//! In: a URL, or the environment. Out: a [`Config`] that the producer and the worker share.

mod hosts;
mod retention;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use tokio::time::Instant;

pub(crate) use self::hosts::address;
use crate::access::Access;
use crate::wire::signature::{InvalidKeys, SigningKeys};
use crate::wire::topology::{InvalidName, QueueType, Retention, Topology};

const DEFAULT_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";

/// Where the broker is, under which namespace we live there, and how long we wait for it.
///
/// Credentials stand in it; neither `Debug` nor any error or log shows them.
///
/// ```
/// use forebay_producer::Config;
/// use std::time::Duration;
///
/// let config = Config::new("amqp://app:secret@rabbit-1:5672,rabbit-2:5672/shop")?
///     .namespace("shop")?
///     .publish_deadline(Duration::from_secs(10));
/// assert!(!format!("{config:?}").contains("secret"));
/// # Ok::<(), forebay_producer::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct Config {
    pub(crate) hosts: Vec<AMQPUri>,
    pub(crate) access: Access,
    pub(crate) signing_keys: Option<Arc<SigningKeys>>,
    pub(crate) topology: Topology,
    pub(crate) name: String,
    pub(crate) declare: Declare,
    pub(crate) strict: bool,
    pub(crate) publish_deadline: Duration,
    pub(crate) payload_limit: usize,
    pub(crate) patience: Duration,
    pub(crate) queue_types: HashMap<String, QueueType>,
    pub(crate) retention: Retention,
}

/// What Forebay may declare on the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Declare {
    /// What is missing, when it is first needed. The default.
    #[default]
    Auto,
    /// Nothing: for virtual hosts where others create the topology (`forebay topology show`
    /// prints it).
    Never,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not an AMQP URL. The URL is not repeated: it may hold a password.
    #[error(
        "the broker's URL cannot be used: {why}; it looks like \
         amqp://user:password@host:5672/vhost, with / in the vhost written as %2f"
    )]
    Url {
        /// What is wrong with it.
        why: String,
    },
    /// A variable of the environment has a value that is not allowed.
    #[error("{variable}={value} is not allowed: use {allowed}")]
    Variable {
        /// The variable's name.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What may stand there.
        allowed: &'static str,
    },
    /// The keys of signed jobs cannot be used. No secret is repeated.
    #[error("the keys of signed jobs in {place} cannot be used: {why}")]
    Keys {
        /// The variable, or the file that it names.
        place: String,
        /// What is wrong with them.
        why: String,
    },
    /// The namespace is not allowed.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

impl Config {
    /// Takes the broker's URL. Several hosts, nodes of one cluster, may stand in it, separated by
    /// commas: `amqp://user:password@a:5672,[2001:db8::b]:5672/vhost`, or whole URLs one after
    /// another. They are tried in random order, those that failed within the last minute last; one
    /// that refuses is followed by the next at once, one that is silent after a second.
    ///
    /// With `amqps://` connections are encrypted, and the host must prove its name by a certificate.
    ///
    /// Without a vhost, or with an empty one, it is `/`. `heartbeat` (seconds, default 10),
    /// `connection_timeout` (milliseconds, default 10,000) and `auth_mechanism` (`external`: the
    /// user is the one that our certificate names) may be set in the query.
    ///
    /// # Errors
    /// [`ConfigError::Url`] with what is wrong.
    pub fn new(url: &str) -> Result<Self, ConfigError> {
        let bad = |why| ConfigError::Url { why };
        let urls = hosts::one_url_per_host(url).map_err(bad)?;
        let hosts: Vec<_> = urls.iter().map(|url| parse(url)).collect::<Result<_, _>>()?;
        if hosts.is_empty() {
            return Err(bad("it is empty".to_owned()));
        }
        hosts::check(&hosts).map_err(bad)?;
        Ok(Self {
            hosts,
            access: Access::default(),
            signing_keys: None,
            topology: Topology::new("forebay")?,
            name: format!("forebay {}", program()),
            declare: Declare::Auto,
            strict: false,
            publish_deadline: Duration::from_secs(30),
            payload_limit: 16 * 1024 * 1024,
            patience: Duration::from_secs(10),
            queue_types: HashMap::new(),
            retention: Retention::default(),
        })
    }

    /// Reads `AMQP_URL` (default `amqp://guest:guest@127.0.0.1:5672/%2f`), `FOREBAY_NAMESPACE`
    /// (default `forebay`), `FOREBAY_DECLARE` (`auto` or `never`), `FOREBAY_STRICT_TOPOLOGY`
    /// (`true` or `false`), and what [`Config::secrets_from_env`] and
    /// [`Config::retention_from_env`] do. An empty variable counts as none.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(stated)
    }

    /// Reads the variables that lead to secrets: `AMQP_PASSWORD_FILE`, `AMQP_CA_FILE`,
    /// `AMQP_CERT_FILE`, `AMQP_KEY_FILE`, and `FOREBAY_SIGNING_KEYS` or `FOREBAY_SIGNING_KEYS_FILE`.
    /// Each that is set comes before what was set here. For those who take the URL from elsewhere;
    /// [`Config::from_env`] does it as well.
    ///
    /// # Errors
    /// [`ConfigError::Keys`]. The other files are read at each connect.
    pub fn secrets_from_env(self) -> Result<Self, ConfigError> {
        self.secrets_from(stated)
    }

    fn secrets_from(mut self, look: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let files = [
            ("AMQP_PASSWORD_FILE", &mut self.access.password),
            ("AMQP_CA_FILE", &mut self.access.ca),
            ("AMQP_CERT_FILE", &mut self.access.cert),
            ("AMQP_KEY_FILE", &mut self.access.key),
        ];
        for (name, file) in files {
            if let Some(path) = look(name) {
                *file = Some(path.into());
            }
        }
        if let Some(keys) = keys_from(look)? {
            self.signing_keys = Some(Arc::new(keys));
        }
        Ok(self)
    }

    fn from_lookup(look: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let url = look("AMQP_URL").unwrap_or_else(|| DEFAULT_URL.to_owned());
        let mut config = Self::new(&url)?.secrets_from(&look)?.retention_from(&look)?;
        if let Some(namespace) = look("FOREBAY_NAMESPACE") {
            config = config.namespace(&namespace)?;
        }
        if let Some(value) = look("FOREBAY_DECLARE") {
            config.declare = match value.as_str() {
                "auto" => Declare::Auto,
                "never" => Declare::Never,
                _ => return Err(variable("FOREBAY_DECLARE", value, "auto or never")),
            };
        }
        if let Some(value) = look("FOREBAY_STRICT_TOPOLOGY") {
            config.strict = value
                .parse()
                .map_err(|_| variable("FOREBAY_STRICT_TOPOLOGY", value, "true or false"))?;
        }
        Ok(config)
    }

    /// Sets the namespace, the first part of every exchange and queue name. Default: `forebay`.
    ///
    /// # Errors
    /// [`ConfigError::Name`] unless it is 1 to 64 of `a-z`, `0-9` and `-`.
    pub fn namespace(mut self, namespace: &str) -> Result<Self, ConfigError> {
        self.topology = Topology::new(namespace)?;
        Ok(self)
    }

    /// Takes the password from this file, in place of the URL's. A last line break is not part of
    /// it. It is read at each connect, so a new password needs no restart. Default: none.
    #[must_use]
    pub fn password_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.access.password = Some(file.into());
        self
    }

    /// Trusts brokers whose certificate comes from an issuer in this file (PEM, one certificate or
    /// several), and no others. Default: the issuers that this machine trusts.
    ///
    /// The three files of TLS are read at each connect, so renewed ones need no restart. They are
    /// refused together with `amqp://`.
    #[must_use]
    pub fn ca_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.access.ca = Some(file.into());
        self
    }

    /// Shows the broker a certificate of ours: a file with it and its chain, its own one first, and
    /// one with its key without a passphrase, both PEM. Default: none.
    #[must_use]
    pub fn client_certificate(
        mut self,
        cert_file: impl Into<PathBuf>,
        key_file: impl Into<PathBuf>,
    ) -> Self {
        (self.access.cert, self.access.key) = (Some(cert_file.into()), Some(key_file.into()));
        self
    }

    /// Signs every job that is published, with the first of these keys. Default: none is signed.
    /// A job that a worker sends on, to be retried for example, stays as it was signed or not.
    #[must_use]
    pub fn signing_keys(mut self, keys: SigningKeys) -> Self {
        self.signing_keys = Some(Arc::new(keys));
        self
    }

    /// Sets the name that the management page shows for our connections.
    #[must_use]
    pub fn connection_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets what may be declared on the broker. Default: [`Declare::Auto`].
    #[must_use]
    pub fn declare(mut self, declare: Declare) -> Self {
        self.declare = declare;
        self
    }

    /// Refuses to work with a queue that exists with other arguments, instead of warning once and
    /// going on. Default: `false`.
    #[must_use]
    pub fn strict_topology(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Sets how long a publish waits for its confirm, through restarts of the broker too.
    /// Default: 30 s.
    #[must_use]
    pub fn publish_deadline(mut self, deadline: Duration) -> Self {
        self.publish_deadline = deadline;
        self
    }

    /// Sets the largest payload in bytes, checked before sending. Default: 16 MiB, the limit of
    /// RabbitMQ 4 (`max_message_size`).
    #[must_use]
    pub fn payload_limit(mut self, bytes: usize) -> Self {
        self.payload_limit = bytes;
        self
    }

    /// Sets how long refused credentials are tried again at the first connect, because a broker
    /// that starts may not have its users yet. Once connected we try for ever. Default: 10 s.
    #[must_use]
    pub fn access_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sets how a queue is kept if it has to be declared. Default: quorum.
    #[must_use]
    pub fn queue_type(mut self, queue: &str, queue_type: QueueType) -> Self {
        self.queue_types.insert(queue.to_owned(), queue_type);
        self
    }

    /// Sets how long events are kept, if their stream has to be declared. Default: 7 days, and no
    /// more than 1 GB.
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// How long events are kept, if their stream has to be declared.
    pub fn kept(&self) -> &Retention {
        &self.retention
    }

    /// How a queue is kept if it has to be declared.
    pub fn type_of(&self, queue: &str) -> QueueType {
        self.queue_types.get(queue).copied().unwrap_or_default()
    }

    /// How long refused credentials are tried again at the first connect.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Names and arguments under this namespace.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// What may be declared.
    pub fn declares(&self) -> Declare {
        self.declare
    }

    /// Whether a queue with other arguments is refused.
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// How long a publish waits for its confirm.
    pub fn deadline(&self) -> Duration {
        self.publish_deadline
    }

    /// The user that logs in.
    pub fn user(&self) -> &str {
        if self.logs_in_by_certificate() {
            return "(by certificate)";
        }
        &self.hosts[0].authority.userinfo.username
    }

    /// Whether the broker takes the user from our certificate: `auth_mechanism=external`.
    pub fn logs_in_by_certificate(&self) -> bool {
        self.hosts[0].query.auth_mechanism == Some(SASLMechanism::External)
    }

    /// The virtual host.
    pub fn vhost(&self) -> &str {
        &self.hosts[0].vhost
    }

    /// Whether connections are encrypted: `amqps://`.
    pub fn uses_tls(&self) -> bool {
        self.hosts.iter().all(|uri| uri.scheme == AMQPScheme::AMQPS)
    }

    /// The hosts with their ports, without credentials: for messages.
    pub fn broker(&self) -> String {
        let hosts: Vec<_> = self.hosts.iter().map(address).collect();
        hosts.join(", ")
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("broker", &self.broker())
            .field("access", &self.access)
            .field("signing_keys", &self.signing_keys)
            .field("namespace", &self.topology.namespace())
            .field("name", &self.name)
            .field("declare", &self.declare)
            .field("strict", &self.strict)
            .field("publish_deadline", &self.publish_deadline)
            .field("payload_limit", &self.payload_limit)
            .finish_non_exhaustive()
    }
}

impl SigningKeys {
    /// Reads the keys in `FOREBAY_SIGNING_KEYS`, or in the file that `FOREBAY_SIGNING_KEYS_FILE`
    /// names; `None` if neither is set.
    ///
    /// # Errors
    /// [`ConfigError::Keys`].
    pub fn from_env() -> Result<Option<Self>, ConfigError> {
        keys_from(stated)
    }
}

/// A variable of the environment. Compose files set those that they have no value for to nothing.
fn stated(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn keys_from(look: impl Fn(&str) -> Option<String>) -> Result<Option<SigningKeys>, ConfigError> {
    let (here, file) = ("FOREBAY_SIGNING_KEYS", "FOREBAY_SIGNING_KEYS_FILE");
    let unusable = |place: String| move |why: String| ConfigError::Keys { place, why };
    let (place, text) = match (look(here), look(file)) {
        (None, None) => return Ok(None),
        (Some(text), None) => (here.to_owned(), text),
        (None, Some(path)) => {
            let place = format!("{file}={path}");
            let text = std::fs::read_to_string(&path)
                .map_err(|error| unusable(place.clone())(error.to_string()))?;
            (place, text)
        }
        (Some(_), Some(_)) => {
            let why = format!("{file} is set too; set one of them");
            return Err(unusable(here.to_owned())(why));
        }
    };
    let keys = SigningKeys::parse(&text);
    keys.map(Some).map_err(|error: InvalidKeys| unusable(place)(error.to_string()))
}

fn variable(variable: &'static str, value: String, allowed: &'static str) -> ConfigError {
    ConfigError::Variable { variable, value, allowed }
}

/// The moment after so long; half an age for what nobody can count ("for ever").
pub fn after(wait: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(wait).unwrap_or_else(|| now + Duration::from_secs(30 * 365 * 86_400))
}

fn program() -> String {
    let path = std::env::current_exe().ok();
    let name = path.as_deref().and_then(|path| path.file_stem()).and_then(|name| name.to_str());
    let host = hostname::get().ok().and_then(|host| host.into_string().ok());
    format!("{}@{}", name.unwrap_or("app"), host.as_deref().unwrap_or("localhost"))
}

fn parse(url: &str) -> Result<AMQPUri, ConfigError> {
    let bad = |why: &str| ConfigError::Url { why: why.to_owned() };
    if !url.starts_with("amqp://") && !url.starts_with("amqps://") {
        return Err(bad("it does not begin with amqp:// or amqps://"));
    }
    let mut uri: AMQPUri = url.parse().map_err(|why: String| {
        // The parser may repeat the URL, password and all.
        bad(if why.contains(url) { "it is not a URL" } else { &why })
    })?;
    if let Some(address) = hosts::ipv6(url) {
        uri.authority.host = address;
    }
    if uri.authority.host.is_empty() {
        return Err(bad("it names no host"));
    }
    if uri.query.frame_max.is_some() {
        // A smaller frame_max than the server's lets one message with big headers close the
        // connection again and again.
        return Err(bad("frame_max must be left to the server"));
    }
    if uri.vhost.is_empty() {
        "/".clone_into(&mut uri.vhost);
    }
    uri.query.heartbeat.get_or_insert(10);
    uri.query.connection_timeout.get_or_insert(10_000);
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_keeps_user_vhost_and_query() {
        let config = Config::new("amqp://u:p@a,b:2/v?heartbeat=7").unwrap();
        for uri in &config.hosts {
            assert_eq!((uri.vhost.as_str(), uri.query.heartbeat), ("v", Some(7)));
            assert_eq!(uri.authority.userinfo.password, "p");
        }
    }

    #[test]
    fn an_empty_vhost_is_the_default_one() {
        for url in ["amqp://a", "amqp://a/", "amqp://a/%2f"] {
            assert_eq!(Config::new(url).unwrap().hosts[0].vhost, "/", "{url}");
        }
    }

    #[test]
    fn a_vhost_may_have_any_characters_when_they_are_escaped() {
        for (url, vhost) in [("amqp://a/shop%20one", "shop one"), ("amqp://a/%C3%A9", "é")] {
            assert_eq!(Config::new(url).unwrap().vhost(), vhost);
        }
    }

    #[test]
    fn a_bad_url_is_explained_without_its_password() {
        for url in [
            "",
            "http://u:hush@a",
            "amqp://u:hush@a:port",
            "u:hush@a",
            "amqp://u:hush@a?frame_max=4096",
        ] {
            let error = Config::new(url).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
            assert!(error.contains("amqp://user:password@host"), "{error}");
        }
    }

    #[test]
    fn neither_debug_nor_the_broker_line_shows_credentials() {
        let config = Config::new("amqp://app:hush@a/v").unwrap();
        assert!(!format!("{config:?} {}", config.broker()).contains("hush"));
    }

    #[test]
    fn the_environment_is_read_and_a_bad_value_names_its_variable() {
        let read = |pairs: &'static [(&str, &str)]| {
            Config::from_lookup(move |name| {
                pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let config = read(&[("FOREBAY_NAMESPACE", "shop"), ("FOREBAY_DECLARE", "never")]).unwrap();
        assert_eq!((config.topology.namespace(), config.declare), ("shop", Declare::Never));
        let error = read(&[("FOREBAY_DECLARE", "yes")]).unwrap_err().to_string();
        assert_eq!(error, "FOREBAY_DECLARE=yes is not allowed: use auto or never");
        assert!(read(&[("FOREBAY_NAMESPACE", "Shop")]).is_err());
    }
}
