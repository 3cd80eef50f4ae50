//! Memory of engines.

use nix::unistd::{Pid, getpgid};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

use crate::spec::Bytes;

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
        let group = Pid::from_raw(i32::try_from(group).ok()?);
        let members = self.system.as_ref()?.processes().iter().filter(|(pid, _)| {
            let pid = i32::try_from(pid.as_u32()).map(Pid::from_raw);
            pid.is_ok_and(|pid| getpgid(Some(pid)) == Ok(group))
        });
        let resident = members.map(|(_, process)| process.memory());
        resident.reduce(u64::saturating_add).map(Bytes)
    }
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
        assert_eq!(processes.resident(u32::MAX), None);
        assert!(processes.look_at(std::process::id()).is_some_and(|bytes| bytes.0 > 100 << 10));
        assert_eq!(processes.look_at(u32::MAX >> 1), None);
    }
}
