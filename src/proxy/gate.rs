//! The gate of one live engine: how many requests it works on, who waits, when it was last used.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout},
};

use super::upstream::Pool;
use crate::{
    engine::Endpoint,
    spec::{Generation, SlotName},
};

/// One engine generation's gate. Made when the engine runs, gone when the last exchange has ended.
#[derive(Debug)]
pub struct Gate {
    slot: SlotName,
    generation: Generation,
    parallel: usize,
    queue_limit: usize,
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    last_used: Mutex<Instant>,
    freed: Notify,
    standing: watch::Sender<Standing>,
    pool: Pool,
}

/// What exchanges with the engine may expect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// It works.
    Alive,
    /// Its time is up: exchanges end now.
    Cut,
    /// It has died.
    Dead,
}

/// Says why there is no lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum GateRefusal {
    /// As many as may are waiting already.
    Full {
        /// How many.
        waiting: usize,
    },
    /// Its turn did not come in time.
    TimedOut,
    /// The engine takes no more requests.
    Closed,
}

/// One request's turn at the engine, held until its answer has ended.
#[derive(Debug)]
pub(super) struct Lease {
    gate: Arc<Gate>,
    turn: Option<OwnedSemaphorePermit>,
}

impl Gate {
    /// Makes the gate of an engine that works on `parallel` requests at once and lets `queue_limit`
    /// more wait.
    pub fn new(
        slot: SlotName,
        generation: Generation,
        endpoint: Endpoint,
        parallel: u32,
        queue_limit: u32,
    ) -> Arc<Self> {
        let parallel = usize::try_from(parallel.max(1)).unwrap_or(1);
        let (standing, _) = watch::channel(Standing::Alive);
        Arc::new(Self {
            slot,
            generation,
            parallel,
            queue_limit: usize::try_from(queue_limit).unwrap_or(usize::MAX),
            turns: Arc::new(Semaphore::new(parallel)),
            waiting: AtomicUsize::new(0),
            last_used: Mutex::new(Instant::now()),
            freed: Notify::new(),
            standing,
            pool: Pool::new(endpoint),
        })
    }

    /// Returns how many requests the engine works on.
    pub fn in_flight(&self) -> u32 {
        let busy = self.parallel.saturating_sub(self.turns.available_permits());
        u32::try_from(busy).unwrap_or(u32::MAX)
    }

    /// Returns how long ago the last request ended, or the gate was made.
    pub fn idle_for(&self) -> Duration {
        self.last_used.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Lets nobody in any more; those who wait are sent back to the core.
    pub fn close(&self) {
        self.turns.close();
    }

    /// Resolves once the gate is empty. Close it first.
    pub async fn drained(&self) {
        loop {
            let freed = self.freed.notified();
            if self.in_flight() == 0 {
                return;
            }
            freed.await;
        }
    }

    /// Ends every exchange now, each with an error.
    pub fn cut(&self) {
        self.close();
        self.standing.send_replace(Standing::Cut);
    }

    /// Says that the engine has died.
    pub fn mark_dead(&self) {
        self.close();
        self.standing.send_replace(Standing::Dead);
    }

    pub(super) fn slot(&self) -> &SlotName {
        &self.slot
    }

    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Waits for a turn: in order, at most `patience`, and only if not too many wait.
    pub(super) async fn lease(self: &Arc<Self>, patience: Duration) -> Result<Lease, GateRefusal> {
        let turns = Arc::clone(&self.turns);
        if let Ok(turn) = Arc::clone(&turns).try_acquire_owned() {
            return Ok(Lease { gate: Arc::clone(self), turn: Some(turn) });
        }
        let place = Place::take(self)?;
        let turn = timeout(patience, turns.acquire_owned()).await;
        drop(place);
        match turn {
            Ok(Ok(turn)) => Ok(Lease { gate: Arc::clone(self), turn: Some(turn) }),
            Ok(Err(_)) => Err(GateRefusal::Closed),
            Err(_) => Err(GateRefusal::TimedOut),
        }
    }
}

/// A place in the queue; given back when its client leaves, too.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(gate: &'a Gate) -> Result<Self, GateRefusal> {
        if gate.turns.is_closed() {
            return Err(GateRefusal::Closed);
        }
        let waiting = gate.waiting.fetch_add(1, Ordering::Relaxed);
        let place = Self(&gate.waiting);
        if waiting >= gate.queue_limit { Err(GateRefusal::Full { waiting }) } else { Ok(place) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease {
    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *self.gate.last_used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        // The turn first: whoever is woken must find the gate empty.
        drop(self.turn.take());
        self.gate.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(parallel: u32, queue_limit: u32) -> Arc<Gate> {
        let endpoint = Endpoint::Unix("/nowhere.sock".into());
        Gate::new("chat".parse().unwrap(), Generation(1), endpoint, parallel, queue_limit)
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_gate_queues_then_refuses_then_times_out() {
        let gate = gate(1, 1);
        let first = gate.lease(Duration::from_secs(1)).await.unwrap();
        let (second, third) =
            tokio::join!(gate.lease(Duration::from_secs(1)), gate.lease(Duration::from_secs(1)));
        assert_eq!(second.unwrap_err(), GateRefusal::TimedOut);
        assert_eq!(third.unwrap_err(), GateRefusal::Full { waiting: 1 });
        drop(first);
        assert!(gate.lease(Duration::from_secs(1)).await.is_ok(), "the turn came back");
    }

    #[tokio::test]
    async fn a_closed_gate_is_drained_by_its_last_lease() {
        let gate = gate(2, 1);
        let lease = gate.lease(Duration::from_secs(1)).await.unwrap();
        gate.close();
        assert_eq!(gate.lease(Duration::from_secs(1)).await.unwrap_err(), GateRefusal::Closed);
        assert_eq!(gate.in_flight(), 1);
        tokio::join!(gate.drained(), async { drop(lease) });
        assert_eq!(gate.in_flight(), 0);
    }
}
