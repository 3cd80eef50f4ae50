//! What was typed → what was meant, and every fault with its place.
//!
//! Owns the reading of profiles and of the daemon's own file. It prints nothing, reads no
//! environment of its own accord, and never stops at the first mistake.
//!
//! ```text
//! NAME.toml ──disk──▶ text ──walk──▶ ProfileFile (as typed) ──profile──▶ Profile (as meant)
//!                       └───────────────┴── Fault, Fault, … ──────────────────┘
//! directories ──load──▶ Loaded ──Keeper──▶ the profiles in force: a bad edit keeps the old one
//!      └──────watch──▶ "look again"
//! ```

mod arguments;
mod daemon;
mod directories;
mod disk;
mod fault;
mod file;
mod keep;
mod load;
mod model;
mod nearest;
mod profile;
mod schema;
mod settings;
mod walk;
pub mod watch;

use std::path::PathBuf;

pub use daemon::LogFormat;
pub use fault::Fault;
pub use keep::{Keeper, merge};
pub use load::{Loaded, load, validate};
pub use schema::schema;
pub use settings::{Flags, Settings};

/// What the meaning of a profile depends on besides its text and its place.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Where model files are looked up after the profile's own folder, best first.
    pub model_dirs: Vec<PathBuf>,
    /// The home directory that `~/` stands for.
    pub home: Option<PathBuf>,
}
