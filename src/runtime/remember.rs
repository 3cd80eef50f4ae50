//! Keeps the state file in step with what is worth remembering over a restart.
//!
//! A full disk never stops a slot: a failed write is told once, tried again, and told again when it
//! works.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    storage::{Place, Storage},
    thrift::Thrift,
};
use crate::{
    config,
    proxy::Uses,
    spec::{
        Bytes, Generation, SlotName,
        death::{Death, Evidence},
        edit::Edits,
        pressure::Source,
        residence::Orders,
    },
    store::{Remembered, SlotMemory, StateDir},
    supervisor::{Memory, SlotView, Snapshot, StateView},
};

/// The shortest time between two writes.
const WRITE_PERIOD: Duration = Duration::from_secs(1);
/// How long after a failed write the next one is tried.
const RETRY_PERIOD: Duration = Duration::from_secs(5);

/// How long the folders of profiles may take to say what is in them.
const FOLDER_PATIENCE: Duration = Duration::from_secs(5);

/// How often uses alone are looked at.
const USES_PERIOD: Duration = Duration::from_mins(1);
/// How long after the last use of a slot its uses say nothing any more.
const USES_AGE: Duration = Duration::from_hours(24);

/// How many deaths of a slot keep the lines that its engine wrote last.
const DEATHS_WITH_LINES: usize = 3;
/// How much of such a line is kept, in characters.
const LINE_CHARS: usize = 300;

/// Writes until `end`; no write is under way when it returns. Returns what is in the file.
pub(super) async fn keep(
    (state, storage, thrift): (Arc<StateDir>, Storage, Arc<Thrift>),
    (mut snapshots, uses): (watch::Receiver<Arc<Snapshot>>, Arc<Uses>),
    mut written: Remembered,
    end: CancellationToken,
) -> Remembered {
    let (mut seen, mut has_failed) = (BTreeSet::new(), false);
    while !end.is_cancelled() {
        let latest = {
            let snapshot = snapshots.borrow_and_update();
            seen.extend(snapshot.slots.keys().cloned());
            merge(&written, &snapshot, (&uses, &seen))
        };
        // Only a write says that a fault is over, also where there is nothing new to write.
        let is_held = thrift.is_on() && is_history_alone(&latest, &written);
        let is_due = has_failed || (latest != written && !is_held);
        let saved = !is_due || save_and_tell(&state, &latest, &storage).await;
        has_failed = !saved;
        if saved && !is_held {
            written = latest;
        }
        let pause = if saved { WRITE_PERIOD } else { RETRY_PERIOD };
        let next = async {
            sleep(pause).await;
            if saved {
                tokio::select! {
                    changed = snapshots.changed() => if changed.is_err() {
                        // The driver has ended: nothing changes any more.
                        pending::<()>().await;
                    },
                    () = sleep(USES_PERIOD) => {}
                }
            }
        };
        tokio::select! {
            () = next => {}
            () = end.cancelled() => {}
        }
    }
    written
}

/// Tells whether all that is new is for people, or a hint: it waits while the disk is nearly full.
fn is_history_alone(latest: &Remembered, written: &Remembered) -> bool {
    let needed = |remembered: &Remembered| {
        let mut needed = remembered.clone();
        for slot in needed.slots.values_mut() {
            (slot.loads_ms, slot.deaths) = Default::default();
            (slot.uses, slot.last_use_unix_ms) = (0, 0);
        }
        needed
    };
    needed(latest) == needed(written)
}

/// Says whether the file was written. A failure is told once, and its end.
async fn save_and_tell(state: &Arc<StateDir>, latest: &Remembered, storage: &Storage) -> bool {
    let saved = save(state, latest.clone()).await;
    let is_news = storage.note(Place::StateFile, state.path().to_owned(), saved.clone().err());
    match &saved {
        Ok(()) if is_news => info!("state file written again"),
        Err(error) if is_news => warn!(%error, "state file not written, slots go on"),
        Ok(()) | Err(_) => {}
    }
    saved.is_ok()
}

/// Writes what the core knew in the end; the daemon ends after it.
pub(super) async fn keep_last(
    state: Arc<StateDir>,
    before: Remembered,
    (memory, uses): (BTreeMap<SlotName, Memory>, &Uses),
) {
    let mut last = before.clone();
    let lasting = memory.iter().filter(|(name, _)| is_lasting(name));
    last.slots.extend(lasting.map(|(name, slot)| {
        let memory = memory_of((slot.generation, slot.rung), &slot.loads, &slot.deaths);
        let (displaced_by, relieved) = (slot.displaced_by.clone(), slot.relieved);
        let memory = SlotMemory { displaced_by, relieved, ..memory };
        (name.clone(), SlotMemory { edits: slot.edits.clone(), orders: slot.orders, ..memory })
    }));
    note_uses(&mut last, uses);
    if last == before {
        return;
    }
    if let Err(error) = save(&state, last).await {
        warn!(%error, "state file not written");
    }
}

async fn save(state: &Arc<StateDir>, latest: Remembered) -> Result<(), String> {
    let state = Arc::clone(state);
    match spawn_blocking(move || state.save(&latest)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{error}: {}", error.source)),
        Err(error) => Err(error.to_string()),
    }
}

/// Slots whose profile is gone stay remembered, so that no generation comes twice; of those that were `seen`
/// and are gone, what was of their profile is not.
fn merge(
    before: &Remembered,
    snapshot: &Snapshot,
    (uses, seen): (&Uses, &BTreeSet<SlotName>),
) -> Remembered {
    let mut latest = before.clone();
    forget_profiles(&mut latest, |slot| seen.contains(slot) && !snapshot.slots.contains_key(slot));
    for (name, slot) in snapshot.slots.iter().filter(|(name, _)| is_lasting(name)) {
        let at = (slot.generation, slot.rung_index);
        let memory = memory_of(at, &slot.loads, &slot.deaths);
        let (displaced_by, relieved) = went_for(slot);
        let memory = SlotMemory { displaced_by, relieved, ..memory };
        let memory = SlotMemory { edits: slot.edits.clone(), orders: slot.orders, ..memory };
        latest.slots.insert(name.clone(), memory);
    }
    note_uses(&mut latest, uses);
    latest
}

/// Tells whether anything of a slot is worth remembering: one that stands in for another has no next life.
fn is_lasting(slot: &SlotName) -> bool {
    slot.stands_in_for().is_none()
}

/// Drops what was of the profiles of slots: their rung, their edits, what a person ordered, and
/// what they went for.
fn forget_profiles(remembered: &mut Remembered, is_gone: impl Fn(&SlotName) -> bool) {
    for (_, memory) in remembered.slots.iter_mut().filter(|(slot, _)| is_gone(slot)) {
        (memory.rung, memory.edits, memory.orders) = (0, Edits::default(), Orders::default());
        (memory.displaced_by, memory.relieved) = (None, None);
    }
}

/// Drops what was of profiles whose files were taken away while no daemon ran. One with a fault is there; and
/// nothing is dropped where a folder cannot be read, or does not say in time what is in it.
pub(super) async fn forget_gone(remembered: &mut Remembered, folders: Vec<PathBuf>) {
    let listing = spawn_blocking(move || config::slots_on_disk(&folders));
    let Ok(Ok(Some(there))) = timeout(FOLDER_PATIENCE, listing).await else { return };
    forget_profiles(remembered, |slot| !there.contains(slot));
}

/// Says for whom, or for what, a slot is down that would come back.
fn went_for(slot: &SlotView) -> (Option<SlotName>, Option<(Source, Bytes)>) {
    let is_down = matches!(
        slot.state,
        StateView::Offline
            | StateView::Draining { .. }
            | StateView::Stopping { .. }
            | StateView::Reaping { .. }
    );
    let relieved = slot.relieved.as_ref().map(|one| (one.source, one.took));
    (slot.displaced_by.clone().filter(|_| is_down), relieved)
}

fn note_uses(remembered: &mut Remembered, uses: &Uses) {
    for (name, (count, last_unix_ms)) in uses.all() {
        if let Some(slot) = remembered.slots.get_mut(&name) {
            (slot.uses, slot.last_use_unix_ms) = (count, last_unix_ms);
        }
    }
}

/// Takes up how often slots were used, where that was not too long ago.
pub(super) fn recall_uses(remembered: &Remembered, uses: &Uses, now_unix_ms: u64) {
    for (name, slot) in &remembered.slots {
        let age = Duration::from_millis(now_unix_ms.saturating_sub(slot.last_use_unix_ms));
        if slot.uses > 0 && age <= USES_AGE {
            uses.recall(name, (slot.uses, slot.last_use_unix_ms));
        }
    }
}

fn memory_of(
    (generation, rung): (Generation, usize),
    loads: &[Duration],
    deaths: &[Arc<Death>],
) -> SlotMemory {
    let milliseconds = |load: &Duration| u64::try_from(load.as_millis()).unwrap_or(u64::MAX);
    SlotMemory {
        generation,
        loads_ms: loads.iter().map(milliseconds).collect(),
        deaths: shortened(deaths),
        rung,
        edits: Edits::default(),
        orders: Orders::default(),
        uses: 0,
        last_use_unix_ms: 0,
        displaced_by: None,
        relieved: None,
    }
}

/// The last lines of engines make up nearly all of the file: few are kept, and those short.
fn shortened(deaths: &[Arc<Death>]) -> Vec<Arc<Death>> {
    let old = deaths.len().saturating_sub(DEATHS_WITH_LINES);
    let shorten = |(at, death): (usize, &Arc<Death>)| {
        let mut death = Arc::clone(death);
        if let Some(evidence) = &death.evidence
            && (at < old || evidence.last_lines.iter().any(|line| line.len() > LINE_CHARS))
        {
            let evidence = Evidence {
                last_lines: if at < old {
                    Vec::new()
                } else {
                    evidence
                        .last_lines
                        .iter()
                        .map(|line| line.chars().take(LINE_CHARS).collect())
                        .collect()
                },
                ..evidence.clone()
            };
            death = Arc::new(Death { evidence: Some(evidence), ..(*death).clone() });
        }
        death
    };
    deaths.iter().enumerate().map(shorten).collect()
}

/// Reads the core's form of what was remembered.
pub(super) fn recall(remembered: &Remembered, uses: &Uses) -> BTreeMap<SlotName, Memory> {
    let uses = uses.all();
    remembered
        .slots
        .iter()
        .map(|(name, slot)| {
            let memory = Memory {
                generation: slot.generation,
                loads: slot.loads_ms.iter().map(|ms| Duration::from_millis(*ms)).collect(),
                deaths: slot.deaths.clone(),
                rung: slot.rung,
                edits: slot.edits.clone(),
                orders: slot.orders,
                uses: uses.get(name).map_or(0, |(count, _)| *count),
                displaced_by: slot.displaced_by.clone(),
                relieved: slot.relieved,
            };
            (name.clone(), memory)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::task::JoinSet;

    use super::*;
    use crate::{
        spec::{Monotime, residence::StayOrder},
        supervisor::{Event, Policy, Supervisor},
    };

    const HOUR: u64 = 3_600_000;

    #[test]
    fn uses_are_remembered_for_a_day() {
        let of =
            |uses, last_use_unix_ms| SlotMemory { uses, last_use_unix_ms, ..SlotMemory::default() };
        let now = 100 * HOUR;
        let mut remembered = Remembered::default();
        for (name, memory) in [
            ("lately", of(3, now - 2 * HOUR)),
            ("long-ago", of(9, now - 25 * HOUR)),
            ("never", SlotMemory::default()),
        ] {
            remembered.slots.insert(name.parse().unwrap(), memory);
        }
        let uses = Uses::new(|| 0);
        recall_uses(&remembered, &uses, now);
        let lately: SlotName = "lately".parse().unwrap();
        assert_eq!(uses.all(), BTreeMap::from([(lately.clone(), (3, now - 2 * HOUR))]));
        assert_eq!(recall(&remembered, &uses)[&lately].uses, 3);
        let nobody = (&uses, &BTreeSet::new());
        let kept = merge(&Remembered::default(), &Snapshot::default(), nobody);
        assert_eq!(kept, Remembered::default(), "what was never there is not kept");
        assert_eq!(merge(&remembered, &Snapshot::default(), nobody).slots[&lately].uses, 3);
    }

    fn ordered(generation: u64) -> SlotMemory {
        let orders = Orders { pinned: Some(true), priority: Some(3) };
        let generation = Generation(generation);
        let displaced_by = Some("coder".parse().unwrap());
        let relieved = Some((Source::Memory, Bytes(5)));
        let gone = SlotMemory { displaced_by, relieved, ..SlotMemory::default() };
        SlotMemory { generation, orders, rung: 2, ..gone }
    }

    #[tokio::test]
    async fn what_was_of_a_profile_goes_with_its_file_and_a_fault_takes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dirs = vec![folder.path().join("profiles")];
        let chat: SlotName = "chat".parse().unwrap();
        let before = Remembered {
            slots: BTreeMap::from([(chat.clone(), ordered(7))]),
            ..Remembered::default()
        };
        let mut remembered = before.clone();
        forget_gone(&mut remembered, dirs.clone()).await;
        assert_eq!(remembered, before, "a folder that cannot be read says nothing");
        std::fs::create_dir(&dirs[0]).unwrap();
        let file = dirs[0].join("chat.toml");
        std::fs::write(&file, "this is = no profile").unwrap();
        forget_gone(&mut remembered, dirs.clone()).await;
        assert_eq!(remembered, before, "a file with a fault is there");
        std::fs::remove_file(file).unwrap();
        forget_gone(&mut remembered, dirs).await;
        let left = SlotMemory { generation: Generation(7), ..SlotMemory::default() };
        assert_eq!(remembered.slots[&chat], left, "the generation alone is kept");
    }

    #[test]
    fn what_was_of_a_profile_that_is_removed_is_not_written_again() {
        let chat: SlotName = "chat".parse().unwrap();
        let before = Remembered {
            slots: BTreeMap::from([(chat.clone(), ordered(7))]),
            ..Remembered::default()
        };
        let (uses, nobody) = (Uses::new(|| 0), BTreeSet::new());
        let unread = merge(&before, &Snapshot::default(), (&uses, &nobody));
        assert_eq!(unread, before, "its profile may not be read yet");
        let seen = BTreeSet::from([chat.clone()]);
        let removed = merge(&before, &Snapshot::default(), (&uses, &seen));
        let left = SlotMemory { generation: Generation(7), ..SlotMemory::default() };
        assert_eq!(removed.slots[&chat], left);
    }

    /// A core that knows one slot.
    fn core_with(slot: &SlotName) -> Supervisor {
        let value = json!({
            "slot": slot, "source": "chat.toml", "engine": "Auto", "args": [], "env": {},
            "aliases": [], "capabilities": [], "autostart": false, "essential": false,
            "max_restarts": 3,
            "start_timeout": { "secs": 60, "nanos": 0 }, "stop_timeout": { "secs": 9, "nanos": 0 },
        });
        let profile = Arc::new(serde_json::from_value(value).unwrap());
        let mut core = Supervisor::new(Policy::default(), 7, BTreeMap::new());
        let profiles = BTreeMap::from([(slot.clone(), profile)]);
        core.handle(Monotime::default(), Event::ProfilesChanged { profiles }, &mut Vec::new());
        core
    }

    /// The file was told to take no writes until the next change.
    #[tokio::test(start_paused = true)]
    async fn a_fault_of_the_state_file_ends_also_where_there_is_nothing_new_to_write() {
        let folder = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(folder.path(), 1).unwrap());
        let chat: SlotName = "chat".parse().unwrap();
        let mut core = core_with(&chat);
        let mut after = |order| {
            let slot = chat.clone();
            core.handle(Monotime::default(), Event::StayOrdered { slot, order }, &mut Vec::new());
            core.snapshot()
        };
        let (pinned, unpinned) = (after(StayOrder::Pin), after(StayOrder::Unpin));
        let uses = Arc::new(Uses::new(|| 0));
        let written = merge(&Remembered::default(), &unpinned, (&uses, &BTreeSet::new()));
        let (publisher, snapshots) = watch::channel(pinned);
        let (storage, end) = (Storage::default(), CancellationToken::new());
        let mut shown = storage.subscribe();
        // Nothing can be written in its place.
        let obstacle = folder.path().join("state.json.new");
        std::fs::create_dir(&obstacle).unwrap();
        let mut keeping = JoinSet::new();
        keeping.spawn(keep(
            (state, storage, Arc::default()),
            (snapshots, uses),
            written.clone(),
            end.clone(),
        ));
        shown.wait_for(|faults| !faults.is_empty()).await.unwrap();
        publisher.send_replace(unpinned);
        std::fs::remove_dir(&obstacle).unwrap();
        shown.wait_for(Vec::is_empty).await.unwrap();
        end.cancel();
        assert_eq!(keeping.join_next().await.unwrap().unwrap(), written);
    }

    #[test]
    fn what_a_restart_needs_is_no_history() {
        let of = |slot: SlotMemory| {
            let slots = BTreeMap::from([("chat".parse().unwrap(), slot)]);
            Remembered { slots, ..Remembered::default() }
        };
        let before = of(SlotMemory::default());
        let hints = SlotMemory { uses: 3, loads_ms: vec![7], ..SlotMemory::default() };
        assert!(is_history_alone(&of(hints), &before));
        let started = SlotMemory { generation: Generation(2), ..SlotMemory::default() };
        assert!(!is_history_alone(&of(started), &before));
    }
}
