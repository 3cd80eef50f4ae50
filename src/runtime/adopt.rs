//! Engines that an earlier daemon has left: found, asked, and taken over without a reload.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::engine_task::Tools;
use crate::{
    engine::Endpoint,
    probe::{Health, Probe},
    process::{self, Child, Examined, Proven},
    spec::SlotName,
    store::{EngineRecord, OpenFault, Remembered, StateDir},
    supervisor::StopSignal,
};

/// How long an engine may take to answer as the one that it should be.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long between two questions.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the end of one that does not answer is waited for.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A recorded engine that lives, proven to be the recorded one.
#[derive(Debug)]
pub(super) struct Found {
    record: EngineRecord,
    proven: Proven,
    is_wanted: bool,
}

/// An engine to go on with.
#[derive(Debug)]
pub(super) struct Adopted {
    pub(super) record: EngineRecord,
    pub(super) child: Child,
}

impl Found {
    /// Returns its cgroup directories.
    pub(super) fn cgroups(&self) -> Vec<PathBuf> {
        self.proven.cgroups()
    }
}

/// Finds the recorded engines that live. Sends nothing to anybody.
///
/// # Errors
/// [`OpenFault::Newer`] when a record is of a newer slotd.
pub(super) fn find(
    state: &StateDir,
    remembered: &Remembered,
    now_unix_ms: u64,
) -> Result<Vec<Found>, OpenFault> {
    let read = state.engines(now_unix_ms)?;
    for (path, error) in read.set_aside {
        warn!(path = %path.display(), %error, "engine record set aside");
    }
    let mut found: Vec<Found> = Vec::new();
    for record in read.records {
        let (slot, generation) = (&record.slot, record.generation);
        match process::examine(&record.identity, slot, generation) {
            Examined::Ours(proven) => found.push(Found { record, proven, is_wanted: true }),
            Examined::Gone => {
                info!(%slot, %generation, "engine of an earlier daemon is gone");
                forget(state, &record);
            }
            Examined::Unproven(reason) => {
                let pid = record.identity.pid;
                warn!(%slot, %generation, pid, reason, "recorded engine was not found and nothing was touched");
                forget(state, &record);
            }
        }
    }
    choose(&mut found, remembered);
    Ok(found)
}

/// At most one a slot: the latest, unless a later one is known to have come and gone.
fn choose(found: &mut [Found], remembered: &Remembered) {
    let mut latest: BTreeMap<SlotName, _> =
        remembered.slots.iter().map(|(slot, memory)| (slot.clone(), memory.generation)).collect();
    for Found { record, .. } in &*found {
        let known = latest.entry(record.slot.clone()).or_default();
        *known = record.generation.max(*known);
    }
    for engine in found {
        engine.is_wanted = latest.get(&engine.record.slot) == Some(&engine.record.generation);
    }
}

/// Takes over those that answer as they should; ends the others, which are proven to be ours.
pub(super) async fn adopt(tools: &Arc<Tools>, found: Vec<Found>) -> Vec<Adopted> {
    let adopting = found.into_iter().map(|engine| adopt_one(tools, engine));
    join_all(adopting).await.into_iter().flatten().collect()
}

async fn adopt_one(tools: &Arc<Tools>, found: Found) -> Option<Adopted> {
    let Found { record, proven, is_wanted } = found;
    let answers = is_wanted && answers(&record, &proven).await;
    let (slot, generation, pid) = (record.slot.clone(), record.generation, record.identity.pid);
    let child = take_over(tools, &record, proven);
    if answers {
        info!(%slot, %generation, pid, "engine of an earlier daemon adopted");
        return Some(Adopted { record, child });
    }
    warn!(%slot, %generation, pid, "engine of an earlier daemon did not answer as it should and is ended");
    end(child).await;
    forget(&tools.state, &record);
    None
}

fn take_over(tools: &Tools, record: &EngineRecord, proven: Proven) -> Child {
    let (slot, generation) = (&record.slot, record.generation);
    // A file is removed in the end only where this daemon itself would have put it.
    let own = tools.settings.engine_socket(slot, generation);
    let socket = (record.endpoint == Endpoint::Unix(own.clone())).then_some(own);
    tools.spawner.adopt((slot, generation), proven, socket)
}

async fn end(mut child: Child) {
    child.stop_handle().signal(StopSignal::Kill);
    if timeout(END_LIMIT, child.reap()).await.is_err() {
        warn!(pid = child.pid(), "engine of an earlier daemon takes long to end");
    }
}

/// Tells whether the engine answers on its private address, under its slot's name.
async fn answers(record: &EngineRecord, proven: &Proven) -> bool {
    if let Endpoint::Unix(path) = &record.endpoint {
        let (path, pid) = (path.clone(), proven.pid());
        // Connecting may block where an engine has stopped to accept.
        let asking = spawn_blocking(move || process::listens_on(pid, &path));
        if !matches!(timeout(PATIENCE, asking).await, Ok(Ok(true))) {
            return false;
        }
    }
    let probe = Probe::new(&record.endpoint, record.kind, record.slot.as_str());
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        match probe.look(PATIENCE).await {
            Health::Ready => return true,
            Health::Impostor { .. } => return false,
            Health::Loading { .. }
            | Health::Refused
            | Health::NotReady { .. }
            | Health::Unknown => {
                sleep(PAUSE).await;
            }
        }
    }
    false
}

fn forget(state: &StateDir, record: &EngineRecord) {
    if let Err(error) = state.forget_engine(&record.slot, record.generation) {
        warn!(slot = %record.slot, generation = %record.generation, %error, "engine record not removed");
    }
}
