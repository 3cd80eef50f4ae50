//! Who a process is, so surely that it may be signalled by a daemon that did not start it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The variable in an engine's environment that holds its [`Identity::nonce`].
pub const NONCE_VARIABLE: &str = "SLOTD_ENGINE";

/// Everything that has to be equal before a process counts as the one that was started.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Identity {
    /// Tells one boot of the machine from another. Source: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The process id, which is its process group too.
    pub pid: u32,
    /// When it started, in clock ticks since boot. Source: `proc_pid_stat(5)`, field 22.
    pub start_time: u64,
    /// Device and inode of its program.
    pub executable: (u64, u64),
    /// A number that was drawn for this spawn and stands in its environment, 32 hexadecimal digits.
    pub nonce: String,
    /// Its cgroup directory in the unified hierarchy, where it has one.
    pub cgroup: Option<PathBuf>,
    /// Its cgroup directory in the memory hierarchy of version 1, where it has one.
    pub memory_cgroup: Option<PathBuf>,
}
