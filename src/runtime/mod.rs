//! The shell: start-up and shutdown order, and the only code that owns tasks, clock and signals.
//!
//! Start: lock the state directory, bind the endpoint and the control socket, start the guard and
//! the spawner, read the profiles, run the driver, serve the endpoint, say that it listens. Shutdown runs the other way:
//! the core stops every slot while the endpoint answers those who wait, then the listeners end, then
//! the last state is written.

mod access;
mod adopt;
mod attend;
mod clock;
mod control;
mod daemon;
mod driver;
mod effects;
mod engine_task;
mod failure;
mod fall_through;
mod farewell;
mod gpus;
mod keep;
mod last_seconds;
mod listen;
mod looks;
mod memory;
mod model_disk;
mod models;
mod on_gpus;
mod outside;
mod pressure;
mod peaks;
mod profiles;
mod publish;
mod pulls;
mod readings;
mod remember;
mod rules;
mod service_manager;
mod signals;
mod sizing;
mod stand_ins;
mod start;
mod stderr;
mod storage;
mod survey;
mod thrift;
mod upgrade;
mod watch;
mod whole;

pub use clock::since_1970;
pub use listen::Addresses;
pub use start::{StartFault, run};
pub use stderr::{LogWriter, finish_log};
