//! What one in line waits for, who may have to go for it, and on which rung it fits.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Stand, line::Goers};
use crate::{
    spec::{
        Bytes,
        death::Phase,
        memory::{Basis, Need, Share},
        residence::WhenFull,
    },
    supervisor::{
        command::Refusal,
        eviction::{Candidate, Class, Wanted, choose, order},
        ledger::Pools,
        offload::{Victim, soften},
        placement::{Lack, fit, has_room},
        slot::{Cause, Queued, Slot},
        waits::{Shortage, Wait},
    },
};

/// When a request is told to come back that a slot in line cannot take.
const RETRY_IN: Duration = Duration::from_secs(5);

/// By how much a load must outweigh the wait for a slot that was used just now to be spared.
const FAR_MORE: u32 = 4;

impl Slot {
    /// Tells whether others may have to make room for it: somebody wants it, and its last load worked.
    pub(super) fn has_a_claim(&self, queued: &Queued) -> bool {
        let is_wanted =
            matches!(queued.cause, Cause::Order | Cause::Rule) || !self.waiting.is_empty();
        let swaps = self.profile.residence.when_full == WhenFull::Swap;
        is_wanted && swaps && !self.has_failed_to_load()
    }

    /// Tells whether its last start came to nothing, and no person has said to try again.
    fn has_failed_to_load(&self) -> bool {
        let died = self.deaths.last().is_some_and(|death| death.phase == Phase::Starting);
        self.tally.deaths > 0 && died
    }

    /// Tells whether it could ever make room for another.
    pub(super) fn may_ever_go(&self) -> bool {
        !self.is_pinned() && !self.profile.residence.pressure_evict_only
    }

    /// Says why requests for it do not wait; `None` where they do.
    pub(super) fn refusal_for(&self, wait: &Wait) -> Option<Refusal> {
        let refuses = self.profile.residence.when_full == WhenFull::Refuse;
        if self.has_failed_to_load() {
            return Some(self.load_failed_until(RETRY_IN));
        }
        let is_in_vain =
            matches!(wait, Wait::Never { .. } | Wait::TooLarge { .. } | Wait::Skipped { .. });
        (is_in_vain || refuses).then(|| Refusal::NoRoom { reason: wait.sentence() })
    }
}

impl Stand {
    /// Returns the stand as it will be once those on their way out are gone.
    pub(super) fn without_the_leaving(&self) -> Self {
        let (mut pools, mut limits) = (self.pools.clone(), self.limits.clone());
        for (share, kinds) in self.leaving.values() {
            pools.release(share);
            limits.leave(kinds);
        }
        Self { pools, limits, due: self.due.clone(), leaving: BTreeMap::new() }
    }
}

/// Says why one waits: who would have to go, or that it would not help.
pub(super) fn why(
    (slot, queued): (&Slot, &Queued),
    (stand, goers): (&Stand, &Goers),
    lack: Shortage,
) -> Wait {
    if let Some(lack) = too_large((slot, queued), &stand.pools) {
        return Wait::TooLarge { lack };
    }
    let mut limits = stand.limits.clone();
    limits.leave_many(goers.count, &goers.kinds);
    let would_do = |pools: &Pools| {
        let mut rungs = rungs(slot, queued);
        limits.admits(slot.kinds())
            && rungs.any(|at| has_room(need_on(queued, at), pools, &goers.share))
    };
    if would_do(&stand.pools) && !goers.holders.is_empty() {
        return Wait::Turn { lack, holders: Arc::clone(&goers.holders) };
    }
    let may_return = matches!(lack, Shortage::NoGpu { .. }) || !stand.pools.aside.is_empty();
    if may_return || would_do(&stand.pools.without_strangers()) {
        return Wait::Room { lack };
    }
    Wait::Never { lack, stayers: Arc::clone(&goers.stayers) }
}

/// Finds a lower rung for one that left it to climb, where somebody else has taken the room meanwhile.
pub(super) fn back_down((slot, queued): (&Slot, &Queued), stand: &Stand) -> Option<(usize, Share)> {
    if !slot.ladder.is_on_trial() {
        return None;
    }
    let place = |rung| Some((rung, fits(slot, need_on(queued, rung), stand).ok()?));
    rungs(slot, queued).skip(1).find_map(place)
}

/// Says what is lacking on an empty machine; `None` where it would fit there, or might.
fn too_large((slot, queued): (&Slot, &Queued), pools: &Pools) -> Option<Shortage> {
    if !pools.aside.is_empty() {
        return None;
    }
    let empty = pools.emptied();
    let mut lacks = rungs(slot, queued).map(|at| fit(need_on(queued, at), &empty).err());
    let first = lacks.next()??;
    lacks.all(|lack| lack.is_some()).then(|| Shortage::of(first))
}

/// Finds a place; says what is lacking where there is none.
pub(super) fn fits(slot: &Slot, need: &Need, stand: &Stand) -> Result<Share, Shortage> {
    if !stand.limits.admits(slot.kinds()) {
        return Err(Shortage::Places);
    }
    if need.basis == Basis::Unknown {
        return Ok(Share::default());
    }
    fit(need, &stand.pools).map_err(Shortage::of)
}

impl Shortage {
    fn of(lack: Lack) -> Self {
        match lack {
            Lack::Host { needed, free } => Self::Host { needed, free },
            Lack::Gpus { needed, free } => Self::Gpus { needed, free },
            Lack::NoGpu { reason } => Self::NoGpu { reason },
        }
    }
}

pub(super) fn chosen(
    slot: &Slot,
    need: &Need,
    freed: &Stand,
    candidates: &[Candidate<'_>],
) -> Option<Vec<Victim>> {
    let wanted = Wanted { need, capabilities: slot.kinds() };
    let stand = (&freed.pools, &freed.limits);
    let chosen = choose(wanted, stand, candidates)?;
    Some(soften(wanted, stand, &chosen))
}

/// Tells whether one stays because it is of use and its load would cost far more than the wait so far.
pub(super) fn is_spared(one: &Candidate<'_>, waited: Option<Duration>) -> bool {
    let is_in_use = matches!(one.class, Class::Warm | Class::Active);
    let outweighs = |waited: Duration| one.reload() > waited.saturating_mul(FAR_MORE);
    is_in_use && waited.is_some_and(outweighs)
}

/// Says that one waits because another is spared; `None` where that one would not help either.
pub(super) fn spares(
    (slot, need): (&Slot, &Need),
    freed: &Stand,
    (spared, mut all): (Vec<Candidate<'_>>, Vec<Candidate<'_>>),
    lack: &Shortage,
) -> Option<Wait> {
    let slowest = spared.iter().max_by_key(|one| one.reload())?;
    let (holder, load) = (slowest.name.clone(), slowest.reload());
    all.extend(spared);
    order(&mut all);
    chosen(slot, need, freed, &all)?;
    Some(Wait::Spared { lack: lack.clone(), holder, load, until: load / FAR_MORE })
}

/// Lists the rungs that it may be started on: its own, and those below it on the same kind of device.
pub(super) fn rungs<'a>(slot: &Slot, queued: &'a Queued) -> impl Iterator<Item = usize> + use<'a> {
    let at = slot.ladder.at().min(queued.needs.len().saturating_sub(1));
    let is_on_gpu = need_on(queued, at).gpu.is_some();
    (at..queued.needs.len().max(1))
        .take_while(move |rung| need_on(queued, *rung).gpu.is_some() == is_on_gpu)
}

impl Queued {
    /// Tells whether it is known what a start takes.
    pub(super) fn is_sized(&self) -> bool {
        !self.needs.is_empty()
    }
}

/// Returns the need of a rung; nothing is known of one that has none.
pub(super) fn need_on(queued: &Queued, rung: usize) -> &Need {
    const UNKNOWN: &Need = &Need { host: Bytes(0), gpu: None, basis: Basis::Unknown };
    queued.needs.get(rung).or(queued.needs.last()).unwrap_or(UNKNOWN)
}
