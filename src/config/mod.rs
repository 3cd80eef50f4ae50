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
pub mod daemon;
mod disk;
mod external;
mod fault;
mod file;
mod keep;
pub mod keys;
mod ladder;
mod load;
mod model;
mod names;
mod params;
mod profile;
mod replace;
mod requests;
mod residence;
pub mod rules;
mod scalars;
mod schema;
mod syntax;
mod walk;
pub mod watch;
mod words;

use std::path::PathBuf;

pub use fault::Fault;
pub use keep::{Keeper, merge};
pub use load::{Loaded, load, slots_on_disk, validate};
pub use model::{is_hub_name, is_hub_revision};
pub use profile::parse;
pub use replace::{replace_file, with_model};
pub use schema::schema;

/// What the meaning of a profile depends on besides its text and its place.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Where model files are looked up after the profile's own folder, best first.
    pub model_dirs: Vec<PathBuf>,
    /// The home directory that `~/` stands for.
    pub home: Option<PathBuf>,
    /// The file of rules; none without it.
    pub rules: Option<PathBuf>,
}

#[cfg(test)]
mod tests;
