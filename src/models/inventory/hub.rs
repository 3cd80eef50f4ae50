//! The cache of the Hugging Face hub: `models--ORG--REPO/{refs,snapshots,blobs,trees,.no_exist}`.
//!
//! Source: `huggingface_hub`, `docs/source/en/guides/manage-cache.md`, `file_download.py`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::{
    entry::{Entry, Fault, Format, Gap, Kind, Source},
    files::{Known, Presence, Seen, list, list_links},
    group::{Place, read_text},
    hands::in_turns,
    headers::Headers,
    tree::Tree,
};
pub(super) use crate::models::hub::{choose, commit_of, is_model};

/// Folder names of repositories of models.
const START: &str = "models--";
/// What is being fetched: `BLOB.incomplete`, and newer `BLOB.RANDOM.incomplete`.
pub(super) const PARTIAL: &str = ".incomplete";

/// One repository in the cache.
#[derive(Debug)]
pub(super) struct Repo {
    /// `org/repo`.
    pub(super) name: String,
    pub(super) folder: PathBuf,
    /// Branches and tags, by the commit that each names.
    pub(super) refs: BTreeMap<String, Vec<String>>,
    /// The files of each commit.
    pub(super) snapshots: BTreeMap<String, Vec<Seen>>,
    pub(super) blobs: Vec<Seen>,
}

impl Repo {
    /// Reads what there is of a repository, and opens none of its large files.
    pub(super) fn read(folder: &Path, faults: &mut Vec<String>) -> Option<Self> {
        let name = folder.file_name()?.to_str()?.strip_prefix(START)?.replace("--", "/");
        let enter = |_: &str| true;
        let mut refs: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for file in list(&folder.join("refs"), enter, faults) {
            // Some tools end the line.
            let Some(commit) = read_text(&file.path) else { continue };
            refs.entry(commit.trim().to_owned()).or_default().push(file.name);
        }
        let blob_folder = folder.join("blobs");
        let blobs = list(&blob_folder, enter, faults);
        let known = Known::of(&blob_folder, &blobs);
        let mut snapshots = BTreeMap::new();
        for commit in folders(&folder.join("snapshots"), faults) {
            let snapshot = folder.join("snapshots").join(&commit);
            snapshots.insert(commit, list_links(&snapshot, &known, faults));
        }
        Some(Self { name, folder: folder.to_owned(), refs, snapshots, blobs })
    }

    /// Finds the models of every revision.
    fn models(&self, headers: &mut Headers) -> Vec<Entry> {
        let mut models = Vec::new();
        for (commit, files) in self.snapshots.iter().filter(|(_, files)| !files.is_empty()) {
            models.extend(self.of_revision(commit, files, headers));
        }
        let is_lost = |commit: &str| self.snapshots.get(commit).is_none_or(Vec::is_empty);
        let lost = self.refs.iter().filter(|(commit, _)| is_lost(commit));
        for (commit, refs) in lost {
            models.push(self.lost_revision(commit, refs, headers));
        }
        if models.is_empty() && self.blobs.iter().any(|blob| blob.name.ends_with(PARTIAL)) {
            let gap = Gap::new(
                "snapshots",
                Fault::Partial,
                "has no revision, only an unfinished download",
            );
            models.push(self.bare(None, &[], vec![gap]));
        }
        models
    }

    fn of_revision(&self, commit: &str, files: &[Seen], headers: &mut Headers) -> Vec<Entry> {
        let tree = Tree::read(&self.folder, commit);
        let files = self.with_awaited(files, tree.as_ref());
        let root = self.folder.join("snapshots").join(commit);
        let place = Place {
            source: Source::Hub,
            root: &root,
            repo: Some(&self.name),
            revision: Some(commit),
            refs: self.refs.get(commit).cloned().unwrap_or_default(),
            tree: tree.as_ref(),
            files,
        };
        place.models(headers)
    }

    /// The files of a commit, those that somebody has begun to fetch among them.
    pub(super) fn files_of(&self, commit: &str, tree: Option<&Tree>) -> Vec<Seen> {
        let files = self.snapshots.get(commit).map(Vec::as_slice).unwrap_or_default();
        self.with_awaited(files, tree)
    }

    fn with_awaited(&self, files: &[Seen], tree: Option<&Tree>) -> Vec<Seen> {
        let mut files = files.to_vec();
        if let Some(tree) = tree {
            files.extend(self.awaited(tree, &files));
            files.sort_by(|one, other| one.name.cmp(&other.name));
        }
        files
    }

    /// Files of a commit that somebody has begun to fetch.
    fn awaited(&self, tree: &Tree, files: &[Seen]) -> Vec<Seen> {
        let there: BTreeSet<&str> = files.iter().map(|file| file.name.as_str()).collect();
        let begun = self.begun();
        let awaited = tree.files.iter().filter(|(name, _)| !there.contains(name.as_str()));
        awaited
            .filter_map(|(name, leaf)| {
                let have = begun.get(leaf.blob()).copied()?;
                let presence = Presence::Awaited { have: Some(have) };
                Some(Seen { name: name.clone(), path: self.folder.join("blobs"), presence })
            })
            .collect()
    }

    /// How much there is of each blob that is not whole.
    fn begun(&self) -> BTreeMap<&str, u64> {
        let mut begun = BTreeMap::new();
        for blob in &self.blobs {
            let Some(name) = blob.name.strip_suffix(PARTIAL) else { continue };
            let name = name.split_once('.').map_or(name, |(blob, _)| blob);
            let size = blob.stat().map_or(0, |stat| stat.size);
            let most = begun.entry(name).or_insert(0);
            *most = size.max(*most);
        }
        begun
    }

    /// A revision that a branch names and that has no files.
    fn lost_revision(&self, commit: &str, refs: &[String], headers: &mut Headers) -> Entry {
        // Of one that is being fetched the hub's list tells more.
        let mut found = self.of_revision(commit, &[], headers);
        if let Some(entry) = found.pop().filter(|_| found.is_empty()) {
            return entry;
        }
        let names = refs.join("`, `");
        let message = format!("of `{names}` is not there, though the cache knows the branch");
        self.bare(Some(commit), refs, vec![Gap::new(commit, Fault::Missing, message)])
    }

    fn bare(&self, commit: Option<&str>, refs: &[String], gaps: Vec<Gap>) -> Entry {
        let place = Place {
            source: Source::Hub,
            root: &self.folder,
            repo: Some(&self.name),
            revision: commit,
            refs: refs.to_vec(),
            tree: None,
            files: Vec::new(),
        };
        let mut entry = place.entry(Format::Other, Kind::Other, &[]);
        entry.set_gaps(gaps);
        entry
    }

    /// Every file that takes room: blobs, and files that lie in a revision without a link.
    pub(super) fn stored(&self) -> impl Iterator<Item = &Seen> {
        self.blobs.iter().chain(self.snapshots.values().flatten())
    }

    /// The files that a revision uses, by device and inode.
    pub(super) fn used(&self) -> BTreeSet<(u64, u64)> {
        let files = self.snapshots.values().flatten();
        files.filter_map(|file| Some(file.stat()?.identity)).collect()
    }
}

/// The repositories of a cache.
pub(super) fn repos(hub: &Path, faults: &mut Vec<String>) -> Vec<Repo> {
    let names = folders(hub, faults).into_iter().filter(|name| name.starts_with(START));
    names.filter_map(|name| Repo::read(&hub.join(name), faults)).collect()
}

/// What a cache holds: its models, and by device and inode what takes room and what of it is used.
pub(super) fn scan(
    hub: &Path,
    headers: &mut Headers,
    space: &mut super::Room,
    faults: &mut Vec<String>,
) -> Vec<Entry> {
    let names = folders(hub, faults);
    let names: Vec<_> = names.iter().filter(|name| name.starts_with(START)).collect();
    let looks = in_turns(&names, |names| {
        let mut look = Look { headers: headers.beside(), ..Look::default() };
        for name in names {
            look.take(&hub.join(name));
        }
        look
    });
    let mut models = Vec::new();
    for look in looks {
        models.extend(look.models);
        headers.take_in(look.headers);
        space.take_in(look.space);
        faults.extend(look.faults);
    }
    models
}

/// What was found in some repositories.
#[derive(Default)]
struct Look {
    models: Vec<Entry>,
    headers: Headers,
    space: super::Room,
    faults: Vec<String>,
}

impl Look {
    fn take(&mut self, folder: &Path) {
        let Some(repo) = Repo::read(folder, &mut self.faults) else { return };
        let used = repo.used();
        for stat in repo.stored().filter_map(Seen::stat) {
            self.space.add(stat, used.contains(&stat.identity));
        }
        self.models.extend(repo.models(&mut self.headers));
    }
}

/// The names of the folders in a folder, sorted; links are none.
pub(super) fn folders(folder: &Path, faults: &mut Vec<String>) -> Vec<String> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                faults.push(format!("`{}` cannot be listed: {error}", folder.display()));
            }
            return Vec::new();
        }
    };
    let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let found = entries.flatten().filter(is_folder);
    let mut names: Vec<_> =
        found.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
