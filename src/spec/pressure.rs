//! How short the machine is of what engines live on, and from where on it is.
//!
//! Unknown is no level: what was last known stands.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::Bytes;

/// How short the machine is of one thing.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Pressure {
    /// There is enough.
    #[default]
    Normal,
    /// Little is left.
    Elevated,
    /// Next to nothing is left.
    Critical,
}

/// What the machine can be short of.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The host's memory, its swap included.
    Memory,
    /// One GPU's memory, by its index.
    Gpu(u32),
    /// CPU cores.
    Cpu,
    /// Room on the disk that slotd writes to.
    Disk,
}

/// How short the machine is of each.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Strain {
    /// Of the host's memory.
    pub memory: Pressure,
    /// Of the memory of GPUs that answer, by their index.
    pub gpus: BTreeMap<u32, Pressure>,
    /// Of CPU cores.
    pub cpu: Pressure,
    /// Of room on the disk.
    pub disk: Pressure,
}

/// From where on one level is reached.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Marks {
    /// Less than this share of the host's memory can be had, in percent.
    pub memory_free_percent: u32,
    /// Less than this share of swap is free, in percent; counts where memory is not ample.
    pub swap_free_percent: u32,
    /// Tasks wait for memory for more than this share of the time, in percent; counts where memory is not
    /// ample.
    pub memory_stall_percent: u32,
    /// Less than this is free on a GPU.
    pub gpu_free: Bytes,
    /// Tasks wait for a core for more than this share of the time, in percent.
    pub cpu_stall_percent: u32,
    /// Less than this is free on the disk.
    pub disk_free: Bytes,
}

/// The marks of both levels.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Thresholds {
    /// Of [`Pressure::Elevated`].
    pub elevated: Marks,
    /// Of [`Pressure::Critical`].
    pub critical: Marks,
}

impl Default for Thresholds {
    /// A GPU is full on purpose: its marks lie below the usual `memory_reserve`.
    fn default() -> Self {
        Self {
            elevated: Marks {
                memory_free_percent: 8,
                swap_free_percent: 20,
                memory_stall_percent: 10,
                gpu_free: Bytes(128 << 20),
                cpu_stall_percent: 95,
                disk_free: Bytes(2 << 30),
            },
            critical: Marks {
                memory_free_percent: 3,
                swap_free_percent: 5,
                memory_stall_percent: 40,
                gpu_free: Bytes(64 << 20),
                cpu_stall_percent: 100,
                disk_free: Bytes(512 << 20),
            },
        }
    }
}

impl Marks {
    /// Returns from where on a GPU of this size is short: a small one is clear of every mark once it is nearly
    /// empty.
    pub fn gpu_free_of(&self, total: Bytes) -> Bytes {
        self.gpu_free.min(Bytes(total.0 - total.0 / 16))
    }
}

impl Thresholds {
    /// Returns the marks from where on there is any pressure at all.
    pub fn onset(&self) -> Marks {
        let Self { elevated, critical } = self;
        Marks {
            memory_free_percent: elevated.memory_free_percent.max(critical.memory_free_percent),
            gpu_free: elevated.gpu_free.max(critical.gpu_free),
            ..elevated.clone()
        }
    }
}

impl Pressure {
    /// Returns the word that people and the API use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Elevated => "elevated",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Gpu(index) => write!(f, "gpu-{index}"),
            Self::Cpu => f.write_str("cpu"),
            Self::Disk => f.write_str("disk"),
        }
    }
}

impl Strain {
    /// Goes through all that is known.
    pub fn each(&self) -> impl Iterator<Item = (Source, Pressure)> {
        let gpus = self.gpus.iter().map(|(index, level)| (Source::Gpu(*index), *level));
        let rest = [(Source::Cpu, self.cpu), (Source::Disk, self.disk)];
        [(Source::Memory, self.memory)].into_iter().chain(gpus).chain(rest)
    }

    /// Goes through what engines hold and the machine is short of.
    pub fn of_memory(&self) -> impl Iterator<Item = (Source, Pressure)> {
        self.each().filter(|(source, level)| {
            matches!(source, Source::Memory | Source::Gpu(_)) && *level > Pressure::Normal
        })
    }

    /// Returns the highest level.
    pub fn worst(&self) -> Pressure {
        self.each().map(|(_, level)| level).max().unwrap_or_default()
    }

    /// Returns how much of their usual pace those should keep who can wait, in percent: 100 is all of it.
    pub fn throttle_percent(&self) -> u8 {
        let of = |(source, level)| match (source, level) {
            (_, Pressure::Normal) => 100,
            // Nothing more is to come where the next request may be one too many.
            (Source::Memory, Pressure::Critical) => 0,
            (Source::Gpu(_) | Source::Cpu, Pressure::Critical) => 25,
            // Requests are served on a full disk as well.
            (Source::Disk, Pressure::Elevated) => 75,
            (Source::Memory | Source::Gpu(_) | Source::Cpu, Pressure::Elevated)
            | (Source::Disk, Pressure::Critical) => 50,
        };
        self.each().map(of).min().unwrap_or(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_source_sets_the_pace() {
        let mut strain = Strain::default();
        assert_eq!((strain.worst(), strain.throttle_percent()), (Pressure::Normal, 100));
        strain.disk = Pressure::Elevated;
        assert_eq!((strain.worst(), strain.throttle_percent()), (Pressure::Elevated, 75));
        assert!(strain.of_memory().next().is_none());
        strain.gpus.insert(1, Pressure::Critical);
        assert_eq!((strain.worst(), strain.throttle_percent()), (Pressure::Critical, 25));
        strain.memory = Pressure::Critical;
        assert_eq!(strain.throttle_percent(), 0);
        let short: Vec<_> = strain.of_memory().map(|(source, _)| source.to_string()).collect();
        assert_eq!(short, ["memory", "gpu-1"]);
    }
}
