//! Tells a body when what it gave has been written to the client's socket.
//!
//! hyper drops what it has not written when a body breaks off. A stream that ends with an error
//! event therefore breaks off only once that event is out. The same place sees clients that have left
//! and clients that do not read.

use std::{
    fmt, io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::{
    io::ReadBuf,
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;

/// How often one connection has been written out whole. One body at a time watches it.
#[derive(Default)]
pub(super) struct Flushes {
    count: AtomicU64,
    waker: AtomicWaker,
}

impl Flushes {
    /// Returns the count so far, to be given to [`Flushes::poll_after`].
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Notes that everything was written.
    pub(super) fn note(&self) {
        self.count.fetch_add(1, Ordering::Release);
        self.waker.wake();
    }

    /// Waits until everything has been written once more since the count was `before`.
    pub(super) fn poll_after(&self, before: u64, context: &mut Context<'_>) -> Poll<()> {
        self.waker.register(context.waker());
        if self.count() == before { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl fmt::Debug for Flushes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Flushes").field(&self.count()).finish()
    }
}

/// How long a client may take nothing while there is something to take. It holds a seat at the engine.
pub(super) const STALL: Duration = Duration::from_mins(1);

/// What a client's connection is made of.
pub(super) trait Hangs {
    /// Tells whether the client has hung up, also where bytes lie before its end that nobody will
    /// read. Wakes when that may have changed.
    fn poll_hung_up(&mut self, context: &mut Context<'_>) -> bool;
}

impl Hangs for TokioIo<TcpStream> {
    fn poll_hung_up(&mut self, context: &mut Context<'_>) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let mut buffer = ReadBuf::uninit(&mut byte);
        matches!(self.inner().poll_peek(context, &mut buffer), Poll::Ready(Ok(0)))
    }
}

impl Hangs for TokioIo<TlsStream<TcpStream>> {
    fn poll_hung_up(&mut self, context: &mut Context<'_>) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let mut buffer = ReadBuf::uninit(&mut byte);
        // A record that is not read yet may be a farewell: hyper reads it.
        matches!(self.inner().get_ref().0.poll_peek(context, &mut buffer), Poll::Ready(Ok(0)))
    }
}

/// A client's connection of which something was read already.
#[derive(Debug)]
pub(super) struct Rewound<T> {
    inner: T,
    read: Bytes,
}

impl<T> Rewound<T> {
    pub(super) fn new(inner: T, read: Bytes) -> Self {
        Self { inner, read }
    }
}

impl<T: Read + Unpin> Read for Rewound<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.inner).poll_read(context, buffer);
        }
        let count = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read.split_to(count));
        if self.read.is_empty() {
            self.read = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Write + Unpin> Write for Rewound<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, buffers)
    }
}

impl<T: Hangs> Hangs for Rewound<T> {
    fn poll_hung_up(&mut self, context: &mut Context<'_>) -> bool {
        self.inner.poll_hung_up(context)
    }
}

/// A client's connection that counts its flushes, and breaks when its client has left or does not
/// read.
#[derive(Debug)]
pub(super) struct Counted<T> {
    inner: T,
    flushes: Arc<Flushes>,
    /// Runs while there is something that the client does not take.
    stall: Option<Pin<Box<Sleep>>>,
}

impl<T> Counted<T> {
    pub(super) fn new(inner: T, flushes: Arc<Flushes>) -> Self {
        Self { inner, flushes, stall: None }
    }

    /// Lets a write wait, but not for ever.
    fn patient<R>(
        &mut self,
        written: Poll<io::Result<R>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(STALL)));
        ready!(stall.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<T: Read + Unpin> Read for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: Write + Hangs + Unpin> Write for Counted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.patient(written, context)
    }

    /// hyper calls this once its own buffer is empty, and each time that something has happened. It
    /// does not look for the client's end itself while bytes of a next request lie in its buffer.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        // TLS takes what its client does not, up to a limit, and waits here.
        let flushed = ready!(self.patient(flushed, context));
        self.flushes.note();
        if self.inner.poll_hung_up(context) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(context);
        self.patient(shut, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, buffers);
        self.patient(written, context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// A client whose socket takes nothing.
    struct Deaf;

    impl Hangs for Deaf {
        fn poll_hung_up(&mut self, _: &mut Context<'_>) -> bool {
            false
        }
    }

    impl Write for Deaf {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_in_and_never_comes_out_counts_too() {
        let mut deaf = Counted::new(Deaf, Arc::default());
        let flushed = poll_fn(|context| Pin::new(&mut deaf).poll_flush(context)).await;
        assert_eq!(flushed.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_loses_its_connection() {
        let mut deaf = Counted::new(Deaf, Arc::default());
        let before = tokio::time::Instant::now();
        let written = poll_fn(|context| Pin::new(&mut deaf).poll_write(context, b"x")).await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(before.elapsed() >= STALL, "{:?}", before.elapsed());
    }
}
