//! The worker's clocks: it is a program of its own, without a core that could pass the time in.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Gives the present point of monotonic time.
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Gives the wall clock's seconds since 1970, for `created` in answers and dates in templates.
pub(super) fn unix_seconds() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the answers of the API carry the wall clock")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
