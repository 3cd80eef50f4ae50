//! The routing table: which name leads to which slot, and whether its engine takes requests.
//!
//! Built whole from a snapshot, never changed: a reader sees all of one moment.

use std::{collections::BTreeMap, sync::Arc};

use super::gate::Gate;
use crate::{
    spec::{
        SlotName,
        ladder::RungView,
        profile::{Capability, Profile},
    },
    supervisor::{Snapshot, StateView},
};

/// All routes at one moment.
#[derive(Debug, Default)]
pub struct RouteTable {
    names: BTreeMap<String, Name>,
    slots: BTreeMap<SlotName, Route>,
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
    pub(super) percent: Option<u8>,
    pub(super) rung: Option<RungView>,
    /// The open gate of a ready engine.
    pub(super) gate: Option<Arc<Gate>>,
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
            let percent = match view.state {
                StateView::Starting { percent, .. } | StateView::Coming { percent } => percent,
                StateView::Offline
                | StateView::Ready { .. }
                | StateView::Unready { .. }
                | StateView::Draining { .. }
                | StateView::Stopping { .. }
                | StateView::Reaping { .. }
                | StateView::Backoff { .. }
                | StateView::Failed
                | StateView::Absent { .. }
                | StateView::Present { .. }
                | StateView::Parting => None,
            };
            let route = Route {
                slot: name.clone(),
                profile: Arc::clone(&view.profile),
                state: view.state.as_str(),
                engine: view.engine.as_ref().map(|engine| engine.name.clone()),
                percent,
                rung: view.rung.clone(),
                gate,
            };
            table.slots.insert(name.clone(), route);
        }
        table.name_all();
        table
    }

    /// Gives out the names: slots win over aliases, those over routes, those over models, those over
    /// capabilities.
    fn name_all(&mut self) {
        for name in self.slots.keys() {
            self.names.insert(name.to_string(), Name::alone(name));
            self.listed.push((name.to_string(), name.clone()));
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
                self.slots.values().filter(|route| route.profile.offers(capability)).min_by_key(
                    |route| (route.profile.capabilities.is_empty(), route.gate.is_none()),
                );
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

    /// Returns how many requests a slot's engine works on; `None` while none is ready.
    pub fn in_flight(&self, slot: &SlotName) -> Option<u32> {
        Some(self.slots.get(slot)?.gate.as_ref()?.in_flight())
    }

    /// Returns a slot by its own name.
    pub(super) fn slot(&self, slot: &SlotName) -> Option<&Route> {
        self.slots.get(slot)
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

impl Route {
    /// Tells whether the slot is ready, or not, as `is_ready` says.
    fn is_in(&self, is_ready: bool) -> bool {
        self.gate.is_some() == is_ready
    }
}
