//! A loopback proxy that can be cut and half-opened.
//! In: the address of a broker. Out: an address in front of it, and the means to break the path.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How the proxy treats bytes and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Bytes are read and thrown away; connections stay open.
    Hold,
}

/// A TCP proxy on loopback, for tests of what a broken network does.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Raised to cut all connections that are older.
    cuts: Arc<watch::Sender<u64>>,
}

impl Proxy {
    /// Listens on a free port and forwards to `target` (`host:port`).
    ///
    /// # Panics
    /// When loopback has no free port.
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = listener.local_addr().expect("it is bound");
        let (mode, modes) = watch::channel(Mode::Pass);
        let cuts = Arc::new(watch::channel(0).0);
        tokio::spawn(accept(listener, target.to_owned(), modes, Arc::clone(&cuts)));
        Self { address, mode, cuts }
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
        self.mode.send_replace(Mode::Hold);
    }

    /// Forwards bytes of new connections again; held ones have lost bytes and are cut.
    pub fn pass(&self) {
        self.mode.send_replace(Mode::Pass);
        self.cut();
    }
}

async fn accept(
    listener: TcpListener,
    target: String,
    modes: watch::Receiver<Mode>,
    cuts: Arc<watch::Sender<u64>>,
) {
    let mut connections = JoinSet::new();
    // Ends when the proxy is dropped.
    while modes.has_changed().is_ok() {
        let Ok((client, _)) = listener.accept().await else { return };
        let (target, modes, mut cut) = (target.clone(), modes.clone(), cuts.subscribe());
        cut.mark_unchanged();
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(&target).await else { return };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::select! {
                () = forward(from_client, to_server, modes.clone()) => {}
                () = forward(from_server, to_client, modes) => {}
                _ = cut.changed() => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    modes: watch::Receiver<Mode>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let pass = *modes.borrow() == Mode::Pass;
        if pass && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
