//! The content of files against what their names promise.
//!
//! The Hugging Face cache calls a large file by its SHA-256 and a small one by git's name for it, Ollama
//! calls each by its SHA-256; where a file lies in a revision without a link, the hub's list of the commit
//! says it. Nothing is asked of a network.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{
    entry::{Entry, Fault, Gap, Source},
    files::look,
    tree::Tree,
};

const BLOCK: usize = 1 << 20;

/// How a file's name was made of its content.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Promise {
    Sha256(String),
    /// The SHA-1 of `blob SIZE\0` and the content.
    Git(String),
}

/// Reads whole files and compares them with their names; each file once, however many names it has.
#[derive(Debug, Default)]
pub struct Hashes {
    /// What came of each file, by device and inode.
    known: BTreeMap<(u64, u64), Option<String>>,
    /// How many files were read.
    pub files: usize,
    /// How many bytes they had.
    pub bytes: u64,
}

impl Hashes {
    /// Reads every file of a model that is there, and adds to its gaps those that are not what they
    /// should be. Files whose name promises nothing are passed over. Blocks for as long as the disk takes.
    pub fn check(&mut self, entry: &mut Entry) {
        let mut gaps = entry.gaps.clone();
        let tree = entry.revision.as_deref().and_then(|commit| {
            let mut above = entry.path.ancestors();
            let repo =
                above.find(|folder| folder.file_name().is_some_and(|it| it == "snapshots"))?;
            Tree::read(repo.parent()?, commit)
        });
        for path in &entry.parts {
            let name = shown(path, entry.revision.as_deref());
            // What is missing or cut short has been said.
            if gaps.iter().any(|gap| gap.file == name) {
                continue;
            }
            let leaf = tree.as_ref().and_then(|tree| tree.files.get(&name));
            let promise = promise(path).or_else(|| Promise::of(leaf?.blob()));
            let Some(promise) = promise else { continue };
            match self.of(path, &promise) {
                Ok(Some(found)) => {
                    // A pull puts another in the place of what the hub's cache has; others take what is there.
                    let first = if entry.source == Source::Hub { "" } else { "remove it and " };
                    let words = format!(
                        "has the content of {found}, and should be {promise}; {first}download it again"
                    );
                    gaps.push(Gap::new(&name, Fault::WrongHash, words));
                }
                Ok(None) => {}
                Err(error) => {
                    gaps.push(Gap::new(
                        &name,
                        Fault::Unreadable,
                        format!("cannot be read: {error}"),
                    ));
                }
            }
        }
        entry.set_gaps(gaps);
    }

    /// Returns what a file is, where that is not what it should be.
    fn of(&mut self, path: &Path, promise: &Promise) -> io::Result<Option<String>> {
        let Some(stat) = look(path)? else { return Ok(None) };
        if let Some(known) = self.known.get(&stat.identity) {
            return Ok(known.clone());
        }
        let found = promise.found(path, stat.size)?;
        self.files += 1;
        self.bytes = self.bytes.saturating_add(stat.size);
        let wrong = (found != *promise).then(|| found.to_string());
        self.known.insert(stat.identity, wrong.clone());
        Ok(wrong)
    }
}

/// The name of a file as its repository has it.
fn shown(path: &Path, revision: Option<&str>) -> String {
    let mut inside = path.components().rev();
    let name = match revision {
        Some(commit) => {
            let parts: Vec<_> =
                inside.by_ref().take_while(|part| part.as_os_str() != commit).collect();
            parts.into_iter().rev().collect::<PathBuf>()
        }
        None => path.file_name().map(PathBuf::from).unwrap_or_default(),
    };
    name.to_string_lossy().into_owned()
}

/// What the name of a file, or of the one that it links to, promises.
fn promise(path: &Path) -> Option<Promise> {
    let target = fs::read_link(path).unwrap_or_else(|_| path.to_owned());
    let name = target.file_name()?.to_str()?;
    Promise::of(name.strip_prefix("sha256-").unwrap_or(name))
}

impl Promise {
    fn of(name: &str) -> Option<Self> {
        let is_hex = name.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'));
        match name.len() {
            64 if is_hex => Some(Self::Sha256(name.to_owned())),
            40 if is_hex => Some(Self::Git(name.to_owned())),
            _ => None,
        }
    }

    /// What a file's content makes of it.
    fn found(&self, path: &Path, size: u64) -> io::Result<Self> {
        match self {
            Self::Sha256(_) => Ok(Self::Sha256(digest(Sha256::new(), path)?)),
            Self::Git(_) => {
                let begun = Sha1::new().chain_update(format!("blob {size}\0"));
                Ok(Self::Git(digest(begun, path)?))
            }
        }
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 12;
        let (Self::Sha256(hash) | Self::Git(hash)) = self;
        write!(f, "`{}…`", hash.get(..SHOWN).unwrap_or(hash))
    }
}

fn digest(mut hash: impl Digest, path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut block = vec![0; BLOCK];
    loop {
        let read = file.read(&mut block)?;
        let Some(bytes) = block.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        hash.update(bytes);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat())
}
