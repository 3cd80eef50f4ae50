//! A box: processes that share one limit of memory and one core, by cgroups.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use tokio::process::Command;

const ROOT: &str = "/sys/fs/cgroup";

/// A limit of memory and a core. Its directories go with it.
pub(crate) struct Cell {
    memory: PathBuf,
    cpus: PathBuf,
    is_unified: bool,
}

/// What the processes of a box have of its memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// All, with pages of files that could be had back.
    pub(crate) all: u64,
    /// What could not be had back.
    pub(crate) own: u64,
    /// Processes that the kernel killed for want of memory.
    pub(crate) oom_kills: u64,
}

impl Cell {
    /// Needs root, and the controllers `memory` and `cpuset` of either version of cgroups.
    pub(crate) fn new(name: &str, bytes: u64, core: usize) -> Self {
        let name = format!("slotd-box-{name}-{}", std::process::id());
        let is_unified = Path::new(ROOT).join("cgroup.controllers").exists();
        let root = |controller: &str| {
            let root = Path::new(ROOT);
            if is_unified { root.join(&name) } else { root.join(controller).join(&name) }
        };
        let cell = Self { memory: root("memory"), cpus: root("cpuset"), is_unified };
        if is_unified {
            write(&Path::new(ROOT).join("cgroup.subtree_control"), "+memory +cpuset");
        }
        for dir in [&cell.memory, &cell.cpus] {
            fs::create_dir_all(dir).expect("cgroups can be made: root, memory and cpuset");
        }
        let limit = if is_unified { "memory.max" } else { "memory.limit_in_bytes" };
        write(&cell.memory.join(limit), &bytes.to_string());
        write(&cell.cpus.join("cpuset.mems"), "0");
        cell.on_core(core);
        cell
    }

    /// Moves all its processes to another core.
    pub(crate) fn on_core(&self, core: usize) {
        write(&self.cpus.join("cpuset.cpus"), &core.to_string());
    }

    /// A command that runs in the box.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("/bin/sh");
        let procs = |dir: &Path| dir.join("cgroup.procs").display().to_string();
        let line = "echo $$ > \"$0\" && echo $$ > \"$1\" && shift && exec \"$@\"";
        command.args(["-c", line, &procs(&self.memory), &procs(&self.cpus)]).arg(program);
        command
    }

    pub(crate) fn usage(&self) -> Usage {
        let (used, events) = if self.is_unified {
            ("memory.current", "memory.events")
        } else {
            ("memory.usage_in_bytes", "memory.oom_control")
        };
        let all = read(&self.memory.join(used)).trim().parse().unwrap();
        let stat = read(&self.memory.join("memory.stat"));
        let own = if self.is_unified {
            figure(&stat, "anon ") + figure(&stat, "shmem ") + figure(&stat, "kernel ")
        } else {
            // Of this version's figures only these are of the cgroups below too.
            figure(&stat, "total_rss ") + figure(&stat, "total_shmem ")
        };
        let oom_kills = figure(&read(&self.memory.join(events)), "oom_kill ");
        Usage { all, own, oom_kills }
    }
}

impl Drop for Cell {
    #[expect(clippy::disallowed_methods, reason = "cgroups tell nobody that they are empty")]
    fn drop(&mut self) {
        for _ in 0..50 {
            remove(&self.memory);
            remove(&self.cpus);
            if !self.memory.exists() && !self.cpus.exists() {
                return;
            }
            // Who was told to end is still on the way out.
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn figure(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.map_or(0, |value| value.trim().parse().unwrap())
}

/// Removes a cgroup and those below it, as far as they are empty.
fn remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    // A cgroup that is not empty stays.
    drop(fs::remove_dir(dir));
}
