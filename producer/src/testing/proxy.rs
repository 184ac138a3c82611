//! A loopback proxy that can be cut, half-opened, slowed, and that can meddle with single frames.
//! In: the address of a broker. Out: an address in front of it, and the means to break the path.

use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use super::frames::{Frame, Frames, Meddle};

/// Pieces that one direction of a delayed path holds.
const ON_THE_WAY: usize = 1_024;
/// How often a slow path lets something through.
const TICK: Duration = Duration::from_millis(20);

type Meddler = Arc<dyn Fn(&Frame<'_>) -> Meddle + Send + Sync>;

/// How the proxy treats bytes and connections.
#[derive(Clone, Default)]
struct Conduct {
    /// Bytes are read and thrown away; connections stay open.
    hold: bool,
    /// Each byte arrives so much later.
    delay: Duration,
    /// At most so many bytes a second in each direction.
    bytes_per_second: Option<u32>,
    meddler: Option<Meddler>,
}

/// A TCP proxy on loopback, for tests of what a broken network does.
pub struct Proxy {
    address: SocketAddr,
    conduct: watch::Sender<Conduct>,
    /// Raised to cut all connections that are older.
    cuts: Arc<watch::Sender<u64>>,
}

impl Proxy {
    /// Listens on a free port and forwards to `target` (`host:port`).
    ///
    /// # Panics
    /// When loopback has no free port.
    pub async fn to(target: &str) -> Self {
        Self::in_turn(&[target]).await
    }

    /// The same with several targets: each connection goes to the next one that takes it.
    ///
    /// # Panics
    /// When loopback has no free port.
    pub async fn in_turn(targets: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = listener.local_addr().expect("it is bound");
        let (conduct, conducts) = watch::channel(Conduct::default());
        let cuts = Arc::new(watch::channel(0).0);
        let targets = targets.iter().map(|target| (*target).to_owned()).collect();
        tokio::spawn(accept(listener, targets, conducts, Arc::clone(&cuts)));
        Self { address, conduct, cuts }
    }

    /// Its own `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The URL of the broker behind it, with guest's credentials.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@{}/%2f", self.address)
    }

    /// Closes every connection; new ones are accepted.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Swallows all bytes from now on: a half-open path.
    pub fn hold(&self) {
        self.conduct.send_modify(|conduct| conduct.hold = true);
    }

    /// Lets each byte arrive so much later, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.conduct.send_modify(|conduct| conduct.delay = delay);
    }

    /// Lets at most so many bytes a second through, in each direction, a few at a time.
    pub fn trickle(&self, bytes_per_second: u32) {
        self.conduct.send_modify(|conduct| conduct.bytes_per_second = Some(bytes_per_second));
    }

    /// Asks `meddler` about each AMQP frame in either direction. Not for TLS.
    pub fn meddle(&self, meddler: impl Fn(&Frame<'_>) -> Meddle + Send + Sync + 'static) {
        self.conduct.send_modify(|conduct| conduct.meddler = Some(Arc::new(meddler)));
    }

    /// Forwards everything at once again. Held connections have lost bytes and are cut.
    pub fn pass(&self) {
        if self.conduct.send_replace(Conduct::default()).hold {
            self.cut();
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

async fn accept(
    listener: TcpListener,
    targets: Arc<[String]>,
    conducts: watch::Receiver<Conduct>,
    cuts: Arc<watch::Sender<u64>>,
) {
    let mut connections = JoinSet::new();
    let mut turn = 0;
    // Ends when the proxy is dropped.
    while conducts.has_changed().is_ok() {
        let Ok((client, _)) = listener.accept().await else { return };
        let (targets, conducts, mut cut) =
            (Arc::clone(&targets), conducts.clone(), cuts.subscribe());
        cut.mark_unchanged();
        turn += 1;
        connections.spawn(async move {
            let Some(server) = connect(&targets, turn).await else { return };
            _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let amqp = Arc::new(AtomicBool::new(false));
            let path = |from_client| Path {
                conducts: conducts.clone(),
                amqp: Arc::clone(&amqp),
                from_client,
            };
            tokio::select! {
                () = path(true).forward(from_client, to_server) => {}
                () = path(false).forward(from_server, to_client) => {}
                _ = cut.changed() => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// To the first that takes it, beginning with the one whose turn it is.
async fn connect(targets: &[String], turn: usize) -> Option<TcpStream> {
    for target in (0..targets.len()).map(|n| &targets[(turn + n) % targets.len()]) {
        if let Ok(server) = TcpStream::connect(target).await {
            return Some(server);
        }
    }
    None
}

/// One direction of one connection.
struct Path {
    conducts: watch::Receiver<Conduct>,
    /// The client has greeted as AMQP clients do: there are frames.
    amqp: Arc<AtomicBool>,
    from_client: bool,
}

impl Path {
    /// Returns when either end has closed, or a frame asks for a cut.
    async fn forward(self, from: impl AsyncReadExt + Unpin, to: impl AsyncWriteExt + Unpin) {
        let (late, due) = mpsc::channel(ON_THE_WAY);
        let mut writing = pin!(write(to, due, self.conducts.clone()));
        tokio::select! {
            () = &mut writing => return,
            () = self.read(from, late) => {}
        }
        // What was under way when its sender closed still arrives.
        writing.await;
    }

    async fn read(
        self,
        mut from: impl AsyncReadExt + Unpin,
        late: mpsc::Sender<(Instant, Vec<u8>)>,
    ) {
        let mut buffer = vec![0; 64 * 1024];
        let mut frames = if self.from_client { Frames::default() } else { Frames::from_server() };
        let mut begun = false;
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let bytes = &buffer[..read];
            if self.from_client && !begun {
                self.amqp.store(Frames::begin(bytes), Ordering::Release);
            }
            begun = true;
            let conduct = self.conducts.borrow().clone();
            let (bytes, cut) = if self.amqp.load(Ordering::Acquire) {
                frames.add(bytes);
                let meddler = conduct.meddler.as_deref();
                frames.take(self.from_client, |frame| {
                    meddler.map_or(Meddle::Pass, |meddler| meddler(frame))
                })
            } else {
                (bytes.to_vec(), false)
            };
            let due = Instant::now() + conduct.delay;
            if !conduct.hold && late.send((due, bytes)).await.is_err() || cut {
                return;
            }
        }
    }
}

async fn write(
    mut to: impl AsyncWriteExt + Unpin,
    mut due: mpsc::Receiver<(Instant, Vec<u8>)>,
    conducts: watch::Receiver<Conduct>,
) {
    while let Some((at, bytes)) = due.recv().await {
        time::sleep_until(at).await;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let rate = conducts.borrow().bytes_per_second;
            let piece = match rate {
                None => rest.len(),
                Some(rate) => {
                    time::sleep(TICK).await;
                    (rate as usize / 50).clamp(1, rest.len())
                }
            };
            if to.write_all(&rest[..piece]).await.is_err() {
                return;
            }
            rest = &rest[piece..];
        }
    }
}
