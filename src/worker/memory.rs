//! How much memory is left: for the machine, for the control group, for the process.
//!
//! Asked before the model is loaded, because a host allocation that fails later ends the process
//! with a signal and without a word.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::resource::{Resource, getrlimit};

use crate::spec::Bytes;

/// The smallest of the limits that are known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Room {
    pub(super) left: Bytes,
    /// What sets the limit, for a sentence.
    pub(super) set_by: &'static str,
}

/// Gives the memory that can still be taken, `None` where nothing says so.
pub(super) fn room() -> Option<Room> {
    let found = [
        machine(Path::new("/proc/meminfo")),
        control_group(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup")),
        address_space(Path::new("/proc/self/statm")),
    ];
    found.into_iter().flatten().min_by_key(|room| room.left)
}

fn machine(meminfo: &Path) -> Option<Room> {
    let text = fs::read_to_string(meminfo).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Room { left: Bytes(kibibytes.saturating_mul(1024)), set_by: "the machine" })
}

/// Source: `cgroups(7)`; version 2 is the line with hierarchy 0, version 1 the one that names
/// `memory`.
fn control_group(own: &Path, root: &Path) -> Option<Room> {
    let text = fs::read_to_string(own).ok()?;
    let left = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        match controllers {
            "" => unified(root, path),
            named if named.split(',').any(|name| name == "memory") => {
                legacy(&root.join("memory"), path)
            }
            _ => None,
        }
    });
    left.min().map(|left| Room { left: Bytes(left), set_by: "the control group" })
}

fn unified(root: &Path, path: &str) -> Option<u64> {
    lowest(root, path, |group| left_of(group, "memory.max", "memory.current", "inactive_file "))
}

fn legacy(root: &Path, path: &str) -> Option<u64> {
    lowest(root, path, |group| {
        left_of(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
    })
}

/// A limit of any ancestor counts. In a container the path may lie outside the mounted tree, and
/// the root of that tree is then the group itself.
fn lowest(root: &Path, path: &str, left: impl Fn(&Path) -> Option<u64>) -> Option<u64> {
    let group: PathBuf = root.join(path);
    group.ancestors().take_while(|group| group.starts_with(root)).filter_map(left).min()
}

fn left_of(group: &Path, limit: &str, usage: &str, cache: &str) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(group.join(name)).ok()?.trim().parse().ok()
    };
    let limit = number(limit)?;
    let usage = number(usage)?;
    // Cached file pages count as usage but are given back under pressure.
    let cached = fs::read_to_string(group.join("memory.stat")).ok().and_then(|stat| {
        stat.lines().find_map(|line| line.strip_prefix(cache))?.trim().parse::<u64>().ok()
    });
    Some(limit.saturating_sub(usage.saturating_sub(cached.unwrap_or(0))))
}

fn address_space(statm: &Path) -> Option<Room> {
    let (limit, _) = getrlimit(Resource::RLIMIT_AS).ok()?;
    let pages: u64 = fs::read_to_string(statm).ok()?.split(' ').next()?.parse().ok()?;
    let used = pages.saturating_mul(4096);
    (limit < u64::MAX).then(|| Room {
        left: Bytes(limit.saturating_sub(used)),
        set_by: "the address space limit",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_nearest_limit_of_all_ancestors_counts() {
        let tree = tempfile::tempdir().unwrap();
        let own = tree.path().join("own");
        put(&own, "0::/a/b\n");
        let root = tree.path().join("fs");
        put(&root.join("a/b/memory.max"), "max\n");
        put(&root.join("a/b/memory.current"), "10\n");
        put(&root.join("a/memory.max"), "1000\n");
        put(&root.join("a/memory.current"), "600\n");
        put(&root.join("a/memory.stat"), "anon 1\ninactive_file 100\n");
        assert_eq!(control_group(&own, &root).map(|room| room.left), Some(Bytes(500)));
    }

    #[test]
    fn a_version_one_limit_is_found_at_the_mounted_root() {
        let tree = tempfile::tempdir().unwrap();
        let own = tree.path().join("own");
        put(&own, "4:cpu,memory:/docker/0123\n0::/\n");
        let root = tree.path().join("fs");
        put(&root.join("memory/memory.limit_in_bytes"), "4096\n");
        put(&root.join("memory/memory.usage_in_bytes"), "96\n");
        assert_eq!(control_group(&own, &root).map(|room| room.left), Some(Bytes(4000)));
    }

    #[test]
    fn what_nobody_tells_is_no_limit() {
        assert_eq!(machine(Path::new("/nonexistent")), None);
        assert_eq!(control_group(Path::new("/nonexistent"), Path::new("/")), None);
    }
}
