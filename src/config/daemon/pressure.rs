//! The table `pressure` of `slotd.toml`: from where on the machine is short of something.

use std::ops::RangeInclusive;

use super::super::walk::Walk;
use crate::spec::{
    Bytes,
    pressure::{Marks, Thresholds},
};

/// All of it is never free.
const FREE: RangeInclusive<u32> = 0..=99;
const FREE_HINT: &str = "0 percent free is never passed, and half as much again as the mark has to be free to be clear of it";
/// Below 2 percent nothing is clear of a mark again.
const WAITED: RangeInclusive<u32> = 2..=100;
const WAITED_HINT: &str =
    "100 percent of waiting is never passed, and half the mark is what is clear of it again";
const SIZE: RangeInclusive<Bytes> = Bytes(0)..=Bytes(1 << 50);
const LEVELS: [&str; 2] = ["elevated", "critical"];
const MARKS: [&str; 6] = [
    "memory_free_percent",
    "swap_free_percent",
    "memory_stall_percent",
    "gpu_free",
    "cpu_stall_percent",
    "disk_free",
];

/// Takes the table out of the file.
pub(super) fn take(walk: &mut Walk<'_>) -> Thresholds {
    let usual = Thresholds::default();
    let typed = walk.take_table("pressure", |walk| {
        walk.refuse_unknown(&LEVELS, |_| None);
        let elevated = walk.take_table("elevated", |walk| marks(walk, &usual.elevated));
        let critical = walk.take_table("critical", |walk| {
            let critical = marks(walk, &usual.critical);
            refuse_above(walk, &critical, elevated.as_ref().unwrap_or(&usual.elevated));
            critical
        });
        if let (Some(elevated), None) = (&elevated, &critical) {
            walk.take_table("elevated", |walk| refuse_below(walk, elevated, &usual.critical));
        }
        (elevated, critical)
    });
    let (elevated, critical) = typed.unwrap_or_default();
    Thresholds {
        elevated: elevated.unwrap_or(usual.elevated),
        critical: critical.unwrap_or(usual.critical),
    }
}

fn marks(walk: &mut Walk<'_>, usual: &Marks) -> Marks {
    walk.refuse_unknown(&MARKS, |_| None);
    let mut percent =
        |key, (range, hint), usual| walk.take_number(key, range, hint).unwrap_or(usual);
    let (free, waited) = ((&FREE, FREE_HINT), (&WAITED, WAITED_HINT));
    Marks {
        memory_free_percent: percent("memory_free_percent", free, usual.memory_free_percent),
        swap_free_percent: percent("swap_free_percent", free, usual.swap_free_percent),
        memory_stall_percent: percent("memory_stall_percent", waited, usual.memory_stall_percent),
        cpu_stall_percent: percent("cpu_stall_percent", waited, usual.cpu_stall_percent),
        gpu_free: walk.take_size("gpu_free", &SIZE).unwrap_or(usual.gpu_free),
        disk_free: walk.take_size("disk_free", &SIZE).unwrap_or(usual.disk_free),
    }
}

/// Refuses marks of `critical`, whose table is walked, that are passed before those of `elevated`.
fn refuse_above(walk: &mut Walk<'_>, critical: &Marks, elevated: &Marks) {
    for (key, is_wrong) in crossed(critical, elevated) {
        if let Some(offset) = walk.offset_of_key(key).filter(|_| is_wrong) {
            let message = "is reached before the one of `pressure.elevated`";
            walk.refuse(offset, key, message, HINT);
        }
    }
}

/// The same of marks of `elevated`, where `critical` has the usual ones.
fn refuse_below(walk: &mut Walk<'_>, elevated: &Marks, critical: &Marks) {
    for (key, is_wrong) in crossed(critical, elevated) {
        if let Some(offset) = walk.offset_of_key(key).filter(|_| is_wrong) {
            let message = "is reached after the one of `pressure.critical`";
            walk.refuse(offset, key, message, HINT);
        }
    }
}

const HINT: &str =
    "`critical` is the worse of the two: less is free, or more is waited, than at `elevated`";

/// Tells of each mark whether the worse level comes first.
fn crossed(critical: &Marks, elevated: &Marks) -> [(&'static str, bool); 6] {
    [
        ("memory_free_percent", critical.memory_free_percent > elevated.memory_free_percent),
        ("swap_free_percent", critical.swap_free_percent > elevated.swap_free_percent),
        ("memory_stall_percent", critical.memory_stall_percent < elevated.memory_stall_percent),
        ("gpu_free", critical.gpu_free > elevated.gpu_free),
        ("cpu_stall_percent", critical.cpu_stall_percent < elevated.cpu_stall_percent),
        ("disk_free", critical.disk_free > elevated.disk_free),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use toml::de::DeTable;

    use super::*;
    use crate::config::syntax;

    fn faults(text: &str) -> String {
        let mended = syntax::mend(text);
        let (table, _) = DeTable::parse_recoverable(&mended.text);
        let mut walk = Walk::new(Path::new("slotd.toml"), text, &mended, table.get_ref());
        take(&mut walk);
        let faults = walk.into_faults();
        faults.iter().flat_map(|fault| [fault.to_string(), "\n".to_owned()]).collect()
    }

    #[test]
    fn the_worse_level_comes_after_the_other_one() {
        let told = faults(
            "[pressure.elevated]\nmemory_free_percent = 5\n[pressure.critical]\nmemory_free_percent = 10\n",
        );
        assert!(told.starts_with("slotd.toml:4:1: pressure.critical.memory_free_percent: is reached before the one of `pressure.elevated`"), "{told}");
        let told = faults("[pressure.elevated]\ndisk_free = \"100MiB\"\n");
        assert!(told.starts_with("slotd.toml:2:1: pressure.elevated.disk_free: is reached after the one of `pressure.critical`"), "{told}");
        let told = faults("[pressure.critical]\ncpu_stall_percent = 50\n");
        assert!(told.contains("pressure.critical.cpu_stall_percent: is reached before"), "{told}");
        assert_eq!(faults("[pressure.critical]\ncpu_stall_percent = 95\n"), "", "both at once");
    }

    #[test]
    fn a_mark_that_nothing_is_clear_of_again_is_refused() {
        let told =
            faults("[pressure.elevated]\nmemory_free_percent = 100\ncpu_stall_percent = 0\n");
        assert!(told.contains("memory_free_percent: `100` is out of range"), "{told}");
        assert!(told.contains("cpu_stall_percent: `0` is out of range"), "{told}");
    }
}
