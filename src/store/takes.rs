//! Whether a folder takes what is written to it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process,
};

use nix::{
    errno::Errno,
    sys::statvfs::{FsFlags, statvfs},
    unistd::{AccessFlags, access},
};

/// A disk with less room than this is written to, to see whether it takes anything.
const LOW_BYTES: u64 = 64 << 10;
/// One that took nothing must have more than this: else it would be full again at once.
const ENOUGH_BYTES: u64 = 4 * LOW_BYTES;
/// What is written: a block of any usual file system.
const TRIAL: [u8; 4096] = [0; 4096];

/// What a folder did at the last look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Taking {
    /// It took files.
    Files,
    /// It took none.
    Nothing,
}

/// Says whether a folder takes files; of one that is not there, the nearest above it. Writes one only
/// where the figures look bad or it took none `before`. Blocks on the disk.
///
/// # Errors
/// Why it takes none.
pub fn takes_files(folder: &Path, before: Taking) -> io::Result<()> {
    let folder = folder.ancestors().find(|folder| folder.exists()).unwrap_or(folder);
    if !folder.is_dir() {
        return Err(Errno::ENOTDIR.into());
    }
    let figures = statvfs(folder)?;
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK)?;
    #[cfg_attr(
        target_os = "linux",
        expect(clippy::useless_conversion, reason = "macOS counts blocks in 32 bits")
    )]
    let blocks = u64::from(figures.blocks_available());
    let room = blocks.saturating_mul(figures.fragment_size());
    let has_files = figures.files() == 0 || figures.files_available() > 0;
    if figures.flags().contains(FsFlags::ST_RDONLY) {
        return Err(Errno::EROFS.into());
    }
    match before {
        Taking::Files if room >= LOW_BYTES && has_files => Ok(()),
        Taking::Files => write_one(folder),
        Taking::Nothing => {
            write_one(folder)?;
            if room >= ENOUGH_BYTES { Ok(()) } else { Err(Errno::ENOSPC.into()) }
        }
    }
}

fn write_one(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".slotd-{}.trial", process::id()));
    // Left by one that was killed it would be in the way of nobody else.
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| file.write_all(&TRIAL));
    drop(fs::remove_file(&path));
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_well_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let before = fs::metadata(dir.path()).unwrap().modified().unwrap();
        takes_files(dir.path(), Taking::Files).unwrap();
        takes_files(&dir.path().join("not/yet"), Taking::Files).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().modified().unwrap(), before);
        takes_files(dir.path(), Taking::Nothing).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the trial is left");
    }

    #[test]
    fn a_file_in_a_folders_place_takes_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs");
        fs::write(&path, "").unwrap();
        let fault = takes_files(&path.join("chat"), Taking::Files).unwrap_err();
        assert_eq!(fault.kind(), io::ErrorKind::NotADirectory);
    }
}
