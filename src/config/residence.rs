//! The keys of a profile about its slot's stay in memory.

use std::{ops::RangeInclusive, time::Duration};

use super::{file::ProfileFile, walk::Walk};
use crate::spec::{
    Bytes,
    residence::{Residence, Restore, WhenFull},
};

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
        }
    }
}
