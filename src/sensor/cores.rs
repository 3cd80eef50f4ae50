//! The CPU cores that engines may use.

use std::{collections::BTreeSet, fs, path::Path, thread};

/// Where Linux lists its CPUs. Hybrid machines name their fast cores apart.
/// Source: `Documentation/admin-guide/cputopology.rst` and `perf-intel-hybrid` of Linux.
const CPUS: &str = "/sys/devices/system/cpu";
const FAST: &str = "/sys/devices/cpu_core/cpus";
const STATUS: &str = "/proc/self/status";

/// Returns how many cores engines may use: those that this process may run on, no more than its
/// cgroups' quota, two hardware threads of one core as one, and of a hybrid machine the fast ones.
/// Never 0. Engines that compute on more than that are slower, not faster.
pub fn usable_cores() -> u32 {
    let allowed = thread::available_parallelism().map_or(1, usize::from);
    let cores = physical().filter(|cores| *cores > 0).map_or(allowed, |cores| cores.min(allowed));
    u32::try_from(cores).unwrap_or(u32::MAX)
}

/// `None` where the machine does not tell.
fn physical() -> Option<usize> {
    let status = fs::read_to_string(STATUS).ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let fast = fs::read_to_string(FAST).ok().map(|list| numbers(&list)).unwrap_or_default();
    let used = numbers(allowed).into_iter().filter(|cpu| fast.is_empty() || fast.contains(cpu));
    let siblings = used.map(|cpu| {
        let path = format!("cpu{cpu}/topology/thread_siblings_list");
        fs::read_to_string(Path::new(CPUS).join(path)).ok().map(|list| numbers(&list))
    });
    let cores: Option<BTreeSet<_>> = siblings.collect();
    cores.map(|cores| cores.len())
}

/// Reads a list such as `0-3,8`.
fn numbers(list: &str) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    for part in list.trim().split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.parse::<u32>(), to.parse::<u32>()) {
            numbers.extend(from..=to);
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cpus_is_read() {
        assert_eq!(numbers("\t0-2,8\n"), BTreeSet::from([0, 1, 2, 8]));
        assert_eq!(numbers(""), BTreeSet::new());
    }

    #[test]
    fn there_is_a_core_and_no_more_than_may_be_run_on() {
        let allowed = u32::try_from(thread::available_parallelism().unwrap().get()).unwrap();
        assert!((1..=allowed).contains(&usable_cores()));
    }
}
