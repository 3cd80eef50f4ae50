//! Quantities with their unit in the type: bytes, durations, points in monotonic time.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A number of bytes. Written as `"4GiB"`, shown with a binary unit.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Adds to it; it stays at the most that there is a number for.
    pub fn grow(&mut self, by: Self) {
        self.0 = self.0.saturating_add(by.0);
    }
}

/// A point in monotonic time: how long after the start of the daemon's clock it lies. It is not
/// changed by setting the wall clock.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct Monotime(Duration);

/// Says why a text is not a quantity.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum QuantityFault {
    /// No number in front of the unit.
    #[error("`{0}` does not start with a number")]
    NoNumber(String),
    /// A unit that is not known, or none where one is needed.
    #[error("`{found}` has no unit that is known, use one of {allowed}")]
    BadUnit {
        /// The whole text.
        found: String,
        /// The units that can be used.
        allowed: &'static str,
    },
    /// Larger than can be held.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

const SIZES: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
const DURATIONS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a duration such as `"90s"`, `"5m"` or `"250ms"`: a whole number and one unit.
///
/// # Errors
/// [`QuantityFault`], each variant as it says.
pub fn parse_duration(text: &str) -> Result<Duration, QuantityFault> {
    scaled(text, &DURATIONS, "`ms`, `s`, `m`, `h`, `d`").map(Duration::from_millis)
}

fn scaled(text: &str, units: &[(&str, u64)], allowed: &'static str) -> Result<u64, QuantityFault> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    if number.is_empty() {
        return Err(QuantityFault::NoNumber(text.to_owned()));
    }
    let too_large = || QuantityFault::TooLarge(text.to_owned());
    let number: u64 = number.parse().map_err(|_| too_large())?;
    let (_, scale) = units
        .iter()
        .find(|(name, _)| *name == unit.trim())
        .ok_or_else(|| QuantityFault::BadUnit { found: text.to_owned(), allowed })?;
    number.checked_mul(*scale).ok_or_else(too_large)
}

impl FromStr for Bytes {
    type Err = QuantityFault;

    fn from_str(text: &str) -> Result<Self, QuantityFault> {
        scaled(text, &SIZES, "`B`, `KiB`, `MiB`, `GiB`, `TiB`").map(Self)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) =
            SIZES.iter().rev().find(|(_, scale)| self.0 >= *scale).unwrap_or(&("B", 1));
        let whole = self.0 / scale;
        let tenths = (self.0 % scale).saturating_mul(10) / scale;
        if whole < 10 && *scale > 1 {
            write!(f, "{whole}.{tenths} {unit}")
        } else {
            write!(f, "{whole} {unit}")
        }
    }
}

impl Monotime {
    /// Makes a point that lies `since_start` after the clock's start.
    pub fn from_start(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// Returns how long after the clock's start the point lies.
    pub fn since_start(self) -> Duration {
        self.0
    }

    /// Returns the point `later` after this one.
    #[must_use]
    pub fn after(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }

    /// Returns how long ago `earlier` was, zero if it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("250 ms"), Ok(Duration::from_millis(250)));
        assert!(matches!(parse_duration("90"), Err(QuantityFault::BadUnit { .. })));
        assert!(matches!(parse_duration("soon"), Err(QuantityFault::NoNumber(_))));
        assert!(matches!(parse_duration("99999999999999999d"), Err(QuantityFault::TooLarge(_))));
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!("4GiB".parse(), Ok(Bytes(4 << 30)));
        assert!("4GB".parse::<Bytes>().is_err());
        assert_eq!(Bytes(98_362_432).to_string(), "93 MiB");
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
    }
}
