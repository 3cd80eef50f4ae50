//! Looks at the memory of live engines now and then, and tells what changed enough to be news.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use crate::{
    mailbox::Mailbox,
    sensor::Processes,
    spec::{Bytes, Generation, SlotName},
    supervisor::{ChildEvent, SlotEvent, Snapshot, StateView},
};

/// The time between two looks.
const PERIOD: Duration = Duration::from_secs(5);
/// A change smaller than this is not news.
const STEP: u64 = 4 << 20;

/// Looks until it is dropped. Nothing is read while no engine runs.
#[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
pub(super) async fn measure(
    mailbox: Mailbox,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
) -> Infallible {
    let mut processes = Processes::new();
    let mut told: BTreeMap<(SlotName, Generation), u64> = BTreeMap::new();
    loop {
        let engines = engines(&snapshots.borrow_and_update());
        told.retain(|child, _| engines.contains_key(child));
        if engines.is_empty() {
            if snapshots.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            continue;
        }
        let looked = spawn_blocking(move || {
            processes.refresh();
            processes
        });
        // The reader is lost only when its thread panicked; begin afresh.
        processes = looked.await.unwrap_or_default();
        for (child, pid) in engines {
            let Some(rss) = processes.resident(pid) else { continue };
            let before = told.get(&child).copied().unwrap_or_default();
            if rss.0.abs_diff(before) >= STEP {
                tell(&mailbox, &child, rss).await;
                told.insert(child, rss.0);
            }
        }
        sleep(PERIOD).await;
    }
}

async fn tell(mailbox: &Mailbox, (slot, generation): &(SlotName, Generation), rss: Bytes) {
    let event = ChildEvent::MemoryMeasured { rss };
    mailbox.tell_slot(slot, SlotEvent::Child { generation: *generation, event }).await;
}

fn engines(snapshot: &Snapshot) -> BTreeMap<(SlotName, Generation), u32> {
    let running = snapshot.slots.iter().filter_map(|(name, slot)| match slot.state {
        StateView::Ready { pid }
        | StateView::Unready { pid }
        | StateView::Starting { pid: Some(pid), .. } => {
            Some(((name.clone(), slot.generation), pid))
        }
        StateView::Offline
        | StateView::Queued { .. }
        | StateView::Starting { pid: None, .. }
        | StateView::Draining { .. }
        | StateView::Stopping { .. }
        | StateView::Reaping { .. }
        | StateView::Backoff { .. }
        | StateView::Failed
        | StateView::Absent { .. }
        | StateView::Coming { .. }
        | StateView::Present { .. }
        | StateView::Parting => None,
    });
    running.collect()
}
