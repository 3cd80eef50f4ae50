//! Edits of a slot's profile: on trial until an engine of theirs is ready, undone if none becomes so.
//!
//! ```text
//!           edit of the engine         became ready
//!  worked ─────────────────────▶ on trial ─────────▶ worked
//!    ▲                              │ start failed
//!    └──── edit, restart ◀── rejected: the profile that worked is in force
//! ```
//!
//! An edit is on trial while the profile in force starts another engine than the one that worked
//! last. It stays so while its ladder answers a lack of memory with a lower rung at once: that is
//! the edit's own way to become ready.

use std::{mem, sync::Arc};

use super::{
    input::Input,
    ladder::Ladder,
    slot::{After, Context, Slot, State},
};
use crate::spec::{
    death::{Death, Phase},
    edit::{Edits, Rejected, Worked},
    profile::Profile,
};

/// Decides which profile a slot begins with, by what an earlier life of the daemon remembered:
/// an edit that failed is not tried again while its file says the same.
pub(super) fn recall(profile: Arc<Profile>, edits: Edits) -> (Arc<Profile>, Edits) {
    match edits {
        _ if profile.is_external() => (profile, Edits::default()),
        Edits { worked: Some(worked), rejected: Some(rejected) } if rejected.profile == profile => {
            let in_force = worked.under_the_names_of(&profile);
            (in_force, Edits { worked: Some(worked), rejected: Some(rejected) })
        }
        Edits { worked, rejected: _ } => (profile, Edits { worked, rejected: None }),
    }
}

impl Slot {
    /// Returns the profile as its file says it, be it in force or not.
    pub(super) fn profile_on_disk(&self) -> &Arc<Profile> {
        self.edits.rejected.as_ref().map_or(&self.profile, |rejected| &rejected.profile)
    }

    /// Puts an edit in force, and returns the profile that was.
    pub(super) fn take_edit(&mut self, profile: Arc<Profile>) -> Arc<Profile> {
        self.edits.rejected = None;
        if profile.is_external() {
            // There is no start that could fail, and no way back from it to an engine of ours.
            self.edits.worked = None;
        }
        let previous = mem::replace(&mut self.profile, profile);
        // What can change under a running engine is not on trial.
        if let Some(worked) = &mut self.edits.worked
            && worked.profile.starts_same_engine(&self.profile)
        {
            worked.profile = Arc::clone(&self.profile);
        }
        previous
    }

    /// A person's restart tries a rejected edit once more. An engine that is being spawned goes on as
    /// it was ordered.
    pub(super) fn retry_edit(&mut self, input: &Input) {
        if !matches!(input, Input::Restart) || matches!(self.state, State::Spawning { .. }) {
            return;
        }
        if let Some(rejected) = self.edits.rejected.take() {
            self.profile = rejected.profile;
            self.ladder.forget();
        }
    }

    /// Notes that an engine of the profile in force is ready.
    pub(super) fn note_worked(&mut self) {
        let (profile, rung) = (Arc::clone(&self.profile), self.ladder.at());
        self.edits.worked = Some(Worked { profile, rung });
    }

    /// Takes the profile that worked up again after the failed start of an edit; nothing if there is
    /// no such profile.
    pub(super) fn roll_back(&mut self, death: &Death, context: &Context<'_>) -> Option<After> {
        if death.phase != Phase::Starting {
            return None;
        }
        let is_another = |worked: &&Worked| !worked.profile.starts_same_engine(&self.profile);
        let worked = self.edits.worked.as_ref().filter(is_another)?;
        let (in_force, rung) = (worked.under_the_names_of(&self.profile), worked.rung);
        let edit = mem::replace(&mut self.profile, in_force);
        self.edits.rejected = Some(Rejected {
            profile: edit,
            generation: death.generation,
            verdict: death.verdict,
            reason: death.reason.clone(),
            at_unix_ms: death.at_unix_ms,
        });
        self.forgive();
        self.ladder = Ladder::new(rung, context.now, context.policy);
        self.add_to_last_reason("the profile that worked before is in force again");
        Some(After::Restart)
    }
}
