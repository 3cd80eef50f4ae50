//! A client's connection: its bytes as they come, whether it is still there, and what it is sent.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

use super::{super::flush::STALL, scratch};

/// How many bytes of later requests are taken in while one is at work.
const MOST_AHEAD: usize = 64 << 10;

/// The most room that a connection keeps while it waits for its next request.
const MOST_KEPT: usize = 2 << 10;

/// One client's connection.
#[derive(Debug)]
pub(super) struct Door {
    stream: TcpStream,
    /// What has come and was not used.
    pub(super) buffer: Vec<u8>,
    /// Fires when a client was waited for long enough, or earlier: then it is wound up anew.
    alarm: Option<Pin<Box<Sleep>>>,
}

/// Why nothing more came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Quiet {
    Left,
    TooLong,
}

impl Door {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new(), alarm: None }
    }

    /// Gives the connection away, with what was read of it.
    pub(super) fn into_parts(self) -> (TcpStream, Bytes) {
        (self.stream, Bytes::from(self.buffer))
    }

    /// Waits for more bytes, at most until `deadline`.
    pub(super) fn poll_more(
        &mut self,
        context: &mut Context<'_>,
        deadline: Instant,
    ) -> Poll<Result<(), Quiet>> {
        match self.poll_read(context) {
            Poll::Ready(true) => return Poll::Ready(Ok(())),
            Poll::Ready(false) => return Poll::Ready(Err(Quiet::Left)),
            Poll::Pending => {}
        }
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        loop {
            ready!(alarm.as_mut().poll(context));
            if Instant::now() >= deadline {
                return Poll::Ready(Err(Quiet::TooLong));
            }
            alarm.as_mut().reset(deadline);
        }
    }

    /// Makes room for a body of which the length is known.
    pub(super) fn expect(&mut self, whole: usize) {
        self.buffer.reserve_exact(whole.saturating_sub(self.buffer.len()));
    }

    /// Reads into the buffer; says whether something came.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        let room = self.buffer.capacity().saturating_sub(self.buffer.len());
        if self.buffer.is_empty() || room == 0 {
            let (stream, buffer) = (&mut self.stream, &mut self.buffer);
            return scratch::with(|space| {
                let mut space = ReadBuf::new(space);
                let read = ready!(Pin::new(stream).poll_read(context, &mut space));
                buffer.extend_from_slice(space.filled());
                Poll::Ready(read.is_ok() && !space.filled().is_empty())
            });
        }
        loop {
            if ready!(self.stream.poll_read_ready(context)).is_err() {
                return Poll::Ready(false);
            }
            match self.stream.try_read_buf(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(matches!(read, Ok(1..))),
            }
        }
    }

    /// Tells whether the client has hung up. Takes in what it sent meanwhile, within bounds.
    pub(super) fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.buffer.len() < MOST_AHEAD {
            if !ready!(self.poll_read(context)) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Takes back the room of a request that was used, where nothing has come since.
    pub(super) fn give_back(&mut self, mut room: Vec<u8>) {
        if self.buffer.capacity() == 0 && room.capacity() <= MOST_KEPT {
            room.clear();
            self.buffer = room;
        }
    }

    /// Sends bytes, as many as there is room for at once; the rest waits for room, but not for ever.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = match self.stream.try_write(bytes) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        match bytes.get(sent..) {
            None | Some([]) => Ok(()),
            Some(rest) => Box::pin(self.send_rest(rest.to_vec(), STALL)).await,
        }
    }

    /// Sends bytes, but gives up sooner.
    pub(super) async fn send_within(&mut self, bytes: &[u8], stall: Duration) -> io::Result<()> {
        self.send_rest(bytes.to_vec(), stall).await
    }

    /// A client that takes nothing for so long loses its connection.
    async fn send_rest(&mut self, bytes: Vec<u8>, stall: Duration) -> io::Result<()> {
        let (mut sent, mut alarm) = (0, Box::pin(sleep_until(Instant::now() + stall)));
        poll_fn(|context| {
            while let Some(rest @ [_, ..]) = bytes.get(sent..) {
                match Pin::new(&mut self.stream).poll_write(context, rest) {
                    Poll::Ready(Ok(0)) => {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    Poll::Ready(Ok(count)) => {
                        sent = sent.saturating_add(count);
                        alarm.as_mut().reset(Instant::now() + stall);
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        ready!(alarm.as_mut().poll(context));
                        return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }
}
