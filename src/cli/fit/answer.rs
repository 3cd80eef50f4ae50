//! What `slotd fit` says, as JSON has it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{pinned, sources::Sources, target::Target};
use crate::{
    admin::{FitObject, RoomObject},
    config::daemon::MemorySettings,
    engine::{EngineKind, GpuParts, HostParts},
    spec::{
        Bytes, SlotName,
        memory::{Basis, GpuNeed, GpuReading, GpuState, MemoryReading, Need},
    },
};

/// What can be promised, and what of that is enough.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    /// What can be promised of the host's memory; `None` where that is not known.
    free: Option<Bytes>,
    /// The same of each GPU; those that say nothing are not there.
    gpus: BTreeMap<u32, Bytes>,
    /// One for each need.
    fits: Vec<Fits>,
    would_make_room: Vec<SlotName>,
    /// Why there can be no room for any of them, whoever of those goes that may.
    refused: Option<String>,
}

impl Ledger {
    /// Takes the daemon's word.
    pub(super) fn of_daemon(fit: FitObject) -> Self {
        let is_free = |room: &RoomObject| room.refused.is_none() && room.going.is_empty();
        let fits = fit.needs.iter().map(|room| if is_free(room) { Fits::Yes } else { Fits::No });
        let first = fit.needs.first().and_then(|room| room.refused.clone());
        let is_refused = fit.needs.iter().all(|room| room.refused.is_some());
        Self {
            fits: fits.collect(),
            refused: first.filter(|_| is_refused),
            free: fit.host_bytes,
            gpus: fit.gpu_bytes,
            would_make_room: fit
                .needs
                .into_iter()
                .next()
                .map(|first| first.going)
                .unwrap_or_default(),
        }
    }

    /// Does without a daemon: nothing is promised yet, by the settings that one would have.
    pub(super) fn of_settings(
        settings: &MemorySettings,
        memory: &MemoryReading,
        needs: &[Need],
    ) -> Self {
        let spare = |free: Bytes| Bytes(free.0.saturating_sub(settings.reserve.0));
        let free = memory.host.map(|room| spare(room.free));
        let free = match (free, settings.limit) {
            (Some(free), Some(limit)) => Some(free.min(limit)),
            (free, limit) => free.or(limit),
        };
        let gpus = memory.gpus.iter().filter_map(|(index, gpu)| match gpu.state {
            GpuState::Present(room) => Some((*index, spare(room.free))),
            GpuState::Silent { .. } | GpuState::Lost { .. } => None,
        });
        let gpus = gpus.collect();
        let fits = needs.iter().map(|need| fits(need, free, &gpus)).collect();
        Self { free, gpus, fits, would_make_room: Vec::new(), refused: None }
    }
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
    /// What can be promised of the host's memory, with what this slot has now.
    pub(super) free_bytes: Option<Bytes>,
    /// All of it.
    pub(super) total_bytes: Option<Bytes>,
    /// What all engines together may take of it (`memory_limit`).
    pub(super) limit_bytes: Option<Bytes>,
    pub(super) gpus: Vec<GpuRoom>,
    pub(super) rungs: Vec<RungObject>,
    /// Slots that would make room for the first rung, if room is short and they can make it.
    pub(super) would_make_room: Vec<SlotName>,
    /// Why no rung can have room, even if all that may go were gone: of the first one, with the numbers.
    pub(super) refused: Option<String>,
    /// Then: pinned slots that hold what is lacking, where all slots together hold enough of it.
    pub(super) pinned: Vec<SlotName>,
    /// What the machine has less of than the profile asks for, one clause: no rung is started.
    pub(super) skipped: Option<String>,
}

/// What is known of one GPU's memory.
#[derive(Debug, Serialize)]
pub(super) struct GpuRoom {
    pub(super) name: String,
    /// What can be promised of it; none where it says nothing, or is lost.
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
    pub(super) fn of(
        (target, sources): (&Target, &Sources),
        memory: &MemoryReading,
        (needs, ledger): (&[Need], Ledger),
    ) -> Self {
        let estimates = target.estimates();
        let first = estimates.first().map(|(_, first)| first.clone()).unwrap_or_default();
        let Ledger { free, gpus, fits, would_make_room, refused } = ledger;
        let slots = sources.daemon.slots().iter();
        let others: Vec<_> =
            slots.filter(|other| Some(&other.slot) != target.slot.as_ref()).collect();
        let on_gpus = gpus.values().fold(0, |sum: u64, bytes| sum.saturating_add(bytes.0));
        let pinned = match refused {
            Some(_) => pinned::in_the_way(needs, (free, Bytes(on_gpus)), &others),
            None => Vec::new(),
        };
        let basis = match needs.first().map(|need| need.basis) {
            Some(Basis::Profile) => Basis::Profile,
            Some(basis @ (Basis::Unknown | Basis::Files)) => basis,
            Some(Basis::Header | Basis::Measured) | None => first.basis,
        };
        let rungs =
            estimates.iter().zip(needs).zip(fits).map(|(((name, _), need), fits)| RungObject {
                name: name.clone(),
                host_bytes: need.host,
                gpu_bytes: need.gpu.as_ref().map(GpuNeed::least),
                fits: if need.basis == Basis::Unknown { Fits::Unknown } else { fits },
            });
        let seen = memory.gpus.iter();
        Self {
            slot: target.slot.clone(),
            model: target.checked.model.as_ref().map(|path| path.display().to_string()),
            engine: target.checked.kind,
            basis,
            measured_bytes: first.measured.as_ref().map(|peak| peak.host),
            gpus: seen.map(|(index, gpu)| GpuRoom::of(gpu, gpus.get(index).copied())).collect(),
            rungs: rungs.collect(),
            would_make_room,
            refused,
            pinned,
            skipped: target.skipped.clone(),
            limit_bytes: sources.memory.limit,
            host: HostObject::of(&first.host),
            gpu: first.gpu.as_ref().map(GpuObject::of),
            free_bytes: free,
            total_bytes: memory.host.map(|room| room.total),
        }
    }
}

impl GpuRoom {
    fn of(gpu: &GpuReading, free: Option<Bytes>) -> Self {
        let total = match gpu.state {
            GpuState::Present(room) => Some(room.total),
            GpuState::Silent { .. } | GpuState::Lost { .. } => None,
        };
        Self { name: gpu.name.clone(), free_bytes: free, total_bytes: total }
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
fn fits(need: &Need, free: Option<Bytes>, gpus: &BTreeMap<u32, Bytes>) -> Fits {
    let Some(free) = free.filter(|_| need.basis != Basis::Unknown) else { return Fits::Unknown };
    if need.host > free {
        return Fits::No;
    }
    let Some(gpu) = &need.gpu else { return Fits::Yes };
    if gpus.is_empty() {
        return Fits::Unknown;
    }
    let spread: u64 = gpus.values().map(|free| free.0.saturating_sub(gpu.each.0)).sum();
    if gpu.spread.0 <= spread { Fits::Yes } else { Fits::No }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::memory::Room;

    fn need(host: u64, gpu: Option<(u64, u64)>) -> Need {
        let gpu = gpu.map(|(spread, each)| GpuNeed { spread: Bytes(spread), each: Bytes(each) });
        Need { host: Bytes(host), gpu, basis: Basis::Header }
    }

    fn reading(host: Option<u64>, gpus: &[Option<u64>]) -> MemoryReading {
        let room = |free| Room { total: Bytes(100), free: Bytes(free) };
        let gpu = |free: &Option<u64>| GpuReading {
            uuid: String::new(),
            name: String::new(),
            state: match free {
                Some(free) => GpuState::Present(room(*free)),
                None => GpuState::Lost { reason: "gone".to_owned() },
            },
        };
        MemoryReading { host: host.map(room), gpus: (0..).zip(gpus.iter().map(gpu)).collect() }
    }

    /// Without a daemon, with a reserve of 10 bytes.
    fn alone(limit: Option<u64>, memory: &MemoryReading, need: Need) -> (Option<u64>, Fits) {
        let settings = MemorySettings {
            limit: limit.map(Bytes),
            reserve: Bytes(10),
            ..MemorySettings::default()
        };
        let ledger = Ledger::of_settings(&settings, memory, &[need]);
        (ledger.free.map(|free| free.0), ledger.fits[0])
    }

    #[test]
    fn what_is_kept_free_and_the_limit_count_without_a_daemon_as_well() {
        let host = reading(Some(50), &[]);
        assert_eq!(alone(None, &host, need(40, None)), (Some(40), Fits::Yes));
        assert_eq!(alone(None, &host, need(41, None)), (Some(40), Fits::No));
        assert_eq!(alone(Some(30), &host, need(31, None)), (Some(30), Fits::No));
        let unknown = reading(None, &[]);
        assert_eq!(alone(Some(30), &unknown, need(30, None)), (Some(30), Fits::Yes));
        assert_eq!(alone(None, &unknown, need(1, None)), (None, Fits::Unknown));
    }

    #[test]
    fn gpus_share_what_can_be_spread_and_each_has_its_own_part() {
        let fits =
            |gpus: &[Option<u64>]| alone(None, &reading(Some(20), gpus), need(5, Some((70, 10)))).1;
        assert_eq!(fits(&[Some(89)]), Fits::No, "10 are kept free");
        assert_eq!(fits(&[Some(90)]), Fits::Yes);
        assert_eq!(fits(&[Some(60), Some(50)]), Fits::Yes);
        assert_eq!(fits(&[None]), Fits::Unknown);
        assert_eq!(alone(None, &reading(Some(12), &[Some(99)]), need(5, Some((1, 1)))).1, Fits::No);
    }

    #[test]
    fn the_daemons_word_counts() {
        let room = |going: &[&str], refused: Option<&str>| RoomObject {
            free_bytes: Some(Bytes(7)),
            going: going.iter().map(|name| name.parse().unwrap()).collect(),
            refused: refused.map(str::to_owned),
        };
        let needs = vec![room(&["old"], None), room(&[], Some("too little")), room(&[], None)];
        let (host_bytes, gpu_bytes) = (Some(Bytes(7)), BTreeMap::new());
        let ledger = Ledger::of_daemon(FitObject { host_bytes, gpu_bytes, needs });
        assert_eq!(ledger.fits, [Fits::No, Fits::No, Fits::Yes]);
        assert_eq!(ledger.would_make_room, ["old".parse().unwrap()]);
        assert_eq!(ledger.free, Some(Bytes(7)));
        assert_eq!(ledger.refused, None, "the last one fits");
        let needs = vec![room(&[], Some("too little")), room(&[], Some("still too little"))];
        let fit = FitObject { host_bytes, gpu_bytes: BTreeMap::new(), needs };
        assert_eq!(Ledger::of_daemon(fit).refused.as_deref(), Some("too little"));
    }
}
