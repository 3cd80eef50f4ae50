//! Who is started next: the line of those that wait for memory, who makes room for them, and who comes
//! back afterwards.
//!
//! 1. Those in line are looked at in the order in which they came. Those that may take the place of others
//!    go first; what the first of them needs is kept for it, so that nobody small overtakes it for ever.
//! 2. Room that is there is promised; see [`super::ledger`], [`super::placement`].
//! 3. Else, once what is on its way out will not do, others make room: see [`super::eviction`]; where a lower
//!    rung of theirs is enough, they go on there: see [`super::offload`].
//! 4. Else a lower rung of its ladder, on the same kind of device.
//! 5. Else it waits, at the longest for the turn of those that work, each of which ends what it has begun.
//!    One that was used just now, and whose load takes long, is spared until those that wait have waited a
//!    good part of that together.
//! 6. Nobody makes room for a slot whose last load failed, that is to be refused rather than swapped in,
//!    that nobody asked for, or that would not fit even then.
//!
//! All figures come from one reading, which is asked for when something has changed.

mod back;
mod headroom;
mod kept_out;
mod line;
mod look;
mod relief;
mod turn;

use std::{collections::BTreeMap, time::Duration};

pub(super) use self::{
    back::{Displaced, How},
    kept_out::Gone,
    look::{Look, Looked},
    relief::Relief,
};
pub use self::{
    headroom::{Purpose, RoomAnswer, RoomRequest},
    kept_out::{KeptOut, Relieved},
};
use super::{
    Supervisor,
    command::Command,
    eviction::{Candidate, Class},
    ledger::{Pools, measured},
    limits::Limits,
    slot::{Slot, State},
};
use crate::spec::{
    Bytes, SlotName,
    memory::{EngineReading, Share},
    profile::Capability,
};

/// All that a decision is made from.
#[derive(Debug)]
pub(super) struct Stand {
    pub(super) pools: Pools,
    pub(super) limits: Limits,
    /// What is promised, or was, and not taken yet.
    pub(super) due: Share,
    /// Slots whose engines are on their way out, and what they hold.
    pub(super) leaving: BTreeMap<SlotName, (Share, Vec<Capability>)>,
}

impl Supervisor {
    /// Starts what can be started, and makes room for what cannot. Called when anything has changed that
    /// may matter, and when it is time to look again.
    pub(super) fn place(&mut self, commands: &mut Vec<Command>) {
        if self.mode != super::Mode::Running {
            self.look.rest();
            self.relief.rest();
            self.refuse_rooms(commands);
            return;
        }
        self.look.wake(self.now);
        if self.relief.wake(self.now) {
            self.look.touch();
        }
        if !self.look.is_due() {
            return;
        }
        self.forget_those_back();
        self.forget_relieved();
        let mut line = self.line();
        let mut neighbours = None;
        self.admit_the_unknown(&mut line, &mut neighbours, commands);
        let is_asked = self.relief.is_due() || !self.rooms.is_empty();
        let is_anybody_out = self.is_anybody_away() || self.is_anybody_kept_out();
        if line.is_empty() && !is_anybody_out && !is_asked {
            self.look.rest();
            return;
        }
        if !self.look.is_fresh(self.now) {
            self.look.ask(self.now, commands);
            return;
        }
        let served = self.serve_line(&line, neighbours, commands);
        self.make_headroom(commands);
        let is_kept_free = self.now < self.kept_free_until;
        let may_come = !served.is_turn_taken && !is_kept_free;
        self.bring_back_relieved(may_come, commands);
        if may_come && !self.relief.is_host_short() {
            self.bring_back(commands);
        }
        self.relieve(commands);
        let is_queued = |slot: &Slot| matches!(slot.state, State::Queued(_));
        let is_anybody_out = self.is_anybody_away() || self.is_anybody_kept_out();
        let is_in_line = |name: &SlotName| self.slots.get(name).is_some_and(is_queued);
        let is_waiting =
            is_anybody_out || line.iter().any(is_in_line) || self.slots.values().any(is_queued);
        let waited = served.is_urgent.then(|| self.waited(&line));
        let back_after = self.is_anybody_away().then_some(self.policy.restore_after);
        self.look.again(self.now, waited, (is_waiting, back_after));
    }

    /// Returns how long the first of those has waited that others make room for.
    fn waited(&self, line: &[SlotName]) -> Duration {
        let began = line.iter().filter_map(|name| self.slots.get(name)).filter_map(|slot| {
            let State::Queued(queued) = &slot.state else { return None };
            slot.has_a_claim(queued).then_some(queued.began)
        });
        began.min().map_or(Duration::ZERO, |began| self.now.since(began))
    }

    /// Makes the stand of this moment.
    pub(super) fn stand(&self) -> Stand {
        let (mut held, mut taken) = (Share::default(), Share::default());
        let mut limits = Limits::of(&self.policy);
        let mut leaving = BTreeMap::new();
        for (name, slot, read) in self.readings().filter(|(_, slot, _)| slot.has_child()) {
            count((&mut taken, &mut held), slot, read);
            limits.come(slot.kinds());
            if slot.is_leaving() {
                let measured = read.map(measured).unwrap_or_default();
                let share = slot.held().unwrap_or_default().at_least(&measured);
                leaving.insert(name.clone(), (share, slot.kinds().to_vec()));
            }
        }
        let mut pools = Pools::of(&self.look.last.memory, &taken, &self.policy);
        pools.hold(&held);
        Stand { pools, limits, due: held.beyond(&taken), leaving }
    }

    /// Lists those that could make room, in the order in which they go.
    pub(super) fn candidates(&self, accepts: impl Fn(&Slot, Class) -> bool) -> Vec<Candidate<'_>> {
        let found = self.readings().filter_map(|(_, slot, read)| {
            let one = self.candidate(slot, read?)?;
            accepts(slot, one.class).then_some(one)
        });
        let mut found: Vec<_> = found.collect();
        super::eviction::order(&mut found);
        found
    }

    /// Says what it would bring if a slot that was read made room; `None` where it could not.
    pub(super) fn candidate<'a>(
        &self,
        slot: &'a Slot,
        read: &EngineReading,
    ) -> Option<Candidate<'a>> {
        if !matches!(slot.state, State::Ready(_)) || slot.is_pinned() {
            return None;
        }
        Some(Candidate {
            name: &slot.name,
            class: Class::of(read.in_flight, read.idle_for, &self.policy),
            priority: slot.priority(),
            idle_for: read.idle_for,
            share: slot.held_by(read),
            capabilities: slot.kinds(),
            load: slot.expected_load(),
            needs: &slot.needs,
            rung: slot.ladder.at(),
        })
    }

    /// Goes through all slots, each with what was read of its present engine. Both are in the order of
    /// their names.
    fn readings(&self) -> impl Iterator<Item = (&SlotName, &Slot, Option<&EngineReading>)> {
        let mut engines = self.look.last.engines.iter().peekable();
        self.slots.iter().map(move |(name, slot)| {
            while engines.next_if(|(other, _)| *other < name).is_some() {}
            let read = engines.next_if(|(other, _)| *other == name).map(|(_, read)| read);
            (name, slot, read.filter(|read| read.generation == slot.generation))
        })
    }
}

/// Adds one engine up: what it takes by the reading, and what it is counted with.
fn count((taken, held): (&mut Share, &mut Share), slot: &Slot, read: Option<&EngineReading>) {
    // What could not be read of one that serves is taken to be what it was promised; what came after the
    // reading is in none of its figures.
    let is_assumed = read.is_some() && slot.is_serving();
    let unread = |promised: Bytes| if is_assumed { promised } else { Bytes(0) };
    let host = slot.share.host.max(slot.rss.unwrap_or_default());
    let ours = read.and_then(|read| read.host).filter(|bytes| bytes.0 > 0);
    let ours = ours.unwrap_or_else(|| unread(host));
    taken.host.grow(ours);
    held.host.grow(host.max(ours));
    for (gpu, promised) in &slot.share.gpus {
        let ours = read.and_then(|read| read.gpus.get(gpu)).copied();
        let ours = ours.unwrap_or_else(|| unread(*promised));
        taken.gpus.entry(*gpu).or_default().grow(ours);
        held.gpus.entry(*gpu).or_default().grow(ours.max(*promised));
    }
    for (gpu, bytes) in read.iter().flat_map(|read| &read.gpus) {
        if !slot.share.gpus.contains_key(gpu) {
            taken.gpus.entry(*gpu).or_default().grow(*bytes);
            held.gpus.entry(*gpu).or_default().grow(*bytes);
        }
    }
}
