//! A stream of events on its way to a client that reads lines.
//!
//! What the endpoint does with a stream (an honest end, a death told and the connection aborted, the
//! next engine that goes on) is done before: here events become lines, and nothing else.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use serde_json::{Value, json};

use super::{
    super::{
        flush::Flushes,
        relay::LastWords,
        reply::{Aborted, Body},
        resume::event::{Splitter, data_of},
    },
    answer::{Teller, Told},
    load::Leaving,
};

/// What a stream of lines is called.
pub(super) const CONTENT: &str = "application/x-ndjson";

/// The body of a stream of lines.
pub(super) struct Lines {
    /// Dropped before `leaving`: the seat is free then.
    events: Body,
    splitter: Splitter,
    teller: Teller,
    flushes: Arc<Flushes>,
    state: State,
    /// Held until the stream has ended.
    _leaving: Option<Leaving>,
}

enum State {
    Telling,
    /// The last line is told, or an error: nothing more is said.
    Told,
    /// What came is no answer: the connection is aborted once that is said.
    Broken(LastWords),
}

type Item = Option<Result<Frame<Bytes>, Aborted>>;

impl Lines {
    pub(super) fn new(
        events: Body,
        teller: Teller,
        flushes: Arc<Flushes>,
        leaving: Option<Leaving>,
    ) -> Self {
        let (splitter, state) = (Splitter::default(), State::Telling);
        Self { events, splitter, teller, flushes, state, _leaving: leaving }
    }

    /// Tells what came.
    fn told(&mut self, data: &[u8]) -> Vec<u8> {
        let mut lines = Vec::new();
        self.splitter.push(data);
        while let Some(event) = self.splitter.next() {
            // A comment says nothing to those who read lines.
            let Some(data) = data_of(&event) else { continue };
            if !matches!(self.state, State::Telling) {
                break;
            }
            if data.trim() == "[DONE]" {
                self.state = State::Told;
                self.teller.end().iter().for_each(|told| lines.extend(line(told)));
                break;
            }
            match self.teller.event(&data) {
                Ok(Told::Nothing) => {}
                Ok(Told::Piece(told)) => lines.extend(line(&told)),
                Ok(Told::Error(message)) => {
                    self.state = State::Told;
                    lines.extend(line(&json!({"error": message})));
                }
                Err(_) => lines.extend(self.break_off()),
            }
        }
        if self.splitter.is_stuck() && matches!(self.state, State::Telling) {
            lines.extend(self.break_off());
        }
        lines
    }

    fn break_off(&mut self) -> Bytes {
        self.state = State::Broken(LastWords::new(Arc::clone(&self.flushes)));
        line(&json!({"error": "the engine answered what is none of OpenAI's API"}))
    }
}

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Item> {
        loop {
            if let State::Broken(words) = &mut self.state {
                return words.poll_over(context).map(|()| Some(Err(Aborted)));
            }
            match ready!(Pin::new(&mut self.events).poll_frame(context)) {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let lines = self.told(&data);
                    if !lines.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(lines.into()))));
                    }
                }
                Some(Err(aborted)) => return Poll::Ready(Some(Err(aborted))),
                None if matches!(self.state, State::Told) => return Poll::Ready(None),
                // Without its last line a stream is not whole, whatever its framing says.
                None => return Poll::Ready(Some(Err(Aborted))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Told) && self.events.is_end_stream()
    }
}

/// Makes a line.
pub(super) fn line(value: &Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}
