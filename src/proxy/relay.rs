//! An engine's answer on its way to the client: bytes as they come, and an honest end.
//!
//! A stream of events is whole when its engine said so (`[DONE]`, or the last event of its API). One that ends without gets an
//! error event, and the connection is aborted: to most clients a clean end means success.
//!
//! ```text
//! Flowing ─▶ Ended
//!    └─▶ LastWords ─▶ aborted
//! ```

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    answer::{Answer, IsLast, Piece},
    dialect::Dialect,
    flush::Flushes,
    follow::Follow,
    gate::Ending,
    meters::Outcome,
    reply::{Aborted, Fault},
    surface::Form,
};

/// How long a client may take to read the error that ends its stream.
pub(super) const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(5);

/// What is said of a stream that its engine ended in order, but too early.
pub(super) const UNFINISHED: &str = "ended its stream before it was whole";

/// What is said of one that a person ended.
pub(super) const CANCELLED: &str = "was told to stop working on the request";

/// What is said of one whose engine was stopped, and of one whose engine died.
pub(super) const CUT: &str = "was stopped in mid-answer";
pub(super) const DIED: &str = "died in mid-answer";

/// The body of an answer that is passed on.
#[derive(Debug)]
pub(super) struct Relay {
    state: State,
    kind: Kind,
    dialect: Dialect,
    flushes: Arc<Flushes>,
}

#[derive(Debug)]
enum State {
    Flowing { answer: Box<Answer>, ended: Pin<Box<WaitForCancellationFutureOwned>> },
    LastWords(LastWords),
    Ended,
}

/// What is followed of a body.
#[derive(Debug)]
enum Kind {
    /// A stream of events, which says itself when it is whole.
    Events(Follow),
    /// Anything else: its framing says when it is whole.
    Whole,
}

type Item = Option<Result<Frame<Bytes>, Aborted>>;

impl Relay {
    /// Passes an answer on. What it is, its own head says.
    pub(super) fn new(answer: Answer, form: Form, flushes: Arc<Flushes>) -> Self {
        let is_events = answer.is_events();
        let kind = if is_events { Kind::Events(Follow::new(form.whole)) } else { Kind::Whole };
        let dialect = form.dialect;
        let ended = Box::pin(answer.gate().ended().clone().cancelled_owned());
        Self { state: State::Flowing { answer: Box::new(answer), ended }, kind, dialect, flushes }
    }

    /// Breaks off: an error event if there can be one, then the abort, once all is written that came
    /// before.
    fn break_off(
        &mut self,
        answer: &mut Answer,
        what: &str,
        context: &mut Context<'_>,
    ) -> Poll<Item> {
        // An engine that never says `[DONE]` serves all the same: a new one would not say it either.
        if what != UNFINISHED && what != CANCELLED {
            answer.note_break();
        }
        answer.flight().end(Outcome::Broken);
        let mut words = LastWords::new(Arc::clone(&self.flushes));
        let Kind::Events(follow) = &self.kind else {
            let over = words.poll_over(context);
            self.state = State::LastWords(words);
            return over.map(|()| Some(Err(Aborted)));
        };
        let slot = answer.gate().slot();
        let fault = match answer.gate().ending() {
            _ if what == CANCELLED => answer.flight().end_cancelled(),
            None if what == UNFINISHED => Fault::engine_misbehaved(slot, what),
            Some(_) | None => Fault::engine_died(slot, what),
        };
        let event = self.dialect.event(&fault);
        // An event cut in half is ended first, so that the next one is read as one.
        let is_between = follow.is_between();
        let event = if is_between { event } else { Bytes::from([&b"\n\n"[..], &event].concat()) };
        self.state = State::LastWords(words);
        Poll::Ready(Some(Ok(Frame::data(event))))
    }

    /// Tells whether the body may end here.
    fn is_whole(&self) -> bool {
        match &self.kind {
            Kind::Whole => true,
            Kind::Events(follow) => follow.may_end(),
        }
    }

    /// Tells whether a stream has said that it is whole.
    fn is_done(&self) -> bool {
        matches!(&self.kind, Kind::Events(follow) if follow.is_done())
    }

    fn remember(&mut self, data: &Bytes) {
        if let Kind::Events(follow) = &mut self.kind {
            follow.note(data);
        }
    }

    /// What the engine sends goes first, also what it sent before it died. Only a cut does not wait.
    fn poll_flowing(
        &mut self,
        mut answer: Box<Answer>,
        mut ended: Pin<Box<WaitForCancellationFutureOwned>>,
        context: &mut Context<'_>,
    ) -> Poll<Item> {
        if answer.flight().poll_cancelled(context).is_ready() {
            drop(answer.flight().end_cancelled());
            return self.break_off(&mut answer, CANCELLED, context);
        }
        if answer.gate().ending() == Some(Ending::Cut) && !self.is_done() {
            return self.break_off(&mut answer, CUT, context);
        }
        match answer.poll_piece(context) {
            Poll::Ready(Piece::Data(data, is_last)) => {
                self.remember(&data);
                if is_last == IsLast::Yes && self.is_whole() {
                    answer.finish(context);
                } else {
                    self.state = State::Flowing { answer, ended };
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Poll::Ready(Piece::End) if self.is_whole() => {
                answer.finish(context);
                Poll::Ready(None)
            }
            Poll::Ready(Piece::End) => self.break_off(&mut answer, UNFINISHED, context),
            // All that the client waits for has come: how the connection ended is no matter.
            Poll::Ready(Piece::Break) if self.is_done() => {
                answer.flight().end(Outcome::Answered);
                Poll::Ready(None)
            }
            Poll::Ready(Piece::Break) => self.break_off(&mut answer, DIED, context),
            Poll::Pending if self.is_done() && ended.as_mut().poll(context).is_ready() => {
                answer.flight().end(Outcome::Answered);
                Poll::Ready(None)
            }
            Poll::Pending if !self.is_done() && ended.as_mut().poll(context).is_ready() => {
                let was_cut = answer.gate().ending() == Some(Ending::Cut);
                self.break_off(&mut answer, if was_cut { CUT } else { DIED }, context)
            }
            Poll::Pending => {
                self.state = State::Flowing { answer, ended };
                Poll::Pending
            }
        }
    }
}

impl Drop for Relay {
    /// The client has left in mid-answer, if there is still one.
    fn drop(&mut self) {
        if let State::Flowing { answer, .. } = std::mem::replace(&mut self.state, State::Ended) {
            answer.let_go();
        }
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Item> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Flowing { answer, ended } => self.poll_flowing(answer, ended, context),
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

/// The time between an error event and the abort: until the client's socket has taken the event, or
/// the client does not read.
#[derive(Debug)]
pub(super) struct LastWords {
    flushes: Arc<Flushes>,
    /// `None` until the event has been handed over.
    before: Option<u64>,
    deadline: Pin<Box<Sleep>>,
}

impl LastWords {
    /// To be made when the event is handed over.
    pub(super) fn new(flushes: Arc<Flushes>) -> Self {
        Self { flushes, before: None, deadline: Box::pin(sleep(LAST_WORDS_DEADLINE)) }
    }

    /// Waits until the event is out.
    pub(super) fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        // Counted from the first call on: the event is in hyper's buffer by then.
        let before = *self.before.get_or_insert_with(|| self.flushes.count());
        if self.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        self.flushes.poll_after(before, context)
    }
}
