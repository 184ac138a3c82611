//! The only place that connects to a broker, and the supervisor that keeps the connection.
//! In: a [`Config`]. Out: a [`Link`] from which channels are taken for as long as the process
//! lives, whatever happens to single connections.

use std::sync::Arc;
use std::time::Duration;

use async_rs::TokioRuntime;
use futures_util::StreamExt;
use lapin::tcp::AsyncTcpStream;
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind, Event as AmqpEvent};
use tokio::sync::watch;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::dial::Dialer;
use super::fault::Fault;
use super::greeting;
use super::io;
use super::returned::Returned;
use super::sieve::{Sieve, Sifting};
use super::tls;
use super::transition::{Action, Event, Phase, State};
use crate::access::Access;
use crate::config::Config;
use crate::error::ConnectError;
use crate::telemetry::ConnectionMeter;

/// How long a host is listened to that does not speak AMQP with us.
const LISTEN: Duration = Duration::from_secs(2);
/// RabbitMQ's default, and what we say that we take. Told it from the beginning, the client library makes its buffers, 32 frames
/// for each direction, at once, and the system hands out their memory as it is used. Told by the
/// broker, it makes them longer, and writes to all of it.
pub(super) const USUAL_FRAME: usize = 128 * 1024;
const CHANNEL_DEADLINE: Duration = Duration::from_secs(10);
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// A supervised connection: it is opened on its own runtime thread, watched, and opened again.
///
/// Clones share it; it closes when the last one is dropped or [`Link::close`] is called.
#[derive(Debug, Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    broker: String,
    status: watch::Receiver<Status>,
    stop: CancellationToken,
}

/// What a link is doing, for waiting, metrics and readiness.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Status {
    /// The connection, while there is one.
    pub connection: Option<Arc<Connection>>,
    /// The host that it leads to, as `host:port`.
    pub host: Option<String>,
    /// Raised at each connect.
    pub generation: u64,
    /// The broker's words while it blocks us.
    pub blocked: Option<String>,
    /// Why the last try or connection ended.
    pub last_fault: Option<String>,
    /// Set when it was given up.
    pub failed: Option<ConnectError>,
    /// Set when it was closed by us.
    pub closed: bool,
    /// What the broker gave back on the present connection.
    pub(crate) returned: Arc<Returned>,
}

/// A connection, and what the broker gives back on it.
type Wire = (Arc<Connection>, Arc<Returned>);

/// A channel with the generation of the connection that it lives on.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The channel.
    pub channel: Channel,
    /// The connection's generation.
    pub generation: u64,
    pub(crate) returned: Arc<Returned>,
}

impl Link {
    /// Starts to connect and returns at once. `role` shows in the connection's name.
    pub fn open(config: &Config, role: &str) -> Self {
        let (tell, status) = watch::channel(Status::default());
        let stop = CancellationToken::new();
        let supervisor = Supervisor {
            config: config.clone(),
            name: format!("{} ({role})", config.name),
            role: role.to_owned(),
            dialer: Dialer::new(&config.hosts),
            began: Instant::now(),
            tell,
            stop: stop.clone(),
            meter: ConnectionMeter::new(role),
        };
        io::handle().spawn(supervisor.run());
        Self { shared: Arc::new(Shared { broker: config.broker(), status, stop }) }
    }

    /// What it is doing now, and each change of it.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.clone()
    }

    /// Waits for a connection, at most until `deadline`.
    ///
    /// # Errors
    /// [`ConnectError`] when there is none by then, or there will never be one.
    pub async fn connected(
        &self,
        deadline: Instant,
    ) -> Result<(Arc<Connection>, u64), ConnectError> {
        let ((connection, _), generation) = self.usable(deadline).await?;
        Ok((connection, generation))
    }

    async fn usable(&self, deadline: Instant) -> Result<(Wire, u64), ConnectError> {
        let mut status = self.status();
        let usable = status.wait_for(|status| {
            status.connection.is_some() || status.failed.is_some() || status.closed
        });
        match time::timeout_at(deadline, usable).await {
            Ok(Ok(status)) => match (&status.failed, &status.connection) {
                (Some(error), _) => Err(error.clone()),
                (None, Some(connection)) => {
                    let wire = (Arc::clone(connection), Arc::clone(&status.returned));
                    Ok((wire, status.generation))
                }
                (None, None) => Err(ConnectError::Closed),
            },
            Ok(Err(_)) => Err(ConnectError::Closed),
            Err(_) => Err(self.unreachable()),
        }
    }

    /// Opens a channel on the present connection, or on the next one, at most until `deadline`.
    ///
    /// # Errors
    /// [`ConnectError`] when that does not succeed by then.
    pub async fn channel(&self, deadline: Instant) -> Result<Opened, ConnectError> {
        loop {
            let ((connection, returned), generation) = self.usable(deadline).await?;
            let patience = deadline.min(Instant::now() + CHANNEL_DEADLINE);
            match time::timeout_at(patience, connection.create_channel()).await {
                Ok(Ok(channel)) => return Ok(Opened { channel, generation, returned }),
                Ok(Err(error)) => debug!(%error, "no channel on this connection"),
                Err(_) => debug!("the broker does not open a channel"),
            }
            // The connection is ending, or out of channels: wait for a change, but not for ever.
            let mut status = self.status();
            let changed = status.wait_for(|now| now.generation != generation || now.closed);
            let pause = Instant::now() + Duration::from_millis(100);
            _ = time::timeout_at(deadline.min(pause), changed).await;
            if Instant::now() >= deadline {
                return Err(self.unreachable());
            }
        }
    }

    /// Why there is no usable connection now, in words; empty when there is one.
    pub fn trouble(&self) -> String {
        let status = self.shared.status.borrow();
        if let Some(failed) = &status.failed {
            return failed.to_string();
        }
        if status.closed {
            return ConnectError::Closed.to_string();
        }
        if let Some(blocked) = &status.blocked {
            return format!("the broker blocks publishers: {blocked}");
        }
        if status.connection.is_some() {
            return String::new();
        }
        let fault = status.last_fault.as_deref().unwrap_or("still connecting");
        format!("no connection to {}: {fault}", self.shared.broker)
    }

    /// Whether it was closed or given up: there will never be a connection again.
    pub fn is_over(&self) -> bool {
        let status = self.shared.status.borrow();
        status.closed || status.failed.is_some()
    }

    /// Whether the broker reads nothing from us at the moment.
    pub fn is_blocked(&self) -> bool {
        self.shared.status.borrow().blocked.is_some()
    }

    /// Closes the connection and ends the supervisor.
    pub async fn close(&self) {
        self.shared.stop.cancel();
        let mut status = self.status();
        _ = time::timeout(CLOSE_DEADLINE, status.wait_for(|status| status.closed)).await;
    }

    pub(crate) fn unreachable(&self) -> ConnectError {
        let status = self.shared.status.borrow();
        ConnectError::Unreachable {
            broker: self.shared.broker.clone(),
            because: status.last_fault.clone().unwrap_or_else(|| "no answer yet".to_owned()),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// One try at one host. The sieve stands inside of TLS, where the frames are.
async fn open(mut uri: AMQPUri, name: &str, access: Arc<Access>) -> Result<Wire, Fault> {
    if access.password.is_some() {
        let reading = Arc::clone(&access);
        // A disk that hangs must not hold up the heartbeats of other connections.
        let read = io::handle().spawn_blocking(move || reading.password()).await;
        let read = read.unwrap_or_else(|error| Err(error.to_string()));
        if let Some(password) = read.map_err(Fault::Setup)? {
            uri.authority.userinfo.password = password;
        }
    }
    // Nobody else sets it: see `Config::new`.
    uri.query.frame_max = Some(USUAL_FRAME as u32);
    let (connection, returned) = log_in(&uri, name, &access).await?;
    if returned.frame_max() > USUAL_FRAME {
        // One message with headers that need a longer frame would end the connection.
        _ = time::timeout(CLOSE_DEADLINE, connection.close(200, "frames are longer here".into()))
            .await;
        uri.query.frame_max = None;
        return log_in(&uri, name, &access).await;
    }
    Ok((connection, returned))
}

async fn log_in(uri: &AMQPUri, name: &str, access: &Arc<Access>) -> Result<Wire, Fault> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let runtime = TokioRuntime::tokio_with_handle(io::handle().clone());
    let sifting = Sifting(runtime.clone()).into();
    let (files, returned) = (Arc::clone(access), Arc::new(Returned::default()));
    let noted = Arc::clone(&returned);
    // Dropped with this future, when another try has won or nobody waits any more.
    let given_up = CancellationToken::new();
    let _dropped = given_up.clone().drop_guard();
    let socket = async move |uri: AMQPUri, _| {
        let dialling = given_up.run_until_cancelled(tls::dial(&uri, &files, &runtime));
        let dialled = dialling.await.unwrap_or_else(|| Err(Fault::Connection("given up".into())));
        let sieved = dialled.map(|stream| {
            AsyncTcpStream::Plain(Sieve::new(stream, given_up.child_token(), Arc::clone(&noted)))
        });
        sieved.map_err(|fault| std::io::Error::other(fault).into())
    };
    match Connection::connector(uri.clone(), sifting, socket, properties).await {
        Ok(connection) => Ok((Arc::new(connection), returned)),
        Err(error) => Err(refused(&error, uri, access).await),
    }
}

/// What a connect that failed means. TLS may object after its handshake, and a host that wants TLS
/// is told by nothing but what it says to AMQP.
async fn refused(error: &lapin::Error, uri: &AMQPUri, access: &Access) -> Fault {
    if let ErrorKind::IOError(io) = error.kind()
        && let Some(objection) = tls::why(io)
    {
        return tls::meaning(objection, uri, access);
    }
    if matches!(error.kind(), ErrorKind::ParsingError(_))
        && let Err(unheard) = greeting::greeting(uri, access, LISTEN).await
    {
        return unheard.into_fault(uri);
    }
    Fault::from(error.clone())
}

struct Supervisor {
    config: Config,
    name: String,
    role: String,
    dialer: Dialer,
    began: Instant,
    tell: watch::Sender<Status>,
    stop: CancellationToken,
    meter: ConnectionMeter,
}

impl Supervisor {
    async fn run(mut self) {
        let mut state = State::new(self.config.patience);
        let mut event = Event::Begin;
        let mut connection = None;
        loop {
            let (next, action) = state.next(event, fastrand::f64());
            state = next;
            self.publish(&state, &connection);
            event = match action {
                // A connection has nothing to declare; its next try is the same as any other.
                Action::Open | Action::Declare => match self.connect().await {
                    Ok(opened) => {
                        info!(role = self.role, host = self.dialer.host(), "connected");
                        connection = Some(opened);
                        Event::Opened
                    }
                    Err(fault) => self.lost(fault),
                },
                Action::Watch => match &connection {
                    Some((watched, _)) => {
                        let blocked = matches!(state.phase, Phase::Blocked { .. });
                        let event = self.watch(watched, blocked).await;
                        self.tell_blocked(&state, &event);
                        if matches!(event, Event::Lost(..)) {
                            connection = None;
                        }
                        event
                    }
                    None => Event::Begin,
                },
                Action::Wait(pause) => tokio::select! {
                    // Both arms are cancel-safe: neither holds anything.
                    () = time::sleep(pause) => Event::Begin,
                    () = self.stop.cancelled() => Event::Stop,
                },
                Action::GiveUp(fault) => {
                    let failed = Some(self.explain(fault));
                    self.tell.send_modify(|status| status.failed = failed);
                    return;
                }
                Action::Close => {
                    self.close(connection).await;
                    return;
                }
            };
        }
    }

    /// Connects to the first host that answers.
    async fn connect(&mut self) -> Result<Wire, Fault> {
        let (name, access) = (&self.name, Arc::new(self.config.access.clone()));
        let dialing = self.dialer.dial(|uri| open(uri, name, Arc::clone(&access)));
        tokio::select! {
            // Dropping the connect closes its sockets.
            opened = dialing => opened,
            () = self.stop.cancelled() => Err(Fault::Connection("stopped".to_owned())),
        }
    }

    /// Returns with what happens next to an open connection.
    async fn watch(&mut self, connection: &Connection, blocked: bool) -> Event {
        let mut events = connection.events_listener();
        loop {
            // What happened before the listener was there is not repeated to it: look as well.
            if !connection.status().connected() {
                return self.lost(Fault::Connection("the connection closed".to_owned()));
            }
            match (blocked, connection.status().blocked()) {
                (true, false) => return Event::Unblocked,
                (false, true) => return Event::Blocked("alarm at the broker".to_owned()),
                _ => {}
            }
            let event = tokio::select! {
                // Cancel-safe: an event stays in the stream until it is taken.
                event = time::timeout(Duration::from_secs(1), events.next()) => event,
                () = self.stop.cancelled() => return Event::Stop,
            };
            match event {
                Ok(Some(AmqpEvent::ConnectionBlocked(because))) => return Event::Blocked(because),
                Ok(Some(AmqpEvent::ConnectionUnblocked)) => return Event::Unblocked,
                Ok(Some(AmqpEvent::Error(error))) => {
                    let fault = Fault::from(error);
                    if !connection.status().connected() {
                        return self.lost(fault);
                    }
                }
                Ok(None) => {
                    return self.lost(Fault::Connection("the connection closed".to_owned()));
                }
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }

    fn lost(&mut self, fault: Fault) -> Event {
        if self.stop.is_cancelled() {
            return Event::Stop;
        }
        let fault = self.dialer.lost(fault);
        let (broker, text) = (self.config.broker(), fault.to_string());
        // Said once; while nothing changes, only to those who ask for more.
        if self.tell.borrow().last_fault.as_ref() == Some(&text) {
            debug!(role = self.role, broker, error = text, "still not connected");
        } else {
            warn!(role = self.role, broker, error = text, "not connected");
        }
        self.tell.send_modify(|status| status.last_fault = Some(text));
        Event::Lost(fault, self.began.elapsed())
    }

    /// Publishes wait meanwhile: the log must say for whom.
    fn tell_blocked(&self, state: &State, event: &Event) {
        let (role, broker) = (&self.role, self.config.broker());
        match (event, &state.phase) {
            (Event::Blocked(because), Phase::Up) => warn!(
                role,
                broker,
                because,
                "the broker blocks publishers until its alarm ends; `rabbitmq-diagnostics alarms` \
                 names the node that lacks memory or disk"
            ),
            (Event::Unblocked, Phase::Blocked { .. }) => {
                info!(role, broker, "the broker takes publishes again");
            }
            _ => {}
        }
    }

    fn publish(&mut self, state: &State, wire: &Option<Wire>) {
        let connection = wire.as_ref().map(|(connection, _)| connection);
        let blocked = matches!(state.phase, Phase::Blocked { .. });
        self.meter.note(connection.is_some(), blocked, state.generation);
        self.tell.send_modify(|status| {
            if connection.is_some() {
                status.last_fault = None;
            }
            status.connection = connection.cloned();
            status.returned =
                wire.as_ref().map(|(_, returned)| Arc::clone(returned)).unwrap_or_default();
            status.host = connection.and_then(|_| self.dialer.host());
            status.generation = state.generation;
            status.blocked = match &state.phase {
                Phase::Blocked { because } => Some(because.clone()),
                _ => None,
            };
        });
    }

    async fn close(&self, wire: Option<Wire>) {
        self.tell.send_modify(|status| (status.connection, status.host) = (None, None));
        if let Some((connection, _)) = wire {
            _ = time::timeout(CLOSE_DEADLINE, connection.close(200, "done".into())).await;
        }
        self.tell.send_modify(|status| status.closed = true);
    }

    fn explain(&self, fault: Fault) -> ConnectError {
        let uri = &self.config.hosts[0];
        let (broker, user) = (self.config.broker(), uri.authority.userinfo.username.clone());
        match fault {
            Fault::Denied(because) if self.config.logs_in_by_certificate() => {
                let because = format!(
                    "the broker takes no user from our certificate: {because}; enable its plugin \
                     rabbitmq_auth_mechanism_ssl, add EXTERNAL to its auth_mechanisms, and add a \
                     user with the name that it takes from the certificate (ssl_cert_login_from)"
                );
                ConnectError::Setup { broker, because }
            }
            Fault::Denied(because) => ConnectError::Denied { broker, user, because },
            Fault::Vhost(because) => {
                ConnectError::Vhost { broker, user, vhost: uri.vhost.clone(), because }
            }
            Fault::Setup(because) => ConnectError::Setup { broker, because },
            other => ConnectError::Unreachable { broker, because: other.to_string() },
        }
    }
}
