//! Memory of engines.

use std::fs;

use nix::unistd::{Pid, getpgid};
use sysinfo::{Process, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::spec::Bytes;

/// Which processes are of one engine.
#[derive(Clone, Debug)]
pub struct Members {
    /// Its process group.
    pub group: u32,
    /// The name of the cgroup directory that was made for it alone. Without one its cgroup is that of whoever
    /// started it, with strangers in it.
    pub cell: Option<String>,
}

impl Members {
    /// Tells whether a process is one of them now.
    pub fn have(&self, pid: u32) -> bool {
        let is_in_cell = |cell: &String| {
            let of_process = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            is_below(&of_process, cell)
        };
        Processes::is_in_group(pid, self.group) || self.cell.as_ref().is_some_and(is_in_cell)
    }
}

/// Reads memory of process groups. Keep one: it holds what is known of processes between two looks.
#[derive(Debug)]
pub struct Processes {
    /// None where the machine gives no figures.
    system: Option<System>,
}

impl Default for Processes {
    fn default() -> Self {
        Self::new()
    }
}

impl Processes {
    /// Knows of no process yet.
    pub fn new() -> Self {
        Self { system: System::new().ok() }
    }

    /// Looks at all processes of the machine, once for any number of questions. Takes milliseconds
    /// and blocks on the kernel.
    pub fn refresh(&mut self) {
        let memory = ProcessRefreshKind::nothing().with_memory().without_tasks();
        if let Some(system) = &mut self.system {
            system.refresh_processes_specifics(ProcessesToUpdate::All, true, memory);
        }
    }

    /// Looks at one process and returns its resident memory; `None` for one that is not there or has
    /// ended. Takes well below a millisecond.
    pub fn look_at(&mut self, pid: u32) -> Option<Bytes> {
        let memory = ProcessRefreshKind::nothing().with_memory().without_tasks();
        let pid = [sysinfo::Pid::from_u32(pid)];
        let system = self.system.as_mut()?;
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&pid), true, memory);
        let resident = pid.first().and_then(|pid| system.process(*pid))?.memory();
        Some(Bytes(resident)).filter(|bytes| bytes.0 > 0)
    }

    /// Returns the resident memory of process group `group` at the last [`Processes::refresh`],
    /// shared pages counted once for each process; `None` if no member was seen.
    pub fn resident(&self, group: u32) -> Option<Bytes> {
        let resident = self.members(group)?.map(|(_, process)| process.memory());
        resident.reduce(u64::saturating_add).map(Bytes)
    }

    /// Returns what of that the kernel cannot take back: without the pages of mapped files, which it
    /// counts as available. `None` if no member was seen.
    pub fn unreclaimable(&self, group: u32) -> Option<Bytes> {
        let own = self.members(group)?.map(|(pid, process)| {
            let status = fs::read_to_string(format!("/proc/{pid}/status"));
            status.ok().and_then(|text| own_pages(&text)).unwrap_or_else(|| process.memory())
        });
        own.reduce(u64::saturating_add).map(Bytes)
    }

    /// Tells whether a process is in process group `group` now.
    pub fn is_in_group(pid: u32, group: u32) -> bool {
        let number = |pid| i32::try_from(pid).map(Pid::from_raw);
        number(group)
            .is_ok_and(|group| number(pid).is_ok_and(|pid| getpgid(Some(pid)) == Ok(group)))
    }

    fn members(&self, group: u32) -> Option<impl Iterator<Item = (&sysinfo::Pid, &Process)>> {
        let group = Pid::from_raw(i32::try_from(group).ok()?);
        let of_group = move |(pid, _): &(&sysinfo::Pid, &Process)| {
            let pid = i32::try_from(pid.as_u32()).map(Pid::from_raw);
            pid.is_ok_and(|pid| getpgid(Some(pid)) == Ok(group))
        };
        Some(self.system.as_ref()?.processes().iter().filter(of_group))
    }
}

/// Returns the most that the members of process group `group` had resident, each at its own time, with
/// pages of mapped files; `None` if there is no such process. Takes about a millisecond, and blocks on
/// the kernel.
/// Source: `VmHWM` of `proc_pid_status(5)`.
pub fn peak_of_group(group: u32) -> Option<Bytes> {
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let members = pids.filter(|pid| Processes::is_in_group(*pid, group));
    let peaks = members.filter_map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        kibibytes(&status, "VmHWM:")?.checked_mul(1 << 10)
    });
    peaks.reduce(u64::saturating_add).map(Bytes)
}

/// Tells whether one of these cgroups is `cell`, or below it.
/// Source: `cgroups(7)`, "/proc/PID/cgroup".
fn is_below(cgroups: &str, cell: &str) -> bool {
    let mut paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.any(|path| path.split('/').any(|name| name == cell))
}

/// Sums up pages that no file stands behind.
/// Source: `proc_pid_status(5)`, since Linux 4.5.
fn own_pages(status: &str) -> Option<u64> {
    Some((kibibytes(status, "RssAnon:")? + kibibytes(status, "RssShmem:")?) << 10)
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::getpgrp;

    #[test]
    fn our_own_group_has_resident_memory() {
        let mut processes = Processes::new();
        let own = u32::try_from(getpgrp().as_raw()).unwrap();
        assert_eq!(processes.resident(own), None, "nothing was looked at yet");
        processes.refresh();
        assert!(processes.resident(own).is_some_and(|bytes| bytes.0 > 100 << 10));
        assert!(processes.unreclaimable(own).is_some_and(|bytes| bytes.0 > 10 << 10));
        assert!(processes.unreclaimable(own) <= processes.resident(own));
        assert_eq!(processes.resident(u32::MAX), None);
        assert!(peak_of_group(own).is_some_and(|bytes| bytes.0 > 100 << 10));
        assert_eq!(peak_of_group(u32::MAX), None);
        assert!(processes.look_at(std::process::id()).is_some_and(|bytes| bytes.0 > 100 << 10));
        assert_eq!(processes.look_at(u32::MAX >> 1), None);
    }

    #[test]
    fn a_cell_is_found_in_either_hierarchy_and_from_below() {
        let cell = "slotd-1.chat.g1@4-5-6";
        for own in [
            format!("0::/system.slice/{cell}\n"),
            format!("9:memory:/{cell}\n0::/session-3.scope\n"),
            format!("0::/{cell}/worker\n"),
        ] {
            assert!(is_below(&own, cell), "{own}");
        }
        for other in ["0::/session-3.scope\n", "0::/slotd-1.chat.g1@4-5-67\n", ""] {
            assert!(!is_below(other, cell), "{other}");
        }
    }
}
