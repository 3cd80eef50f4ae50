//! The way into one live engine: who may enter, who is inside, who is thrown out.
//!
//! One gate a generation. It owns the idle connections to its engine and ends with it.

mod lease;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use thiserror::Error;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

pub(super) use self::lease::Lease;
use super::{
    record::{Fingerprint, Record},
    seats::{Closed, Seat, Seats},
    suspects::Suspects,
    upstream::Upstream,
    uses::Use,
};
use crate::{
    engine::Endpoint,
    spec::{Generation, SlotName, requests::Lane},
};

/// An engine without a request for so long was not loaded for one.
const UNASKED: Duration = Duration::from_secs(30);

/// Lets requests into one engine, lane by lane in the order they came.
///
/// Open until [`Gate::close`], [`Gate::cut`], [`Gate::mark_ended`] or [`Gate::mark_dead`]; it never opens again.
pub struct Gate {
    slot: SlotName,
    generation: Generation,
    upstream: Upstream,
    model: Option<String>,
    parallel: usize,
    seats: Arc<Seats>,
    waiting: AtomicUsize,
    /// Seats whose silence is nothing odd.
    silent: AtomicU32,
    queue_limit: usize,
    born: Instant,
    last_access_ms: AtomicU64,
    /// Where its slot's uses are counted, once that was said.
    uses: OnceLock<Arc<Use>>,
    record: Record,
    /// How long the engine holds a seat for a request, in milliseconds: a mean that follows the last
    /// dozen or so; 0 before the first.
    held_ms: AtomicU64,
    /// Requests whose exchange the engine broke: it may have died of one.
    broken: Mutex<Vec<Fingerprint>>,
    /// Set when the engine was found dead, or past saving, and a request may be to blame.
    is_blamed: AtomicBool,
    suspects: Arc<Suspects>,
    released: Notify,
    troubled: Notify,
    ending: OnceLock<Ending>,
    ended: CancellationToken,
    /// The core knows of the ending.
    judged: CancellationToken,
}

/// Why exchanges in flight were ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ending {
    /// The slot goes down and did not wait for them.
    Cut,
    /// The engine is dead.
    Died,
}

/// What an engine's end may be laid to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Blame {
    /// It crashed, or took too much memory: a request may have done that.
    Request,
    /// Somebody ended it, or it was done.
    Nobody,
}

/// Why a request was not let in.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub(super) enum GateRefusal {
    /// As many requests as are allowed wait already.
    #[error("{waiting} requests wait already")]
    Full {
        /// How many.
        waiting: usize,
    },
    /// No seat became free in time.
    #[error("no seat became free in time")]
    TimedOut,
    /// The engine takes no new requests; the core knows what comes next.
    #[error("the engine takes no new requests")]
    Closed,
}

impl Gate {
    /// Makes an open gate for an engine that works on `parallel` requests at once (at least one)
    /// and in front of which `queue_limit` more may wait. `model` is the name that the engine insists
    /// on, if it does. `suspects` are shared by all gates.
    pub fn new(
        slot: SlotName,
        generation: Generation,
        (endpoint, model): (Endpoint, Option<String>),
        (parallel, queue_limit): (u32, u32),
        suspects: &Arc<Suspects>,
    ) -> Arc<Self> {
        let parallel = NonZeroU32::new(parallel).unwrap_or(NonZeroU32::MIN).get();
        let parallel = usize::try_from(parallel).unwrap_or(usize::MAX);
        Arc::new(Self {
            slot,
            generation,
            upstream: Upstream::new(endpoint),
            model,
            parallel,
            seats: Seats::new(parallel),
            waiting: AtomicUsize::new(0),
            silent: AtomicU32::new(0),
            queue_limit: usize::try_from(queue_limit).unwrap_or(usize::MAX),
            born: Instant::now(),
            last_access_ms: AtomicU64::new(0),
            uses: OnceLock::new(),
            record: Record::default(),
            held_ms: AtomicU64::new(0),
            broken: Mutex::default(),
            is_blamed: AtomicBool::new(false),
            suspects: Arc::clone(suspects),
            released: Notify::new(),
            troubled: Notify::new(),
            ending: OnceLock::new(),
            ended: CancellationToken::new(),
            judged: CancellationToken::new(),
        })
    }

    /// Waits in a lane for a seat, at most `patience`. Cancel-safe: a dropped call leaves the queue.
    ///
    /// # Errors
    /// [`GateRefusal`], each variant as it says.
    pub(super) async fn lease(
        self: &Arc<Self>,
        request: Fingerprint,
        (lane, patience): (Lane, Duration),
    ) -> Result<Lease, GateRefusal> {
        // No seat is free while somebody waits, so this never jumps the queue.
        let seat = match self.seats.try_take() {
            Ok(Some(seat)) => seat,
            Ok(None) => self.wait_for_seat(lane, patience).await?,
            Err(Closed) => return Err(GateRefusal::Closed),
        };
        let gate = Arc::clone(self);
        Ok(Lease::new(gate, seat, request))
    }

    /// Takes a seat if one is free, and nobody has to wait.
    pub(super) fn try_lease(self: &Arc<Self>, request: Fingerprint) -> Option<Lease> {
        let seat = self.seats.try_take().ok().flatten()?;
        Some(Lease::new(Arc::clone(self), seat, request))
    }

    async fn wait_for_seat(&self, lane: Lane, patience: Duration) -> Result<Seat, GateRefusal> {
        let _place = Place::take(self)?;
        match timeout(patience, self.seats.take(lane)).await {
            Ok(Ok(seat)) => Ok(seat),
            Ok(Err(Closed)) => Err(GateRefusal::Closed),
            Err(_) => Err(GateRefusal::TimedOut),
        }
    }

    /// Returns the slot whose engine this is.
    pub fn slot(&self) -> &SlotName {
        &self.slot
    }

    /// Returns the name of its model that the engine insists on.
    pub(super) fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Returns the engine's generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns how many requests are being served.
    pub fn in_flight(&self) -> u32 {
        // Seats, not a counter beside them: a seat is taken and given back in one step.
        u32::try_from(self.seats.taken()).unwrap_or(u32::MAX)
    }

    /// Returns how many of those that are served wait for the engine's next word: a connection that
    /// was taken over may be silent for as long as both sides like.
    pub fn expecting(&self) -> u32 {
        self.in_flight().saturating_sub(self.silent.load(Ordering::Relaxed))
    }

    /// Notes a seat whose silence is nothing odd.
    pub(super) fn begin_silence(&self) {
        self.silent.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes the end of such a seat; called once for each beginning.
    pub(super) fn end_silence(&self) {
        self.silent.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns how many requests wait for a seat.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Tells whether a request would be served at once.
    pub(super) fn has_seat(&self) -> bool {
        self.seats.taken() < self.parallel
    }

    /// Returns how busy the engine is: requests in flight and in front of it for each of its seats, in
    /// thousandths.
    pub(super) fn load(&self) -> usize {
        let all = self.seats.taken().saturating_add(self.waiting()).saturating_mul(1000);
        all.checked_div(self.parallel).unwrap_or(usize::MAX)
    }

    /// Returns how long a request that came now would wait for a seat, by what the last ones took;
    /// `None` before the first was answered.
    pub(super) fn expected_wait(&self) -> Option<Duration> {
        let held = self.held_ms.load(Ordering::Relaxed);
        let ahead = u64::try_from(self.waiting().saturating_add(1)).unwrap_or(u64::MAX);
        let parallel = u64::try_from(self.parallel).unwrap_or(u64::MAX);
        let wait = held.saturating_mul(ahead).checked_div(parallel)?;
        (held > 0).then_some(Duration::from_millis(wait))
    }

    /// Racing writers lose one of many figures.
    fn note_held(&self, held: Duration) {
        const SHARE: u64 = 8;
        let held = u64::try_from(held.as_millis()).unwrap_or(u64::MAX).max(1);
        let mean = match self.held_ms.load(Ordering::Relaxed) {
            0 => held,
            mean => mean.saturating_mul(SHARE - 1).saturating_add(held) / SHARE,
        };
        self.held_ms.store(mean, Ordering::Relaxed);
    }

    /// Returns what became of the requests so far.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Returns how long ago the last request ended, or the gate was made; zero while one is being
    /// served.
    pub fn idle_for(&self) -> Duration {
        if self.in_flight() > 0 {
            return Duration::ZERO;
        }
        let last = Duration::from_millis(self.last_access_ms.load(Ordering::Relaxed));
        self.born.elapsed().saturating_sub(last)
    }

    /// Has the slot's uses counted there from here on; said once.
    pub fn count_in(&self, uses: Arc<Use>) {
        // A second one would be the same slot's.
        drop(self.uses.set(uses));
    }

    /// Returns how long nobody has used the slot: where this engine has been there for a while without a
    /// request, the time since the last use of an earlier one counts too.
    pub fn unused_for(&self) -> Duration {
        let idle = self.idle_for();
        let is_untouched = self.last_access_ms.load(Ordering::Relaxed) == 0;
        let before = self.uses.get().filter(|_| is_untouched && idle >= UNASKED);
        before.and_then(|uses| uses.ago()).map_or(idle, |ago| ago.max(idle))
    }

    /// Lets nobody in any more; those who wait are sent back to the core. Idle connections end.
    pub fn close(&self) {
        self.seats.close();
        self.upstream.drop_idle();
        self.released.notify_waiters();
    }

    /// Waits until the gate is closed and the last request has ended. Requests that were cut, or whose
    /// engine is known to be dead, have ended, though a client that does not read may not know it yet.
    /// A death that is not told yet is waited for: it goes first. Cancel-safe.
    pub async fn drained(&self) {
        loop {
            let mut released = std::pin::pin!(self.released.notified());
            released.as_mut().enable();
            let is_drained = self.ending().is_some() || (self.is_closed() && self.in_flight() == 0);
            if is_drained && !self.awaits_verdict() {
                return;
            }
            released.await;
        }
    }

    /// Resolves when an exchange broke since the last call: the engine may be gone. Cancel-safe.
    pub async fn troubled(&self) {
        self.troubled.notified().await;
    }

    /// Closes the gate and ends every exchange in flight at once, with an error.
    pub fn cut(&self) {
        self.end(Ending::Cut);
        self.judge();
    }

    /// Closes the gate of an engine that has just ended, before anybody knows why: every exchange in
    /// flight ends with an error, and who comes waits for [`Gate::mark_dead`].
    pub fn mark_ended(&self) {
        self.end(Ending::Died);
    }

    /// Closes the gate of a dead engine: every exchange in flight ends with an error. Called when the
    /// core is told.
    pub fn mark_dead(&self, blame: Blame) {
        if blame == Blame::Request {
            self.blame();
        }
        self.end(Ending::Died);
        self.judge();
    }

    /// Tells whether the engine has ended and the core has not been told why yet.
    pub(super) fn awaits_verdict(&self) -> bool {
        self.ending().is_some() && !self.judged.is_cancelled()
    }

    /// Resolves once the core knows that exchanges were ended, and why.
    pub(super) fn judged(&self) -> &CancellationToken {
        &self.judged
    }

    fn judge(&self) {
        self.judged.cancel();
        self.released.notify_waiters();
    }

    /// Notes that a request in flight may be what the engine ends of: those whose exchanges broke
    /// already are suspects, those in flight will be when they end.
    pub fn blame(&self) {
        self.is_blamed.store(true, Ordering::SeqCst);
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        self.suspects.note(&self.slot, self.generation, broken.drain(..));
    }

    /// Tells whether this request has taken engines down.
    pub(super) fn is_guilty(&self, request: Fingerprint) -> bool {
        self.suspects.is_guilty(request)
    }

    fn end(&self, ending: Ending) {
        // The first reason stays: a cut engine that dies afterwards was cut.
        self.ending.get_or_init(|| ending);
        self.close();
        self.ended.cancel();
    }

    pub(super) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Tells whether nobody is let in any more.
    pub fn is_closed(&self) -> bool {
        self.seats.is_closed()
    }

    /// Tells why exchanges are ended; `None` while they are not.
    pub(super) fn ending(&self) -> Option<Ending> {
        self.ending.get().copied()
    }

    /// Resolves when exchanges are ended.
    pub(super) fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Counts a use.
    fn note_use(&self) {
        if let Some(uses) = self.uses.get() {
            uses.note();
        }
    }

    fn touch(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_access_ms.store(now, Ordering::Relaxed);
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("slot", &self.slot)
            .field("generation", &self.generation)
            .field("in_flight", &self.in_flight())
            .field("waiting", &self.waiting())
            .field("ending", &self.ending())
            .finish_non_exhaustive()
    }
}

/// One request's place in the queue.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(gate: &'a Gate) -> Result<Self, GateRefusal> {
        let limit = gate.queue_limit;
        gate.waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
                (waiting < limit).then(|| waiting.saturating_add(1))
            })
            .map(|_| Self(&gate.waiting))
            .map_err(|waiting| GateRefusal::Full { waiting })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
