//! Who goes on on a lower rung instead of being unloaded: pure.
//!
//! 1. Who makes room is settled already; this is about how.
//! 2. One that was used lately and does not work goes on on the best rung below its own that takes less, on the
//!    same kind of device, with which there is still room enough. The most valuable are thought of first.
//! 3. One that nobody has used for long is unloaded: a load for nobody is worth nothing.

use super::{
    eviction::{Candidate, Class, Wanted},
    ledger::Pools,
    limits::Limits,
    placement::fit,
};
use crate::spec::{
    SlotName,
    memory::{Basis, GpuNeed, Need},
};

/// One that makes room.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Victim {
    pub(super) slot: SlotName,
    /// The rung that it goes on on; `None` where it is unloaded.
    pub(super) to: Option<usize>,
}

/// Says how each of those goes that were chosen; `pools` and `limits` are as before anyone went.
pub(super) fn soften(
    wanted: Wanted<'_>,
    (pools, limits): (&Pools, &Limits),
    chosen: &[&Candidate<'_>],
) -> Vec<Victim> {
    let (mut pools, mut limits) = (pools.clone(), limits.clone());
    for one in chosen {
        pools.release(&one.share);
        limits.leave(one.capabilities);
    }
    let mut victims: Vec<_> = chosen
        .iter()
        .rev()
        .map(|one| {
            let to = below(one).find_map(|(rung, need)| {
                let share = fit(need, &pools).ok()?;
                let (mut beside, mut places) = (pools.clone(), limits.clone());
                beside.hold(&share);
                places.come(one.capabilities);
                wanted.is_met(&beside, &places).then_some((rung, beside, places))
            });
            let to = to.map(|(rung, beside, places)| {
                (pools, limits) = (beside, places);
                rung
            });
            Victim { slot: one.name.clone(), to }
        })
        .collect();
    victims.reverse();
    victims
}

/// Lists the rungs that one may go on on, best first.
fn below<'a>(one: &Candidate<'a>) -> impl Iterator<Item = (usize, &'a Need)> + use<'a> {
    let is_lately_used = matches!(one.class, Class::Idle | Class::Warm);
    let here = one.needs.get(one.rung).filter(|_| is_lately_used);
    let is_on_gpu = here.map(|here| here.gpu.is_some());
    one.needs
        .iter()
        .enumerate()
        .skip(one.rung.saturating_add(1))
        .take_while(move |(_, need)| Some(need.gpu.is_some()) == is_on_gpu)
        .filter(move |(_, need)| {
            need.basis != Basis::Unknown && here.is_some_and(|here| takes_less(need, here))
        })
}

fn takes_less(need: &Need, than: &Need) -> bool {
    let gpu = |need: &Need| need.gpu.as_ref().map(GpuNeed::least);
    need.host < than.host || gpu(need) < gpu(than)
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, collections::BTreeMap, time::Duration};

    use super::*;
    use crate::{
        spec::{Bytes, memory::Share},
        supervisor::ledger::Pool,
    };

    fn need(host: u64) -> Need {
        Need { host: Bytes(host), gpu: None, basis: Basis::Header }
    }

    /// How each goes of those that have these needs by rung and are on the first one.
    fn softened(needed: u64, free: u64, slots: &[(&str, Class, &[Need])]) -> Vec<Option<usize>> {
        let names: Vec<SlotName> = slots.iter().map(|slot| slot.0.parse().unwrap()).collect();
        let candidates: Vec<_> = slots
            .iter()
            .zip(&names)
            .map(|((_, class, needs), name)| Candidate {
                name,
                class: *class,
                priority: 50,
                idle_for: Duration::from_mins(1),
                share: Cow::Owned(Share { host: needs[0].host, gpus: BTreeMap::new() }),
                capabilities: &[],
                load: None,
                needs,
                rung: 0,
            })
            .collect();
        let held = slots.iter().map(|(_, _, needs)| needs[0].host.0).sum();
        let pool = Pool { most: Bytes(held + free), size: Bytes(held + free), held: Bytes(held) };
        let pools = Pools { host: Some(pool), ..Pools::default() };
        let need = need(needed);
        let wanted = Wanted { need: &need, capabilities: &[] };
        let chosen: Vec<_> = candidates.iter().collect();
        let victims = soften(wanted, (&pools, &Limits::default()), &chosen);
        victims.into_iter().map(|victim| victim.to).collect()
    }

    #[test]
    fn one_goes_down_as_far_as_it_must_and_no_further() {
        let rungs = [need(8), need(6), need(4), need(2)];
        let idle = |needed| softened(needed, 0, &[("a", Class::Idle, &rungs)]);
        assert_eq!(idle(2), [Some(1)]);
        assert_eq!(idle(3), [Some(2)]);
        assert_eq!(idle(6), [Some(3)]);
        assert_eq!(idle(7), [None], "it has to go");
    }

    #[test]
    fn one_that_works_or_that_nobody_uses_is_unloaded() {
        let rungs = [need(8), need(2)];
        for class in [Class::Active, Class::Evictable] {
            assert_eq!(softened(4, 0, &[("a", class, &rungs)]), [None]);
        }
        assert_eq!(softened(4, 0, &[("a", Class::Warm, &rungs)]), [Some(1)]);
    }

    #[test]
    fn of_several_the_most_valuable_one_stays() {
        let rungs = [need(8), need(4)];
        let both = [("first", Class::Idle, &rungs[..]), ("last", Class::Idle, &rungs[..])];
        assert_eq!(softened(12, 0, &both), [None, Some(1)]);
        assert_eq!(softened(8, 0, &both), [Some(1), Some(1)]);
    }

    #[test]
    fn a_rung_that_takes_no_less_is_no_help() {
        let rungs = [need(8), need(8), need(2)];
        assert_eq!(softened(4, 8, &[("a", Class::Idle, &rungs)]), [Some(2)]);
    }

    #[test]
    fn nobody_goes_on_on_another_kind_of_device() {
        let gpu = Some(GpuNeed { spread: Bytes(8), each: Bytes(0) });
        let rungs = [Need { gpu, ..need(8) }, need(2)];
        assert_eq!(softened(4, 0, &[("a", Class::Idle, &rungs)]), [None]);
    }
}
