//! What of the machine's memory is promised, and what is left to promise.
//!
//! Pure, and made anew for each decision from the slots and the last reading: there is no account that
//! could drift. For each pool (the host, each GPU):
//!
//! 1. A slot counts from the order of its spawn until nothing of it is left, a stopping one in full.
//! 2. It counts with what it was promised, or with what it was measured to take where that is more: caches
//!    that are not full yet may still grow to the promise.
//! 3. What strangers use is the pool without what is free and without what is ours, all read at one time.
//! 4. A reserve stays free, and a limit on all engines together may be lower than the pool.

use std::collections::BTreeMap;

use crate::spec::{
    Bytes, SlotName,
    memory::{EngineReading, GpuState, MemoryReading, Room, Share},
};

use super::policy::Policy;

/// One pool, as far as engines are concerned.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Pool {
    /// What engines could have if there were no strangers.
    pub(super) most: Bytes,
    /// What engines can have beside the strangers that are there.
    pub(super) size: Bytes,
    /// What is promised or taken.
    pub(super) held: Bytes,
}

/// All pools.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Pools {
    /// `None` where nothing limits engines: nothing is known of the host's memory, and no limit is set.
    pub(super) host: Option<Pool>,
    /// Those that answer.
    pub(super) gpus: BTreeMap<u32, Pool>,
    /// Those that do not, and why.
    pub(super) aside: BTreeMap<u32, String>,
}

impl Pool {
    /// Returns what can still be promised.
    pub(super) fn free(&self) -> Bytes {
        Bytes(self.size.0.saturating_sub(self.held.0))
    }

    /// Returns what could be promised if `freed` of what is held were free again.
    pub(super) fn free_without(&self, freed: Bytes) -> Bytes {
        Bytes(self.size.0.saturating_sub(self.held.0.saturating_sub(freed.0)))
    }

    /// `ours` is what of the used bytes is our engines'.
    fn of(room: Room, ours: Bytes, reserve: Bytes) -> Self {
        let used = room.total.0.saturating_sub(room.free.0);
        let strangers = used.saturating_sub(ours.0);
        let most = room.total.0.saturating_sub(reserve.0);
        Self { most: Bytes(most), size: Bytes(most.saturating_sub(strangers)), held: Bytes(0) }
    }

    fn limited(self, limit: Bytes) -> Self {
        Self { most: self.most.min(limit), size: self.size.min(limit), ..self }
    }
}

impl Pools {
    /// Makes the pools of a reading, with nothing promised yet. `ours` is what all engines together were
    /// measured to take when the reading was made.
    pub(super) fn of(reading: &MemoryReading, ours: &Share, policy: &Policy) -> Self {
        let host = reading.host.map(|room| Pool::of(room, ours.host, policy.memory_reserve));
        let host = match (host, policy.memory_limit) {
            (Some(pool), Some(limit)) => Some(pool.limited(limit)),
            (None, Some(limit)) => Some(Pool { most: limit, size: limit, held: Bytes(0) }),
            (host, None) => host,
        };
        let mut pools = Self { host, ..Self::default() };
        for (gpu, read) in &reading.gpus {
            match &read.state {
                GpuState::Present(room) => {
                    let ours = ours.gpus.get(gpu).copied().unwrap_or_default();
                    pools.gpus.insert(*gpu, Pool::of(*room, ours, policy.memory_reserve));
                }
                GpuState::Silent { .. } => {
                    pools.aside.insert(*gpu, "it does not answer".to_owned());
                }
                GpuState::Lost { reason } => {
                    pools.aside.insert(*gpu, reason.clone());
                }
            }
        }
        pools
    }

    /// Counts a share as promised.
    pub(super) fn hold(&mut self, share: &Share) {
        self.change(share, u64::saturating_add);
    }

    /// Counts a share as free again.
    pub(super) fn release(&mut self, share: &Share) {
        self.change(share, u64::saturating_sub);
    }

    fn change(&mut self, share: &Share, by: fn(u64, u64) -> u64) {
        if let Some(host) = &mut self.host {
            host.held = Bytes(by(host.held.0, share.host.0));
        }
        for (gpu, bytes) in &share.gpus {
            if let Some(pool) = self.gpus.get_mut(gpu) {
                pool.held = Bytes(by(pool.held.0, bytes.0));
            }
        }
    }

    /// Returns the pools as they would be without strangers and without engines.
    pub(super) fn emptied(&self) -> Self {
        let empty = |pool: &Pool| Pool { size: pool.most, most: pool.most, held: Bytes(0) };
        Self {
            host: self.host.as_ref().map(empty),
            gpus: self.gpus.iter().map(|(gpu, pool)| (*gpu, empty(pool))).collect(),
            aside: self.aside.clone(),
        }
    }

    /// Returns the pools as they would be without strangers.
    pub(super) fn without_strangers(&self) -> Self {
        let alone = |pool: &Pool| Pool { size: pool.most, ..*pool };
        Self {
            host: self.host.as_ref().map(alone),
            gpus: self.gpus.iter().map(|(gpu, pool)| (*gpu, alone(pool))).collect(),
            aside: self.aside.clone(),
        }
    }
}

/// Returns what an engine was measured to take, as a share.
pub(super) fn measured(reading: &EngineReading) -> Share {
    Share { host: reading.host.unwrap_or_default(), gpus: reading.gpus.clone() }
}

/// What was read of all engines.
pub(super) type EngineReadings = BTreeMap<SlotName, EngineReading>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::memory::GpuReading;

    const GIB: u64 = 1 << 30;

    fn gib(number: u64) -> Bytes {
        Bytes(number * GIB)
    }

    fn share(host: u64) -> Share {
        Share { host: gib(host), gpus: BTreeMap::new() }
    }

    fn reading(total: u64, free: u64) -> MemoryReading {
        let host = Some(Room { total: gib(total), free: gib(free) });
        MemoryReading { host, gpus: BTreeMap::new() }
    }

    fn policy(reserve: u64, limit: Option<u64>) -> Policy {
        Policy { memory_reserve: gib(reserve), memory_limit: limit.map(gib), ..Policy::default() }
    }

    #[test]
    fn strangers_are_what_is_used_and_not_ours() {
        let pools = Pools::of(&reading(32, 20), &share(4), &policy(2, None));
        let host = pools.host.unwrap();
        assert_eq!((host.most, host.size, host.free()), (gib(30), gib(22), gib(22)));
    }

    #[test]
    fn a_limit_counts_engines_alone() {
        let pools = Pools::of(&reading(32, 20), &Share::default(), &policy(0, Some(10)));
        assert_eq!(pools.host.unwrap().free(), gib(10));
        let none = Pools::of(&MemoryReading::default(), &Share::default(), &policy(0, Some(10)));
        assert_eq!(none.host.unwrap().free(), gib(10));
        assert_eq!(
            Pools::of(&MemoryReading::default(), &Share::default(), &policy(0, None)).host,
            None
        );
    }

    #[test]
    fn what_is_promised_is_free_again_once_released() {
        let mut pools = Pools::of(&reading(32, 32), &Share::default(), &policy(0, None));
        pools.hold(&share(20));
        assert_eq!(pools.host.unwrap().free(), gib(12));
        pools.hold(&share(20));
        assert_eq!(pools.host.unwrap().free(), gib(0), "more is held than there is");
        pools.release(&share(20));
        assert_eq!(pools.host.unwrap().free(), gib(12));
    }

    #[test]
    fn measured_use_counts_where_it_is_more() {
        let promised = Share { host: gib(3), gpus: BTreeMap::from([(0, gib(8))]) };
        let more = Share { host: gib(5), gpus: BTreeMap::from([(0, gib(7)), (1, gib(1))]) };
        let held = promised.at_least(&more);
        assert_eq!(held.host, gib(5));
        assert_eq!(held.gpus, BTreeMap::from([(0, gib(8)), (1, gib(1))]));
    }

    #[test]
    fn a_gpu_that_does_not_answer_has_nothing_to_promise() {
        let of = |state| GpuReading { uuid: "GPU-1".to_owned(), name: "test".to_owned(), state };
        let room = Room { total: gib(80), free: gib(70) };
        let gpus = BTreeMap::from([
            (0, of(GpuState::Present(room))),
            (1, of(GpuState::Silent { last: Some(room) })),
            (2, of(GpuState::Lost { reason: "it fell off the bus".to_owned() })),
        ]);
        let reading = MemoryReading { host: None, gpus };
        let pools = Pools::of(&reading, &Share::default(), &policy(1, None));
        assert_eq!(pools.gpus.keys().collect::<Vec<_>>(), [&0]);
        assert_eq!(pools.gpus[&0].free(), gib(69));
        assert_eq!(pools.aside[&2], "it fell off the bus");
    }
}
