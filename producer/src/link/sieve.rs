//! Stands between the socket and the client library, and mends frames on their way in.
//! In: a stream of bytes from a broker. Out: the same, with each frame as [`mend`] leaves it; and a
//! note of each message that the broker gives back.

use std::future::Future;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::TokioRuntime;
use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::tcp::AsyncTcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tracing::warn;

use super::connection::USUAL_FRAME;
use super::mend::{self, HEAD, mend, shorten};
use super::returned::Returned;
use super::tls::Stream;

/// What is read at once.
const CHUNK: usize = 64 * 1024;
/// The longest frame that is waited for; no broker sends one with a header as long.
const LONGEST: usize = 4 * 1024 * 1024;
/// What no frame begins with is passed on as it comes, to the end.
const FOR_EVER: usize = usize::MAX;

/// A stream of which the reading half is mended.
#[derive(Debug)]
pub(crate) struct Sieve<S = Stream> {
    stream: S,
    frames: Frames,
    /// Until the broker has let us in: ends once nobody waits for it any more.
    given_up: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

/// Bytes on their way: those before `clean` may go on.
#[derive(Debug, Default)]
struct Frames {
    bytes: Vec<u8>,
    given: usize,
    clean: usize,
    filled: usize,
    /// So many of those that follow `clean` belong to a frame that needs no mending.
    pass: usize,
    /// What the broker says is the longest frame.
    frame_max: Option<usize>,
    /// The broker has let us in.
    opened: bool,
    /// Channels on which a return has begun, and its properties are to come.
    returning: Vec<u16>,
    returned: Arc<Returned>,
}

impl<S> Sieve<S> {
    /// Reading fails once `given_up` is cancelled before the broker has let us in: the client library
    /// would keep a try that nobody waits for, with its thread and its socket. What the broker gives
    /// back is noted in `returned`.
    pub(crate) fn new(stream: S, given_up: CancellationToken, returned: Arc<Returned>) -> Self {
        let given_up = Some(Box::pin(given_up.cancelled_owned()));
        Self { stream, frames: Frames { returned, ..Frames::default() }, given_up }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Sieve<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<Result<usize>> {
        let this = &mut *self;
        if this.frames.opened {
            this.given_up = None;
        }
        if let Some(given_up) = &mut this.given_up
            && given_up.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(ErrorKind::ConnectionAborted.into()));
        }
        loop {
            let given = this.frames.give(into);
            if given > 0 || into.is_empty() {
                return Poll::Ready(Ok(given));
            }
            let room = this.frames.room();
            match ready!(Pin::new(&mut this.stream).poll_read(cx, room))? {
                0 if this.frames.end() => {}
                0 => return Poll::Ready(Ok(0)),
                read => this.frames.filled(read),
            }
        }
    }
}

impl Frames {
    /// Hands out what is clean.
    fn give(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.clean - self.given);
        into[..count].copy_from_slice(&self.bytes[self.given..self.given + count]);
        self.given += count;
        count
    }

    /// Where to read more to, once all that is clean was handed out.
    fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.given..self.filled, 0);
        self.filled -= self.given;
        (self.given, self.clean) = (0, 0);
        // Room for one big frame is given back once it has passed.
        self.bytes.resize(self.filled + CHUNK, 0);
        if self.bytes.capacity() > 4 * CHUNK && self.filled < CHUNK {
            self.bytes.shrink_to(2 * CHUNK);
        }
        &mut self.bytes[self.filled..]
    }

    fn filled(&mut self, count: usize) {
        self.filled += count;
        while self.clean < self.filled && self.next() {}
    }

    /// Lets the next frame pass, or as much of it as is there. `false`: it must come whole.
    fn next(&mut self) -> bool {
        if self.pass == 0 {
            let waiting = &self.bytes[self.clean..self.filled];
            match waiting {
                // Protocol header or TLS alert: whoever speaks is no AMQP 0-9-1 server.
                [kind, ..] if !matches!(kind, 1..=4 | 8) => self.pass = FOR_EVER,
                [kind, _, _, a, b, c, d, ..] => {
                    let size = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                    let whole = size.saturating_add(HEAD + 1);
                    if mend::concerns(*kind) && whole <= LONGEST {
                        return self.mend(whole);
                    }
                    self.pass = whole;
                }
                _ => return false,
            }
        }
        let count = self.pass.min(self.filled - self.clean);
        if self.pass != FOR_EVER {
            self.pass -= count;
        }
        self.clean += count;
        true
    }

    fn mend(&mut self, whole: usize) -> bool {
        let end = self.clean + whole;
        if end > self.filled {
            return false;
        }
        let frame = &mut self.bytes[self.clean..end];
        let mended = mend(frame);
        if mended.any() {
            // At warn level: somebody publishes what most clients cannot read.
            let (texts, nests) = (mended.texts, mended.nests);
            warn!(texts, nests, "a message has properties that cannot be read as they are");
        }
        if mend::is_return(frame) {
            self.returning.push(mend::channel(frame));
        } else if !self.returning.is_empty() && mend::is_header(frame) {
            let channel = mend::channel(frame);
            if let Some(place) = self.returning.iter().position(|returning| *returning == channel) {
                self.returning.swap_remove(place);
                self.returned.note(channel, mend::message_id(frame));
            }
        }
        let short = self.frame_max.and_then(|most| shorten(frame, most));
        if self.frame_max.is_none()
            && let Some(most) = mend::frame_max(frame)
        {
            self.frame_max = Some(if most == 0 { USUAL_FRAME } else { most });
            self.returned.tuned(most);
        }
        self.opened = self.opened || mend::lets_us_in(frame);
        match short {
            None => self.clean = end,
            Some(short) => {
                warn!(omitted = short.names, "a message has headers that no frame can hold");
                self.clean += short.frame.len();
                self.filled -= whole;
                self.filled += short.frame.len();
                self.bytes.splice(end - whole..end, short.frame);
            }
        }
        true
    }

    /// The stream has ended: half a frame goes on as it is. `false`: there is none.
    fn end(&mut self) -> bool {
        let more = self.clean < self.filled;
        self.clean = self.filled;
        more
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Sieve<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// The runtime that the client library gets: ours, with a sieve in each connection.
#[derive(Debug, Clone)]
pub(crate) struct Sifting(pub(crate) TokioRuntime);

impl RuntimeKit for Sifting {}

impl Executor for Sifting {
    type Task<T: Send + 'static> = <TokioRuntime as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        future: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

impl Reactor for Sifting {
    type TcpStream = Sieve;
    type Sleep = <TokioRuntime as Reactor>::Sleep;

    /// The client library never asks for it.
    fn register<H: Send + 'static>(
        &self,
        _socket: H,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Self::TcpStream, _>(Error::from(ErrorKind::Unsupported))
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(
        &self,
        time: Duration,
    ) -> impl futures_util::Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = Result<Self::TcpStream>> + Send + 'static {
        let connect = self.0.tcp_connect_addr(address);
        async move {
            let stream = AsyncTcpStream::Plain(connect.await?);
            Ok(Sieve::new(stream, CancellationToken::new(), Arc::default()))
        }
    }
}

/// Sifts a whole stream, as it comes off a socket in large reads, and says how many bytes came out:
/// for measuring.
#[cfg(feature = "testing")]
pub(crate) fn sifted(stream: &[u8]) -> usize {
    let (mut frames, mut into) = (Frames::default(), [0; CHUNK]);
    let mut out = 0;
    for part in stream.chunks(CHUNK) {
        frames.room()[..part.len()].copy_from_slice(part);
        frames.filled(part.len());
        while let count @ 1.. = frames.give(&mut into) {
            out += count;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::returned::Fate;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1][..], &size, payload, &[0xce]].concat()
    }

    /// A content header with a message id and headers that are texts of these lengths.
    fn header(id: &[u8], lengths: &[u8]) -> Vec<u8> {
        let mut table = Vec::new();
        for (name, length) in (b'a'..).zip(lengths) {
            table.extend([1, name, b'S', 0, 0, *length, 0]);
            table.extend(vec![b'.'; usize::from(*length) * 256]);
        }
        let size = u32::try_from(table.len()).unwrap().to_be_bytes();
        let flags = (1_u16 << 13 | 1 << 7).to_be_bytes();
        let id = [&[u8::try_from(id.len()).unwrap()], id].concat();
        frame(2, &[&[0, 60, 0, 0][..], &[0; 8], &flags, &size, &table, &id].concat())
    }

    /// The first frame from a broker that matters: none is longer than 4 KiB.
    fn tune() -> Vec<u8> {
        let mut tune = frame(1, &[0, 10, 0, 30, 7, 255, 0, 0, 16, 0, 0, 60]);
        tune[2] = 0;
        tune
    }

    /// What comes out when so many bytes come at once.
    fn sifted_by(stream: &[u8], step: usize) -> Vec<u8> {
        fn drain(frames: &mut Frames, out: &mut Vec<u8>) {
            let mut into = [0; 5];
            loop {
                let count = frames.give(&mut into);
                if count == 0 {
                    return;
                }
                out.extend_from_slice(&into[..count]);
            }
        }
        let (mut frames, mut out) = (Frames::default(), Vec::new());
        for part in stream.chunks(step) {
            frames.room()[..part.len()].copy_from_slice(part);
            frames.filled(part.len());
            drain(&mut frames, &mut out);
        }
        frames.end();
        drain(&mut frames, &mut out);
        out
    }

    #[test]
    fn a_stream_passes_unchanged_however_it_is_cut_up() {
        let body = frame(3, &[0xff; 300]);
        let heartbeat = vec![8, 0, 0, 0, 0, 0, 0, 0xce];
        let parts = [tune(), header(b"id", &[1, 2]), body, heartbeat, header(b"half", &[])];
        let mut stream = parts.concat();
        stream.truncate(stream.len() - 3);
        for step in [1, 2, 7, 8, 100, 4_000] {
            assert!(sifted_by(&stream, step) == stream, "{step}");
        }
        // Another version of the protocol, or none.
        for stream in [&b"AMQP\x01\x01\x00\x09\x02\xff\xff"[..], b"HTTP/1.1 400", b""] {
            assert_eq!(sifted_by(stream, 3), stream);
        }
    }

    #[test]
    fn a_return_is_noted_before_the_bytes_after_it_are_handed_on() {
        let returning = frame(1, b"\0\x3c\0\x32\x01\x38\x08NO_ROUTE\x07forebay\x04mail");
        let stream = [returning, header(b"back", &[1]), header(b"delivered", &[])].concat();
        for step in [1, 10, 4_000] {
            let mut frames = Frames::default();
            for part in stream.chunks(step) {
                frames.room()[..part.len()].copy_from_slice(part);
                frames.filled(part.len());
                let clean = frames.clean - frames.given;
                frames.give(&mut vec![0; clean]);
            }
            let fates = ["back", "delivered"].map(|id| frames.returned.fate(1, id));
            assert_eq!(fates, [Fate::Returned, Fate::Routed], "{step}");
        }
    }

    #[test]
    fn a_return_without_an_id_makes_its_channel_unclear() {
        let returning = frame(1, b"\0\x3c\0\x32\x01\x38\x08NO_ROUTE\x07forebay\x04mail");
        let stream = [returning, frame(2, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])].concat();
        let mut frames = Frames::default();
        frames.room()[..stream.len()].copy_from_slice(&stream);
        frames.filled(stream.len());
        assert_eq!(frames.returned.fate(1, "any"), Fate::Unclear);
        assert_eq!(frames.returned.fate(2, "any"), Fate::Routed);
    }

    #[test]
    fn a_frame_that_cannot_be_read_is_mended_and_the_next_is_as_it_was() {
        let stream = [header(b"\xffid", &[1]), header(b"next", &[2])].concat();
        let mended = [header(b"?id", &[1]), header(b"next", &[2])].concat();
        assert!(sifted_by(&stream, 10) == mended);
    }

    #[test]
    fn a_header_longer_than_a_frame_may_be_is_shortened_by_its_longest() {
        let stream = [tune(), header(b"long", &[1, 9, 10, 9]), header(b"next", &[2])].concat();
        let out = sifted_by(&stream, 1_000);
        let shortened = &out[tune().len()..out.len() - header(b"next", &[2]).len()];
        assert!(shortened.len() <= 4_096, "{}", shortened.len());
        assert!(out.ends_with(&header(b"next", &[2])));
        let text = String::from_utf8_lossy(shortened);
        assert!(text.contains("forebay-omitted") && text.contains("c, b"), "{text}");
    }
}
