//! The only reader of a clock, and of entropy for seeds.

use std::{
    fs::File,
    io::Read,
    process,
    time::{Duration, Instant, SystemTime},
};

use crate::spec::Monotime;

/// The daemon's clock: monotonic, from the moment it was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts a clock.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    pub(super) fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Returns the present moment.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    pub(super) fn now(&self) -> Monotime {
        Monotime::from_start(self.start.elapsed())
    }

    /// Returns `at` as a moment that tokio's timers understand.
    pub(super) fn instant(&self, at: Monotime) -> tokio::time::Instant {
        let start = tokio::time::Instant::from_std(self.start);
        // A moment beyond what the timer can hold is as good as a day.
        start.checked_add(at.since_start()).unwrap_or(start + Duration::from_hours(24))
    }
}

/// Returns wall-clock time since 1970, for ages of files.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Returns wall-clock time in milliseconds since 1970: for people, never for decisions.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
pub(super) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Draws a number that nobody can guess, as 32 hexadecimal digits.
pub(super) fn nonce() -> String {
    format!("{:016x}{:016x}", seed(), seed())
}

/// Returns a number that differs from start to start, for the seed of the core's jitter.
pub(super) fn seed() -> u64 {
    let mut bytes = [0; 8];
    match File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)) {
        Ok(()) => u64::from_ne_bytes(bytes),
        // Jitter needs no secrecy: the time and the process id tell daemons apart.
        Err(_) => unix_ms() ^ u64::from(process::id()).rotate_left(32),
    }
}
