//! The body of a stream that is continued.
//!
//! ```text
//! Flowing ─▶ Ended
//!   ▲  └─▶ Waiting ─▶ LastWords ─▶ aborted
//!   └──────────┘
//! ```

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::info;

use super::{
    event::{Part, Said, Splitter},
    request::{Next, Resumable},
};
use crate::{
    proxy::{
        Client,
        answer::{Answer, Piece},
        dialect::Dialect,
        exchange::{Order, has_died, reach},
        gate::{Ending, Gate},
        hold::sign_of_life_of,
        meters::Outcome,
        pending::Pending,
        relay::LastWords,
        reply::{Aborted, Fault},
    },
    spec::SlotName,
};

/// How often a stream is continued at most.
const MOST: u32 = 8;

/// A stream, and all it takes to go on with it.
pub(in crate::proxy) struct Resuming {
    client: Arc<Client>,
    order: Order,
    /// What was asked, or why it cannot be continued.
    request: Result<Resumable, String>,
    said: Said,
    part: Part,
    splitter: Splitter,
    count: u32,
    state: State,
}

enum State {
    Flowing { answer: Box<Answer>, ended: Pin<Box<WaitForCancellationFutureOwned>> },
    Waiting { slot: SlotName, pending: Pending, sign_of_life: Pin<Box<Sleep>> },
    LastWords(LastWords),
    Ended,
}

type Item = Option<Result<Frame<Bytes>, Aborted>>;

/// What became of one look at a state: something for hyper, or a state that is to be looked at too.
type Looked = Option<Poll<Item>>;

fn data(bytes: Bytes) -> Poll<Item> {
    Poll::Ready(Some(Ok(Frame::data(bytes))))
}

impl Resuming {
    /// Passes on the answer to `order`, a stream of events, and what follows should it break.
    pub(in crate::proxy) fn new(client: Arc<Client>, order: Order, answer: Answer) -> Self {
        let body = order.asked.payload.in_memory().map(|bytes| &bytes[..]).unwrap_or_default();
        let request = Resumable::of(order.path.path(), body);
        Self {
            client,
            order,
            request,
            said: Said::default(),
            part: Part::default(),
            splitter: Splitter::default(),
            count: 0,
            state: flowing(answer),
        }
    }

    /// Takes the whole events that have come.
    fn take_events(&mut self) -> Option<Bytes> {
        let mut first = None;
        let mut more = BytesMut::new();
        while let Some(event) = self.splitter.next() {
            let Some(shown) = self.part.pass(event, &mut self.said) else { continue };
            match &first {
                None => first = Some(shown),
                Some(before) => {
                    if more.is_empty() {
                        more.extend_from_slice(before);
                    }
                    more.extend_from_slice(&shown);
                }
            }
        }
        if more.is_empty() { first } else { Some(more.freeze()) }
    }

    fn poll_flowing(
        &mut self,
        mut answer: Box<Answer>,
        mut ended: Pin<Box<WaitForCancellationFutureOwned>>,
        context: &mut Context<'_>,
    ) -> Looked {
        if answer.flight().poll_cancelled(context).is_ready() {
            let fault = answer.flight().end_cancelled();
            return Some(self.break_off(&fault));
        }
        if answer.gate().ending() == Some(Ending::Cut) && !self.said.is_done {
            return self.broken(answer);
        }
        match answer.poll_piece(context) {
            Poll::Ready(Piece::Data(bytes, _)) => {
                self.splitter.push(&bytes);
                let events = self.take_events();
                if self.splitter.is_stuck() {
                    let slot = answer.gate().slot().clone();
                    let what = "sent an event without end";
                    return Some(self.break_off(&Fault::engine_misbehaved(&slot, what)));
                }
                self.state = State::Flowing { answer, ended };
                // Nothing that can be shown yet: what else has come?
                events.map(data)
            }
            Poll::Ready(Piece::End) if self.said.is_done => {
                answer.finish(context);
                Some(Poll::Ready(None))
            }
            Poll::Ready(Piece::End) => {
                let slot = answer.gate().slot().clone();
                let what = "ended its stream before it was whole";
                Some(self.break_off(&Fault::engine_misbehaved(&slot, what)))
            }
            Poll::Ready(Piece::Break) if self.said.is_done => {
                answer.flight().end(Outcome::Answered);
                Some(Poll::Ready(None))
            }
            Poll::Ready(Piece::Break) => self.broken(answer),
            Poll::Pending if ended.as_mut().poll(context).is_ready() && self.said.is_done => {
                answer.flight().end(Outcome::Answered);
                Some(Poll::Ready(None))
            }
            Poll::Pending if answer.gate().ending().is_some() && !self.said.is_done => {
                self.broken(answer)
            }
            Poll::Pending => {
                self.state = State::Flowing { answer, ended };
                Some(Poll::Pending)
            }
        }
    }

    /// The engine is gone, or goes: another one goes on, or the stream says why none does.
    fn broken(&mut self, mut answer: Box<Answer>) -> Looked {
        answer.note_break();
        let gate = Arc::clone(answer.gate());
        // The seat is given back before another one is waited for.
        drop(answer);
        self.splitter.clear();
        let is_cut = gate.ending() == Some(Ending::Cut);
        let what = if is_cut { "was stopped in mid-answer" } else { "died in mid-answer" };
        let refused = match (&self.request, self.said.hindrance) {
            (Err(why), _) => Some(why.as_str()),
            (Ok(_), Some(why)) => Some(why),
            (Ok(_), None) if self.count >= MOST => Some("it has been continued often enough"),
            // Whoever stops an engine does not want it back for this.
            (Ok(_), None) if is_cut && !self.order.has_another(&self.client, &gate) => {
                Some("no other slot serves the request")
            }
            (Ok(_), None) => None,
        };
        if let Some(why) = refused {
            let what = format!("{what}, and the stream cannot be continued: {why}");
            return Some(self.break_off(&Fault::engine_died(gate.slot(), &what)));
        }
        self.go_on(gate)
    }

    fn go_on(&mut self, gate: Arc<Gate>) -> Looked {
        let Ok(request) = &self.request else { return Some(Poll::Ready(None)) };
        let next = if self.said.is_finished { Next::Enough } else { request.next(&self.said) };
        let Next::Ask(bytes) = next else {
            self.order.flight.end(Outcome::Answered);
            return Some(data(self.said.ending(request.is_chat())));
        };
        self.count = self.count.saturating_add(1);
        info!(slot = %gate.slot(), tokens = self.said.tokens, "a stream is continued");
        let slot = gate.slot().clone();
        let client = Arc::clone(&self.client);
        let deadline = Instant::now() + client.shared.limits.hold;
        // Its fingerprint stays: a request that takes engines down does so in parts as well.
        let flight = Arc::clone(&self.order.flight);
        flight.carry(self.said.tokens);
        let order = Order { deadline, ..self.order.saying(bytes) };
        let pending = Pending::new(flight, async move {
            has_died(&gate).await;
            drop(gate);
            reach(client, order).await
        });
        let sign_of_life = Box::pin(sleep(self.client.shared.limits.sign_of_life));
        self.state = State::Waiting { slot, pending, sign_of_life };
        None
    }

    fn poll_waiting(
        &mut self,
        slot: SlotName,
        mut pending: Pending,
        mut sign_of_life: Pin<Box<Sleep>>,
        context: &mut Context<'_>,
    ) -> Looked {
        match Pin::new(&mut pending).poll(context) {
            Poll::Ready(Ok(answer)) if answer.is_events() => {
                self.part = Part::after(&self.said);
                self.state = flowing(answer);
                None
            }
            Poll::Ready(Ok(_)) => {
                let what = "answered without a stream";
                Some(self.break_off(&Fault::engine_misbehaved(&slot, what)))
            }
            Poll::Ready(Err(fault)) => Some(self.break_off(&fault)),
            Poll::Pending if sign_of_life.as_mut().poll(context).is_ready() => {
                let comment = sign_of_life_of(&self.client, &slot);
                let sign_of_life = Box::pin(sleep(self.client.shared.limits.sign_of_life));
                self.state = State::Waiting { slot, pending, sign_of_life };
                Some(data(Bytes::from(comment)))
            }
            Poll::Pending => {
                self.state = State::Waiting { slot, pending, sign_of_life };
                Some(Poll::Pending)
            }
        }
    }

    fn break_off(&mut self, fault: &Fault) -> Poll<Item> {
        self.order.flight.end(Outcome::Broken);
        self.state = State::LastWords(LastWords::new(Arc::clone(&self.client.flushes)));
        // Only chats and completions are continued.
        data(Dialect::OpenAi.event(fault))
    }

    fn look(&mut self, context: &mut Context<'_>) -> Looked {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Flowing { answer, ended } => self.poll_flowing(answer, ended, context),
            State::Waiting { slot, pending, sign_of_life } => {
                self.poll_waiting(slot, pending, sign_of_life, context)
            }
            State::LastWords(mut words) => {
                let over = words.poll_over(context);
                if over.is_pending() {
                    self.state = State::LastWords(words);
                }
                Some(over.map(|()| Some(Err(Aborted))))
            }
            State::Ended => Some(Poll::Ready(None)),
        }
    }
}

fn flowing(answer: Answer) -> State {
    let ended = Box::pin(answer.gate().ended().clone().cancelled_owned());
    State::Flowing { answer: Box::new(answer), ended }
}

impl Drop for Resuming {
    /// The client has left in mid-answer, if there is still one.
    fn drop(&mut self) {
        if let State::Flowing { answer, .. } = std::mem::replace(&mut self.state, State::Ended) {
            answer.let_go();
        }
    }
}

impl Body for Resuming {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Item> {
        loop {
            if let Some(item) = self.look(context) {
                return item;
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}

impl fmt::Debug for Resuming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resuming").field("count", &self.count).finish_non_exhaustive()
    }
}
