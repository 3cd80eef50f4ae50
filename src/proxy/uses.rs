//! How often and how lately slots were used: kept over restarts, for who is loaded first and who makes room.
//!
//! A use is a request whose answer came whole: what a client has to try again counts once, however often it
//! tries. One that only looks at an engine is none.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::WallClock;
use crate::spec::SlotName;

/// The uses of all slots.
#[derive(Debug)]
pub struct Uses {
    clock: WallClock,
    slots: Mutex<BTreeMap<SlotName, Arc<Use>>>,
}

/// The uses of one slot, by whichever engine.
#[derive(Debug)]
pub struct Use {
    clock: WallClock,
    count: AtomicU64,
    last_unix_ms: AtomicU64,
}

impl Uses {
    /// Makes an empty record. `clock` tells the milliseconds since 1970.
    pub fn new(clock: WallClock) -> Self {
        Self { clock, slots: Mutex::default() }
    }

    /// Takes up what was known of a slot: how often it was used, and when last, in milliseconds since 1970.
    pub fn recall(&self, slot: &SlotName, (count, last_unix_ms): (u64, u64)) {
        let known = self.of(slot);
        known.count.store(count, Ordering::Relaxed);
        known.last_unix_ms.store(last_unix_ms, Ordering::Relaxed);
    }

    /// Returns the uses of a slot, which go on being counted.
    pub fn of(&self, slot: &SlotName) -> Arc<Use> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || {
            let (count, last_unix_ms) = (AtomicU64::new(0), AtomicU64::new(0));
            Arc::new(Use { clock: self.clock, count, last_unix_ms })
        };
        Arc::clone(slots.entry(slot.clone()).or_insert_with(made))
    }

    /// Returns how often each slot was used, and when last, in milliseconds since 1970; without those that were
    /// not.
    pub fn all(&self) -> BTreeMap<SlotName, (u64, u64)> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let used = slots.iter().map(|(slot, known)| (slot.clone(), known.read()));
        used.filter(|(_, (count, _))| *count > 0).collect()
    }
}

impl Use {
    /// Counts one more.
    pub(super) fn note(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.last_unix_ms.store((self.clock)(), Ordering::Relaxed);
    }

    /// Returns how long ago the last one was; `None` without one.
    pub(super) fn ago(&self) -> Option<Duration> {
        let (count, last_unix_ms) = self.read();
        (count > 0).then(|| Duration::from_millis((self.clock)().saturating_sub(last_unix_ms)))
    }

    fn read(&self) -> (u64, u64) {
        (self.count.load(Ordering::Relaxed), self.last_unix_ms.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_counted_from_where_they_were() {
        let uses = Uses::new(|| 5_000);
        let (chat, other): (SlotName, SlotName) = ("chat".parse().unwrap(), "x".parse().unwrap());
        uses.recall(&chat, (3, 1_000));
        assert_eq!(uses.of(&chat).ago(), Some(Duration::from_secs(4)));
        uses.of(&chat).note();
        assert_eq!(uses.of(&other).ago(), None);
        assert_eq!(uses.all(), BTreeMap::from([(chat, (4, 5_000))]));
    }
}
