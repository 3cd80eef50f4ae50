//! When an engine's vital signs are read: not at all while it shows every one of them.

use std::time::Duration;

use tokio::time::Instant;

/// How often a ready engine is looked at, and how long one look may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Pace {
    pub(super) period: Duration,
    pub(super) deadline: Duration,
}

impl Pace {
    /// Makes a pace at which several looks fit into the time that an engine may be silent.
    pub(super) fn of(patience: Option<Duration>) -> Self {
        let slowest = Self { period: Duration::from_secs(2), deadline: Duration::from_secs(5) };
        let Some(patience) = patience else { return slowest };
        Self {
            period: slowest.period.min(patience / 8),
            deadline: slowest.deadline.min(patience / 4),
        }
    }

    /// The longest time between two readings of a daemon that runs; beyond it, it stood still itself.
    fn longest(self) -> Duration {
        (self.period + self.deadline) * 2
    }
}

/// What costs nothing to see.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Signs {
    pub(super) has_answered: bool,
    pub(super) in_flight: u32,
    pub(super) pieces: u64,
    pub(super) failed_in_row: u32,
}

/// What was read so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Readings {
    /// When the signs were last seen, and how many pieces had come by then.
    seen: Option<(Instant, u64)>,
    /// How many failed requests in a row the core knows of.
    told_failures: u32,
    /// When the core was last told of a missing sign.
    told: Option<Instant>,
}

impl Readings {
    /// Takes what was seen; says whether the core is to be told, and then whether earlier readings say
    /// what lies between.
    pub(super) fn next(&mut self, now: Instant, signs: Signs, pace: Pace) -> Option<bool> {
        let earlier = self.seen.replace((now, signs.pieces));
        let has_moved = earlier.is_none_or(|(_, pieces)| pieces != signs.pieces);
        let is_missing = !signs.has_answered
            || (signs.in_flight > 0 && !has_moved)
            || signs.failed_in_row > self.told_failures;
        let stood_still = earlier.is_none_or(|(at, _)| now.duration_since(at) > pace.longest());
        let told = self.told;
        let is_due = told.is_none_or(|at| now.duration_since(at) >= pace.period);
        if is_missing && is_due {
            self.told = Some(now);
            self.told_failures = signs.failed_in_row;
            return Some(told.is_some() && !stood_still);
        }
        self.told_failures = self.told_failures.min(signs.failed_in_row);
        if !is_missing {
            self.told = None;
            // Told once more: the core must not hold on to what is over.
            return told.map(|_| false);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: Signs = Signs { has_answered: true, in_flight: 0, pieces: 0, failed_in_row: 0 };
    const SILENT: Signs = Signs { has_answered: false, ..FINE };

    #[test]
    fn nothing_is_read_while_nothing_is_missing() {
        let (mut readings, pace) = (Readings::default(), Pace::of(None));
        let start = Instant::now();
        let mut next =
            |second, signs| readings.next(start + Duration::from_secs(second), signs, pace);
        assert_eq!(next(0, FINE), None);
        assert_eq!(next(2, SILENT), Some(false), "the first of a row");
        assert_eq!(next(3, SILENT), None, "too early");
        assert_eq!(next(5, SILENT), Some(true));
        assert_eq!(next(7, FINE), Some(false), "it is over");
        assert_eq!(next(9, FINE), None);
        let busy = Signs { in_flight: 1, ..FINE };
        assert_eq!(next(11, busy), Some(false));
        assert_eq!(next(13, Signs { pieces: 1, ..busy }), Some(false), "a token came");
        assert_eq!(next(15, Signs { pieces: 2, ..busy }), None);
    }

    #[test]
    fn a_daemon_that_stood_still_begins_anew() {
        let (mut readings, pace) = (Readings::default(), Pace::of(None));
        let start = Instant::now();
        let mut next = |second| readings.next(start + Duration::from_secs(second), SILENT, pace);
        assert_eq!(next(0), Some(false));
        assert_eq!(next(7), Some(true));
        assert_eq!(next(67), Some(false));
        assert_eq!(next(74), Some(true));
    }

    #[test]
    fn several_looks_fit_into_the_shortest_patience() {
        let pace = Pace::of(Some(Duration::from_secs(2)));
        assert_eq!(
            pace,
            Pace { period: Duration::from_millis(250), deadline: Duration::from_millis(500) }
        );
        assert!(pace.longest() <= Duration::from_secs(2));
        assert_eq!(Pace::of(Some(Duration::from_mins(1))), Pace::of(None));
    }
}
