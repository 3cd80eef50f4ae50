//! The state directory: one daemon at a time, and what it remembers over restarts.
//!
//! Owns the directory's lock and `state.json`. Memory is a help and never a reason not to start: a
//! file that cannot be read is set aside. The one exception is a file of a newer version, which is
//! left alone, because writing it back would lose what the newer slotd knew.

mod bench;
mod engines;
mod lock;
mod memory;
mod peaks;
mod pulls;
mod takes;

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::spec::{Generation, SlotName};
#[cfg(test)]
pub(crate) use bench::tests::record as bench_record;
pub use bench::{
    BenchFault, BenchHolder, BenchLock, BenchRecord, Benches, Load, Measure, Spread,
    look_at_benches, read_benches, save_benches,
};
pub use engines::{EngineRecord, EngineRecords};
pub use memory::{Loaded, Remembered, SaveFault, SetAside, SlotMemory, VERSION};
pub use peaks::{Peaks, load as read_peaks};
pub use pulls::PullRecord;
pub use takes::{Taking, takes_files};

/// A state directory that this process holds. Released when dropped, and by the kernel when the
/// process ends in any way.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Holds the lock as long as it is open.
    _lock: fs::File,
}

/// Says why the state directory cannot be used.
#[derive(Debug, Error)]
pub enum OpenFault {
    /// Another daemon holds it.
    #[error(
        "the state directory `{path}` is in use by {}",
        .holder.map_or_else(|| "another slotd".to_owned(), |pid| format!("the slotd with pid {pid}"))
    )]
    Held {
        /// The directory.
        path: PathBuf,
        /// The other daemon, where it has written down its process id.
        holder: Option<u32>,
    },
    /// Its content was written by a newer slotd.
    #[error(
        "`{path}` has version {found}, this slotd reads up to {VERSION}; use the newer slotd, or move the file away"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// It cannot be made, opened or locked.
    #[error("open the state directory `{path}`")]
    Unusable {
        /// The directory or the file in it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl StateDir {
    /// Makes the directory if it is not there (mode 0700) and takes its lock for the process `pid`,
    /// which is this one.
    ///
    /// # Errors
    /// [`OpenFault::Held`] if another daemon has it, [`OpenFault::Unusable`] if it cannot be used.
    pub fn open(path: &Path, pid: u32) -> Result<Self, OpenFault> {
        make_private(path)
            .map_err(|source| OpenFault::Unusable { path: path.to_path_buf(), source })?;
        let lock = lock::take(path, pid)?;
        Ok(Self { path: path.to_path_buf(), _lock: lock })
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what was remembered. A file that cannot be understood is renamed to
    /// `state.json.bad-<now_unix_ms>` and reported beside an empty memory.
    ///
    /// # Errors
    /// [`OpenFault::Newer`] alone; the file is untouched.
    pub fn load(&self, now_unix_ms: u64) -> Result<Loaded, OpenFault> {
        memory::load(&self.path, now_unix_ms)
    }

    /// Writes what is to be remembered: whole or not at all, also over a loss of power. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// [`SaveFault`]; what was there before is then still there.
    pub fn save(&self, remembered: &Remembered) -> Result<(), SaveFault> {
        memory::save(&self.path, remembered)
    }

    /// Reads what engines took at most before. Blocks on the disk.
    pub fn peaks(&self) -> Peaks {
        peaks::load(&self.path)
    }

    /// Writes what engines took at most. Blocks on the disk.
    ///
    /// # Errors
    /// [`SaveFault`]; what was there before is then still there.
    pub fn save_peaks(&self, peaks: &Peaks) -> Result<(), SaveFault> {
        peaks::save(&self.path, peaks)
    }

    /// Reads the downloads that were under way. Blocks on the disk.
    pub fn pulls(&self) -> Vec<PullRecord> {
        pulls::load(&self.path)
    }

    /// Writes the downloads that are under way. Blocks on the disk.
    ///
    /// # Errors
    /// [`SaveFault`]; what was there before is then still there.
    pub fn save_pulls(&self, pulls: &[PullRecord]) -> Result<(), SaveFault> {
        pulls::save(&self.path, pulls)
    }

    /// Writes down an engine that is to outlive the daemon; it is on the disk when this returns.
    ///
    /// # Errors
    /// [`SaveFault`]; there is no record then.
    pub fn record_engine(&self, record: &EngineRecord) -> Result<(), SaveFault> {
        engines::save(&self.path, record)
    }

    /// Takes an engine's record away; one that is not there is as good.
    ///
    /// # Errors
    /// When the file is there and stays.
    pub fn forget_engine(&self, slot: &SlotName, generation: Generation) -> io::Result<()> {
        engines::forget(&self.path, slot, generation)
    }

    /// Reads the records of engines that an earlier daemon has left. What cannot be understood is
    /// set aside, as [`StateDir::load`] does.
    ///
    /// # Errors
    /// [`OpenFault::Newer`] alone.
    pub fn engines(&self, now_unix_ms: u64) -> Result<EngineRecords, OpenFault> {
        engines::load(&self.path, now_unix_ms)
    }
}

/// Makes a directory with its parents, for this user alone.
fn make_private(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Returns how many bytes an unprivileged process may still write to the file system of `path`;
/// `None` if that cannot be found out. Blocks on the file system.
pub fn free_bytes(path: &Path) -> Option<u64> {
    fs2::available_space(path).ok()
}

/// Reads a file up to `limit` bytes; an error for a larger one.
fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(read).is_ok_and(|read| read <= limit) {
        Ok(bytes)
    } else {
        Err(io::Error::other(format!("larger than {limit} bytes")))
    }
}
