//! A connection whose other end takes nothing for too long is over, for reading and for writing.
//!
//! A timeout of a write is an error of that write alone, and Engine.IO's writer goes on with the next
//! packet after one: a client that came to itself then would miss the packet in between, and never
//! know.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_io_timeout::TimeoutStream;

use crate::traffic;

/// A stream that ends when a write has waited for too long.
#[derive(Debug)]
pub(crate) struct Stalling<S> {
    stream: Pin<Box<TimeoutStream<S>>>,
    over: bool,
    /// Who waits for something to read, and would wait for ever.
    reader: Option<Waker>,
}

impl<S: AsyncRead + AsyncWrite> Stalling<S> {
    /// `longest`: how long a write may wait.
    pub(crate) fn new(stream: S, longest: Duration) -> Self {
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(longest));
        Self { stream: Box::pin(stream), over: false, reader: None }
    }

    fn write<T>(
        &mut self,
        write: impl FnOnce(Pin<&mut TimeoutStream<S>>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.over {
            return Poll::Ready(Err(over()));
        }
        let written = write(self.stream.as_mut());
        if let Poll::Ready(Err(error)) = &written
            && error.kind() == io::ErrorKind::TimedOut
        {
            self.over = true;
            traffic::stalled();
            self.reader.take().into_iter().for_each(Waker::wake);
        }
        written
    }
}

fn over() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the other end took nothing for too long")
}

impl<S: AsyncRead + AsyncWrite> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.over {
            return Poll::Ready(Err(over()));
        }
        let read = self.stream.as_mut().poll_read(cx, buffer);
        if read.is_pending() {
            self.reader = Some(cx.waker().clone());
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite> AsyncWrite for Stalling<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(|stream| stream.poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(|stream| stream.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(|stream| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};

    use super::*;

    #[tokio::test]
    async fn after_a_write_that_waited_for_too_long_nothing_is_read_or_written_any_more() {
        let (here, mut there) = duplex(16);
        let (mut reading, mut writing) = split(Stalling::new(here, Duration::from_millis(20)));
        let waiting = tokio::spawn(async move { reading.read_u8().await });
        let error = writing.write_all(&[7; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(waiting.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        // The other end comes to itself.
        there.read_exact(&mut [0; 16]).await.unwrap();
        assert!(writing.write_all(&[7]).await.is_err());
    }

    #[tokio::test]
    async fn who_takes_slowly_is_not_cut_off() {
        let (here, mut there) = duplex(16);
        let mut stream = Stalling::new(here, Duration::from_secs(60));
        let taking = tokio::spawn(async move {
            let mut taken = [0; 100];
            there.read_exact(&mut taken).await.map(|_| taken)
        });
        stream.write_all(&[7; 100]).await.unwrap();
        assert_eq!(taking.await.unwrap().unwrap(), [7; 100]);
    }
}
