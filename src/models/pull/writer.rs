//! Puts a file's bytes on the disk in their order and hashes them on the way, on a thread of its own: the
//! network does not wait for the disk, nor for the hash of what an earlier pull left.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes as Chunk;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
};

use super::{catalog::Hash, fault::PullFault, layout::unusable, lock::Held, space::Room};
use crate::spec::Bytes;

/// How many chunks may wait for the disk.
const WAITING: usize = 32;
const BLOCK: usize = 1 << 20;
/// How often it is looked whether the disk still has room.
const LOOK_EVERY: u64 = 64 << 20;

/// What is written, and how far it was.
#[derive(Debug)]
pub(super) struct Spec {
    /// The file of the beginning.
    pub(super) path: PathBuf,
    pub(super) size: u64,
    pub(super) hash: Hash,
    pub(super) room: Arc<Room>,
    /// Held until the last byte is on the disk, whatever becomes of the pull.
    pub(super) lock: Arc<Held>,
}

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Writer {
    to: mpsc::Sender<Chunk>,
    task: JoinHandle<Result<Option<String>, PullFault>>,
    at: u64,
}

impl Writer {
    /// Goes on after the first `from` bytes of the file.
    pub(super) fn open(spec: Spec, from: u64) -> Self {
        let (to, chunks) = mpsc::channel(WAITING);
        let task = spawn_blocking(move || {
            let end = write(&spec, from, chunks);
            drop(spec.lock);
            end
        });
        Self { to, task, at: from }
    }

    /// Returns how many bytes there are, those on their way to the disk among them.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Adds bytes; false when the disk takes no more, and [`Writer::finish`] says why.
    pub(super) async fn push(&mut self, chunk: Chunk) -> bool {
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        let is_taken = self.to.send(chunk).await.is_ok();
        if is_taken {
            self.at = self.at.saturating_add(length);
        }
        is_taken
    }

    /// Waits until all is on the disk; returns its hash if that is the whole file.
    pub(super) async fn finish(self) -> Result<Option<String>, PullFault> {
        drop(self.to);
        self.task.await.map_err(|error| PullFault::Broken(error.to_string()))?
    }
}

fn write(
    spec: &Spec,
    from: u64,
    mut chunks: mpsc::Receiver<Chunk>,
) -> Result<Option<String>, PullFault> {
    let fault = |error: io::Error, at: u64| {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            spec.room.fault(Bytes(spec.size - at))
        } else {
            unusable(&spec.path)(error)
        }
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(&spec.path).map_err(|error| fault(error, from))?;
    // Longer than it may be: it is no beginning of this file.
    file.set_len(from).map_err(|error| fault(error, from))?;
    let mut sum = Sum::new(&spec.hash, spec.size);
    sum.add_file(&mut file, from).map_err(|error| fault(error, from))?;
    let (mut at, mut look_at) = (from, from.saturating_add(LOOK_EVERY));
    while let Some(chunk) = chunks.blocking_recv() {
        file.write_all(&chunk).map_err(|error| fault(error, at))?;
        sum.add(&chunk);
        at = at.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        if at >= look_at {
            // Another fills the disk: the reserve is for those who serve, not for this.
            spec.room.check(Bytes(spec.size.saturating_sub(at)))?;
            look_at = at.saturating_add(LOOK_EVERY);
        }
    }
    if at != spec.size {
        return Ok(None);
    }
    // The name that says "whole" comes after the bytes, also where the power fails.
    file.sync_data().map_err(|error| fault(error, at))?;
    Ok(Some(sum.hex()))
}

/// A hash that grows.
pub(super) enum Sum {
    Sha256(Sha256),
    Git(Sha1),
}

impl Sum {
    pub(super) fn new(hash: &Hash, size: u64) -> Self {
        match hash {
            Hash::Sha256(_) => Self::Sha256(Sha256::new()),
            // Source: git hashes the kind and the size before the content.
            Hash::Git(_) => Self::Git(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(sum) => sum.update(bytes),
            Self::Git(sum) => sum.update(bytes),
        }
    }

    /// Adds the first `length` bytes of a file and leaves it there.
    fn add_file(&mut self, file: &mut File, length: u64) -> io::Result<()> {
        file.seek(SeekFrom::Start(0))?;
        let mut left = file.take(length);
        let mut block = vec![0; if length > 0 { BLOCK } else { 0 }];
        loop {
            let read = left.read(&mut block)?;
            match block.get(..read) {
                Some(bytes) if !bytes.is_empty() => self.add(bytes),
                _ => return Ok(()),
            }
        }
    }

    pub(super) fn hex(self) -> String {
        let bytes = match self {
            Self::Sha256(sum) => sum.finalize().to_vec(),
            Self::Git(sum) => sum.finalize().to_vec(),
        };
        let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Source: `git hash-object`, `sha256sum` of `hello\n`.
    #[test]
    fn content_is_hashed_as_the_hub_does() {
        let hashed = |hash: Hash| {
            let mut sum = Sum::new(&hash, 6);
            sum.add(b"hel");
            sum.add(b"lo\n");
            sum.hex()
        };
        assert_eq!(hashed(Hash::Git(String::new())), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(
            hashed(Hash::Sha256(String::new())),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        );
    }
}
