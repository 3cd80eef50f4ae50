//! What files say of themselves, remembered by path, size and time of change.
//!
//! The memory is one small file in slotd's cache. It is a help and nothing else: one that cannot be read
//! or written is as good as none, and nothing that it says is believed of a file that has changed.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    entry::{Fault, Gap},
    files::Stat,
    hands::in_turns,
};
use crate::models::{gguf, safetensors};

const FILE: &str = "inventory.json";
/// Changed with the meaning of what is kept.
const VERSION: u32 = 1;
/// More files with weights than a machine has.
const MOST: usize = 65_536;
/// A larger file is not ours: one takes about 250 bytes.
const MAX_BYTES: u64 = 32 << 20;
/// The first bytes of whisper.cpp's files. Source: `GGML_FILE_MAGIC`.
const GGML: [u8; 4] = *b"lmgg";

/// What a file with weights says of itself.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Facts {
    /// `general.type` of a GGUF file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) quantisation: Option<String>,
    #[serde(default)]
    pub(super) parameters: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) context_length: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pooling: Option<u32>,
    /// How many files it says the model is split into.
    #[serde(default)]
    pub(super) parts: u64,
}

/// What came of reading a file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Reading {
    /// It is whole by its own word.
    Whole(Facts),
    /// It is not; in words that read after its name, and how many bytes it lacks.
    Broken(Fault, String, Option<u64>),
}

/// The readings, and which of them are new.
#[derive(Debug, Default)]
pub struct Headers {
    folder: Option<PathBuf>,
    /// What was remembered, by path; shared by those that look at the same time.
    known: Arc<BTreeMap<String, Known>>,
    /// Those that were asked for, so that what is gone is forgotten.
    used: BTreeMap<String, Known>,
    is_changed: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Known {
    size: u64,
    mtime_ns: i128,
    reading: Reading,
}

#[derive(Deserialize, Serialize)]
struct Kept {
    version: u32,
    files: BTreeMap<String, Known>,
}

impl Headers {
    /// Reads what is remembered in `folder`, slotd's cache.
    pub fn load(folder: &Path) -> Self {
        let read = || -> io::Result<Kept> {
            let file = File::open(folder.join(FILE))?;
            let mut bytes = Vec::new();
            file.take(MAX_BYTES).read_to_end(&mut bytes)?;
            Ok(serde_json::from_slice(&bytes)?)
        };
        let kept = read().ok().filter(|kept| kept.version == VERSION);
        let known = kept.map(|kept| kept.files).unwrap_or_default();
        Self { folder: Some(folder.to_owned()), known: Arc::new(known), ..Self::default() }
    }

    /// Makes one that knows the same, for a look beside this one.
    pub(super) fn beside(&self) -> Self {
        Self { known: Arc::clone(&self.known), ..Self::default() }
    }

    /// Takes in what another has seen.
    pub(super) fn take_in(&mut self, other: Self) {
        self.used.extend(other.used);
        self.is_changed |= other.is_changed;
    }

    /// Remembers what was asked for since [`Headers::load`], and forgets the rest. Whole or not at all.
    pub fn save(self) {
        let is_same = !self.is_changed && self.known.len() == self.used.len();
        let Some(folder) = self.folder.filter(|_| !is_same) else { return };
        let mut files = self.used;
        while files.len() > MOST {
            files.pop_last();
        }
        let kept = Kept { version: VERSION, files };
        // Lost or left half-written it does no harm: the files are read again.
        drop(write(&folder, &kept));
    }

    /// Says what the file at `path` says of itself; reads it only where it is new or has changed.
    pub(super) fn read(&mut self, path: &Path, stat: &Stat) -> Reading {
        // A link's target is the same file for every revision that links to it.
        let Some(key) = stat.target.as_deref().unwrap_or(path).to_str() else {
            return read(path, stat.size);
        };
        let is_same = |known: &&Known| (known.size, known.mtime_ns) == (stat.size, stat.mtime_ns);
        if let Some(known) = self.used.get(key).filter(is_same) {
            return known.reading.clone();
        }
        let known = self.known.get(key).filter(is_same).cloned().unwrap_or_else(|| {
            self.is_changed = true;
            Known { size: stat.size, mtime_ns: stat.mtime_ns, reading: read(path, stat.size) }
        });
        let reading = known.reading.clone();
        // What could not be read may be readable the next time.
        if !matches!(reading, Reading::Broken(Fault::Unreadable, ..)) {
            self.used.insert(key.to_owned(), known);
        }
        reading
    }

    /// Reads files that will be asked for, several at a time.
    pub(super) fn read_ahead(&mut self, files: &[(&Path, &Stat)]) {
        let read = in_turns(files, |files| {
            let mut headers = self.beside();
            for (path, stat) in files {
                headers.read(path, stat);
            }
            headers
        });
        for headers in read {
            self.take_in(headers);
        }
    }
}

fn write(folder: &Path, kept: &Kept) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let temporary = folder.join(format!(".{FILE}.{}", std::process::id()));
    let written = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(kept)?)?;
        fs::rename(&temporary, folder.join(FILE))
    })();
    written.inspect_err(|_| {
        drop(fs::remove_file(&temporary));
    })
}

impl Reading {
    /// Says what is wrong with `file`, if anything is.
    pub(super) fn gap(&self, file: &str) -> Option<Gap> {
        match self {
            Self::Whole(_) => None,
            Self::Broken(fault, message, bytes) => {
                Some(Gap::new(file, *fault, message.clone()).of_bytes(*bytes))
            }
        }
    }

    fn unreadable(error: &io::Error) -> Self {
        Self::Broken(Fault::Unreadable, format!("cannot be read: {error}"), None)
    }
}

/// Reads the header of a file by the ending of its name.
fn read(path: &Path, size: u64) -> Reading {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    match ending.to_ascii_lowercase().as_str() {
        "safetensors" => read_safetensors(path),
        "bin" | "pt" | "pth" => read_other(path),
        // Ollama's files have no endings.
        _ => read_gguf(path, size),
    }
}

fn read_gguf(path: &Path, size: u64) -> Reading {
    use gguf::HeaderFault as Of;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return Reading::unreadable(&error),
    };
    let fault = match gguf::parse(file, size) {
        Ok(header) => {
            return Reading::Whole(Facts {
                kind: header.general_type,
                architecture: header.architecture,
                quantisation: header.quantisation.map(str::to_owned),
                parameters: header.parameters,
                context_length: header.context_length,
                pooling: header.pooling,
                parts: header.parts,
            });
        }
        Err(fault) => fault,
    };
    let message = fault.to_string();
    let (kind, bytes) = match fault {
        Of::Io(error) => return Reading::unreadable(&error),
        Of::Empty => (Fault::Empty, None),
        Of::LfsPointer => (Fault::Missing, pointed_at(path)),
        Of::CutHeader { .. } => (Fault::Cut, None),
        Of::CutTensor { end, size, .. } => (Fault::Cut, Some(end.saturating_sub(size))),
        Of::NotGguf { .. }
        | Of::Version(_)
        | Of::BigEndian
        | Of::Damaged(_)
        | Of::MissingPart { .. }
        | Of::NotFirstPart { .. }
        | Of::BadPart { .. } => (Fault::Damaged, None),
    };
    Reading::Broken(kind, message, bytes)
}

fn read_safetensors(path: &Path) -> Reading {
    use safetensors::HeaderFault as Of;
    let fault = match safetensors::read(path) {
        Ok(header) => {
            let mut types: BTreeMap<&str, u64> = BTreeMap::new();
            for tensor in &header.tensors {
                *types.entry(&tensor.dtype).or_default() += tensor.bytes();
            }
            let most = types.into_iter().max_by_key(|(_, bytes)| *bytes);
            return Reading::Whole(Facts {
                quantisation: most.map(|(dtype, _)| dtype.to_owned()),
                parameters: header.parameters(),
                parts: 1,
                ..Facts::default()
            });
        }
        Err(fault) => fault,
    };
    let message = fault.to_string();
    let (kind, bytes) = match fault {
        Of::Io(error) => return Reading::unreadable(&error),
        Of::Empty => (Fault::Empty, None),
        Of::LfsPointer => (Fault::Missing, pointed_at(path)),
        Of::CutHeader { .. } => (Fault::Cut, None),
        Of::CutTensor { end, size, .. } => (Fault::Cut, Some(end.saturating_sub(size))),
        Of::NotSafetensors { .. }
        | Of::Damaged(_)
        | Of::MissingPart { .. }
        | Of::BadPart { .. }
        | Of::NoWeights => (Fault::Damaged, None),
    };
    Reading::Broken(kind, message, bytes)
}

/// Reads the first bytes of a file whose inside is not known here: enough to tell what it is not.
fn read_other(path: &Path) -> Reading {
    let mut first = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut first));
    if let Err(error) = read {
        return Reading::unreadable(&error);
    }
    if first.is_empty() {
        return Reading::Broken(Fault::Empty, "is empty; download it again".to_owned(), None);
    }
    if first.starts_with(b"version https://git-lfs") {
        let message = gguf::HeaderFault::LfsPointer.to_string();
        return Reading::Broken(Fault::Missing, message, pointed_at(path));
    }
    let architecture = if first.starts_with(&GGML) { "whisper" } else { "" };
    Reading::Whole(Facts { architecture: architecture.to_owned(), parts: 1, ..Facts::default() })
}

/// Reads how large the file is that a Git LFS pointer stands for.
fn pointed_at(path: &Path) -> Option<u64> {
    let mut text = String::new();
    File::open(path).ok()?.take(1024).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse().ok())
}
