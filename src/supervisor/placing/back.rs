//! Who comes back: slots that have made room for another.

use crate::{
    spec::{SlotName, memory::Share, residence::Restore},
    supervisor::{
        Supervisor,
        command::Command,
        eviction::Class,
        placement::has_room,
        slot::{Cause, Slot, State},
    },
};

/// A slot that has made room for another.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Displaced {
    pub(crate) slot: SlotName,
    pub(crate) by: SlotName,
    pub(crate) how: How,
}

/// How one has made room.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum How {
    /// It is unloaded.
    Away,
    /// It goes on on this rung, or lower, until it climbs by itself.
    Lower(usize),
}

/// What can be done for a displaced slot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    /// It is started: there is room.
    Free,
    /// The one that it made room for is idle, and makes room in turn.
    Swap,
    /// Nothing yet.
    Closed,
}

impl Supervisor {
    /// Forgets those that came back, that are gone, or that nobody wants back.
    pub(super) fn forget_those_back(&mut self) {
        let slots = &self.slots;
        let is_not_back = |one: &Displaced| {
            slots.get(&one.slot).is_some_and(|slot| match one.how {
                How::Away => {
                    let is_down = matches!(slot.state, State::Offline) || slot.is_leaving();
                    slot.restore() != Restore::Never && is_down
                }
                How::Lower(rung) => {
                    let is_up = slot.has_child() || slot.is_coming();
                    slot.is_leaving() || (is_up && slot.ladder.at() >= rung)
                }
            })
        };
        let keep: Vec<_> = self.displaced.iter().map(is_not_back).collect();
        let mut keep = keep.into_iter();
        self.forget_displaced(|_| keep.next().unwrap_or(true));
    }

    /// Tells whether somebody is to be brought back.
    pub(super) fn is_anybody_away(&self) -> bool {
        self.displaced.iter().any(|one| one.how == How::Away)
    }

    /// Tells whether a slot would have room on the rung above its own, by what is promised.
    pub(in crate::supervisor) fn has_room_above(&self, slot: &Slot) -> bool {
        let above = slot.ladder.at().checked_sub(1).and_then(|above| slot.needs.get(above));
        let (Some(above), Some(own)) = (above, slot.held()) else { return true };
        has_room(above, &self.stand().pools, &own)
    }

    /// Forgets displaced slots that are not to be kept: the one place where that is done.
    pub(in crate::supervisor) fn forget_displaced(
        &mut self,
        mut keep: impl FnMut(&Displaced) -> bool,
    ) {
        let slots = &mut self.slots;
        self.displaced.retain(|one| {
            let is_kept = keep(one);
            if !is_kept {
                slots.touch(&one.slot);
            }
            is_kept
        });
    }

    /// Brings displaced slots back, one at a time and in the order in which they went, as far as there is
    /// room: as soon as the one that they made room for is down or has failed, or is idle.
    pub(super) fn bring_back(&mut self, commands: &mut Vec<Command>) {
        let is_coming = self.slots.values().any(|slot| slot.cause() == Some(Cause::Restore));
        if is_coming || !self.is_anybody_away() {
            return;
        }
        // After a start of the daemon: what is kept loaded comes first.
        if self.coming().is_some() {
            return;
        }
        let stand = self.stand();
        let away: Vec<_> =
            self.displaced.iter().filter(|one| one.how == How::Away).cloned().collect();
        for one in away {
            match self.way_back(&one, &stand) {
                Way::Free => {
                    self.forget_displaced(|other| other.slot != one.slot);
                    self.with(&one.slot, commands, Slot::come_back);
                    return;
                }
                Way::Swap => {
                    // Not displaced in turn: nobody has asked for it since.
                    self.with(&one.by, commands, Slot::give_way);
                    return;
                }
                Way::Closed => {}
            }
        }
    }

    fn way_back(&self, one: &Displaced, stand: &super::Stand) -> Way {
        let Some(slot) = self.slots.get(&one.slot) else { return Way::Closed };
        let is_busy = |by: &Slot| by.is_coming() || by.is_leaving();
        let by = self.slots.get(&one.by);
        if !matches!(slot.state, State::Offline) || by.is_some_and(is_busy) {
            return Way::Closed;
        }
        let need = slot.needs.get(slot.ladder.at()).or(slot.needs.last());
        let has_room = |freed: &Share| need.is_none_or(|need| has_room(need, &stand.pools, freed));
        if stand.limits.admits(slot.kinds()) && has_room(&Share::default()) {
            return Way::Free;
        }
        let Some(by) = by.filter(|_| slot.restore() == Restore::WhenIdle) else {
            return Way::Closed;
        };
        let Some(read) = self.look.last.engines.get(&by.name) else { return Way::Closed };
        let is_rested = read.generation == by.generation
            && read.idle_for >= self.policy.restore_after
            // What it rested before its present load counts for nothing here.
            && self.now.since(by.since) >= self.policy.restore_after
            && self.may_give_way(by, slot);
        let idle = self.candidate(by, read).filter(|idle| is_rested && idle.class < Class::Active);
        let Some(idle) = idle else { return Way::Closed };
        let mut limits = stand.limits.clone();
        limits.leave(idle.capabilities);
        let would_do = limits.admits(slot.kinds()) && has_room(&idle.share);
        if would_do { Way::Swap } else { Way::Closed }
    }
}

impl Slot {
    /// Says when it comes back after it has made room.
    pub(super) fn restore(&self) -> Restore {
        let usual = if self.profile.is_kept() { Restore::WhenIdle } else { Restore::WhenRoom };
        self.profile.residence.restore.unwrap_or(usual)
    }
}
