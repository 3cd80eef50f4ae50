//! The keys of `slotd.toml` about memory: what engines may have of it, and how many may be there.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use serde::Serialize;

use super::super::walk::Walk;
use crate::spec::{Bytes, profile::Capability};

const LIMIT: RangeInclusive<Bytes> = Bytes(1 << 20)..=Bytes(1 << 50);
const RESERVE: RangeInclusive<Bytes> = Bytes(0)..=Bytes(1 << 50);
const RESIDENT: RangeInclusive<u32> = 1..=10_000;
const RESTORE_AFTER: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_hours(24);

/// How memory is shared out.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct MemorySettings {
    /// What all engines together may take of the host's memory.
    pub limit: Option<Bytes>,
    /// What is kept free of the host's memory, and of each GPU's.
    pub reserve: Bytes,
    /// How many slots may be loaded at once.
    pub max_resident: Option<u32>,
    /// How many of each kind may be.
    pub max_resident_per: BTreeMap<Capability, u32>,
    /// How long a slot must have been idle for those that it displaced to come back in its place.
    pub restore_after: Duration,
}

impl Default for MemorySettings {
    fn default() -> Self {
        Self {
            limit: None,
            reserve: Bytes(256 << 20),
            max_resident: None,
            max_resident_per: BTreeMap::new(),
            restore_after: Duration::from_mins(1),
        }
    }
}

/// Takes them out of the file.
pub(super) fn take(walk: &mut Walk<'_>) -> MemorySettings {
    const OPEN: &str = "leave the key out for no limit";
    let usual = MemorySettings::default();
    let each = walk.take_table("max_resident_per", |walk| {
        let names = Capability::ALL.map(Capability::as_str);
        walk.refuse_unknown(&names, |_| None);
        let kinds = Capability::ALL.into_iter();
        let taken = kinds
            .filter_map(|kind| Some((kind, walk.take_number(kind.as_str(), &RESIDENT, OPEN)?)));
        taken.collect()
    });
    MemorySettings {
        limit: walk.take_size("memory_limit", &LIMIT),
        reserve: walk.take_size("memory_reserve", &RESERVE).unwrap_or(usual.reserve),
        max_resident: walk.take_number("max_resident", &RESIDENT, OPEN),
        max_resident_per: each.unwrap_or_default(),
        restore_after: walk
            .take_duration("restore_after", &RESTORE_AFTER)
            .unwrap_or(usual.restore_after),
    }
}
