//! One daemon for each state directory.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    thread,
    time::Duration,
};

use fs2::FileExt;
use nix::{errno::Errno, sys::signal::kill, unistd::Pid};

use super::{OpenFault, read_bounded};

const FILE: &str = "lock";
/// A daemon that was killed while it started an engine holds its lock on through the child, until
/// that has become the engine or has ended too. It is waited for this often, this far apart.
const DEAD_HOLDER_TRIES: u32 = 100;
const DEAD_HOLDER_PAUSE: Duration = Duration::from_millis(20);

/// Takes the lock and writes `pid` into the file, so that a second daemon can name the first.
///
/// The file is never removed: a third daemon could lock a new one while the second holds the old.
pub(super) fn take(dir: &Path, pid: u32) -> Result<File, OpenFault> {
    let path = dir.join(FILE);
    let unusable = |source| OpenFault::Unusable { path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(unusable)?;
    let mut tries = DEAD_HOLDER_TRIES;
    while let Err(error) = FileExt::try_lock_exclusive(&file) {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(unusable(error));
        }
        let holder = holder(&path);
        tries -= 1;
        if tries == 0 || !holder.is_some_and(|holder| holder == pid || is_dead(holder)) {
            return Err(OpenFault::Held { path: dir.to_path_buf(), holder });
        }
        pause();
    }
    // The lock is what counts: a full disk leaves the second daemon without a name for the first.
    drop(file.set_len(0).and_then(|()| file.write_all(format!("{pid}\n").as_bytes())));
    Ok(file)
}

fn is_dead(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH))
}

#[expect(clippy::disallowed_methods, reason = "nothing else runs before the lock is held")]
fn pause() {
    thread::sleep(DEAD_HOLDER_PAUSE);
}

fn holder(path: &Path) -> Option<u32> {
    let bytes = read_bounded(path, 64).ok()?;
    std::str::from_utf8(&bytes).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::StateDir;

    #[test]
    fn a_second_daemon_is_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        // A process that lives: this one.
        let own = std::process::id();
        let first = StateDir::open(dir.path(), own).unwrap();
        let refused = StateDir::open(dir.path(), 4712).unwrap_err().to_string();
        let path = dir.path().display();
        let expected =
            format!("the state directory `{path}` is in use by the slotd with pid {own}");
        assert_eq!(refused, expected);
        drop(first);
        StateDir::open(dir.path(), 4712).unwrap();
    }

    #[test]
    fn a_lock_that_outlives_its_daemon_for_a_moment_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut dead = std::process::Command::new("/bin/true").spawn().unwrap();
        dead.wait().unwrap();
        let first = StateDir::open(dir.path(), dead.id()).unwrap();
        let (began, begins) = mpsc::channel();
        let path = dir.path().to_path_buf();
        let second = std::thread::spawn(move || {
            began.send(()).unwrap();
            StateDir::open(&path, 4712).map(drop)
        });
        begins.recv().unwrap();
        drop(first);
        second.join().unwrap().unwrap();
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
