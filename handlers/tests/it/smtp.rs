//! The door to a mail server: a real one, private to a test, on a free port of this machine.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::support::eventually;

/// A mail server, see `tests/smtp/server.py`. It ends when it is dropped.
pub(crate) struct MailServer {
    pub(crate) port: u16,
    events: Arc<Mutex<Vec<Value>>>,
    child: Child,
    _stdin: ChildStdin,
}

/// A certificate for `localhost`, and that of its issuer.
pub(crate) struct Certificates {
    _folder: TempDir,
    pub(crate) ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl MailServer {
    pub(crate) async fn start(settings: Value) -> Self {
        let python = std::env::var("FOREBAY_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let mut child = Command::new(&python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/smtp/server.py"))
            .arg(settings.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {python}: {error}"));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let Some(port) = lines.next_line().await.unwrap() else {
            let mut errors = String::new();
            child.stderr.take().unwrap().read_to_string(&mut errors).await.unwrap();
            panic!(
                "no mail server from {python} (without aiosmtpd: apt-get install python3-aiosmtpd, \
                 then set FOREBAY_PYTHON=/usr/bin/python3)\n{errors}"
            );
        };
        let events = Arc::<Mutex<Vec<Value>>>::default();
        let kept = Arc::clone(&events);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                kept.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        let stdin = child.stdin.take().unwrap();
        Self { port: port.parse().unwrap(), events, child, _stdin: stdin }
    }

    pub(crate) fn events(&self, what: &str) -> Vec<Value> {
        let events = self.events.lock().unwrap();
        events.iter().filter(|event| event["event"] == what).cloned().collect()
    }

    /// Waits until so many things of this sort have happened.
    pub(crate) async fn saw(&self, count: usize, what: &str) -> Vec<Value> {
        eventually(&format!("{count} {what}"), async || self.events(what).len() >= count).await;
        self.events(what)
    }

    pub(crate) async fn stop(mut self) {
        self.child.kill().await.unwrap();
    }
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut ca = CertificateParams::new([]).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_cert = ca.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let cert = leaf.signed_by(&key, &issuer).unwrap();

        let folder = TempDir::new().unwrap();
        let write = |name: &str, pem: String| {
            let file = folder.path().join(name);
            std::fs::write(&file, pem).unwrap();
            file
        };
        let (ca, cert) = (write("ca.pem", ca_cert.pem()), write("cert.pem", cert.pem()));
        let key = write("key.pem", key.serialize_pem());
        Self { _folder: folder, ca, cert, key }
    }

    /// Settings of a server that uses them.
    pub(crate) fn settings(&self) -> Value {
        json!({ "cert": self.cert, "key": self.key })
    }
}
