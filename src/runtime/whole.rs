//! Starts slots that failed for want of their model, once it is there.
//!
//! Requests are told meanwhile what has to be fetched; no start is tried for them. Looks are at the disk
//! alone, and only while there is such a slot.

use std::{collections::BTreeMap, convert::Infallible, future::pending, sync::Arc, time::Duration};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};
use tracing::info;

use super::{engine_task::Tools, models};
use crate::{
    mailbox::Mailbox,
    spec::{
        SlotName,
        death::Verdict,
        profile::{ModelSource, Profile},
    },
    supervisor::{SlotEvent, SlotView, Snapshot, StateView},
};

/// The time between two looks at a model that is not whole.
const PERIOD: Duration = Duration::from_secs(2);

/// What was seen of the model of a slot that has failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Seen {
    Lacking,
    /// It was whole, and the slot was started for that: if it fails again, something else is wrong.
    Tried,
}

/// Looks until it is dropped.
#[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
pub(super) async fn watch(
    tools: Arc<Tools>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mailbox: Mailbox,
) -> Infallible {
    let mut seen: BTreeMap<SlotName, Seen> = BTreeMap::new();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        seen.retain(|slot, _| {
            let view = snapshot.slots.get(slot);
            view.is_some_and(|view| !matches!(view.state, StateView::Ready { .. }))
        });
        let mut is_waiting = false;
        for (slot, view) in snapshot.slots.iter().filter(|(_, view)| lacks_its_model(view)) {
            is_waiting = true;
            let Some(is_lacking) = look(&tools, Arc::clone(&view.profile)).await else { continue };
            let before = seen.get(slot).copied();
            seen.insert(slot.clone(), if is_lacking { Seen::Lacking } else { Seen::Tried });
            if !is_lacking && before != Some(Seen::Tried) {
                info!(%slot, "model came to be whole, slot is started");
                mailbox.tell_slot(slot, SlotEvent::LoadRequested).await;
            }
        }
        if is_waiting {
            sleep(PERIOD).await;
        } else if snapshots.changed().await.is_err() {
            // The driver has ended: nothing changes any more.
            pending::<()>().await;
        }
    }
}

fn lacks_its_model(view: &SlotView) -> bool {
    let is_missing = |verdict| verdict == Verdict::MissingFile;
    view.state == StateView::Failed
        && matches!(view.profile.model, Some(ModelSource::Hub { .. }))
        && view.deaths.last().is_some_and(|death| is_missing(death.verdict))
}

/// Says whether something has to be fetched; `None` where that cannot be found out.
async fn look(tools: &Arc<Tools>, profile: Arc<Profile>) -> Option<bool> {
    let tools = Arc::clone(tools);
    spawn_blocking(move || models::lacking_of(&tools, &profile).is_some()).await.ok()
}
