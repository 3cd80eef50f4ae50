//! Readings of one thing to one of three levels, with hysteresis: one piece of news a change.
//!
//! ```text
//! normal ──past a mark twice in a row──▶ elevated ──past the next twice in a row──▶ critical
//!   ◀────── clear of the mark five times in a row ───┴────────────────────────────────┘
//! ```
//!
//! A reading has two levels: where it stands by the marks, and where it would stand by marks that are
//! easier to pass. Up goes by the first, down by the second; between the two nothing moves.

use crate::spec::pressure::Pressure;

/// Readings in a row that it takes to go up, and to go down.
const UP: u32 = 2;
const DOWN: u32 = 5;

/// Keeps the level of one thing between readings.
#[derive(Clone, Debug, Default)]
pub struct Gauge {
    level: Pressure,
    /// Readings in a row that want another level, in which direction.
    run: Run,
}

#[derive(Clone, Copy, Debug, Default)]
enum Run {
    #[default]
    None,
    /// The lowest level that all of them were at.
    Up(u32, Pressure),
    /// The highest level that all of them were at.
    Down(u32, Pressure),
}

/// One reading.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stand {
    /// Where it stands.
    pub reached: Pressure,
    /// What it is not clear of yet; never below `reached`.
    pub held: Pressure,
}

impl Gauge {
    /// Returns the level.
    pub fn level(&self) -> Pressure {
        self.level
    }

    /// Takes a reading, and tells whether the level has changed. What is not known changes nothing.
    pub fn take(&mut self, stand: Option<Stand>) -> bool {
        stand.is_some_and(|stand| self.take_known(stand))
    }

    fn take_known(&mut self, stand: Stand) -> bool {
        self.run = if stand.reached > self.level {
            match self.run {
                Run::Up(count, least) => Run::Up(count.saturating_add(1), least.min(stand.reached)),
                Run::None | Run::Down(..) => Run::Up(1, stand.reached),
            }
        } else if stand.held < self.level {
            match self.run {
                Run::Down(count, most) => Run::Down(count.saturating_add(1), most.max(stand.held)),
                Run::None | Run::Up(..) => Run::Down(1, stand.held),
            }
        } else {
            Run::None
        };
        let (Run::Up(UP.., next) | Run::Down(DOWN.., next)) = self.run else { return false };
        (self.level, self.run) = (next, Run::None);
        true
    }
}

#[cfg(test)]
mod tests {
    use Pressure::{Critical, Elevated, Normal};

    use super::*;

    fn at(reached: Pressure, held: Pressure) -> Stand {
        Stand { reached, held }
    }

    #[test]
    fn one_short_reading_is_no_news_and_a_second_one_is() {
        let mut gauge = Gauge::default();
        assert!(!gauge.take_known(at(Elevated, Elevated)));
        assert!(!gauge.take_known(at(Normal, Normal)));
        assert!(!gauge.take_known(at(Critical, Critical)));
        assert!(gauge.take_known(at(Elevated, Critical)));
        assert_eq!(gauge.level(), Elevated, "only one of them was critical");
        assert!(!gauge.take_known(at(Elevated, Elevated)), "told once");
    }

    #[test]
    fn around_a_mark_the_level_does_not_flap() {
        let mut gauge = Gauge::default();
        let shaky = |step: u32| at(if step % 3 == 2 { Normal } else { Elevated }, Elevated);
        let news = (0..100).filter(|step| gauge.take_known(shaky(*step))).count();
        assert_eq!((news, gauge.level()), (1, Elevated));
    }

    #[test]
    fn it_takes_longer_to_be_normal_again() {
        let mut gauge = Gauge { level: Critical, run: Run::None };
        let news: Vec<_> = (0..6).map(|_| gauge.take_known(at(Normal, Normal))).collect();
        assert_eq!(news, [false, false, false, false, true, false]);
        let mut gauge = Gauge { level: Critical, run: Run::None };
        for step in 0..20 {
            gauge.take_known(at(Normal, if step % 5 == 4 { Elevated } else { Normal }));
        }
        assert_eq!(gauge.level(), Elevated, "one of five is not clear of that mark");
    }

    #[test]
    fn what_is_not_known_changes_nothing() {
        let mut gauge = Gauge { level: Elevated, run: Run::None };
        assert!((0..20).all(|_| !gauge.take(None)));
        assert_eq!(gauge.level(), Elevated);
    }
}
