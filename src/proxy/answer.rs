//! One engine's answer: its head, and its body as it comes.

use std::{
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use hyper::{
    HeaderMap, Response, StatusCode,
    body::{Body as _, Incoming},
    header::CONTENT_TYPE,
};

use super::{
    flight::{Flight, Stage},
    gate::{Gate, Lease},
    meters::Outcome,
    upstream::Line,
    usage::UsageReader,
};

/// An answer whose head has been read and whose body is to come. Dropping it hangs up.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    incoming: Incoming,
    line: Line,
    lease: Lease,
    flight: Arc<Flight>,
    usage: UsageReader,
    is_events: bool,
}

/// What an engine sent next.
pub(super) enum Piece {
    /// Bytes of the body, and whether they are known to be the last.
    Data(Bytes, IsLast),
    /// The body has ended as its framing says it should.
    End,
    /// The connection broke before the body had ended.
    Break,
}

/// Whether a piece is known to be the last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum IsLast {
    Yes,
    NotKnown,
}

impl Answer {
    pub(super) fn new(
        (response, line): (Response<Incoming>, Line),
        mut lease: Lease,
        flight: Arc<Flight>,
    ) -> Self {
        lease.note_word();
        let (head, incoming) = response.into_parts();
        let kind = head.headers.get(CONTENT_TYPE);
        let is_events = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let (status, headers, usage) = (head.status, head.headers, UsageReader::default());
        Self { status, headers, incoming, line, lease, flight, usage, is_events }
    }

    /// Returns the request that is answered.
    pub(super) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    pub(super) fn gate(&self) -> &Arc<Gate> {
        self.lease.gate()
    }

    /// Tells whether the body is a stream of events.
    pub(super) fn is_events(&self) -> bool {
        self.is_events
    }

    pub(super) fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Piece> {
        loop {
            let frame = match self.line.poll_body(&mut self.incoming, context) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Piece::Break),
                Poll::Ready(None) => return Poll::Ready(Piece::End),
                Poll::Pending => return Poll::Pending,
            };
            // Trailers are of no use to these clients.
            if let Ok(data) = frame.into_data() {
                self.gate().record().note_piece();
                let is_last =
                    if self.incoming.is_end_stream() { IsLast::Yes } else { IsLast::NotKnown };
                self.flight.note_piece(&data, self.is_events);
                self.usage.read(&data, is_last == IsLast::Yes);
                return Poll::Ready(Piece::Data(data, is_last));
            }
        }
    }

    /// Notes that the engine broke off.
    pub(super) fn note_break(&mut self) {
        self.lease.note_break();
    }

    /// Notes that the engine failed the request.
    pub(super) fn note_failure(&mut self) {
        self.lease.note_failure();
    }

    /// Gives the connection and the seat back: the body has been read whole.
    pub(super) fn finish(mut self, context: &mut Context<'_>) {
        self.lease.note_answer();
        self.flight.note_usage(&self.usage.usage());
        self.flight.end(Outcome::Answered);
        self.line.settle(context);
        self.lease.gate().keep(self.line);
    }

    /// Reads the body to its end for nobody: its client has left. Ends with the gate.
    pub(super) async fn drain(mut self) {
        let (ended, flight) = (self.gate().ended().clone(), Arc::clone(&self.flight));
        let whole = async {
            while let Piece::Data(..) = poll_fn(|context| self.poll_piece(context)).await {}
        };
        tokio::select! {
            () = whole => {}
            () = ended.cancelled() => return,
            () = flight.cancelled() => {
                drop(flight.end_cancelled());
                return;
            }
        }
        self.flight.note_usage(&self.usage.usage());
        poll_fn(|context| {
            self.line.settle(context);
            Poll::Ready(())
        })
        .await;
        self.lease.gate().keep(self.line);
    }

    /// Goes on without its client where the slot wants that, else hangs up.
    pub(super) fn let_go(self) {
        let flight = Arc::clone(&self.flight);
        if flight.drains() && flight.stage() == Stage::Streaming {
            flight.abandon(self.drain());
        }
    }

    /// Reads the body as far as `most` bytes. `None` if it broke before.
    pub(super) async fn read(mut self, most: usize) -> Option<Bytes> {
        let mut read = BytesMut::new();
        while read.len() < most {
            match poll_fn(|context| self.poll_piece(context)).await {
                Piece::Data(data, _) => read.extend_from_slice(&data),
                Piece::End => {
                    poll_fn(|context| {
                        self.line.settle(context);
                        Poll::Ready(())
                    })
                    .await;
                    self.lease.gate().keep(self.line);
                    return Some(read.freeze());
                }
                Piece::Break => return None,
            }
        }
        read.truncate(most);
        Some(read.freeze())
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}
