//! Figures of the machine and of engines. Unknown is a reading: nobody acts on a sensor that failed.
//!
//! Owns what the readings need between two looks. It decides nothing.

mod activity;
mod cores;
mod figures;
mod gauge;
mod gpu;
mod gpus;
mod host;
mod memory;
mod processes;
mod room;
mod stall;
mod strain;

pub use activity::{Activity, activity};
pub use cores::usable_cores;
pub use figures::{disk_free, host_figures};
pub use gauge::{Gauge, Stand};
pub use gpu::has_gpu;
pub use gpus::{GpuOptions, GpuUse, Gpus, NVML_LIBRARY, VISIBLE};
pub use host::{HostMemory, host_memory, machine_oom_kills};
pub use memory::read_memory;
pub use processes::{Members, Processes, peak_of_group};
pub use room::{free_memory, host_room};
pub use stall::{Stalls, stalls};
pub use strain::{Figures, Gauges};
