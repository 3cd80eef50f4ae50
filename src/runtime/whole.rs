//! Starts slots that failed for want of their model, once it is there.
//!
//! Requests are told meanwhile what has to be fetched; no start is tried for them. Looks are at the disk
//! alone, and only while there is such a slot. A disk that does not answer keeps no other slot waiting.

use std::{collections::BTreeMap, convert::Infallible, future::pending, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{sync::watch, time::sleep};
use tracing::info;

use super::{
    engine_task::Tools,
    looks::Looks,
    models::{self, PATIENCE},
};
use crate::{
    mailbox::Mailbox,
    spec::{SlotName, death::Verdict, profile::Profile},
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
pub(super) async fn watch(
    tools: Arc<Tools>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    mailbox: Mailbox,
) -> Infallible {
    let is_lacking = move |profile: &Profile| models::lacking_of(&tools, profile).is_some();
    follow(Arc::new(is_lacking), (PERIOD, PATIENCE), snapshots, mailbox).await
}

/// Says whether a slot's model has to be fetched. Blocks on the disk.
type IsLacking = dyn Fn(&Profile) -> bool + Send + Sync;

#[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
async fn follow(
    is_lacking: Arc<IsLacking>,
    (period, patience): (Duration, Duration),
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mailbox: Mailbox,
) -> Infallible {
    let looks = Looks::default();
    let mut seen: BTreeMap<SlotName, Seen> = BTreeMap::new();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        seen.retain(|slot, _| {
            let view = snapshot.slots.get(slot);
            view.is_some_and(|view| !matches!(view.state, StateView::Ready { .. }))
        });
        let waiting = snapshot.slots.iter().filter(|(_, view)| lacks_its_model(view));
        let looking = waiting.map(|(slot, view)| {
            let (look, is_lacking) = (looks.of(slot.as_str()), Arc::clone(&is_lacking));
            let profile = Arc::clone(&view.profile);
            async move { (slot, look.at(patience, move || is_lacking(&profile)).await) }
        });
        let found = join_all(looking).await;
        for (slot, is_lacking) in &found {
            // Where that cannot be found out it stays as it is.
            let Some(is_lacking) = *is_lacking else { continue };
            let now = if is_lacking { Seen::Lacking } else { Seen::Tried };
            let before = seen.insert((*slot).clone(), now);
            if !is_lacking && before != Some(Seen::Tried) {
                info!(%slot, "model came to be whole, slot is started");
                mailbox.tell_slot(slot, SlotEvent::ModelBecameWhole).await;
            }
        }
        if !found.is_empty() {
            sleep(period).await;
        } else if snapshots.changed().await.is_err() {
            // The driver has ended: nothing changes any more.
            pending::<()>().await;
        }
    }
}

fn lacks_its_model(view: &SlotView) -> bool {
    let is_lacking = |verdict| verdict == Verdict::ModelNotFetched;
    view.state == StateView::Failed
        && view.deaths.last().is_some_and(|death| is_lacking(death.verdict))
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use serde_json::json;
    use tokio::task::JoinSet;

    use super::*;
    use crate::{
        mailbox,
        spec::{Generation, Monotime, WaiterId},
        supervisor::{ChildEvent, Event, Policy, Supervisor},
    };

    fn profile(slot: &str) -> Arc<Profile> {
        let value = json!({
            "slot": slot, "source": "slot.toml", "engine": "Auto", "args": [], "env": {},
            "aliases": [], "capabilities": [], "autostart": false, "essential": false,
            "max_restarts": 3,
            "start_timeout": { "secs": 60, "nanos": 0 }, "stop_timeout": { "secs": 9, "nanos": 0 },
        });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    /// Slots that have failed for want of their models.
    fn failed(names: [&str; 2]) -> Arc<Snapshot> {
        let mut core = Supervisor::new(Policy::default(), 7, BTreeMap::new());
        let mut tell = |event| core.handle(Monotime::default(), event, &mut Vec::new());
        let profiles = names.map(|name| (name.parse().unwrap(), profile(name)));
        tell(Event::ProfilesChanged { profiles: profiles.into_iter().collect() });
        for name in names {
            let slot: SlotName = name.parse().unwrap();
            let (verdict, reason) = (Verdict::ModelNotFetched, "it is not there".to_owned());
            let event = ChildEvent::SpawnFailed { verdict, reason, at_unix_ms: 7, engine: None };
            let event = SlotEvent::Child { generation: Generation(1), event };
            let demanded = SlotEvent::Demanded { waiter: WaiterId(1) };
            tell(Event::Slot { slot: slot.clone(), event: demanded });
            tell(Event::Slot { slot, event });
        }
        core.snapshot()
    }

    /// Slots were looked at one after the other, for as long as each took.
    #[tokio::test]
    async fn a_model_on_a_disk_that_hangs_keeps_no_other_slot_down() {
        let (go, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let is_lacking = move |profile: &Profile| {
            profile.slot.as_str() == "a-hangs" && wait.lock().unwrap().recv().is_err()
        };
        let (_publisher, snapshots) = watch::channel(failed(["a-hangs", "b-whole"]));
        let (mailbox, mut inbox) = mailbox::channel();
        let times = (Duration::from_millis(1), Duration::from_millis(20));
        let mut following = JoinSet::new();
        following.spawn(follow(Arc::new(is_lacking), times, snapshots, mailbox));
        let event = inbox.next().await.unwrap();
        let slot = "b-whole".parse().unwrap();
        assert_eq!(event, Event::Slot { slot, event: SlotEvent::ModelBecameWhole });
        drop(go);
        following.shutdown().await;
    }
}
