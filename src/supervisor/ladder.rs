//! Which rung of its ladder a slot stands on, and when it leaves it.
//!
//! Pure. Down: at once, by an OOM verdict, or by several deaths of one cause in a row. Up: one rung
//! on trial, after a quiet time, once there is room and nobody uses the engine. A trial that fails
//! goes back down, and the next one waits twice as long.
//!
//! ```text
//!            climb            proven
//!  settled ────────▶ on trial ──────▶ climbed
//!     ▲                 │ any death      │ OOM
//!     └──── one down ◀──┴────────────────┘
//! ```

use std::{sync::Arc, time::Duration};

use super::policy::Policy;
use crate::spec::{
    Bytes, Monotime,
    death::{Death, Phase, Verdict},
    ladder::{Rung, RungView},
};

/// The least free memory that a climb is tried with.
const LEAST_ROOM: Bytes = Bytes(128 << 20);

/// A slot's place on its ladder.
#[derive(Clone, Debug)]
pub(super) struct Ladder {
    /// Best first; empty until an engine was chosen.
    rungs: Arc<[Rung]>,
    /// The rung of the next start.
    at: usize,
    /// The rung of the last start.
    started_on: usize,
    footing: Footing,
    /// Deaths of one cause in a row, on this rung and without a proven run in between.
    streak: Option<(Verdict, u32)>,
    /// How often a rung that had been climbed to was lost again.
    setbacks: u32,
    /// No climb before this.
    climb_from: Monotime,
}

/// How the present rung was come by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Footing {
    /// From above, or from the start.
    Settled,
    /// From below, and no run on it has proven itself yet.
    OnTrial,
    /// From below, and a run on it has.
    Climbed,
}

/// What a death did to the place on the ladder.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// Nothing.
    Stays,
    /// One rung down.
    Down,
    /// One rung back down after a trial.
    BackDown,
    /// It should go down, and there is nothing below.
    Exhausted,
}

impl Ladder {
    /// Stands on a remembered rung.
    pub(super) fn new(at: usize, now: Monotime, policy: &Policy) -> Self {
        Self {
            rungs: Arc::default(),
            at,
            started_on: at,
            footing: Footing::Settled,
            streak: None,
            setbacks: 0,
            climb_from: now.after(policy.climb_after),
        }
    }

    /// Returns the rung of the next start.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Tells whether the present rung was climbed to, and no run on it has proven itself yet.
    pub(super) fn is_on_trial(&self) -> bool {
        self.footing == Footing::OnTrial
    }

    /// Notes a start on the present rung, and returns it.
    pub(super) fn start(&mut self) -> usize {
        self.started_on = self.at;
        self.at
    }

    /// Returns the rung of the next start, where it is known.
    pub(super) fn rung(&self) -> Option<&Rung> {
        self.rungs.get(self.at)
    }

    /// Goes down to a rung that there is room for. What is above is tried again after a quiet time.
    pub(super) fn settle_on(&mut self, rung: usize, now: Monotime, policy: &Policy) {
        if rung > self.at {
            self.at = rung;
            self.footing = Footing::Settled;
            self.streak = None;
            self.climb_from = now.after(self.quiet_time(policy));
        }
    }

    /// Learns the rungs from a start; a ladder that has become shorter ends at its last one.
    pub(super) fn learn(&mut self, rungs: Arc<[Rung]>) {
        let last = rungs.len().saturating_sub(1);
        self.at = self.at.min(last);
        self.started_on = self.started_on.min(last);
        self.rungs = rungs;
    }

    /// Goes to the first rung: somebody asked for it, or the next engine is another one.
    pub(super) fn begin_anew(&mut self) {
        self.at = 0;
        self.footing = Footing::Settled;
        self.streak = None;
        self.setbacks = 0;
    }

    /// Forgets the rungs as well: they are another engine's.
    pub(super) fn forget(&mut self) {
        self.begin_anew();
        self.rungs = Arc::default();
    }

    /// Deaths so far say nothing of what comes.
    pub(super) fn forgive(&mut self) {
        self.streak = None;
    }

    /// A run on the present rung has proven itself.
    pub(super) fn prove(&mut self) {
        self.streak = None;
        if self.footing == Footing::OnTrial {
            self.footing = Footing::Climbed;
        }
    }

    /// Takes a death that nobody planned.
    ///
    /// 1. A rung on trial is left again, whatever the cause.
    /// 2. An OOM verdict, or the last of several deaths of one cause, goes one rung down.
    /// 3. With nothing below that could help, an engine that cannot even load is at its end.
    pub(super) fn suffer(&mut self, death: &Death, policy: &Policy, now: Monotime) -> Step {
        let step = self.step(death, policy);
        if matches!(step, Step::Down | Step::BackDown) {
            let had_climbed = self.footing != Footing::Settled;
            self.setbacks = self.setbacks.saturating_add(u32::from(had_climbed));
            // A trial can fail before its rungs are known.
            let last = self.rungs.len().checked_sub(1).unwrap_or(self.at + 1);
            self.at = (self.at + 1).min(last);
            self.footing = Footing::Settled;
            self.streak = None;
        }
        self.climb_from = now.after(self.quiet_time(policy));
        step
    }

    fn step(&mut self, death: &Death, policy: &Policy) -> Step {
        if self.footing == Footing::OnTrial {
            return Step::BackDown; // (1)
        }
        let is_oom = death.verdict.is_oom();
        if !is_oom && !self.is_worn_out_by(death.verdict, policy) {
            return Step::Stays;
        }
        if self.below(death.verdict).is_some() {
            return Step::Down; // (2)
        }
        let is_hopeless = is_oom && death.phase == Phase::Starting && self.rungs.len() > 1;
        if is_hopeless { Step::Exhausted } else { Step::Stays } // (3)
    }

    /// Counts deaths of one cause that a smaller engine may be spared.
    fn is_worn_out_by(&mut self, cause: Verdict, policy: &Policy) -> bool {
        let count = match self.streak {
            Some((before, count)) if before == cause => count.saturating_add(1),
            Some(_) | None => 1,
        };
        self.streak = Some((cause, count));
        let may_help = match cause {
            Verdict::Crash
            | Verdict::StartTimeout
            | Verdict::Hung
            | Verdict::Poisoned
            | Verdict::KilledByOther
            | Verdict::UnexpectedExit => true,
            Verdict::StoppedByUs
            | Verdict::OomHost
            | Verdict::OomDevice
            | Verdict::BadConfig
            | Verdict::MissingFile
            | Verdict::ModelNotFetched
            | Verdict::BadModel
            | Verdict::PortBusy
            | Verdict::SpawnFailed => false,
        };
        may_help && count >= policy.same_cause_deaths
    }

    /// Returns the next rung down, if it can help against `cause`.
    fn below(&self, cause: Verdict) -> Option<&Rung> {
        let (here, below) = (self.rungs.get(self.at)?, self.rungs.get(self.at + 1)?);
        // What leaves the GPU comes to the host.
        let is_in_vain = cause == Verdict::OomHost && below.only_moves_layers_off_the_gpu(here);
        (!is_in_vain).then_some(below)
    }

    /// Returns when to look for room to climb; `None` on the first rung.
    pub(super) fn look_at(&self, now: Monotime, policy: &Policy) -> Option<Monotime> {
        (self.at > 0).then(|| self.climb_from.max(now.after(policy.climb_idle)))
    }

    /// Tells whether a climb can be tried now, by what was measured. Unknown room is no room.
    pub(super) fn may_climb(
        &self,
        now: Monotime,
        policy: &Policy,
        (in_flight, idle_for): (u32, Duration),
        (free, used): (Option<Bytes>, Option<Bytes>),
    ) -> bool {
        let needed = LEAST_ROOM.max(Bytes(used.unwrap_or_default().0 / 4));
        let is_idle = in_flight == 0 && idle_for >= policy.climb_idle;
        let has_room = free.is_some_and(|free| free >= needed);
        self.at > 0 && now >= self.climb_from && is_idle && has_room
    }

    /// Goes one rung up, on trial.
    pub(super) fn climb(&mut self) {
        if let Some(above) = self.at.checked_sub(1) {
            self.at = above;
            self.footing = Footing::OnTrial;
            self.streak = None;
        }
    }

    fn quiet_time(&self, policy: &Policy) -> Duration {
        let factor = 1_u32.checked_shl(self.setbacks).unwrap_or(u32::MAX);
        let cap = policy.climb_cap.max(policy.climb_after);
        policy.climb_after.saturating_mul(factor).min(cap)
    }

    /// Returns the rung of the present child, or of the next one where there is none; `None` where
    /// nothing is known of a ladder and nothing was lowered.
    pub(super) fn view(&self, has_child: bool) -> Option<RungView> {
        let index = if has_child { self.started_on } else { self.at };
        let name = match self.rungs.get(index) {
            Some(rung) => rung.name().into_owned(),
            None if index == 0 => return None,
            None => format!("rung {}", index + 1),
        };
        Some(RungView { index, of: self.rungs.len(), name })
    }

    /// Says for a person where a death has led to.
    pub(super) fn told(&self, step: Step) -> Option<String> {
        let here = self.view(false)?;
        match step {
            Step::Stays => None,
            Step::Down => Some(format!("it goes on one rung lower: {}", here.name)),
            Step::BackDown => {
                Some(format!("that rung was on trial, it goes back to: {}", here.name))
            }
            Step::Exhausted => Some(format!("no lower rung can help, it was on: {}", here.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Generation, death::Confidence};

    fn ladder(contexts: &[u32]) -> Ladder {
        let mut ladder = Ladder::new(0, Monotime::default(), &Policy::default());
        let lower = contexts.iter().map(|n| Rung { context: Some(*n), ..Rung::default() });
        ladder.learn([Rung::default()].into_iter().chain(lower).collect());
        ladder
    }

    fn death(verdict: Verdict, phase: Phase) -> Death {
        Death {
            generation: Generation(1),
            pid: Some(1),
            verdict,
            confidence: Confidence::Certain,
            reason: String::new(),
            phase,
            ran_for: Duration::ZERO,
            at_unix_ms: 0,
            evidence: None,
        }
    }

    fn at(seconds: u64) -> Monotime {
        Monotime::from_start(Duration::from_secs(seconds))
    }

    fn oom(ladder: &mut Ladder) -> Step {
        let death = death(Verdict::OomHost, Phase::Starting);
        ladder.suffer(&death, &Policy::default(), at(0))
    }

    #[test]
    fn each_oom_goes_one_rung_down_until_there_is_none() {
        let mut ladder = ladder(&[2048, 1024]);
        assert_eq!((oom(&mut ladder), ladder.at()), (Step::Down, 1));
        assert_eq!((oom(&mut ladder), ladder.at()), (Step::Down, 2));
        assert_eq!((oom(&mut ladder), ladder.at()), (Step::Exhausted, 2));
    }

    #[test]
    fn an_oom_of_a_working_engine_on_the_last_rung_is_no_end() {
        let mut ladder = ladder(&[2048]);
        oom(&mut ladder);
        let served = death(Verdict::OomHost, Phase::Serving);
        assert_eq!(ladder.suffer(&served, &Policy::default(), at(0)), Step::Stays);
    }

    #[test]
    fn without_a_ladder_an_oom_is_a_death_like_any_other() {
        assert_eq!(oom(&mut ladder(&[])), Step::Stays);
        let mut unknown = Ladder::new(0, at(0), &Policy::default());
        assert_eq!(oom(&mut unknown), Step::Stays);
    }

    #[test]
    fn moving_layers_to_the_host_is_no_help_against_its_own_lack_of_memory() {
        let mut ladder = Ladder::new(0, at(0), &Policy::default());
        let on_the_cpu = Rung { gpu_layers: Some(0), ..Rung::default() };
        ladder.learn([Rung::default(), on_the_cpu].into());
        assert_eq!((oom(&mut ladder), ladder.at()), (Step::Exhausted, 0));
        let device = death(Verdict::OomDevice, Phase::Starting);
        assert_eq!(ladder.suffer(&device, &Policy::default(), at(0)), Step::Down);
    }

    #[test]
    fn five_deaths_of_one_cause_go_down_and_a_mix_does_not() {
        let (crash, killed) =
            (death(Verdict::Crash, Phase::Serving), death(Verdict::KilledByOther, Phase::Serving));
        let mut ladder = ladder(&[2048]);
        let mut suffer = |death| ladder.suffer(death, &Policy::default(), at(0));
        for _ in 0..4 {
            assert_eq!(suffer(&crash), Step::Stays);
        }
        assert_eq!(suffer(&killed), Step::Stays);
        for _ in 0..4 {
            assert_eq!(suffer(&crash), Step::Stays);
        }
        assert_eq!(suffer(&crash), Step::Down);
    }

    #[test]
    fn nothing_climbs_without_quiet_room_and_idleness() {
        let policy = Policy::default();
        let mut ladder = ladder(&[2048]);
        let idle = (0, Duration::from_secs(30));
        let room = (Some(Bytes(1 << 30)), Some(Bytes(1 << 30)));
        assert!(!ladder.may_climb(at(600), &policy, idle, room), "there is nothing above");
        oom(&mut ladder);
        assert!(ladder.may_climb(at(600), &policy, idle, room));
        assert!(!ladder.may_climb(at(599), &policy, idle, room), "not quiet for long enough");
        assert!(!ladder.may_climb(at(600), &policy, (1, Duration::ZERO), room), "in use");
        let just_used = (0, Duration::from_secs(29));
        assert!(!ladder.may_climb(at(600), &policy, just_used, room), "just used");
        let tight = (Some(Bytes(200 << 20)), Some(Bytes(1 << 30)));
        assert!(!ladder.may_climb(at(600), &policy, idle, tight), "no room");
        assert!(!ladder.may_climb(at(600), &policy, idle, (None, None)), "room not known");
    }

    #[test]
    fn a_failed_trial_goes_back_and_doubles_the_quiet_time() {
        let policy = Policy::default();
        let mut ladder = ladder(&[2048]);
        oom(&mut ladder);
        for minutes in [20, 40, 80] {
            ladder.climb();
            let crash = death(Verdict::Crash, Phase::Starting);
            assert_eq!((ladder.suffer(&crash, &policy, at(0)), ladder.at()), (Step::BackDown, 1));
            assert_eq!(ladder.look_at(at(0), &policy), Some(at(minutes * 60)));
        }
        for _ in 0..40 {
            ladder.climb();
            ladder.suffer(&death(Verdict::Crash, Phase::Starting), &policy, at(0));
        }
        assert_eq!(ladder.look_at(at(0), &policy), Some(at(24 * 3600)), "at most a day");
    }

    #[test]
    fn a_proven_climb_that_is_lost_again_waits_longer_too() {
        let policy = Policy::default();
        let mut ladder = ladder(&[2048]);
        oom(&mut ladder);
        ladder.climb();
        ladder.prove();
        assert_eq!((oom(&mut ladder), ladder.at()), (Step::Down, 1));
        assert_eq!(ladder.look_at(at(0), &policy), Some(at(1200)));
    }

    #[test]
    fn a_shorter_ladder_ends_at_its_last_rung() {
        let mut remembered = Ladder::new(7, at(0), &Policy::default());
        assert_eq!(remembered.view(false).unwrap().name, "rung 8");
        remembered.learn([Rung::default(), Rung::default()].into());
        assert_eq!(remembered.at(), 1);
    }
}
