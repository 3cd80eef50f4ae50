//! Memory of the machine.

use std::fs;

use sysinfo::System;

use crate::spec::Bytes;

/// Memory of the machine at one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HostMemory {
    /// What is built in; `None` if it is not known.
    pub total: Option<Bytes>,
    /// What can be had without swapping, caches included; `None` if it is not known.
    pub available: Option<Bytes>,
}

/// Reads the memory of the machine. Takes well below a millisecond.
pub fn host_memory() -> HostMemory {
    let Ok(mut system) = System::new() else {
        return HostMemory { total: None, available: None };
    };
    system.refresh_memory();
    let total = Some(system.total_memory()).filter(|bytes| *bytes > 0).map(Bytes);
    // Nothing available is a reading only where the total is one.
    let available = total.map(|_| Bytes(system.available_memory()));
    HostMemory { total, available }
}

/// Returns how many processes the kernel has killed for want of memory since it started, all
/// cgroups together; `None` where nobody counts.
/// Source: `proc_vmstat(5)`, since Linux 4.13.
pub fn machine_oom_kills() -> Option<u64> {
    let text = fs::read_to_string("/proc/vmstat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_machine_counts_its_oom_kills() {
        assert!(machine_oom_kills().is_some());
    }

    #[test]
    fn no_more_is_available_than_there_is() {
        let memory = host_memory();
        assert!(memory.total.is_some() && memory.available <= memory.total, "{memory:?}");
    }
}
