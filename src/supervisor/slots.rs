//! All slots by name, and which of them may look different from when they were last shown.
//!
//! A slot can be changed through this type alone, so that none can change unnoticed: whoever borrows one to
//! change it is taken to have done so.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, btree_map},
};

use super::slot::Slot;
use crate::spec::SlotName;

/// All slots.
#[derive(Debug, Default)]
pub(super) struct Slots {
    all: BTreeMap<SlotName, Slot>,
    touched: BTreeSet<SlotName>,
    /// How many were looked at so far.
    looks: Cell<u64>,
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
        self.touched.insert(name.clone());
        Some(slot)
    }

    pub(super) fn contains_key(&self, name: &SlotName) -> bool {
        self.all.contains_key(name)
    }

    pub(super) fn insert(&mut self, name: SlotName, slot: Slot) {
        self.touched.insert(name.clone());
        self.all.insert(name, slot);
    }

    pub(super) fn remove(&mut self, name: &SlotName) -> Option<Slot> {
        self.touched.insert(name.clone());
        self.all.remove(name)
    }

    /// Notes that something of a slot has changed that others keep.
    pub(super) fn touch(&mut self, name: &SlotName) {
        self.touched.insert(name.clone());
    }

    /// Returns which slots may look different from the last time that this was asked, or are gone.
    pub(super) fn take_touched(&mut self) -> BTreeSet<SlotName> {
        std::mem::take(&mut self.touched)
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
