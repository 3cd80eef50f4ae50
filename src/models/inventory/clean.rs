//! What may go from the stores: unfinished downloads, locks that nobody holds, blobs that nothing names,
//! revisions that no branch names, and repositories with nothing in them.
//!
//! Nothing goes that is younger than asked for, that a slot's profile names, that a process has open or
//! mapped, or whose lock somebody holds. A repository that was not seen whole keeps its blobs and revisions,
//! one behind a link keeps everything. Ollama's store is never touched, nor a cache's shared blobs.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use fs2::FileExt;
use serde::{Serialize, Serializer};

use super::{
    Source, Stores,
    busy::Busy,
    empty,
    files::{Seen, Stat, list},
    folders::{is_partial, may_enter},
    group::read_text,
    hub::{PARTIAL, Repo, folders, repos},
};
use crate::spec::Bytes;

/// What was changed within this time stays, where nothing else is asked for.
pub const USUAL_AGE: Duration = Duration::from_hours(24);

/// What is to be looked for.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// What was changed within this time stays.
    pub older_than: Duration,
    /// Whether revisions go that no branch or tag names.
    pub revisions: Revisions,
    /// The present moment, since 1970.
    pub now: Duration,
}

/// Whether revisions go that no branch or tag names: one that was fetched by its commit is such a one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Revisions {
    /// They stay.
    Stay,
    /// They go.
    Go,
}

/// What may go.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rubbish {
    /// A download that was not finished.
    Partial,
    /// A lock that nobody holds.
    Lock,
    /// A blob that no revision names.
    Blob,
    /// A revision that no branch or tag names.
    Revision,
    /// A repository without a branch, a revision or a blob.
    Repository,
}

impl Rubbish {
    /// Returns the word for people and for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Partial => "partial",
            Self::Lock => "lock",
            Self::Blob => "blob",
            Self::Revision => "revision",
            Self::Repository => "repository",
        }
    }
}

/// One thing that may go.
#[derive(Clone, Debug, Serialize)]
pub struct Removal {
    /// What it is.
    pub what: Rubbish,
    /// The file or folder.
    #[serde(serialize_with = "lossily")]
    pub path: PathBuf,
    /// What it frees.
    pub bytes: Bytes,
    /// A lock that must be held while it goes.
    #[serde(skip)]
    lock: Option<PathBuf>,
}

/// Writes a path as it is shown; JSON has no other names than UTF-8.
fn lossily<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// What may go, and what does not though it looks like it.
#[derive(Debug, Default, Serialize)]
pub struct Plan {
    /// In the order in which it goes.
    pub removals: Vec<Removal>,
    /// Each in one sentence.
    pub kept: Vec<String>,
}

impl Plan {
    /// Sums up what goes.
    pub fn frees(&self) -> Bytes {
        Bytes(self.removals.iter().fold(0, |sum, removal| sum.saturating_add(removal.bytes.0)))
    }
}

/// Looks for what may go; changes nothing. `served` are the models of slots.
pub fn plan(stores: &Stores, wish: &Wish, served: &[PathBuf]) -> Plan {
    let mut planning =
        Planning { wish, busy: Busy::look(), served: identities(served), plan: Plan::default() };
    for (source, path) in &stores.0 {
        match source {
            Source::Hub => planning.hub(path),
            Source::Folder | Source::LlamaCpp | Source::LmStudio => planning.folder(path),
            Source::Ollama | Source::Profile => {}
        }
    }
    planning.plan
}

/// Says what `slotd models clean` frees of one hub cache, called as it is at the moment `now` since 1970. Blocks on
/// the disk.
pub fn freeable(hub: &Path, now: Duration) -> Bytes {
    let wish = Wish { older_than: USUAL_AGE, revisions: Revisions::Stay, now };
    plan(&Stores(vec![(Source::Hub, hub.to_owned())]), &wish, &[]).frees()
}

/// Removes one thing. It is looked at again first: what somebody has begun to use since stays.
///
/// # Errors
/// When it is in use, or cannot be removed.
pub fn remove(removal: &Removal) -> io::Result<()> {
    let busy = || io::Error::new(io::ErrorKind::ResourceBusy, "somebody uses it");
    let lock = removal.lock.as_ref().map(File::open).transpose()?;
    if let (Some(lock), Some(path)) = (&lock, &removal.lock) {
        FileExt::try_lock_exclusive(lock).map_err(|_| busy())?;
        // Another has removed it since, and a third may hold a new one.
        if super::identity(path) != Some(super::identity_of(&lock.metadata()?)) {
            return Err(busy());
        }
    }
    let done = if removal.what == Rubbish::Repository {
        empty::remove(&removal.path)
    } else if removal.path.is_dir() && !removal.path.is_symlink() {
        fs::remove_dir_all(&removal.path)
    } else {
        fs::remove_file(&removal.path)
    };
    drop(lock);
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

struct Planning<'a> {
    wish: &'a Wish,
    busy: Busy,
    /// Devices and inodes of files that slots serve.
    served: BTreeSet<(u64, u64)>,
    plan: Plan,
}

impl Planning<'_> {
    fn hub(&mut self, hub: &Path) {
        let mut faults = Vec::new();
        for repo in repos(hub, &mut faults) {
            let name = repo.folder.file_name().map(PathBuf::from).unwrap_or_default();
            if repo.is_linked() {
                let path = repo.folder.display();
                self.plan.kept.push(format!("`{path}` is left alone: a link leads out of it"));
            } else {
                self.repo(&repo, &hub.join(".locks").join(name));
            }
            faults.extend(repo.faults);
        }
        let is_own = |folder: &String| !hub.join(".locks").join(folder).is_symlink();
        let locks = folders(&hub.join(".locks"), |_| true, &mut faults);
        for folder in locks.into_iter().filter(is_own) {
            for lock in list(&hub.join(".locks").join(folder), |_| true, &mut faults) {
                self.lock(&lock);
            }
        }
        self.plan.kept.extend(faults);
    }

    fn repo(&mut self, repo: &Repo, locks: &Path) {
        // What could not be looked at may use any blob.
        let is_known = repo.is_seen_whole();
        if !is_known {
            let path = repo.folder.display();
            self.plan.kept.push(format!(
                "`{path}` keeps its blobs and revisions: not all of it could be looked at"
            ));
        }
        let gone = if is_known { self.revisions(repo) } else { BTreeSet::new() };
        let staying = repo.snapshots.iter().filter(|(commit, _)| !gone.contains(*commit));
        let files = staying.flat_map(|(_, files)| files);
        let used: BTreeSet<_> = files.filter_map(|file| Some(file.stat()?.identity)).collect();
        let of_gone = repo.snapshots.iter().filter(|(commit, _)| gone.contains(*commit));
        let freed: BTreeSet<_> = of_gone
            .flat_map(|(_, files)| files)
            .filter_map(|file| Some(file.stat()?.identity))
            .collect();
        for blob in &repo.blobs {
            let Some(stat) = blob.stat() else { continue };
            let etag = blob.name.split('.').next().unwrap_or(&blob.name);
            let lock = Some(locks.join(format!("{etag}.lock"))).filter(|lock| lock.exists());
            if blob.name.ends_with(PARTIAL) {
                self.take(Rubbish::Partial, &blob.path, stat, lock);
            } else if is_known && !used.contains(&stat.identity) {
                // With its revision goes what nothing else names, whatever its age.
                let is_freed = freed.contains(&stat.identity);
                if is_freed || self.is_old(stat) {
                    self.take_now(Rubbish::Blob, &blob.path, stat, lock);
                }
            }
        }
        let is_empty = repo.refs.is_empty() && repo.snapshots.is_empty() && repo.blobs.is_empty();
        if is_known && is_empty {
            self.empty(&repo.folder, locks);
        }
    }

    fn empty(&mut self, repo: &Path, locks: &Path) {
        let Some(left) = empty::left_in(repo) else { return };
        let is_old =
            |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|found| self.is_old_file(&found));
        if left.paths.iter().all(is_old) {
            let lock = Some(locks.join("slotd.lock")).filter(|lock| lock.exists());
            let (what, bytes) = (Rubbish::Repository, Bytes(left.bytes));
            self.plan.removals.push(Removal { what, path: repo.to_owned(), bytes, lock });
        }
    }

    /// Plans the revisions that go, and returns their commits.
    fn revisions(&mut self, repo: &Repo) -> BTreeSet<String> {
        let mut gone = BTreeSet::new();
        if self.wish.revisions == Revisions::Stay {
            return gone;
        }
        for (commit, files) in &repo.snapshots {
            let path = repo.folder.join("snapshots").join(commit);
            let stats: Vec<&Stat> = files.iter().filter_map(Seen::stat).collect();
            // One that was never named: its age is that of its newest link.
            let is_old = fs::symlink_metadata(&path).is_ok_and(|found| self.is_old_file(&found))
                && files.iter().all(|file| {
                    fs::symlink_metadata(&file.path).is_ok_and(|it| self.is_old_file(&it))
                });
            if repo.refs.contains_key(commit) || !is_old {
                continue;
            }
            if stats.iter().any(|stat| self.served.contains(&stat.identity)) {
                let why = format!("`{}` stays: a slot serves it", path.display());
                self.plan.kept.push(why);
                continue;
            }
            if let Some(user) = stats.iter().find_map(|stat| self.busy.user(stat.identity)) {
                self.plan.kept.push(format!("`{}` stays: {user} has it open", path.display()));
                continue;
            }
            gone.insert(commit.clone());
            let tree = repo.folder.join("trees").join(format!("{commit}.json"));
            let beside = [tree, repo.folder.join(".no_exist").join(commit)];
            for path in [path].into_iter().chain(beside.into_iter().filter(|path| path.exists())) {
                let removal =
                    Removal { what: Rubbish::Revision, path, bytes: Bytes(0), lock: None };
                self.plan.removals.push(removal);
            }
        }
        gone
    }

    fn folder(&mut self, root: &Path) {
        let mut faults = Vec::new();
        for file in list(root, may_enter, &mut faults) {
            if let Some(stat) = file.stat().filter(|_| is_partial(&file)) {
                self.take(Rubbish::Partial, &file.path, stat, None);
            }
        }
        self.plan.kept.extend(faults);
    }

    fn lock(&mut self, lock: &Seen) {
        let Some(stat) = lock.stat() else { return };
        let is_held = || {
            let file = File::open(&lock.path);
            file.is_ok_and(|file| FileExt::try_lock_exclusive(&file).is_err())
        };
        if !is_lock(lock, stat) {
            return;
        }
        if is_held() {
            self.plan.kept.push(format!("`{}` stays: somebody holds it", lock.path.display()));
        } else {
            self.take(Rubbish::Lock, &lock.path, stat, Some(lock.path.clone()));
        }
    }

    fn take(&mut self, what: Rubbish, path: &Path, stat: &Stat, lock: Option<PathBuf>) {
        if self.is_old(stat) {
            self.take_now(what, path, stat, lock);
        }
    }

    fn take_now(&mut self, what: Rubbish, path: &Path, stat: &Stat, lock: Option<PathBuf>) {
        if self.served.contains(&stat.identity) {
            self.plan.kept.push(format!("`{}` stays: a slot serves it", path.display()));
        } else if let Some(user) = self.busy.user(stat.identity) {
            self.plan.kept.push(format!("`{}` stays: {user} has it open", path.display()));
        } else {
            // A link frees nothing but itself.
            let bytes = Bytes(if path.is_symlink() { 0 } else { stat.size });
            self.plan.removals.push(Removal { what, path: path.to_owned(), bytes, lock });
        }
    }

    fn is_old(&self, stat: &Stat) -> bool {
        let changed = u64::try_from(stat.mtime_ns).map(Duration::from_nanos).unwrap_or_default();
        self.wish.now.saturating_sub(changed) >= self.wish.older_than
    }

    fn is_old_file(&self, found: &fs::Metadata) -> bool {
        use std::os::unix::fs::MetadataExt;
        let changed = Duration::from_secs(u64::try_from(found.mtime()).unwrap_or_default());
        self.wish.now.saturating_sub(changed) >= self.wish.older_than
    }
}

/// Tells whether a file is a lock: an empty one, or with the name of a slotd that held it.
fn is_lock(file: &Seen, stat: &Stat) -> bool {
    let is_own = |text: String| {
        let pid = text.trim_end().strip_suffix(" slotd").map(str::parse::<u32>);
        matches!(pid, Some(Ok(_)))
    };
    Path::new(&file.name).extension().is_some_and(|kind| kind == "lock")
        && (stat.size == 0 || read_text(&file.path).is_ok_and(is_own))
}

/// Every file that slots serve; of a folder, all in it.
fn identities(served: &[PathBuf]) -> BTreeSet<(u64, u64)> {
    let files = served.iter().flat_map(|path| {
        let inside = if path.is_dir() { list(path, |_| true, &mut Vec::new()) } else { Vec::new() };
        let inside: Vec<_> =
            inside.into_iter().filter_map(|file| Some(file.stat()?.identity)).collect();
        inside.into_iter().chain(super::identity(path))
    });
    files.collect()
}
