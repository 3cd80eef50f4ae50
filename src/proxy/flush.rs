//! Tells a body when what it gave has been written to the client's socket.
//!
//! hyper drops what it has not written when a body breaks off. A stream that ends with an error
//! event therefore breaks off only once that event is out.

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_util::task::AtomicWaker;
use hyper::rt::{Read, ReadBufCursor, Write};

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

/// A client's connection that counts its flushes.
#[derive(Debug)]
pub(super) struct Counted<T> {
    inner: T,
    flushes: Arc<Flushes>,
}

impl<T> Counted<T> {
    pub(super) fn new(inner: T, flushes: Arc<Flushes>) -> Self {
        Self { inner, flushes }
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

impl<T: Write + Unpin> Write for Counted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    /// hyper calls this once its own buffer is empty.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.inner).poll_flush(context));
        self.flushes.count.fetch_add(1, Ordering::Release);
        self.flushes.waker.wake();
        Poll::Ready(flushed)
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
