//! What a GPU says of itself, beside the memory that [`super::memory`] counts.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::memory::GpuReading;

/// What is known of each GPU at one moment, by its index.
pub type GpuFigures = BTreeMap<u32, GpuFigure>;

/// One GPU at one moment, for people and for graphs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GpuFigure {
    /// Which one, and its memory.
    pub reading: GpuReading,
    /// How much of the last second it computed, 0 to 100; `None` if it does not say.
    pub busy_percent: Option<u32>,
    /// The Xids that were heard of; `None` where its driver cannot tell of any.
    pub xids: Option<Xids>,
}

/// The Xids of one GPU since somebody listens.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Xids {
    /// How many there were.
    pub count: u64,
    /// The last ones, oldest first; at most 16.
    pub last: Vec<Xid>,
}

/// One fault that the driver has reported of a GPU.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Xid {
    /// Its number in NVIDIA's catalogue.
    pub code: u64,
    /// Wall-clock time in milliseconds since 1970, for people.
    pub at_unix_ms: u64,
}

/// An Xid that came shortly before a death, on a GPU that the dead engine was on.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct XidBefore {
    /// The GPU, by its index.
    pub gpu: u32,
    /// Its number in NVIDIA's catalogue.
    pub code: u64,
    /// How long before the death became known.
    pub before_ms: u64,
}

/// The Xid after which a GPU is not there any more.
pub const OFF_THE_BUS: u64 = 79;

/// The Xid of which NVML does not say which one it was.
pub const NOT_SAID: u64 = 999;

/// Writes an Xid with its name where that is well known: `Xid 31 (GPU memory page fault)`.
#[derive(Clone, Copy, Debug)]
pub struct XidName(pub u64);

impl fmt::Display for XidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match xid_name(self.0) {
            Some(name) => write!(f, "Xid {} ({name})", self.0),
            None => write!(f, "Xid {}", self.0),
        }
    }
}

/// Returns what an Xid means, in a few words; `None` for those that few have seen.
///
/// **Source:** NVIDIA, "Analyzing Xid Errors with the Xid Catalog", and its form for Volta and older GPUs.
pub fn xid_name(code: u64) -> Option<&'static str> {
    Some(match code {
        8 => "the GPU stopped processing",
        13 => "graphics engine exception",
        31 => "GPU memory page fault",
        32 => "corrupted push buffer",
        43 => "a channel was reset, its program went wrong",
        45 => "cleaned up after an earlier fault",
        48 => "memory error that could not be corrected",
        61 => "the GPU's microcontroller gave a warning",
        62 => "the GPU's microcontroller halted",
        63 => "bad memory was taken out of use",
        64 => "bad memory could not be taken out of use",
        69 => "graphics engine class error",
        74 => "NVLink error",
        OFF_THE_BUS => "the GPU has fallen off the bus",
        92 => "many corrected memory errors",
        94 => "memory error, contained to its program",
        95 => "memory error, not contained",
        109 => "context switch timed out",
        119 => "the GPU's system processor did not answer",
        120 => "the GPU's system processor failed",
        140 => "memory error that could not be recovered",
        154 => "the GPU needs a reset or a restart of the machine",
        NOT_SAID => "the driver does not say which",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_xid_is_told_with_its_name_where_it_has_one() {
        assert_eq!(XidName(31).to_string(), "Xid 31 (GPU memory page fault)");
        assert_eq!(XidName(9999).to_string(), "Xid 9999");
    }
}
