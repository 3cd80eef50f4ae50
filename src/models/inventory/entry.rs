//! What an inventory shows: the shapes, their keys, their words.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::spec::{Bytes, SlotName};

/// The most gaps that are named of one model; more are counted.
const MAX_GAPS: usize = 32;

/// Everything that was found: the answer of `GET /v1/inventory` and of `slotd models --json`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Inventory {
    /// Each model, by its name.
    pub models: Vec<Entry>,
    /// The folders that were looked at.
    pub stores: Vec<Store>,
    /// What could not be read, one sentence each.
    pub faults: Vec<String>,
    /// What all of it takes on disk, what several models share once; unfinished and forgotten files too.
    pub size_bytes: Bytes,
    /// The part of it that no model uses: unfinished downloads, blobs that nothing names.
    pub unused_bytes: Bytes,
}

/// A folder with models in it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Store {
    /// What keeps it.
    pub source: Source,
    /// Where it is.
    pub path: PathBuf,
    /// How many models it has.
    pub models: usize,
}

/// One model.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Entry {
    /// As a profile may name it: `org/repo:QUANT`, or a path. Ollama's names are its own.
    pub model: String,
    /// What keeps it.
    pub source: Source,
    /// How it is stored.
    pub format: Format,
    /// What it is for.
    pub kind: Kind,
    /// What it says of its architecture, such as `llama`.
    pub architecture: Option<String>,
    /// Such as `Q4_K_M`.
    pub quantisation: Option<String>,
    /// How many numbers it has.
    pub parameters: Option<u64>,
    /// Tokens that it was trained for.
    pub context_length: Option<u64>,
    /// What its files take on disk.
    pub size_bytes: Bytes,
    /// How many files they are.
    pub files: usize,
    /// Where they are, those that are not there among them.
    #[serde(skip)]
    pub parts: Vec<PathBuf>,
    /// The commit, in the Hugging Face cache.
    pub revision: Option<String>,
    /// The branches and tags that name the commit.
    pub refs: Vec<String>,
    /// The file, the first one of several, or their folder.
    pub path: PathBuf,
    /// Whether all of it is there.
    pub state: Wholeness,
    /// What is not as it should be.
    pub gaps: Vec<Gap>,
    /// How many more bytes have to be fetched until it is whole, where that is known; 0 for a whole one.
    pub missing_bytes: Option<Bytes>,
    /// The slots that serve it.
    pub slots: Vec<SlotName>,
    /// Whether one of them has it in memory.
    pub is_loaded: bool,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Gap {
    /// The file, as its repository or folder names it.
    pub file: String,
    /// What is wrong with it.
    pub fault: Fault,
    /// The same in words that read after the file's name.
    pub message: String,
    /// How many bytes have to be fetched, where that is known.
    pub bytes: Option<Bytes>,
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// It is not there.
    Missing,
    /// A link to it is there, and the file is not.
    Dangling,
    /// A download was not finished.
    Partial,
    /// It has no bytes.
    Empty,
    /// It ends too early.
    Cut,
    /// Its content contradicts itself, or is of another kind.
    Damaged,
    /// Its content is not what its name says.
    WrongHash,
    /// It may not be read, or reading failed.
    Unreadable,
}

/// Whether all of a model is there.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wholeness {
    /// Everything that it names is there, as far as was looked.
    Whole,
    /// Something has to be fetched.
    Incomplete,
    /// A file is there and cannot be right.
    Damaged,
    /// Something cannot be read.
    Unreadable,
}

/// What keeps a model.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The cache of the Hugging Face hub.
    Hub,
    /// One of `model_dirs`.
    Folder,
    /// llama.cpp's own cache of earlier years.
    LlamaCpp,
    /// LM Studio.
    LmStudio,
    /// Ollama.
    Ollama,
    /// A slot's profile, which names a path outside all of these.
    Profile,
}

/// How a model is stored.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// GGUF.
    Gguf,
    /// Safetensors.
    Safetensors,
    /// Files of `PyTorch`.
    Pytorch,
    /// Files of whisper.cpp.
    Ggml,
    /// Nothing that is known.
    Other,
}

/// What a model is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Text from text, or from text with pictures and sound.
    Chat,
    /// Vectors.
    Embed,
    /// Scores.
    Rerank,
    /// Text from speech.
    Whisper,
    /// Speech from text.
    Speech,
    /// Pictures.
    Image,
    /// What lets another model see or hear.
    Projector,
    /// A change of another model.
    Adapter,
    /// What guesses ahead for another model.
    Draft,
    /// Anything else.
    Other,
}

impl Fault {
    /// Tells whether fetching the file makes it whole.
    pub fn is_fetched(self) -> bool {
        match self {
            Self::Missing | Self::Dangling | Self::Partial | Self::Empty | Self::Cut => true,
            Self::Damaged | Self::WrongHash | Self::Unreadable => false,
        }
    }
}

impl Gap {
    /// Says what is wrong with a file; the words read after its name.
    pub(super) fn new(file: &str, fault: Fault, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), fault, message: message.into(), bytes: None }
    }

    /// Says how much has to be fetched.
    pub(super) fn of_bytes(self, bytes: Option<u64>) -> Self {
        Self { bytes: bytes.map(Bytes), ..self }
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.file, self.message)
    }
}

impl Entry {
    /// Makes one of which nothing is known but its name and place.
    pub(super) fn new(model: String, source: Source, path: &Path) -> Self {
        Self {
            model,
            source,
            format: Format::Other,
            kind: Kind::Other,
            architecture: None,
            quantisation: None,
            parameters: None,
            context_length: None,
            size_bytes: Bytes(0),
            files: 0,
            parts: Vec::new(),
            revision: None,
            refs: Vec::new(),
            path: path.to_owned(),
            state: Wholeness::Whole,
            gaps: Vec::new(),
            missing_bytes: Some(Bytes(0)),
            slots: Vec::new(),
            is_loaded: false,
        }
    }

    /// Puts down what is wrong, and what follows from it.
    pub(super) fn set_gaps(&mut self, gaps: Vec<Gap>) {
        self.state = if gaps.iter().any(|gap| gap.fault == Fault::Unreadable) {
            Wholeness::Unreadable
        } else if gaps.iter().any(|gap| !gap.fault.is_fetched()) {
            Wholeness::Damaged
        } else if gaps.is_empty() {
            Wholeness::Whole
        } else {
            Wholeness::Incomplete
        };
        self.missing_bytes = gaps
            .iter()
            .map(|gap| gap.bytes)
            .try_fold(Bytes(0), |sum, bytes| Some(Bytes(sum.0.saturating_add(bytes?.0))));
        let excess = gaps.len().saturating_sub(MAX_GAPS);
        self.gaps = gaps;
        self.gaps.truncate(MAX_GAPS);
        if excess > 0 {
            let more = Gap::new("…", Fault::Missing, format!("and {excess} files more"));
            self.gaps.push(more);
        }
    }

    /// Says what is wrong in one line: the first gap, and how many more there are.
    pub fn trouble(&self) -> Option<String> {
        let first = self.gaps.first()?;
        let more = match self.gaps.len() {
            1 => String::new(),
            count => format!(", and {} more", count - 1),
        };
        let bytes = self.missing_bytes.filter(|bytes| bytes.0 > 0);
        let fetch = bytes.map(|bytes| format!(" ({bytes} to fetch)")).unwrap_or_default();
        Some(format!("{first}{more}{fetch}"))
    }
}

impl Source {
    /// Returns the word for people and for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::Folder => "folder",
            Self::LlamaCpp => "llama-cpp",
            Self::LmStudio => "lm-studio",
            Self::Ollama => "ollama",
            Self::Profile => "profile",
        }
    }
}

impl Kind {
    /// Returns the word for people and for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Embed => "embed",
            Self::Rerank => "rerank",
            Self::Whisper => "whisper",
            Self::Speech => "speech",
            Self::Image => "image",
            Self::Projector => "projector",
            Self::Adapter => "adapter",
            Self::Draft => "draft",
            Self::Other => "other",
        }
    }
}

impl Wholeness {
    /// Returns the word for people and for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Incomplete => "incomplete",
            Self::Damaged => "damaged",
            Self::Unreadable => "unreadable",
        }
    }
}
