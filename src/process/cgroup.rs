//! One fresh cgroup directory for each spawn, where the machine lets us make one.
//!
//! A cgroup cannot be left: it holds grandchildren that made a session of their own, `cgroup.kill`
//! ends them all at once, and its counters tell an OOM kill from any other. A directory is never
//! used twice, because a cgroup that was killed once kills later members at birth, and so that its
//! counters start at zero. Nothing here is an error: a machine without cgroups has process groups.

use std::{
    fs::{self, OpenOptions},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tracing::{debug, warn};

use super::{
    identity::{Tag, is_gone},
    spawn::Owner,
};
use crate::spec::{Generation, SlotName};

/// Reports that the unified hierarchy refused a child.
pub(super) const NO_UNIFIED: u8 = b'2';
/// Reports that the version 1 memory hierarchy refused a child.
pub(super) const NO_MEMORY: u8 = b'1';

/// Source: `DelegateSubgroup=` of the systemd unit; the daemon's own leaf, beside which its
/// children's directories stand.
const OWN_LEAF: &str = "supervisor";
/// The same where the daemon has made it itself.
pub(super) const MADE_LEAF: &str = "supervisor-made";
const POLL_MIN: Duration = Duration::from_millis(5);
const POLL_MAX: Duration = Duration::from_millis(50);

/// The directories below which we may make our own.
#[derive(Clone, Debug)]
pub(super) struct Hierarchies {
    unified: Option<PathBuf>,
    memory: Option<PathBuf>,
    tag: Option<Tag>,
    owner: Option<Owner>,
}

/// The directories of one spawn. Empty where there are no cgroups.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Cell {
    /// In the unified hierarchy (version 2).
    pub(super) unified: Option<PathBuf>,
    /// In the memory hierarchy of version 1.
    pub(super) memory: Option<PathBuf>,
}

impl Hierarchies {
    /// Returns the hierarchies of a machine without cgroups.
    pub(super) fn none() -> Self {
        Self { unified: None, memory: None, tag: None, owner: None }
    }

    /// Finds the hierarchies in which this process may make directories, by making one.
    pub(super) fn detect(owner: Owner) -> Self {
        let Some(tag) = Tag::own() else { return Self::none() };
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let probe = format!("slotd-{owner}.probe@{}", tag.as_str());
        let usable = |base: Option<PathBuf>, file: &str| {
            base.filter(|base| match try_directory(&base.join(&probe), file) {
                Ok(()) => true,
                Err(error) => {
                    debug!(path = %base.display(), %error, "cgroup hierarchy was not usable");
                    false
                }
            })
        };
        let unified = usable(unified_base(&own, &mounts), "cgroup.kill");
        if let Some(base) = &unified {
            // Counters need the memory controller. Refused where the base has processes of its own.
            let done = fs::write(base.join("cgroup.subtree_control"), "+memory +pids");
            debug!(path = %base.display(), delegated = done.is_ok(), "cgroups were found");
        }
        let memory = usable(memory_base(&own, &mounts), "memory.oom_control");
        Self { unified, memory, tag: Some(tag), owner: Some(owner) }
    }

    /// Makes the directories of one spawn.
    pub(super) fn make(&self, slot: &SlotName, generation: Generation) -> Cell {
        let (Some(tag), Some(owner)) = (&self.tag, self.owner) else { return Cell::default() };
        let name = format!("slotd-{owner}.{slot}.g{generation}@{}", tag.as_str());
        let make = |base: &Option<PathBuf>| {
            let path = base.as_ref()?.join(&name);
            match fs::create_dir(&path) {
                Ok(()) => Some(path),
                Err(error) => {
                    warn!(%slot, %generation, path = %path.display(), %error, "cgroup was not made");
                    None
                }
            }
        };
        Cell { unified: make(&self.unified), memory: make(&self.memory) }
    }

    /// Stops using a hierarchy that refused a child.
    pub(super) fn give_up(&mut self, report: u8) {
        match report {
            NO_UNIFIED => self.unified = None,
            NO_MEMORY => self.memory = None,
            _ => return,
        }
        warn!(hierarchy = %char::from(report), "cgroup refused a child and is left alone");
    }

    /// Ends and removes what daemons of the same owner that no longer live have left, except
    /// `adopted`. Blocks up to `limit`.
    pub(super) fn clean_stale(&self, adopted: &[PathBuf], limit: Duration) {
        let Some(owner) = self.owner else { return };
        let stale = |base: &Option<PathBuf>| {
            let entries = base.as_ref().and_then(|base| fs::read_dir(base).ok());
            entries.into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path())
        };
        let stale = |base| {
            stale(base)
                .filter(|path| is_stale(path, owner) && !adopted.contains(path))
                .collect::<Vec<_>>()
        };
        let unified =
            stale(&self.unified).into_iter().map(|path| Cell { unified: Some(path), memory: None });
        let memory =
            stale(&self.memory).into_iter().map(|path| Cell { unified: None, memory: Some(path) });
        let cells: Vec<Cell> = unified.chain(memory).collect();
        if !cells.is_empty() {
            let left = end_all(cells, limit);
            warn!(left = left.len(), "cgroups of an earlier daemon were removed");
        }
    }
}

impl Cell {
    /// Opens the files that a child writes itself into, each with the byte that reports a refusal.
    pub(super) fn joins(&self) -> Vec<(OwnedFd, u8)> {
        let open = |dir: &Option<PathBuf>, report| {
            let path = dir.as_ref()?.join("cgroup.procs");
            let file = OpenOptions::new().write(true).open(path).ok()?;
            Some((OwnedFd::from(file), report))
        };
        let both = [open(&self.unified, NO_UNIFIED), open(&self.memory, NO_MEMORY)];
        both.into_iter().flatten().collect()
    }

    /// Removes the directory in the hierarchy that refused the child: its silence would read as
    /// "no OOM kill".
    pub(super) fn give_up(&mut self, report: u8) {
        let refused = match report {
            NO_UNIFIED => self.unified.take(),
            NO_MEMORY => self.memory.take(),
            _ => None,
        };
        if let Some(path) = refused {
            remove_tree(&path);
        }
    }

    /// Kills every member.
    pub(super) fn kill(&self) {
        if let Some(unified) = &self.unified {
            // Gone already is as good as killed.
            drop(fs::write(unified.join("cgroup.kill"), "1"));
        } else if let Some(memory) = &self.memory {
            for pid in members(memory) {
                // Read a moment ago from a directory that holds our own children alone.
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
    }

    /// Tells whether no member is left; `None` where nobody counts them.
    pub(super) fn is_empty(&self) -> Option<bool> {
        if let Some(unified) = &self.unified {
            let events = fs::read_to_string(unified.join("cgroup.events"));
            Some(events.map_or(true, |events| counter(&events, "populated") != Some(1)))
        } else {
            self.memory.as_ref().map(|memory| members(memory).is_empty())
        }
    }

    /// Kills until no member is left. Returns at once where there is no cgroup.
    pub(super) async fn kill_until_empty(&self) {
        let mut pause = POLL_MIN;
        self.kill();
        while self.is_empty() == Some(false) {
            match &self.unified {
                // The pause is a backstop: each change of `cgroup.events` wakes us.
                Some(unified) => changed(unified, Duration::from_secs(1)).await,
                None => tokio::time::sleep(pause).await,
            }
            pause = POLL_MAX.min(pause.saturating_mul(2));
            self.kill();
        }
    }

    /// Returns how many members the kernel killed for want of memory; `None` where nobody counts.
    pub(super) fn oom_kills(&self) -> Option<u64> {
        let read = |dir: &Option<PathBuf>, file| {
            let text = fs::read_to_string(dir.as_ref()?.join(file)).ok()?;
            counter(&text, "oom_kill")
        };
        // `memory.events` counts for directories below as well; both start at zero with the spawn.
        read(&self.unified, "memory.events").or_else(|| read(&self.memory, "memory.oom_control"))
    }

    /// Returns the lowest memory limit from here upwards; `None` without one.
    pub(super) fn memory_limit(&self) -> Option<u64> {
        // Without a limit version 1 gives the largest number of whole pages.
        let unlimited = 1 << 62;
        let of_memory = self.memory.as_ref().and_then(|dir| {
            let text = fs::read_to_string(dir.join("memory.stat")).ok()?;
            counter(&text, "hierarchical_memory_limit")
        });
        let above = self.unified.iter().flat_map(|dir| dir.ancestors());
        let of_unified = above
            .filter_map(|dir| fs::read_to_string(dir.join("memory.max")).ok()?.trim().parse().ok());
        of_unified.chain(of_memory).filter(|limit| *limit < unlimited).min()
    }

    /// Returns the name of the directories.
    pub(super) fn name(&self) -> Option<&str> {
        self.unified.as_ref().or(self.memory.as_ref())?.file_name()?.to_str()
    }

    /// Removes the directories; they must be empty.
    pub(super) fn remove(&self) {
        for path in [&self.unified, &self.memory].into_iter().flatten() {
            remove_tree(path);
        }
    }
}

/// Kills the members of all cells, waits until they are empty and removes them. Blocks up to
/// `limit`; returns the cells that were not empty by then.
pub(super) fn end_all(mut cells: Vec<Cell>, limit: Duration) -> Vec<Cell> {
    let mut waited = Duration::ZERO;
    loop {
        cells.retain(|cell| {
            cell.kill();
            let is_empty = cell.is_empty() != Some(false);
            if is_empty {
                cell.remove();
            }
            !is_empty
        });
        if cells.is_empty() || waited >= limit {
            return cells;
        }
        pause(POLL_MIN);
        waited = waited.saturating_add(POLL_MIN);
    }
}

/// Blocks the calling thread; for the spawner's thread and the guard, which have nothing else to do.
pub(super) fn pause(time: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "several directories have no one event to wait for"
    )]
    std::thread::sleep(time);
}

/// Waits until `cgroup.events` changes, or until `limit` has passed.
#[cfg(target_os = "linux")]
async fn changed(dir: &Path, limit: Duration) {
    use super::sys;
    use tokio::io::Interest;
    let wait = async {
        let mut file = fs::File::open(dir.join("cgroup.events"))?;
        // The kernel wakes for changes after the last read of this very file.
        let events = io::read_to_string(&mut file)?;
        if counter(&events, "populated") == Some(1) {
            let file = sys::watch(OwnedFd::from(file), Interest::PRIORITY)?;
            file.ready(Interest::PRIORITY).await?.clear_ready();
        }
        io::Result::Ok(())
    };
    match tokio::time::timeout(limit, wait).await {
        Ok(Ok(())) | Err(_) => {}
        // The directory is gone, or cannot be watched: look again soon.
        Ok(Err(_)) => tokio::time::sleep(POLL_MIN).await,
    }
}

#[cfg(not(target_os = "linux"))]
async fn changed(_: &Path, _: Duration) {
    tokio::time::sleep(POLL_MAX).await;
}

/// Returns the daemon's own directories, for their counters.
pub(super) fn own_cell() -> Cell {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    Cell { unified: unified_own(&own, &mounts), memory: memory_base(&own, &mounts) }
}

fn try_directory(path: &Path, must_have: &str) -> io::Result<()> {
    fs::create_dir(path)?;
    let tried = fs::metadata(path.join(must_have))
        .and_then(|_| OpenOptions::new().write(true).open(path.join("cgroup.procs")));
    fs::remove_dir(path)?;
    tried.map(drop)
}

fn is_stale(path: &Path, owner: Owner) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let tag = name.strip_prefix(&format!("slotd-{owner}.")).and_then(|rest| rest.rsplit_once('@'));
    tag.is_some_and(|(_, tag)| is_gone(tag))
}

/// Removes a directory and those that its members made below it.
fn remove_tree(path: &Path) {
    let below = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path());
    }
    if let Err(error) = fs::remove_dir(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        debug!(path = %path.display(), %error, "cgroup was not removed");
    }
}

pub(super) fn members(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Finds `key N` in a flat keyed file.
fn counter(text: &str, key: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value)
}

/// Returns where children's directories go in the unified hierarchy: below our own cgroup, or
/// beside it where the service manager put us into a leaf of what it delegated.
fn unified_base(own: &str, mounts: &str) -> Option<PathBuf> {
    let dir = unified_own(own, mounts)?;
    if is_leaf(&dir) { dir.parent().map(Path::to_path_buf) } else { Some(dir) }
}

/// Tells whether a directory is the daemon's own leaf, whoever has made it.
pub(super) fn is_leaf(dir: &Path) -> bool {
    dir.file_name().is_some_and(|name| name == OWN_LEAF || name == MADE_LEAF)
}

pub(super) fn unified_own(own: &str, mounts: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounted(mounts, path, |kind, _| kind == "cgroup2")
}

/// Returns where children's directories go in the memory hierarchy of version 1: below our own.
fn memory_base(own: &str, mounts: &str) -> Option<PathBuf> {
    let has_memory = |list: &str| list.split(',').any(|name| name == "memory");
    let path = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        has_memory(controllers).then_some(path)
    })?;
    mounted(mounts, path, |kind, options| kind == "cgroup" && has_memory(options))
}

/// Finds the directory of cgroup `path` through the first fitting mount.
/// Source: `proc_pid_mountinfo(5)`: fields 4 and 5 are the mount's root and its place; after a `-`
/// come the kind, the source and the options.
fn mounted(mounts: &str, path: &str, fits: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (place, file_system) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        let mut file_system = file_system.split(' ');
        let (kind, options) = (file_system.next()?, file_system.nth(1)?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        fits(kind, options).then(|| Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::process::ExitStatusExt, process::Command};

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_layout_has_both_hierarchies() {
        let own = "4:memory:/box/1\n0::/\n";
        assert_eq!(unified_base(own, HYBRID), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(memory_base(own, HYBRID), Some("/sys/fs/cgroup/memory/box/1".into()));
    }

    #[test]
    fn children_stand_beside_the_daemons_own_leaf() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = "0::/system.slice/slotd.service/supervisor\n";
        let base = Some(PathBuf::from("/sys/fs/cgroup/system.slice/slotd.service"));
        assert_eq!(unified_base(own, mounts), base);
        assert_eq!(unified_base(&own.replace(OWN_LEAF, MADE_LEAF), mounts), base);
        assert_eq!(memory_base(own, mounts), None);
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_is_taken_off_the_path() {
        let mounts = "30 23 0:26 /docker/7 /sys/fs/cgroup rw shared:9 - cgroup2 cgroup rw\n";
        let found = unified_base("0::/docker/7/app\n", mounts);
        assert_eq!(found, Some("/sys/fs/cgroup/app".into()));
        assert_eq!(unified_base("0::/elsewhere\n", mounts), None);
    }

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(counter(text, "oom_kill"), Some(3));
        assert_eq!(counter("oom_group_kill 1\n", "oom_kill"), None);
    }

    /// Starts a process inside `cell`, ends the cell, and tells whether all of it is gone.
    fn ends(cell: &Cell) -> bool {
        let mut member = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        for dir in [&cell.unified, &cell.memory].into_iter().flatten() {
            fs::write(dir.join("cgroup.procs"), member.id().to_string()).unwrap();
        }
        let is_empty_before = cell.is_empty();
        let left = end_all(vec![cell.clone()], Duration::from_secs(20));
        // Unless the cell ended it.
        drop(member.kill());
        let signal = member.wait().unwrap().signal();
        is_empty_before == Some(false)
            && left.is_empty()
            && signal == Some(9)
            && ![&cell.unified, &cell.memory].into_iter().flatten().any(|dir| dir.exists())
    }

    #[test]
    fn a_cell_ends_its_members_in_either_hierarchy() {
        let found = Hierarchies::detect(Owner::of(Path::new("/")));
        let slot: SlotName = "unit".parse().unwrap();
        let unified = Hierarchies { memory: None, ..found.clone() };
        let memory = Hierarchies { unified: None, ..found };
        for (hierarchies, generation) in [(unified, 1), (memory, 2)] {
            let cell = hierarchies.make(&slot, Generation(generation));
            // A machine without this hierarchy makes none.
            if cell != Cell::default() {
                assert!(ends(&cell), "{cell:?}");
            }
        }
    }

    #[test]
    fn only_directories_with_our_mark_and_a_dead_owner_are_stale() {
        let (ours, other) = (Owner::of(Path::new("/a")), Owner::of(Path::new("/b")));
        let stale = |name: &str| is_stale(&Path::new("/sys/fs/cgroup").join(name), ours);
        assert!(!stale("user.slice"));
        assert!(!stale("slotd-chat.g1@1-2-3"));
        let Some(tag) = Hierarchies::detect(ours).tag else { return };
        assert!(!stale(&format!("slotd-{ours}.chat.g1@{}", tag.as_str())), "of this very process");
        // The same process number, of another process.
        let dead = format!("{}1", tag.as_str());
        assert!(stale(&format!("slotd-{ours}.chat.g1@{dead}")));
        assert!(!stale(&format!("slotd-{other}.chat.g1@{dead}")), "another daemon's kept engine");
    }
}
