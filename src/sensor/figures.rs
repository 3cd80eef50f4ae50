//! The figures that pressure is judged by, read from this machine.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use sysinfo::System;

use super::{Figures, host_room, stalls};
use crate::spec::{Bytes, memory::Room};

/// Reads the host's memory, its swap, and how long tasks wait. Blocks on the kernel for less than a
/// millisecond. GPUs and disks are read by others, who may wait for them.
pub fn host_figures() -> Figures {
    Figures { host: host_room(), swap: swap(), stalls: stalls(), ..Figures::default() }
}

/// Returns what is free for us on the fullest of the disks that hold `folders`; `None` if none of them says.
/// Blocks for as long as a disk hangs.
pub fn disk_free(folders: &[PathBuf]) -> Option<Bytes> {
    folders.iter().filter_map(|folder| free_at(folder)).min()
}

/// A folder that is not there yet will be on the disk of the one above it.
fn free_at(folder: &Path) -> Option<Bytes> {
    let disk = folder.ancestors().find_map(|path| statvfs(path).ok())?;
    #[expect(clippy::useless_conversion, reason = "on macOS they are narrower")]
    let free = u64::from(disk.blocks_available()).saturating_mul(u64::from(disk.fragment_size()));
    Some(Bytes(free))
}

fn swap() -> Option<Room> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    Some(Room { total: Bytes(system.total_swap()), free: Bytes(system.free_swap()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_found_through_a_folder_that_is_not_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("not/there/yet");
        let free = disk_free(&[below, PathBuf::from("")]).unwrap();
        assert!(free.0 > 0);
        assert_eq!(disk_free(&[]), None);
    }

    #[test]
    fn the_machine_says_how_much_memory_it_has() {
        let figures = host_figures();
        assert!(figures.host.is_some() && figures.swap.is_some(), "{figures:?}");
    }
}
