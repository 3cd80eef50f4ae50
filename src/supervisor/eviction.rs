//! Who makes room: pure.
//!
//! 1. Those that nobody has used for long go first, then the idle ones, then the warm ones. One that
//!    works goes only where its turn is over: it takes no more requests and ends those it has.
//! 2. Among those: the lower priority, then the one that is missed least: the time that its next load takes,
//!    by the time that nobody has used it for. Of those that load as fast, the one idle for longest.
//! 3. As few as are enough: whoever frees nothing that helps stays, and one alone is better than several
//!    of the same rank.
//! 4. If all of them together are not enough, nobody goes.
//!
//! What a prompt cache is worth is not known: that a slot that was used just now goes late stands for it.

use std::{borrow::Cow, cmp::Ordering, time::Duration};

use super::{ledger::Pools, limits::Limits, placement::has_room, policy::Policy};
use crate::spec::{
    SlotName,
    memory::{Need, Share},
    profile::Capability,
};

/// What a load is taken to take of which none is known.
const UNKNOWN_LOAD: Duration = Duration::from_secs(10);

/// How lately a slot was used; in the order in which they go.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Class {
    /// Not for long.
    Evictable,
    /// Not for a while.
    Idle,
    /// Just now.
    Warm,
    /// It works.
    Active,
}

/// One slot that may go.
#[derive(Clone, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) name: &'a SlotName,
    pub(super) class: Class,
    pub(super) priority: u32,
    pub(super) idle_for: Duration,
    pub(super) share: Cow<'a, Share>,
    pub(super) capabilities: &'a [Capability],
    /// How long its loads take, where that is known.
    pub(super) load: Option<Duration>,
    /// What it takes on each rung, as far as that is known, and the one it is on.
    pub(super) needs: &'a [Need],
    pub(super) rung: usize,
}

/// What room is made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) need: &'a Need,
    pub(super) capabilities: &'a [Capability],
}

impl Class {
    /// Says how lately a slot was used that has `in_flight` requests.
    pub(super) fn of(in_flight: u32, idle_for: Duration, policy: &Policy) -> Self {
        if in_flight > 0 {
            Self::Active
        } else if idle_for < policy.warm_for {
            Self::Warm
        } else if idle_for < policy.evictable_after {
            Self::Idle
        } else {
            Self::Evictable
        }
    }
}

/// Puts candidates into the order in which they go.
pub(super) fn order(candidates: &mut [Candidate<'_>]) {
    candidates.sort_by(|a, b| {
        let rank = |one: &Candidate<'_>| (one.class, one.priority);
        rank(a).cmp(&rank(b)).then_with(|| a.by_loss(b)).then_with(|| a.name.cmp(b.name))
    });
}

impl Candidate<'_> {
    /// Returns how long its next load takes.
    pub(super) fn reload(&self) -> Duration {
        self.load.unwrap_or(UNKNOWN_LOAD)
    }

    /// Compares what is lost: the load that comes, by the time that nobody has asked for it.
    fn by_loss(&self, other: &Self) -> Ordering {
        let times = |load: Duration, idle: Duration| {
            load.as_millis().max(1).saturating_mul(idle.as_millis().max(1))
        };
        times(self.reload(), other.idle_for).cmp(&times(other.reload(), self.idle_for))
    }
}

/// Chooses who goes, out of candidates in their order; `None` where all of them would not be enough.
pub(super) fn choose<'a>(
    wanted: Wanted<'_>,
    (pools, limits): (&Pools, &Limits),
    candidates: &'a [Candidate<'a>],
) -> Option<Vec<&'a Candidate<'a>>> {
    let (mut left, mut places) = (pools.clone(), limits.clone());
    // More of them never fit less: the shortest head of the list that is enough.
    let mut enough = 0;
    while !wanted.is_met(&left, &places) {
        let one = candidates.get(enough)?; // (4)
        left.release(&one.share);
        places.leave(one.capabilities);
        enough += 1;
    }
    let head = candidates.get(..enough).unwrap_or_default();
    let worst = head.last().map(|last| last.class);
    if enough > 1 {
        let mut alone = candidates.iter().take_while(|one| Some(one.class) <= worst);
        if let Some(one) = alone.find(|one| wanted.is_met_by(one, pools, limits)) {
            return Some(vec![one]); // (3)
        }
    }
    Some(pruned(wanted, (left, places), head))
}

impl Wanted<'_> {
    pub(super) fn is_met(&self, pools: &Pools, limits: &Limits) -> bool {
        limits.admits(self.capabilities) && has_room(self.need, pools, &Share::default())
    }

    /// Tells whether it is enough that one goes.
    fn is_met_by(&self, one: &Candidate<'_>, pools: &Pools, limits: &Limits) -> bool {
        let is_admitted = || {
            let mut limits = limits.clone();
            limits.leave(one.capabilities);
            limits.admits(self.capabilities)
        };
        has_room(self.need, pools, &one.share)
            && (limits.admits(self.capabilities) || is_admitted())
    }
}

/// Spares whoever is not needed, the most valuable first; `pools` and `limits` are as without them all.
fn pruned<'a>(
    wanted: Wanted<'_>,
    (mut pools, mut limits): (Pools, Limits),
    head: &'a [Candidate<'a>],
) -> Vec<&'a Candidate<'a>> {
    let mut needed = Vec::new();
    for one in head.iter().rev() {
        pools.hold(&one.share);
        limits.come(one.capabilities);
        if !wanted.is_met(&pools, &limits) {
            pools.release(&one.share);
            limits.leave(one.capabilities);
            needed.push(one);
        }
    }
    needed.reverse();
    needed
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{spec::Bytes, supervisor::ledger::Pool};

    fn pools(size: u64, held: u64) -> Pools {
        let pool = Pool { most: Bytes(size), size: Bytes(size), held: Bytes(held) };
        Pools { host: Some(pool), ..Pools::default() }
    }

    fn need(host: u64) -> Need {
        Need { host: Bytes(host), ..Need::default() }
    }

    fn share(host: u64) -> Share {
        Share { host: Bytes(host), gpus: BTreeMap::new() }
    }

    /// Slots by name, class, priority, seconds idle, bytes.
    fn chosen(
        needed: u64,
        free: u64,
        slots: &[(&str, Class, u32, u64, u64)],
    ) -> Option<Vec<String>> {
        let names: Vec<SlotName> = slots.iter().map(|slot| slot.0.parse().unwrap()).collect();
        let candidates = slots.iter().zip(&names).map(|(slot, name)| Candidate {
            name,
            class: slot.1,
            priority: slot.2,
            idle_for: Duration::from_secs(slot.3),
            share: Cow::Owned(share(slot.4)),
            capabilities: &[],
            load: slot.0.strip_prefix("slow").map(|_| Duration::from_mins(1)),
            needs: &[],
            rung: 0,
        });
        let mut candidates: Vec<_> = candidates.collect();
        order(&mut candidates);
        let held = slots.iter().map(|slot| slot.4).sum();
        let wanted = Wanted { need: &need(needed), capabilities: &[] };
        let chosen = choose(wanted, (&pools(held + free, held), &Limits::default()), &candidates)?;
        Some(chosen.iter().map(|one| one.name.to_string()).collect())
    }

    use Class::{Active, Evictable, Idle, Warm};

    #[test]
    fn the_least_used_go_first_and_no_more_than_needed() {
        let slots =
            [("warm", Warm, 50, 1, 4), ("idle", Idle, 50, 60, 4), ("old", Evictable, 50, 900, 4)];
        assert_eq!(chosen(4, 0, &slots).unwrap(), ["old"]);
        assert_eq!(chosen(8, 0, &slots).unwrap(), ["old", "idle"]);
        assert_eq!(chosen(6, 2, &slots).unwrap(), ["old"]);
    }

    #[test]
    fn inside_a_class_priority_goes_before_age() {
        let slots = [("a", Idle, 50, 90, 4), ("b", Idle, 50, 200, 4), ("c", Idle, 10, 60, 4)];
        assert_eq!(chosen(4, 0, &slots).unwrap(), ["c"]);
        assert_eq!(chosen(8, 0, &slots).unwrap(), ["c", "b"]);
    }

    #[test]
    fn a_slow_load_is_spared_until_nobody_has_used_it_for_much_longer() {
        let slots = [("slow-a", Idle, 50, 200, 4), ("b", Idle, 50, 40, 4)];
        assert_eq!(chosen(4, 0, &slots).unwrap(), ["b"], "six times the load, five times as idle");
        let slots = [("slow-a", Idle, 50, 280, 4), ("b", Idle, 50, 40, 4)];
        assert_eq!(chosen(4, 0, &slots).unwrap(), ["slow-a"]);
        let slots = [("slow-a", Idle, 10, 40, 4), ("b", Idle, 50, 200, 4)];
        assert_eq!(chosen(4, 0, &slots).unwrap(), ["slow-a"], "priority goes before cost");
    }

    #[test]
    fn whoever_frees_nothing_that_helps_stays() {
        let slots =
            [("tiny", Evictable, 50, 900, 1), ("big", Idle, 50, 60, 8), ("warm", Warm, 50, 1, 8)];
        assert_eq!(chosen(8, 0, &slots).unwrap(), ["big"]);
        assert_eq!(chosen(9, 0, &slots).unwrap(), ["tiny", "big"]);
    }

    #[test]
    fn one_alone_is_better_than_several_of_its_rank() {
        let slots = [("a", Idle, 50, 90, 4), ("b", Idle, 50, 80, 4), ("c", Idle, 50, 60, 9)];
        assert_eq!(chosen(8, 0, &slots).unwrap(), ["c"]);
        let slots = [("a", Idle, 50, 90, 4), ("b", Idle, 50, 80, 4), ("c", Warm, 50, 1, 9)];
        assert_eq!(chosen(8, 0, &slots).unwrap(), ["a", "b"], "a warm one is not spent for that");
    }

    #[test]
    fn nobody_goes_where_it_would_not_help() {
        let slots = [("a", Evictable, 50, 900, 4), ("b", Active, 50, 0, 4)];
        assert_eq!(chosen(9, 0, &slots), None);
        assert_eq!(chosen(8, 0, &slots).unwrap(), ["a", "b"]);
    }
}
