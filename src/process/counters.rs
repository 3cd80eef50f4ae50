//! OOM kills as the kernel counts them, for one spawn and for the daemon's own cgroup.

use super::cgroup::{Cell, own_cell};
use crate::spec::Bytes;

/// Reads the counters of one spawn; they are gone once its child is reaped.
#[derive(Clone, Debug)]
pub struct Counters {
    cell: Cell,
    /// The daemon's own cgroup, where children without one of theirs are.
    daemon: Cell,
}

impl Counters {
    pub(super) fn new(cell: Cell) -> Self {
        Self { cell, daemon: own_cell() }
    }

    /// Reads how many processes of the spawn were killed for want of memory; `None` where nobody
    /// counts.
    pub fn oom_kills(&self) -> Option<u64> {
        self.cell.oom_kills()
    }

    /// Reads the memory limit that holds for the spawn: the lowest of its cgroup's and those above.
    pub fn limit(&self) -> Option<Bytes> {
        self.cell.memory_limit().or_else(|| self.daemon.memory_limit()).map(Bytes)
    }

    /// Returns the name of the spawn's cgroup directory, which no other has.
    pub fn cgroup_name(&self) -> Option<&str> {
        self.cell.name()
    }
}

/// Reads how many processes of the daemon's own cgroup were killed for want of memory.
pub fn daemon_oom_kills() -> Option<u64> {
    own_cell().oom_kills()
}
