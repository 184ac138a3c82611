//! The mail server: where it is, connections to it, and a few of them kept for the next mail.
//! In: an address, TLS, credentials. Out: a connection that is ready for a mail.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::anyhow;
use forebay_worker::{JobError, JobResult};
use lettre::transport::smtp;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::commands::{Quit, Rset};
use lettre::transport::smtp::extension::ClientId;
use reqwest::Url;
use tokio::task::AbortHandle;
use tokio::time::{self, Instant};

use super::EmailError;

/// Longest for a connection, TLS and credentials.
const CONNECT: Duration = Duration::from_secs(30);
/// Longest for a question that only asks whether the server is still there.
const PROBE: Duration = Duration::from_secs(5);
/// How long a connection is kept for the next mail: servers close theirs after some minutes.
const IDLE: Duration = Duration::from_secs(60);
/// How many mails go over one connection: some servers end it after a few hundred.
const MAILS: u32 = 100;
/// After refused credentials nobody else tries them for so long: that locks accounts.
const PAUSE: Duration = Duration::from_secs(30);

/// How the connection to a mail server is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SmtpTls {
    /// TLS from the first byte: `smtps://`.
    Implicit,
    /// `STARTTLS`, and no mail without it: `smtp://`.
    StartTls,
    /// None, to this very machine only.
    None,
    /// None, to any machine: mails and the password can be read on the way.
    Insecure,
}

/// Host, port and TLS of a mail server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: SmtpTls,
}

pub(super) struct Server {
    pub(super) place: Place,
    /// None without TLS.
    parameters: Option<TlsParameters>,
    hello: ClientId,
    credentials: Option<Credentials>,
    idle: Mutex<Idle>,
    refused: Mutex<Option<(Instant, String)>>,
}

/// Connections that wait for the next mail, the longest waiting first.
#[derive(Default)]
struct Idle {
    connections: Vec<Connection>,
    /// Ends them in time, as long as there are any.
    sweeper: Option<AbortHandle>,
}

/// A connection between two mails.
pub(super) struct Connection {
    pub(super) smtp: AsyncSmtpConnection,
    mails: u32,
    since: Instant,
}

impl Place {
    /// Reads `smtp://host[:port]` and `smtps://host[:port]`.
    pub(super) fn parse(url: &str) -> Result<Self, EmailError> {
        let wrong = |why: &str| Err(EmailError::Url(why.to_owned()));
        let url = Url::parse(url).map_err(|error| EmailError::Url(error.to_string()))?;
        let (port, tls) = match url.scheme() {
            "smtp" => (587, SmtpTls::StartTls),
            "smtps" => (465, SmtpTls::Implicit),
            scheme => return wrong(&format!("it begins with `{scheme}:`")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return wrong("user and password do not belong into it");
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return wrong("it goes on after host and port");
        }
        let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
            return wrong("it names no host");
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port: url.port().unwrap_or(port), tls })
    }

    pub(super) fn is_this_machine(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        self.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Server {
    pub(super) fn new(
        place: Place,
        parameters: Option<TlsParameters>,
        hello: ClientId,
        credentials: Option<Credentials>,
    ) -> Self {
        let (idle, refused) = (Mutex::default(), Mutex::default());
        Self { place, parameters, hello, credentials, idle, refused }
    }

    /// A connection that has answered just now: one that was kept, else a new one. Whatever fails
    /// here is about the server or its settings and never about a mail.
    pub(super) async fn connection(&self, deadline: Instant) -> JobResult<Connection> {
        if let Some(mut kept) = self.kept() {
            let until = deadline.min(Instant::now() + PROBE);
            let asked = time::timeout_at(until, kept.smtp.command(Rset)).await;
            if matches!(asked, Ok(Ok(_))) {
                return Ok(kept);
            }
            // The others are no better: the server was restarted, or the way to it is cut.
            self.idle().connections.clear();
        }
        let until = deadline.min(Instant::now() + CONNECT);
        match time::timeout_at(until, self.connect()).await {
            Ok(connected) => connected,
            Err(_) => Err(JobError::retry(anyhow!("{} does not answer", self.place))),
        }
    }

    /// Keeps a connection on which a mail came to its end. One that was left amid a mail is never
    /// handed in here, but dropped, which closes it: its next command would become a part of the
    /// mail.
    pub(super) async fn keep(self: &Arc<Self>, mut connection: Connection) {
        connection.mails += 1;
        connection.since = Instant::now();
        if connection.mails < MAILS {
            let mut idle = self.idle();
            idle.connections.push(connection);
            if idle.sweeper.is_none() {
                idle.sweeper = Some(tokio::spawn(sweep(Arc::downgrade(self))).abort_handle());
            }
        } else {
            time::timeout(PROBE, connection.smtp.command(Quit)).await.ok();
        }
    }

    fn kept(&self) -> Option<Connection> {
        let mut idle = self.idle();
        idle.end_old();
        idle.connections.pop()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> JobResult<Connection> {
        self.check_pause()?;
        let place = &self.place;
        let at_once = self.parameters.clone().filter(|_| place.tls == SmtpTls::Implicit);
        let address = (place.host.as_str(), place.port);
        let connected =
            AsyncSmtpConnection::connect_tokio1(address, None, &self.hello, at_once, None);
        let mut smtp = connected.await.map_err(|error| self.not_connected(&error))?;
        if let (SmtpTls::StartTls, Some(parameters)) = (place.tls, &self.parameters) {
            if !smtp.can_starttls() {
                return Err(JobError::retry(anyhow!(
                    "{place} does not offer STARTTLS, and no mail goes without TLS; correct `smtp`, \
                     its port, or `tls`"
                )));
            }
            let upgraded = smtp.starttls(parameters.clone(), &self.hello).await;
            upgraded.map_err(|error| self.not_connected(&error))?;
        }
        if let Some(credentials) = &self.credentials {
            let mechanisms = [Mechanism::Plain, Mechanism::Login];
            let known = smtp.auth(&mechanisms, credentials).await;
            known.map_err(|error| self.not_let_in(&error))?;
        }
        Ok(Connection { smtp, mails: 0, since: Instant::now() })
    }

    fn not_connected(&self, error: &smtp::Error) -> JobError {
        let (place, why) = (&self.place, words(error));
        JobError::retry(match error.status() {
            Some(code) => anyhow!("{place} answered {code} {why} when it was greeted"),
            None if is_about_tls(error) => anyhow!(
                "no TLS with {place}: {why}; its certificate must be for this name and from an \
                 issuer that is trusted here (`ca` adds one)"
            ),
            None => anyhow!("no connection to {place}: {why}"),
        })
    }

    fn not_let_in(&self, error: &smtp::Error) -> JobError {
        let (place, why) = (&self.place, words(error));
        let Some(code) = error.status() else {
            return JobError::retry(anyhow!("{place} cannot be logged in to: {why}"));
        };
        let what = format!("{place} answered {code} {why} to the user and password");
        if error.is_permanent() {
            *self.refused() = Some((Instant::now(), what.clone()));
        }
        JobError::retry(anyhow!(
            "{what}; correct `user` and the variable of `password_env`, then restart the worker"
        ))
    }

    fn check_pause(&self) -> JobResult<()> {
        match &*self.refused() {
            Some((at, what)) if at.elapsed() < PAUSE => Err(JobError::retry(anyhow!(
                "{what}, {} s ago; it is asked again after {} s",
                at.elapsed().as_secs(),
                PAUSE.as_secs()
            ))),
            _ => Ok(()),
        }
    }

    fn refused(&self) -> std::sync::MutexGuard<'_, Option<(Instant, String)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(sweeper) = self.idle().sweeper.take() {
            sweeper.abort();
        }
    }
}

impl Idle {
    /// Ends what has waited for too long. Says when the next one will have.
    fn end_old(&mut self) -> Option<Instant> {
        self.connections.retain(|connection| connection.since.elapsed() < IDLE);
        self.connections.first().map(|oldest| oldest.since + IDLE)
    }
}

/// Ends connections in time, until there are none.
async fn sweep(server: Weak<Server>) {
    loop {
        let next = {
            let Some(server) = server.upgrade() else { return };
            let mut idle = server.idle();
            let next = idle.end_old();
            if next.is_none() {
                idle.sweeper = None;
            }
            next
        };
        match next {
            Some(next) => time::sleep_until(next).await,
            None => return,
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("place", &self.place).finish_non_exhaustive()
    }
}

/// What the server said, or the library about it, on one line.
pub(super) fn words(error: &smtp::Error) -> String {
    let said = match error.status() {
        Some(_) => error.source().map(ToString::to_string).unwrap_or_default(),
        None => error.to_string(),
    };
    let mut said = said.as_str();
    let kinds = ["Connection error", "network error", "response error", "internal client error"];
    while let Some(rest) = kinds.iter().find_map(|kind| said.strip_prefix(kind)?.strip_prefix(": "))
    {
        said = rest;
    }
    said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect()
}

fn is_about_tls(error: &smtp::Error) -> bool {
    let mut next = error.source();
    while let Some(cause) = next {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return true;
        }
        next = cause.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    async fn connected() -> (Arc<Server>, Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("smtp://{}", listener.local_addr().unwrap());
        let mut place = Place::parse(&url).unwrap();
        place.tls = SmtpTls::None;
        let hello = ClientId::Domain("here.test".to_owned());
        let server = Arc::new(Server::new(place, None, hello, None));
        let greeted = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"220 hello\r\n").await.unwrap();
            let mut hello = [0; 100];
            assert!(stream.read(&mut hello).await.unwrap() > 0);
            stream.write_all(b"250 welcome\r\n").await.unwrap();
            stream
        };
        let (connection, stream) = tokio::join!(server.connect(), greeted);
        (server, connection.unwrap(), stream)
    }

    #[tokio::test]
    async fn a_connection_that_nobody_wants_is_closed_after_its_time() {
        let (server, connection, mut stream) = connected().await;
        let soon = Duration::from_millis(100);
        let since = Instant::now().checked_sub(IDLE - soon).unwrap();
        server.idle().connections.push(Connection { since, ..connection });
        sweep(Arc::downgrade(&server)).await;
        assert_eq!(stream.read(&mut [0; 100]).await.unwrap(), 0);
        let idle = server.idle();
        assert!(idle.connections.is_empty() && idle.sweeper.is_none());
    }

    #[tokio::test]
    async fn connections_end_with_their_server() {
        let (server, connection, mut stream) = connected().await;
        server.keep(connection).await;
        let sweeper = server.idle().sweeper.clone();
        assert_eq!(server.idle().connections.len(), 1);
        drop(server);
        assert_eq!(stream.read(&mut [0; 100]).await.unwrap(), 0);
        while !sweeper.as_ref().unwrap().is_finished() {
            tokio::task::yield_now().await;
        }
    }
}
