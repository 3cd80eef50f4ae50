//! The numbers that the core decides by.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    engine::Machine,
    spec::{
        Bytes,
        pressure::{Marks, Thresholds},
        profile::Capability,
    },
};

/// Limits and delays of all slots. The daemon runs with [`Policy::default`] but for its settings; the
/// simulation draws its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The first delay of a backoff.
    pub backoff_base: Duration,
    /// The longest delay of a backoff.
    pub backoff_cap: Duration,
    /// How long an engine must have been ready for its slot's tally of deaths to be forgotten.
    pub healthy_after: Duration,
    /// How many requests may wait for one slot to come up.
    pub waiting_limit: usize,
    /// The longest backoff that a request is held over after a working engine died; beyond it the
    /// request is turned away with the time of the next attempt.
    pub bridge: Duration,
    /// How many deaths of one cause in a row take a slot one rung down its ladder.
    pub same_cause_deaths: u32,
    /// How long without a death before a slot tries the rung above; doubled by each setback.
    pub climb_after: Duration,
    /// The longest that `climb_after` doubles to.
    pub climb_cap: Duration,
    /// How long an engine must have been idle to be stopped for a climb.
    pub climb_idle: Duration,
    /// How many different requests in a row an engine must fail to be taken for poisoned.
    pub poisoned_after: u32,
    /// What the engines compute with.
    pub machine: Machine,
    /// What all engines together may take of the host's memory; no limit of ours without it.
    pub memory_limit: Option<Bytes>,
    /// What is kept free of the host's memory, and of each GPU's.
    pub memory_reserve: Bytes,
    /// How many engines may be there at once.
    pub max_resident: Option<u32>,
    /// How many of one kind may be.
    pub max_resident_per: BTreeMap<Capability, u32>,
    /// How long a slot stays once it is ready, whoever waits.
    pub min_residency: Duration,
    /// How long a slot waits for those that work before their turn is over.
    pub turn_after: Duration,
    /// How long after its last request a slot is warm.
    pub warm_for: Duration,
    /// How long after its last request a slot goes before the other idle ones.
    pub evictable_after: Duration,
    /// How long a slot must have been idle for those that it displaced to come back in its place.
    pub restore_after: Duration,
    /// From where on the machine is short.
    pub pressure: Marks,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            backoff_base: Duration::from_secs(5),
            backoff_cap: Duration::from_mins(5),
            healthy_after: Duration::from_mins(1),
            waiting_limit: 512,
            bridge: Duration::from_secs(30),
            same_cause_deaths: 5,
            climb_after: Duration::from_mins(10),
            climb_cap: Duration::from_hours(24),
            climb_idle: Duration::from_secs(30),
            poisoned_after: 5,
            machine: Machine { cores: 4, has_gpu: false },
            memory_limit: None,
            memory_reserve: Bytes(256 << 20),
            max_resident: None,
            max_resident_per: BTreeMap::new(),
            min_residency: Duration::from_secs(10),
            turn_after: Duration::from_secs(2),
            warm_for: Duration::from_secs(30),
            evictable_after: Duration::from_mins(5),
            restore_after: Duration::from_mins(1),
            pressure: Thresholds::default().elevated,
        }
    }
}
