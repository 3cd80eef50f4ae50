//! Where an engine goes: pure arithmetic over the pools.
//!
//! 1. The host has room for its part.
//! 2. One GPU has room for all of its GPU part: the fullest of those that do, so that the large ones stay
//!    free for what needs them.
//! 3. The fewest GPUs that have room together, those with the most room first; each takes a part in
//!    proportion to its room, as engines split it.
//! 4. Else nowhere. Never on the host what is meant for a GPU.

use std::collections::BTreeMap;

use super::ledger::{Pool, Pools};
use crate::spec::{
    Bytes,
    memory::{GpuNeed, Need, Share},
};

/// Says which pool has no room.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Lack {
    /// The host.
    Host {
        /// What is needed.
        needed: Bytes,
        /// What could be promised.
        free: Bytes,
    },
    /// The GPUs that answer, all together.
    Gpus {
        /// What is needed.
        needed: Bytes,
        /// What could be promised.
        free: Bytes,
    },
    /// No GPU answers.
    NoGpu {
        /// What they say.
        reason: String,
    },
}

/// Finds a place; says what is lacking where there is none.
pub(super) fn fit(need: &Need, pools: &Pools) -> Result<Share, Lack> {
    if let Some(host) = &pools.host
        && host.free() < need.host
    {
        return Err(Lack::Host { needed: need.host, free: host.free() }); // (1)
    }
    let share = Share { host: need.host, gpus: BTreeMap::new() };
    let Some(gpu) = &need.gpu else { return Ok(share) };
    if pools.gpus.is_empty() {
        // Where nothing is known of any GPU, nothing is promised there.
        return match pools.aside.first_key_value() {
            Some((index, reason)) => Err(Lack::NoGpu { reason: format!("GPU {index}: {reason}") }),
            None => Ok(share),
        };
    }
    let gpus = on_one(gpu, pools).or_else(|| on_several(gpu, pools)); // (2) (3)
    match gpus {
        Some(gpus) => Ok(Share { gpus, ..share }),
        None => Err(lack(gpu, pools)), // (4)
    }
}

/// Tells whether there is a place once `freed` is free again: what [`fit`] finds, without saying where.
pub(super) fn has_room(need: &Need, pools: &Pools, freed: &Share) -> bool {
    let is_in = |host: &Pool| host.free_without(freed.host) >= need.host;
    if !pools.host.as_ref().is_none_or(is_in) {
        return false; // (1)
    }
    let Some(gpu) = &need.gpu else { return true };
    if pools.gpus.is_empty() {
        return pools.aside.is_empty();
    }
    let mut sum = 0_u64;
    pools.gpus.iter().any(|(index, pool)| {
        let free = pool.free_without(freed.gpus.get(index).copied().unwrap_or_default());
        let room = free.0.saturating_sub(gpu.each.0);
        sum = sum.saturating_add(room);
        free >= gpu.least() || (room > 0 && sum >= gpu.spread.0) // (2) (3)
    })
}

fn on_one(need: &GpuNeed, pools: &Pools) -> Option<BTreeMap<u32, Bytes>> {
    let all = Bytes(need.spread.0.saturating_add(need.each.0));
    let with_room = pools.gpus.iter().filter(|(_, pool)| pool.free() >= all);
    let (gpu, _) = with_room.min_by_key(|(_, pool)| pool.free())?;
    Some(BTreeMap::from([(*gpu, all)]))
}

fn on_several(need: &GpuNeed, pools: &Pools) -> Option<BTreeMap<u32, Bytes>> {
    let mut rooms: Vec<(u64, u32)> = pools
        .gpus
        .iter()
        .map(|(gpu, pool)| (pool.free().0.saturating_sub(need.each.0), *gpu))
        .filter(|(room, _)| *room > 0)
        .collect();
    rooms.sort_by_key(|(room, gpu)| (std::cmp::Reverse(*room), *gpu));
    let mut sum = 0_u64;
    let enough = rooms.iter().position(|(room, _)| {
        sum = sum.saturating_add(*room);
        sum >= need.spread.0
    })?;
    rooms.truncate(enough + 1);
    Some(split(need, &rooms, sum))
}

/// Gives each GPU its part: in proportion to its room, and what rounding leaves where there is room.
fn split(need: &GpuNeed, rooms: &[(u64, u32)], sum: u64) -> BTreeMap<u32, Bytes> {
    let part = |room: u64| {
        let exact = u128::from(need.spread.0) * u128::from(room) / u128::from(sum.max(1));
        u64::try_from(exact).unwrap_or(u64::MAX)
    };
    let mut left = need.spread.0 - rooms.iter().map(|(room, _)| part(*room)).sum::<u64>();
    let mut parts = BTreeMap::new();
    for (room, gpu) in rooms {
        let more = left.min(room - part(*room));
        left -= more;
        parts.insert(*gpu, Bytes(part(*room) + more + need.each.0));
    }
    parts
}

fn lack(need: &GpuNeed, pools: &Pools) -> Lack {
    let free = pools.gpus.values().map(|pool| pool.free().0).sum();
    Lack::Gpus { needed: Bytes(need.spread.0.saturating_add(need.each.0)), free: Bytes(free) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::ledger::Pool;

    fn pool(free: u64) -> Pool {
        Pool { most: Bytes(free), size: Bytes(free), held: Bytes(0) }
    }

    fn pools(host: u64, gpus: &[u64]) -> Pools {
        let gpus = (0..).zip(gpus.iter().map(|free| pool(*free))).collect();
        Pools { host: Some(pool(host)), gpus, aside: BTreeMap::new() }
    }

    fn need(host: u64, gpu: Option<(u64, u64)>) -> Need {
        let gpu = gpu.map(|(spread, each)| GpuNeed { spread: Bytes(spread), each: Bytes(each) });
        Need { host: Bytes(host), gpu, ..Need::default() }
    }

    fn gpus(share: &Share) -> Vec<(u32, u64)> {
        share.gpus.iter().map(|(gpu, bytes)| (*gpu, bytes.0)).collect()
    }

    #[test]
    fn the_fullest_gpu_with_room_for_all_is_taken() {
        let share = fit(&need(1, Some((20, 2))), &pools(10, &[80, 24, 21, 48])).unwrap();
        assert_eq!(gpus(&share), [(1, 22)]);
    }

    #[test]
    fn what_no_gpu_holds_alone_is_spread_over_the_fewest() {
        let share = fit(&need(1, Some((60, 2))), &pools(10, &[10, 42, 24, 32])).unwrap();
        assert_eq!(gpus(&share), [(1, 37), (3, 27)]);
        let all: u64 = share.gpus.values().map(|bytes| bytes.0 - 2).sum();
        assert_eq!(all, 60);
    }

    #[test]
    fn what_fits_exactly_is_split_without_a_byte_too_many() {
        let share = fit(&need(0, Some((7, 0))), &pools(1, &[3, 3, 1])).unwrap();
        assert_eq!(gpus(&share), [(0, 3), (1, 3), (2, 1)]);
    }

    #[test]
    fn each_gpu_in_use_costs_its_context() {
        let lack = fit(&need(0, Some((6, 2))), &pools(1, &[4, 4])).unwrap_err();
        assert_eq!(lack, Lack::Gpus { needed: Bytes(8), free: Bytes(8) });
    }

    #[test]
    fn nothing_meant_for_a_gpu_goes_to_the_host() {
        let mut lost = pools(100, &[]);
        lost.aside.insert(0, "it fell off the bus".to_owned());
        let lack = fit(&need(1, Some((1, 0))), &lost).unwrap_err();
        assert_eq!(lack, Lack::NoGpu { reason: "GPU 0: it fell off the bus".to_owned() });
        assert!(fit(&need(1, None), &lost).is_ok());
    }

    #[test]
    fn the_host_must_have_room_too() {
        let lack = fit(&need(11, Some((1, 0))), &pools(10, &[80])).unwrap_err();
        assert_eq!(lack, Lack::Host { needed: Bytes(11), free: Bytes(10) });
    }

    #[test]
    fn where_no_gpu_is_known_nothing_is_promised() {
        let share = fit(&need(1, Some((50, 1))), &pools(10, &[])).unwrap();
        assert_eq!(gpus(&share), []);
    }
}
