//! What a slot's stay in memory is worth: what it needs, who it gives way to, and when it comes back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Bytes,
    memory::{Basis, GpuNeed, Need},
};

/// The priority of slots that say none.
pub const PRIORITY: u32 = 50;

/// What a profile says of its slot's stay in memory.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Residence {
    /// What its engine takes of the host's memory, where a person knows better.
    pub memory: Option<Bytes>,
    /// What its engine takes of the memory of GPUs, where a person knows better.
    pub gpu_memory: Option<Bytes>,
    /// Never unloaded for another slot.
    pub pinned: bool,
    /// Unloaded when memory runs out, and never for another slot.
    pub pressure_evict_only: bool,
    /// Those with less give way first, and load last: 0..=100, [`PRIORITY`] without it.
    pub priority: Option<u32>,
    /// How long it stays once it is ready, whoever waits; the daemon's own without it.
    pub min_residency: Option<Duration>,
    /// What it does where it does not fit beside those that are there.
    pub when_full: WhenFull,
    /// When it comes back after it has given way; as the profile's `autostart` says without it.
    pub restore: Option<Restore>,
}

/// What a person has ordered of a slot's stay, over what its profile says. Kept over restarts.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Orders {
    /// Pinned, or not, whatever the profile says.
    pub pinned: Option<bool>,
    /// Its priority.
    pub priority: Option<u32>,
}

/// One such order.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum StayOrder {
    /// It is never unloaded for others, nor for want of memory.
    Pin,
    /// It may be.
    Unpin,
    /// Its priority; what its profile says without one.
    Priority(Option<u32>),
    /// It goes down one rung of its ladder.
    Offload,
}

/// What a slot does where it does not fit.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// It takes the place of others.
    #[default]
    Swap,
    /// Its requests are turned away.
    Refuse,
}

/// When a slot comes back that has given way to another.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restore {
    /// Once the other one is idle, in its place if need be.
    WhenIdle,
    /// Once there is room.
    WhenRoom,
    /// With the next request.
    Never,
}

impl WhenFull {
    /// Returns the word that profiles use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Swap => "swap",
            Self::Refuse => "refuse",
        }
    }
}

impl Restore {
    /// Returns the word that profiles use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WhenIdle => "when-idle",
            Self::WhenRoom => "when-room",
            Self::Never => "never",
        }
    }
}

impl Residence {
    /// Returns its priority.
    pub fn priority(&self) -> u32 {
        self.priority.unwrap_or(PRIORITY)
    }

    /// Returns the need that a person wrote down, if one did.
    pub fn need(&self) -> Option<Need> {
        if self.memory.is_none() && self.gpu_memory.is_none() {
            return None;
        }
        let gpu = self.gpu_memory.map(|spread| GpuNeed { spread, each: Bytes(0) });
        Some(Need { host: self.memory.unwrap_or_default(), gpu, basis: Basis::Profile })
    }
}
