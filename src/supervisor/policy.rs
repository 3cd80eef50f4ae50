//! The numbers that the core decides by.

use std::time::Duration;

use crate::engine::Machine;

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
        }
    }
}
