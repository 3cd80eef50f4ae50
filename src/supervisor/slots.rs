//! All slots by name, and which of them may look different from when they were last shown.
//!
//! A slot can be changed through this type alone, so that none can change unnoticed: whoever borrows one to
//! change it is taken to have done so.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, btree_map},
};

use super::slot::Slot;
use crate::spec::{Monotime, SlotName};

/// All slots.
#[derive(Debug, Default)]
pub(super) struct Slots {
    all: BTreeMap<SlotName, Slot>,
    /// In any order, and as often as it happened.
    touched: Vec<SlotName>,
    alarms: Alarms,
    /// How many were looked at so far.
    looks: Cell<u64>,
}

/// When slots want to be woken, kept so that nobody has to ask all of them.
#[derive(Debug, Default)]
struct Alarms {
    /// Those whose time may have changed since it was noted.
    stale: Vec<SlotName>,
    of: BTreeMap<SlotName, Monotime>,
    next: BTreeSet<(Monotime, SlotName)>,
}

impl Alarms {
    fn set(&mut self, name: SlotName, at: Option<Monotime>) {
        if self.of.get(&name).copied() == at {
            return;
        }
        if let Some(before) = self.of.remove(&name) {
            self.next.remove(&(before, name.clone()));
        }
        if let Some(at) = at {
            self.of.insert(name.clone(), at);
            self.next.insert((at, name));
        }
    }
}

impl Slots {
    pub(super) fn get(&self, name: &SlotName) -> Option<&Slot> {
        self.look(1);
        self.all.get(name)
    }

    /// Returns a slot that may change from here on.
    pub(super) fn get_mut(&mut self, name: &SlotName) -> Option<&mut Slot> {
        self.look(1);
        let slot = self.all.get_mut(name)?;
        self.touched.push(name.clone());
        self.alarms.stale.push(name.clone());
        Some(slot)
    }

    /// Changes one slot, and notes when it wants to be woken from there on; `None` where there is none.
    pub(super) fn change<T>(
        &mut self,
        name: &SlotName,
        change: impl FnOnce(&mut Slot) -> T,
    ) -> Option<T> {
        self.look(1);
        let slot = self.all.get_mut(name)?;
        self.touched.push(name.clone());
        let before = slot.deadline();
        let outcome = change(slot);
        let after = slot.deadline();
        if before != after {
            self.alarms.set(name.clone(), after);
        }
        Some(outcome)
    }

    pub(super) fn contains_key(&self, name: &SlotName) -> bool {
        self.all.contains_key(name)
    }

    pub(super) fn insert(&mut self, name: SlotName, slot: Slot) {
        self.touched.push(name.clone());
        self.alarms.stale.push(name.clone());
        self.all.insert(name, slot);
    }

    pub(super) fn remove(&mut self, name: &SlotName) -> Option<Slot> {
        self.touched.push(name.clone());
        self.alarms.stale.push(name.clone());
        self.all.remove(name)
    }

    /// Notes that something of a slot has changed that others keep.
    pub(super) fn touch(&mut self, name: &SlotName) {
        self.touched.push(name.clone());
    }

    /// Returns which slots may look different from the last time that this was asked, or are gone.
    pub(super) fn take_touched(&mut self) -> BTreeSet<SlotName> {
        std::mem::take(&mut self.touched).into_iter().collect()
    }

    /// Returns who wants to be woken by `now`, in the order of their names.
    pub(super) fn due(&mut self, now: Monotime) -> Vec<SlotName> {
        self.note_alarms();
        let mut due: Vec<_> = self.noted_due(now).cloned().collect();
        due.sort_unstable();
        due
    }

    /// Returns who had wanted to be woken by `now` when [`Self::note_alarms`] was last told to.
    pub(super) fn noted_due(&self, now: Monotime) -> impl Iterator<Item = &SlotName> {
        self.alarms.next.iter().take_while(move |(at, _)| *at <= now).map(|(_, name)| name)
    }

    /// Notes when those that were changed want to be woken; from there on [`Self::next_alarm`] is right.
    pub(super) fn note_alarms(&mut self) {
        while let Some(name) = self.alarms.stale.pop() {
            let at = self.get(&name).and_then(Slot::deadline);
            self.alarms.set(name, at);
        }
    }

    /// Returns when the first of them wants to be woken.
    pub(super) fn next_alarm(&self) -> Option<Monotime> {
        let next = self.alarms.next.first().map(|(at, _)| *at);
        debug_assert_eq!(next, self.all.values().filter_map(Slot::deadline).min(), "unnoticed");
        next
    }

    pub(super) fn iter(&self) -> btree_map::Iter<'_, SlotName, Slot> {
        self.look(self.all.len());
        self.all.iter()
    }

    pub(super) fn values(&self) -> btree_map::Values<'_, SlotName, Slot> {
        self.look(self.all.len());
        self.all.values()
    }

    pub(super) fn keys(&self) -> btree_map::Keys<'_, SlotName, Slot> {
        self.all.keys()
    }

    /// Returns how many slots were looked at so far, one as often as it was.
    pub(super) fn looks(&self) -> u64 {
        self.looks.get()
    }

    fn look(&self, at: usize) {
        let at = u64::try_from(at).unwrap_or(u64::MAX);
        self.looks.set(self.looks.get().saturating_add(at));
    }
}

impl<'a> IntoIterator for &'a Slots {
    type Item = (&'a SlotName, &'a Slot);
    type IntoIter = btree_map::Iter<'a, SlotName, Slot>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for Slots {
    type Item = (SlotName, Slot);
    type IntoIter = btree_map::IntoIter<SlotName, Slot>;

    fn into_iter(self) -> Self::IntoIter {
        self.all.into_iter()
    }
}
