//! The Hugging Face cache as other programs lay it out and expect to find it.
//!
//! ```text
//! HUB/models--ORG--REPO/blobs/HASH               a file's content
//!                      /blobs/HASH.incomplete    its beginning
//!                      /snapshots/COMMIT/PATH    a relative link to it
//!                      /refs/REVISION            the commit, 40 digits without a line end
//!                      /trees/COMMIT.json        what the commit consists of
//! HUB/.locks/models--ORG--REPO/HASH.lock         held by whoever writes the content
//! HUB/.locks/models--ORG--REPO/slotd.lock        held by the slotd that pulls of the repository
//! ```
//!
//! Source: `file_download.py`, `_tree_cache.py` and `_local_folder.py` of `huggingface_hub` 2.4.0.
//! Everything that others could read appears whole, by a rename.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use hf_hub::{Cache, Repo, RepoType};

use super::{
    catalog::{Entry, Hash, Listed, TREE_FORMAT, Tree, of_listed},
    fault::PullFault,
    reference::{Reference, is_commit},
};

const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # This file is a cache directory tag created by slotd.\n\
    # For information about cache directory tags, see https://bford.info/cachedir/\n";

/// The places of one repository.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    cache: Cache,
    repo: Repo,
    folder: PathBuf,
}

impl Layout {
    /// Finds the places of what is asked for; nothing is touched.
    pub(super) fn new(hub: &Path, wanted: &Reference) -> Self {
        let cache = Cache::new(hub.to_owned());
        let revision = wanted.revision().to_owned();
        let repo = Repo::with_revision(wanted.repo.clone(), RepoType::Model, revision);
        let folder = hub.join(repo.folder_name());
        Self { cache, repo, folder }
    }

    pub(super) fn hub(&self) -> &Path {
        self.cache.path()
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.folder.join("blobs")
    }

    pub(super) fn blob(&self, hash: &Hash) -> PathBuf {
        self.blobs().join(hash.name())
    }

    pub(super) fn partial(&self, hash: &Hash) -> PathBuf {
        self.blobs().join(format!("{}.incomplete", hash.name()))
    }

    pub(super) fn blob_lock(&self, hash: &Hash) -> PathBuf {
        self.locks().join(format!("{}.lock", hash.name()))
    }

    pub(super) fn model_lock(&self) -> PathBuf {
        self.locks().join("slotd.lock")
    }

    fn locks(&self) -> PathBuf {
        self.hub().join(".locks").join(self.repo.folder_name())
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.repo(self.repo.clone()).pointer_path(commit)
    }

    pub(super) fn pointer(&self, commit: &str, path: &str) -> PathBuf {
        self.snapshot(commit).join(path)
    }

    fn tree(&self, commit: &str) -> PathBuf {
        self.folder.join("trees").join(format!("{commit}.json"))
    }

    fn reference(&self) -> PathBuf {
        self.folder.join("refs").join(self.repo.revision())
    }

    /// Tells whether a file's content is there, in its whole length. Its hash was checked as it came; what
    /// became of it since `content` tells.
    pub(super) fn has_blob(&self, entry: &Entry) -> bool {
        fs::metadata(self.blob(&entry.hash))
            .is_ok_and(|found| found.is_file() && found.len() == entry.size)
    }

    /// Tells whether a file is there as the commit's.
    pub(super) fn has(&self, commit: &str, entry: &Entry) -> bool {
        fs::metadata(self.pointer(commit, &entry.path))
            .is_ok_and(|found| found.is_file() && found.len() == entry.size)
    }

    /// Returns how much of a file's beginning is there.
    pub(super) fn begun(&self, entry: &Entry) -> u64 {
        let found = fs::metadata(self.partial(&entry.hash)).map_or(0, |found| found.len());
        if found > entry.size { 0 } else { found }
    }

    /// Makes the folder of the locks, and marks the cache as one for programs that back disks up. Of a
    /// repository that the hub may not have there is nothing yet.
    pub(super) fn prepare(&self) -> Result<(), PullFault> {
        let folder = self.locks();
        fs::create_dir_all(&folder).map_err(unusable(&folder))?;
        let tag = self.hub().join("CACHEDIR.TAG");
        if !tag.exists() {
            // A comfort for others, nothing more.
            drop(fs::write(&tag, TAG));
        }
        Ok(())
    }

    /// Makes the folder of what is fetched, and notes what the commit consists of, where it is not noted.
    pub(super) fn begin(&self, commit: &str, entries: &[Entry]) -> Result<(), PullFault> {
        let folder = self.blobs();
        fs::create_dir_all(&folder).map_err(unusable(&folder))?;
        if self.read_tree(commit).is_none() { self.write_tree(commit, entries) } else { Ok(()) }
    }

    /// Returns the commit that the revision was at when it was pulled last.
    pub(super) fn known_commit(&self) -> Option<String> {
        if is_commit(self.repo.revision()) {
            return Some(self.repo.revision().to_owned());
        }
        // Some tools end the line.
        let text = fs::read_to_string(self.reference()).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Notes the commit that the revision is at. A commit needs no note.
    pub(super) fn write_reference(&self, commit: &str) -> Result<(), PullFault> {
        if self.repo.revision() == commit || self.known_commit().as_deref() == Some(commit) {
            return Ok(());
        }
        replace(&self.reference(), commit.as_bytes())
    }

    /// Reads what a commit consists of, where that was noted.
    pub(super) fn read_tree(&self, commit: &str) -> Option<Vec<Entry>> {
        let text = fs::read(self.tree(commit)).ok()?;
        let tree: Tree = serde_json::from_slice(&text).ok()?;
        if tree.format_version != TREE_FORMAT {
            return None;
        }
        let entries = tree.files.into_iter().map(|(path, listed)| of_listed(path, listed));
        entries.collect::<Result<_, _>>().ok()
    }

    /// Notes what a commit consists of: an interrupted pull is known as such without the network.
    fn write_tree(&self, commit: &str, entries: &[Entry]) -> Result<(), PullFault> {
        let files: BTreeMap<String, Listed> =
            entries.iter().map(|entry| (entry.path.clone(), entry.listed.clone())).collect();
        let tree = Tree { format_version: TREE_FORMAT, files };
        let text = serde_json::to_vec_pretty(&tree)
            .map_err(|error| PullFault::Broken(error.to_string()))?;
        replace(&self.tree(commit), &text)
    }

    /// Links a file of the commit to its content.
    pub(super) fn link(&self, commit: &str, entry: &Entry) -> Result<(), PullFault> {
        let pointer = self.pointer(commit, &entry.path);
        let Some(folder) = pointer.parent() else { return Ok(()) };
        fs::create_dir_all(folder).map_err(unusable(folder))?;
        // From `snapshots/COMMIT/…` up to the repository's folder.
        let up = "../".repeat(entry.path.matches('/').count() + 2);
        let target = PathBuf::from(format!("{up}blobs/{}", entry.hash.name()));
        if fs::read_link(&pointer).is_ok_and(|found| found == target) {
            return Ok(());
        }
        let new = beside(&pointer);
        drop(fs::remove_file(&new));
        symlink(&target, &new).map_err(unusable(&new))?;
        fs::rename(&new, &pointer).map_err(unusable(&pointer))
    }
}

/// Makes the fault of a path.
pub(super) fn unusable(path: &Path) -> impl FnOnce(io::Error) -> PullFault + use<> {
    let path = path.to_owned();
    move |source| PullFault::Io { path, source }
}

/// Writes a file that nobody sees half written.
fn replace(path: &Path, text: &[u8]) -> Result<(), PullFault> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(unusable(folder))?;
    }
    let new = beside(path);
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, path));
    written.map_err(|error| {
        drop(fs::remove_file(&new));
        unusable(path)(error)
    })
}

/// Names what is to take a path's place: the same in each pull, which holds the model's lock.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".slotd-tmp");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> Entry {
        let listed = Listed {
            size: 1,
            blob_id: "b".repeat(40),
            lfs_sha256: None,
            lfs_size: None,
            xet_hash: None,
        };
        of_listed(path.to_owned(), listed).unwrap()
    }

    #[test]
    fn a_file_is_found_where_other_programs_look_for_it() {
        let hub = tempfile::tempdir().unwrap();
        let layout = Layout::new(hub.path(), &"org/re.po".parse().unwrap());
        let (commit, entry) = ("c".repeat(40), entry("sub/x.gguf"));
        layout.prepare().unwrap();
        assert!(!hub.path().join("models--org--re.po").exists());
        layout.begin(&commit, std::slice::from_ref(&entry)).unwrap();
        fs::write(layout.blob(&entry.hash), "x").unwrap();
        assert!(layout.has_blob(&entry) && !layout.has(&commit, &entry));
        layout.link(&commit, &entry).unwrap();
        layout.link(&commit, &entry).unwrap();
        layout.write_reference(&commit).unwrap();
        let root = hub.path().join("models--org--re.po");
        let pointer = root.join("snapshots").join(&commit).join("sub/x.gguf");
        let target = PathBuf::from(format!("../../../blobs/{}", "b".repeat(40)));
        assert_eq!(fs::read_link(&pointer).unwrap(), target);
        assert!(layout.has(&commit, &entry));
        assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), commit);
        assert_eq!(layout.known_commit(), Some(commit));
        assert!(hub.path().join("CACHEDIR.TAG").exists());
    }

    #[test]
    fn what_a_commit_consists_of_is_read_as_it_was_written() {
        let hub = tempfile::tempdir().unwrap();
        let layout = Layout::new(hub.path(), &"org/repo@v1".parse().unwrap());
        let (commit, entries) = ("c".repeat(40), vec![entry("a"), entry("b/c")]);
        assert_eq!(layout.read_tree(&commit), None);
        layout.write_tree(&commit, &entries).unwrap();
        assert_eq!(layout.read_tree(&commit), Some(entries));
        fs::write(layout.tree(&commit), r#"{"format_version": 2, "files": {}}"#).unwrap();
        assert_eq!(layout.read_tree(&commit), None);
    }
}
