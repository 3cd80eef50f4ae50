//! Publishes the core's snapshot: to the request path, the control API, the log, the service
//! manager and the state file.

use std::{collections::BTreeMap, mem::discriminant, sync::Arc};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{
    clock::{Clock, unix_ms},
    service_manager,
};
use crate::{
    admin::{EventObject, News},
    proxy::{Gate, RouteTable},
    spec::{SlotName, death::Verdict, edit::Rejected},
    supervisor::{SlotView, Snapshot, StateView, Wait},
};

/// Where snapshots go.
#[derive(Debug)]
pub(super) struct Publisher {
    routes: Arc<ArcSwap<RouteTable>>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    clock: Clock,
    news: News,
}

impl Publisher {
    /// Makes a publisher whose readers see an empty snapshot first.
    pub(super) fn new(
        routes: Arc<ArcSwap<RouteTable>>,
        clock: Clock,
        news: News,
    ) -> (Self, watch::Receiver<Arc<Snapshot>>) {
        let (snapshots, receiver) = watch::channel(Arc::new(Snapshot::default()));
        (Self { routes, snapshots, clock, news }, receiver)
    }

    /// Publishes `snapshot` if it is news.
    pub(super) fn publish(&self, snapshot: &Arc<Snapshot>, gates: &BTreeMap<SlotName, Arc<Gate>>) {
        let before = Arc::clone(&self.snapshots.borrow());
        if before.generation == snapshot.generation {
            return;
        }
        let table = RouteTable::build(snapshot, gates).timed(|at| self.clock.instant(at));
        self.routes.store(Arc::new(table));
        log_changes(&before, snapshot);
        self.tell_changes(&before, snapshot);
        service_manager::status(&before, snapshot);
        self.snapshots.send_replace(Arc::clone(snapshot));
    }
}

impl Publisher {
    /// One piece of news for each change of state.
    fn tell_changes(&self, before: &Snapshot, after: &Snapshot) {
        for (name, slot) in &after.slots {
            let to = slot.state.as_str();
            let from = before.slots.get(name).map(|earlier| earlier.state.as_str());
            if from == Some(to) {
                continue;
            }
            let text = match &slot.relieved {
                Some(relieved) if to == "draining" => {
                    format!("{name} is {to}: the machine runs short of {}", relieved.source)
                }
                Some(_) | None => format!("{name} is {to}"),
            };
            let news = EventObject::new("slot-changed", unix_ms(), text);
            let (slot, to) = (Some(name.clone()), Some(to.to_owned()));
            EventObject { slot, from: from.map(str::to_owned), to, ..news }.tell(&self.news);
        }
    }
}

fn log_failure(name: &SlotName, slot: &SlotView) {
    let generation = slot.generation;
    let reason = slot.deaths.last().map(|death| death.reason.as_str());
    if name.is_stand_in() {
        // Whether it starts is what was to be found out.
        warn!(slot = %name, %generation, reason, "slot failed");
    } else {
        error!(slot = %name, %generation, reason, "slot failed");
    }
}

/// One line for each change of state, one for each death.
fn log_changes(before: &Snapshot, after: &Snapshot) {
    for (name, slot) in &after.slots {
        let earlier = before.slots.get(name);
        if earlier.is_some_and(|earlier| Arc::ptr_eq(earlier, slot)) {
            continue;
        }
        let earlier = earlier.map(AsRef::as_ref);
        log_deaths(name, earlier, slot);
        log_rejection(name, earlier, slot);
        let state = slot.state.as_str();
        if earlier.is_some_and(|earlier| is_told(&earlier.state, &slot.state)) {
            continue;
        }
        let generation = slot.generation;
        match &slot.state {
            StateView::Ready { pid } => {
                let elapsed_ms = slot.loads.last().map(std::time::Duration::as_millis);
                info!(slot = %name, %generation, pid, elapsed_ms, "slot became ready");
            }
            StateView::Absent { reason } => {
                info!(slot = %name, %generation, state, reason, "slot changed state");
            }
            StateView::Present { .. } => info!(slot = %name, %generation, "slot became ready"),
            StateView::Failed => log_failure(name, slot),
            StateView::Queued {
                wait: wait @ (Wait::Never { .. } | Wait::TooLarge { .. }), ..
            } => {
                warn!(slot = %name, state, reason = wait.sentence(), "slot does not fit");
            }
            StateView::Queued { wait: wait @ Wait::Skipped { .. }, .. } => {
                info!(slot = %name, state, reason = wait.sentence(), "slot skipped");
            }
            StateView::Queued { wait: wait @ (Wait::Turn { .. } | Wait::Room { .. }), .. } => {
                info!(slot = %name, state, reason = wait.sentence(), "slot waits for memory");
            }
            StateView::Starting { .. }
            | StateView::Queued { .. }
            | StateView::Offline
            | StateView::Unready { .. }
            | StateView::Draining { .. }
            | StateView::Stopping { .. }
            | StateView::Reaping { .. }
            | StateView::Backoff { .. }
            | StateView::Coming { .. }
            | StateView::Parting => {
                info!(slot = %name, %generation, state, "slot changed state");
            }
        }
    }
    for name in before.slots.keys().filter(|name| !after.slots.contains_key(*name)) {
        info!(slot = %name, "slot removed");
    }
}

/// Tells whether a state is no news after another one: what a slot in line waits for is, once it is known.
fn is_told(earlier: &StateView, now: &StateView) -> bool {
    if let (StateView::Queued { wait: earlier, .. }, StateView::Queued { wait: now, .. }) =
        (earlier, now)
    {
        let is_settled = !matches!(now, Wait::Look | Wait::Leaving { .. } | Wait::Spared { .. });
        return !is_settled || discriminant(earlier) == discriminant(now);
    }
    earlier.as_str() == now.as_str()
}

/// Once for each edit that failed, and once for one that a daemon begins with.
fn log_rejection(name: &SlotName, earlier: Option<&SlotView>, slot: &SlotView) {
    let Some(rejected) = &slot.edits.rejected else { return };
    let known = earlier.and_then(|earlier| earlier.edits.rejected.as_ref());
    if known.is_none_or(|known| known.generation != rejected.generation) {
        let Rejected { generation, verdict, reason, .. } = rejected;
        warn!(slot = %name, %generation, %verdict, reason, "edit failed, previous profile in force");
    }
}

fn log_deaths(name: &SlotName, earlier: Option<&SlotView>, slot: &SlotView) {
    let Some(death) = slot.deaths.last() else { return };
    let known = earlier.and_then(|earlier| earlier.deaths.last());
    let is_known = match earlier {
        // What an earlier life of the daemon remembered is no news.
        None => true,
        Some(_) => known.is_some_and(|known| known.generation == death.generation),
    };
    if is_known {
        return;
    }
    let (generation, verdict, reason) = (death.generation, death.verdict, death.reason.as_str());
    let uptime_ms = death.ran_for.as_millis();
    if verdict == Verdict::StoppedByUs {
        info!(slot = %name, %generation, %verdict, reason, uptime_ms, "engine stopped");
    } else if slot.profile.essential {
        error!(slot = %name, %generation, %verdict, reason, uptime_ms, "engine died");
    } else {
        warn!(slot = %name, %generation, %verdict, reason, uptime_ms, "engine died");
    }
}
