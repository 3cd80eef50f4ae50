//! The table of all cells: every state against every event, each reached or impossible for a reason.

use std::collections::BTreeMap;

use slotd::supervisor::Cell;

/// How often each cell was reached.
pub(crate) type Counts = BTreeMap<Cell, u64>;

/// Every state but `gone`, in which a slot is forgotten within the same call.
pub(crate) const STATES: [&str; 16] = [
    "offline",
    "sizing",
    "queued",
    "spawning",
    "cancelling",
    "starting",
    "ready",
    "unready",
    "draining",
    "stopping",
    "reaping",
    "backoff",
    "failed",
    "seeking",
    "present",
    "parting",
];

/// Everything that a state has an arm for.
pub(crate) const EVENTS: [&str; 25] = [
    "load",
    "load-by-rule",
    "model-came",
    "unload",
    "restart",
    "demand",
    "leave",
    "edited",
    "removed",
    "shutdown",
    "timer-fired",
    "sized",
    "spawned",
    "spawn-failed",
    "progressed",
    "became-ready",
    "became-unready",
    "drained",
    "activity-measured",
    "room-measured",
    "memory-measured",
    "vitals-read",
    "looked",
    "exited",
    "reaped",
];

/// States without a deadline: a timer fires only for a slot that has asked for one.
const TIMELESS: [&str; 9] = [
    "offline",
    "sizing",
    "queued",
    "spawning",
    "cancelling",
    "reaping",
    "failed",
    "seeking",
    "present",
];

fn is_impossible(cell: &Cell) -> bool {
    cell.event == "timer-fired" && TIMELESS.contains(&cell.state)
}

fn table() -> impl Iterator<Item = Cell> {
    STATES.into_iter().flat_map(|state| EVENTS.into_iter().map(move |event| Cell { state, event }))
}

/// How many cells there are to reach.
pub(crate) fn reachable() -> usize {
    table().filter(|cell| !is_impossible(cell)).count()
}

/// Says which cells were missed, or reached though they are not in the table or impossible.
pub(crate) fn faults(counts: &Counts) -> Vec<String> {
    let missed = table()
        .filter(|cell| !is_impossible(cell) && !counts.contains_key(cell))
        .map(|cell| format!("never reached: {} in {}", cell.event, cell.state));
    let wrong = counts
        .keys()
        .filter(|cell| is_impossible(cell) || !table().any(|known| known == **cell))
        .map(|cell| format!("not in the table: {} in {}", cell.event, cell.state));
    missed.chain(wrong).collect()
}

/// The counts as a table for people.
pub(crate) fn print(counts: &Counts) {
    let reached = table().filter(|cell| counts.contains_key(cell)).count();
    println!("cells reached: {reached} of {}", reachable());
    for event in EVENTS {
        let row: Vec<String> = STATES
            .into_iter()
            .map(|state| {
                let count = counts.get(&Cell { state, event }).copied().unwrap_or_default();
                format!("{count:>10}")
            })
            .collect();
        println!("{event:>18} {}", row.join(" "));
    }
    println!("{:>18} {}", "", STATES.map(|state| format!("{state:>10}")).join(" "));
}
