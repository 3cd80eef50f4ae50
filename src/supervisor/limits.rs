//! How many engines may be there at once, together and for each kind of work.

use std::collections::BTreeMap;

use crate::spec::profile::Capability;

use super::policy::Policy;

/// What may still come.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Limits {
    /// `None` without a limit. Below zero where more are there than may.
    all: Option<i64>,
    each: BTreeMap<Capability, i64>,
}

impl Limits {
    /// Nobody is there yet.
    pub(super) fn of(policy: &Policy) -> Self {
        Self {
            all: policy.max_resident.map(i64::from),
            each: policy
                .max_resident_per
                .iter()
                .map(|(kind, most)| (*kind, i64::from(*most)))
                .collect(),
        }
    }

    /// Counts one that is there.
    pub(super) fn come(&mut self, capabilities: &[Capability]) {
        self.change(capabilities, -1);
    }

    /// Counts one that is gone.
    pub(super) fn leave(&mut self, capabilities: &[Capability]) {
        self.change(capabilities, 1);
    }

    /// Counts many that are gone: how many, and how many of each kind.
    pub(super) fn leave_many(&mut self, count: i64, kinds: &BTreeMap<Capability, i64>) {
        if let Some(all) = &mut self.all {
            *all = all.saturating_add(count);
        }
        for (kind, count) in kinds {
            if let Some(left) = self.each.get_mut(kind) {
                *left = left.saturating_add(*count);
            }
        }
    }

    /// Tells whether one more may come.
    pub(super) fn admits(&self, capabilities: &[Capability]) -> bool {
        let is_free = |left: &i64| *left > 0;
        self.all.as_ref().is_none_or(is_free)
            && capabilities.iter().filter_map(|kind| self.each.get(kind)).all(is_free)
    }

    fn change(&mut self, capabilities: &[Capability], by: i64) {
        if let Some(all) = &mut self.all {
            *all += by;
        }
        for kind in capabilities {
            if let Some(left) = self.each.get_mut(kind) {
                *left += by;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_work_has_its_own_limit() {
        let policy = Policy {
            max_resident: Some(3),
            max_resident_per: BTreeMap::from([(Capability::Chat, 1)]),
            ..Policy::default()
        };
        let mut limits = Limits::of(&policy);
        limits.come(&[Capability::Chat, Capability::Completion]);
        assert!(!limits.admits(&[Capability::Chat]));
        assert!(limits.admits(&[Capability::Embed]));
        limits.come(&[Capability::Embed]);
        limits.come(&[Capability::Rerank]);
        assert!(!limits.admits(&[Capability::Embed]));
        limits.leave(&[Capability::Chat, Capability::Completion]);
        assert!(limits.admits(&[Capability::Chat]));
        assert!(Limits::default().admits(&[Capability::Chat]));
    }
}
