//! Which of several slots a request goes to.
//!
//! 1. Of ready ones, the one that knows the prompt's beginning, while it has a free seat or no other
//!    is less busy.
//! 2. Else the least busy one; of equals, each in its turn.
//! 3. None is ready: those that are on their way are waited for, the first to be ready counts.
//! 4. None is on its way: they are asked in order until one is granted.
//! 5. All that are ready are full: one more is asked to load, if they share a named route.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::future::select_ok;

use super::{
    Shared,
    affinity::{Affinity, Beginnings},
    gate::Gate,
    routes::{Replicas, RouteTable},
};
use crate::{spec::SlotName, supervisor::Refusal};

/// The slots of one request, and what it is known by among them.
#[derive(Clone, Debug)]
pub(super) struct Candidates {
    /// The one that the request would go to alone. It speaks for all where none has been chosen.
    pub(super) first: SlotName,
    /// All of them.
    slots: Arc<[SlotName]>,
    may_spill: bool,
    beginnings: Beginnings,
    /// Whether a stream that breaks is to be continued.
    pub(super) resume: bool,
}

/// What is remembered from one choice to the next.
#[derive(Debug, Default)]
pub struct Choices {
    affinity: Affinity,
    turn: AtomicUsize,
}

/// How far a slot that is not ready is from being so.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Distance {
    OnItsWay,
    Down,
    Leaving,
    Failed,
}

impl Candidates {
    /// Makes them for a request with this body.
    pub(super) fn new(replicas: &Replicas<'_>, body: &[u8]) -> Self {
        let has_choice = replicas.slots.len() > 1;
        let beginnings = if has_choice { Beginnings::of(body) } else { Beginnings::default() };
        Self {
            first: replicas.first.slot.clone(),
            slots: replicas.slots.into(),
            may_spill: replicas.may_spill,
            beginnings,
            resume: replicas.first.profile.resume,
        }
    }

    /// Returns all of the slots.
    pub(super) fn slots(&self) -> &[SlotName] {
        &self.slots
    }

    /// Returns the open gate that the request is to go through; `None` while no slot is ready.
    pub(super) fn choose(&self, shared: &Shared) -> Option<Arc<Gate>> {
        let table = shared.routes.load();
        if let [slot] = &*self.slots {
            return table.slot(slot)?.gate.clone();
        }
        let gates: Vec<&Arc<Gate>> = self
            .slots
            .iter()
            .filter_map(|slot| table.slot(slot)?.gate.as_ref())
            .filter(|gate| !gate.is_closed())
            .collect();
        let gate = self.known(shared, &gates).or_else(|| shared.choices.least_busy(&gates))?;
        shared.choices.affinity.note(&self.beginnings, gate.slot(), gate.generation());
        Some(Arc::clone(gate))
    }

    /// Waits until the core knows of every engine that has ended.
    pub(super) async fn judged(&self, shared: &Shared) {
        let ended: Vec<Arc<Gate>> = {
            let table = shared.routes.load();
            let gates = self.slots.iter().filter_map(|slot| table.slot(slot)?.gate.as_ref());
            gates.filter(|gate| gate.awaits_verdict()).map(Arc::clone).collect()
        };
        for gate in ended {
            gate.judged().cancelled().await;
        }
    }

    /// Tells whether one of the slots is ready, `other` apart.
    pub(super) fn has_another(&self, shared: &Shared, other: &Gate) -> bool {
        let table = shared.routes.load();
        let gates = self.slots.iter().filter_map(|slot| table.slot(slot)?.gate.as_ref());
        gates.into_iter().any(|gate| gate.slot() != other.slot() && !gate.is_closed())
    }

    /// (1)
    fn known<'a>(&self, shared: &Shared, gates: &[&'a Arc<Gate>]) -> Option<&'a Arc<Gate>> {
        let (slot, generation) = shared.choices.affinity.find(&self.beginnings)?;
        let is_it = |gate: &&&Arc<Gate>| *gate.slot() == slot && gate.generation() == generation;
        let known = *gates.iter().find(is_it)?;
        let least = gates.iter().map(|gate| gate.load()).min().unwrap_or(0);
        let is_worth_it = known.has_seat() || known.load() <= least;
        is_worth_it.then_some(known)
    }

    /// (2)
    /// Asks the core for an engine: resolves when one is ready, or with the last refusal. (3) (4)
    pub(super) async fn ask(&self, shared: &Shared) -> Result<(), (SlotName, Refusal)> {
        let mut slots = self.by_distance(&shared.routes.load());
        let on_their_way =
            slots.iter().take_while(|(distance, _)| *distance == Distance::OnItsWay).count();
        let rest = slots.split_off(on_their_way);
        let mut refusal = None;
        if !slots.is_empty() {
            let asked = slots.into_iter().map(|(_, slot)| Box::pin(granted(shared, slot)));
            match select_ok(asked).await {
                Ok(((), _)) => return Ok(()),
                Err(nearest) => refusal = Some(nearest),
            }
        }
        for (_, slot) in rest {
            match granted(shared, slot).await {
                Ok(()) => return Ok(()),
                // What the nearest one said is what helps.
                Err(said) => refusal = refusal.or(Some(said)),
            }
        }
        Err(refusal.unwrap_or_else(|| (self.first.clone(), Refusal::SlotGone)))
    }

    /// Has one more slot loaded if all that are ready are full. Nobody waits for it. (5)
    pub(super) async fn spill(&self, shared: &Shared) {
        if !self.may_spill {
            return;
        }
        let slot = {
            let table = shared.routes.load();
            let has_room = self
                .slots
                .iter()
                .filter_map(|slot| table.slot(slot)?.gate.as_ref())
                .any(|gate| gate.has_seat());
            let next = self.by_distance(&table).into_iter().next();
            next.filter(|(distance, _)| !has_room && *distance == Distance::Down)
        };
        if let Some((_, slot)) = slot {
            drop(shared.mailbox.ask(&slot).await);
        }
    }

    /// Returns the slots that are not ready, the nearest first.
    fn by_distance(&self, table: &RouteTable) -> Vec<(Distance, SlotName)> {
        let distance = |slot: &SlotName| {
            let route = table.slot(slot)?;
            let is_ready = route.gate.as_ref().is_some_and(|gate| !gate.is_closed());
            (!is_ready || self.slots.len() == 1).then_some(match route.state {
                "starting" | "unready" | "ready" => Distance::OnItsWay,
                "offline" | "backoff" => Distance::Down,
                "failed" => Distance::Failed,
                _ => Distance::Leaving,
            })
        };
        let slots = self.slots.iter();
        let mut slots: Vec<_> =
            slots.filter_map(|slot| Some((distance(slot)?, slot.clone()))).collect();
        // Stable: of equals the first one of the route.
        slots.sort_by_key(|(distance, _)| *distance);
        slots
    }
}

impl Choices {
    /// (2)
    fn least_busy<'a>(&self, gates: &[&'a Arc<Gate>]) -> Option<&'a Arc<Gate>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % gates.len().max(1);
        let in_turn = gates.iter().cycle().skip(turn).take(gates.len());
        in_turn.copied().min_by_key(|gate| gate.load())
    }
}

async fn granted(shared: &Shared, slot: SlotName) -> Result<(), (SlotName, Refusal)> {
    shared.mailbox.ask(&slot).await.await.map_err(|refusal| (slot, refusal))
}
