//! What engines take at most: read while they live, remembered for their next start.
//!
//! What counts is resident memory with the pages of mapped files (`VmHWM`), because that is what is
//! predicted: weights are mapped. What the kernel could not take back is less, and a control group is
//! charged with what others have read first. The kernel keeps the peak itself, so that a look now and
//! then misses only what an engine grows by in its last seconds.
//!
//! On GPUs it is what the driver says that its processes hold, at each look: it keeps no peak.
//!
//! It is a help: a disk that is full, or may not be written to, costs nothing but the memory of it.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::spawn_blocking,
    time::sleep,
};
use tracing::{debug, warn};

use super::{on_gpus::OnGpus, thrift::Thrift};
use crate::{
    sensor,
    spec::{Bytes, memory::Peak},
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
    thrift: Arc<Thrift>,
}

impl PeakBook {
    /// Reads what was remembered. Blocks on the disk.
    pub(super) fn open(state: Arc<StateDir>, thrift: Arc<Thrift>) -> Self {
        let known = ArcSwap::from_pointee(state.peaks());
        Self { known, writing: Arc::default(), state, thrift }
    }

    /// Returns the most that an engine with this key took.
    pub(super) fn of(&self, key: Option<&str>) -> Option<Peak> {
        self.known.load().of(key?)
    }

    /// Watches what an engine takes, by its process group, until it is dropped.
    #[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
    pub(super) async fn watch(&self, group: u32, gpus: &OnGpus, key: Option<&str>) -> Infallible {
        let Some(key) = key else { return std::future::pending().await };
        let mut noted = Peak::default();
        let mut period = FIRST_PERIOD;
        loop {
            sleep(period).await;
            period = PERIOD;
            let gpus = gpus.clone();
            let look = move || {
                let host = sensor::peak_of_group(group)?;
                Some(Peak { host, gpus: gpus.held().unwrap_or_default() })
            };
            let Some(peak) = spawn_blocking(look).await.ok().flatten() else { continue };
            if is_more(&peak, &noted) {
                self.note(key, &peak).await;
                noted = peak;
            }
        }
    }

    async fn note(&self, key: &str, peak: &Peak) {
        let writing = Arc::clone(&self.writing).lock_owned().await;
        let mut latest = Peaks::clone(&self.known.load());
        if !latest.note(key, peak) {
            return;
        }
        self.known.store(Arc::new(latest));
        // It is known to this daemon, and written once there is room.
        if !self.thrift.is_on() {
            self.write(writing).await;
        }
    }

    /// Writes what was held back.
    pub(super) async fn catch_up(&self) {
        let writing = Arc::clone(&self.writing).lock_owned().await;
        self.write(writing).await;
    }

    async fn write(&self, mut writing: OwnedMutexGuard<bool>) {
        let (state, latest) = (Arc::clone(&self.state), self.known.load_full());
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

/// Tells whether a peak has risen by enough to be written again, of the host or of a GPU.
fn is_more(peak: &Peak, noted: &Peak) -> bool {
    let is_past = |now: Bytes, before: Option<&Bytes>| {
        let before = before.copied().unwrap_or_default().0;
        now.0 > before.saturating_add(STEP.max(before / SHARE))
    };
    let of = |gpus: &BTreeMap<String, Bytes>| {
        gpus.iter().any(|(gpu, bytes)| is_past(*bytes, noted.gpus.get(gpu)))
    };
    is_past(peak.host, Some(&noted.host)) || of(&peak.gpus)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn host(bytes: u64) -> Peak {
        Peak { host: Bytes(bytes), ..Peak::default() }
    }

    fn book(path: &std::path::Path) -> PeakBook {
        let state = StateDir::open(path, std::process::id()).unwrap();
        PeakBook::open(Arc::new(state), Arc::default())
    }

    #[tokio::test]
    async fn a_peak_outlives_its_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let before = book(folder.path());
        assert_eq!(before.of(Some("a")), None);
        before.note("a", &host(7)).await;
        before.note("a", &host(5)).await;
        drop(before);
        let after = book(folder.path());
        assert_eq!((after.of(Some("a")), after.of(Some("b"))), (Some(host(7)), None));
        assert_eq!(after.of(None), None);
    }

    #[tokio::test]
    async fn a_peak_that_is_met_again_keeps_its_turn_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let before = book(folder.path());
        before.note("daily", &host(7)).await;
        before.note("other", &host(1)).await;
        drop(before);
        let after = book(folder.path());
        after.note("daily", &host(6)).await;
        drop(after);
        let mut wanted = Peaks::default();
        wanted.note("other", &host(1));
        wanted.note("daily", &host(7));
        assert_eq!(*book(folder.path()).known.load_full(), wanted, "it is not the next to go");
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_costs_only_what_would_be_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let book = book(folder.path());
        // Where the file would be written to stands a folder: root may write everywhere else.
        fs::create_dir(folder.path().join("peaks.json.new")).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).unwrap();
        book.note("a", &host(7)).await;
        assert_eq!(book.of(Some("a")), Some(host(7)));
        assert!(!folder.path().join("peaks.json").exists());
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[tokio::test]
    async fn while_the_disk_is_nearly_full_a_peak_is_known_and_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let (book, file) = (book(folder.path()), folder.path().join("peaks.json"));
        book.thrift.set(true);
        book.note("a", &host(7)).await;
        assert_eq!(book.of(Some("a")), Some(host(7)));
        assert!(!file.exists());
        book.thrift.set(false);
        book.catch_up().await;
        assert!(file.exists(), "it is written once there is room");
    }
}
