//! Figures of the machine and of engines. Unknown is a reading: nobody acts on a sensor that failed.
//!
//! Owns what the readings need between two looks. It decides nothing.

mod gpu;
mod host;
mod processes;
mod room;

pub use gpu::has_gpu;
pub use host::{HostMemory, host_memory};
pub use processes::Processes;
pub use room::free_memory;
