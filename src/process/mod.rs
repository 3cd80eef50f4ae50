//! Engine processes: started, signalled, watched until nothing of them is left.
//!
//! Owns the thread that forks, each child with its process group and its cgroup directory, the
//! guard that ends children when the daemon was killed, and the engines' log files. It decides
//! nothing: when to start, to stop and to give up comes from the core.
//!
//! ```text
//! Spawner ──spawn──▶ Child ──wait──▶ (leader ended, still unreaped) ──reap──▶ group and cgroup empty
//!    │                 └── StopHandle: TERM+CONT, KILL
//!    └── add, remove ──▶ guard process: kills what is registered once the daemon's pipe closes
//! ```
//!
//! The leader stays a zombie from `wait` to `reap`: it pins the process group's number, so that a
//! signal to the group can never reach a stranger.

mod adopt;
mod cgroup;
mod child;
mod counters;
mod errand;
mod evidence;
mod fault;
mod files;
mod follow;
pub mod guard;
mod identity;
mod inherit;
mod kernel_log;
mod leaf;
mod log;
mod register;
mod spawn;
mod sys;
mod text;

pub use adopt::{Examined, Proven, examine, listens_on};
pub use child::{Child, KeepHandle, StopHandle};
pub use counters::{Counters, daemon_oom_kills};
pub use errand::{Errand, ErrandSpec};
pub use evidence::{TAIL_BYTES, tail};
pub use fault::{SpawnFault, StartFault};
pub use files::{raise_file_limit, restore_file_limit};
pub use follow::{LogFollower, LogLine, follow, read_tail};
pub use inherit::{Giver, Inherited, STALE_AFTER_HANDOVER, hand_over, images, inherited};
pub use kernel_log::{KernelTail, has_kernels_pids};
pub use leaf::give_back_cgroup;
pub use log::{
    KEEP_GENERATIONS, ROTATE_BYTES, drop_old_logs, log_path, prune, rotate_if_large, shorten,
};
pub use spawn::{Cgroups, Owner, SpawnSpec, Spawner, SpawnerOptions};
