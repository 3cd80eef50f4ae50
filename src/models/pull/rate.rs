//! A limit that all files of a pull share.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::spec::Bytes;

/// Lets so many bytes through a second.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: u64,
    /// When the next bytes may come.
    next: Mutex<Instant>,
}

impl Rate {
    /// Makes a limit; none for 0.
    pub(super) fn new(per_second: Bytes) -> Option<Self> {
        let next = Mutex::new(Instant::now());
        (per_second.0 > 0).then_some(Self { per_second: per_second.0, next })
    }

    /// Waits until `bytes` that came have had their time.
    pub(super) async fn pass(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let takes = bytes.saturating_mul(1_000_000) / self.per_second;
        let until = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            // Time in which nothing came is not caught up with.
            *next = (*next).max(Instant::now()) + Duration::from_micros(takes);
            *next
        };
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_take_their_time_whoever_brings_them() {
        let began = Instant::now();
        let rate = Rate::new(Bytes(1000)).unwrap();
        tokio::join!(rate.pass(500), rate.pass(1500));
        assert_eq!(began.elapsed().as_millis(), 2000);
        assert!(Rate::new(Bytes(0)).is_none());
    }
}
