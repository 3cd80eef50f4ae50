//! What the system says of processes: CPU time, memory, children; and which core they run on.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of the clock that events are stamped with.
pub(crate) fn monotonic_ns() -> u64 {
    let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into();
    u64::try_from(now.as_nanos()).unwrap()
}

/// A command that runs on one core alone. `taskset` comes with every Linux.
pub(crate) fn on_core(core: usize, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.arg("-c").arg(core.to_string()).arg(program).stdin(Stdio::null());
    command
}

/// Moves this process to one core.
pub(crate) fn move_to_core(core: usize) {
    let pid = std::process::id().to_string();
    let mut command = Command::new("taskset");
    command.args(["-apc", &core.to_string(), &pid]).stdout(Stdio::null());
    assert!(command.status().unwrap().success(), "taskset cannot move this process");
    // Sessions of one machine are weighed against each other; root may weigh more.
    drop(fs::write("/proc/self/autogroup", "-15"));
}

/// A process and all that came of it.
pub(crate) fn family(root: u32) -> BTreeSet<u32> {
    let mut all = BTreeSet::from([root]);
    loop {
        let mut more = all.clone();
        for pid in &all {
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for task in tasks.flatten() {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                more.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
        }
        if more.len() == all.len() {
            return all;
        }
        all = more;
    }
}

/// CPU time of all threads of processes, in nanoseconds.
pub(crate) fn cpu_ns(pids: &BTreeSet<u32>) -> u64 {
    let of_task = |path: &Path| {
        let text = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0)
    };
    let tasks = pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
    tasks.flat_map(|tasks| tasks.flatten().map(|task| of_task(&task.path()))).sum()
}

/// Memory of processes, shared pages by their share, in KiB.
pub(crate) fn pss_kib(pids: &BTreeSet<u32>) -> u64 {
    let of = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or("0");
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0)
    };
    pids.iter().map(of).sum()
}

/// CPU time of the whole machine that was not idle, in nanoseconds; and what other machines took.
pub(crate) fn machine_ns() -> (u64, u64) {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let ticks: Vec<u64> = text
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .skip(1)
        .map(|ticks| ticks.parse().unwrap())
        .collect();
    let busy = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6];
    (busy * 10_000_000, ticks[7] * 10_000_000)
}
