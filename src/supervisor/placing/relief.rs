//! What goes when the machine runs short of memory: one slot at a time, with a look in between.
//!
//! 1. First those that nobody has used for long, then the idle ones. Those that are there until memory runs
//!    out, and those past their own idle timeout, count as not used for long.
//! 2. The warm ones only where next to nothing is left. Never one that works, never one that is pinned.
//! 3. Nobody goes who holds nothing of what is short.
//! 4. Whoever is kept loaded comes back when there is enough again: see `kept_out`.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    spec::{
        Bytes, Monotime, SlotName,
        memory::Share,
        pressure::{Pressure, Source, Strain},
    },
    supervisor::{
        Supervisor,
        command::Command,
        eviction::Class,
        slot::{Slot, State},
    },
};

use super::kept_out::{Back, Gone};

/// The time between two steps: longer than it takes the sensor to say that the last one was enough.
const PAUSE: Duration = Duration::from_secs(8);
/// The time between two looks where nobody can go.
const CALM: Duration = Duration::from_secs(15);
/// Less than this is no help.
const LEAST: Bytes = Bytes(16 << 20);

/// How short the machine is, and what was done about it.
#[derive(Debug, Default)]
pub(crate) struct Relief {
    pub(crate) strain: Strain,
    step: Step,
    /// Nobody goes before: what the last one held may not be free yet, or not be told.
    paused_until: Monotime,
    /// Who went for what, in the order of their names; while they are down for it.
    pub(crate) gone: BTreeMap<SlotName, Gone>,
    /// Who went and is there again.
    pub(super) back: BTreeMap<SlotName, Back>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default)]
enum Step {
    /// Nothing: there is enough.
    #[default]
    Rest,
    /// Time to look whether somebody is to go.
    At(Monotime),
    /// As soon as the machine has been read.
    Due,
}

impl Relief {
    /// Takes news of how short the machine is. They end no pause.
    pub(crate) fn take(&mut self, now: Monotime, strain: Strain) {
        let is_short = strain.of_memory().next().is_some();
        self.step = match self.paused_until {
            _ if !is_short => Step::Rest,
            until if now < until => Step::At(until),
            _ => Step::Due,
        };
        self.strain = strain;
    }

    pub(crate) fn deadline(&self) -> Option<Monotime> {
        match self.step {
            Step::At(at) => Some(at),
            Step::Rest | Step::Due => None,
        }
    }

    /// Tells whether it is time to look.
    pub(crate) fn wake(&mut self, now: Monotime) -> bool {
        let is_time = self.deadline().is_some_and(|at| at <= now);
        if is_time {
            self.step = Step::Due;
        }
        is_time
    }

    /// Tells whether a reading is needed.
    pub(crate) fn is_due(&self) -> bool {
        matches!(self.step, Step::Due)
    }

    /// Nobody goes any more.
    pub(crate) fn rest(&mut self) {
        self.step = Step::Rest;
    }

    /// Tells whether there is too little of something.
    pub(super) fn is_short_of(&self, source: Source) -> bool {
        self.strain.of_memory().any(|(short, _)| short == source)
    }

    /// Tells whether the host's memory is short: nobody comes back whom nobody asks for.
    pub(crate) fn is_host_short(&self) -> bool {
        self.is_short_of(Source::Memory)
    }
}

impl Supervisor {
    /// Lets one slot go, if one may and would help. Called with a fresh reading.
    pub(super) fn relieve(&mut self, commands: &mut Vec<Command>) {
        if !self.relief.is_due() {
            return;
        }
        // What is on its way out may be enough.
        let is_leaving = self.slots.values().any(Slot::is_leaving);
        let next = if is_leaving { None } else { self.next_to_go() };
        let is_pause = is_leaving || next.is_some();
        let again_at = self.now.after(if is_pause { PAUSE } else { CALM });
        self.relief.step = Step::At(again_at);
        if is_pause {
            self.relief.paused_until = again_at;
        }
        if let Some((name, source, took)) = next {
            let last = self.relief.back.remove(&name);
            self.relief.gone.insert(name.clone(), Gone::new(source, took, self.now, last));
            self.with(&name, commands, Slot::give_way);
        }
    }

    /// Finds who goes, for what, and what it holds of that.
    fn next_to_go(&self) -> Option<(SlotName, Source, Bytes)> {
        let mut short: Vec<_> = self.relief.strain.of_memory().collect();
        short.sort_by_key(|(source, level)| (std::cmp::Reverse(*level), *source));
        short.into_iter().find_map(|(source, level)| {
            let all = self.candidates(|slot, class| self.may_go(slot, class, level)); // (2)
            let helps = all.into_iter().filter(|one| held(&one.share, source) >= LEAST); // (3)
            let first = helps.min_by_key(|one| {
                let slot = self.slots.get(one.name);
                let is_spent = slot.is_some_and(|slot| slot.is_spent(one.class, one.idle_for));
                let class = if is_spent { Class::Evictable } else { one.class }; // (1)
                (class, one.priority, std::cmp::Reverse(one.idle_for))
            });
            first.map(|one| (one.name.clone(), source, held(&one.share, source)))
        })
    }

    fn may_go(&self, slot: &Slot, class: Class, level: Pressure) -> bool {
        let State::Ready(serving) = &slot.state else { return false };
        let stay = slot.profile.residence.min_residency.unwrap_or(self.policy.min_residency);
        let may_go = match class {
            Class::Evictable | Class::Idle => true,
            Class::Warm => level == Pressure::Critical,
            Class::Active => false,
        };
        may_go && self.now.since(serving.ready_at) >= stay
    }
}

impl Slot {
    /// Tells whether its time is over: it is there until memory runs out, or past its idle timeout.
    fn is_spent(&self, class: Class, idle_for: Duration) -> bool {
        let is_past = self.profile.idle_timeout.is_some_and(|timeout| idle_for >= timeout);
        class <= Class::Idle && (self.profile.residence.pressure_evict_only || is_past)
    }
}

/// Returns what a slot holds of what is short.
fn held(share: &Share, source: Source) -> Bytes {
    match source {
        Source::Memory => share.host,
        Source::Gpu(index) => share.gpus.get(&index).copied().unwrap_or_default(),
        Source::Cpu | Source::Disk => Bytes(0),
    }
}
