//! A stream that waits for its engine: committed to 200, with signs of life until the answer comes.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::{Sleep, sleep};

use super::{
    Client,
    exchange::Order,
    forward::passed_on,
    meters::Outcome,
    pending::Pending,
    relay::LastWords,
    reply::{self, Aborted, Fault},
    surface::Form,
};
use crate::spec::SlotName;

/// The body of an answer that is passed on.
type Passed = reply::Body;

/// The body of a stream that was committed before its engine was there: comments while it waits,
/// then what the engine says; an error event and an aborted connection if it never comes.
pub(super) struct Held {
    client: Arc<Client>,
    slot: SlotName,
    form: Form,
    /// The longest that the client may hear nothing.
    silence: Duration,
    /// What was asked, if a stream that breaks is to be continued.
    again: Option<Order>,
    state: State,
}

enum State {
    /// Nothing was sent yet.
    Committed(Pending),
    Waiting {
        pending: Pending,
        sign_of_life: Pin<Box<Sleep>>,
    },
    Flowing(Passed),
    LastWords(LastWords),
    Ended,
}

type Item = Option<Result<Frame<Bytes>, Aborted>>;

impl Held {
    /// Goes on with waiting for `pending`; the first sign of life is sent at once.
    pub(super) fn new(
        client: Arc<Client>,
        (slot, form): (SlotName, Form),
        silence: Duration,
        (pending, again): (Pending, Option<Order>),
    ) -> Self {
        let silence = silence.min(client.shared.limits.sign_of_life);
        Self { client, slot, form, silence, again, state: State::Committed(pending) }
    }

    fn poll_waiting(
        &mut self,
        mut pending: Pending,
        mut sign_of_life: Pin<Box<Sleep>>,
        context: &mut Context<'_>,
    ) -> Poll<Item> {
        match Pin::new(&mut pending).poll(context) {
            Poll::Ready(Ok(answer)) if answer.is_events() => {
                let passed = passed_on(answer, &self.client, (self.form, self.again.take()));
                self.poll_flowing(passed, context)
            }
            Poll::Ready(Ok(_)) => {
                pending.flight().end(Outcome::Refused);
                self.break_off(&Fault::engine_misbehaved(&self.slot, "answered without a stream"))
            }
            Poll::Ready(Err(fault)) => {
                pending.flight().end(Outcome::Refused);
                self.break_off(&fault)
            }
            Poll::Pending if sign_of_life.as_mut().poll(context).is_ready() => {
                self.give_sign_of_life(pending)
            }
            Poll::Pending => {
                self.state = State::Waiting { pending, sign_of_life };
                Poll::Pending
            }
        }
    }

    fn give_sign_of_life(&mut self, pending: Pending) -> Poll<Item> {
        let sign_of_life = Box::pin(sleep(self.silence));
        self.state = State::Waiting { pending, sign_of_life };
        let comment = sign_of_life_of(&self.client, &self.slot);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(comment)))))
    }

    fn poll_flowing(&mut self, mut passed: Passed, context: &mut Context<'_>) -> Poll<Item> {
        let item = Pin::new(&mut passed).poll_frame(context);
        self.state = State::Flowing(passed);
        item
    }

    fn break_off(&mut self, fault: &Fault) -> Poll<Item> {
        self.state = State::LastWords(LastWords::new(Arc::clone(&self.client.flushes)));
        Poll::Ready(Some(Ok(Frame::data(self.form.dialect.event(fault)))))
    }
}

impl Body for Held {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Item> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Committed(pending) => self.give_sign_of_life(pending),
            State::Waiting { pending, sign_of_life } => {
                self.poll_waiting(pending, sign_of_life, context)
            }
            State::Flowing(passed) => self.poll_flowing(passed, context),
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
        match &self.state {
            State::Flowing(passed) => passed.is_end_stream(),
            State::Committed(_) | State::Waiting { .. } | State::LastWords(_) => false,
            State::Ended => true,
        }
    }
}

/// A comment line: every client's parser passes it by.
pub(super) fn sign_of_life_of(client: &Client, slot: &SlotName) -> String {
    let table = client.shared.routes.load();
    let Some(route) = table.slot(slot) else { return format!(": waiting for {slot}\n\n") };
    match (route.state, route.percent) {
        ("starting", Some(percent)) => format!(": loading {slot} {percent} %\n\n"),
        ("starting", None) => format!(": loading {slot}\n\n"),
        ("ready", _) => format!(": {slot} is busy\n\n"),
        (state, _) => format!(": {slot} is {state}\n\n"),
    }
}
