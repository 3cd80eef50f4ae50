//! Repositories of the hub's cache that have folders and no model: what a refused pull has left.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::files::list;

/// What these folders hold was said by the hub, and is of no use without a model.
const SAID: [&str; 2] = ["trees", ".no_exist"];

/// What there is in an empty repository.
pub(super) struct Left {
    /// It, its folders, and the files in them.
    pub(super) paths: Vec<PathBuf>,
    pub(super) bytes: u64,
}

/// Looks at what is left in a repository; `None` where that is more than what the hub has said.
pub(super) fn left_in(repo: &Path) -> Option<Left> {
    let mut faults = Vec::new();
    let files = list(repo, |_| true, &mut faults);
    let is_said = |name: &str| name.split_once('/').is_some_and(|(top, _)| SAID.contains(&top));
    if !faults.is_empty() || !files.iter().all(|file| is_said(&file.name)) {
        return None;
    }
    let folder = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        entry.file_type().ok()?.is_dir().then(|| entry.path())
    };
    let mut paths = fs::read_dir(repo).ok()?.map(folder).collect::<Option<Vec<_>>>()?;
    paths.push(repo.to_owned());
    let bytes =
        files.iter().filter_map(|file| Some(file.stat()?.size)).fold(0, u64::saturating_add);
    paths.extend(files.into_iter().map(|file| file.path));
    Some(Left { paths, bytes })
}

/// Removes an empty repository. What somebody has put there since it was looked at stays.
pub(super) fn remove(repo: &Path) -> io::Result<()> {
    // The folders first: where there is a file, everything stays.
    for entry in fs::read_dir(repo)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        if !SAID.iter().any(|name| entry.file_name() == *name) {
            remove_folders(&entry.path())?;
        }
    }
    for name in SAID {
        match fs::remove_dir_all(repo.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    fs::remove_dir(repo)
}

/// Removes a folder and the folders in it; fails where there is anything else.
fn remove_folders(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_folders(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}
