//! One request's passage: sent, answered, relayed to its end; or given up with an honest word.
//!
//! ```text
//! Sent ─▶ head ─▶ relayed ─▶ whole: the connection is kept
//!   │       │         └▶ broken: an error event, and the connection is aborted
//!   │       └▶ a refusal: in the form that clients know
//!   └▶ died before a byte came: left to hyper, which tries once more
//! ```

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::{Sleep, sleep};
use tokio_util::sync::WaitForCancellationFuture;
use tracing::debug;

use super::{
    super::{
        Client,
        gate::{Ending, Gate},
        hold::sign_of_life_of,
        relay::{CANCELLED, CUT, DIED, UNFINISHED},
        throttle,
    },
    Life,
    body::{Body, Far, is_chunked, put_chunk},
    date,
    door::Door,
    framing::Framing,
    head::Asking,
    reply::{self, Reply, Said, put, put_length, put_status},
    scratch,
    way::Way,
    wire::{self, Failure, Wire},
};

/// What becomes of the client's connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Served {
    /// It takes its next request.
    Kept,
    /// It ends.
    Over,
    /// Its request is still to be served, by somebody else.
    Left,
}

/// What happened while an engine was at work.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// So many bytes lie in the thread's room.
    Said(usize),
    /// The engine closed its side in order, or not.
    Closed,
    Broke,
    /// The gate ended the exchange.
    Ended,
    Cancelled,
    /// The client hung up.
    Gone,
    /// The client was to hear something by now.
    Alarm,
}

/// What came of a wait for the head of an answer.
enum Heard {
    /// It was passed on, with what came along; the body is so far.
    Begun(Body, Far),
    /// It refuses; so much of its body came along.
    Refused(Box<Reply>, Vec<u8>),
    Failed(Failure),
    Cancelled,
    Gone,
}

/// How far the request is on its way to the engine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sending {
    /// So much of its head and its body was sent.
    Going(usize),
    Done,
    /// The engine does not take it.
    Failed,
}

/// One request at work.
pub(super) struct Passage<'a, 'b> {
    pub(super) door: &'a mut Door,
    pub(super) client: &'a Arc<Client>,
    pub(super) life: &'a Life,
    pub(super) asking: Box<Asking>,
    pub(super) way: Way,
    pub(super) gate: &'a Gate,
    pub(super) ended: Pin<&'a mut WaitForCancellationFuture<'b>>,
    /// The request as it came: head and body.
    pub(super) request: Vec<u8>,
    pub(super) sending: Sending,
    /// Set for a stream whose head has not come: when its client is to hear something.
    pub(super) alarm: Option<Pin<Box<Sleep>>>,
    /// The client was told 200 before the engine said anything.
    pub(super) is_committed: bool,
}

impl Passage<'_, '_> {
    /// Serves the request.
    pub(super) async fn run(mut self) -> Served {
        self.finish_head();
        let mut is_fresh = false;
        let mut wire = match wire::take_any(self.gate) {
            Some(kept) => kept,
            None => match self.open(&mut is_fresh).await {
                Ok(wire) => wire,
                Err(fault) => return self.failed(fault).await,
            },
        };
        loop {
            let heard = self.hear(&mut wire).await;
            match heard {
                // A kept connection that turns out closed is replaced by a fresh one.
                Heard::Failed(Failure::Gone) if !is_fresh => {
                    self.sending = Sending::Going(0);
                    match self.open(&mut is_fresh).await {
                        Ok(fresh) => wire = fresh,
                        Err(fault) => return self.failed(fault).await,
                    }
                }
                Heard::Begun(body, far) => return self.relay(wire, body, far).await,
                Heard::Refused(reply, begun) => {
                    return Box::pin(self.refused(wire, *reply, begun)).await;
                }
                Heard::Failed(fault) => return self.failed(fault).await,
                Heard::Cancelled => {
                    let fault = self.way.flight.end_cancelled();
                    return self.refuse(&fault).await;
                }
                Heard::Gone => return Served::Over,
            }
        }
    }

    /// Ends the head that goes to the engine.
    fn finish_head(&mut self) {
        let length = u64::try_from(self.body().len()).unwrap_or(u64::MAX);
        let forward = &mut self.asking.forward;
        put_length(forward, length);
        forward.extend_from_slice(b"\r\n");
    }

    /// Returns the body that the engine gets.
    fn body(&self) -> &[u8] {
        match &self.way.body {
            Some(other) => other,
            None => self.request.get(self.asking.body.clone()).unwrap_or_default(),
        }
    }

    async fn open(&mut self, is_fresh: &mut bool) -> Result<Wire, Failure> {
        *is_fresh = true;
        let gate = self.gate;
        tokio::select! {
            opened = wire::open(gate) => opened,
            () = gate.ended().cancelled() => Err(cut_or_gone(gate)),
        }
    }

    /// Waits for what happens next. What the engine says goes first.
    pub(super) fn poll_event(&mut self, wire: &mut Wire, context: &mut Context<'_>) -> Poll<Event> {
        if self.way.flight.poll_cancelled(context).is_ready() {
            return Poll::Ready(Event::Cancelled);
        }
        self.send_more(wire, context);
        match scratch::with(|space| wire.poll_read(context, space)) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Event::Closed),
            Poll::Ready(Ok(count)) => return Poll::Ready(Event::Said(count)),
            Poll::Ready(Err(_)) => return Poll::Ready(Event::Broke),
            Poll::Pending => {}
        }
        if self.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(Event::Ended);
        }
        if self.door.poll_gone(context).is_ready() {
            return Poll::Ready(Event::Gone);
        }
        match &mut self.alarm {
            Some(alarm) => alarm.as_mut().poll(context).map(|()| Event::Alarm),
            None => Poll::Pending,
        }
    }

    /// Sends what is left of the request. An engine that does not take it may still have said why.
    fn send_more(&mut self, wire: &mut Wire, context: &mut Context<'_>) {
        while let Sending::Going(sent) = self.sending {
            let (head, body) = (&self.asking.forward, self.body());
            let whole = head.len().saturating_add(body.len());
            let head_left = head.get(sent..).unwrap_or_default();
            let body_left = body.get(sent.saturating_sub(head.len())..).unwrap_or_default();
            self.sending = match wire.poll_write(context, (head_left, body_left)) {
                Poll::Ready(Ok(count @ 1..)) if sent.saturating_add(count) < whole => {
                    Sending::Going(sent.saturating_add(count))
                }
                Poll::Ready(Ok(1..)) => Sending::Done,
                Poll::Ready(Ok(0) | Err(_)) => Sending::Failed,
                Poll::Pending => return,
            };
        }
    }

    /// Waits for the head of the answer, and begins to pass the answer on.
    async fn hear(&mut self, wire: &mut Wire) -> Heard {
        let mut said = Vec::new();
        loop {
            let event = poll_fn(|context| self.poll_event(wire, context)).await;
            match event {
                Event::Said(count) => {
                    if let Some(heard) = self.read_head(count, &mut said).await {
                        return heard;
                    }
                }
                Event::Closed | Event::Broke => return Heard::Failed(Failure::Gone),
                Event::Ended => return Heard::Failed(cut_or_gone(self.gate)),
                Event::Cancelled => return Heard::Cancelled,
                Event::Gone => return Heard::Gone,
                Event::Alarm => {
                    if !self.give_sign_of_life().await {
                        return Heard::Gone;
                    }
                }
            }
        }
    }

    /// Reads what the engine said, as far as it is a head.
    async fn read_head(&mut self, count: usize, said: &mut Vec<u8>) -> Option<Heard> {
        /// More than this is no head.
        const LONGEST: usize = 128 << 10;
        let mut out = scratch::take_out();
        let heard = scratch::with(|space| {
            let news = space.get(..count).unwrap_or_default();
            if said.is_empty() {
                return self.begin(news, &mut out).unwrap_or_else(|used| {
                    said.extend_from_slice(news.get(used..).unwrap_or_default());
                    None
                });
            }
            said.extend_from_slice(news);
            self.begin(said, &mut out).unwrap_or_else(|used| {
                said.drain(..used);
                None
            })
        });
        let is_sent = self.door.send(&out).await.is_ok();
        scratch::give_back(out);
        match heard {
            Some(Heard::Begun(..)) if !is_sent => Some(Heard::Gone),
            None if said.len() > LONGEST => Some(garbled()),
            heard => heard,
        }
    }

    /// Begins to pass an answer on if its head is there. An error says how many bytes were used and that more are
    /// needed.
    fn begin(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<Heard>, usize> {
        let mut used = 0_usize;
        loop {
            let rest = bytes.get(used..).unwrap_or_default();
            match reply::read(rest) {
                Said::Begun => return Err(used),
                Said::Interim(length) => used = used.saturating_add(length),
                Said::Garbled => return Ok(Some(garbled())),
                Said::Head(length, reply) => {
                    let begun = rest.get(length..).unwrap_or_default();
                    return Ok(Some(self.answer(reply, begun, out)));
                }
            }
        }
    }

    fn answer(&mut self, reply: Reply, begun: &[u8], out: &mut Vec<u8>) -> Heard {
        self.way.lease.note_word();
        self.alarm = None;
        if self.sending == Sending::Done && reply.is_events {
            // Nobody will send it again, and a stream may take long: its room is another's.
            (self.request, self.asking.forward, self.way.body) = (Vec::new(), Vec::new(), None);
        }
        if !reply.status.is_success() || (self.is_committed && !reply.is_events) {
            return Heard::Refused(Box::new(reply), begun.to_vec());
        }
        if !self.is_committed {
            self.put_head(&reply, out);
        }
        let mut body = Body::new(&reply, self.way.form.whole);
        // One of no bytes is over before any came.
        let far = body.feed(begun, (&self.way.lease, &self.way.flight), out);
        Heard::Begun(body, far)
    }

    fn put_head(&mut self, reply: &Reply, out: &mut Vec<u8>) {
        self.way.flight.note_status(reply.status);
        put_status(out, reply.status);
        out.extend_from_slice(&reply.headers);
        if reply.is_events {
            put(out, "cache-control", b"no-cache");
            put(out, "x-accel-buffering", b"no");
        }
        match reply.framing {
            _ if matches!(reply.status.as_u16(), 204 | 304) => {}
            Framing::Length(length) if !is_chunked(reply) => {
                put_length(out, length);
            }
            Framing::Length(_) | Framing::Chunks(_) | Framing::UntilClose => {
                put(out, "transfer-encoding", b"chunked");
            }
        }
        self.put_said(out, reply.has_date);
        out.extend_from_slice(b"\r\n");
    }

    /// What every answer says.
    pub(super) fn put_said(&self, out: &mut Vec<u8>, has_date: bool) {
        let id = self.way.flight.sender.request_id.as_ref();
        let request_id = id.and_then(|id| id.to_str().ok());
        debug!(request_id, slot = self.gate.slot().as_str(), "request answered");
        if !has_date {
            put(out, "date", &date::now(self.client.shared.clock));
        }
        if let Some(id) = id {
            put(out, "x-request-id", id.as_bytes());
        }
        put(out, "x-slotd-slot", self.gate.slot().as_str().as_bytes());
        if let Some(pace) = self.client.shared.throttle.header() {
            put(out, throttle::NAME, pace.as_bytes());
        }
        if self.life.is_closing() {
            put(out, "connection", b"close");
        }
    }

    /// Tells a stream's client that it still waits; the first time with the head of its answer.
    async fn give_sign_of_life(&mut self) -> bool {
        let limits = &self.client.shared.limits;
        let pause = self.asking.silence.min(limits.sign_of_life);
        let mut out = Vec::new();
        if !self.is_committed {
            self.is_committed = true;
            self.way.flight.note_status(hyper::StatusCode::OK);
            put_status(&mut out, hyper::StatusCode::OK);
            put(&mut out, "content-type", b"text/event-stream");
            put(&mut out, "cache-control", b"no-cache");
            put(&mut out, "x-accel-buffering", b"no");
            put(&mut out, "transfer-encoding", b"chunked");
            self.put_said(&mut out, false);
            out.extend_from_slice(b"\r\n");
        }
        put_chunk(&mut out, sign_of_life_of(self.client, self.gate.slot()).as_bytes());
        self.alarm = Some(Box::pin(sleep(pause)));
        self.door.send(&out).await.is_ok()
    }

    /// Passes the rest of an answer on.
    async fn relay(mut self, mut wire: Wire, mut body: Body, mut far: Far) -> Served {
        loop {
            match far {
                Far::More => {}
                Far::Whole => return self.finish(wire, &body),
                Far::TooShort => return self.break_off(&body, UNFINISHED).await,
                // All that the client waits for has come: how the connection ended is no matter.
                Far::Broken if body.is_done() => return self.end_done(body).await,
                Far::Broken => return self.break_off(&body, DIED).await,
            }
            let event = poll_fn(|context| {
                let is_cut = self.gate.ending() == Some(Ending::Cut) && !body.is_done();
                if is_cut { Poll::Ready(Event::Ended) } else { self.poll_event(&mut wire, context) }
            })
            .await;
            let mut out = scratch::take_out();
            far = match event {
                Event::Said(count) => scratch::with(|space| {
                    let news = space.get(..count).unwrap_or_default();
                    body.feed(news, (&self.way.lease, &self.way.flight), &mut out)
                }),
                Event::Closed => body.close(&mut out),
                Event::Broke => Far::Broken,
                Event::Ended if body.is_done() => return self.end_done(body).await,
                Event::Ended => {
                    let was_cut = self.gate.ending() == Some(Ending::Cut);
                    return self.break_off(&body, if was_cut { CUT } else { DIED }).await;
                }
                Event::Cancelled => {
                    drop(self.way.flight.end_cancelled());
                    return self.break_off(&body, CANCELLED).await;
                }
                Event::Gone => return Served::Over,
                Event::Alarm => Far::More,
            };
            let is_sent = self.door.send(&out).await.is_ok();
            scratch::give_back(out);
            if !is_sent {
                return Served::Over;
            }
        }
    }
}

fn garbled() -> Heard {
    Heard::Failed(Failure::Garbled)
}

fn cut_or_gone(gate: &Gate) -> Failure {
    match gate.ending() {
        Some(Ending::Cut) => Failure::Cut,
        Some(Ending::Died) | None => Failure::Gone,
    }
}
