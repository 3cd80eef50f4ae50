//! Connections to engines as plain bytes, kept beside those that hyper drives.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, timeout},
};
use tokio_util::either::Either;

use super::{
    super::{
        gate::Gate,
        upstream::{CONNECT_DEADLINE, LONGEST_IDLE, Stream},
    },
    scratch,
};

/// Up to so many bytes are joined before they are written: the system takes one part faster than two,
/// and larger ones are not worth the copy.
const MOST_JOINED: usize = 4 << 10;

/// Why there is no answer, not even its head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// The engine cannot be reached, or hung up before it said anything.
    Gone,
    /// The exchange was ended because the slot goes down.
    Cut,
    /// What came is no HTTP.
    Garbled,
}

/// One connection to an engine.
#[derive(Debug)]
pub(in super::super) struct Wire(pub(in super::super) Stream);

impl Wire {
    /// Reads what is there.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut self.0).poll_read(context, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Writes as much of both parts as there is room for.
    pub(super) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        (first, second): (&[u8], &[u8]),
    ) -> Poll<io::Result<usize>> {
        if first.len().saturating_add(second.len()) <= MOST_JOINED {
            let mut joined = scratch::take_out();
            joined.extend_from_slice(first);
            joined.extend_from_slice(second);
            let written = Pin::new(&mut self.0).poll_write(context, &joined);
            scratch::give_back(joined);
            return written;
        }
        let parts = [io::IoSlice::new(first), io::IoSlice::new(second)];
        // What holds either kind does not pass this on.
        match &mut self.0 {
            Either::Left(stream) => Pin::new(stream).poll_write_vectored(context, &parts),
            Either::Right(stream) => Pin::new(stream).poll_write_vectored(context, &parts),
        }
    }

    /// Tells whether the engine has kept its side open, as far as this side has been told.
    fn is_open(&mut self) -> bool {
        let mut byte = [0];
        self.poll_read(&mut Context::from_waker(Waker::noop()), &mut byte).is_pending()
    }
}

/// Takes a connection that waits for its next use, be it one that hyper kept.
pub(super) fn take_any(gate: &Gate) -> Option<Wire> {
    take_idle(gate).or_else(|| gate.upstream().take_idle()?.into_wire())
}

/// Takes a connection that was kept here.
pub(in super::super) fn take_idle(gate: &Gate) -> Option<Wire> {
    loop {
        let (mut wire, since) = gate.upstream().idle_wires().pop()?;
        if since.elapsed() < LONGEST_IDLE && wire.is_open() {
            return Some(wire);
        }
    }
}

/// Keeps a connection for its next use.
pub(super) fn keep(gate: &Gate, wire: Wire) {
    let now = Instant::now();
    let mut idle = gate.upstream().idle_wires();
    // Asked under the lock: `close` closes first and empties the list afterwards.
    if gate.is_closed() {
        return;
    }
    // The oldest is the first.
    while idle.first().is_some_and(|(_, since)| now.duration_since(*since) >= LONGEST_IDLE) {
        idle.remove(0);
    }
    idle.push((wire, now));
}

/// Opens a connection.
pub(super) async fn open(gate: &Gate) -> Result<Wire, Failure> {
    match timeout(CONNECT_DEADLINE, gate.upstream().open()).await {
        Ok(Ok(stream)) => Ok(Wire(stream)),
        Ok(Err(_)) | Err(_) => Err(Failure::Gone),
    }
}
