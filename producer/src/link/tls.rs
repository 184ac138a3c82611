//! TCP and TLS to one host, and what a handshake that fails means.
//! In: a host, files. Out: a stream to speak AMQP on, or a [`Fault`]: one that waiting does not
//! mend says what does.

use std::io;
use std::time::Duration;

use async_rs::TokioRuntime;
use async_rs::traits::Reactor;
use lapin::AsyncTcpStream;
use lapin::tcp::{AMQPUriTcpExt, RustlsConnector};
use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use rustls::{AlertDescription, CertificateError, Error};
use tokio::time;

use super::fault::Fault;
use crate::access::Access;
use crate::config::address;

/// Bytes to and from a host, encrypted or not.
pub(crate) type Stream = AsyncTcpStream<<TokioRuntime as Reactor>::TcpStream>;

/// Connects as the URL and the files say, within the URL's `connection_timeout` (milliseconds,
/// default 10,000).
pub(crate) async fn dial(
    uri: &AMQPUri,
    access: &Access,
    runtime: &TokioRuntime,
) -> Result<Stream, Fault> {
    fits(uri, access)?;
    let dialling = async {
        let stream = tcp(uri, runtime).await;
        let stream = stream.map_err(|error| Fault::Connection(error.to_string()))?;
        match uri.scheme {
            AMQPScheme::AMQP => Ok(stream),
            AMQPScheme::AMQPS => secure(stream, uri, access).await,
        }
    };
    let patience = Duration::from_millis(uri.query.connection_timeout.unwrap_or(10_000));
    let silent = |_| Fault::Silent(humantime::format_duration(patience).to_string());
    time::timeout(patience, dialling).await.map_err(silent)?
}

/// Whether the files and the URL belong together. Who names certificates does not want them to be
/// left out over a missing letter.
pub(crate) fn fits(uri: &AMQPUri, access: &Access) -> Result<(), Fault> {
    let external = uri.query.auth_mechanism == Some(SASLMechanism::External);
    let fault = if uri.scheme == AMQPScheme::AMQP && (access.wants_tls() || external) {
        "certificates are named, and a URL with amqp:// goes without TLS; write amqps:// in AMQP_URL"
    } else if external && access.cert.is_none() {
        "auth_mechanism=external logs in by a certificate; name it with AMQP_CERT_FILE and \
         AMQP_KEY_FILE"
    } else {
        return Ok(());
    };
    Err(Fault::Setup(fault.to_owned()))
}

/// TCP alone, whatever the URL says of TLS.
pub(crate) async fn tcp(uri: &AMQPUri, runtime: &TokioRuntime) -> io::Result<Stream> {
    let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..uri.clone() };
    plain.connect_async(runtime).await
}

/// TLS on top of it.
pub(crate) async fn secure(
    stream: Stream,
    uri: &AMQPUri,
    access: &Access,
) -> Result<Stream, Fault> {
    let config = access.client_config().map_err(Fault::Setup)?;
    let shaken = stream.into_rustls(&RustlsConnector::from(config), &uri.authority.host).await;
    shaken.map_err(|error| match why(&error) {
        Some(error) => meaning(error, uri, access),
        None => Fault::Connection(error.to_string()),
    })
}

/// What TLS itself objects to; it may stand deep in what was reported.
pub(crate) fn why(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// An objection of TLS in words, with the remedy; a [`Fault::Connection`] if the next try may do.
pub(crate) fn meaning(error: &Error, uri: &AMQPUri, access: &Access) -> Fault {
    let host = address(uri);
    let (because, remedy) = match error {
        Error::InvalidCertificate(why) => {
            let remedy = match why {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "have it renewed, and look at this machine's clock".to_owned()
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => {
                    "write a name in AMQP_URL that stands in the certificate, or have it issued for \
                     this one"
                        .to_owned()
                }
                // The same name with another key: an authority that was set up anew.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => match &access.ca {
                    Some(file) => format!("put its issuer into the CA file {}", file.display()),
                    None => "name its issuer's certificate with AMQP_CA_FILE".to_owned(),
                },
                _ => "have it issued anew".to_owned(),
            };
            (format!("the certificate of {host} is not accepted: {}", objection(why)), remedy)
        }
        Error::InvalidMessage(_) => (
            format!("{host} does not speak TLS"),
            "correct the port (RabbitMQ has TLS at 5671), or write amqp:// in AMQP_URL where the \
             network may be trusted"
                .to_owned(),
        ),
        Error::AlertReceived(alert) if refuses_us(*alert) => match &access.cert {
            Some(file) => (
                format!("{host} does not accept our certificate ({alert:?})"),
                format!(
                    "have {} issued by an issuer that the broker trusts (ssl_options.cacertfile), \
                     and look whether it has expired",
                    file.display()
                ),
            ),
            None => (
                format!("{host} wants a certificate of us ({alert:?})"),
                "name it with AMQP_CERT_FILE and AMQP_KEY_FILE".to_owned(),
            ),
        },
        Error::AlertReceived(AlertDescription::ProtocolVersion) | Error::PeerIncompatible(_) => (
            format!("{host} and this program have no kind of TLS in common: {error}"),
            "have TLS 1.2 or 1.3 switched on at the broker (ssl_options.versions)".to_owned(),
        ),
        other => return Fault::Connection(other.to_string()),
    };
    Fault::Setup(format!("{because}; {remedy}"))
}

/// Without the numbers that seconds are for those who wrote the library.
fn objection(why: &CertificateError) -> String {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet".to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its issuer is not trusted here".to_owned()
        }
        other => other.to_string(),
    }
}

fn refuses_us(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
            // TLS 1.2 says no more when a certificate is missing.
            | AlertDescription::HandshakeFailure
    )
}
