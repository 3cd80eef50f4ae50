//! What follows a death: at once again, later again, rest, or give up.
//!
//! Pure: the tally, the verdict and a random number in, one [`Next`] out.

use std::time::Duration;

use super::{ladder::Step, policy::Policy};
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
/// 1. An engine that had worked, was told to end from outside and is not wanted for good, rests:
///    somebody's wish is no death to count.
/// 2. A rung that was on trial is left again at once, and uncounted: the trial was our own idea.
/// 3. A cause that only a person can mend, and the end of the ladder, give up; an essential slot
///    retries at the cap.
/// 4. After `max_restarts` in a row it gives up; an essential slot goes on at the cap.
/// 5. A lower rung that answers a lack of memory is tried at once: it is not what has just failed.
/// 6. The first death of an engine that had worked: if it ended by itself without a fault and nobody
///    wants it loaded for good, it rests; else it starts again at once.
/// 7. Everything else waits: the base delay, doubled each time up to the cap, jittered.
pub(super) fn next(
    policy: &Policy,
    profile: &Profile,
    tally: &mut Tally,
    (death, step, random): (&Death, Step, u64),
) -> Next {
    if was_a_wish(profile, death) {
        return Next::Rest; // (1)
    }
    if step == Step::BackDown {
        return Next::AtOnce; // (2)
    }
    let resident = profile.is_kept();
    let earlier = *tally;
    tally.deaths = tally.deaths.saturating_add(1);
    let needs_person = death.verdict.needs_person() || step == Step::Exhausted; // (3)
    let hopeless = needs_person || earlier.deaths >= profile.max_restarts; // (4)
    if hopeless && !profile.essential {
        return Next::GiveUp;
    }
    if !hopeless && step == Step::Down && death.verdict.is_oom() {
        return Next::AtOnce; // (5)
    }
    if !hopeless && earlier.deaths == 0 && death.phase == Phase::Serving {
        return if ended_well(death) && !resident { Next::Rest } else { Next::AtOnce }; // (6)
    }
    let exponent = if hopeless { u32::MAX } else { earlier.delays };
    tally.delays = tally.delays.saturating_add(1);
    Next::After(delay(policy, exponent, random)) // (7)
}

/// Tells whether somebody told an engine to end that nobody wants loaded for good.
pub(super) fn was_a_wish(profile: &Profile, death: &Death) -> bool {
    let resident = profile.is_kept();
    death.phase == Phase::Serving && !resident && was_told_to_end(death)
}

/// Tells whether somebody other than slotd asked the engine to end, and it obeyed.
fn was_told_to_end(death: &Death) -> bool {
    const HANG_UP: i32 = 1;
    const INTERRUPT: i32 = 2;
    const TERMINATE: i32 = 15;
    match death.evidence.as_ref().map(|evidence| evidence.status) {
        Some(ExitStatus::Signal(signal)) => {
            death.verdict == Verdict::KilledByOther
                && matches!(signal, HANG_UP | INTERRUPT | TERMINATE)
        }
        Some(ExitStatus::Code(_) | ExitStatus::Unknown) | None => false,
    }
}

/// Tells whether the engine ended without a fault. One that does so again and again is at fault.
fn ended_well(death: &Death) -> bool {
    let status = death.evidence.as_ref().map(|evidence| evidence.status);
    status == Some(ExitStatus::Code(0))
}

/// Returns the base delay doubled `exponent` times, at most the cap, within ±10 %.
fn delay(policy: &Policy, exponent: u32, random: u64) -> Duration {
    let factor = 1_u32.checked_shl(exponent).unwrap_or(u32::MAX);
    let plain = policy.backoff_base.saturating_mul(factor).min(policy.backoff_cap);
    // 900 to 1100 thousandths.
    let thousandths = u32::try_from(900 + random % 201).unwrap_or(1000);
    plain.saturating_mul(thousandths) / 1000
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spec::{
        Generation,
        death::{Confidence, Evidence},
        ladder::LadderChoice,
        profile::{EngineChoice, OnExit, Pull},
        requests::Requests,
        residence::Residence,
    };

    pub(in crate::supervisor) fn profile() -> Profile {
        Profile {
            slot: "chat".parse().unwrap(),
            source: "chat.toml".into(),
            model: None,
            engine: EngineChoice::Auto,
            stop_command: Vec::new(),
            args: Vec::new(),
            env: BTreeMap::new(),
            aliases: Vec::new(),
            routes: Vec::new(),
            resume: false,
            capabilities: Vec::new(),
            context: None,
            parallel: None,
            threads: None,
            gpu_layers: None,
            ladder: LadderChoice::default(),
            autostart: false,
            essential: false,
            max_restarts: 3,
            start_timeout: Duration::from_mins(1),
            stop_timeout: Duration::from_secs(10),
            hang_timeout: None,
            idle_timeout: None,
            on_exit: OnExit::Stop,
            pull: Pull::Never,
            residence: Residence::default(),
            requests: Requests::default(),
        }
    }

    fn death(verdict: Verdict, phase: Phase, status: ExitStatus) -> Death {
        Death {
            generation: Generation(1),
            pid: Some(1),
            verdict,
            confidence: Confidence::Certain,
            reason: String::new(),
            phase,
            ran_for: Duration::from_secs(1),
            at_unix_ms: 0,
            evidence: Some(Evidence::of(status)),
        }
    }

    fn crash(phase: Phase) -> Death {
        death(Verdict::Crash, phase, ExitStatus::Signal(11))
    }

    fn after(profile: &Profile, deaths: u32, death: &Death) -> Next {
        let mut tally = Tally { deaths, delays: deaths };
        next(&Policy::default(), profile, &mut tally, (death, Step::Stays, 100))
    }

    #[test]
    fn the_first_death_of_a_working_engine_waits_for_nothing() {
        assert_eq!(after(&profile(), 0, &crash(Phase::Serving)), Next::AtOnce);
    }

    #[test]
    fn the_first_death_of_a_load_waits() {
        let wait = Next::After(Duration::from_secs(5));
        assert_eq!(after(&profile(), 0, &crash(Phase::Starting)), wait);
    }

    #[test]
    fn delays_double_up_to_the_cap() {
        let profile = Profile { max_restarts: 100, ..profile() };
        let mut tally = Tally::default();
        let mut draw = || {
            let crash = crash(Phase::Starting);
            next(&Policy::default(), &profile, &mut tally, (&crash, Step::Stays, 100))
        };
        for seconds in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(draw(), Next::After(Duration::from_secs(seconds)));
        }
        // Nor does it overflow, however long that goes on.
        for _ in 0..80 {
            assert_eq!(draw(), Next::After(Duration::from_mins(5)));
        }
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        let policy = Policy::default();
        for random in 0..1000 {
            let delay = delay(&policy, 0, random).as_millis();
            assert!((4500..=5500).contains(&delay), "{delay} ms");
        }
        assert_eq!(delay(&policy, 0, 0).as_millis(), 4500);
        assert_eq!(delay(&policy, 0, 200).as_millis(), 5500);
    }

    #[test]
    fn as_many_restarts_as_are_allowed_are_made() {
        assert!(matches!(after(&profile(), 2, &crash(Phase::Serving)), Next::After(_)));
        assert_eq!(after(&profile(), 3, &crash(Phase::Serving)), Next::GiveUp);
        let none = Profile { max_restarts: 0, ..profile() };
        assert_eq!(after(&none, 0, &crash(Phase::Serving)), Next::GiveUp);
    }

    #[test]
    fn what_needs_a_person_is_not_tried_again() {
        for verdict in Verdict::ALL {
            let death = death(verdict, Phase::Starting, ExitStatus::Code(1));
            let gives_up = after(&profile(), 0, &death) == Next::GiveUp;
            assert_eq!(gives_up, verdict.needs_person(), "{verdict}");
        }
    }

    #[test]
    fn a_step_on_the_ladder_is_made_at_once_and_its_end_is_the_end() {
        let oom = death(Verdict::OomHost, Phase::Starting, ExitStatus::Signal(9));
        let policy = Policy::default();
        let mut tally = Tally { deaths: 1, delays: 1 };
        let mut after = |step| next(&policy, &profile(), &mut tally, (&oom, step, 100));
        assert_eq!(after(Step::BackDown), Next::AtOnce);
        assert_eq!(after(Step::Down), Next::AtOnce);
        assert_eq!(after(Step::Exhausted), Next::GiveUp);
        assert_eq!(tally, Tally { deaths: 3, delays: 1 }, "a failed trial is not counted");
        assert_eq!(next(&policy, &profile(), &mut tally, (&oom, Step::Down, 100)), Next::GiveUp);
    }

    #[test]
    fn an_essential_slot_goes_on_at_the_cap() {
        let essential = Profile { essential: true, ..profile() };
        let at_the_cap = Next::After(Duration::from_mins(5));
        assert_eq!(after(&essential, 3, &crash(Phase::Serving)), at_the_cap);
        let refused = death(Verdict::BadConfig, Phase::Starting, ExitStatus::Code(1));
        assert_eq!(after(&essential, 0, &refused), at_the_cap);
    }

    #[test]
    fn an_engine_told_to_end_rests_unless_it_is_wanted_for_good() {
        let told = [
            death(Verdict::UnexpectedExit, Phase::Serving, ExitStatus::Code(0)),
            death(Verdict::KilledByOther, Phase::Serving, ExitStatus::Signal(15)),
        ];
        for death in &told {
            assert_eq!(after(&profile(), 0, death), Next::Rest);
            let autostart = Profile { autostart: true, ..profile() };
            assert_eq!(after(&autostart, 0, death), Next::AtOnce);
            let essential = Profile { essential: true, ..profile() };
            assert_eq!(after(&essential, 0, death), Next::AtOnce);
        }
        // A wish is granted each time; an engine that always ends by itself is at fault.
        assert!(matches!(after(&profile(), 1, &told[0]), Next::After(_)));
        assert_eq!(after(&profile(), 9, &told[1]), Next::Rest);
        let killed = death(Verdict::KilledByOther, Phase::Serving, ExitStatus::Signal(9));
        assert_eq!(after(&profile(), 0, &killed), Next::AtOnce);
    }
}
