//! Readings of memory to one of three levels, with hysteresis: one piece of news a change.
//!
//! ```text
//! calm ──short twice in a row──▶ tense ──very short twice in a row──▶ critical
//!   ◀──────── ample five times in a row ────┴──────────────────────────┘
//! ```

use serde::{Deserialize, Serialize};

use crate::spec::memory::Room;

/// How short the machine is of memory.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pressure {
    /// There is enough.
    #[default]
    Calm,
    /// Little is left, or tasks wait for it.
    Tense,
    /// Next to nothing is left, or tasks do little but wait for it.
    Critical,
}

/// Less than this share of memory is free, in percent, or tasks wait for it for more than that share of
/// the time.
const TENSE: (u64, f32) = (8, 10.0);
const CRITICAL: (u64, f32) = (3, 40.0);
/// Ample is more than this, and less waiting.
const AMPLE: (u64, f32) = (12, 5.0);
/// Readings in a row that it takes to go up, and to go down.
const UP: u32 = 2;
const DOWN: u32 = 5;

/// Keeps the level between readings.
#[derive(Clone, Debug, Default)]
pub struct Gauge {
    level: Pressure,
    /// Readings in a row that want another level.
    run: u32,
}

impl Pressure {
    /// Returns how much of their usual pace those should keep who can wait: 1 is all of it.
    pub fn throttle(self) -> f32 {
        match self {
            Self::Calm => 1.0,
            Self::Tense => 0.5,
            Self::Critical => 0.0,
        }
    }
}

impl Gauge {
    /// Returns the level.
    pub fn level(&self) -> Pressure {
        self.level
    }

    /// Takes a reading, and returns the new level if it has changed. What is not known changes nothing.
    pub fn take(&mut self, room: Option<Room>, waiting_percent: Option<f32>) -> Option<Pressure> {
        let room = room.filter(|room| room.total.0 > 0)?;
        let free = room.free.0.saturating_mul(100) / room.total.0;
        let waiting = waiting_percent.unwrap_or_default();
        let is_below = |(share, most): (u64, f32)| free < share || waiting > most;
        let wanted = if is_below(CRITICAL) {
            Pressure::Critical
        } else if is_below(TENSE) {
            Pressure::Tense
        } else if free > AMPLE.0 && waiting < AMPLE.1 {
            Pressure::Calm
        } else {
            // Between the marks nothing moves but what is above them.
            self.level.min(Pressure::Tense)
        };
        if wanted == self.level {
            self.run = 0;
            return None;
        }
        self.run = self.run.saturating_add(1);
        let enough = if wanted > self.level { UP } else { DOWN };
        if self.run < enough {
            return None;
        }
        (self.level, self.run) = (wanted, 0);
        Some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Bytes;

    fn free(percent: u64) -> Room {
        Room { total: Bytes(1000), free: Bytes(percent * 10) }
    }

    #[test]
    fn one_short_reading_is_no_news_and_a_second_one_is() {
        let mut gauge = Gauge::default();
        assert_eq!(gauge.take(Some(free(5)), None), None);
        assert_eq!(gauge.take(Some(free(50)), None), None);
        assert_eq!(gauge.take(Some(free(5)), None), None);
        assert_eq!(gauge.take(Some(free(5)), None), Some(Pressure::Tense));
        assert_eq!(gauge.take(Some(free(5)), None), None, "told once");
    }

    #[test]
    fn around_a_mark_the_level_does_not_flap() {
        let mut gauge = Gauge::default();
        let news: Vec<_> =
            (0..100).filter_map(|at| gauge.take(Some(free(7 + at % 3)), None)).collect();
        assert!(news.len() <= 1, "{news:?}");
        let mut gauge = Gauge { level: Pressure::Tense, run: 0 };
        let news: Vec<_> =
            (0..100).filter_map(|at| gauge.take(Some(free(9 + at % 3)), None)).collect();
        assert_eq!(news, []);
    }

    #[test]
    fn it_takes_longer_to_be_calm_again() {
        let mut gauge = Gauge { level: Pressure::Critical, run: 0 };
        let news: Vec<_> = (0..6).map(|_| gauge.take(Some(free(60)), Some(0.0))).collect();
        assert_eq!(news, [None, None, None, None, Some(Pressure::Calm), None]);
    }

    #[test]
    fn waiting_counts_where_memory_looks_ample() {
        let mut gauge = Gauge::default();
        assert_eq!(gauge.take(Some(free(60)), Some(50.0)), None);
        assert_eq!(gauge.take(Some(free(60)), Some(50.0)), Some(Pressure::Critical));
        assert!(gauge.level().throttle() < Pressure::Tense.throttle());
    }

    #[test]
    fn what_is_not_known_changes_nothing() {
        let mut gauge = Gauge { level: Pressure::Tense, run: 0 };
        for _ in 0..20 {
            assert_eq!(gauge.take(None, Some(99.0)), None);
        }
        assert_eq!(gauge.level(), Pressure::Tense);
    }
}
