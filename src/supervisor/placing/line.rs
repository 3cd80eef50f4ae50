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
        memory::{Basis, Share},
        profile::Capability,
    },
    supervisor::{
        Supervisor,
        command::Command,
        cores::Neighbours,
        eviction::Class,
        offload::Victim,
        slot::{Cause, Queued, Slot, State},
        waits::{Holder, Shortage, Wait},
    },
};

use super::{
    Displaced, How, Stand,
    turn::{back_down, chosen, fits, is_spared, need_on, rungs, spares, why},
};

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

/// Those that may ever make room for another, on their way out or not; and those that may not.
#[derive(Debug, Default)]
pub(super) struct Goers {
    /// What they hold together.
    pub(super) share: Share,
    pub(super) count: i64,
    /// How many there are of each kind of work.
    pub(super) kinds: BTreeMap<Capability, i64>,
    /// Those that are not on their way out.
    pub(super) holders: Arc<[Holder]>,
    /// Those that make room for nobody.
    pub(super) stayers: Arc<[Holder]>,
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
        let (mut holders, mut stayers) = (Vec::new(), Vec::new());
        for (name, slot) in &self.slots {
            let Some(share) = slot.held() else { continue };
            let gpus = share.gpus.values().fold(0_u64, |sum, one| sum.saturating_add(one.0));
            let holder = Holder { slot: name.clone(), host: share.host, gpus: Bytes(gpus) };
            if !slot.may_ever_go() {
                stayers.push(holder);
                continue;
            }
            goers.share.add(&share);
            goers.count = goers.count.saturating_add(1);
            for kind in slot.kinds() {
                *goers.kinds.entry(*kind).or_default() += 1;
            }
            if !slot.is_leaving() {
                holders.push(holder);
            }
        }
        (goers.holders, goers.stayers) = (holders.into(), stayers.into());
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
