//! What a slot's stay in memory is worth: what it needs, who it gives way to, and when it comes back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Bytes,
    memory::{Basis, GpuNeed, GpuReading, GpuState, MemoryReading, Need},
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
    /// What it asks of the machine.
    pub asks: Asks,
}

/// What a profile asks of the machine: on one that has less its slot is skipped.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Asks {
    /// How many GPUs there have to be.
    pub gpus: Option<u32>,
    /// How much memory they have to have, all together.
    pub gpu_memory: Option<Bytes>,
    /// How much memory the host has to have.
    pub memory: Option<Bytes>,
}

/// What a machine has less of than a profile asks for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unmet {
    /// GPUs.
    Gpus {
        /// What is asked for.
        asked: u32,
        /// What there is.
        found: u32,
    },
    /// Memory of the GPUs, all together.
    GpuMemory {
        /// What is asked for.
        asked: Bytes,
        /// What there is.
        found: Bytes,
    },
    /// Memory of the host.
    Memory {
        /// What is asked for.
        asked: Bytes,
        /// What there is.
        found: Bytes,
    },
}

impl Asks {
    /// Tells whether anything is asked for.
    pub fn is_any(&self) -> bool {
        *self != Self::default()
    }

    /// Returns what of it a machine does not have; `None` where it has all, or where that is not known.
    /// `has_gpu` tells whether there may be GPUs that cannot be read. One that is lost is there.
    pub fn unmet(&self, reading: &MemoryReading, has_gpu: bool) -> Option<Unmet> {
        let is_known = !reading.gpus.is_empty() || !has_gpu;
        let found = u32::try_from(reading.gpus.len()).unwrap_or(u32::MAX);
        if let Some(asked) = self.gpus.filter(|asked| is_known && *asked > found) {
            return Some(Unmet::Gpus { asked, found });
        }
        let total = |gpu: &GpuReading| match &gpu.state {
            GpuState::Present(room) | GpuState::Silent { last: Some(room) } => Some(room.total.0),
            GpuState::Silent { last: None } | GpuState::Lost { .. } => None,
        };
        let totals = reading.gpus.values().map(total);
        let found = totals.sum::<Option<u64>>().filter(|_| is_known).map(Bytes);
        let is_less = |asked: &Bytes| found.is_some_and(|found| found < *asked);
        if let (Some(asked), Some(found)) = (self.gpu_memory.filter(is_less), found) {
            return Some(Unmet::GpuMemory { asked, found });
        }
        let found = reading.host.map(|host| host.total);
        let is_less = |asked: &Bytes| found.is_some_and(|found| found < *asked);
        let (asked, found) = (self.memory.filter(is_less)?, found?);
        Some(Unmet::Memory { asked, found })
    }

    /// Says it in the words of a profile; nothing where nothing is asked for.
    pub fn words(&self) -> String {
        let gpus = self.gpus.map(|gpus| format!("gpus = {gpus}"));
        let gpu_memory = self.gpu_memory.map(|bytes| format!("gpu_memory = {bytes}"));
        let memory = self.memory.map(|bytes| format!("memory = {bytes}"));
        [gpus, gpu_memory, memory].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

impl Unmet {
    /// Says it in one clause.
    pub fn clause(&self) -> String {
        match self {
            Self::Gpus { asked, found } => {
                let are = if *found == 1 { "is" } else { "are" };
                format!("its profile needs `gpus` = {asked}, and {found} {are} there")
            }
            Self::GpuMemory { asked, found } => {
                format!("its profile needs `gpu_memory` = {asked}, and all GPUs have {found}")
            }
            Self::Memory { asked, found } => {
                format!("its profile needs `memory` = {asked}, and there is {found}")
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::memory::Room;

    const GIB: u64 = 1 << 30;

    fn reading(host: Option<u64>, gpus: &[Option<u64>]) -> MemoryReading {
        let room = |gib: u64| Room { total: Bytes(gib * GIB), free: Bytes(0) };
        let gpus = (0..).zip(gpus).map(|(index, gib)| {
            let state = match gib {
                Some(gib) => GpuState::Present(room(*gib)),
                None => GpuState::Lost { reason: "it fell off the bus".to_owned() },
            };
            (index, GpuReading { uuid: format!("GPU-{index}"), name: "test".to_owned(), state })
        });
        MemoryReading { host: host.map(room), gpus: gpus.collect() }
    }

    fn unmet(asks: Asks, reading: &MemoryReading, has_gpu: bool) -> Option<String> {
        asks.unmet(reading, has_gpu).map(|unmet| unmet.clause())
    }

    #[test]
    fn a_machine_with_less_is_told_with_the_numbers() {
        let two = Asks { gpus: Some(2), ..Asks::default() };
        let one_gpu = reading(Some(32), &[Some(24)]);
        let told = unmet(two, &one_gpu, true).unwrap();
        assert_eq!(told, "its profile needs `gpus` = 2, and 1 is there");
        let told = unmet(two, &reading(None, &[]), false).unwrap();
        assert_eq!(told, "its profile needs `gpus` = 2, and 0 are there");
        let large = Asks { gpu_memory: Some(Bytes(40 * GIB)), ..Asks::default() };
        let told = unmet(large, &one_gpu, true).unwrap();
        assert_eq!(told, "its profile needs `gpu_memory` = 40 GiB, and all GPUs have 24 GiB");
        let host = Asks { memory: Some(Bytes(64 * GIB)), ..Asks::default() };
        let told = unmet(host, &one_gpu, true).unwrap();
        assert_eq!(told, "its profile needs `memory` = 64 GiB, and there is 32 GiB");
    }

    #[test]
    fn enough_is_enough_and_unknown_is_not_less() {
        let asks = Asks {
            gpus: Some(2),
            gpu_memory: Some(Bytes(48 * GIB)),
            memory: Some(Bytes(32 * GIB)),
        };
        assert_eq!(unmet(asks, &reading(Some(32), &[Some(24), Some(24)]), true), None);
        assert_eq!(unmet(asks, &reading(None, &[]), true), None, "GPUs that cannot be read");
        assert_eq!(
            unmet(asks, &reading(None, &[Some(8), None]), true),
            None,
            "a lost one is there"
        );
        assert_eq!(unmet(Asks::default(), &reading(Some(1), &[]), false), None);
    }
}
