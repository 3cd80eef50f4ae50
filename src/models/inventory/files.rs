//! Folders and the files in them, as the disk has them: links are looked through, loops are not followed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

/// Deeper than any store goes.
const DEPTH: u32 = 12;
/// More files than a store has; the rest is not looked at.
const MAX_FILES: usize = 500_000;

/// What the disk knows of a file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Stat {
    pub(super) size: u64,
    /// When it was changed, since 1970.
    pub(super) mtime_ns: i128,
    /// Device and inode: the same for every name of one file.
    pub(super) identity: (u64, u64),
    /// Where it is, if its path is a link.
    pub(super) target: Option<PathBuf>,
}

/// One file that was found.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Its path inside the folder, with `/`.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) presence: Presence,
}

/// Whether a file is there.
#[derive(Clone, Debug)]
pub(super) enum Presence {
    /// It is.
    There(Stat),
    /// Only a link to it is.
    Dangling,
    /// It may not be looked at.
    Unreadable(String),
    /// Only somebody else's word says that it should be; so many bytes of it have come.
    Awaited { have: Option<u64> },
}

impl Seen {
    /// Its name without folders.
    pub(super) fn file_name(&self) -> &str {
        self.name.rsplit_once('/').map_or(&self.name, |(_, name)| name)
    }

    /// The folder that it is in, empty for the outermost.
    pub(super) fn folder(&self) -> &str {
        self.name.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    pub(super) fn stat(&self) -> Option<&Stat> {
        match &self.presence {
            Presence::There(stat) => Some(stat),
            Presence::Dangling | Presence::Unreadable(_) | Presence::Awaited { .. } => None,
        }
    }
}

/// Looks at one file, through links.
pub(super) fn look(path: &Path) -> io::Result<Option<Stat>> {
    let link = fs::symlink_metadata(path)?;
    if !link.is_symlink() {
        return Ok(link.is_file().then(|| stat(&link, None)));
    }
    let target = fs::read_link(path)?;
    let found = fs::metadata(path)?;
    Ok(found.is_file().then(|| stat(&found, Some(beside(path, &target)))))
}

/// Where a link leads that says `target`.
fn beside(link: &Path, target: &Path) -> PathBuf {
    joined(link.parent().unwrap_or(Path::new("")), target)
}

/// Follows `..` by its letters alone: `a/../../blobs/x` and `b/../../blobs/x` are one name.
fn joined(folder: &Path, target: &Path) -> PathBuf {
    let mut path = folder.to_owned();
    for part in target.components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) | Component::Normal(_) => path.push(part),
        }
    }
    path
}

fn stat(found: &fs::Metadata, target: Option<PathBuf>) -> Stat {
    Stat {
        size: found.size(),
        mtime_ns: i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec()),
        identity: (found.dev(), found.ino()),
        target,
    }
}

/// Files of a folder that have been looked at, for links that lead there.
pub(super) struct Known<'a> {
    folder: &'a Path,
    stats: BTreeMap<&'a str, &'a Stat>,
}

impl<'a> Known<'a> {
    pub(super) fn of(folder: &'a Path, files: &'a [Seen]) -> Self {
        let stats = files.iter().filter_map(|file| Some((file.name.as_str(), file.stat()?)));
        Self { folder, stats: stats.collect() }
    }

    /// What is known of the file that a link leads to.
    fn find(&self, target: &Path) -> Option<Stat> {
        let is_inside = target.parent().is_some_and(|folder| folder == self.folder);
        let name = target.file_name().filter(|_| is_inside)?.to_str()?;
        let stat = Stat::clone(self.stats.get(name)?);
        Some(Stat { target: Some(target.to_owned()), ..stat })
    }
}

/// Lists the files below `root`. `may_enter` says which folders are gone into, by their names. What
/// cannot be listed is a fault, one sentence each.
pub(super) fn list(
    root: &Path,
    may_enter: fn(&str) -> bool,
    faults: &mut Vec<String>,
) -> Vec<Seen> {
    walk(root, None, may_enter, faults)
}

/// Lists the files below `root`, which are links to known files for the most part: those are not looked
/// at again.
pub(super) fn list_links(root: &Path, known: &Known<'_>, faults: &mut Vec<String>) -> Vec<Seen> {
    walk(root, Some(known), |_| true, faults)
}

fn walk(
    root: &Path,
    known: Option<&Known<'_>>,
    may_enter: fn(&str) -> bool,
    faults: &mut Vec<String>,
) -> Vec<Seen> {
    let entered = BTreeSet::new();
    let mut walk = Walk { files: Vec::new(), known, entered, may_enter, faults };
    walk.enter(root, "", DEPTH);
    let mut files = walk.files;
    files.sort_by(|one, other| one.name.cmp(&other.name));
    files
}

struct Walk<'a> {
    files: Vec<Seen>,
    /// Not used below a folder that is a link: there `..` leads elsewhere than its letters say.
    known: Option<&'a Known<'a>>,
    /// Devices and inodes of folders: a link into one of them is a loop, or a second way to the same.
    entered: BTreeSet<(u64, u64)>,
    may_enter: fn(&str) -> bool,
    faults: &'a mut Vec<String>,
}

/// What an entry of a folder is.
enum Found {
    Folder,
    /// A folder by way of a link.
    LinkedFolder,
    File(Presence),
    /// A socket or a device, which is no model, or gone since it was listed.
    Nothing,
}

impl Walk<'_> {
    fn enter(&mut self, folder: &Path, inside: &str, depth: u32) {
        let is_new = match fs::metadata(folder) {
            Ok(found) => self.entered.insert((found.dev(), found.ino())),
            Err(error) => return self.fault(folder, &error),
        };
        if !is_new {
            return;
        }
        if depth == 0 {
            return self.faults.push(format!("`{}` lies too deep", folder.display()));
        }
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.fault(folder, &error),
        };
        let mut found = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => found.push(entry),
                Err(error) => return self.fault(folder, &error),
            }
        }
        // A folder is itself before it is what a link beside it says.
        found.sort_by_cached_key(|entry| {
            (entry.file_type().is_ok_and(|kind| kind.is_symlink()), entry.file_name())
        });
        for entry in found {
            if self.files.len() >= MAX_FILES {
                let sentence = format!("`{}` has too many files", folder.display());
                return self.faults.push(sentence);
            }
            self.take(&entry, inside, depth);
        }
    }

    fn take(&mut self, entry: &fs::DirEntry, inside: &str, depth: u32) {
        let own = entry.file_name().to_string_lossy().into_owned();
        let name = if inside.is_empty() { own.clone() } else { format!("{inside}/{own}") };
        let path = entry.path();
        let may_enter = |walk: &Self| (walk.may_enter)(&own);
        match self.found(entry, &path) {
            Found::Folder if may_enter(self) => self.enter(&path, &name, depth - 1),
            Found::LinkedFolder if may_enter(self) => {
                let known = self.known.take();
                self.enter(&path, &name, depth - 1);
                self.known = known;
            }
            Found::File(presence) => self.files.push(Seen { name, path, presence }),
            Found::Folder | Found::LinkedFolder | Found::Nothing => {}
        }
    }

    fn found(&self, entry: &fs::DirEntry, path: &Path) -> Found {
        let looked = match entry.file_type() {
            Ok(kind) if kind.is_dir() => return Found::Folder,
            Ok(kind) if kind.is_symlink() => self.through(path),
            Ok(_) | Err(_) => fs::symlink_metadata(path).map(|found| {
                if found.is_file() { of_file(stat(&found, None)) } else { Found::Nothing }
            }),
        };
        looked.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                Found::File(Presence::Unreadable(error.to_string()))
            } else if fs::read_link(path).is_err() {
                // Gone since it was listed.
                Found::Nothing
            } else {
                Found::File(Presence::Dangling)
            }
        })
    }

    /// Looks through a link.
    fn through(&self, path: &Path) -> io::Result<Found> {
        let target = beside(path, &fs::read_link(path)?);
        if let Some(stat) = self.known.and_then(|known| known.find(&target)) {
            return Ok(of_file(stat));
        }
        let found = fs::metadata(path)?;
        Ok(if found.is_dir() {
            Found::LinkedFolder
        } else if found.is_file() {
            of_file(stat(&found, Some(target)))
        } else {
            Found::Nothing
        })
    }

    fn fault(&mut self, folder: &Path, error: &io::Error) {
        // What is not there has nothing to tell.
        if error.kind() != io::ErrorKind::NotFound {
            self.faults.push(format!("`{}` cannot be listed: {error}", folder.display()));
        }
    }
}

fn of_file(stat: Stat) -> Found {
    Found::File(Presence::There(stat))
}
