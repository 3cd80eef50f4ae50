//! `trees/COMMIT.json` in the Hugging Face cache: every file of a commit, as the hub told it.
//!
//! Source: `huggingface_hub/_tree_cache.py`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde::Deserialize;

const VERSION: u32 = 1;
/// A repository of 10,000 files has about 3 MiB.
const MAX_BYTES: u64 = 32 << 20;

/// The files of a commit.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    pub(super) files: BTreeMap<String, Leaf>,
}

/// One file as the hub told it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Leaf {
    size: u64,
    blob_id: String,
    #[serde(default)]
    lfs_sha256: Option<String>,
    #[serde(default)]
    lfs_size: Option<u64>,
}

#[derive(Deserialize)]
struct Typed {
    format_version: u32,
    files: BTreeMap<String, Leaf>,
}

impl Leaf {
    /// How many bytes the file has.
    pub(super) fn size(&self) -> u64 {
        self.lfs_size.unwrap_or(self.size)
    }

    /// What its blob is called in the cache: the SHA-256 of a large file, git's name of a small one.
    pub(super) fn blob(&self) -> &str {
        self.lfs_sha256.as_deref().unwrap_or(&self.blob_id)
    }
}

impl Tree {
    /// Reads the tree of a commit; `None` where there is none, or none that can be understood.
    pub(super) fn read(repo: &Path, commit: &str) -> Option<Self> {
        let read = || -> io::Result<Typed> {
            let file = File::open(repo.join("trees").join(format!("{commit}.json")))?;
            let mut bytes = Vec::new();
            file.take(MAX_BYTES).read_to_end(&mut bytes)?;
            Ok(serde_json::from_slice(&bytes)?)
        };
        let typed = read().ok().filter(|typed| typed.format_version == VERSION)?;
        Some(Self { files: typed.files })
    }

    pub(super) fn size_of(&self, name: &str) -> Option<u64> {
        self.files.get(name).map(Leaf::size)
    }
}
