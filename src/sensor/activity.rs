//! What the processes of one engine do: CPU time, and whether they are stopped.

use std::time::Duration;

use nix::unistd::{Pid, getpgid};
use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

/// What a process group does at one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Activity {
    /// CPU time of its present members so far.
    pub cpu: Duration,
    /// Every member is stopped, by `SIGSTOP` or a debugger.
    pub is_stopped: bool,
}

/// Reads what process group `group` does; `None` if no member was seen. Looks at all processes of the
/// machine: takes milliseconds and blocks on the kernel.
pub fn activity(group: u32) -> Option<Activity> {
    let group = Pid::from_raw(i32::try_from(group).ok()?);
    let mut system = System::new().ok()?;
    let wanted = ProcessRefreshKind::nothing().with_cpu().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, wanted);
    let members = system.processes().iter().filter(|(pid, _)| {
        let pid = i32::try_from(pid.as_u32()).map(Pid::from_raw);
        pid.is_ok_and(|pid| getpgid(Some(pid)) == Ok(group))
    });
    let activities = members.map(|(_, process)| Activity {
        cpu: Duration::from_millis(process.accumulated_cpu_time()),
        is_stopped: matches!(process.status(), ProcessStatus::Stop | ProcessStatus::Tracing),
    });
    activities.reduce(|one, other| Activity {
        cpu: one.cpu.saturating_add(other.cpu),
        is_stopped: one.is_stopped && other.is_stopped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::getpgrp;

    #[test]
    fn our_own_group_works_and_is_not_stopped() {
        let own = u32::try_from(getpgrp().as_raw()).unwrap();
        let first = activity(own).unwrap();
        assert!(!first.is_stopped);
        // Work until the kernel's clock has ticked for it.
        while activity(own).unwrap().cpu <= first.cpu {}
        assert_eq!(activity(u32::MAX), None);
    }
}
