//! The keys of a profile about its slot's stay in memory.

use std::{ops::RangeInclusive, time::Duration};

use schemars::JsonSchema;

use super::{file::ProfileFile, walk::Walk};
use crate::spec::{
    Bytes,
    residence::{Asks, Residence, Restore, WhenFull},
};

const NEEDS: [&str; 3] = ["gpus", "gpu_memory", "memory"];
const GPUS: RangeInclusive<u32> = 0..=64;

/// What the machine has to have: on one with less the slot is skipped, and says why.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, inline)]
#[expect(dead_code, reason = "read by the schema generator only")]
pub(super) struct NeedsShape {
    /// How many GPUs there have to be, 0 to 64.
    #[schemars(with = "u32", range(min = 0, max = 64))]
    gpus: Option<u32>,
    /// How much memory they have to have, all together, `1MiB` to `1024TiB`.
    #[schemars(with = "String", regex(pattern = r"^[0-9]+ ?(B|KiB|MiB|GiB|TiB)$"))]
    gpu_memory: Option<Bytes>,
    /// How much memory the host has to have, used or not, `1MiB` to `1024TiB`.
    #[schemars(with = "String", regex(pattern = r"^[0-9]+ ?(B|KiB|MiB|GiB|TiB)$"))]
    memory: Option<Bytes>,
}

const SIZE: RangeInclusive<Bytes> = Bytes(1 << 20)..=Bytes(1 << 50);
const PRIORITY: RangeInclusive<u32> = 0..=100;
const MIN_RESIDENCY: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24);
const WHEN_FULL: [(&str, WhenFull); 2] = [("swap", WhenFull::Swap), ("refuse", WhenFull::Refuse)];
const RESTORE: [(&str, Restore); 3] =
    [("when-idle", Restore::WhenIdle), ("when-room", Restore::WhenRoom), ("never", Restore::Never)];

/// Takes them out of a file.
pub(super) fn take(walk: &mut Walk<'_>) -> Residence {
    Residence {
        memory: walk.take_size("memory", &SIZE),
        gpu_memory: walk.take_size("gpu_memory", &SIZE),
        pinned: walk.take_flag("pinned").unwrap_or_default(),
        pressure_evict_only: walk.take_flag("pressure_evict_only").unwrap_or_default(),
        priority: walk.take_number("priority", &PRIORITY, "the usual priority is 50"),
        min_residency: walk.take_duration("min_residency", &MIN_RESIDENCY),
        when_full: walk.take_choice("when_full", &WHEN_FULL).unwrap_or_default(),
        restore: walk.take_choice("restore", &RESTORE),
        asks: walk.take_table("needs", take_asks).unwrap_or_default(),
    }
}

fn take_asks(walk: &mut Walk<'_>) -> Asks {
    walk.refuse_unknown(&NEEDS, |_| None);
    Asks {
        gpus: walk.take_number("gpus", &GPUS, "leave it out where none is needed"),
        gpu_memory: walk.take_size("gpu_memory", &SIZE),
        memory: walk.take_size("memory", &SIZE),
    }
}

impl ProfileFile {
    /// Returns what the slot's stay in memory is worth.
    pub(super) fn residence(&self) -> Residence {
        Residence {
            memory: self.memory,
            gpu_memory: self.gpu_memory,
            pinned: self.pinned,
            pressure_evict_only: self.pressure_evict_only,
            priority: self.priority,
            min_residency: self.min_residency,
            when_full: self.when_full,
            restore: self.restore,
            asks: self.needs,
        }
    }
}
