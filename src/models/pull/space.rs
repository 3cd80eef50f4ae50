//! Room on the disk: looked at before anything is fetched, and while it comes.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{fault::PullFault, layout::unusable};
use crate::{models::inventory::freeable, spec::Bytes};

/// The most that stays free where nothing else is said, and the share of small disks.
const USUAL_RESERVE: u64 = 1 << 30;
const SHARE_OF_DISK: u64 = 20;

/// What has to stay free on the cache's disk.
#[derive(Clone, Debug)]
pub(super) struct Room {
    folder: PathBuf,
    pub(super) reserve: Bytes,
    clock: fn() -> Duration,
}

impl Room {
    /// Finds the reserve: what was said, else 1 GiB, or a twentieth of a disk that is smaller.
    pub(super) fn new(
        folder: &Path,
        said: Option<Bytes>,
        clock: fn() -> Duration,
    ) -> Result<Self, PullFault> {
        let total = fs2::total_space(folder).map_err(unusable(folder))?;
        let reserve = said.unwrap_or(Bytes(USUAL_RESERVE.min(total / SHARE_OF_DISK)));
        Ok(Self { folder: folder.to_owned(), reserve, clock })
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
        let freeable = freeable(&self.folder, (self.clock)());
        let (folder, reserve) = (self.folder.clone(), self.reserve);
        PullFault::Disk { folder, needed, free, reserve, freeable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_is_said_with_the_numbers() {
        let hub = tempfile::tempdir().unwrap();
        let room = Room::new(hub.path(), Some(Bytes(1)), || Duration::ZERO).unwrap();
        assert!(room.check(Bytes(1)).is_ok());
        let fault = room.check(Bytes(u64::MAX)).unwrap_err();
        assert_eq!(fault.code(), "insufficient_disk");
    }
}
