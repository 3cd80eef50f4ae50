//! Figures of the machine and of engines. Unknown is a reading: nobody acts on a sensor that failed.
//!
//! Owns what the readings need between two looks. It decides nothing.

mod activity;
mod cores;
mod gpu;
mod host;
mod processes;
mod room;

pub use activity::{Activity, activity};
pub use cores::usable_cores;
pub use gpu::has_gpu;
pub use host::{HostMemory, host_memory, machine_oom_kills};
pub use processes::Processes;
pub use room::{free_memory, host_room};
