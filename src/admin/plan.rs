//! What profiles would change, were they in force: compared with what is, and nothing is changed.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{InFlight, slot::ms};
use crate::{
    spec::{
        SlotName,
        difference::{Difference, differences},
        profile::Profile,
    },
    supervisor::{SlotView, Snapshot, StateView},
};

/// The body of `POST /v1/plan`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// The profiles as they would be, by slot.
    pub profiles: BTreeMap<SlotName, Profile>,
}

/// The answer of `POST /v1/plan`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct PlanObject {
    /// What each of the profiles would do.
    pub slots: Vec<PlannedObject>,
    /// The slots that none of the profiles is of.
    pub others: Vec<OtherObject>,
}

/// What one profile would do to its slot.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PlannedObject {
    /// The slot.
    pub slot: SlotName,
    /// What would happen.
    pub action: Action,
    /// What differs from the profile in force.
    pub differences: Vec<Difference>,
    /// The state of the slot; `null` for a new one.
    pub state: Option<String>,
    /// Requests that its engine works on, which end first; `null` without an engine.
    pub in_flight: Option<u32>,
    /// How long they are given.
    pub stop_timeout_ms: u64,
    /// Loaded at once where it is new.
    pub autostart: bool,
    /// The profile is an edit that has failed already, and is not tried again by itself.
    pub has_failed: bool,
}

/// A slot that no profile was given of.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct OtherObject {
    /// The slot.
    pub slot: SlotName,
    /// The file of its profile.
    pub source: PathBuf,
    /// Requests that its engine works on; `null` without an engine.
    pub in_flight: Option<u32>,
    /// How long they would be given.
    pub stop_timeout_ms: u64,
}

/// What an edit does to a slot.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The profile says what is in force.
    Nothing,
    /// It takes effect without a new engine.
    Update,
    /// Requests in flight end, then another engine is started.
    Restart,
    /// There is no such slot yet.
    New,
    /// The slot goes once its requests have ended.
    Removed,
    /// The file has faults, and the profile in force stays.
    Refused,
}

impl PlanObject {
    /// Compares.
    pub(super) fn of(request: &PlanRequest, snapshot: &Snapshot, in_flight: &InFlight) -> Self {
        let slots = request.profiles.iter();
        let is_other = |name: &SlotName| {
            !request.profiles.contains_key(name) && name.stands_in_for().is_none()
        };
        let others = snapshot.slots.iter().filter(|(name, _)| is_other(name));
        Self {
            slots: slots
                .map(|(name, profile)| match snapshot.slots.get(name) {
                    Some(view) => PlannedObject::of(profile, view, in_flight(name)),
                    None => PlannedObject::new(profile),
                })
                .collect(),
            others: others
                .map(|(name, view)| OtherObject {
                    slot: name.clone(),
                    source: view.profile.source.clone(),
                    in_flight: in_flight(name),
                    stop_timeout_ms: ms(view.profile.stop_timeout),
                })
                .collect(),
        }
    }
}

impl PlannedObject {
    /// Makes the plan of a slot that is not there.
    pub fn new(profile: &Profile) -> Self {
        Self {
            slot: profile.slot.clone(),
            action: Action::New,
            differences: Vec::new(),
            state: None,
            in_flight: None,
            stop_timeout_ms: ms(profile.stop_timeout),
            autostart: profile.autostart,
            has_failed: false,
        }
    }

    fn of(profile: &Profile, view: &SlotView, in_flight: Option<u32>) -> Self {
        let rejected = view.edits.rejected.as_ref();
        let has_failed =
            rejected.is_some_and(|edit| differences(&edit.profile, profile).is_empty());
        let differences = differences(&view.profile, profile);
        let restarts = differences.iter().any(|difference| difference.restarts);
        let action = if differences.is_empty() || has_failed {
            Action::Nothing
        } else if restarts && has_engine(&view.state) {
            Action::Restart
        } else {
            Action::Update
        };
        Self {
            action,
            differences,
            state: Some(view.state.as_str().to_owned()),
            in_flight,
            has_failed,
            ..Self::new(profile)
        }
    }
}

fn has_engine(state: &StateView) -> bool {
    match state {
        StateView::Offline
        | StateView::Queued { .. }
        | StateView::Backoff { .. }
        | StateView::Failed
        | StateView::Absent { .. } => false,
        StateView::Starting { .. }
        | StateView::Ready { .. }
        | StateView::Unready { .. }
        | StateView::Draining { .. }
        | StateView::Stopping { .. }
        | StateView::Reaping { .. }
        | StateView::Coming { .. }
        | StateView::Present { .. }
        | StateView::Parting => true,
    }
}
