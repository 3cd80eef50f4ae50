//! What people are shown of rules, and what rules have asked for of each slot.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    admin::{RuleActObject, RuleObject},
    spec::{
        SlotName,
        rule::{Rule, RuleOrder},
    },
};

/// What people are shown.
#[derive(Clone, Debug, Default)]
pub(in crate::runtime) struct RuleBoard(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    rules: Vec<RuleObject>,
    acts: BTreeMap<SlotName, RuleActObject>,
}

impl RuleBoard {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the rules as they are.
    pub(super) fn show(&self, rules: Vec<RuleObject>) {
        self.inner().rules = rules;
    }

    /// Notes what a rule asks for, for each slot that it is about: whether it is done is for the core to say.
    pub(super) fn note(&self, rule: &Rule, order: &RuleOrder, at_unix_ms: u64) {
        let mut inner = self.inner();
        for slot in order.slots() {
            let act = RuleActObject {
                rule: rule.name.clone(),
                when: rule.when.to_string(),
                order: order.to_string(),
                at_unix_ms,
            };
            inner.acts.insert(slot.clone(), act);
        }
    }

    /// Returns the rules.
    pub(in crate::runtime) fn rules(&self) -> Vec<RuleObject> {
        self.inner().rules.clone()
    }

    /// Returns what a rule asked for last of a slot.
    pub(in crate::runtime) fn act_on(&self, slot: &SlotName) -> Option<RuleActObject> {
        self.inner().acts.get(slot).cloned()
    }
}
