//! The log files of a slot: `LOGS/SLOT/gN.log`, one for each generation, and what keeps them small.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::spec::{Generation, SlotName};

/// A log is rotated once it is larger.
pub const ROTATE_BYTES: u64 = 16 << 20;
/// How much of a log stays when the disk has no room for its older part.
const KEPT_WHEN_FULL: u64 = 256 << 10;
/// While the disk is nearly full, a log is cut once it is larger.
const SHORT_BYTES: u64 = 1 << 20;
/// How many generations keep their logs.
pub const KEEP_GENERATIONS: usize = 5;

/// Returns where the log of one generation is.
pub fn log_path(logs: &Path, slot: &SlotName, generation: Generation) -> PathBuf {
    generation_path(&logs.join(slot.as_str()), generation)
}

pub(super) fn generation_path(slot_dir: &Path, generation: Generation) -> PathBuf {
    slot_dir.join(format!("g{generation}.log"))
}

/// Returns where the older part of a log is.
pub(super) fn rotated(log: &Path) -> PathBuf {
    log.with_extension("log.1")
}

/// Moves the content of a log that passed [`ROTATE_BYTES`] to `gN.log.1`, over what was there, and
/// empties it. Tells whether it did. What the engine writes between the two is lost: it keeps the
/// file open, so that the file cannot be renamed.
///
/// # Errors
/// Those of reading and writing the two files.
pub fn rotate_if_large(log: &Path) -> io::Result<bool> {
    rotate(log, ROTATE_BYTES)
}

fn rotate(log: &Path, limit: u64) -> io::Result<bool> {
    let mut file = match OpenOptions::new().read(true).write(true).open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let length = file.metadata()?.len();
    if length <= limit {
        return Ok(false);
    }
    // A flood may have come between two looks: the newest part counts.
    let kept = limit.saturating_mul(2);
    file.seek(SeekFrom::Start(length.saturating_sub(kept)))?;
    let mut options = OpenOptions::new();
    let mut older: File =
        options.write(true).create(true).truncate(true).mode(0o600).open(rotated(log))?;
    // A flood goes on meanwhile: without a bound the copy would never come to an end.
    match io::copy(&mut (&mut file).take(kept), &mut older) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            make_room(&mut file, &mut older)?;
        }
        copied => drop(copied?),
    }
    file.set_len(0)?;
    Ok(true)
}

/// Gives up what a full disk has no room for: the last of a log stays, and that only if it can.
fn make_room(log: &mut File, older: &mut File) -> io::Result<()> {
    let length = log.metadata()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(KEPT_WHEN_FULL)))?;
    let mut last = Vec::new();
    log.take(KEPT_WHEN_FULL).read_to_end(&mut last)?;
    log.set_len(0)?;
    // What is left of a failed copy goes first; where the rest fails too, the log is lost, and is short.
    drop(older.set_len(0).and_then(|()| older.rewind()).and_then(|()| older.write_all(&last)));
    Ok(())
}

/// Cuts a log that passed 1 MiB to its last 256 KiB, which stand in `gN.log.1` then. For a disk that is
/// nearly full: what is older is lost. Tells whether it did.
///
/// # Errors
/// Those of reading and writing the two files.
pub fn shorten(log: &Path) -> io::Result<bool> {
    shorten_beyond(log, SHORT_BYTES)
}

fn shorten_beyond(log: &Path, limit: u64) -> io::Result<bool> {
    let mut file = match OpenOptions::new().read(true).write(true).open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    if file.metadata()?.len() <= limit {
        return Ok(false);
    }
    let mut options = OpenOptions::new();
    let mut older: File =
        options.write(true).create(true).truncate(true).mode(0o600).open(rotated(log))?;
    make_room(&mut file, &mut older)?;
    Ok(true)
}

/// Removes, in the folder of all slots' logs, the older parts of logs and those of all but the newest
/// generation of each slot. For a disk that is nearly full: what cannot be removed keeps nothing else.
///
/// # Errors
/// The first of listing the directories and removing files; a directory that is not there is none.
pub fn drop_old_logs(logs: &Path) -> io::Result<()> {
    let slots = match fs::read_dir(logs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        slots => slots?,
    };
    let mut done = Ok(());
    for slot in slots {
        let dropped = slot.and_then(|slot| drop_old_logs_of(&slot.path()));
        done = done.and(dropped);
    }
    done
}

fn drop_old_logs_of(slot: &Path) -> io::Result<()> {
    if !slot.is_dir() {
        return Ok(());
    }
    let pruned = prune_to(slot, 1);
    let newest = generations(slot)?.pop().map(|newest| generation_path(slot, newest));
    pruned.and(newest.map_or(Ok(()), |newest| remove(&rotated(&newest))))
}

/// Removes the logs of all but the newest [`KEEP_GENERATIONS`] generations of a slot.
///
/// # Errors
/// Those of listing the directory and removing files; a directory that is not there is none.
pub fn prune(slot_dir: &Path) -> io::Result<()> {
    prune_to(slot_dir, KEEP_GENERATIONS)
}

fn prune_to(slot_dir: &Path, kept: usize) -> io::Result<()> {
    let generations = generations(slot_dir)?;
    let mut done = Ok(());
    for generation in generations.iter().rev().skip(kept) {
        let log = generation_path(slot_dir, *generation);
        done = done.and(remove(&rotated(&log))).and(remove(&log));
    }
    done
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Lists the generations that have a log, oldest first.
pub(super) fn generations(slot_dir: &Path) -> io::Result<Vec<Generation>> {
    let entries = match fs::read_dir(slot_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix('g')?.strip_suffix(".log"));
        found.extend(number.and_then(|number| number.parse().ok()).map(Generation));
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_writer_that_appends_goes_on_after_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("g1.log");
        let mut engine = OpenOptions::new().append(true).create(true).open(&log).unwrap();
        engine.write_all(b"0123456789").unwrap();
        assert!(!rotate(&log, 10).unwrap());
        engine.write_all(b"x").unwrap();
        assert!(rotate(&log, 10).unwrap());
        engine.write_all(b"after").unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "after");
        assert_eq!(fs::read_to_string(rotated(&log)).unwrap(), "0123456789x");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_log_that_a_full_disk_cannot_rotate_is_emptied_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("g1.log");
        fs::write(&log, "0123456789x").unwrap();
        // Writing there fails as on a full disk.
        symlink("/dev/full", rotated(&log)).unwrap();
        assert!(rotate(&log, 10).unwrap());
        assert_eq!(fs::read_to_string(&log).unwrap(), "");
    }

    #[test]
    fn the_newest_generations_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for generation in [1, 2, 9, 10, 11, 12] {
            fs::write(dir.path().join(format!("g{generation}.log")), "").unwrap();
        }
        fs::write(dir.path().join("g1.log.1"), "").unwrap();
        fs::write(dir.path().join("notes"), "").unwrap();
        prune(dir.path()).unwrap();
        assert_eq!(generations(dir.path()).unwrap(), [2, 9, 10, 11, 12].map(Generation));
        assert!(!dir.path().join("g1.log.1").exists() && dir.path().join("notes").exists());
        prune(&dir.path().join("none")).unwrap();
    }

    #[test]
    fn a_disk_that_is_nearly_full_keeps_the_newest_log_and_the_end_of_a_long_one() {
        let logs = tempfile::tempdir().unwrap();
        let slot = logs.path().join("chat");
        fs::create_dir(&slot).unwrap();
        for name in ["g1.log", "g1.log.1", "g2.log", "g2.log.1"] {
            fs::write(slot.join(name), "text").unwrap();
        }
        drop_old_logs(logs.path()).unwrap();
        let names = fs::read_dir(&slot).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["g2.log"]);
        let log = slot.join("g2.log");
        assert!(!shorten(&log).unwrap(), "it is short");
        let mut engine = OpenOptions::new().append(true).open(&log).unwrap();
        engine.write_all(&vec![b'x'; 300 << 10]).unwrap();
        assert!(shorten_beyond(&log, 100 << 10).unwrap());
        assert_eq!(fs::metadata(rotated(&log)).unwrap().len(), KEPT_WHEN_FULL);
        engine.write_all(b"after").unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "after");
        drop_old_logs(&logs.path().join("none")).unwrap();
    }

    #[test]
    fn a_folder_that_fails_does_not_keep_the_logs_of_the_others() {
        let logs = tempfile::tempdir().unwrap();
        for slot in ["a", "b", "c"].map(|slot| logs.path().join(slot)) {
            // It cannot be removed, by nobody: in whatever order they are listed, the first fails.
            fs::create_dir_all(slot.join("g2.log")).unwrap();
            for name in ["g1.log", "g3.log", "g3.log.1"] {
                fs::write(slot.join(name), "text").unwrap();
            }
        }
        drop_old_logs(logs.path()).unwrap_err();
        for slot in ["a", "b", "c"].map(|slot| logs.path().join(slot)) {
            let names = fs::read_dir(&slot).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<_> = names.collect();
            names.sort();
            assert_eq!(names, ["g2.log", "g3.log"], "{}", slot.display());
        }
    }
}
