//! The models on disk, for the control API.

use std::{
    ffi::OsString,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{sync::watch, task::spawn_blocking, time::timeout};

use super::engine_task::Tools;
use crate::{
    admin,
    models::{
        hub_cache_dir,
        inventory::{Headers, Lacking, Stores, User, lacking, scan},
        whereabouts,
    },
    spec::profile::{Profile, Pull},
    supervisor::Snapshot,
};

/// How long a look at one model may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes the look at the models. Looks come one after the other: two at once would read the same.
pub(super) fn inventory(
    tools: &Arc<Tools>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
) -> admin::InventoryReader {
    let turn = Arc::new(Mutex::new(()));
    let tools = Arc::clone(tools);
    Arc::new(move || {
        let (tools, turn) = (Arc::clone(&tools), Arc::clone(&turn));
        let snapshot = snapshots.borrow().clone();
        let looking = spawn_blocking(move || {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            look(&tools, &snapshot)
        });
        // A look that panicked is a bug; whoever asked hears that nothing is known.
        Box::pin(async move { looking.await.unwrap_or_else(|_| json!({})) })
    })
}

/// Makes the look at one model. A disk that does not answer says nothing about it: the load will tell.
pub(super) fn lack(tools: &Arc<Tools>) -> admin::LackReader {
    let tools = Arc::clone(tools);
    Arc::new(move |profile: Arc<Profile>| {
        let tools = Arc::clone(&tools);
        let looking = spawn_blocking(move || {
            // What is missing is fetched by the start itself.
            if profile.pull == Pull::Auto {
                return None;
            }
            lacking_of(&tools, &profile).map(|lacking| json!(lacking))
        });
        Box::pin(async move { timeout(PATIENCE, looking).await.ok()?.ok().flatten() })
    })
}

/// Says what a slot's model lacks. Blocks on the disk.
pub(super) fn lacking_of(tools: &Tools, profile: &Profile) -> Option<Lacking> {
    let hub = hub_cache_dir(&|name| variable(tools, name)).unwrap_or_default();
    lacking(profile.model.as_ref()?, &hub)
}

fn variable(tools: &Tools, name: &str) -> Option<OsString> {
    let mut all = tools.environment.iter();
    all.find(|(found, _)| found == name).map(|(_, value)| value.clone())
}

fn look(tools: &Tools, snapshot: &Snapshot) -> Value {
    let variable = |name: &str| variable(tools, name);
    let stores = Stores::of(&variable, &tools.settings.model_dirs);
    let mut headers = Headers::load(&tools.settings.cache_dir);
    let hub = hub_cache_dir(&variable).unwrap_or_default();
    let found = scan(&stores, &mut headers, &users(snapshot, &hub));
    headers.save();
    json!(found)
}

fn users(snapshot: &Snapshot, hub: &Path) -> Vec<User> {
    let users = snapshot.slots.iter().filter_map(|(slot, view)| {
        let path = whereabouts(view.profile.model.as_ref()?, hub)?;
        Some(User { slot: slot.clone(), path, is_loaded: view.state.pid().is_some() })
    });
    users.collect()
}
