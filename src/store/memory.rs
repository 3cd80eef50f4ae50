//! What a daemon remembers of its slots over restarts: one versioned JSON file.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use super::{OpenFault, read_bounded};
use crate::spec::{
    Bytes, Generation, SlotName, death::Death, edit::Edits, pressure::Source, residence::Orders,
};

/// The version that is written.
pub const VERSION: u64 = 1;

const FILE: &str = "state.json";
const TEMPORARY: &str = "state.json.new";
/// A larger file is not ours: a thousand slots with full histories take half of it.
const MAX_BYTES: u64 = 64 << 20;

/// Everything that is remembered.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Remembered {
    /// [`VERSION`].
    pub version: u64,
    /// By slot; also of slots whose profile is gone, so that a generation never repeats.
    pub slots: BTreeMap<SlotName, SlotMemory>,
}

/// What is remembered of one slot.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct SlotMemory {
    /// The last generation that was used.
    pub generation: Generation,
    /// How long the last loads took, in milliseconds, oldest first.
    pub loads_ms: Vec<u64>,
    /// The last deaths, oldest first.
    pub deaths: Vec<Arc<Death>>,
    /// The rung of its ladder, from 0.
    #[serde(default)]
    pub rung: usize,
    /// Which profile worked, and which one did not.
    #[serde(default, deserialize_with = "known_edits")]
    pub edits: Edits,
    /// What a person has ordered of its stay in memory.
    #[serde(default)]
    pub orders: Orders,
    /// How often it was used, the last time not long ago.
    #[serde(default)]
    pub uses: u64,
    /// When it was used last, in milliseconds since 1970; 0 if that is not known.
    #[serde(default)]
    pub last_use_unix_ms: u64,
    /// The slot that it has made room for, while it is down for that.
    #[serde(default)]
    pub displaced_by: Option<SlotName>,
    /// What the machine ran short of, and what it held of that, while it is down for that.
    #[serde(default)]
    pub relieved: Option<(Source, Bytes)>,
}

/// Profiles of another version may hold what this one does not know: that is no reason to set the
/// whole memory aside.
fn known_edits<'de, D: Deserializer<'de>>(from: D) -> Result<Edits, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

impl Default for Remembered {
    fn default() -> Self {
        Self { version: VERSION, slots: BTreeMap::new() }
    }
}

/// The outcome of reading the memory.
#[derive(Debug, Default)]
pub struct Loaded {
    /// What was remembered; empty at the first start and after a file was set aside.
    pub remembered: Remembered,
    /// The file that could not be understood, if there was one. For a warning.
    pub set_aside: Option<SetAside>,
}

/// A file that could not be understood.
#[derive(Debug, Error)]
#[error("read what was remembered in `{path}`; starting without it")]
pub struct SetAside {
    /// The file.
    pub path: PathBuf,
    /// Where it is kept; `None` if it could not be renamed, and is overwritten by the next save.
    pub kept: Option<PathBuf>,
    /// What is wrong with it.
    #[source]
    pub source: io::Error,
}

/// Says why the memory was not written.
#[derive(Debug, Error)]
#[error("write `{path}`")]
pub struct SaveFault {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Tells the version apart from the rest, which another version may shape otherwise.
#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

pub(super) fn load(dir: &Path, now_unix_ms: u64) -> Result<Loaded, OpenFault> {
    let path = dir.join(FILE);
    let result = match read_bounded(&path, MAX_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded::default()),
        Err(error) => Err(error),
        Ok(bytes) => match serde_json::from_slice::<Versioned>(&bytes) {
            Ok(Versioned { version }) if version > VERSION => {
                return Err(OpenFault::Newer { path, found: version });
            }
            Ok(_) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) => Err(error.into()),
        },
    };
    Ok(match result {
        Ok(remembered) => Loaded { remembered, set_aside: None },
        Err(source) => {
            let kept = dir.join(format!("{FILE}.bad-{now_unix_ms}"));
            let kept = fs::rename(&path, &kept).is_ok().then_some(kept);
            let set_aside = Some(SetAside { path, kept, source });
            Loaded { remembered: Remembered::default(), set_aside }
        }
    })
}

pub(super) fn save(dir: &Path, remembered: &Remembered) -> Result<(), SaveFault> {
    let path = dir.join(FILE);
    let temporary = dir.join(TEMPORARY);
    keep(dir, (&temporary, &path), remembered)
}

/// Writes a file whole or not at all, by way of `temporary` in the same directory, which is gone afterwards.
pub(super) fn keep(
    dir: &Path,
    (temporary, path): (&Path, &Path),
    content: &impl Serialize,
) -> Result<(), SaveFault> {
    let written = serde_json::to_vec(content).map_err(io::Error::from);
    written.and_then(|bytes| write(dir, temporary, path, &bytes)).map_err(|source| {
        // What was written so far would only fill the disk further.
        drop(fs::remove_file(temporary));
        SaveFault { path: path.to_owned(), source }
    })
}

fn write(dir: &Path, temporary: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
    file.write_all(bytes)?;
    // The content must be on the disk before the name points to it.
    file.sync_all()?;
    fs::rename(temporary, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    const NOW: u64 = 1_700_000_000_000;

    fn remembered(loads_ms: Vec<u64>) -> Remembered {
        let memory = SlotMemory { generation: Generation(7), loads_ms, ..SlotMemory::default() };
        let slots = [("chat".parse().unwrap(), memory)].into();
        Remembered { version: VERSION, slots }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path(), NOW).unwrap().remembered, Remembered::default());
        let first = remembered(vec![1]);
        save(dir.path(), &first).unwrap();
        let second = remembered(vec![1, 2]);
        save(dir.path(), &second).unwrap();
        let loaded = load(dir.path(), NOW).unwrap();
        assert_eq!(loaded.remembered, second);
        assert!(loaded.set_aside.is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn a_file_from_before_there_were_rungs_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let older = r#"{"version":1,"slots":{"chat":{"generation":7,"loads_ms":[5],"deaths":[]}}}"#;
        fs::write(dir.path().join(FILE), older).unwrap();
        assert_eq!(load(dir.path(), NOW).unwrap().remembered, remembered(vec![5]));
    }

    #[test]
    fn a_newer_version_is_left_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let newer = r#"{"version":2,"slots":[]}"#;
        fs::write(dir.path().join(FILE), newer).unwrap();
        let fault = load(dir.path(), NOW).unwrap_err();
        assert!(matches!(fault, OpenFault::Newer { found: 2, .. }), "{fault}");
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), newer);
    }

    #[test]
    fn what_is_no_memory_is_set_aside_and_kept() {
        for garbage in ["", "null", "{}", "\0\0\0", r#"{"version":1}"#, r#"{"version":-1}"#] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(FILE), garbage).unwrap();
            let loaded = load(dir.path(), NOW).unwrap();
            let kept = loaded.set_aside.and_then(|aside| aside.kept).unwrap();
            assert_eq!(loaded.remembered, Remembered::default());
            assert!(kept.ends_with("state.json.bad-1700000000000"), "{kept:?}");
            assert_eq!(fs::read_to_string(kept).unwrap(), garbage);
        }
    }

    #[test]
    fn an_enormous_file_is_set_aside_without_reading_it_whole() {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join(FILE)).unwrap().set_len(1 << 30).unwrap();
        assert!(load(dir.path(), NOW).unwrap().set_aside.is_some());
    }

    #[test]
    fn a_failed_save_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let first = remembered(vec![1]);
        save(dir.path(), &first).unwrap();
        // The temporary file cannot be made where a directory has its name.
        fs::create_dir(dir.path().join(TEMPORARY)).unwrap();
        let fault = save(dir.path(), &remembered(vec![2])).unwrap_err();
        assert!(fault.to_string().ends_with("state.json`"), "{fault}");
        assert_eq!(load(dir.path(), NOW).unwrap().remembered, first);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_reported_and_recovers_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let first = remembered(vec![1]);
        save(dir.path(), &first).unwrap();
        // Writing there fails as on a full disk.
        symlink("/dev/full", dir.path().join(TEMPORARY)).unwrap();
        let fault = save(dir.path(), &remembered(vec![2])).unwrap_err();
        assert_eq!(fault.source.kind(), io::ErrorKind::StorageFull);
        assert_eq!(load(dir.path(), NOW).unwrap().remembered, first);
        let second = remembered(vec![3]);
        save(dir.path(), &second).unwrap();
        assert_eq!(load(dir.path(), NOW).unwrap().remembered, second);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_prefix_of_a_file_loads_or_is_set_aside(
            loads in prop::collection::vec(any::<u64>(), 0..20),
            cut in any::<prop::sample::Index>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let whole = remembered(loads);
            save(dir.path(), &whole).unwrap();
            let path = dir.path().join(FILE);
            let bytes = fs::read(&path).unwrap();
            let cut = cut.index(bytes.len() + 1);
            fs::write(&path, &bytes[..cut]).unwrap();
            let loaded = load(dir.path(), NOW).unwrap();
            if cut == bytes.len() {
                prop_assert_eq!(loaded.remembered, whole);
            } else {
                prop_assert!(loaded.set_aside.is_some());
                prop_assert_eq!(loaded.remembered, Remembered::default());
            }
        }
    }
}
