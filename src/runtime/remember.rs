//! Keeps the state file in step with what is worth remembering over a restart.
//!
//! A full disk never stops a slot: a failed write is told once, tried again, and told again when it
//! works.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};
use tracing::{info, warn};

use crate::{
    spec::SlotName,
    store::{Remembered, SlotMemory, StateDir},
    supervisor::{Memory, SlotView, Snapshot},
};

/// The shortest time between two writes.
const WRITE_PERIOD: Duration = Duration::from_secs(1);
/// How long after a failed write the next one is tried.
const RETRY_PERIOD: Duration = Duration::from_secs(30);

/// Writes until it is dropped.
#[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
pub(super) async fn keep(
    state: Arc<StateDir>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut written: Remembered,
) -> Infallible {
    let mut is_failing = false;
    loop {
        let latest = merge(&written, &snapshots.borrow_and_update());
        if latest != written {
            match save(&state, latest.clone()).await {
                Ok(()) => {
                    written = latest;
                    if is_failing {
                        info!("state file written again");
                    }
                    is_failing = false;
                }
                Err(error) => {
                    if !is_failing {
                        warn!(%error, "state file not written, slots go on");
                    }
                    is_failing = true;
                    sleep(RETRY_PERIOD).await;
                    continue;
                }
            }
        }
        sleep(WRITE_PERIOD).await;
        if snapshots.changed().await.is_err() {
            // The driver has ended; the last write is `keep_last`'s.
            std::future::pending::<()>().await;
        }
    }
}

/// Writes what the last snapshot holds; the daemon ends after it.
pub(super) async fn keep_last(state: Arc<StateDir>, before: &Remembered, snapshot: &Snapshot) {
    if let Err(error) = save(&state, merge(before, snapshot)).await {
        warn!(%error, "state file not written");
    }
}

async fn save(state: &Arc<StateDir>, latest: Remembered) -> Result<(), String> {
    let state = Arc::clone(state);
    match spawn_blocking(move || state.save(&latest)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Slots whose profile is gone stay remembered: the profile may come back.
fn merge(before: &Remembered, snapshot: &Snapshot) -> Remembered {
    let mut latest = before.clone();
    for (name, slot) in &snapshot.slots {
        latest.slots.insert(name.clone(), memory_of(slot));
    }
    latest
}

fn memory_of(slot: &SlotView) -> SlotMemory {
    SlotMemory {
        generation: slot.generation,
        loads_ms: slot
            .loads
            .iter()
            .map(|load| u64::try_from(load.as_millis()).unwrap_or(u64::MAX))
            .collect(),
        deaths: slot.deaths.clone(),
        last_used_unix_ms: None,
    }
}

/// Reads the core's form of what was remembered.
pub(super) fn recall(remembered: &Remembered) -> BTreeMap<SlotName, Memory> {
    remembered
        .slots
        .iter()
        .map(|(name, slot)| {
            let memory = Memory {
                generation: slot.generation,
                loads: slot.loads_ms.iter().map(|ms| Duration::from_millis(*ms)).collect(),
                deaths: slot.deaths.clone(),
            };
            (name.clone(), memory)
        })
        .collect()
}
