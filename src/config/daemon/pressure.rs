//! The table `pressure` of `slotd.toml`: from where on the machine is short of something.

use std::ops::RangeInclusive;

use super::super::walk::Walk;
use crate::spec::{
    Bytes,
    pressure::{Marks, Thresholds},
};

const PERCENT: RangeInclusive<u32> = 0..=100;
const SIZE: RangeInclusive<Bytes> = Bytes(0)..=Bytes(1 << 50);
const LEVELS: [&str; 2] = ["elevated", "critical"];
const MARKS: [&str; 6] = [
    "memory_free_percent",
    "swap_free_percent",
    "memory_stall_percent",
    "gpu_free",
    "cpu_stall_percent",
    "disk_free",
];

/// Takes the table out of the file.
pub(super) fn take(walk: &mut Walk<'_>) -> Thresholds {
    let usual = Thresholds::default();
    let typed = walk.take_table("pressure", |walk| {
        walk.refuse_unknown(&LEVELS, |_| None);
        let elevated = walk.take_table("elevated", |walk| marks(walk, &usual.elevated));
        let critical = walk.take_table("critical", |walk| marks(walk, &usual.critical));
        (elevated, critical)
    });
    let (elevated, critical) = typed.unwrap_or_default();
    Thresholds {
        elevated: elevated.unwrap_or(usual.elevated),
        critical: critical.unwrap_or(usual.critical),
    }
}

fn marks(walk: &mut Walk<'_>, usual: &Marks) -> Marks {
    walk.refuse_unknown(&MARKS, |_| None);
    let mut percent = |key, usual| {
        walk.take_number(key, &PERCENT, "0 percent free, or 100 of waiting, is never passed")
            .unwrap_or(usual)
    };
    Marks {
        memory_free_percent: percent("memory_free_percent", usual.memory_free_percent),
        swap_free_percent: percent("swap_free_percent", usual.swap_free_percent),
        memory_stall_percent: percent("memory_stall_percent", usual.memory_stall_percent),
        cpu_stall_percent: percent("cpu_stall_percent", usual.cpu_stall_percent),
        gpu_free: walk.take_size("gpu_free", &SIZE).unwrap_or(usual.gpu_free),
        disk_free: walk.take_size("disk_free", &SIZE).unwrap_or(usual.disk_free),
    }
}
