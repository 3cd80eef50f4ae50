//! What engines take at most: read while they live, remembered for their next start.
//!
//! What counts is resident memory with the pages of mapped files (`VmHWM`), because that is what is
//! predicted: weights are mapped. What the kernel could not take back is less, and a control group is
//! charged with what others have read first. The kernel keeps the peak itself, so that a look now and
//! then misses only what an engine grows by in its last seconds.
//!
//! It is a help: a disk that is full, or may not be written to, costs nothing but the memory of it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{sync::Mutex, task::spawn_blocking, time::sleep};
use tracing::{debug, warn};

use crate::{
    sensor,
    spec::Bytes,
    store::{Peaks, StateDir},
};

/// The time before the first look at an engine, and between two.
const FIRST_PERIOD: Duration = Duration::from_secs(1);
const PERIOD: Duration = Duration::from_secs(5);
/// A peak that rose by less than this, or by a smaller share of itself, is not written again.
const STEP: u64 = 1 << 20;
const SHARE: u64 = 64;

/// All that is remembered.
#[derive(Debug)]
pub(super) struct PeakBook {
    /// Read by whoever works out what a start takes; a disk that hangs does not keep them waiting.
    known: ArcSwap<Peaks>,
    /// Held while the file is written: whether that failed the last time.
    writing: Arc<Mutex<bool>>,
    state: Arc<StateDir>,
}

impl PeakBook {
    /// Reads what was remembered. Blocks on the disk.
    pub(super) fn open(state: Arc<StateDir>) -> Self {
        let known = ArcSwap::from_pointee(state.peaks());
        Self { known, writing: Arc::default(), state }
    }

    /// Returns the most that an engine with this key took.
    pub(super) fn of(&self, key: Option<&str>) -> Option<Bytes> {
        self.known.load().of(key?)
    }

    /// Watches what an engine takes, by its process group, until it is dropped.
    #[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
    pub(super) async fn watch(&self, group: u32, key: Option<&str>) -> Infallible {
        let Some(key) = key else { return std::future::pending().await };
        let mut noted = 0_u64;
        let mut period = FIRST_PERIOD;
        loop {
            sleep(period).await;
            period = PERIOD;
            let peak = spawn_blocking(move || sensor::peak_of_group(group)).await.ok().flatten();
            let Some(peak) = peak else { continue };
            if peak.0 > noted.saturating_add(STEP.max(noted / SHARE)) {
                self.note(key, peak).await;
                noted = peak.0;
            }
        }
    }

    async fn note(&self, key: &str, peak: Bytes) {
        let mut writing = Arc::clone(&self.writing).lock_owned().await;
        let mut latest = Peaks::clone(&self.known.load());
        if !latest.note(key, peak) {
            return;
        }
        self.known.store(Arc::new(latest.clone()));
        let state = Arc::clone(&self.state);
        // Who asked may be gone before it is written; the next one waits for it all the same.
        let written = spawn_blocking(move || {
            let saved = state.save_peaks(&latest);
            match &saved {
                Err(error) if !*writing => warn!(%error, "peaks of memory not written"),
                Err(_) => {}
                Ok(()) => debug!("peaks of memory written"),
            }
            *writing = saved.is_err();
        });
        // It panicked in a library: the peaks are known to this daemon.
        drop(written.await);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn book(path: &std::path::Path) -> PeakBook {
        PeakBook::open(Arc::new(StateDir::open(path, std::process::id()).unwrap()))
    }

    #[tokio::test]
    async fn a_peak_outlives_its_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let before = book(folder.path());
        assert_eq!(before.of(Some("a")), None);
        before.note("a", Bytes(7)).await;
        before.note("a", Bytes(5)).await;
        drop(before);
        let after = book(folder.path());
        assert_eq!((after.of(Some("a")), after.of(Some("b"))), (Some(Bytes(7)), None));
        assert_eq!(after.of(None), None);
    }

    #[tokio::test]
    async fn a_peak_that_is_met_again_keeps_its_turn_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let before = book(folder.path());
        before.note("daily", Bytes(7)).await;
        before.note("other", Bytes(1)).await;
        drop(before);
        let after = book(folder.path());
        after.note("daily", Bytes(6)).await;
        drop(after);
        let mut wanted = Peaks::default();
        wanted.note("other", Bytes(1));
        wanted.note("daily", Bytes(7));
        assert_eq!(*book(folder.path()).known.load_full(), wanted, "it is not the next to go");
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_costs_only_what_would_be_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let book = book(folder.path());
        // Where the file would be written to stands a folder: root may write everywhere else.
        fs::create_dir(folder.path().join("peaks.json.new")).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).unwrap();
        book.note("a", Bytes(7)).await;
        assert_eq!(book.of(Some("a")), Some(Bytes(7)));
        assert!(!folder.path().join("peaks.json").exists());
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    }
}
