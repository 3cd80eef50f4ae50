//! What is known of the edits of a profile: which one worked last, and which one did not.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Generation, death::Verdict, profile::Profile};

/// The edits of one slot's profile, as far as they matter.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Edits {
    /// The profile whose engine was the last to become ready; none if it has given up since.
    pub worked: Option<Worked>,
    /// What the file says, where that is not in force: [`Edits::worked`] was taken up again.
    pub rejected: Option<Rejected>,
}

/// A profile whose engine became ready.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Worked {
    /// The profile.
    pub profile: Arc<Profile>,
    /// The rung of its ladder on which the engine became ready, from 0.
    pub rung: usize,
}

/// An edit whose engine did not become ready.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Rejected {
    /// The profile as the file says it.
    pub profile: Arc<Profile>,
    /// The start that failed.
    pub generation: Generation,
    /// Why it failed.
    pub verdict: Verdict,
    /// One sentence for a person.
    pub reason: String,
    /// Wall-clock time of the failure in milliseconds since 1970; 0 until its evidence is there.
    pub at_unix_ms: u64,
}

impl Worked {
    /// Returns the profile with those of its names that `edit` grants too: what the edit gives up,
    /// another slot may have taken.
    pub fn under_the_names_of(&self, edit: &Profile) -> Arc<Profile> {
        let Profile { aliases, routes, .. } = &*self.profile;
        let is_granted = |alias: &String| edit.aliases.contains(alias);
        let is_shared = |route: &String| edit.routes.contains(route);
        if aliases.iter().all(is_granted) && routes.iter().all(is_shared) {
            return Arc::clone(&self.profile);
        }
        let mut profile = Profile::clone(&self.profile);
        profile.aliases.retain(is_granted);
        profile.routes.retain(is_shared);
        Arc::new(profile)
    }
}
