//! Model files and engine programs on this machine: found, whole, usable together.
//!
//! Owns the checks before a spawn. It reads disks and runs `--version` and `--help` of engines, so
//! callers keep it off the threads that others wait for; it downloads nothing and writes nothing.

mod check;
mod choose;
mod encoder;
mod engines;
pub mod gguf;
mod hub;
pub mod inventory;
mod locate;
mod mend;
mod port;
pub mod pull;
pub mod safetensors;

pub use self::{
    check::{Checked, Checks, Places, Refused},
    engines::EngineBinary,
    hub::{hub_cache_dir, is_commit, usual_model},
    locate::{LocateFault, Located, locate, whereabouts},
    mend::name_commands,
    port::{Holder, holder},
};

/// A name out of a file as a message can bear it: on one line, and not long.
fn short(name: &str) -> String {
    const SHOWN: usize = 80;
    name.chars().take(SHOWN).flat_map(char::escape_debug).collect()
}
