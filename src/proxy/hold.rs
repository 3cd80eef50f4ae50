//! A stream that waits for its engine: silence first, then a committed 200 with signs of life.

use std::{pin::Pin, time::Duration};

use bytes::Bytes;
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use hyper::body::Frame;
use tokio::{task::yield_now, time::timeout};

use super::{
    Shared,
    exchange::Answer,
    relay::{self, Events},
    reply::{Aborted, Fault},
};
use crate::spec::SlotName;

/// An answer that is on its way.
pub(super) type Pending = Pin<Box<dyn Future<Output = Result<Answer, Fault>> + Send>>;

type Item = Result<Frame<Bytes>, Aborted>;

enum State {
    Waiting(Pending),
    Flowing(BoxStream<'static, Item>),
    Aborting,
    Ended,
}

struct Held {
    shared: Shared,
    slot: SlotName,
    state: State,
}

/// Makes the frames of a stream that was committed before its engine was there: comments while it
/// waits, then what the engine says; an error event and an aborted connection if it never comes.
pub(super) fn frames(
    shared: Shared,
    slot: SlotName,
    pending: Pending,
) -> impl Stream<Item = Item> + Send {
    let first = Bytes::from(sign_of_life(&shared, &slot));
    let held = Held { shared, slot, state: State::Waiting(pending) };
    stream::iter([Ok(Frame::data(first))]).chain(stream::unfold(held, step))
}

async fn step(mut held: Held) -> Option<(Item, Held)> {
    loop {
        match held.state {
            State::Waiting(mut pending) => {
                let pause: Duration = held.shared.limits.sign_of_life;
                match timeout(pause, &mut pending).await {
                    Err(_) => {
                        let comment = sign_of_life(&held.shared, &held.slot);
                        held.state = State::Waiting(pending);
                        return Some((Ok(Frame::data(Bytes::from(comment))), held));
                    }
                    Ok(Ok(answer)) if answer.response.status().is_success() => {
                        let (_, frames) = relay::frames(answer, Events::UntilDone);
                        held.state = State::Flowing(frames.boxed());
                    }
                    Ok(Ok(answer)) => {
                        let status = answer.response.status();
                        let what = format!("refused the request with status {}", status.as_u16());
                        let fault = Fault::engine_died(&held.slot, &what);
                        held.state = State::Aborting;
                        return Some((Ok(Frame::data(fault.event())), held));
                    }
                    Ok(Err(fault)) => {
                        held.state = State::Aborting;
                        return Some((Ok(Frame::data(fault.event())), held));
                    }
                }
            }
            State::Flowing(mut frames) => {
                let item = frames.next().await?;
                held.state = State::Flowing(frames);
                return Some((item, held));
            }
            State::Aborting => {
                for _ in 0..4 {
                    yield_now().await;
                }
                held.state = State::Ended;
                return Some((Err(Aborted), held));
            }
            State::Ended => return None,
        }
    }
}

/// A comment line: every client's parser passes it by.
fn sign_of_life(shared: &Shared, slot: &SlotName) -> String {
    let table = shared.routes.load();
    let Some(route) = table.slot(slot) else { return format!(": waiting for {slot}\n\n") };
    match (route.state, route.percent) {
        (_, Some(percent)) => format!(": loading {slot} {percent} %\n\n"),
        ("ready", None) => format!(": waiting for a turn at {slot}\n\n"),
        (state, None) => format!(": {slot} is {state}\n\n"),
    }
}
