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
    request: Fingerprint,
    /// The engines that died with it in flight: one slot's, or those of several that share a name.
    dead: Vec<(SlotName, Generation)>,
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
            let engine = (slot.clone(), generation);
            let Some(known) = list.iter_mut().find(|known| known.request == request) else {
                list.push(Suspect { request, dead: vec![engine], since: now });
                continue;
            };
            known.since = now;
            if !known.dead.contains(&engine) {
                known.dead.push(engine);
            }
        }
        let excess = list.len().saturating_sub(MOST);
        list.drain(..excess);
        self.any.store(!list.is_empty(), Ordering::Relaxed);
    }

    /// Clears a request of suspicion: it was answered.
    pub(super) fn clear(&self, request: Fingerprint) {
        if self.any.load(Ordering::Relaxed) {
            let mut list = self.list();
            list.retain(|known| known.request != request);
            self.any.store(!list.is_empty(), Ordering::Relaxed);
        }
    }

    /// Tells whether a request has taken as many engines down as may be.
    pub(super) fn is_guilty(&self, request: Fingerprint) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let now = Instant::now();
        self.list().iter().any(|known| {
            let is_it = known.request == request && known.dead.len() >= DEATHS;
            is_it && now.duration_since(known.since) < TERM
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
        assert!(!suspects.is_guilty(request), "one engine died once");
        suspects.note(&chat, Generation(2), [request]);
        assert!(suspects.is_guilty(request));
        assert!(!suspects.is_guilty(Fingerprint::of(b"{ }")));
        tokio::time::advance(TERM).await;
        assert!(!suspects.is_guilty(request));
        suspects.note(&chat, Generation(3), [request]);
        suspects.clear(request);
        suspects.note(&chat, Generation(4), [request]);
        assert!(!suspects.is_guilty(request), "an answer came in between");
        suspects.note(&other, Generation(4), [request]);
        assert!(suspects.is_guilty(request), "engines of two slots that share a name");
    }
}
