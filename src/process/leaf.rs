//! The daemon's own leaf below the cgroup that was delegated to it.
//!
//! A cgroup of version 2 that hands controllers down to those below it may hold no process itself.
//! The service manager makes the leaf where the unit says so (`DelegateSubgroup=`, systemd 254); an
//! older one, a scope or a container leaves that to us. Who knows of no leaf puts the next daemon into
//! the cgroup above, which is refused while that hands controllers down to engines that were kept: so
//! the last of this daemon takes them back. Their counters begin anew with the next one.

use std::{fs, io, path::Path, process};

use tracing::debug;

use super::cgroup::{MADE_LEAF, is_leaf, members, unified_own};

/// What `Hierarchies::detect` has handed down.
const TAKEN_BACK: &str = "-memory -pids";

/// Moves this process into a leaf of its own, unless it is in one, shares its cgroup with others, or may
/// not. Called before this process has children, which would stay behind.
pub(super) fn enter() {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Some(dir) = unified_own(&own, &mounts) else { return };
    if is_leaf(&dir) || !is_alone(&dir) {
        return;
    }
    let leaf = dir.join(MADE_LEAF);
    match join(&leaf) {
        Ok(()) => debug!(path = %leaf.display(), "leaf was entered"),
        // Without one there are no memory counters, and the rest works.
        Err(error) => debug!(path = %leaf.display(), %error, "leaf was not entered"),
    }
}

/// Makes room for the next daemon where `enter` made the leaf. Called by the last process of the
/// daemon that ends: the daemon itself, or the guard of one that was killed.
pub fn give_back_cgroup() {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Some(dir) = unified_own(&own, &mounts) else { return };
    if dir.file_name().is_some_and(|name| name == MADE_LEAF)
        && let Some(above) = dir.parent()
        && let Err(error) = fs::write(above.join("cgroup.subtree_control"), TAKEN_BACK)
    {
        debug!(path = %above.display(), %error, "controllers were not taken back");
    }
}

/// Tells whether nobody but this process is in `dir`: a cgroup with others in it, as a login's, is
/// theirs too.
fn is_alone(dir: &Path) -> bool {
    let own = i32::try_from(process::id()).ok();
    matches!(members(dir).as_slice(), [only] if Some(*only) == own)
}

fn join(leaf: &Path) -> io::Result<()> {
    match fs::create_dir(leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // `0` names the writer's process, with all its threads.
    fs::write(leaf.join("cgroup.procs"), "0").inspect_err(|_| {
        // Empty as it is, it may go as well as stay.
        drop(fs::remove_dir(leaf));
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_with_others_in_it_is_not_entered() {
        let dir = tempfile::tempdir().unwrap();
        let own = process::id();
        for (text, alone) in
            [(format!("{own}\n"), true), (format!("1\n{own}\n"), false), (String::new(), false)]
        {
            fs::write(dir.path().join("cgroup.procs"), text).unwrap();
            assert_eq!(is_alone(dir.path()), alone);
        }
    }

    #[test]
    fn a_leaf_that_is_there_already_is_entered_again() {
        let dir = tempfile::tempdir().unwrap();
        let leaf = dir.path().join(MADE_LEAF);
        for _ in 0..2 {
            join(&leaf).unwrap();
            assert_eq!(fs::read_to_string(leaf.join("cgroup.procs")).unwrap(), "0");
        }
    }
}
