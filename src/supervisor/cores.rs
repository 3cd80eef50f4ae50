//! How many CPU cores an engine is given.
//!
//! Pure. Engines that compute on the same cores slow each other down by far more than they share,
//! because each waits for its slowest thread. A running engine keeps its threads, so the others are
//! thought of before they come:
//!
//! 1. Threads that a profile names are taken as they are, and counted.
//! 2. The crowd that is planned for: every slot that is kept loaded, and one that is loaded on
//!    demand; two slots at least, where there are two.
//! 3. A start takes an equal part, rounded up, of what is free for those of the crowd that are still
//!    to come, itself among them.
//! 4. Whoever comes when the crowd is complete takes all that is free, and one core at least.

use super::{policy::Policy, slot::Slot};
use crate::{engine::CoreNeed, spec::profile::Profile};

/// The other slots, as far as the cores are concerned.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Neighbours {
    /// Cores of engines that are there or ordered, and of those kept loaded that say their own.
    taken: u32,
    /// Slots that are kept loaded and whose engine is still to come.
    coming: u32,
    /// Slots that are kept loaded and whose engine is there.
    kept: u32,
    /// On-demand slots whose engine is there.
    visiting: u32,
    /// On-demand slots without an engine.
    away: u32,
}

impl Neighbours {
    /// Takes one more slot into account.
    pub(super) fn add(&mut self, slot: &Slot, policy: &Policy) {
        let one = Self::alone(&slot.applied_profile(), slot.cores_held(), policy);
        self.change(one, u32::saturating_add);
    }

    /// Takes a slot out that is as it was when it was added.
    pub(super) fn remove(&mut self, slot: &Slot, policy: &Policy) {
        let one = Self::alone(&slot.applied_profile(), slot.cores_held(), policy);
        self.change(one, u32::saturating_sub);
    }

    fn change(&mut self, one: Self, by: fn(u32, u32) -> u32) {
        self.taken = by(self.taken, one.taken);
        self.coming = by(self.coming, one.coming);
        self.kept = by(self.kept, one.kept);
        self.visiting = by(self.visiting, one.visiting);
        self.away = by(self.away, one.away);
    }

    /// Counts one slot; `held` are the cores of its engine, where there is one.
    fn alone(profile: &Profile, held: Option<u32>, policy: &Policy) -> Self {
        let mut one = Self::default();
        let need = CoreNeed::expected(profile, policy.machine);
        let is_kept = profile.is_kept();
        let others = match (held, need) {
            (Some(held), _) => held,
            (None, CoreNeed::Said(_) | CoreNeed::Feeder) if is_kept => need.counted(0),
            (None, CoreNeed::Share | CoreNeed::Said(_) | CoreNeed::Feeder | CoreNeed::Unknown) => 0,
        };
        one.taken = others;
        if need != CoreNeed::Share {
            return one;
        }
        let counter = match (is_kept, held.is_some()) {
            (true, true) => &mut one.kept,
            (true, false) => &mut one.coming,
            (false, true) => &mut one.visiting,
            (false, false) => &mut one.away,
        };
        *counter = 1;
        one
    }

    /// Returns the share of a start of `profile`, should its engine want one, and how many cores it
    /// is counted with until its engine is known.
    pub(super) fn share(&self, profile: &Profile, policy: &Policy) -> (u32, u32) {
        let free = policy.machine.cores.saturating_sub(self.taken);
        let parts = self.expected(profile.is_kept()).saturating_add(1);
        let share = free.div_ceil(parts).max(1);
        (share, CoreNeed::expected(profile, policy.machine).counted(share))
    }

    /// How many of the crowd are still to come beside the one that starts.
    fn expected(&self, is_kept: bool) -> u32 {
        let others_kept = self.kept + self.coming;
        let is_guest_due = self.visiting == 0 && self.away > 0 && (is_kept || others_kept == 0);
        self.coming + u32::from(is_guest_due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::Machine, spec::profile::EngineChoice,
        supervisor::restart::tests::profile as example,
    };

    /// Slots as they stand: kept loaded or not, their own threads, the cores of their engine.
    type Stand = (bool, Option<u32>, Option<u32>);

    const KEPT: (bool, Option<u32>) = (true, None);
    const GUEST: (bool, Option<u32>) = (false, None);

    fn profile((autostart, threads): (bool, Option<u32>)) -> Profile {
        Profile { threads, autostart, ..example() }
    }

    fn policy(cores: u32) -> Policy {
        Policy { machine: Machine { cores, has_gpu: false }, ..Policy::default() }
    }

    fn share(cores: u32, slot: (bool, Option<u32>), others: &[Stand]) -> u32 {
        let mut neighbours = Neighbours::default();
        for (is_kept, threads, held) in others {
            let one = Neighbours::alone(&profile((*is_kept, *threads)), *held, &policy(cores));
            neighbours.change(one, u32::saturating_add);
        }
        neighbours.share(&profile(slot), &policy(cores)).0
    }

    /// Starts slots one after the other; what each got.
    fn starts(cores: u32, slots: &[(bool, Option<u32>)]) -> Vec<u32> {
        let mut held = vec![None; slots.len()];
        for (index, slot) in slots.iter().enumerate() {
            let others: Vec<Stand> = slots
                .iter()
                .zip(&held)
                .enumerate()
                .filter(|(other, _)| *other != index)
                .map(|(_, ((kept, threads), held))| (*kept, *threads, *held))
                .collect();
            held[index] = Some(slot.1.unwrap_or_else(|| share(cores, *slot, &others)));
        }
        held.into_iter().flatten().collect()
    }

    #[test]
    fn a_slot_that_is_alone_has_all_cores() {
        assert_eq!(starts(16, &[KEPT]), [16]);
        assert_eq!(starts(16, &[GUEST]), [16]);
    }

    #[test]
    fn slots_that_are_kept_loaded_have_equal_parts_that_add_up() {
        assert_eq!(starts(2, &[KEPT; 2]), [1, 1]);
        assert_eq!(starts(16, &[KEPT; 3]), [6, 5, 5]);
        assert_eq!(starts(4, &[KEPT; 6]), [1; 6], "one core at least");
    }

    #[test]
    fn of_many_on_demand_slots_two_are_thought_of() {
        assert_eq!(starts(16, &[GUEST; 2]), [8, 8]);
        assert_eq!(starts(16, &[GUEST; 12])[..3], [8, 8, 1]);
    }

    #[test]
    fn one_on_demand_slot_is_thought_of_beside_those_that_are_kept() {
        assert_eq!(starts(16, &[KEPT, GUEST, GUEST]), [8, 8, 1]);
        assert_eq!(starts(16, &[KEPT, KEPT, GUEST, GUEST]), [6, 5, 5, 1]);
    }

    #[test]
    fn who_comes_back_finds_the_part_that_it_left() {
        let others = [(true, None, Some(5)), (true, None, Some(5))];
        assert_eq!(share(16, KEPT, &others), 6);
        let gone = [(false, None, None), (false, None, Some(8))];
        assert_eq!(share(16, GUEST, &gone), 8);
    }

    #[test]
    fn threads_of_a_profile_are_kept_and_counted() {
        assert_eq!(starts(16, &[(true, Some(4)), KEPT, KEPT]), [4, 6, 6]);
        assert_eq!(starts(16, &[KEPT, (true, Some(4))]), [12, 4], "before it has come, too");
        assert_eq!(starts(16, &[KEPT, (false, Some(4))]), [16, 4], "it may never come");
        assert_eq!(starts(4, &[(true, Some(64)), KEPT]), [64, 1]);
    }

    #[test]
    fn programs_of_their_own_words_do_not_count() {
        let mut neighbours = Neighbours::default();
        let mut command = profile(KEPT);
        command.engine = EngineChoice::Command(Vec::new());
        let one = Neighbours::alone(&command, Some(0), &policy(8));
        neighbours.change(one, u32::saturating_add);
        assert_eq!(neighbours.share(&profile(KEPT), &policy(8)), (8, 8));
        assert_eq!(neighbours.share(&command, &policy(8)).1, 0);
    }
}
