//! One look at the memory of the machine and of all engines, for the core's next decision.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{task::spawn_blocking, time::Instant};

use crate::{
    sensor::{self, GpuUse, Gpus, Members, Processes},
    spec::{
        Bytes, Generation, SlotName,
        memory::{EngineReading, MemoryReading},
    },
};

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Surveyed {
    pub(super) reading: MemoryReading,
    pub(super) engines: BTreeMap<SlotName, EngineReading>,
}

/// Reads the machine and `engines`, each by its generation and processes. A sensor that fails
/// gives no figure, and a GPU's driver keeps nobody waiting.
pub(super) async fn read(
    engines: BTreeMap<SlotName, (Generation, Members)>,
    gpus: Option<Arc<Gpus>>,
) -> Surveyed {
    if let Some(gpus) = &gpus {
        gpus.wait_for_first().await;
    }
    let looked = spawn_blocking(move || look(engines, gpus.as_deref()));
    looked.await.unwrap_or_default()
}

fn look(engines: BTreeMap<SlotName, (Generation, Members)>, gpus: Option<&Gpus>) -> Surveyed {
    let uses = gpus.map(|gpus| gpus.uses(Instant::now())).unwrap_or_default();
    let mut processes = Processes::new();
    if !engines.is_empty() {
        processes.refresh();
    }
    let engines = engines.into_iter().map(|(slot, (generation, members))| {
        let host = processes.unreclaimable(members.group);
        let gpus = held_on(&uses, |process| members.have(process));
        (slot, EngineReading { generation, host, gpus, ..EngineReading::default() })
    });
    let engines = engines.collect();
    let gpus = gpus.map(Gpus::look_now).unwrap_or_default();
    let reading = MemoryReading { host: sensor::host_room(), gpus };
    Surveyed { reading, engines }
}

/// Sums up what processes hold on each GPU, where the driver lists them.
fn held_on(uses: &BTreeMap<u32, GpuUse>, is_ours: impl Fn(u32) -> bool) -> BTreeMap<u32, Bytes> {
    let on_each = uses.iter().filter_map(|(gpu, seen)| {
        let ours = seen.processes.iter().filter(|(process, _)| is_ours(**process));
        let held = ours.map(|(_, bytes)| bytes.0).reduce(u64::saturating_add)?;
        Some((*gpu, Bytes(held)))
    });
    on_each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_holds_what_its_processes_hold() {
        let seen = |processes: &[(u32, u64)]| GpuUse {
            processes: processes.iter().map(|(pid, bytes)| (*pid, Bytes(*bytes))).collect(),
            ..GpuUse::default()
        };
        let uses = BTreeMap::from([
            (0, seen(&[(10, 3), (11, 4), (20, 5)])),
            (1, seen(&[(20, 6)])),
            (2, seen(&[])),
        ]);
        assert_eq!(held_on(&uses, |pid| pid < 20), BTreeMap::from([(0, Bytes(7))]));
        assert_eq!(held_on(&uses, |_| false), BTreeMap::new());
    }
}
