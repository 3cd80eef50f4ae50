//! An answer of the fall-through upstream on its way to the client. What breaks off never looks whole.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    HeaderMap,
    body::{Body, Frame, Incoming},
    header::CONTENT_TYPE,
};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    super::{
        dialect::Dialect,
        flight::Flight,
        flush::Flushes,
        follow::Follow,
        forward::mark_stream,
        meters::Outcome,
        relay::LastWords,
        reply::{Aborted, Fault},
        surface::Form,
        usage::UsageReader,
    },
    broke_off, too_slow,
};

/// The body of an answer that is passed on. Dropping it hangs up.
pub(super) struct Passed {
    state: State,
    /// What a stream of events says of its end; nothing else is followed.
    follow: Option<Follow>,
    dialect: Dialect,
    deadline: Pin<Box<Sleep>>,
    timeout: Duration,
    flight: Arc<Flight>,
    flushes: Arc<Flushes>,
    usage: UsageReader,
}

enum State {
    Flowing(Incoming),
    LastWords(LastWords),
    Ended,
}

type Item = Option<Result<Frame<Bytes>, Aborted>>;

impl Passed {
    /// Passes a body on. The head is marked as a stream's where it is one.
    pub(super) fn new(
        (incoming, headers): (Incoming, &mut HeaderMap),
        form: Form,
        (deadline, timeout): (Instant, Duration),
        (flight, flushes): (&Arc<Flight>, Arc<Flushes>),
    ) -> Self {
        let kind = headers.get(CONTENT_TYPE);
        let is_events = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        if is_events {
            mark_stream(headers);
        }
        Self {
            state: State::Flowing(incoming),
            follow: is_events.then(|| Follow::new(form.whole)),
            dialect: form.dialect,
            deadline: Box::pin(sleep_until(deadline)),
            timeout,
            flight: Arc::clone(flight),
            flushes,
            usage: UsageReader::default(),
        }
    }

    fn poll_flowing(&mut self, mut incoming: Incoming, context: &mut Context<'_>) -> Poll<Item> {
        if self.flight.poll_cancelled(context).is_ready() {
            let fault = self.flight.end_cancelled();
            return self.break_off(&fault, context);
        }
        if self.deadline.as_mut().poll(context).is_ready() {
            return self.break_off(&too_slow(self.timeout), context);
        }
        loop {
            match Pin::new(&mut incoming).poll_frame(context) {
                Poll::Pending => {
                    self.state = State::Flowing(incoming);
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers are of no use to these clients.
                    let Ok(data) = frame.into_data() else { continue };
                    let is_last = incoming.is_end_stream();
                    self.note(&data, is_last);
                    // Nobody asks for more than an announced length.
                    if is_last && self.may_end() {
                        self.finish();
                    } else {
                        self.state = State::Flowing(incoming);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(None) if self.may_end() => {
                    self.finish();
                    return Poll::Ready(None);
                }
                // All that the client waits for has come: how the connection ended is no matter.
                Poll::Ready(Some(Err(_))) if self.follow.as_ref().is_some_and(Follow::is_done) => {
                    self.finish();
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(_)) | None) => return self.break_off(&broke_off(), context),
            }
        }
    }

    fn note(&mut self, data: &Bytes, is_last: bool) {
        self.flight.note_piece(data, self.follow.is_some());
        self.usage.read(data, is_last);
        if let Some(follow) = &mut self.follow {
            follow.note(data);
        }
    }

    fn may_end(&self) -> bool {
        self.follow.as_ref().is_none_or(Follow::may_end)
    }

    fn finish(&mut self) {
        self.flight.note_usage(&self.usage.usage());
        self.flight.end(Outcome::Answered);
    }

    /// Breaks off: an error event if there can be one, then the abort, once all is written that came
    /// before.
    fn break_off(&mut self, fault: &Fault, context: &mut Context<'_>) -> Poll<Item> {
        self.flight.end(Outcome::Broken);
        let mut words = LastWords::new(Arc::clone(&self.flushes));
        let Some(follow) = &self.follow else {
            let over = words.poll_over(context);
            self.state = State::LastWords(words);
            return over.map(|()| Some(Err(Aborted)));
        };
        let event = self.dialect.event(fault);
        // An event cut in half is ended first, so that the next one is read as one.
        let is_between = follow.is_between();
        let event = if is_between { event } else { Bytes::from([&b"\n\n"[..], &event].concat()) };
        self.state = State::LastWords(words);
        Poll::Ready(Some(Ok(Frame::data(event))))
    }
}

impl Body for Passed {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Item> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Flowing(incoming) => self.poll_flowing(incoming, context),
            State::LastWords(mut words) => {
                let over = words.poll_over(context);
                if over.is_pending() {
                    self.state = State::LastWords(words);
                }
                over.map(|()| Some(Err(Aborted)))
            }
            State::Ended => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}
