//! Repositories in a folder: `ORG/REPO/REVISION/…`. Each revision is one commit.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Endings of files that the hub keeps outside git.
const LARGE: [&str; 5] = ["gguf", "safetensors", "bin", "pt", "model"];

/// The folder, and the hashes of its files that were asked for.
pub(crate) struct Repos {
    folder: PathBuf,
    known: Mutex<BTreeMap<PathBuf, (u64, SystemTime, Hashes)>>,
}

#[derive(Clone)]
struct Hashes {
    git: String,
    sha256: String,
}

/// One commit.
pub(crate) struct Commit {
    pub(crate) id: String,
    pub(crate) files: Vec<Entry>,
}

/// One file of a commit.
pub(crate) struct Entry {
    /// Its path in the repository.
    pub(crate) name: String,
    /// Its path here.
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    /// What git calls it; of a large file, its pointer.
    pub(crate) git: String,
    /// The hash of its content, of large files only.
    pub(crate) sha256: Option<String>,
}

impl Entry {
    /// The name of its content, as caches use it.
    pub(crate) fn etag(&self) -> &str {
        self.sha256.as_deref().unwrap_or(&self.git)
    }
}

impl Repos {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, known: Mutex::default() }
    }

    /// The names of a repository's revisions; empty where there is no such repository.
    pub(crate) fn revisions(&self, repo: &str) -> Vec<String> {
        let entries = fs::read_dir(self.folder.join(repo)).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The commit of a revision, by its name or its id.
    pub(crate) fn commit(&self, repo: &str, revision: &str) -> Option<Commit> {
        let names = self.revisions(repo);
        let read = |name: &String| self.read(&self.folder.join(repo).join(name)).ok();
        if let Some(name) = names.iter().find(|name| *name == revision) {
            return read(name);
        }
        names.iter().filter_map(read).find(|commit| commit.id == revision)
    }

    fn read(&self, root: &Path) -> io::Result<Commit> {
        let mut files = Vec::new();
        self.collect(root, "", &mut files)?;
        files.sort_by(|one, other| one.name.cmp(&other.name));
        let mut id = Sha1::new();
        for file in &files {
            id.update(format!("{} {}\n", file.name, file.git));
        }
        Ok(Commit { id: hex(&id.finalize()), files })
    }

    fn collect(&self, folder: &Path, inside: &str, files: &mut Vec<Entry>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let name = if inside.is_empty() { name } else { format!("{inside}/{name}") };
            if entry.file_type()?.is_dir() {
                self.collect(&entry.path(), &name, files)?;
            } else {
                files.push(self.entry(name, entry.path())?);
            }
        }
        Ok(())
    }

    fn entry(&self, name: String, path: PathBuf) -> io::Result<Entry> {
        let found = fs::metadata(&path)?;
        let (size, changed) = (found.len(), found.modified()?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let hashes = match known.get(&path) {
            Some((was, then, hashes)) if (*was, *then) == (size, changed) => hashes.clone(),
            _ => {
                let hashes = hashes(&path, size)?;
                known.insert(path.clone(), (size, changed, hashes.clone()));
                hashes
            }
        };
        let is_large = Path::new(&name)
            .extension()
            .is_some_and(|ending| LARGE.iter().any(|large| ending.eq_ignore_ascii_case(large)));
        let Hashes { git, sha256 } = hashes;
        if !is_large {
            return Ok(Entry { name, path, size, git, sha256: None });
        }
        let pointer = pointer(&sha256, size);
        let mut git = Sha1::new();
        git.update(format!("blob {}\0{pointer}", pointer.len()));
        Ok(Entry { name, path, size, git: hex(&git.finalize()), sha256: Some(sha256) })
    }
}

/// What git keeps of a large file.
pub(crate) fn pointer(sha256: &str, size: u64) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n")
}

fn hashes(path: &Path, size: u64) -> io::Result<Hashes> {
    let (mut git, mut sha256) = (Sha1::new(), Sha256::new());
    git.update(format!("blob {size}\0"));
    let mut file = File::open(path)?;
    let mut block = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut block)?;
        let Some(bytes) = block.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        git.update(bytes);
        sha256.update(bytes);
    }
    Ok(Hashes { git: hex(&git.finalize()), sha256: hex(&sha256.finalize()) })
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}
