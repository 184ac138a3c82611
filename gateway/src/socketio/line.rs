//! A WebSocket's connection as the library has it.
//! In: a stream. Out: the same, which says what it takes, and ends when its transport does.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{DropGuard, WaitForCancellationFutureOwned};

use super::flow::Hold;
use super::transport::Transport;

/// One connection.
pub(super) struct Line {
    stream: TokioIo<Upgraded>,
    transport: Arc<Transport>,
    /// Each of both waits for the end with a waker of its own.
    reading: Pin<Box<WaitForCancellationFutureOwned>>,
    writing: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Until something is written: then it takes over from polling, and will bring what is given.
    hold: Option<Hold>,
    _ended: DropGuard,
}

impl Line {
    /// `ended` is dropped with it.
    pub(super) fn new(
        stream: Upgraded,
        transport: Arc<Transport>,
        hold: Option<Hold>,
        ended: DropGuard,
    ) -> Self {
        let over = || Box::pin(transport.over.clone().cancelled_owned());
        let (reading, writing) = (over(), over());
        Self { stream: TokioIo::new(stream), transport, reading, writing, hold, _ended: ended }
    }

    /// What can be written at the end is written; nothing is waited for.
    fn unless_over<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match written {
            Poll::Pending if self.writing.as_mut().poll(cx).is_ready() => {
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            }
            written => written,
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.reading.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(bytes)) = written {
            self.transport.flow.take(bytes);
            self.hold = None;
        }
        self.unless_over(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.unless_over(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.unless_over(cx, shut)
    }
}
