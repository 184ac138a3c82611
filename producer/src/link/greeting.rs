//! What a broker says before anybody logs in: which it is, and how far the way to it is open.
//! In: a configuration. Out: for each host its greeting, or the step at which it failed.

use std::time::Duration;

use async_rs::TokioRuntime;
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use lapin::AsyncTcpStream;
use lapin::protocol::connection::AMQPMethod;
use lapin::protocol::{AMQPClass, parse_class};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPScheme, AMQPUri};
use rustls::pki_types::CertificateDer;
use tokio::time;
use x509_cert::Certificate as X509;
use x509_cert::der::Decode;

use super::fault::Fault;
use super::io;
use super::tls::{self, Stream};
use crate::access::Access;
use crate::config::{Config, address};

const WANTS_TLS: &str = "it wants TLS";

/// What `connection.start` tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Greeting {
    /// `RabbitMQ`.
    pub product: String,
    /// `4.3.6`.
    pub version: String,
    /// The cluster's name.
    pub cluster: String,
    /// Ways to log in, separated by blanks.
    pub mechanisms: String,
    /// What the way to it is encrypted with; `None` without TLS.
    pub encryption: Option<Encryption>,
}

/// What a TLS handshake came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Encryption {
    /// `TLSv1_3`.
    pub version: String,
    /// The cipher suite.
    pub suite: String,
    /// The broker's certificate, which was found valid.
    pub certificate: Certificate,
}

/// What of a certificate concerns an operator.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Certificate {
    /// Whose it is: `CN=rabbit.example.org`.
    pub subject: String,
    /// Until when it is valid, in milliseconds since the epoch; 0 if that cannot be read.
    pub not_after_ms: u64,
}

/// How far the way to a broker is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Name resolution and TCP.
    Tcp,
    /// The TLS handshake, for `amqps://`.
    Tls,
    /// The AMQP greeting.
    Amqp,
}

/// The step that failed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unheard {
    /// Which step.
    pub step: Step,
    /// In the words of whoever refused; with the remedy, if `step` is [`Step::Tls`] and waiting does
    /// not mend it.
    pub because: String,
}

/// Our own certificate, if the configuration names one that can be read.
pub fn own_certificate(config: &Config) -> Option<Certificate> {
    config.access.own_certificate().as_ref().map(Certificate::read)
}

/// Asks every host of the configuration, by its `host:port`; each step waits at most `wait`.
pub async fn greetings(
    config: &Config,
    wait: Duration,
) -> Vec<(String, Result<Greeting, Unheard>)> {
    let mut heard = Vec::new();
    for uri in &config.hosts {
        let (of_task, access) = (uri.clone(), config.access.clone());
        // On the thread that does all our I/O, as every other connection.
        let asked = io::handle().spawn(async move { greeting(&of_task, &access, wait).await });
        let greeting = asked.await.unwrap_or_else(|error| unheard(Step::Amqp, error.to_string()));
        heard.push((address(uri), greeting));
    }
    heard
}

/// Asks one host; each step waits at most `wait`.
pub(super) async fn greeting(
    uri: &AMQPUri,
    access: &Access,
    wait: Duration,
) -> Result<Greeting, Unheard> {
    let runtime = TokioRuntime::tokio_with_handle(io::handle().clone());
    let late =
        |step| unheard(step, format!("no answer within {}", humantime::format_duration(wait)));
    if let Err(fault) = tls::fits(uri, access) {
        return unheard(Step::Tls, fault.to_string());
    }
    let mut stream = match time::timeout(wait, tls::tcp(uri, &runtime)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return unheard(Step::Tcp, error.to_string()),
        Err(_) => return late(Step::Tcp),
    };
    if uri.scheme == AMQPScheme::AMQPS {
        stream = match time::timeout(wait, tls::secure(stream, uri, access)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(Fault::Setup(words))) => return unheard(Step::Tls, words),
            Ok(Err(error)) => {
                let words = format!("{error}; look at the broker's log");
                return unheard(Step::Tls, words);
            }
            Err(_) => return late(Step::Tls),
        };
    }
    let encryption = encryption(&stream);
    let exchange = async {
        stream.write_all(b"AMQP\0\0\x09\x01").await?;
        stream.flush().await?;
        let mut head = [0; 7];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        // A greeting has about half a kilobyte.
        if head[..3] != [1, 0, 0] || length > 64 * 1024 {
            return Ok(Err(head));
        }
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await?;
        Ok::<_, std::io::Error>(Ok(payload))
    };
    match time::timeout(wait, exchange).await {
        Ok(Ok(Ok(payload))) => match parse_class(payload.as_slice()) {
            Ok((_, AMQPClass::Connection(AMQPMethod::Start(start)))) => {
                let tell = |name| text(&start.server_properties, name);
                Ok(Greeting {
                    product: tell("product"),
                    version: tell("version"),
                    cluster: tell("cluster_name"),
                    mechanisms: start.mechanisms.to_string(),
                    encryption,
                })
            }
            _ => unheard(Step::Amqp, "what it says is no AMQP greeting".to_owned()),
        },
        Ok(Ok(Err(head))) => unheard(Step::Amqp, stranger(&head)),
        Ok(Err(error)) => match tls::why(&error) {
            // A certificate is asked for after the handshake, from TLS 1.3 on.
            Some(why) => unheard(Step::Tls, tls::meaning(why, uri, access).to_string()),
            None => unheard(Step::Amqp, format!("it ends the connection ({error})")),
        },
        Err(_) => late(Step::Amqp),
    }
}

impl Unheard {
    /// The same, of a host at which a connect failed over what it said.
    pub(super) fn into_fault(self, uri: &AMQPUri) -> Fault {
        let (host, because) = (address(uri), self.because);
        if because == WANTS_TLS {
            return Fault::Setup(format!("{host} wants TLS; write amqps:// in AMQP_URL"));
        }
        // A proxy may say so whose broker is away.
        Fault::Connection(format!("{host} does not speak AMQP with us: {because}"))
    }
}

impl Certificate {
    fn read(der: &CertificateDer<'_>) -> Self {
        X509::from_der(der).map_or_else(
            |_| Self::default(),
            |read| {
                let not_after = read.tbs_certificate.validity.not_after.to_unix_duration();
                Self {
                    subject: read.tbs_certificate.subject.to_string(),
                    not_after_ms: u64::try_from(not_after.as_millis()).unwrap_or(u64::MAX),
                }
            },
        )
    }
}

fn encryption(stream: &Stream) -> Option<Encryption> {
    let AsyncTcpStream::Rustls(stream) = stream else { return None };
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    Some(Encryption {
        version: session.protocol_version()?.as_str()?.to_owned(),
        suite: session.negotiated_cipher_suite()?.suite().as_str()?.to_owned(),
        certificate: certificate.map(Certificate::read).unwrap_or_default(),
    })
}

/// What answers with something else than a frame.
fn stranger(head: &[u8; 7]) -> String {
    match head {
        [b'A', b'M', b'Q', b'P', ..] => "it speaks another version of AMQP".to_owned(),
        // A TLS alert.
        [0x15, 0x03, ..] => WANTS_TLS.to_owned(),
        _ => format!("it is no AMQP server: it says `{}`", head.escape_ascii()),
    }
}

fn text(table: &FieldTable, name: &str) -> String {
    match table.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => String::new(),
    }
}

fn unheard<T>(step: Step, because: String) -> Result<T, Unheard> {
    Err(Unheard { step, because })
}
