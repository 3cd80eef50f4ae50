//! One request in flight: what is known of it, until its answer has ended.
//!
//! Held by whoever works on the request; the last one to let go of it ends it, whatever the way, and
//! with that it is counted, told to the access log, and off the list.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use hyper::{StatusCode, header::HeaderValue};
use tokio::time::Instant;
use tracing::info;

use super::{
    access::Turn,
    flights::Flights,
    meters::{Meters, Outcome, Tally, micros},
    reply::Fault,
    usage::{Usage, events},
};
use crate::spec::{
    SlotName,
    requests::{Lane, OnClientGone},
};

/// Where a request is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Its slot is not ready.
    Loading,
    /// It waits for a seat at the engine.
    Queued,
    /// The engine has it and has not said anything of the answer.
    Waiting,
    /// The answer is coming.
    Streaming,
}

impl Stage {
    const ALL: [Self; 4] = [Self::Loading, Self::Queued, Self::Waiting, Self::Streaming];

    /// Returns the word that the control API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Queued => "queued",
            Self::Waiting => "waiting",
            Self::Streaming => "streaming",
        }
    }

    fn index(self) -> u8 {
        let index = Self::ALL.iter().position(|one| *one == self);
        index.and_then(|index| u8::try_from(index).ok()).unwrap_or_default()
    }
}

/// Who sent a request.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) peer: SocketAddr,
    pub(super) agent: Option<HeaderValue>,
    pub(super) request_id: Option<HeaderValue>,
    /// The name of its key; `None` where there are no keys.
    pub(super) key: Option<Arc<str>>,
    pub(super) lane: Lane,
    /// Its turn among the requests of its key, where those are counted.
    pub(super) _turn: Option<Arc<Turn>>,
}

/// One request in flight.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) id: u64,
    /// The slot that serves it, or the one that speaks for those that may, and its counters.
    served: Mutex<(SlotName, Arc<Meters>)>,
    pub(super) sender: Sender,
    pub(super) on_client_gone: OnClientGone,
    pub(super) began: Instant,
    flights: Arc<Flights>,
    stage: AtomicU8,
    status: AtomicU16,
    outcome: AtomicU8,
    /// Microseconds of waiting for the engine, and for a seat at it.
    cold_us: AtomicU64,
    queue_us: AtomicU64,
    /// Microseconds from the beginning to the first and the last byte of the answer's body; 0 before.
    first_us: AtomicU64,
    last_us: AtomicU64,
    /// Events of a stream so far.
    events: AtomicU64,
    /// Tokens of the engines before the present one, where the stream was continued.
    carried: AtomicU64,
    prompt: AtomicU64,
    generated: AtomicU64,
    prompt_us: AtomicU64,
    generated_us: AtomicU64,
    is_cancelled: AtomicBool,
    /// It was cancelled because it took too long.
    is_late: AtomicBool,
    is_abandoned: AtomicBool,
    /// Another flight has taken its place: it is not counted.
    is_handed_on: AtomicBool,
    waker: AtomicWaker,
}

/// No outcome yet: the client is gone if it stays so.
const UNDECIDED: u8 = 0;

impl Flight {
    pub(super) fn new(
        (id, flights): (u64, Arc<Flights>),
        served: (SlotName, Arc<Meters>),
        on_client_gone: OnClientGone,
        sender: Sender,
    ) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            id,
            served: Mutex::new(served),
            sender,
            on_client_gone,
            began: Instant::now(),
            flights,
            stage: AtomicU8::new(Stage::Queued.index()),
            status: AtomicU16::new(0),
            outcome: AtomicU8::new(UNDECIDED),
            cold_us: zero(),
            queue_us: zero(),
            first_us: zero(),
            last_us: zero(),
            events: zero(),
            carried: zero(),
            prompt: zero(),
            generated: zero(),
            prompt_us: zero(),
            generated_us: zero(),
            is_cancelled: AtomicBool::new(false),
            is_late: AtomicBool::new(false),
            is_abandoned: AtomicBool::new(false),
            is_handed_on: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }

    /// Returns the slot that serves it, or the one that speaks for those that may.
    pub(super) fn slot(&self) -> SlotName {
        self.served().0.clone()
    }

    fn served(&self) -> MutexGuard<'_, (SlotName, Arc<Meters>)> {
        // A panic elsewhere cannot leave it half changed: each use is one call.
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an engine of this slot has it now.
    pub(super) fn serve(&self, slot: &SlotName) {
        let mut served = self.served();
        if served.0 != *slot {
            *served = (slot.clone(), self.flights.meters(slot));
        }
        drop(served);
        self.enter(Stage::Waiting);
    }

    /// Returns where it is.
    pub(super) fn stage(&self) -> Stage {
        let index = usize::from(self.stage.load(Ordering::Relaxed));
        Stage::ALL.get(index).copied().unwrap_or(Stage::Queued)
    }

    pub(super) fn enter(&self, stage: Stage) {
        self.stage.store(stage.index(), Ordering::Relaxed);
    }

    /// Adds to the time that it waited for its engine.
    pub(super) fn add_cold_start(&self, time: Duration) {
        self.cold_us.fetch_add(micros(time).max(1), Ordering::Relaxed);
    }

    /// Adds to the time that it waited for a seat.
    pub(super) fn add_queue(&self, time: Duration) {
        self.queue_us.fetch_add(micros(time), Ordering::Relaxed);
    }

    /// Returns how long it waited for its engine and for a seat.
    pub(super) fn waits(&self) -> (Duration, Duration) {
        (micros_of(&self.cold_us), micros_of(&self.queue_us))
    }

    /// Notes a piece of the answer's body.
    pub(super) fn note_piece(&self, piece: &[u8], is_stream: bool) {
        let now = micros(self.began.elapsed()).max(1);
        if self.first_us.load(Ordering::Relaxed) == 0 {
            self.first_us.store(now, Ordering::Relaxed);
        }
        self.enter(Stage::Streaming);
        self.last_us.store(now, Ordering::Relaxed);
        if is_stream {
            self.events.fetch_add(events(piece), Ordering::Relaxed);
        }
    }

    /// Notes what the engine said of its tokens.
    pub(super) fn note_usage(&self, usage: &Usage) {
        let us = |ms: Option<f64>| {
            let time = ms.and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok());
            micros(time.unwrap_or_default())
        };
        self.prompt.store(usage.prompt.unwrap_or(0), Ordering::Relaxed);
        self.generated.store(usage.generated.unwrap_or(0), Ordering::Relaxed);
        self.prompt_us.store(us(usage.prompt_ms), Ordering::Relaxed);
        self.generated_us.store(us(usage.generated_ms), Ordering::Relaxed);
    }

    /// Notes how many tokens came of engines that are gone: the next one tells of its own alone.
    pub(super) fn carry(&self, tokens: u64) {
        self.carried.store(tokens, Ordering::Relaxed);
    }

    /// Returns the tokens that came so far: as the engine says, else one for each event.
    pub(super) fn tokens(&self) -> u64 {
        match self.generated.load(Ordering::Relaxed) {
            0 => self.events.load(Ordering::Relaxed),
            told => told.saturating_add(self.carried.load(Ordering::Relaxed)),
        }
    }

    /// Notes the status of the answer.
    pub(super) fn note_status(&self, status: StatusCode) {
        self.status.store(status.as_u16(), Ordering::Relaxed);
    }

    /// Decides how it ended; the first to know is right.
    pub(super) fn end(&self, outcome: Outcome) {
        let index = Outcome::ALL.iter().position(|one| *one == outcome).unwrap_or_default();
        let index = u8::try_from(index).unwrap_or_default();
        let (relaxed, undecided) = (Ordering::Relaxed, UNDECIDED);
        let decided = self.outcome.compare_exchange(undecided, index, relaxed, relaxed);
        decided.unwrap_or_default();
    }

    fn outcome(&self) -> Outcome {
        let index = usize::from(self.outcome.load(Ordering::Relaxed));
        Outcome::ALL.get(index).copied().unwrap_or(Outcome::Gone)
    }

    /// Ends it with an error, for the engine and for the client.
    pub(super) fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Ends it with an error because it has taken as long as it may.
    pub(super) fn expire(&self) {
        self.is_late.store(true, Ordering::Release);
        self.cancel();
    }

    /// Decides how it ended once it was cancelled, and returns what its client is told.
    pub(super) fn end_cancelled(&self) -> Fault {
        if self.is_late.load(Ordering::Acquire) {
            self.end(Outcome::Broken);
            return Fault::too_late();
        }
        self.end(Outcome::Cancelled);
        Fault::cancelled()
    }

    /// Waits until it is cancelled. One task at a time is woken.
    pub(super) fn poll_cancelled(&self, context: &mut Context<'_>) -> Poll<()> {
        self.waker.register(context.waker());
        if self.is_cancelled.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits until it is cancelled. Cancel-safe.
    pub(super) async fn cancelled(&self) {
        poll_fn(|context| self.poll_cancelled(context)).await;
    }

    /// Tells whether its client has left while the engine was let go on.
    pub(super) fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Relaxed)
    }

    /// Goes on without the client where the slot wants its engine to end what it has begun.
    /// `rest` is the work that is left.
    pub(super) fn abandon(&self, rest: impl Future<Output = ()> + Send + 'static) {
        self.is_abandoned.store(true, Ordering::Relaxed);
        self.flights.go_on(rest);
    }

    /// Lets another flight take its place: what becomes of the request is counted there.
    pub(super) fn hand_on(&self) {
        self.is_handed_on.store(true, Ordering::Relaxed);
    }

    /// Tells whether the engine goes on when the client leaves.
    pub(super) fn drains(&self) -> bool {
        self.on_client_gone == OnClientGone::Drain && !self.is_cancelled.load(Ordering::Acquire)
    }

    fn tally(&self) -> Tally {
        let first = micros_of(&self.first_us);
        let is_stream = self.events.load(Ordering::Relaxed) > 0;
        let tokens = self.tokens();
        let spread = micros_of(&self.last_us).saturating_sub(first);
        let gaps = u32::try_from(tokens.saturating_sub(1)).unwrap_or(u32::MAX);
        let (cold_start, queue) = self.waits();
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Tally {
            outcome: self.outcome(),
            duration: self.began.elapsed(),
            first_token: (is_stream && !first.is_zero()).then_some(first),
            per_token: if is_stream { spread.checked_div(gaps) } else { None },
            queue,
            cold_start: (!cold_start.is_zero()).then_some(cold_start),
            prompt: (load(&self.prompt), micros_of(&self.prompt_us)),
            generated: (tokens, micros_of(&self.generated_us)),
        }
    }

    /// One line for the access log: nothing of the request's or the answer's content.
    fn log(&self, tally: &Tally) {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let per_second = |(tokens, time): (u64, Duration)| {
            let tokens = f64::from(u32::try_from(tokens).unwrap_or(u32::MAX));
            (!time.is_zero()).then(|| (tokens / time.as_secs_f64() * 10.0).round() / 10.0)
        };
        let text = |value: &Option<HeaderValue>| {
            value.as_ref().and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let (request_id, agent) = (text(&self.sender.request_id), text(&self.sender.agent));
        info!(
            target: "slotd::access",
            request_id,
            slot = %self.served().0,
            peer = %self.sender.peer,
            agent,
            key = self.sender.key.as_deref(),
            lane = self.sender.lane.as_str(),
            status = self.status.load(Ordering::Relaxed),
            outcome = tally.outcome.as_str(),
            elapsed_ms = ms(tally.duration),
            cold_start_ms = tally.cold_start.map_or(0, ms),
            queue_ms = ms(tally.queue),
            ttft_ms = tally.first_token.map(ms),
            prompt_tokens = tally.prompt.0,
            generation_tokens = tally.generated.0,
            prompt_tokens_per_second = per_second(tally.prompt),
            generation_tokens_per_second = per_second(tally.generated),
            "request ended"
        );
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.forget(self.id);
        if self.is_handed_on.load(Ordering::Relaxed) {
            return;
        }
        let tally = self.tally();
        self.served().1.count(&tally);
        if self.flights.has_access_log() {
            self.log(&tally);
        }
    }
}

fn micros_of(us: &AtomicU64) -> Duration {
    Duration::from_micros(us.load(Ordering::Relaxed))
}
