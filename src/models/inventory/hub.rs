//! The cache of the Hugging Face hub: `models--ORG--REPO/{refs,snapshots,blobs,trees,.no_exist}`.
//!
//! Source: `huggingface_hub`, `docs/source/en/guides/manage-cache.md`, `file_download.py`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    entry::{Entry, Fault, Format, Gap, Kind, Source, Wholeness},
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
    /// Commits whose files could not all be listed.
    unread: BTreeSet<String>,
    /// What could not be looked at, one sentence each.
    pub(super) faults: Vec<String>,
}

impl Repo {
    /// Reads what there is of a repository, and opens none of its large files.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        let name = folder.file_name()?.to_str()?.strip_prefix(START)?.replace("--", "/");
        let mut faults = Vec::new();
        let blob_folder = folder.join("blobs");
        let blobs = list(&blob_folder, |_| true, &mut faults);
        let mut repo = Self {
            name,
            folder: folder.to_owned(),
            refs: read_refs(&folder.join("refs"), &mut faults),
            snapshots: BTreeMap::new(),
            blobs: Vec::new(),
            unread: BTreeSet::new(),
            faults,
        };
        repo.read_snapshots(&Known::of(&blob_folder, &blobs));
        repo.blobs = blobs;
        Some(repo)
    }

    fn read_snapshots(&mut self, known: &Known<'_>) {
        let root = self.folder.join("snapshots");
        let is_linked = root.is_symlink();
        let mut faults = Vec::new();
        for commit in folders(&root, |_| true, &mut faults) {
            let snapshot = root.join(&commit);
            let mut unlisted = Vec::new();
            // Behind a link `..` leads elsewhere than its letters say.
            let files = if is_linked || snapshot.is_symlink() {
                list(&snapshot, |_| true, &mut unlisted)
            } else {
                list_links(&snapshot, known, &mut unlisted)
            };
            if !unlisted.is_empty() {
                self.unread.insert(commit.clone());
                self.faults.append(&mut unlisted);
            }
            self.snapshots.insert(commit, files);
        }
        if !faults.is_empty() {
            let absent = self.refs.keys().filter(|commit| !self.snapshots.contains_key(*commit));
            self.unread.extend(absent.cloned());
            self.faults.append(&mut faults);
        }
    }

    /// Tells whether everything of it could be looked at: what was not seen may name any blob.
    pub(super) fn is_seen_whole(&self) -> bool {
        let mut files = self.snapshots.values().flatten();
        self.faults.is_empty()
            && !files.any(|file| matches!(file.presence, Presence::Unreadable(_)))
    }

    /// Tells whether some of it lies elsewhere, where others than this cache may use it.
    pub(super) fn is_linked(&self) -> bool {
        let is_link = |part: &str| self.folder.join(part).is_symlink();
        self.folder.is_symlink() || ["blobs", "refs", "snapshots"].into_iter().any(is_link)
    }

    /// The commit of an interrupted first pull: the only one of which there is a list, and that no branch names.
    pub(super) fn begun_commit(&self) -> Option<String> {
        let trees = list(&self.folder.join("trees"), |_| false, &mut Vec::new());
        let commits = trees.iter().filter_map(|tree| tree.name.strip_suffix(".json"));
        let mut begun = commits.filter(|commit| !self.refs.contains_key(*commit));
        let only = begun.next()?.to_owned();
        begun.next().is_none().then_some(only)
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
            if let Some(commit) = self.begun_commit() {
                models = self.of_revision(&commit, &[], headers);
            }
            if models.is_empty() {
                let message = "has no revision, only an unfinished download";
                models.push(self.bare(
                    None,
                    &[],
                    vec![Gap::new("snapshots", Fault::Partial, message)],
                ));
            }
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
        let mut models = place.models(headers);
        if let Some(gap) = self.unlisted(commit) {
            for entry in models.iter_mut().filter(|entry| entry.state != Wholeness::Whole) {
                entry.set_gaps([std::slice::from_ref(&gap), &entry.gaps].concat());
            }
            if models.is_empty() {
                let refs = self.refs.get(commit).map(Vec::as_slice).unwrap_or_default();
                models.push(self.bare(Some(commit), refs, vec![gap]));
            }
        }
        models
    }

    /// Says that what a commit lacks may be there.
    fn unlisted(&self, commit: &str) -> Option<Gap> {
        let message = "has a folder that cannot be listed";
        self.unread.contains(commit).then(|| Gap::new(commit, Fault::Unreadable, message))
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
    let names = folders(hub, is_of_models, faults);
    names.into_iter().filter_map(|name| Repo::read(&hub.join(name))).collect()
}

/// Reads which branches and tags name which commits.
fn read_refs(folder: &Path, faults: &mut Vec<String>) -> BTreeMap<String, Vec<String>> {
    let mut refs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in list(folder, |_| true, faults) {
        match read_text(&file.path) {
            // Some tools end the line.
            Ok(commit) => refs.entry(commit.trim().to_owned()).or_default().push(file.name),
            // What is no text names no commit.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(error) => {
                faults.push(format!("`{}` cannot be read: {error}", file.path.display()));
            }
        }
    }
    refs
}

/// What a cache holds: its models, and by device and inode what takes room and what of it is used.
pub(super) fn scan(
    hub: &Path,
    headers: &mut Headers,
    space: &mut super::Room,
    faults: &mut Vec<String>,
) -> Vec<Entry> {
    let names = folders(hub, is_of_models, faults);
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
        let Some(mut repo) = Repo::read(folder) else { return };
        let (used, is_known) = (repo.used(), repo.is_seen_whole());
        for file in repo.stored() {
            let Some(stat) = file.stat() else { continue };
            // What was not seen may use any blob.
            let may_be_used = !is_known && !file.name.ends_with(PARTIAL);
            self.space.add(stat, may_be_used || used.contains(&stat.identity));
        }
        self.faults.append(&mut repo.faults);
        self.models.extend(repo.models(&mut self.headers));
    }
}

fn is_of_models(name: &str) -> bool {
    name.starts_with(START)
}

/// The names of the folders in a folder that are `wanted`, sorted; what a link leads to is one too.
pub(super) fn folders(
    folder: &Path,
    wanted: fn(&str) -> bool,
    faults: &mut Vec<String>,
) -> Vec<String> {
    let mut unlisted = |path: &Path, why: &dyn std::fmt::Display| {
        faults.push(format!("`{}` cannot be listed: {why}", path.display()));
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                unlisted(folder, &error);
            }
            return Vec::new();
        }
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                unlisted(folder, &error);
                continue;
            }
        };
        if !wanted(&entry.file_name().to_string_lossy()) {
            continue;
        }
        match (is_folder(&entry), entry.file_name().into_string()) {
            (Ok(false), _) => {}
            (Ok(true), Ok(name)) => names.push(name),
            (Ok(true), Err(_)) => unlisted(&entry.path(), &"its name is not UTF-8"),
            (Err(error), _) => unlisted(&entry.path(), &error),
        }
    }
    names.sort();
    names
}

fn is_folder(entry: &fs::DirEntry) -> io::Result<bool> {
    let kind = entry.file_type()?;
    Ok(kind.is_dir() || (kind.is_symlink() && fs::metadata(entry.path())?.is_dir()))
}
