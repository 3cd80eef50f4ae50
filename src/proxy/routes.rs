//! The routing table: which name leads to which slot, and whether its engine takes requests.
//!
//! Built whole from a snapshot, never changed: a reader sees all of one moment.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::gate::Gate;
use crate::{
    spec::{
        Bytes, Monotime, SlotName,
        ladder::RungView,
        profile::{Capability, Profile},
    },
    supervisor::{Snapshot, StateView, Wait},
};

/// All routes at one moment.
#[derive(Debug, Default)]
pub struct RouteTable {
    names: BTreeMap<String, Name>,
    slots: BTreeMap<SlotName, Route>,
    /// Slots that stand in for others: no name leads to their own engines.
    stand_ins: BTreeMap<SlotName, Route>,
    /// What a client may ask for, as it is listed: slots first, then aliases, then routes.
    listed: Vec<(String, SlotName)>,
}

/// Where a name leads.
#[derive(Clone, Debug, Default)]
struct Name {
    /// At least one; the first is the one that the name would lead to alone.
    slots: Vec<SlotName>,
    may_spill: bool,
}

/// The slots that may serve a request, at least one.
#[derive(Clone, Debug)]
pub(super) struct Replicas<'a> {
    /// The one that it would go to alone.
    pub(super) first: &'a Route,
    /// All of them, `first` in front.
    pub(super) slots: &'a [SlotName],
    /// Whether another one is to be loaded when all that are ready are full: they share a route that
    /// profiles name.
    pub(super) may_spill: bool,
}

/// One slot as the endpoint sees it.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) slot: SlotName,
    pub(super) profile: Arc<Profile>,
    pub(super) state: &'static str,
    pub(super) engine: Option<String>,
    /// What its model does alone, where that is known and the profile does not say.
    pub(super) sole: Option<Capability>,
    pub(super) percent: Option<u8>,
    pub(super) rung: Option<RungView>,
    /// Restarts after deaths, resident memory, requests that wait for the slot.
    pub(super) restarts: u32,
    pub(super) rss: Option<Bytes>,
    pub(super) waiting: usize,
    /// What it is counted with of each GPU's memory.
    pub(super) promised_gpus: BTreeMap<u32, Bytes>,
    /// What it waits for, while it stands in line for memory.
    pub(super) wait: Option<Wait>,
    /// How long a load takes, by earlier ones.
    pub(super) load: Option<Duration>,
    /// When the load that goes on, or the next one, began or begins; `None` without one.
    began: Option<Monotime>,
    /// When it should have ended, once [`RouteTable::timed`] has said so.
    ready_by: Option<Instant>,
    /// The open gate that its requests go through: of its own engine, if that is ready, or of the one that stands
    /// in for it, which goes first.
    pub(super) gate: Option<Arc<Gate>>,
    /// The open gate of its own engine, if that is ready.
    pub(super) own_gate: Option<Arc<Gate>>,
}

impl Route {
    /// Returns the gates of its own engine and of the one that stands in for it.
    pub(super) fn gates(&self) -> impl Iterator<Item = &Arc<Gate>> {
        let is_other =
            |gate: &&Arc<Gate>| self.own_gate.as_ref().is_none_or(|own| !Arc::ptr_eq(own, gate));
        self.own_gate.iter().chain(self.gate.iter().filter(is_other))
    }

    /// Tells whether a request for `capability` that names the slot is passed on: what its model was found to do
    /// alone decides for nobody who names it. The model may be another one since, and its engine knows.
    pub(super) fn takes(&self, capability: Capability) -> bool {
        self.profile.offers(capability) || self.sole == Some(capability)
    }

    /// Tells whether the slot is shown to those who look for `capability`, and given to those who name none.
    pub(super) fn offers(&self, capability: Capability) -> bool {
        self.sole.map_or_else(|| self.profile.offers(capability), |sole| sole == capability)
    }

    /// Tells whether the slot is a likely one for `capability`.
    fn may(&self, capability: Capability) -> bool {
        self.sole.map_or_else(|| self.profile.may(capability), |sole| sole == capability)
    }

    /// Returns the word for its engine: the one that runs, else the profile's.
    pub(super) fn engine_word(&self) -> &str {
        self.engine.as_deref().unwrap_or(self.profile.engine.as_str())
    }
}

impl RouteTable {
    /// Builds the table. `gates` are those of live engines; only a ready slot's is used.
    pub fn build(snapshot: &Snapshot, gates: &BTreeMap<SlotName, Arc<Gate>>) -> Self {
        let mut table = Self::default();
        for (name, view) in &snapshot.slots {
            let is_ready = view.state.takes_requests();
            let gate = gates
                .get(name)
                .filter(|gate| is_ready && gate.generation() == view.generation)
                .map(Arc::clone);
            let (percent, began) = match view.state {
                StateView::Starting { percent, .. } => (percent, Some(view.since)),
                StateView::Coming { percent } => (percent, None),
                StateView::Backoff { retry_at } => (None, Some(retry_at)),
                StateView::Offline
                | StateView::Queued { .. }
                | StateView::Ready { .. }
                | StateView::Unready { .. }
                | StateView::Draining { .. }
                | StateView::Stopping { .. }
                | StateView::Reaping { .. }
                | StateView::Failed
                | StateView::Absent { .. }
                | StateView::Present { .. }
                | StateView::Parting => (None, None),
            };
            let route = Route {
                slot: name.clone(),
                profile: Arc::clone(&view.profile),
                state: view.state.as_str(),
                engine: view.engine.as_ref().map(|engine| engine.name.clone()),
                sole: view.sole(),
                percent,
                rung: view.rung.clone(),
                restarts: view.restarts,
                rss: view.state.pid().and(view.rss),
                waiting: view.waiting,
                promised_gpus: view
                    .promised
                    .as_ref()
                    .map_or_else(BTreeMap::new, |of| of.gpus.clone()),
                wait: waited_for(&view.state),
                load: view.expected_load,
                began,
                ready_by: None,
                own_gate: gate.clone(),
                gate,
            };
            let has_file = name.stands_in_for().is_none();
            let among = if has_file { &mut table.slots } else { &mut table.stand_ins };
            among.insert(name.clone(), route);
        }
        table.relieve();
        table.name_all();
        table
    }

    /// Sends requests of slots that a ready one stands in for there: all of them, so that nobody is served by the
    /// earlier engine after somebody was by the later one.
    fn relieve(&mut self) {
        for (name, stand_in) in &self.stand_ins {
            let slot = name.stands_in_for().and_then(|slot| self.slots.get_mut(&slot));
            if let (Some(slot), Some(gate)) = (slot, &stand_in.gate) {
                slot.gate = Some(Arc::clone(gate));
            }
        }
    }

    /// Says when each load should have ended. `instant` makes the timer's moment of one of the core's.
    #[must_use]
    pub fn timed(mut self, instant: impl Fn(Monotime) -> Instant) -> Self {
        for route in self.slots.values_mut() {
            let times = route.began.zip(route.load);
            route.ready_by = times.map(|(began, load)| instant(began.after(load)));
        }
        self
    }

    /// Gives out the names: slots win over aliases, those over routes, those over models, those over
    /// capabilities.
    fn name_all(&mut self) {
        for name in self.slots.keys() {
            self.names.insert(name.to_string(), Name::alone(name));
            self.listed.push((name.to_string(), name.clone()));
        }
        for name in self.stand_ins.keys() {
            let leads = name.stands_in_for().filter(|slot| self.slots.contains_key(slot));
            if let Some(slot) = leads {
                self.names.insert(name.to_string(), Name::alone(&slot));
            }
        }
        for (name, route) in &self.slots {
            for alias in &route.profile.aliases {
                if !self.names.contains_key(alias) {
                    self.names.insert(alias.clone(), Name::alone(name));
                    self.listed.push((alias.clone(), name.clone()));
                }
            }
        }
        self.name_routes();
        self.name_models();
        self.name_capabilities();
    }

    fn name_routes(&mut self) {
        let mut shared: BTreeMap<String, Name> = BTreeMap::new();
        for must_be_ready in [true, false] {
            for (slot, route) in &self.slots {
                for name in route.profile.routes.iter().filter(|_| route.is_in(must_be_ready)) {
                    let name = shared.entry(name.clone()).or_default();
                    name.slots.push(slot.clone());
                    name.may_spill = true;
                }
            }
        }
        for (name, leads) in shared {
            if let (false, Some(first)) = (self.names.contains_key(&name), leads.slots.first()) {
                self.listed.push((name.clone(), first.clone()));
                self.names.insert(name, leads);
            }
        }
    }

    /// Slots that serve the same model are one route: ready ones first.
    fn name_models(&mut self) {
        let mut models: BTreeMap<String, Name> = BTreeMap::new();
        for must_be_ready in [true, false] {
            for (slot, route) in &self.slots {
                if let Some(model) = route.profile.model_name()
                    && route.is_in(must_be_ready)
                {
                    models.entry(model).or_default().slots.push(slot.clone());
                }
            }
        }
        for (name, leads) in models {
            self.names.entry(name).or_insert(leads);
        }
    }

    /// A slot whose profile names the capability stands before one that is offered for anything, a
    /// ready one before one that is not. Different models do not take turns: one is meant.
    fn name_capabilities(&mut self) {
        for capability in Capability::ALL {
            let best =
                self.slots.values().filter(|route| route.may(capability)).min_by_key(|route| {
                    (route.profile.capabilities.is_empty(), route.gate.is_none())
                });
            if let Some(slot) = best.map(|route| &route.slot) {
                let leads = Name::alone(slot);
                self.names.entry(capability.as_str().to_owned()).or_insert(leads);
            }
        }
    }

    /// Finds the slot that a name leads to; of several, the one that comes first.
    pub(super) fn find(&self, name: &str) -> Option<&Route> {
        self.replicas(name).map(|replicas| replicas.first)
    }

    /// Finds the slots that a name leads to.
    pub(super) fn replicas(&self, name: &str) -> Option<Replicas<'_>> {
        let name = self.names.get(name)?;
        let first = self.slots.get(name.slots.first()?)?;
        Some(Replicas { first, slots: &name.slots, may_spill: name.may_spill })
    }

    /// Finds the slot of a request that names none: of those that are fit, the only one whose profile
    /// names the capability, else the only one that may be used for it.
    pub(super) fn only(
        &self,
        capability: Capability,
        is_fit: impl Fn(&Route) -> bool,
    ) -> Option<&Route> {
        let fit: Vec<&Route> = self.slots.values().filter(|route| is_fit(route)).collect();
        let the_only = |is_meant: &dyn Fn(&Route) -> bool| {
            let mut meant = fit.iter().filter(|route| is_meant(route));
            meant.next().filter(|_| meant.next().is_none()).copied()
        };
        the_only(&|route| route.profile.capabilities.contains(&capability))
            .or_else(|| the_only(&|route| route.may(capability)))
    }

    /// Returns the slots that are fit and offered for a capability.
    pub(super) fn offered(
        &self,
        capability: Capability,
        is_fit: impl Fn(&Route) -> bool,
    ) -> impl Iterator<Item = &Route> {
        self.slots.values().filter(move |route| is_fit(route) && route.offers(capability))
    }

    /// Returns how many requests a slot's engine works on; `None` while none is ready.
    pub fn in_flight(&self, slot: &SlotName) -> Option<u32> {
        Some(self.slot(slot)?.own_gate.as_ref()?.in_flight())
    }

    /// Returns how long a slot's engine has had no request; `None` while none is ready, nothing while it works.
    pub fn idle_for(&self, slot: &SlotName) -> Option<Duration> {
        Some(self.slot(slot)?.own_gate.as_ref()?.idle_for())
    }

    /// Returns a slot by its own name.
    pub(super) fn slot(&self, slot: &SlotName) -> Option<&Route> {
        self.slots.get(slot).or_else(|| self.stand_ins.get(slot))
    }

    /// Returns every slot but those that stand in for others.
    pub(super) fn slots(&self) -> impl Iterator<Item = (&SlotName, &Route)> {
        self.slots.iter()
    }

    /// Returns every name that is listed, with its slot.
    pub(super) fn listed(&self) -> impl Iterator<Item = (&str, &Route)> {
        self.listed.iter().filter_map(|(name, slot)| Some((name.as_str(), self.slots.get(slot)?)))
    }

    /// Returns the listed name nearest to `name`, if one is near.
    pub(super) fn nearest(&self, name: &str) -> Option<&str> {
        self.listed()
            .map(|(listed, _)| (strsim::jaro_winkler(listed, name), listed))
            .filter(|(likeness, _)| *likeness > 0.8)
            .max_by(|(a, _), (b, _)| a.total_cmp(b))
            .map(|(_, listed)| listed)
    }
}

impl Name {
    fn alone(slot: &SlotName) -> Self {
        Self { slots: vec![slot.clone()], may_spill: false }
    }
}

fn waited_for(state: &StateView) -> Option<Wait> {
    let StateView::Queued { wait, .. } = state else { return None };
    Some(wait.clone())
}

impl Route {
    /// Returns how long the slot should still take to be ready, by its earlier loads; `None` where they
    /// say nothing, or this one takes longer than they did.
    pub(super) fn eta(&self, now: Instant) -> Option<Duration> {
        match self.ready_by {
            Some(by) => by.checked_duration_since(now).filter(|eta| !eta.is_zero()),
            None => self.load,
        }
    }

    /// Tells whether the slot is ready, or not, as `is_ready` says.
    fn is_in(&self, is_ready: bool) -> bool {
        self.gate.is_some() == is_ready
    }
}
