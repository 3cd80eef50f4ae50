//! Liveness: tells a long prompt from a hang.
//!
//! Pure. The shell reads an engine's vital signs every few seconds while there is reason to wonder,
//! and the core keeps since when each sign is missing. One missing sign condemns nobody: a busy engine
//! is slow to answer, a long prompt sends no token, an idle engine uses no CPU time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::policy::Policy;
use crate::spec::{Monotime, death::Verdict};

/// How many clients in a row must have given up before a busy engine that does not answer is no
/// longer taken for one with a long prompt.
const CLIENTS_LOST: u32 = 3;
/// CPU time in one reading below which a process does nothing: two ticks of the kernel's clock, or a
/// hundredth of one core. An engine that only answers looks stays below, one that computes on a
/// device and waits for it comes above.
const WORK_FLOOR: Duration = Duration::from_millis(20);
const WORK_SHARE: u32 = 100;

/// Vital signs of one engine at one moment. Counters count from its spawn.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Vitals {
    /// Whether earlier readings say what lies between: false for the first of a row, and after a
    /// time in which the daemon itself stood still.
    pub continues: bool,
    /// Whether it answered the last look at its health, in time and not with a fault.
    pub has_answered: bool,
    /// Requests being served.
    pub in_flight: u32,
    /// Pieces of answers that came from it so far.
    pub pieces: u64,
    /// Different requests in a row that it failed, none answered in between.
    pub failed_in_row: u32,
    /// Requests in a row whose clients gave up before a byte came.
    pub given_up_in_row: u32,
    /// CPU time of all its processes so far; `None` if it is not known.
    pub cpu: Option<Duration>,
    /// Whether all its processes are stopped, by `SIGSTOP` or a debugger.
    pub is_stopped: bool,
}

/// Since when each sign is missing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pulse {
    read_at: Monotime,
    last: Vitals,
    /// The last answer to a look, or byte of an answer, and the CPU time used until then.
    heard: (Monotime, Option<Duration>),
    /// The last byte of an answer; no byte is missing while no request is in flight.
    moved_at: Monotime,
    /// The last sign of work.
    worked_at: Monotime,
    /// The last moment with a request in flight.
    asked_at: Monotime,
}

impl Pulse {
    /// Begins at a first reading: nothing is missing yet.
    fn begin(now: Monotime, vitals: Vitals) -> Self {
        Self {
            read_at: now,
            last: vitals,
            heard: (now, vitals.cpu),
            moved_at: now,
            worked_at: now,
            asked_at: now,
        }
    }

    /// Takes the next reading.
    pub(super) fn read(earlier: Option<&Self>, now: Monotime, vitals: Vitals) -> Self {
        let Some(mut pulse) = earlier.copied().filter(|_| vitals.continues) else {
            return Self::begin(now, vitals);
        };
        let has_moved = vitals.pieces != pulse.last.pieces;
        if has_moved || vitals.has_answered {
            pulse.heard = (now, vitals.cpu);
        }
        if has_moved || vitals.in_flight == 0 {
            pulse.moved_at = now;
        }
        if vitals.in_flight > 0 {
            pulse.asked_at = now;
        }
        if pulse.works(now, vitals.cpu) {
            pulse.worked_at = now;
        }
        Self { read_at: now, last: vitals, ..pulse }
    }

    /// Tells whether it has used CPU time since the last reading. Unknown counts as yes: nobody is
    /// condemned by a sensor that failed.
    fn works(&self, now: Monotime, cpu: Option<Duration>) -> bool {
        let (Some(before), Some(cpu)) = (self.last.cpu, cpu) else { return true };
        let floor = WORK_FLOOR.max(now.since(self.read_at) / WORK_SHARE);
        cpu.saturating_sub(before) >= floor
    }

    /// Judges the readings so far; `None` while there is nothing to hold against the engine.
    ///
    /// 1. It fails one request after the other: poisoned, whatever its health says. All that follows is
    ///    for those who set a `patience`.
    /// 2. For `patience` it neither answered nor worked: it stands still.
    /// 3. For `patience` it did not answer though it worked on nothing, or though one client after the
    ///    other gave up on it: it spins. A request in flight is an excuse until then.
    /// 4. It answers, but for `patience` the requests in flight got nothing and it did not work.
    pub(super) fn judge(
        &self,
        now: Monotime,
        policy: &Policy,
        patience: Option<Duration>,
    ) -> Option<(Verdict, String)> {
        let Vitals { in_flight, failed_in_row, given_up_in_row, .. } = self.last;
        if failed_in_row >= policy.poisoned_after {
            let reason = format!(
                "the last {failed_in_row} requests all failed, each another one, and none was answered in between"
            );
            return Some((Verdict::Poisoned, reason)); // (1)
        }
        let patience = patience?;
        let is_over = |since: Monotime| now.since(since) >= patience;
        let silent = now.since(self.heard.0).as_secs();
        if is_over(self.heard.0) && is_over(self.worked_at) {
            let stopped = if self.last.is_stopped {
                "; its process is stopped, by `SIGSTOP` or a debugger"
            } else {
                ""
            };
            let reason = format!(
                "for {silent} s it answered no look at its health, sent nothing and used no CPU time, with {in_flight} request(s) in flight{stopped}"
            );
            return Some((Verdict::Hung, reason)); // (2)
        }
        let is_out_of_excuses = is_over(self.asked_at) || given_up_in_row >= CLIENTS_LOST;
        if is_over(self.heard.0) && is_out_of_excuses {
            let busy = self.busy_since_heard();
            let excuse = if is_over(self.asked_at) {
                "though it had no request to work on".to_owned()
            } else {
                format!("and {given_up_in_row} clients in a row gave up before a byte came")
            };
            let reason =
                format!("for {silent} s it answered no look at its health, {excuse}{busy}");
            return Some((Verdict::Hung, reason)); // (3)
        }
        if in_flight > 0 && is_over(self.moved_at) && is_over(self.worked_at) {
            let reason = format!(
                "it answers looks at its health, but for {} s {in_flight} request(s) in flight got nothing and it used no CPU time",
                now.since(self.moved_at).as_secs()
            );
            return Some((Verdict::Hung, reason)); // (4)
        }
        None
    }

    fn busy_since_heard(&self) -> String {
        let used = self.heard.1.zip(self.last.cpu).map(|(then, now)| now.saturating_sub(then));
        used.map_or_else(String::new, |used| {
            format!("; meanwhile it used {} s of CPU time", used.as_secs())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_mins(1);

    /// An engine that is fine and has nothing to do.
    fn idle() -> Vitals {
        Vitals {
            continues: true,
            has_answered: true,
            in_flight: 0,
            pieces: 0,
            failed_in_row: 0,
            given_up_in_row: 0,
            cpu: Some(Duration::ZERO),
            is_stopped: false,
        }
    }

    /// Reads every two seconds for `seconds`, until there is a verdict.
    fn watched(
        seconds: u64,
        mut reading: impl FnMut(u64) -> Vitals,
    ) -> Option<(u64, Verdict, String)> {
        let mut pulse: Option<Pulse> = None;
        for second in (0..=seconds).step_by(2) {
            let now = Monotime::from_start(Duration::from_secs(second));
            let read = Pulse::read(pulse.as_ref(), now, reading(second));
            if let Some((verdict, reason)) = read.judge(now, &Policy::default(), Some(PATIENCE)) {
                return Some((second, verdict, reason));
            }
            pulse = Some(read);
        }
        None
    }

    fn busy(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    #[test]
    fn a_stopped_engine_is_hung_after_the_patience() {
        let stopped = Vitals { has_answered: false, in_flight: 2, is_stopped: true, ..idle() };
        let (at, verdict, reason) = watched(600, |_| stopped).unwrap();
        assert_eq!((at, verdict), (60, Verdict::Hung));
        assert_eq!(
            reason,
            "for 60 s it answered no look at its health, sent nothing and used no CPU time, with 2 request(s) in flight; its process is stopped, by `SIGSTOP` or a debugger"
        );
    }

    #[test]
    fn an_engine_that_spins_without_a_request_is_hung() {
        let spin = |second| Vitals { has_answered: false, cpu: Some(busy(second)), ..idle() };
        let (at, verdict, reason) = watched(600, spin).unwrap();
        assert_eq!((at, verdict), (60, Verdict::Hung));
        assert!(reason.ends_with("no request to work on; meanwhile it used 60 s of CPU time"));
    }

    #[test]
    fn a_long_prompt_is_never_a_hang_however_slow_the_health() {
        for has_answered in [true, false] {
            let prompt = |second| Vitals {
                has_answered,
                in_flight: 1,
                given_up_in_row: 2,
                cpu: Some(busy(second)),
                ..idle()
            };
            assert_eq!(watched(36_000, prompt), None, "has_answered: {has_answered}");
        }
    }

    #[test]
    fn a_busy_engine_that_three_clients_gave_up_on_is_hung_only_if_it_does_not_answer() {
        let lost = |second| Vitals {
            has_answered: false,
            in_flight: 1,
            given_up_in_row: 3,
            cpu: Some(busy(second)),
            ..idle()
        };
        let (at, verdict, reason) = watched(600, lost).unwrap();
        assert_eq!((at, verdict), (60, Verdict::Hung));
        assert!(reason.contains("3 clients in a row gave up"), "{reason}");
        assert_eq!(watched(600, |second| Vitals { has_answered: true, ..lost(second) }), None);
    }

    #[test]
    fn an_engine_that_answers_and_serves_nothing_is_hung_once_it_does_not_even_work() {
        let stalled = Vitals { in_flight: 1, ..idle() };
        let (at, verdict, reason) = watched(600, |_| stalled).unwrap();
        assert_eq!((at, verdict), (60, Verdict::Hung));
        assert!(reason.starts_with("it answers looks at its health, but"), "{reason}");
    }

    #[test]
    fn tokens_are_a_sign_of_life_whatever_else_is_missing() {
        let slow = |second: u64| Vitals {
            has_answered: false,
            in_flight: 1,
            pieces: second / 50,
            ..idle()
        };
        assert_eq!(watched(36_000, slow), None);
    }

    #[test]
    fn an_idle_engine_that_answers_is_fine() {
        assert_eq!(watched(36_000, |_| idle()), None);
    }

    #[test]
    fn a_sensor_that_fails_condemns_nobody() {
        let unknown = Vitals { has_answered: false, in_flight: 1, cpu: None, ..idle() };
        assert_eq!(watched(36_000, |_| unknown), None);
        let (at, ..) = watched(600, |_| Vitals { in_flight: 0, ..unknown }).unwrap();
        assert_eq!(at, 60, "without a request to work on, CPU time is no excuse");
    }

    #[test]
    fn after_a_time_in_which_nobody_looked_the_clocks_begin_anew() {
        let dead = Vitals { has_answered: false, ..idle() };
        let interrupted = |second| Vitals { continues: second % 58 != 0, ..dead };
        assert_eq!(watched(600, interrupted), None);
        let (at, ..) = watched(600, |second| Vitals { continues: second != 40, ..dead }).unwrap();
        assert_eq!(at, 100);
    }

    #[test]
    fn an_engine_that_fails_every_request_is_poisoned_at_once() {
        let failing = |failed_in_row| move |_| Vitals { failed_in_row, ..idle() };
        assert_eq!(watched(600, failing(4)), None);
        let (at, verdict, reason) = watched(600, failing(5)).unwrap();
        assert_eq!((at, verdict), (0, Verdict::Poisoned));
        assert!(reason.starts_with("the last 5 requests all failed"), "{reason}");
    }
}
