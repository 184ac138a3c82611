//! TCP, TLS and HTTP: who may connect, for how long, and how it ends.
//! In: a listener and routes. Out: connections served, each in a task of its own, until told to end;
//! then they finish what they do.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;
use tracing::{debug, warn};

use crate::crowd::{Crowd, Seat};
use crate::peer::{self, Peer};
use crate::stall::Stalling;
use crate::traffic::{self, Present};

/// Until the head of a request, and before it the handshake of TLS, has to be there.
const HEAD: Duration = Duration::from_secs(10);
/// Bytes of a head: a token of 8 KiB, and a ticket, fit.
const BUFFER: usize = 32 * 1024;
/// After an error of the operating system, which is out of descriptors most likely.
const PAUSE: Duration = Duration::from_millis(100);

/// What is served where.
pub(crate) struct Server {
    pub(crate) listener: TcpListener,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) routes: Router,
    /// Connections at once.
    pub(crate) crowd: Arc<Crowd>,
    /// Those whose word counts for whom a request comes from.
    pub(crate) proxies: Vec<IpNet>,
    /// A client that takes nothing for so long is cut off.
    pub(crate) slow: Duration,
    pub(crate) tasks: TaskTracker,
    pub(crate) closing: CancellationToken,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// Takes an address.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Server {
    /// Takes connections until told to end. They are the tracker's to wait for.
    pub(crate) async fn run(self) -> io::Result<()> {
        let Self { listener, tls, routes, crowd, proxies, slow, tasks, closing } = self;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let proxies: Arc<[IpNet]> = proxies.into();
        loop {
            let taken = tokio::select! {
                // Cancel-safe: a connection that was not taken waits on.
                taken = listener.accept() => taken,
                () = closing.cancelled() => return Ok(()),
            };
            let (stream, peer) = match taken {
                Ok(taken) => taken,
                Err(error) => {
                    warn!(%error, "a connection was not taken");
                    time::sleep(PAUSE).await;
                    continue;
                }
            };
            let address = (!peer::is_within(peer.ip(), &proxies)).then(|| peer::whose(peer.ip()));
            let seat = match crowd.enter(address) {
                Ok(seat) => seat,
                Err(full) => {
                    traffic::turned_away(full.word());
                    debug!(%peer, ?full, "turned away: no more connections");
                    continue;
                }
            };
            let (tls, routes, closing) = (tls.clone(), routes.clone(), closing.clone());
            let (stream, proxies) = (Seated::new(stream, slow, seat), Arc::clone(&proxies));
            let whence = Whence { peer: peer.ip(), proxies };
            tasks.spawn(async move {
                let ended = connection(stream, tls, routes, whence, closing).await;
                if let Err(error) = ended {
                    debug!(%peer, error, "a connection ended");
                }
            });
        }
    }
}

/// Where the requests of a connection come from.
struct Whence {
    peer: IpAddr,
    proxies: Arc<[IpNet]>,
}

/// A connection with what is given back when it ends. A WebSocket takes it along when it leaves HTTP.
struct Seated {
    stream: Stalling<TcpStream>,
    _seat: Seat,
    _present: Present,
}

impl Seated {
    fn new(stream: TcpStream, slow: Duration, seat: Seat) -> Self {
        _ = stream.set_nodelay(true);
        // What a client does not take would be kept here otherwise, for as long as it likes.
        let stream = Stalling::new(stream, slow);
        Self { stream, _seat: seat, _present: Present::connection() }
    }
}

impl AsyncRead for Seated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Seated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

async fn connection(
    stream: Seated,
    tls: Option<TlsAcceptor>,
    routes: Router,
    whence: Whence,
    closing: CancellationToken,
) -> Result<(), String> {
    match tls {
        None => converse(stream, routes, whence, closing).await,
        Some(tls) => {
            let greeted = time::timeout(HEAD, tls.accept(stream)).await;
            let stream = greeted.map_err(|_| "TLS took too long")?;
            converse(stream.map_err(|error| error.to_string())?, routes, whence, closing).await
        }
    }
}

async fn converse<S>(
    stream: S,
    routes: Router,
    whence: Whence,
    closing: CancellationToken,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        let peer = Peer::of(whence.peer, request.headers(), &whence.proxies);
        request.extensions_mut().insert(peer);
        routes.clone().call(request)
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut conversation = std::pin::pin!(conversation);
    let ended = tokio::select! {
        ended = conversation.as_mut() => ended,
        () = closing.cancelled() => {
            conversation.as_mut().graceful_shutdown();
            conversation.await
        }
    };
    ended.map_err(|error| error.to_string())
}
