//! What a person orders of a slot's stay, over what its profile says: also of one that is not running.

use super::{
    Supervisor,
    command::Command,
    slot::{After, Context, Slot, State},
};
use crate::spec::{SlotName, residence::StayOrder};

impl Supervisor {
    /// Takes an order; nothing for a slot that is not there.
    pub(super) fn order_stay(
        &mut self,
        name: &SlotName,
        order: StayOrder,
        commands: &mut Vec<Command>,
    ) {
        self.with(name, commands, |slot, context| match order {
            StayOrder::Pin => slot.orders.pinned = Some(true),
            StayOrder::Unpin => slot.orders.pinned = Some(false),
            StayOrder::Priority(priority) => slot.orders.priority = priority,
            StayOrder::Offload => slot.offload(context),
        });
        // What the profile says anyway is no order.
        if let Some(slot) = self.slots.get_mut(name) {
            let said = slot.profile.residence.pinned;
            slot.orders.pinned = slot.orders.pinned.filter(|pinned| *pinned != said);
        }
        self.look.touch();
    }
}

impl Slot {
    /// Goes down one rung of its ladder, where it is known to have one more: a present engine is replaced once
    /// its requests have ended, the next start is lower where there is none.
    fn offload(&mut self, context: &mut Context<'_>) {
        let view = self.ladder.view(false);
        let has_lower = view.is_some_and(|view| view.index + 1 < view.of);
        if !has_lower || self.profile.is_external() {
            return;
        }
        self.ladder.settle_on(self.ladder.at() + 1, context.now, context.policy);
        if let State::Ready(serving) | State::Unready(serving) = &self.state {
            let serving = serving.clone();
            self.state = self.drain(&serving, After::Start, context);
            self.since = context.now;
        }
    }

    /// Tells whether it is never unloaded for another, by its profile or a person's word.
    pub(super) fn is_pinned(&self) -> bool {
        self.orders.pinned.unwrap_or(self.profile.residence.pinned)
    }

    /// Returns its priority, by a person's word or its profile.
    pub(super) fn priority(&self) -> u32 {
        self.orders.priority.unwrap_or_else(|| self.profile.residence.priority())
    }
}
