//! An engine's answer on its way to the client: bytes as they come, and an honest end.
//!
//! A stream of events is whole when its engine said so (`[DONE]`). One that ends without gets an
//! error event, and the connection is aborted: to most clients a clean end means success.

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Response,
    body::{Frame, Incoming},
};
use tokio::{sync::watch, task::yield_now};

use super::{
    exchange::Answer,
    gate::{Lease, Standing},
    reply::{Aborted, Body, Fault},
    upstream::Connection,
};

/// How much of a stream's end is remembered: enough for `data: [DONE]` and its line ends.
const TAIL: usize = 32;

/// Makes the body of an answer that is passed on. `events` says that it is a stream of them.
pub(super) fn body(answer: Answer, events: Events) -> (Response<()>, Body) {
    let (response, frames) = frames(answer, events);
    (response, StreamBody::new(frames).boxed_unsync())
}

/// What an answer's body is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Events {
    /// A stream that must end with `[DONE]`.
    UntilDone,
    /// Anything else.
    None,
}

/// Splits an answer into its head and the frames of its body.
pub(super) fn frames(
    answer: Answer,
    events: Events,
) -> (Response<()>, impl Stream<Item = Result<Frame<Bytes>, Aborted>> + Send) {
    let Answer { response, connection, lease } = answer;
    let (head, incoming) = response.into_parts();
    let standing = lease.gate().standing();
    let relay = Relay { incoming, connection, lease, standing, events, tail: Vec::new() };
    let frames = stream::unfold(State::Flowing(Box::new(relay)), step);
    (Response::from_parts(head, ()), frames)
}

struct Relay {
    incoming: Incoming,
    connection: Connection,
    lease: Lease,
    standing: watch::Receiver<Standing>,
    events: Events,
    tail: Vec<u8>,
}

enum State {
    Flowing(Box<Relay>),
    /// The client has been told; the connection goes next.
    Aborting,
    Ended,
}

type Item = Result<Frame<Bytes>, Aborted>;

async fn step(state: State) -> Option<(Item, State)> {
    match state {
        State::Flowing(relay) => relay.next().await,
        State::Aborting => {
            // What was written before leaves when nothing more is ready; an error would drop it.
            for _ in 0..4 {
                yield_now().await;
            }
            Some((Err(Aborted), State::Ended))
        }
        State::Ended => None,
    }
}

impl Relay {
    async fn next(mut self: Box<Self>) -> Option<(Item, State)> {
        let frame = tokio::select! {
            frame = self.incoming.frame() => frame,
            what = ended(&mut self.standing) => return Some(self.break_off(what)),
        };
        match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.remember(data);
                }
                Some((Ok(frame), State::Flowing(self)))
            }
            Some(Err(_)) => Some(self.break_off("died in mid-answer")),
            None if self.is_whole() => {
                self.lease.gate().pool().keep(self.connection);
                None
            }
            None => Some(self.break_off("ended its stream before it was whole")),
        }
    }

    fn is_whole(&self) -> bool {
        match self.events {
            Events::UntilDone => self.tail.trim_ascii_end().ends_with(b"data: [DONE]"),
            Events::None => true,
        }
    }

    fn remember(&mut self, data: &Bytes) {
        self.tail.extend_from_slice(data.get(data.len().saturating_sub(TAIL)..).unwrap_or(data));
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
    }

    fn break_off(self, what: &str) -> (Item, State) {
        if self.events == Events::None {
            return (Err(Aborted), State::Ended);
        }
        let event = Fault::engine_died(self.lease.gate().slot(), what).event();
        // An event cut in half is ended first, so that the next one is read as one.
        let is_between = self.tail.is_empty() || self.tail.ends_with(b"\n\n");
        let event = if is_between { event } else { Bytes::from([&b"\n\n"[..], &event].concat()) };
        (Ok(Frame::data(event)), State::Aborting)
    }
}

/// Resolves once the engine's time is up, with what to say of it.
async fn ended(standing: &mut watch::Receiver<Standing>) -> &'static str {
    let now = standing.wait_for(|standing| *standing != Standing::Alive).await.map(|now| *now);
    match now {
        Ok(Standing::Cut) => "was stopped in mid-answer",
        Ok(Standing::Alive | Standing::Dead) => "died in mid-answer",
        // The gate lives as long as the lease: this cannot be.
        Err(_) => std::future::pending().await,
    }
}
