//! Requests that were in flight when an engine died of them, perhaps.
//!
//! One that was there twice is refused: it would only take the next engine down too. An answer clears
//! it of suspicion, and time does.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::record::Fingerprint;
use crate::spec::{Generation, SlotName};

/// How many engines a request must have seen die.
const DEATHS: usize = 2;
/// How long a request is under suspicion after its last death.
const TERM: Duration = Duration::from_mins(10);
/// The most suspects that are kept; the oldest go first.
const MOST: usize = 512;

/// Requests under suspicion. No request takes the lock while there is none.
#[derive(Debug, Default)]
pub struct Suspects {
    any: AtomicBool,
    list: Mutex<Vec<Suspect>>,
}

#[derive(Debug)]
struct Suspect {
    slot: SlotName,
    request: Fingerprint,
    /// The engines that died with it in flight.
    dead: Vec<Generation>,
    since: Instant,
}

impl Suspects {
    /// Notes that an engine died with these requests in flight.
    pub(super) fn note(
        &self,
        slot: &SlotName,
        generation: Generation,
        requests: impl IntoIterator<Item = Fingerprint>,
    ) {
        let now = Instant::now();
        let mut list = self.list();
        list.retain(|suspect| now.duration_since(suspect.since) < TERM);
        for request in requests {
            let known =
                list.iter_mut().find(|known| known.request == request && known.slot == *slot);
            let Some(known) = known else {
                let slot = slot.clone();
                list.push(Suspect { slot, request, dead: vec![generation], since: now });
                continue;
            };
            known.since = now;
            if !known.dead.contains(&generation) {
                known.dead.push(generation);
            }
        }
        let excess = list.len().saturating_sub(MOST);
        list.drain(..excess);
        self.any.store(!list.is_empty(), Ordering::Relaxed);
    }

    /// Clears a request of suspicion: it was answered.
    pub(super) fn clear(&self, slot: &SlotName, request: Fingerprint) {
        if self.any.load(Ordering::Relaxed) {
            let mut list = self.list();
            list.retain(|known| known.request != request || known.slot != *slot);
            self.any.store(!list.is_empty(), Ordering::Relaxed);
        }
    }

    /// Tells whether a request has taken as many engines down as may be.
    pub(super) fn is_guilty(&self, slot: &SlotName, request: Fingerprint) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let now = Instant::now();
        self.list().iter().any(|known| {
            let is_it = known.request == request && known.slot == *slot;
            is_it && known.dead.len() >= DEATHS && now.duration_since(known.since) < TERM
        })
    }

    fn list(&self) -> MutexGuard<'_, Vec<Suspect>> {
        // A panic elsewhere cannot leave the list half changed.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_engines_make_a_request_guilty_and_time_or_an_answer_clears_it() {
        let suspects = Suspects::default();
        let (chat, other): (SlotName, SlotName) = ("chat".parse().unwrap(), "b".parse().unwrap());
        let request = Fingerprint::of(b"{}");
        suspects.note(&chat, Generation(1), [request]);
        suspects.note(&chat, Generation(1), [request]);
        assert!(!suspects.is_guilty(&chat, request), "one engine died once");
        suspects.note(&chat, Generation(2), [request]);
        assert!(suspects.is_guilty(&chat, request));
        assert!(!suspects.is_guilty(&other, request), "another slot's engine is another");
        assert!(!suspects.is_guilty(&chat, Fingerprint::of(b"{ }")));
        tokio::time::advance(TERM).await;
        assert!(!suspects.is_guilty(&chat, request));
        suspects.note(&chat, Generation(3), [request]);
        suspects.clear(&chat, request);
        suspects.note(&chat, Generation(4), [request]);
        assert!(!suspects.is_guilty(&chat, request), "an answer came in between");
    }
}
