//! What benches have measured, and which one runs: two small files, the daemon or not.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use fs2::FileExt;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{SaveFault, make_private, memory, read_bounded};
use crate::spec::SlotName;

const FILE: &str = "bench.json";
const TEMPORARY: &str = "bench.json.new";
const LOCK: &str = "bench.lock";
const VERSION: u32 = 1;
/// Years of benches of a box.
const MOST: usize = 512;
/// So many of one kind say more than enough.
const MOST_ALIKE: usize = 32;
/// A larger file is not ours: a record takes about a kilobyte.
const MAX_BYTES: u64 = 8 << 20;

/// What is measured.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// From the request to the first piece of its answer.
    FirstTokenMs,
    /// How fast prompts are read.
    PromptTokensPerSecond,
    /// How fast answers are written.
    GeneratedTokensPerSecond,
    /// From the request to its vector.
    AnswerMs,
    /// How many texts become vectors.
    InputsPerSecond,
    /// How many of their tokens.
    InputTokensPerSecond,
}

/// What the runs have in common, least to most.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number the mean of the two.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// Each run, in order.
    pub runs: Vec<f64>,
}

/// What was done.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Load {
    /// `generate` or `embed`.
    pub work: String,
    /// The tokens of each prompt.
    pub prompt_tokens: u32,
    /// The tokens of each answer; 0 for vectors.
    pub generated_tokens: u32,
    /// Requests at once.
    pub concurrency: u32,
}

/// One bench.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct BenchRecord {
    /// Wall-clock time of its end in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The slot.
    pub slot: SlotName,
    /// Its model as the profile names it.
    pub model: Option<String>,
    /// The engine that was measured.
    pub engine: String,
    /// The engine's program.
    pub program: Option<String>,
    /// The CPU cores that it was counted with.
    pub cores: Option<u32>,
    /// The rung of its ladder, where it has one.
    pub rung: Option<String>,
    /// What was done.
    pub load: Load,
    /// Runs before those that count.
    pub warm_up: u32,
    /// Whether speeds are the engine's own, or were seen from outside.
    pub by_engine: bool,
    /// Requests of others that the engine was busy with.
    pub others: u32,
    /// What came of it.
    pub figures: BTreeMap<Measure, Spread>,
}

/// Earlier benches, oldest first.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Benches {
    version: u32,
    benches: Vec<BenchRecord>,
}

/// The right to bench; given back when dropped, and by the kernel when the process ends.
#[derive(Debug)]
pub struct BenchLock(#[expect(dead_code, reason = "it is held, not read")] File);

/// The bench that runs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BenchHolder {
    /// Its process id.
    pub pid: u32,
    /// The slot that is measured.
    pub slot: SlotName,
    /// When it began, in milliseconds since 1970.
    pub since_unix_ms: u64,
}

/// Why a bench cannot begin.
#[derive(Debug, Error)]
pub enum BenchFault {
    /// Another one runs.
    #[error("another bench runs")]
    Held(Option<BenchHolder>),
    /// The lock cannot be made.
    #[error("lock `{path}`")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Spread {
    /// Sums up runs; nothing of none.
    pub fn of(runs: Vec<f64>) -> Option<Self> {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let upper = *sorted.get(half)?;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(*sorted.get(half - 1)?, upper),
            _ => upper,
        };
        Some(Self { median, min, max, runs })
    }

    /// Tells whether two have no value in common.
    pub fn is_apart_from(&self, other: &Self) -> bool {
        self.min > other.max || self.max < other.min
    }
}

impl BenchRecord {
    /// Tells whether two can be compared: the same work of the same model by the same kind of engine.
    pub fn is_like(&self, other: &Self) -> bool {
        let of = |record: &Self| {
            (record.slot.clone(), record.model.clone(), record.engine.clone(), record.load.clone())
        };
        of(self) == of(other)
    }
}

impl Default for Benches {
    fn default() -> Self {
        Self { version: VERSION, benches: Vec::new() }
    }
}

impl Benches {
    /// Returns the last one that `record` can be compared with.
    pub fn last_like(&self, record: &BenchRecord) -> Option<&BenchRecord> {
        self.benches.iter().rfind(|earlier| earlier.is_like(record))
    }

    /// Returns those of one slot, oldest first.
    pub fn of<'a>(&'a self, slot: &'a SlotName) -> impl Iterator<Item = &'a BenchRecord> {
        self.benches.iter().filter(move |record| record.slot == *slot)
    }

    /// Takes in one more; what is too much is forgotten, oldest first.
    pub fn note(&mut self, record: BenchRecord) {
        self.benches.push(record);
        let Some(newest) = self.benches.last() else { return };
        let alike = self.benches.iter().filter(|earlier| earlier.is_like(newest)).count();
        let first = self.benches.iter().position(|earlier| earlier.is_like(newest));
        if let Some(first) = first.filter(|_| alike > MOST_ALIKE) {
            self.benches.remove(first);
        }
        self.benches.drain(..self.benches.len().saturating_sub(MOST));
    }
}

/// Reads earlier benches, none where there is no file; changes nothing.
///
/// # Errors
/// The file cannot be read, or not be understood.
pub fn look_at_benches(dir: &Path) -> io::Result<Benches> {
    let bytes = match read_bounded(&dir.join(FILE), MAX_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Benches::default()),
        read => read?,
    };
    let benches: Benches = serde_json::from_slice(&bytes)?;
    match benches.version {
        VERSION => Ok(benches),
        other => {
            Err(io::Error::other(format!("its version is {other}, this slotd writes {VERSION}")))
        }
    }
}

/// Reads earlier benches for one that is added. A file that cannot be understood is renamed to `bench.json.bad`, whose path is
/// returned beside an empty history: figures are not worth a refusal, nor are they thrown away.
pub fn read_benches(dir: &Path) -> (Benches, Option<PathBuf>) {
    if let Ok(benches) = look_at_benches(dir) {
        return (benches, None);
    }
    let (path, aside) = (dir.join(FILE), dir.join(format!("{FILE}.bad")));
    let moved = fs::rename(&path, &aside).is_ok();
    (Benches::default(), Some(if moved { aside } else { path }))
}

/// Writes benches: whole or not at all. Called with the lock held.
///
/// # Errors
/// [`SaveFault`]; what was there before is then still there.
pub fn save_benches(dir: &Path, benches: &Benches) -> Result<(), SaveFault> {
    let (path, temporary) = (dir.join(FILE), dir.join(TEMPORARY));
    memory::keep(dir, (&temporary, &path), benches)
}

impl BenchLock {
    /// Takes the right to bench for `holder`, which is this process.
    ///
    /// # Errors
    /// [`BenchFault::Held`] with whoever has it, [`BenchFault::Unusable`].
    pub fn take(dir: &Path, holder: &BenchHolder) -> Result<Self, BenchFault> {
        let path = dir.join(LOCK);
        let unusable = |source| BenchFault::Unusable { path: path.clone(), source };
        make_private(dir).map_err(unusable)?;
        let mut options = OpenOptions::new();
        // Never truncated before it is ours: the holder stands in it.
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(unusable)?;
        if let Err(error) = FileExt::try_lock_exclusive(&file) {
            let is_held = error.kind() == fs2::lock_contended_error().kind();
            return Err(if is_held {
                BenchFault::Held(holder_in(&mut file))
            } else {
                unusable(error)
            });
        }
        let text = serde_json::to_vec(holder).map_err(io::Error::from);
        // The lock is what counts: a full disk leaves the next one without a name.
        drop(text.and_then(|text| file.set_len(0).and_then(|()| file.write_all(&text))));
        Ok(Self(file))
    }
}

fn holder_in(file: &mut File) -> Option<BenchHolder> {
    let mut text = Vec::new();
    file.rewind().ok()?;
    file.take(4096).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A bench as short as can be, for tests that look at a part of it.
    pub(crate) fn record(slot: &str, at_unix_ms: u64) -> BenchRecord {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        BenchRecord {
            at_unix_ms,
            slot: slot.parse().unwrap(),
            model: Some("m.gguf".to_owned()),
            engine: "candle".to_owned(),
            program: None,
            cores: Some(1),
            rung: None,
            load: Load {
                work: "generate".to_owned(),
                prompt_tokens: 512,
                generated_tokens: 128,
                concurrency: 1,
            },
            warm_up: 1,
            by_engine: true,
            others: 0,
            figures: [(Measure::PromptTokensPerSecond, spread)].into(),
        }
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        let spread = Spread::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap();
        let Spread { median, min, max, runs } = spread;
        assert_eq!(format!("{min} {median} {max} of {runs:?}"), "1 2.5 4 of [4.0, 1.0, 2.0, 3.0]");
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn what_is_kept_is_read_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut benches = Benches::default();
        benches.note(record("other", 1));
        for at in 0..100 {
            benches.note(record("chat", at));
        }
        save_benches(dir.path(), &benches).unwrap();
        let (read, aside) = read_benches(dir.path());
        assert_eq!((&read, aside), (&benches, None));
        let chat = "chat".parse().unwrap();
        let kept: Vec<u64> = read.of(&chat).map(|record| record.at_unix_ms).collect();
        assert_eq!(kept, (68..100).collect::<Vec<_>>(), "the last {MOST_ALIKE} of a kind");
        let last = read.last_like(&record("other", 9)).unwrap();
        assert_eq!(last.at_unix_ms, 1, "one of another kind outlives them");
        let mut other = record("chat", 0);
        other.load.prompt_tokens = 64;
        assert_eq!(read.last_like(&other), None, "other lengths are not compared");
    }

    #[test]
    fn a_broken_history_is_set_aside_and_no_reason_not_to_bench() {
        let dir = tempfile::tempdir().unwrap();
        for broken in ["{\"version\":1,", "{\"version\":7,\"benches\":[]}"] {
            fs::write(dir.path().join(FILE), broken).unwrap();
            let (read, aside) = read_benches(dir.path());
            assert_eq!(read, Benches::default());
            assert_eq!(fs::read_to_string(aside.unwrap()).unwrap(), broken);
            assert_eq!(read_benches(dir.path()), (Benches::default(), None));
        }
    }

    #[test]
    fn a_look_at_a_broken_history_says_why_and_leaves_it_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look_at_benches(dir.path()).unwrap(), Benches::default());
        for (broken, why) in [
            ("{\"version\":1,", "EOF while parsing a value at line 1 column 13"),
            ("{\"version\":7,\"benches\":[]}", "its version is 7, this slotd writes 1"),
        ] {
            fs::write(dir.path().join(FILE), broken).unwrap();
            assert_eq!(look_at_benches(dir.path()).unwrap_err().to_string(), why);
            assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), broken);
        }
    }

    #[test]
    fn the_second_bench_is_told_which_one_runs() {
        let dir = tempfile::tempdir().unwrap();
        let holder = |slot: &str| BenchHolder {
            pid: std::process::id(),
            slot: slot.parse().unwrap(),
            since_unix_ms: 5,
        };
        let held = BenchLock::take(dir.path(), &holder("chat")).unwrap();
        let refused = BenchLock::take(dir.path(), &holder("other")).unwrap_err();
        assert!(
            matches!(&refused, BenchFault::Held(Some(by)) if *by == holder("chat")),
            "{refused:?}"
        );
        drop(held);
        assert!(BenchLock::take(dir.path(), &holder("other")).is_ok());
    }
}
