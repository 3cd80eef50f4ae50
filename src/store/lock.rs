//! One daemon for each state directory.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use fs2::FileExt;

use super::{OpenFault, read_bounded};

const FILE: &str = "lock";

/// Takes the lock and writes `pid` into the file, so that a second daemon can name the first.
///
/// The file is never removed: a third daemon could lock a new one while the second holds the old.
pub(super) fn take(dir: &Path, pid: u32) -> Result<File, OpenFault> {
    let path = dir.join(FILE);
    let unusable = |source| OpenFault::Unusable { path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(unusable)?;
    match FileExt::try_lock_exclusive(&file) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(OpenFault::Held { path: dir.to_path_buf(), holder: holder(&path) });
        }
        Err(error) => return Err(unusable(error)),
    }
    // The lock is what counts: a full disk leaves the second daemon without a name for the first.
    drop(file.set_len(0).and_then(|()| file.write_all(format!("{pid}\n").as_bytes())));
    Ok(file)
}

fn holder(path: &Path) -> Option<u32> {
    let bytes = read_bounded(path, 64).ok()?;
    std::str::from_utf8(&bytes).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::StateDir;

    #[test]
    fn a_second_daemon_is_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path(), 4711).unwrap();
        let refused = StateDir::open(dir.path(), 4712).unwrap_err().to_string();
        let path = dir.path().display();
        let expected = format!("the state directory `{path}` is in use by the slotd with pid 4711");
        assert_eq!(refused, expected);
        drop(first);
        StateDir::open(dir.path(), 4712).unwrap();
    }

    #[test]
    fn the_directory_is_made_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let state = StateDir::open(&path, 1).unwrap();
        assert_eq!(state.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }
}
