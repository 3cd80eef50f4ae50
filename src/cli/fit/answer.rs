//! What `slotd fit` says, as JSON has it.

use serde::Serialize;

use super::target::Target;
use crate::{
    engine::{EngineKind, Estimate, GpuParts, HostParts},
    spec::{
        Bytes, SlotName,
        memory::{Basis, GpuReading, GpuState, MemoryReading, Need},
    },
};

/// A slot that holds memory now.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) slot: SlotName,
    pub(super) resident: Bytes,
    /// Nobody waits for an answer of it.
    pub(super) is_idle: bool,
}

/// The whole answer.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub(super) slot: Option<SlotName>,
    pub(super) model: Option<String>,
    pub(super) engine: EngineKind,
    pub(super) basis: Basis,
    pub(super) host: HostObject,
    pub(super) gpu: Option<GpuObject>,
    /// The most that it took of the host's memory in earlier runs.
    pub(super) measured_bytes: Option<Bytes>,
    /// What of the host's memory nobody uses, and what this slot has now.
    pub(super) free_bytes: Option<Bytes>,
    /// All of it.
    pub(super) total_bytes: Option<Bytes>,
    pub(super) gpus: Vec<GpuRoom>,
    pub(super) rungs: Vec<RungObject>,
    /// Idle slots that would make room for the first rung, if room is short and they can make it.
    pub(super) would_make_room: Vec<SlotName>,
}

/// What is known of one GPU's memory.
#[derive(Debug, Serialize)]
pub(super) struct GpuRoom {
    pub(super) name: String,
    /// None where it says nothing, or is lost.
    pub(super) free_bytes: Option<Bytes>,
    pub(super) total_bytes: Option<Bytes>,
}

/// The sum for the host.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the unit is part of a key's name")]
pub(super) struct HostObject {
    pub(super) weights_bytes: Bytes,
    pub(super) cache_bytes: Bytes,
    pub(super) prompts_bytes: Bytes,
    pub(super) compute_bytes: Bytes,
    pub(super) rest_bytes: Bytes,
    pub(super) sum_bytes: Bytes,
}

/// The sum for GPUs.
#[derive(Debug, Serialize)]
pub(super) struct GpuObject {
    pub(super) weights_bytes: Bytes,
    pub(super) cache_bytes: Bytes,
    pub(super) compute_bytes_each: Bytes,
    pub(super) context_bytes_each: Bytes,
    /// On one GPU alone.
    pub(super) sum_bytes: Bytes,
}

/// One rung of the ladder.
#[derive(Debug, Serialize)]
pub(super) struct RungObject {
    pub(super) name: String,
    pub(super) host_bytes: Bytes,
    pub(super) gpu_bytes: Option<Bytes>,
    pub(super) fits: Fits,
}

/// Whether there is room.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Fits {
    Yes,
    No,
    /// A figure is missing: of the engine's need, or of what is free.
    Unknown,
}

impl Answer {
    pub(super) fn of(target: &Target, memory: &MemoryReading, loaded: &[Loaded]) -> Self {
        let Target { slot, profile, checked, rungs, has_gpu, peaks } = target;
        let estimates: Vec<(String, Estimate)> = rungs
            .iter()
            .map(|rung| {
                let peak = checked.peak_key((profile, rung)).and_then(|key| peaks.of(&key));
                let estimate = checked.estimate((profile, rung), *has_gpu).corrected(peak);
                (rung.name().into_owned(), estimate)
            })
            .collect();
        let first = estimates.first().map(|(_, first)| first.clone()).unwrap_or_default();
        // What it holds itself comes back before it is loaded anew.
        let own = loaded.iter().find(|loaded| Some(&loaded.slot) == slot.as_ref());
        let held = own.map_or(0, |own| own.resident.0);
        let free = memory.host.map(|room| Bytes(room.free.0.saturating_add(held)));
        let rungs = estimates.iter().map(|(name, estimate)| {
            let need = estimate.need();
            RungObject {
                name: name.clone(),
                host_bytes: need.host,
                gpu_bytes: need
                    .gpu
                    .as_ref()
                    .map(|gpu| Bytes(gpu.spread.0.saturating_add(gpu.each.0))),
                fits: fits(&need, free, memory),
            }
        });
        let others: Vec<&Loaded> =
            loaded.iter().filter(|loaded| Some(&loaded.slot) != slot.as_ref()).collect();
        Self {
            slot: slot.clone(),
            model: checked.model.as_ref().map(|path| path.display().to_string()),
            engine: checked.kind,
            basis: match first.basis {
                Basis::Unknown | Basis::Files => first.need().basis,
                basis @ (Basis::Header | Basis::Measured | Basis::Profile) => basis,
            },
            measured_bytes: first.measured,
            gpus: memory.gpus.values().map(GpuRoom::of).collect(),
            rungs: rungs.collect(),
            would_make_room: would_make_room(first.need().host, free, &others),
            host: HostObject::of(&first.host),
            gpu: first.gpu.as_ref().map(GpuObject::of),
            free_bytes: free,
            total_bytes: memory.host.map(|room| room.total),
        }
    }
}

impl GpuRoom {
    fn of(gpu: &GpuReading) -> Self {
        let room = match gpu.state {
            GpuState::Present(room) => Some(room),
            GpuState::Silent { .. } | GpuState::Lost { .. } => None,
        };
        Self {
            name: gpu.name.clone(),
            free_bytes: room.map(|room| room.free),
            total_bytes: room.map(|room| room.total),
        }
    }
}

impl HostObject {
    pub(super) fn of(parts: &HostParts) -> Self {
        Self {
            weights_bytes: parts.weights,
            cache_bytes: parts.cache,
            prompts_bytes: parts.prompts,
            compute_bytes: parts.compute,
            rest_bytes: parts.rest,
            sum_bytes: parts.sum(),
        }
    }
}

impl GpuObject {
    pub(super) fn of(parts: &GpuParts) -> Self {
        let all = [parts.weights, parts.cache, parts.compute, parts.context];
        Self {
            weights_bytes: parts.weights,
            cache_bytes: parts.cache,
            compute_bytes_each: parts.compute,
            context_bytes_each: parts.context,
            sum_bytes: Bytes(all.iter().fold(0, |sum, part| sum.saturating_add(part.0))),
        }
    }
}

/// Tells whether there is room now, on as many GPUs as it takes.
fn fits(need: &Need, free: Option<Bytes>, memory: &MemoryReading) -> Fits {
    let Some(free) = free.filter(|_| need.basis != Basis::Unknown) else { return Fits::Unknown };
    if need.host > free {
        return Fits::No;
    }
    let Some(gpu) = &need.gpu else { return Fits::Yes };
    let rooms: Vec<u64> = memory
        .gpus
        .values()
        .filter_map(|gpu| match &gpu.state {
            GpuState::Present(room) => Some(room.free.0),
            GpuState::Silent { .. } | GpuState::Lost { .. } => None,
        })
        .collect();
    if rooms.is_empty() {
        return Fits::Unknown;
    }
    let spread: u64 = rooms.iter().map(|free| free.saturating_sub(gpu.each.0)).sum();
    if gpu.spread.0 <= spread { Fits::Yes } else { Fits::No }
}

/// Picks idle slots: the smallest one that is enough, else the largest ones together.
fn would_make_room(wanted: Bytes, free: Option<Bytes>, loaded: &[&Loaded]) -> Vec<SlotName> {
    let missing = free.map_or(0, |free| wanted.0.saturating_sub(free.0));
    let mut idle: Vec<&&Loaded> = loaded.iter().filter(|loaded| loaded.is_idle).collect();
    idle.sort_by_key(|loaded| loaded.resident);
    if missing == 0 {
        return Vec::new();
    }
    if let Some(enough) = idle.iter().find(|loaded| loaded.resident.0 >= missing) {
        return vec![enough.slot.clone()];
    }
    let mut gone = 0_u64;
    let mut chosen = Vec::new();
    for loaded in idle.iter().rev() {
        if gone < missing {
            gone = gone.saturating_add(loaded.resident.0);
            chosen.push(loaded.slot.clone());
        }
    }
    if gone < missing { Vec::new() } else { chosen }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spec::memory::{GpuNeed, Room};

    fn loaded(slot: &str, mebibytes: u64, is_idle: bool) -> Loaded {
        Loaded { slot: slot.parse().unwrap(), resident: Bytes(mebibytes << 20), is_idle }
    }

    fn going(wanted: u64, free: u64) -> Vec<String> {
        let slots =
            [loaded("small", 100, true), loaded("large", 900, true), loaded("busy", 4000, false)];
        let slots: Vec<&Loaded> = slots.iter().collect();
        let going = would_make_room(Bytes(wanted << 20), Some(Bytes(free << 20)), &slots);
        going.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_smallest_idle_slot_that_is_enough_would_go_and_a_busy_one_never() {
        assert_eq!(going(100, 100), [""; 0]);
        assert_eq!(going(150, 100), ["small"]);
        assert_eq!(going(500, 100), ["large"]);
        assert_eq!(going(1050, 100), ["large", "small"]);
        assert_eq!(going(2000, 100), [""; 0]);
    }

    #[test]
    fn gpus_share_what_can_be_spread_and_each_has_its_own_part() {
        let room = |free| GpuState::Present(Room { total: Bytes(100), free: Bytes(free) });
        let reading = |states: Vec<GpuState>| {
            let gpus = states.into_iter().map(|state| GpuReading {
                uuid: String::new(),
                name: String::new(),
                state,
            });
            MemoryReading { host: None, gpus: (0..).zip(gpus).collect::<BTreeMap<_, _>>() }
        };
        let gpu = Some(GpuNeed { spread: Bytes(70), each: Bytes(10) });
        let need = Need { host: Bytes(5), gpu, basis: Basis::Header };
        let free = Some(Bytes(10));
        assert_eq!(fits(&need, free, &reading(vec![room(79)])), Fits::No);
        assert_eq!(fits(&need, free, &reading(vec![room(50), room(45)])), Fits::Yes);
        let lost = GpuState::Lost { reason: "gone".to_owned() };
        assert_eq!(fits(&need, free, &reading(vec![lost])), Fits::Unknown);
        assert_eq!(fits(&need, Some(Bytes(4)), &reading(vec![room(99)])), Fits::No);
        assert_eq!(fits(&need, None, &reading(vec![room(99)])), Fits::Unknown);
    }
}
