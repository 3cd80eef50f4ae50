//! The list of requests in flight, and the counters of every slot.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{runtime::Handle, task::JoinSet, time::sleep};

use super::{
    flight::{Flight, Sender, Stage},
    meters::Meters,
};
use crate::spec::{
    SlotName,
    requests::{Lane, OnClientGone},
};

/// Into how many parts the list is cut, so that cores seldom meet.
const PARTS: usize = 8;

/// How often requests are looked at that have taken too long.
const SHORTEST_LOOK: Duration = Duration::from_millis(10);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

type Part = Mutex<BTreeMap<u64, Weak<Flight>>>;

/// Whether each request gets a line in the daemon's log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AccessLog {
    /// It does not.
    #[default]
    Off,
    /// It does, once it has ended.
    On,
}

/// Every request in flight.
#[derive(Default)]
pub struct Flights {
    next: AtomicU64,
    parts: [Part; PARTS],
    meters: ArcSwap<BTreeMap<SlotName, Arc<Meters>>>,
    /// Exchanges that go on though their client has left.
    rests: Mutex<JoinSet<()>>,
    access_log: AccessLog,
}

/// One request in flight, as it is shown.
#[derive(Clone, Debug)]
pub struct FlightView {
    /// Tells it from every other of this life of the daemon.
    pub id: u64,
    /// The id that client and engine know it by.
    pub request_id: Option<String>,
    /// The slot.
    pub slot: SlotName,
    /// Where it is.
    pub stage: Stage,
    /// Which lane it waits in.
    pub lane: Lane,
    /// How long ago it came.
    pub age: Duration,
    /// How long it waited for its engine, and for a seat at it.
    pub waits: (Duration, Duration),
    /// Tokens of the answer so far: as the engine says, else one for each event of the stream.
    pub tokens: u64,
    /// Where it came from.
    pub peer: String,
    /// What the client calls itself.
    pub agent: Option<String>,
    /// The name of its key.
    pub key: Option<String>,
    /// Its client has left, and the engine goes on.
    pub is_abandoned: bool,
}

impl Flights {
    /// Makes an empty list.
    pub fn new(access_log: AccessLog) -> Arc<Self> {
        Arc::new(Self { access_log, ..Self::default() })
    }

    /// Puts a request on the list, until the last who holds it lets go.
    pub(super) fn begin(
        self: &Arc<Self>,
        slot: &SlotName,
        on_client_gone: OnClientGone,
        sender: Sender,
    ) -> Arc<Flight> {
        let id = self.next.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let owner = (id, Arc::clone(self));
        let meters = self.meters(slot);
        let flight = Arc::new(Flight::new(owner, (slot.clone(), meters), on_client_gone, sender));
        self.part(id).insert(id, Arc::downgrade(&flight));
        flight
    }

    pub(super) fn forget(&self, id: u64) {
        self.part(id).remove(&id);
    }

    /// Shows every request, oldest first.
    pub fn list(&self) -> Vec<FlightView> {
        let mut all: Vec<_> = self.all().iter().map(|flight| view(flight)).collect();
        all.sort_by_key(|view| view.id);
        all
    }

    /// Cancels a request; says whether it was there.
    pub fn cancel(&self, id: u64) -> bool {
        let flight = self.part(id).get(&id).and_then(Weak::upgrade);
        flight.is_some_and(|flight| {
            flight.cancel();
            true
        })
    }

    /// Ends every request that has taken longer than `limit`. Never returns.
    #[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
    pub(super) async fn end_late(&self, limit: Duration) {
        loop {
            sleep((limit / 20).clamp(SHORTEST_LOOK, LONGEST_LOOK)).await;
            for flight in self.all() {
                if flight.began.elapsed() >= limit {
                    flight.expire();
                }
            }
        }
    }

    fn all(&self) -> Vec<Arc<Flight>> {
        // Let go of outside of the locks: the last to let go of one takes its lock.
        self.parts
            .iter()
            .flat_map(|part| lock(part).values().cloned().collect::<Vec<_>>())
            .filter_map(|flight| flight.upgrade())
            .collect()
    }

    fn part(&self, id: u64) -> MutexGuard<'_, BTreeMap<u64, Weak<Flight>>> {
        let index = usize::try_from(id).unwrap_or_default() % PARTS;
        let [first, ..] = &self.parts;
        lock(self.parts.get(index).unwrap_or(first))
    }

    /// Returns the counters of a slot; they are made with its first request.
    pub(super) fn meters(&self, slot: &SlotName) -> Arc<Meters> {
        // What is asked of a slot counts as its own, whichever engine stands in for it.
        if let Some(slot) = slot.stands_in_for() {
            return self.meters(&slot);
        }
        if let Some(meters) = self.meters.load().get(slot) {
            return Arc::clone(meters);
        }
        self.meters.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            all.entry(slot.clone()).or_default();
            all
        });
        self.meters.load().get(slot).map(Arc::clone).unwrap_or_default()
    }

    /// Returns the counters of every slot that ever had a request.
    pub(super) fn all_meters(&self) -> Arc<BTreeMap<SlotName, Arc<Meters>>> {
        self.meters.load_full()
    }

    pub(super) fn has_access_log(&self) -> bool {
        self.access_log == AccessLog::On
    }

    /// Lets an exchange go on without its client. It ends with its engine's gate.
    pub(super) fn go_on(&self, rest: impl Future<Output = ()> + Send + 'static) {
        // Without a runtime the daemon is on its way out, and everything ends.
        let Ok(runtime) = Handle::try_current() else { return };
        let mut rests = self.rests.lock().unwrap_or_else(PoisonError::into_inner);
        while rests.try_join_next().is_some() {}
        rests.spawn_on(rest, &runtime);
    }
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count: usize = self.parts.iter().map(|part| lock(part).len()).sum();
        f.debug_struct("Flights").field("count", &count).finish_non_exhaustive()
    }
}

fn view(flight: &Flight) -> FlightView {
    let sender = &flight.sender;
    let text = |value: &hyper::header::HeaderValue| value.to_str().ok().map(str::to_owned);
    FlightView {
        id: flight.id,
        request_id: sender.request_id.as_ref().and_then(text),
        slot: flight.slot(),
        stage: flight.stage(),
        lane: sender.lane,
        age: flight.began.elapsed(),
        waits: flight.waits(),
        tokens: flight.tokens(),
        peer: sender.peer.to_string(),
        agent: sender.agent.as_ref().and_then(text),
        key: sender.key.as_deref().map(str::to_owned),
        is_abandoned: flight.is_abandoned(),
    }
}

fn lock<T>(part: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere cannot leave the list half changed: each use is one call.
    part.lock().unwrap_or_else(PoisonError::into_inner)
}
