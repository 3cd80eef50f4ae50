//! The way into one live engine: who may enter, who is inside, who is thrown out.
//!
//! One gate a generation. It owns the idle connections to its engine and ends with it.

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

use super::{
    record::{Fingerprint, Record},
    seats::{Closed, Seat, Seats},
    suspects::Suspects,
    upstream::Upstream,
};
use crate::{
    engine::Endpoint,
    spec::{Generation, SlotName, requests::Lane},
};

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
        self.touch();
        let gate = Arc::clone(self);
        let since = Instant::now();
        Ok(Lease { gate, seat: Some(seat), request, since, outcome: Outcome::Nothing })
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

/// One request's seat at an engine. Held until its answer has ended or was dropped.
#[derive(Debug)]
pub(super) struct Lease {
    gate: Arc<Gate>,
    seat: Option<Seat>,
    request: Fingerprint,
    since: Instant,
    outcome: Outcome,
}

/// How far an exchange has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    /// Not a byte came.
    Nothing,
    /// The engine said something.
    Something,
    /// It is whole.
    Answered,
    /// The engine broke it off, which has been noted.
    Broken,
}

impl Lease {
    /// Notes that the engine said something, if only that it will not.
    pub(super) fn note_word(&mut self) {
        self.outcome = Outcome::Something;
        self.gate.record.note_piece();
    }

    /// Notes that the answer is whole.
    pub(super) fn note_answer(&mut self) {
        self.outcome = Outcome::Answered;
        self.gate.note_held(self.since.elapsed());
        self.gate.record.note_answer();
        self.gate.suspects.clear(self.request);
    }

    /// Notes that the engine broke the exchange off, and perhaps itself.
    pub(super) fn note_break(&mut self) {
        self.note_failure();
        self.outcome = Outcome::Broken;
        self.gate.troubled.notify_one();
        let mut broken = self.gate.broken.lock().unwrap_or_else(PoisonError::into_inner);
        // What broke long before a death is pushed out by what broke in it.
        if broken.len() >= self.gate.parallel {
            broken.remove(0);
        }
        broken.push(self.request);
        drop(broken);
        if self.gate.is_blamed.load(Ordering::SeqCst) {
            self.gate.blame();
        }
    }

    /// Notes that the engine failed the request. One that is being ended is not to blame.
    pub(super) fn note_failure(&mut self) {
        self.outcome = Outcome::Something;
        if !self.gate.is_closed() {
            self.gate.record.note_failure(self.request);
        }
    }

    /// Returns the gate that the seat belongs to.
    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.gate.touch();
        // Whether it was to blame for an end may be told later.
        let may_be_blamed =
            self.gate.is_blamed.load(Ordering::SeqCst) || self.gate.awaits_verdict();
        if may_be_blamed && matches!(self.outcome, Outcome::Nothing | Outcome::Something) {
            self.note_break();
        }
        if self.outcome == Outcome::Nothing && !self.gate.is_closed() {
            self.gate.record.note_given_up();
        }
        // The seat goes back before the waiters of `drained` count.
        drop(self.seat.take());
        self.gate.released.notify_waiters();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(parallel: u32, queue_limit: u32) -> Arc<Gate> {
        let endpoint = Endpoint::Unix("/nowhere.sock".into());
        Gate::new(
            "chat".parse().unwrap(),
            Generation(1),
            (endpoint, None),
            (parallel, queue_limit),
            &Arc::default(),
        )
    }

    fn request() -> Fingerprint {
        Fingerprint::of(b"{}")
    }

    async fn lease(gate: &Arc<Gate>, patience: Duration) -> Result<Lease, GateRefusal> {
        gate.lease(request(), (Lane::Interactive, patience)).await
    }

    #[tokio::test]
    async fn a_full_gate_queues_then_refuses_then_times_out() {
        let gate = gate(1, 1);
        let patience = Duration::from_millis(20);
        let first = lease(&gate, patience).await.unwrap();
        let (second, third) = tokio::join!(lease(&gate, patience), lease(&gate, patience));
        assert_eq!(second.unwrap_err(), GateRefusal::TimedOut);
        assert_eq!(third.unwrap_err(), GateRefusal::Full { waiting: 1 });
        assert_eq!(gate.waiting(), 0);
        drop(first);
        assert!(lease(&gate, patience).await.is_ok(), "the turn came back");
    }

    #[tokio::test]
    async fn a_cut_gate_is_drained_whoever_still_holds_a_seat() {
        let gate = gate(1, 1);
        let _stalled = lease(&gate, Duration::from_secs(1)).await.unwrap();
        tokio::join!(gate.drained(), async { gate.cut() });
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_is_told_from_what_earlier_requests_took() {
        let gate = gate(2, 4);
        assert_eq!(gate.expected_wait(), None);
        let mut first = lease(&gate, Duration::from_secs(1)).await.unwrap();
        tokio::time::advance(Duration::from_secs(8)).await;
        first.note_answer();
        assert_eq!(gate.expected_wait(), Some(Duration::from_secs(4)), "two seats share the queue");
    }

    #[tokio::test]
    async fn seats_are_given_in_the_order_of_asking() {
        let gate = gate(1, 8);
        let first = lease(&gate, Duration::from_secs(1)).await.unwrap();
        let order = Mutex::new(Vec::new());
        let ask = async |number: u32| {
            let leased = lease(&gate, Duration::from_mins(1)).await.unwrap();
            order.lock().unwrap().push(number);
            drop(leased);
        };
        tokio::join!(ask(1), ask(2), ask(3), async { drop(first) });
        assert_eq!(order.into_inner().unwrap(), [1, 2, 3]);
    }

    #[tokio::test]
    async fn those_who_wait_at_a_dead_engine_are_sent_away() {
        let gate = gate(1, 8);
        let _busy = lease(&gate, Duration::from_secs(1)).await.unwrap();
        let (waited, ()) = tokio::join!(lease(&gate, Duration::from_mins(1)), async {
            gate.cut();
            gate.mark_dead(Blame::Nobody);
        });
        assert_eq!(waited.unwrap_err(), GateRefusal::Closed);
        assert_eq!(gate.ending(), Some(Ending::Cut), "the first reason stays");
    }

    #[tokio::test]
    async fn an_end_that_is_not_told_yet_is_no_drain_and_its_requests_are_suspects_once_it_is() {
        let gate = gate(2, 8);
        let held = lease(&gate, Duration::from_secs(1)).await.unwrap();
        gate.mark_ended();
        drop(held);
        let waited = lease(&gate, Duration::from_secs(1)).await;
        assert_eq!(waited.unwrap_err(), GateRefusal::Closed);
        assert!(timeout(Duration::from_millis(20), gate.drained()).await.is_err(), "not told");
        gate.mark_dead(Blame::Request);
        gate.drained().await;
        let engine = "other".parse().unwrap();
        gate.suspects.note(&engine, Generation(1), [request()]);
        assert!(gate.is_guilty(request()), "the first death counts");
    }

    #[tokio::test]
    async fn a_closed_gate_is_drained_by_its_last_lease() {
        let gate = gate(2, 1);
        let leased = lease(&gate, Duration::from_secs(1)).await.unwrap();
        gate.close();
        assert_eq!(lease(&gate, Duration::from_secs(1)).await.unwrap_err(), GateRefusal::Closed);
        assert_eq!(gate.in_flight(), 1);
        tokio::join!(gate.drained(), async { drop(leased) });
        assert_eq!(gate.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_client_that_leaves_without_a_byte_is_noted_unless_the_gate_is_closed() {
        let gate = gate(2, 1);
        let first = lease(&gate, Duration::from_secs(1)).await.unwrap();
        let mut second = lease(&gate, Duration::from_secs(1)).await.unwrap();
        drop(first);
        assert_eq!(gate.record().given_up_in_row(), 1);
        second.note_failure();
        drop(second);
        assert_eq!((gate.record().given_up_in_row(), gate.record().failed_in_row()), (1, 1));
        let mut last = lease(&gate, Duration::from_secs(1)).await.unwrap();
        gate.close();
        last.note_failure();
        assert_eq!(gate.record().failed_in_row(), 1);
    }
}
