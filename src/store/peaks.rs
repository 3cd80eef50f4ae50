//! What engines took at most in earlier runs: one small file that may be lost without harm.

use std::{collections::BTreeMap, io, path::Path};

use serde::{Deserialize, Serialize};

use super::{SaveFault, memory, read_bounded};
use crate::spec::{Bytes, memory::Peak as Taken};

const FILE: &str = "peaks.json";
const TEMPORARY: &str = "peaks.json.new";
const VERSION: u32 = 1;
/// More engines than a box has profiles, edits of some months included.
const MOST: usize = 512;
/// A larger file is not ours: a peak takes about 80 bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The peaks, by what the engine was: its model's file, its version, its arguments.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Peaks {
    /// Of the form, and of what keys are made of: those of another one are measured again.
    version: u32,
    /// Those that were heard of last stand last.
    peaks: Vec<Peak>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Peak {
    key: String,
    host_bytes: Bytes,
    /// Of each GPU that it was on, by UUID.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    gpu_bytes: BTreeMap<String, Bytes>,
}

impl Default for Peaks {
    fn default() -> Self {
        Self { version: VERSION, peaks: Vec::new() }
    }
}

impl Peaks {
    /// Returns the most that the engine with this key took.
    pub fn of(&self, key: &str) -> Option<Taken> {
        let peak = self.peaks.iter().find(|peak| peak.key == key)?;
        Some(Taken { host: peak.host_bytes, gpus: peak.gpu_bytes.clone() })
    }

    /// Takes in what it took at most in one run; less than before changes nothing but its turn to be
    /// forgotten. On GPUs only runs on the same ones are compared: another set stands in the place of the
    /// one before. Returns whether there is something new to be written, its turn included: what is in use
    /// is not to be what is forgotten.
    pub fn note(&mut self, key: &str, taken: &Taken) -> bool {
        let before = self.of(key);
        let is_last = self.peaks.last().is_some_and(|last| last.key == key);
        let most = before.as_ref().map_or_else(|| taken.clone(), |before| more(before, taken));
        self.peaks.retain(|peak| peak.key != key);
        let Taken { host, gpus } = most.clone();
        self.peaks.push(Peak { key: key.to_owned(), host_bytes: host, gpu_bytes: gpus });
        let excess = self.peaks.len().saturating_sub(MOST);
        self.peaks.drain(..excess);
        before != Some(most) || !is_last
    }
}

/// Brings two runs together. One that says nothing of GPUs changes nothing there.
fn more(before: &Taken, taken: &Taken) -> Taken {
    let host = before.host.max(taken.host);
    if taken.gpus.is_empty() {
        return Taken { host, gpus: before.gpus.clone() };
    }
    let mut gpus = taken.gpus.clone();
    if before.gpus.keys().eq(gpus.keys()) {
        for (gpu, bytes) in &mut gpus {
            let earlier = before.gpus.get(gpu).copied().unwrap_or_default();
            *bytes = earlier.max(*bytes);
        }
    }
    Taken { host, gpus }
}

/// Reads them. A file that cannot be understood is as good as none: what it had is measured again.
pub fn load(dir: &Path) -> Peaks {
    let read = || -> io::Result<Peaks> {
        let bytes = read_bounded(&dir.join(FILE), MAX_BYTES)?;
        Ok(serde_json::from_slice(&bytes)?)
    };
    let read: io::Result<Peaks> = read();
    read.ok().filter(|peaks| peaks.version == VERSION).unwrap_or_default()
}

pub(super) fn save(dir: &Path, peaks: &Peaks) -> Result<(), SaveFault> {
    let (path, temporary) = (dir.join(FILE), dir.join(TEMPORARY));
    memory::keep(dir, (&temporary, &path), peaks)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn host(bytes: u64) -> Taken {
        Taken { host: Bytes(bytes), gpus: BTreeMap::new() }
    }

    fn on(gpus: &[(&str, u64)]) -> Taken {
        let gpus = gpus.iter().map(|(gpu, bytes)| ((*gpu).to_owned(), Bytes(*bytes)));
        Taken { host: Bytes(1), gpus: gpus.collect() }
    }

    #[test]
    fn each_gpu_keeps_the_most_of_the_runs_on_the_same_ones() {
        let folder = tempfile::tempdir().unwrap();
        let mut peaks = Peaks::default();
        peaks.note("a", &on(&[("GPU-1", 5), ("GPU-2", 9)]));
        assert!(peaks.note("a", &on(&[("GPU-1", 8), ("GPU-2", 3)])));
        assert_eq!(peaks.of("a"), Some(on(&[("GPU-1", 8), ("GPU-2", 9)])));
        assert!(!peaks.note("a", &host(1)), "it does not say");
        save(folder.path(), &peaks).unwrap();
        assert_eq!(load(folder.path()), peaks);
        assert!(peaks.note("a", &on(&[("GPU-1", 12)])));
        assert_eq!(
            peaks.of("a"),
            Some(on(&[("GPU-1", 12)])),
            "alone it takes what two took before"
        );
    }

    #[test]
    fn the_most_of_all_runs_counts_and_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut peaks = load(folder.path());
        assert_eq!(peaks.of("a"), None);
        assert!(peaks.note("a", &host(5)));
        assert!(!peaks.note("a", &host(3)), "less is no news");
        assert!(peaks.note("a", &host(7)));
        save(folder.path(), &peaks).unwrap();
        assert_eq!(load(folder.path()), peaks);
        assert_eq!(load(folder.path()).of("a"), Some(host(7)));
    }

    #[test]
    fn those_that_were_not_heard_of_for_longest_are_forgotten() {
        let mut peaks = Peaks::default();
        for at in 0..MOST {
            peaks.note(&at.to_string(), &host(1));
        }
        peaks.note("0", &host(1));
        peaks.note("one more", &host(1));
        assert_eq!(peaks.peaks.len(), MOST);
        assert_eq!((peaks.of("0"), peaks.of("1")), (Some(host(1)), None));
    }

    #[test]
    fn what_is_in_use_is_not_forgotten_for_want_of_news() {
        let mut peaks = Peaks::default();
        peaks.note("in use", &host(7));
        peaks.note("other", &host(1));
        assert!(peaks.note("in use", &host(7)), "its turn is to be written");
        assert!(!peaks.note("in use", &host(7)), "once");
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "{", "null", r#"{"version":2,"peaks":[{"key":"a","host_bytes":1}]}"#] {
            fs::write(folder.path().join(FILE), text).unwrap();
            assert_eq!(load(folder.path()), Peaks::default(), "{text}");
        }
    }
}
