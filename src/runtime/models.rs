//! The models on disk, for the control API.

use std::{ffi::OsString, path::Path, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    engine_task::Tools,
    looks::{Look, Looks},
};
use crate::{
    admin,
    models::{
        gguf, hub_cache_dir,
        inventory::{Headers, Inventory, Lacking, Stores, User, lacking, scan},
        whereabouts,
    },
    spec::profile::{Profile, Pull},
    supervisor::Snapshot,
};

/// How long a look at one model may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long a look at all of them may take: less than whoever asked waits for the answer.
const SCAN_PATIENCE: Duration = Duration::from_secs(100);

/// Makes the look at the models. Looks come one after the other: two at once would read the same.
pub(super) fn inventory(
    tools: &Arc<Tools>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
) -> admin::InventoryReader {
    let turn = Arc::new(Look::default());
    let tools = Arc::clone(tools);
    Arc::new(move || {
        let (tools, turn) = (Arc::clone(&tools), Arc::clone(&turn));
        let snapshot = snapshots.borrow().clone();
        Box::pin(async move {
            let found = turn.at(SCAN_PATIENCE, move || look(&tools, &snapshot)).await;
            found.unwrap_or_else(|| json!(unknown()))
        })
    })
}

/// What is found where the disks do not answer.
fn unknown() -> Inventory {
    let fault = "the disks have not answered in time: it is not known what models there are";
    Inventory { faults: vec![fault.to_owned()], ..Inventory::default() }
}

/// Makes the look at one model. A disk that does not answer says nothing about it: the load will tell.
pub(super) fn lack(tools: &Arc<Tools>) -> admin::LackReader {
    let (tools, looks) = (Arc::clone(tools), Arc::new(Looks::default()));
    Arc::new(move |profile: Arc<Profile>| {
        let tools = Arc::clone(&tools);
        let turn = looks.of(profile.slot.as_str());
        let look = move || {
            // What is missing is fetched by the start itself.
            if profile.pull == Pull::Auto {
                return None;
            }
            lacking_of(&tools, &profile).map(|lacking| json!(lacking))
        };
        Box::pin(async move { turn.at(PATIENCE, look).await.flatten() })
    })
}

/// Tells whether a slot's GGUF model is there and its header does not hold. Blocks on the disk.
pub(super) fn is_damaged(tools: &Tools, profile: &Profile) -> bool {
    let hub = hub_cache_dir(&|name| variable(tools, name)).unwrap_or_default();
    let path = profile.model.as_ref().and_then(|source| whereabouts(source, &hub));
    path.is_some_and(|path| path.is_file() && gguf::read(&path).is_err())
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
