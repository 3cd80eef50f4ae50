//! Memory that engines could still be given.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::host_memory;
use crate::spec::{Bytes, memory::Room};

/// Where Linux says what our cgroups are, and where they are mounted.
const CGROUPS: &str = "/proc/self/cgroup";
const MOUNTS: &str = "/proc/self/mountinfo";

/// The files of one version of cgroups: the limit, the usage, and what of it can be had back: pages of
/// files, whether the kernel has seen them used once or again. A model that was loaded before is among the
/// latter, whoever has it mapped; [`super::Processes::unreclaimable`] leaves them out as well.
struct Files {
    limit: &'static str,
    usage: &'static str,
    reclaimable: [&'static str; 2],
}

/// Source: `cgroup-v2.rst` and `cgroup-v1/memory.rst` of Linux.
const UNIFIED: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: ["inactive_file", "active_file"],
};
const MEMORY: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file", "total_active_file"],
};

/// Returns how much host memory engines could still be given: what the machine has available, and no
/// more than the cgroups that hold this process and its children leave. `None` if it is not known.
/// Blocks on the kernel for less than a millisecond.
pub fn free_memory() -> Option<Bytes> {
    let available = host_memory().available?;
    let own = fs::read_to_string(CGROUPS).unwrap_or_default();
    let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
    let rooms = hierarchies(&own, &mounts).into_iter().filter_map(|(mount, leaf, files)| {
        // A limit anywhere on the way to the root counts.
        let up = leaf.ancestors().take_while(|path| path.starts_with(&mount));
        up.filter_map(|path| room_of(path, files)).min()
    });
    Some(rooms.fold(available, Bytes::min))
}

/// Returns the host's memory as engines can be given it: no more than the cgroups that hold this process
/// allow, and what of it is free. `None` if it is not known.
pub fn host_room() -> Option<Room> {
    let total = host_memory().total?;
    let free = free_memory()?;
    let own = fs::read_to_string(CGROUPS).unwrap_or_default();
    let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
    let limits = hierarchies(&own, &mounts).into_iter().filter_map(|(mount, leaf, files)| {
        let up = leaf.ancestors().take_while(|path| path.starts_with(&mount));
        up.filter_map(|path| number_in(&path.join(files.limit))).min()
    });
    Some(Room { total: limits.map(Bytes).fold(total, Bytes::min), free })
}

/// Finds the mount and our own directory in each hierarchy that limits memory.
fn hierarchies(own: &str, mounts: &str) -> Vec<(PathBuf, PathBuf, &'static Files)> {
    let of_line = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (kind, files) = match controllers {
            "" => ("cgroup2", &UNIFIED),
            "memory" => ("cgroup", &MEMORY),
            _ => return None,
        };
        let (root, mount) = mounted(mounts, kind, controllers)?;
        let inside = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
        let leaf = Path::new(mount).join(inside);
        Some((PathBuf::from(mount), leaf, files))
    };
    own.lines().filter_map(of_line).collect()
}

/// Source: `proc_pid_mountinfo(5)`: the fourth field is the mounted part, the fifth where it is; the
/// kind and its options follow a dash.
fn mounted<'a>(mounts: &'a str, kind: &str, controller: &str) -> Option<(&'a str, &'a str)> {
    mounts.lines().find_map(|line| {
        let (place, source) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, mount) = (place.next()?, place.next()?);
        let mut source = source.split(' ');
        let is_kind = source.next() == Some(kind);
        let options = source.nth(1).unwrap_or_default();
        let fits = controller.is_empty() || options.split(',').any(|one| one == controller);
        (is_kind && fits).then_some((root, mount))
    })
}

fn number_in(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn room_of(path: &Path, files: &Files) -> Option<Bytes> {
    let number = |name| number_in(&path.join(name));
    // `max` is no number, and no limit.
    let (limit, usage) = (number(files.limit)?, number(files.usage)?);
    let statistics = fs::read_to_string(path.join("memory.stat")).unwrap_or_default();
    let reclaimable = statistics.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        files.reclaimable.contains(&name).then(|| value.trim().parse::<u64>().ok())?
    });
    let used = usage.saturating_sub(reclaimable.sum());
    Some(Bytes(limit.saturating_sub(used)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_free_than_is_available() {
        let free = free_memory().expect("Linux and macOS say what is available");
        assert!(free.0 > 0 && host_memory().total.is_some_and(|total| free <= total), "{free}");
    }

    #[test]
    fn a_limit_leaves_what_is_not_used_and_the_cache_can_be_had_back() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name, text| fs::write(folder.path().join(name), text).unwrap();
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        assert_eq!(room_of(folder.path(), &UNIFIED), Some(Bytes(100)));
        write("memory.stat", "anon 500\ninactive_file 300\nactive_file 100\n");
        assert_eq!(room_of(folder.path(), &UNIFIED), Some(Bytes(500)));
        write("memory.current", "2000\n");
        assert_eq!(room_of(folder.path(), &UNIFIED), Some(Bytes(0)));
        write("memory.max", "max\n");
        assert_eq!(room_of(folder.path(), &UNIFIED), None);
    }

    /// Five models that were read twice filled a cgroup, and no slot could be loaded any more.
    #[test]
    fn files_that_were_read_again_take_nothing_from_engines() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name, text| fs::write(folder.path().join(name), text).unwrap();
        write("memory.limit_in_bytes", "1000\n");
        write("memory.usage_in_bytes", "1000\n");
        write(
            "memory.stat",
            "active_file 1\ntotal_rss 90\ntotal_active_file 600\ntotal_inactive_file 300\n",
        );
        assert_eq!(room_of(folder.path(), &MEMORY), Some(Bytes(900)));
    }

    #[test]
    fn both_versions_are_found_with_a_part_of_them_mounted() {
        let own = "4:memory:/box/a\n3:cpuset:/\n0::/box/b\n";
        let mounts = "30 1 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            31 1 0:27 /box /sys/fs/cgroup/memory rw shared:5 - cgroup cgroup rw,memory\n";
        let found: Vec<_> = hierarchies(own, mounts)
            .into_iter()
            .map(|(mount, leaf, _)| (mount.display().to_string(), leaf.display().to_string()))
            .collect();
        let pair = |mount: &str, leaf: &str| (mount.to_owned(), leaf.to_owned());
        assert_eq!(
            found,
            [
                pair("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/a"),
                pair("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/box/b")
            ]
        );
    }
}
