//! A shortage of connections, told once however long it lasts. Never decides whether one is taken.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

/// A shortage is another one after so long without any. A crowd comes and goes many times a second.
const APART: Duration = Duration::from_mins(1);

/// What is known of shortages so far.
#[derive(Default)]
pub(super) struct Shortage {
    last: Option<Instant>,
}

impl Shortage {
    /// Tells of it, unless it is still the one told of before.
    pub(super) fn tell(&mut self, reason: &str) {
        if self.is_new(Instant::now()) {
            warn!(reason, "connections not accepted");
        }
    }

    fn is_new(&mut self, now: Instant) -> bool {
        self.last.replace(now).is_none_or(|last| now.duration_since(last) >= APART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_told_once_until_a_quiet_minute_has_passed() {
        let mut shortage = Shortage::default();
        let start = Instant::now();
        let told: Vec<bool> =
            [0, 30, 80, 139, 199].map(|s| shortage.is_new(start + Duration::from_secs(s))).into();
        assert_eq!(told, [true, false, false, false, true]);
    }
}
