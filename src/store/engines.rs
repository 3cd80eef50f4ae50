//! Engines that outlive the daemon: one file each, on the disk before a request is routed to them.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{OpenFault, SaveFault, memory, read_bounded};
use crate::{
    engine::{Endpoint, EngineKind},
    spec::{Generation, SlotName, identity::Identity, profile::Profile},
    supervisor::EngineInfo,
};

/// The version that is written. A change of [`Profile`] that old files do not have needs a default,
/// or engines of the older slotd are not adopted.
const VERSION: u64 = 1;

const FOLDER: &str = "engines";
/// A larger file is not ours: a profile with all it can hold takes a tenth of it.
const MAX_BYTES: u64 = 1 << 20;

/// What a later daemon needs to go on with an engine.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct EngineRecord {
    version: u64,
    /// The slot.
    pub slot: SlotName,
    /// The engine's generation.
    pub generation: Generation,
    /// Who it is.
    pub identity: Identity,
    /// What kind of engine it is.
    pub kind: EngineKind,
    /// Where it answers.
    pub endpoint: Endpoint,
    /// What people see of it.
    pub engine: EngineInfo,
    /// What it was started for.
    pub profile: Profile,
    /// The name of its model that it insists on.
    #[serde(default)]
    pub model: Option<String>,
    /// The program that ends it, with its arguments; empty where signals do.
    #[serde(default)]
    pub stop: Vec<OsString>,
}

/// The outcome of reading all records.
#[derive(Debug, Default)]
pub struct EngineRecords {
    /// Those that could be understood.
    pub records: Vec<EngineRecord>,
    /// Files that could not, each with the reason. They are renamed and kept.
    pub set_aside: Vec<(PathBuf, io::Error)>,
}

#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

impl EngineRecord {
    /// Makes a record.
    pub fn new(
        (slot, generation): (SlotName, Generation),
        identity: Identity,
        (kind, endpoint, engine): (EngineKind, Endpoint, EngineInfo),
        profile: Profile,
    ) -> Self {
        Self {
            version: VERSION,
            slot,
            generation,
            identity,
            kind,
            endpoint,
            engine,
            profile,
            model: None,
            stop: Vec::new(),
        }
    }
}

pub(super) fn save(dir: &Path, record: &EngineRecord) -> Result<(), SaveFault> {
    let folder = dir.join(FOLDER);
    let path = file(&folder, &record.slot, record.generation);
    super::make_private(&folder).map_err(|source| SaveFault { path: path.clone(), source })?;
    memory::keep(&folder, (&path.with_extension("new"), &path), record)
}

pub(super) fn forget(dir: &Path, slot: &SlotName, generation: Generation) -> io::Result<()> {
    match fs::remove_file(file(&dir.join(FOLDER), slot, generation)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(super) fn load(dir: &Path, now_unix_ms: u64) -> Result<EngineRecords, OpenFault> {
    let mut found = EngineRecords::default();
    let Ok(entries) = fs::read_dir(dir.join(FOLDER)) else { return Ok(found) };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match read(&path) {
            Ok(Read::Record(record)) => found.records.push(*record),
            Ok(Read::Newer(version)) => return Err(OpenFault::Newer { path, found: version }),
            Err(error) => {
                let mut aside = path.clone().into_os_string();
                aside.push(format!(".bad-{now_unix_ms}"));
                // One that cannot be renamed is found again by the next start.
                drop(fs::rename(&path, aside));
                found.set_aside.push((path, error));
            }
        }
    }
    Ok(found)
}

enum Read {
    Record(Box<EngineRecord>),
    Newer(u64),
}

fn read(path: &Path) -> io::Result<Read> {
    let bytes = read_bounded(path, MAX_BYTES)?;
    let Versioned { version } = serde_json::from_slice(&bytes)?;
    if version > VERSION {
        return Ok(Read::Newer(version));
    }
    Ok(Read::Record(Box::new(serde_json::from_slice(&bytes)?)))
}

fn file(folder: &Path, slot: &SlotName, generation: Generation) -> PathBuf {
    folder.join(format!("{slot}.g{generation}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn folder(dir: &Path) -> PathBuf {
        let folder = dir.join(FOLDER);
        fs::create_dir(&folder).unwrap();
        folder
    }

    #[test]
    fn what_is_no_record_is_set_aside_and_kept() {
        for garbage in ["", "null", "{}", "\0\0\0", r#"{"version":1}"#, r#"{"version":-1}"#] {
            let dir = tempfile::tempdir().unwrap();
            let folder = folder(dir.path());
            fs::write(folder.join("chat.g1.json"), garbage).unwrap();
            let found = load(dir.path(), NOW).unwrap();
            assert!(found.records.is_empty() && found.set_aside.len() == 1, "{garbage}");
            let kept = folder.join("chat.g1.json.bad-1700000000000");
            assert_eq!(fs::read_to_string(kept).unwrap(), garbage);
            assert!(load(dir.path(), NOW).unwrap().set_aside.is_empty(), "told twice");
        }
    }

    #[test]
    fn an_enormous_record_is_set_aside_without_reading_it_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = folder(dir.path()).join("chat.g1.json");
        fs::File::create(path).unwrap().set_len(1 << 30).unwrap();
        assert_eq!(load(dir.path(), NOW).unwrap().set_aside.len(), 1);
    }

    #[test]
    fn a_record_of_a_newer_version_is_left_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let path = folder(dir.path()).join("chat.g1.json");
        fs::write(&path, r#"{"version":2,"shape":"another"}"#).unwrap();
        let fault = load(dir.path(), NOW).unwrap_err();
        assert!(matches!(fault, OpenFault::Newer { found: 2, .. }), "{fault}");
        assert!(path.exists());
    }
}
