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
    names: BTreeMap<String, SlotName>,
    slots: BTreeMap<SlotName, Route>,
    /// What a client may ask for, as it is listed: slots first, then aliases.
    listed: Vec<(String, SlotName)>,
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

    /// Gives out the names: slots win over aliases, those over models, those over capabilities.
    fn name_all(&mut self) {
        for name in self.slots.keys() {
            self.names.insert(name.to_string(), name.clone());
            self.listed.push((name.to_string(), name.clone()));
        }
        for (name, route) in &self.slots {
            for alias in &route.profile.aliases {
                if self.names.insert_if_free(alias, name) {
                    self.listed.push((alias.clone(), name.clone()));
                }
            }
        }
        self.name_models();
        self.name_capabilities();
    }

    /// Slots that serve the same model are one route: a ready one first.
    fn name_models(&mut self) {
        for must_be_ready in [true, false] {
            for (name, route) in &self.slots {
                if let Some(model) = route.profile.model_name()
                    && (route.gate.is_some() || !must_be_ready)
                {
                    self.names.insert_if_free(&model, name);
                }
            }
        }
    }

    /// A slot whose profile names the capability stands before one that is offered for anything, a
    /// ready one before one that is not.
    fn name_capabilities(&mut self) {
        for capability in Capability::ALL {
            let best =
                self.slots.values().filter(|route| route.profile.offers(capability)).min_by_key(
                    |route| (route.profile.capabilities.is_empty(), route.gate.is_none()),
                );
            if let Some(slot) = best.map(|route| route.slot.clone()) {
                self.names.insert_if_free(capability.as_str(), &slot);
            }
        }
    }

    /// Finds the slot that a name leads to.
    pub(super) fn find(&self, name: &str) -> Option<&Route> {
        self.slots.get(self.names.get(name)?)
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

trait InsertIfFree {
    /// Inserts a name unless it is taken; says whether it was free.
    fn insert_if_free(&mut self, name: &str, slot: &SlotName) -> bool;
}

impl InsertIfFree for BTreeMap<String, SlotName> {
    fn insert_if_free(&mut self, name: &str, slot: &SlotName) -> bool {
        let is_free = !self.contains_key(name);
        if is_free {
            self.insert(name.to_owned(), slot.clone());
        }
        is_free
    }
}
