//! One look at the memory of the machine and of all engines, for the core's next decision.

use std::collections::BTreeMap;

use tokio::task::spawn_blocking;

use crate::{
    sensor::{self, Processes},
    spec::{
        Generation, SlotName,
        memory::{EngineReading, MemoryReading},
    },
};

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Surveyed {
    pub(super) reading: MemoryReading,
    pub(super) engines: BTreeMap<SlotName, EngineReading>,
}

/// Reads the machine and `engines`, each by its generation and process group. A sensor that fails
/// gives no figure.
pub(super) async fn read(engines: BTreeMap<SlotName, (Generation, u32)>) -> Surveyed {
    let looked = spawn_blocking(move || look(engines));
    looked.await.unwrap_or_default()
}

fn look(engines: BTreeMap<SlotName, (Generation, u32)>) -> Surveyed {
    let mut processes = Processes::new();
    if !engines.is_empty() {
        processes.refresh();
    }
    let engines = engines.into_iter().map(|(slot, (generation, pid))| {
        let host = processes.unreclaimable(pid);
        (slot, EngineReading { generation, host, ..EngineReading::default() })
    });
    let engines = engines.collect();
    let reading = MemoryReading { host: sensor::host_room(), gpus: BTreeMap::new() };
    Surveyed { reading, engines }
}
