//! What runs, by `/proc`: never two engines of one slot, nothing left in the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Arc,
    time::Duration,
};

use tokio::time::sleep;

use super::Shared;

/// A process that carries the nonce of this run in its environment.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// The engine's slot and generation, for an engine itself.
    pub(crate) engine: Option<(String, u64)>,
}

/// Looks at all that runs because of this run, zombies not counted.
pub(crate) fn of_run(nonce: &str) -> Vec<Process> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let environment = String::from_utf8_lossy(&read("environ")).into_owned();
        let is_ours =
            environment.split('\0').any(|line| line.strip_prefix("SLOTD_CHAOS=") == Some(nonce));
        let status = String::from_utf8_lossy(&read("stat")).into_owned();
        let is_gone = status.rsplit(") ").next().is_none_or(|rest| rest.starts_with(['Z', 'X']));
        if is_ours && !is_gone {
            let line = String::from_utf8_lossy(&read("cmdline")).into_owned();
            found.push(Process { pid, engine: engine(&line) });
        }
    }
    found
}

/// Reads `…/engines/SLOT.gN.sock` out of a command line.
fn engine(line: &str) -> Option<(String, u64)> {
    let (_, rest) = line.split_once("/engines/")?;
    let (slot, rest) = rest.split_once(".g")?;
    Some((slot.to_owned(), rest.split_once(".sock")?.0.parse().ok()?))
}

/// Looks again and again.
pub(crate) async fn watch(nonce: String, shared: Arc<Shared>) {
    loop {
        let look = nonce.clone();
        let Ok(processes) = tokio::task::spawn_blocking(move || of_run(&look)).await else {
            return;
        };
        let mut engines: BTreeMap<String, Vec<(u64, i32)>> = BTreeMap::new();
        for process in processes {
            if let Some((slot, generation)) = process.engine {
                engines.entry(slot).or_default().push((generation, process.pid));
            }
        }
        for (slot, found) in &engines {
            // Seen one after the other: one of them may have gone in between. What an engine forks
            // looks like it until it is another program.
            let alive = found.iter().filter(|(_, pid)| is_engine(*pid, slot));
            let generations: BTreeSet<u64> = alive.map(|(generation, _)| *generation).collect();
            if generations.len() > 1 {
                shared.broke(format!("I1: {slot} has two engines: {found:?}"));
            }
        }
        sleep(Duration::from_millis(40)).await;
    }
}

fn is_engine(pid: i32, slot: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    engine(&String::from_utf8_lossy(&line)).is_some_and(|(of, _)| of == slot)
}
