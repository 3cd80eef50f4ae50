//! What follows a death: at once again, later again, rest, or give up.
//!
//! Pure: the tally, the verdict and a random number in, one [`Next`] out.

use std::time::Duration;

use super::policy::Policy;
use crate::spec::{
    death::{Death, ExitStatus, Phase, Verdict},
    profile::Profile,
};

/// Deaths in a row without a healthy run in between.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Tally {
    /// How many deaths.
    pub(super) deaths: u32,
    /// How many of the restarts between them waited.
    pub(super) delays: u32,
}

/// What follows a death.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Next {
    /// Start again at once.
    AtOnce,
    /// Start again after this delay.
    After(Duration),
    /// Stay down until a request or a person asks: somebody stopped it on purpose.
    Rest,
    /// Stay down until a person, an edit or a new file changes something.
    GiveUp,
}

/// Decides what follows `death`, which `tally` does not count yet, and counts it.
///
/// 1. A cause that only a person can mend gives up; an essential slot retries at the cap.
/// 2. After `max_restarts` in a row it gives up; an essential slot goes on at the cap.
/// 3. The first death of an engine that had worked: if it was told to end from outside and nobody
///    wants it loaded for good, it rests; else it starts again at once.
/// 4. Everything else waits: the base delay, doubled each time up to the cap, jittered.
pub(super) fn next(
    policy: &Policy,
    profile: &Profile,
    tally: &mut Tally,
    death: &Death,
    random: u64,
) -> Next {
    let earlier = *tally;
    tally.deaths = tally.deaths.saturating_add(1);
    let hopeless = death.verdict.needs_person() || earlier.deaths >= profile.max_restarts; // (1) (2)
    if hopeless && !profile.essential {
        return Next::GiveUp;
    }
    if !hopeless && earlier.deaths == 0 && death.phase == Phase::Serving {
        let resident = profile.autostart || profile.essential;
        return if was_told_to_end(death) && !resident { Next::Rest } else { Next::AtOnce }; // (3)
    }
    let exponent = if hopeless { u32::MAX } else { earlier.delays };
    tally.delays = tally.delays.saturating_add(1);
    Next::After(delay(policy, exponent, random)) // (4)
}

/// Tells whether somebody other than slotd asked the engine to end, and it obeyed.
fn was_told_to_end(death: &Death) -> bool {
    const HANG_UP: i32 = 1;
    const INTERRUPT: i32 = 2;
    const TERMINATE: i32 = 15;
    match death.evidence.as_ref().map(|evidence| evidence.status) {
        Some(ExitStatus::Code(0)) => true,
        Some(ExitStatus::Signal(signal)) => {
            death.verdict == Verdict::KilledByOther
                && matches!(signal, HANG_UP | INTERRUPT | TERMINATE)
        }
        Some(ExitStatus::Code(_) | ExitStatus::Unknown) | None => false,
    }
}

/// Returns the base delay doubled `exponent` times, at most the cap, within ±10 %.
fn delay(policy: &Policy, exponent: u32, random: u64) -> Duration {
    let factor = 1_u32.checked_shl(exponent).unwrap_or(u32::MAX);
    let plain = policy.backoff_base.saturating_mul(factor).min(policy.backoff_cap);
    // 900 to 1100 thousandths.
    let thousandths = u32::try_from(900 + random % 201).unwrap_or(1000);
    plain.saturating_mul(thousandths) / 1000
}
