//! The line of those that wait for memory.

use std::{
    cell::OnceCell,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::{
    spec::{
        Bytes, SlotName,
        death::Phase,
        memory::{Basis, Need, Share},
        profile::Capability,
        residence::WhenFull,
    },
    supervisor::{
        Supervisor,
        command::{Command, Refusal},
        cores::Neighbours,
        eviction::{Candidate, Class, Wanted, choose, order},
        ledger::Pools,
        offload::{Victim, soften},
        placement::{Lack, fit, has_room},
        slot::{Cause, Queued, Slot, State},
        waits::{Holder, Shortage, Wait},
    },
};

use super::{Displaced, How, Stand};

/// When a request is told to come back that a slot in line cannot take.
const RETRY_IN: Duration = Duration::from_secs(5);

/// By how much a load must outweigh the wait for a slot that was used just now to be spared.
const FAR_MORE: u32 = 4;

/// What becomes of one that stands in line.
#[derive(Debug)]
enum Turn {
    /// The machine is one for it: it is found out what it takes.
    Size,
    /// It is started on this rung, and this is promised to it.
    Start(usize, Share),
    /// These make room for it.
    MakeRoom(Vec<Victim>, Shortage),
    /// It waits.
    Wait(Wait),
}

/// What one pass over the line works with, each part made once for all of them.
#[derive(Debug)]
struct Pass {
    stand: Stand,
    /// The highest priority of those that are kept loaded and are about to stand in line too. Empty until
    /// asked for, and after that has changed.
    coming: OnceCell<Option<u32>>,
    /// `None` until asked for, and after somebody was started.
    goers: Option<Goers>,
}

/// What came of a look at the line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Served {
    /// Somebody waits whose turn it is: what it needs is kept for it.
    pub(super) is_turn_taken: bool,
    /// Somebody waits who would go on at once.
    pub(super) is_urgent: bool,
}

/// Those that may ever make room for another, on their way out or not.
#[derive(Debug, Default)]
struct Goers {
    /// What they hold together.
    share: Share,
    count: i64,
    /// How many there are of each kind of work.
    kinds: BTreeMap<Capability, i64>,
    /// Those that are not on their way out.
    holders: Arc<[Holder]>,
}

impl Supervisor {
    /// Names those in line, first first: those that may take the place of others before those that may
    /// not, then as they came.
    pub(super) fn line(&self) -> Vec<SlotName> {
        let queued = self.slots.iter().filter_map(|(name, slot)| {
            let State::Queued(queued) = &slot.state else { return None };
            let priority = Reverse((slot.priority(), slot.uses));
            // What is kept loaded comes by importance, and of equals the one that was used most; requests are
            // served as they come.
            let rank = (!slot.has_a_claim(queued)).then_some(priority);
            Some(((rank, queued.began, name), name.clone()))
        });
        let mut queued: Vec<_> = queued.collect();
        queued.sort_by(|a, b| a.0.cmp(&b.0));
        queued.into_iter().map(|(_, name)| name).collect()
    }

    /// Starts those in line of whom nothing is known, and whom no limit holds back.
    pub(super) fn admit_the_unknown(
        &mut self,
        line: &mut Vec<SlotName>,
        neighbours: &mut Option<Neighbours>,
        commands: &mut Vec<Command>,
    ) {
        if self.policy.max_resident.is_some() || !self.policy.max_resident_per.is_empty() {
            return;
        }
        line.retain(|name| {
            let Some(slot) = self.slots.get(name) else { return false };
            let State::Queued(queued) = &slot.state else { return false };
            let rung = slot.ladder.at();
            let is_known = !queued.is_sized() || need_on(queued, rung).basis != Basis::Unknown;
            if !is_known {
                self.admit(name, (rung, Share::default()), neighbours, commands);
            }
            is_known
        });
    }

    /// Goes through the line once.
    pub(super) fn serve_line(
        &mut self,
        line: &[SlotName],
        mut neighbours: Option<Neighbours>,
        commands: &mut Vec<Command>,
    ) -> Served {
        let mut pass = Pass { stand: self.stand(), coming: OnceCell::new(), goers: None };
        let (mut is_first, mut is_urgent) = (true, false);
        for name in line {
            let turn = match self.slots.get(name).map(|slot| (slot, &slot.state)) {
                Some((slot, State::Queued(queued))) => {
                    self.turn((slot, queued), &mut pass, is_first)
                }
                _ => continue,
            };
            match turn {
                Turn::Size => {
                    self.with(name, commands, Slot::size_up);
                    pass.coming = OnceCell::new();
                }
                Turn::Start(rung, share) => {
                    pass.stand.pools.hold(&share);
                    if let Some(slot) = self.slots.get(name) {
                        pass.stand.limits.come(slot.kinds());
                    }
                    self.admit(name, (rung, share), &mut neighbours, commands);
                    pass.goers = None;
                }
                Turn::MakeRoom(victims, lack) => {
                    is_first = false;
                    self.displace(&victims, name, commands);
                    neighbours = None;
                    self.reserve(name, &mut pass.stand);
                    self.set_wait(name, Wait::Leaving { lack });
                }
                Turn::Wait(wait) => {
                    // Nobody can say when strangers give something back: others go on meanwhile.
                    let is_at_hand = !matches!(wait, Wait::Room { .. });
                    let is_claimed = self.wait(name, wait, commands);
                    is_urgent |= is_claimed;
                    if is_claimed && is_at_hand {
                        is_first = false;
                        self.reserve(name, &mut pass.stand);
                    }
                }
            }
        }
        Served { is_turn_taken: !is_first, is_urgent: is_urgent || !is_first }
    }

    /// Decides about one that stands in line.
    fn turn(&self, (slot, queued): (&Slot, &Queued), pass: &mut Pass, is_first: bool) -> Turn {
        let asks = &slot.profile.residence.asks;
        if let Some(unmet) = asks.unmet(&self.look.last.memory, self.policy.machine.has_gpu) {
            return Turn::Wait(Wait::Skipped { unmet });
        }
        if !queued.is_sized() {
            return Turn::Size;
        }
        if queued.cause == Cause::Keep {
            let coming = pass.coming.get_or_init(|| self.coming());
            if coming.is_some_and(|worth| worth > slot.priority()) {
                return Turn::Wait(Wait::Look);
            }
        }
        let stand = &pass.stand;
        let at = slot.ladder.at();
        let lack = match fits(slot, need_on(queued, at), stand) {
            Ok(share) => return Turn::Start(at, share),
            Err(lack) => lack,
        };
        if let Some((rung, share)) = back_down((slot, queued), stand) {
            return Turn::Start(rung, share);
        }
        let may_displace = is_first && slot.has_a_claim(queued);
        if may_displace {
            let freed = stand.without_the_leaving();
            if fits(slot, need_on(queued, at), &freed).is_ok() {
                return Turn::Wait(Wait::Leaving { lack });
            }
            let all = self.candidates(|other, _| self.may_give_way(other, slot));
            let waited = self.waited_together(slot, queued);
            let (spared, all) = if all.iter().any(|one| is_spared(one, waited)) {
                all.into_iter().partition(|one| is_spared(one, waited))
            } else {
                (Vec::new(), all)
            };
            // Those that work are the last.
            let rested = all.partition_point(|one| one.class < Class::Active);
            let rested = all.get(..rested).unwrap_or_default();
            for rung in rungs(slot, queued) {
                let need = need_on(queued, rung);
                if rung > at
                    && let Ok(share) = fits(slot, need, stand)
                {
                    return Turn::Start(rung, share);
                }
                if let Some(victims) = chosen(slot, need, &freed, rested) {
                    return Turn::MakeRoom(victims, lack);
                }
            }
            if self.now.since(queued.began) >= self.policy.turn_after
                && let Some(victims) = chosen(slot, need_on(queued, at), &freed, &all)
            {
                return Turn::MakeRoom(victims, lack);
            }
            if let Some(wait) = spares((slot, need_on(queued, at)), &freed, (spared, all), &lack) {
                return Turn::Wait(wait);
            }
        }
        let goers = pass.goers.get_or_insert_with(|| self.goers());
        Turn::Wait(why((slot, queued), (stand, goers), lack))
    }

    /// Returns the highest priority of those that are kept loaded, and about to stand in line too.
    pub(super) fn coming(&self) -> Option<u32> {
        let comes = |slot: &&Slot| {
            matches!(slot.state, State::Sizing { cause: Cause::Keep, fetched: None, .. })
        };
        self.slots.values().filter(comes).map(Slot::priority).max()
    }

    /// Returns how long those that wait for a slot have waited, all together; `None` where a person has asked,
    /// whom no load outweighs. A rule counts as one that waits.
    fn waited_together(&self, slot: &Slot, queued: &Queued) -> Option<Duration> {
        let waiting = slot.waiting.len() + usize::from(queued.cause == Cause::Rule);
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        let since = self.now.since(queued.began);
        (queued.cause != Cause::Order).then(|| since.saturating_mul(waiting))
    }

    /// Sums up those that may ever go.
    fn goers(&self) -> Goers {
        let mut goers = Goers::default();
        let mut holders = Vec::new();
        for (name, slot) in &self.slots {
            let Some(share) = slot.held().filter(|_| slot.may_ever_go()) else { continue };
            goers.share.add(&share);
            let gpus = share.gpus.values().fold(0_u64, |sum, one| sum.saturating_add(one.0));
            goers.count = goers.count.saturating_add(1);
            for kind in slot.kinds() {
                *goers.kinds.entry(*kind).or_default() += 1;
            }
            if !slot.is_leaving() {
                holders.push(Holder { slot: name.clone(), host: share.host, gpus: Bytes(gpus) });
            }
        }
        goers.holders = holders.into();
        goers
    }

    /// Tells whether a slot has been there for long enough to go for another.
    pub(super) fn may_give_way(&self, other: &Slot, to: &Slot) -> bool {
        let State::Ready(serving) = &other.state else { return false };
        let residence = &other.profile.residence;
        let stay = residence.min_residency.unwrap_or(self.policy.min_residency);
        other.may_ever_go() && other.name != to.name && self.now.since(serving.ready_at) >= stay
    }

    /// Starts one that has a place. `neighbours` are all slots as they are, once somebody has asked.
    fn admit(
        &mut self,
        name: &SlotName,
        promised: (usize, Share),
        neighbours: &mut Option<Neighbours>,
        commands: &mut Vec<Command>,
    ) {
        let gpus = promised.1.gpus.keys().filter_map(|gpu| self.look.last.memory.gpus.get(gpu));
        let devices = gpus.map(|gpu| gpu.uuid.clone()).collect();
        let mut others = neighbours.take().unwrap_or_else(|| self.neighbours());
        let place = name.known_as();
        if let Some(slot) = self.slots.get(&place) {
            others.remove(slot, &self.policy);
        }
        let seen = (devices, others);
        self.with(name, commands, |slot, context| slot.admit(promised, seen, context));
        if let Some(slot) = self.slots.get(&place) {
            others.add(slot, &self.policy);
        }
        *neighbours = Some(others);
    }

    /// Lets slots make room for another.
    fn displace(&mut self, victims: &[Victim], by: &SlotName, commands: &mut Vec<Command>) {
        if !self.displaced.is_empty() {
            let going: BTreeSet<_> = victims.iter().map(|victim| &victim.slot).collect();
            self.forget_displaced(|one| !going.contains(&one.slot));
        }
        for victim in victims {
            let (slot, by) = (victim.slot.clone(), by.clone());
            let how = victim.to.map_or(How::Away, How::Lower);
            self.displaced.push(Displaced { slot, by, how });
            self.with(&victim.slot, commands, |slot, context| match victim.to {
                Some(rung) => slot.step_down(rung, context),
                None => slot.give_way(context),
            });
        }
    }

    /// Keeps what one waits for from those behind it.
    fn reserve(&self, name: &SlotName, stand: &mut Stand) {
        let Some(slot) = self.slots.get(name) else { return };
        let State::Queued(queued) = &slot.state else { return };
        let need = need_on(queued, slot.ladder.at());
        stand.pools.hold(&Share { host: need.host, ..Share::default() });
        stand.limits.come(slot.kinds());
        if need.gpu.is_some() {
            for pool in stand.pools.gpus.values_mut() {
                pool.held = pool.size.max(pool.held);
            }
        }
    }

    fn set_wait(&mut self, name: &SlotName, wait: Wait) {
        if let Some(State::Queued(queued)) = self.slots.get_mut(name).map(|slot| &mut slot.state) {
            queued.wait = wait;
        }
    }

    /// Lets one wait, and turns those away who wait for it in vain; tells whether it goes on waiting
    /// with a claim to what it needs.
    fn wait(&mut self, name: &SlotName, wait: Wait, commands: &mut Vec<Command>) -> bool {
        let Some(slot) = self.slots.get(name) else { return false };
        let State::Queued(queued) = &slot.state else { return false };
        let refusal = slot.refusal_for(&wait);
        let (has_claim, cause) = (slot.has_a_claim(queued), queued.cause);
        let is_hopeless = matches!(wait, Wait::TooLarge { .. });
        self.set_wait(name, wait);
        let is_refused = refusal.is_some();
        if let Some(refusal) = refusal {
            self.with(name, commands, |slot, context| slot.refuse_all(&refusal, context));
        }
        let is_unwanted = self.slots.get(name).is_some_and(|slot| slot.waiting.is_empty());
        if cause == Cause::Demand && is_unwanted {
            self.with(name, commands, Slot::give_up_the_line);
            return false;
        }
        has_claim && !is_refused && !is_hopeless
    }
}

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
    fn refusal_for(&self, wait: &Wait) -> Option<Refusal> {
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
fn why((slot, queued): (&Slot, &Queued), (stand, goers): (&Stand, &Goers), lack: Shortage) -> Wait {
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
    Wait::Never { lack }
}

/// Finds a lower rung for one that left it to climb, where somebody else has taken the room meanwhile.
fn back_down((slot, queued): (&Slot, &Queued), stand: &Stand) -> Option<(usize, Share)> {
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
fn fits(slot: &Slot, need: &Need, stand: &Stand) -> Result<Share, Shortage> {
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

fn chosen(
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
fn is_spared(one: &Candidate<'_>, waited: Option<Duration>) -> bool {
    let is_in_use = matches!(one.class, Class::Warm | Class::Active);
    let outweighs = |waited: Duration| one.reload() > waited.saturating_mul(FAR_MORE);
    is_in_use && waited.is_some_and(outweighs)
}

/// Says that one waits because another is spared; `None` where that one would not help either.
fn spares(
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
fn rungs<'a>(slot: &Slot, queued: &'a Queued) -> impl Iterator<Item = usize> + use<'a> {
    let at = slot.ladder.at().min(queued.needs.len().saturating_sub(1));
    let is_on_gpu = need_on(queued, at).gpu.is_some();
    (at..queued.needs.len().max(1))
        .take_while(move |rung| need_on(queued, *rung).gpu.is_some() == is_on_gpu)
}

impl Queued {
    /// Tells whether it is known what a start takes.
    fn is_sized(&self) -> bool {
        !self.needs.is_empty()
    }
}

/// Returns the need of a rung; nothing is known of one that has none.
fn need_on(queued: &Queued, rung: usize) -> &Need {
    const UNKNOWN: &Need = &Need { host: Bytes(0), gpu: None, basis: Basis::Unknown };
    queued.needs.get(rung).or(queued.needs.last()).unwrap_or(UNKNOWN)
}
