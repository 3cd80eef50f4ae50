//! How one request's passage ends: whole, broken off, refused, or left to be tried once more.

use std::{future::poll_fn, sync::atomic::Ordering};

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::{
    super::{
        exchange::{REFUSAL_BYTES, REFUSAL_DEADLINE, has_died, says_little},
        meters::Outcome,
        normalise,
        relay::{CANCELLED, LAST_WORDS_DEADLINE, UNFINISHED},
        reply::Fault,
    },
    body::{Body, Far, put_chunk},
    framing::Framing,
    held,
    passage::{Event, Passage, Sending, Served},
    reply::{Reply, put_whole},
    scratch,
    way::Way,
    wire::{self, Failure, Wire},
};

impl Passage<'_, '_> {
    /// The answer is whole, and the client has it.
    pub(super) fn finish(mut self, wire: Wire, body: &Body) -> Served {
        self.way.lease.note_answer();
        self.way.flight.note_usage(&body.usage.usage());
        self.way.flight.end(Outcome::Answered);
        if body.is_kept && self.sending == Sending::Done {
            wire::keep(self.gate, wire);
        }
        self.door.give_back(std::mem::take(&mut self.request));
        self.kept_or_over()
    }

    /// The stream said that it is whole, and its engine never ended it.
    pub(super) async fn end_done(self, mut body: Body) -> Served {
        self.way.flight.end(Outcome::Answered);
        let mut out = Vec::new();
        let far = body.end(&mut out);
        let is_sent = far == Far::Whole && self.door.send(&out).await.is_ok();
        if is_sent { self.kept_or_over() } else { Served::Over }
    }

    fn kept_or_over(&self) -> Served {
        if self.life.is_closing() { Served::Over } else { Served::Kept }
    }

    /// Breaks off: an error event if there can be one, then the abort.
    pub(super) async fn break_off(mut self, body: &Body, what: &str) -> Served {
        // An engine that never says `[DONE]` serves all the same: a new one would not say it either.
        if what != UNFINISHED && what != CANCELLED {
            self.way.lease.note_break();
        }
        self.way.flight.end(Outcome::Broken);
        let slot = self.gate.slot();
        let fault = match self.gate.ending() {
            _ if what == CANCELLED => self.way.flight.end_cancelled(),
            None if what == UNFINISHED => Fault::engine_misbehaved(slot, what),
            Some(_) | None => Fault::engine_died(slot, what),
        };
        if let Some(is_between) = body.is_between_events() {
            let event = self.way.form.dialect.event(&fault);
            // An event cut in half is ended first, so that the next one is read as one.
            let event = if is_between { event.to_vec() } else { [b"\n\n", &event[..]].concat() };
            let mut out = Vec::new();
            put_chunk(&mut out, &event);
            // Who does not read it loses the connection all the same.
            drop(self.door.send_within(&out, LAST_WORDS_DEADLINE).await);
        }
        Served::Over
    }

    /// Reads a refusal whole, and gives it the form that clients know.
    pub(super) async fn refused(mut self, mut wire: Wire, reply: Reply, begun: Vec<u8>) -> Served {
        let slot = self.gate.slot().clone();
        if reply.status.is_success() {
            let fault = Fault::engine_misbehaved(&slot, "answered without a stream");
            return self.refuse(&fault).await;
        }
        if reply.status.is_server_error() && !says_little(reply.status) {
            self.way.lease.note_failure();
        }
        let read = self.read_refusal(&mut wire, (reply.framing, &begun)).await;
        let Some((text, is_kept)) = read else {
            let what = "broke off while it refused the request";
            return self.refuse(&Fault::engine_died(&slot, what)).await;
        };
        if is_kept && reply.is_kept && self.sending == Sending::Done {
            wire::keep(self.gate, wire);
        }
        let error = normalise::error_object(reply.status, &text);
        let fault = Fault::of_engine(reply.status, reply.header_map(), error);
        self.refuse(&fault).await
    }

    /// Reads as much of a refusal as counts; says whether it was read to its end. `None` if it broke off.
    async fn read_refusal(
        &mut self,
        wire: &mut Wire,
        (mut framing, begun): (Framing, &[u8]),
    ) -> Option<(Vec<u8>, bool)> {
        let mut text = Vec::new();
        let mut take = |bytes: &[u8], text: &mut Vec<u8>| {
            let used = framing.feed(bytes, |data, _| text.extend_from_slice(data)).ok()?;
            Some((used == bytes.len(), framing.is_over(), framing == Framing::UntilClose))
        };
        let (mut is_kept, mut is_over, ends_with_close) = take(begun, &mut text)?;
        let deadline = Instant::now() + REFUSAL_DEADLINE;
        while !is_over && text.len() < REFUSAL_BYTES {
            let event = timeout_at(deadline, poll_fn(|context| self.poll_event(wire, context)));
            match event.await.ok()? {
                Event::Said(count) => {
                    let taken = scratch::with(|space| {
                        take(space.get(..count).unwrap_or_default(), &mut text)
                    });
                    (is_kept, is_over, _) = taken?;
                }
                Event::Closed if ends_with_close => return Some((text, false)),
                Event::Alarm => {}
                Event::Closed | Event::Broke | Event::Ended | Event::Cancelled | Event::Gone => {
                    return None;
                }
            }
        }
        text.truncate(REFUSAL_BYTES);
        Some((text, is_kept && is_over))
    }

    /// Tells the client why there is no answer.
    pub(super) async fn refuse(self, fault: &Fault) -> Served {
        self.way.flight.end(Outcome::Refused);
        if self.is_committed {
            let mut out = Vec::new();
            put_chunk(&mut out, &self.way.form.dialect.event(fault));
            drop(self.door.send_within(&out, LAST_WORDS_DEADLINE).await);
            return Served::Over;
        }
        let (head, body) = fault.response_in(self.way.form.dialect).into_parts();
        self.way.flight.note_status(head.status);
        let Ok(body) = body.collect().await else { return Served::Over };
        let (mut out, mut said) = (Vec::new(), Vec::new());
        self.put_said(&mut said, head.headers.contains_key("date"));
        let response = hyper::Response::from_parts(head, ());
        put_whole(&mut out, &response, &said, &body.to_bytes());
        let is_sent = self.door.send(&out).await.is_ok();
        if is_sent { self.kept_or_over() } else { Served::Over }
    }

    /// The engine did not say a word that counts.
    pub(super) async fn failed(mut self, fault: Failure) -> Served {
        let slot = self.gate.slot().clone();
        match fault {
            Failure::Garbled => {
                self.way.lease.note_failure();
                let fault = Fault::engine_misbehaved(&slot, "answered what is no HTTP");
                self.refuse(&fault).await
            }
            Failure::Cut => {
                self.way.lease.note_break();
                self.refuse(&Fault::engine_died(&slot, "was stopped before it answered")).await
            }
            Failure::Gone => {
                self.way.lease.note_break();
                if !has_died(self.gate).await {
                    let fault = Fault::engine_died(&slot, "died before it answered");
                    return self.refuse(&fault).await;
                }
                if self.is_committed { Box::pin(self.go_on()).await } else { self.leave() }
            }
        }
    }

    /// Tries once more for a client that waits for the rest of its stream.
    pub(super) async fn go_on(self) -> Served {
        let Self { door, client, asking, way, request, .. } = self;
        let Way { lease, flight, form, .. } = way;
        drop(lease);
        let body = Bytes::from(request).slice(asking.body.clone());
        match held::order(client, &asking, (&flight, form), body) {
            Some(order) => {
                drop(flight);
                held::go_on(door, client, (order, form), &asking).await
            }
            None => Served::Over,
        }
    }

    /// Leaves the request, as it came, to be tried once more by somebody else.
    pub(super) fn leave(self) -> Served {
        self.client.has_tried.store(true, Ordering::Relaxed);
        self.way.flight.hand_on();
        let ahead = std::mem::replace(&mut self.door.buffer, self.request);
        self.door.buffer.extend_from_slice(&ahead);
        Served::Left
    }
}
