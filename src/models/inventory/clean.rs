//! What may go from the stores: unfinished downloads, locks that nobody holds, blobs that nothing names,
//! and revisions that no branch names.
//!
//! Nothing goes that is younger than asked for, that a slot's profile names, that a process has open or
//! mapped, or whose lock somebody holds. Ollama's store is never touched, nor a cache's shared blobs.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use fs2::FileExt;
use serde::Serialize;

use super::{
    Source, Stores,
    busy::Busy,
    files::{Seen, Stat, list},
    folders::{is_partial, may_enter},
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
}

impl Rubbish {
    /// Returns the word for people and for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Partial => "partial",
            Self::Lock => "lock",
            Self::Blob => "blob",
            Self::Revision => "revision",
        }
    }
}

/// One thing that may go.
#[derive(Clone, Debug, Serialize)]
pub struct Removal {
    /// What it is.
    pub what: Rubbish,
    /// The file or folder.
    pub path: PathBuf,
    /// What it frees.
    pub bytes: Bytes,
    /// A lock that must be held while it goes.
    #[serde(skip)]
    lock: Option<PathBuf>,
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
    if let Some(lock) = &lock {
        FileExt::try_lock_exclusive(lock).map_err(|_| busy())?;
    }
    let done = if removal.path.is_dir() && !removal.path.is_symlink() {
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
            self.repo(&repo, &hub.join(".locks").join(name));
        }
        for folder in folders(&hub.join(".locks"), &mut faults) {
            for lock in list(&hub.join(".locks").join(folder), |_| true, &mut faults) {
                self.lock(&lock);
            }
        }
        self.plan.kept.extend(faults);
    }

    fn repo(&mut self, repo: &Repo, locks: &Path) {
        let gone = self.revisions(repo);
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
            } else if !used.contains(&stat.identity) {
                // With its revision goes what nothing else names, whatever its age.
                let is_freed = freed.contains(&stat.identity);
                if is_freed || self.is_old(stat) {
                    self.take_now(Rubbish::Blob, &blob.path, stat, lock);
                }
            }
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
        if Path::new(&lock.name).extension().is_none_or(|kind| kind != "lock") || stat.size > 0 {
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
