//! Room on the disk: looked at before anything is fetched, and while it comes.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{fault::PullFault, layout::unusable, lock};
use crate::spec::Bytes;

/// The most that stays free where nothing else is said, and the share of small disks.
const USUAL_RESERVE: u64 = 1 << 30;
const SHARE_OF_DISK: u64 = 20;

/// What has to stay free on the cache's disk.
#[derive(Clone, Debug)]
pub(super) struct Room {
    folder: PathBuf,
    pub(super) reserve: Bytes,
}

impl Room {
    /// Finds the reserve: what was said, else 1 GiB, or a twentieth of a disk that is smaller.
    pub(super) fn new(folder: &Path, said: Option<Bytes>) -> Result<Self, PullFault> {
        let total = fs2::total_space(folder).map_err(unusable(folder))?;
        let reserve = said.unwrap_or(Bytes(USUAL_RESERVE.min(total / SHARE_OF_DISK)));
        Ok(Self { folder: folder.to_owned(), reserve })
    }

    /// Checks that `needed` more bytes have room.
    pub(super) fn check(&self, needed: Bytes) -> Result<(), PullFault> {
        let free = fs2::available_space(&self.folder).map_err(unusable(&self.folder))?;
        if free >= needed.0.saturating_add(self.reserve.0) {
            Ok(())
        } else {
            Err(self.fault(needed))
        }
    }

    /// Says that `needed` more bytes have no room.
    pub(super) fn fault(&self, needed: Bytes) -> PullFault {
        let free = Bytes(fs2::available_space(&self.folder).unwrap_or(0));
        let freeable = freeable(&self.folder);
        let (folder, reserve) = (self.folder.clone(), self.reserve);
        PullFault::Disk { folder, needed, free, reserve, freeable }
    }
}

/// Sums up what nobody would miss: beginnings that nobody writes on, and contents that no revision has.
fn freeable(hub: &Path) -> Bytes {
    let mut sum = 0_u64;
    for repo in names(hub).filter(|name| name.starts_with("models--")) {
        let folder = hub.join(&repo);
        let used = linked(&folder.join("snapshots"));
        for blob in names(&folder.join("blobs")) {
            let path = folder.join("blobs").join(&blob);
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            let hash = blob.split_once('.').map_or(&*blob, |(hash, _)| hash);
            let is_unused = if blob.ends_with(".incomplete") {
                let locks = hub.join(".locks").join(&repo);
                lock::is_free(&locks.join(format!("{hash}.lock")))
                    && lock::is_free(&locks.join("slotd.lock"))
            } else {
                !used.contains(&(found.dev(), found.ino()))
            };
            if is_unused {
                // A sparse file frees what it takes, not what it is long.
                sum = sum.saturating_add(found.blocks().saturating_mul(512));
            }
        }
    }
    Bytes(sum)
}

fn names(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Collects the files that links below a folder lead to.
fn linked(folder: &Path) -> BTreeSet<(u64, u64)> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            } else if let Ok(target) = fs::metadata(entry.path()) {
                found.insert((target.dev(), target.ino()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn too_little_room_is_said_with_the_numbers() {
        let hub = tempfile::tempdir().unwrap();
        let room = Room::new(hub.path(), Some(Bytes(1))).unwrap();
        assert!(room.check(Bytes(1)).is_ok());
        let fault = room.check(Bytes(u64::MAX)).unwrap_err();
        assert_eq!(fault.code(), "insufficient_disk");
    }

    #[test]
    fn what_no_revision_has_could_be_freed() {
        let hub = tempfile::tempdir().unwrap();
        let repo = hub.path().join("models--o--r");
        fs::create_dir_all(repo.join("blobs")).unwrap();
        fs::create_dir_all(repo.join("snapshots/c")).unwrap();
        for blob in ["used", "unused", "begun.incomplete"] {
            fs::write(repo.join("blobs").join(blob), vec![1; 8192]).unwrap();
        }
        symlink("../../blobs/used", repo.join("snapshots/c/x")).unwrap();
        assert_eq!(freeable(hub.path()), Bytes(16384));
    }
}
