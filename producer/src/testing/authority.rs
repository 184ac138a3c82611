//! An issuer of certificates for tests, and a broker that speaks TLS with one of them.
//! In: names. Out: PEM, in files.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

use super::container::{OwnBroker, broker_of_its_own_with};

/// Issues certificates that are valid for ever, or that were not for long.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key, as PEM.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// A new one, whom nobody trusts yet.
    ///
    /// # Panics
    /// When this machine has no random numbers.
    pub fn new() -> Self {
        let mut params = params("Forebay test authority", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = key();
        let pem = params.self_signed(&key).expect("it can be signed").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Its own certificate, as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate with this common name, for these hosts or addresses.
    ///
    /// # Panics
    /// When a name is no DNS name.
    pub fn issue(&self, common_name: &str, names: &[&str]) -> Issued {
        self.sign(&params(common_name, names))
    }

    /// The same, but it expired in 2001.
    ///
    /// # Panics
    /// When a name is no DNS name.
    pub fn issue_expired(&self, common_name: &str, names: &[&str]) -> Issued {
        let mut params = params(common_name, names);
        params.not_after = date_time_ymd(2001, 1, 1);
        self.sign(&params)
    }

    /// A broker that no other test sees, with TLS on a port of its own and this certificate. It
    /// trusts clients whose certificates this authority issued. `settings` are further lines of
    /// `rabbitmq.conf`, `plugins` are enabled beside the management plugin.
    pub async fn broker(&self, own: &Issued, settings: &str, plugins: &[&str]) -> OwnBroker {
        let settings = format!(
            "listeners.ssl.default = 5671\n\
             ssl_options.cacertfile = /etc/rabbitmq/ca.pem\n\
             ssl_options.certfile = /etc/rabbitmq/own.pem\n\
             ssl_options.keyfile = /etc/rabbitmq/own.key\n{settings}"
        );
        let plugins = ["rabbitmq_management"].iter().chain(plugins).copied().collect::<Vec<_>>();
        let files = [
            ("/etc/rabbitmq/ca.pem", self.pem.clone()),
            ("/etc/rabbitmq/own.pem", own.certificate.clone()),
            ("/etc/rabbitmq/own.key", own.key.clone()),
            ("/etc/rabbitmq/enabled_plugins", format!("[{}].\n", plugins.join(","))),
        ];
        let own = broker_of_its_own_with(&settings, &files).await;
        // The port without TLS answers first.
        own.ctl(&["await_startup"]).await;
        own
    }

    fn sign(&self, params: &CertificateParams) -> Issued {
        let key = key();
        let certificate = params.signed_by(&key, &self.issuer).expect("it can be signed");
        Issued { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Issued {
    /// Writes `NAME.pem` and `NAME.key` into a folder; their paths.
    ///
    /// # Panics
    /// When the folder cannot be written.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let files = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        std::fs::write(&files.0, &self.certificate).expect("the folder can be written");
        std::fs::write(&files.1, &self.key).expect("the folder can be written");
        files
    }
}

fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names of hosts");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key can be made")
}
