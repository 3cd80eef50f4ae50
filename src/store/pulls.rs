//! The downloads that are under way: one small file, so that the next daemon goes on with them.

use std::{fs, io::ErrorKind, path::Path};

use serde::{Deserialize, Serialize};

use super::{SaveFault, memory, read_bounded};
use crate::spec::Bytes;

const FILE: &str = "pulls.json";
const TEMPORARY: &str = "pulls.json.new";
const VERSION: u32 = 1;
/// A larger file is not ours: a download takes some hundred bytes.
const MAX_BYTES: u64 = 1 << 20;

/// One download.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PullRecord {
    /// `org/repo`, `org/repo:QUANT`, either with `@REVISION`.
    pub model: String,
    /// The most bytes a second; none for 0.
    pub rate: Bytes,
    /// What has to stay free on the disk, where that is not the usual.
    pub reserve: Option<Bytes>,
    /// Whether all of what is there is read.
    #[serde(default)]
    pub verify: bool,
    /// Whether nothing but a GGUF model is taken.
    #[serde(default)]
    pub gguf_only: bool,
}

#[derive(Deserialize, Serialize)]
struct Kept {
    version: u32,
    pulls: Vec<PullRecord>,
}

/// Reads them. A file that cannot be understood is as good as none: what has come of a model stays,
/// and whoever wants the rest asks again.
pub(super) fn load(dir: &Path) -> Vec<PullRecord> {
    let bytes = read_bounded(&dir.join(FILE), MAX_BYTES).unwrap_or_default();
    let kept: Option<Kept> = serde_json::from_slice(&bytes).ok();
    kept.filter(|kept| kept.version == VERSION).map(|kept| kept.pulls).unwrap_or_default()
}

/// Writes them; none is no file.
pub(super) fn save(dir: &Path, pulls: &[PullRecord]) -> Result<(), SaveFault> {
    let (path, temporary) = (dir.join(FILE), dir.join(TEMPORARY));
    if pulls.is_empty() {
        return match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(SaveFault { path, source }),
            Ok(()) | Err(_) => Ok(()),
        };
    }
    let kept = Kept { version: VERSION, pulls: pulls.to_vec() };
    memory::keep(dir, (&temporary, &path), &kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downloads_are_found_again_until_there_are_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(folder.path()), []);
        let pull = PullRecord {
            model: "o/r:Q4".to_owned(),
            rate: Bytes(5),
            reserve: Some(Bytes(7)),
            verify: true,
            gguf_only: true,
        };
        save(folder.path(), std::slice::from_ref(&pull)).unwrap();
        assert_eq!(load(folder.path()), [pull]);
        save(folder.path(), &[]).unwrap();
        save(folder.path(), &[]).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "{", "null", r#"{"version":2,"pulls":[{"model":"o/r","rate":0}]}"#] {
            fs::write(folder.path().join(FILE), text).unwrap();
            assert_eq!(load(folder.path()), [], "{text}");
        }
    }
}
