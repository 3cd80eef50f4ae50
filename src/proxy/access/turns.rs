//! How many requests each key has in flight, where that is bounded.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counts by the names of keys; the default has counted nothing.
#[derive(Debug, Default)]
pub struct Turns {
    keys: Mutex<BTreeMap<Arc<str>, Counts>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    in_flight: u32,
    refused: u64,
}

/// One request of a key. Counted until the last who holds it lets go.
#[derive(Debug)]
pub(in super::super) struct Turn {
    key: Arc<str>,
    turns: Arc<Turns>,
}

impl Turns {
    /// Takes one of `most` turns of a key; `None` if all are taken, which is counted.
    pub(in super::super) fn take(self: &Arc<Self>, key: &Arc<str>, most: u32) -> Option<Arc<Turn>> {
        let turn = self.try_take(key, most);
        if turn.is_none() {
            let mut keys = self.keys();
            let counts = keys.entry(Arc::clone(key)).or_default();
            counts.refused = counts.refused.saturating_add(1);
        }
        turn
    }

    /// Takes one of `most` turns of a key; `None` if all are taken, which is nobody's news.
    pub(in super::super) fn try_take(
        self: &Arc<Self>,
        key: &Arc<str>,
        most: u32,
    ) -> Option<Arc<Turn>> {
        let mut keys = self.keys();
        let counts = keys.entry(Arc::clone(key)).or_default();
        if counts.in_flight >= most {
            return None;
        }
        counts.in_flight = counts.in_flight.saturating_add(1);
        Some(Arc::new(Turn { key: Arc::clone(key), turns: Arc::clone(self) }))
    }

    /// Returns how many requests each key was refused for it had too many.
    pub(in super::super) fn refused(&self) -> Vec<(Arc<str>, u64)> {
        let keys = self.keys();
        keys.iter().map(|(key, counts)| (Arc::clone(key), counts.refused)).collect()
    }

    fn keys(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Counts>> {
        // A panic elsewhere cannot leave a count half changed: each use is one step.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(counts) = self.turns.keys().get_mut(&self.key) {
            counts.in_flight = counts.in_flight.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_given_back_by_the_last_who_holds_it() {
        let (turns, key): (Arc<Turns>, Arc<str>) = (Arc::default(), "laptop".into());
        let first = turns.take(&key, 1).unwrap();
        let other = Arc::clone(&first);
        drop(first);
        assert!(turns.take(&key, 1).is_none());
        assert!(turns.take(&"phone".into(), 1).is_some(), "another key has turns of its own");
        drop(other);
        assert!(turns.take(&key, 1).is_some());
        assert_eq!(turns.refused(), [("laptop".into(), 1), ("phone".into(), 0)]);
    }
}
