//! A small process that outlives a daemon that was killed, and ends what the daemon had started.
//!
//! The daemon starts itself as `slotd guard` and writes one line for each child that comes and
//! goes. When the pipe closes, which the kernel sees to whatever happened to the daemon, the guard
//! kills what is still on its list and ends. It holds no file but its three standard streams, so
//! that no socket and no lock of the daemon stays taken, and lives in a session of its own.
//!
//! ```text
//! add <TAB> NAME <TAB> PGID:START | PGID: | - <TAB> CGROUP | - <TAB> CGROUP_V1 | -
//! remove <TAB> NAME
//! ```

use std::{
    collections::BTreeMap,
    io::{self, BufRead},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use nix::{
    sys::signal::{SigSet, Signal, killpg},
    unistd::Pid,
};

use super::{
    cgroup::{Cell, end_all},
    identity, leaf,
    register::Entry,
};

/// The hidden subcommand that runs it.
pub(super) const SUBCOMMAND: &str = "guard";
/// How long it waits for cgroups to become empty, so that it can remove them.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs the guard until its standard input ends. Called by the hidden subcommand alone.
pub fn run() -> ExitCode {
    // Blocked for good, not ignored: the end of the pipe alone ends it.
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().ok();
    let mut entries = BTreeMap::new();
    for line in io::stdin().lock().lines() {
        match line {
            Ok(line) => take(&mut entries, &line),
            Err(_) => break,
        }
    }
    leaf::give_back_cgroup();
    end(entries);
    ExitCode::SUCCESS
}

fn end(entries: BTreeMap<String, Entry>) {
    let mut cells = Vec::new();
    for (_, Entry { group, cell }) in entries {
        cell.kill();
        if let Some((group, started)) = group
            && is_ours(group, started)
        {
            // Empty already is as good as killed.
            killpg(Pid::from_raw(group), Signal::SIGKILL).ok();
        }
        cells.push(cell);
    }
    drop(end_all(cells, LIMIT));
}

/// Tells whether the group's number still names what was registered. A leader that is gone may have
/// left members, which pin the number; a leader with another start time is a stranger.
fn is_ours(group: i32, started: Option<u64>) -> bool {
    let found = identity::start_time(group.unsigned_abs());
    found.is_none() || started.is_none() || found == started
}

/// Writes the line that puts `entry` on the list.
pub(super) fn add_line(name: &str, entry: &Entry) -> String {
    let group = match entry.group {
        Some((group, Some(started))) => format!("{group}:{started}"),
        Some((group, None)) => format!("{group}:"),
        None => "-".to_owned(),
    };
    let (unified, memory) =
        (path_field(entry.cell.unified.as_ref()), path_field(entry.cell.memory.as_ref()));
    format!("add\t{name}\t{group}\t{unified}\t{memory}\n")
}

/// Writes the line that takes an entry off the list.
pub(super) fn remove_line(name: &str) -> String {
    format!("remove\t{name}\n")
}

fn path_field(path: Option<&PathBuf>) -> &str {
    // A path that cannot be a field is left to the process group.
    let text = path.and_then(|path| path.to_str()).unwrap_or("-");
    if text.contains(['\t', '\n']) { "-" } else { text }
}

/// Does what a line says. One that is not understood is from a newer daemon and changes nothing.
fn take(entries: &mut BTreeMap<String, Entry>, line: &str) {
    let fields: Vec<&str> = line.split('\t').collect();
    match fields.as_slice() {
        ["add", name, group, unified, memory] => {
            let path = |field: &str| (field != "-").then(|| PathBuf::from(field));
            let cell = Cell { unified: path(unified), memory: path(memory) };
            entries.insert((*name).to_owned(), Entry { group: group_of(group), cell });
        }
        ["remove", name] => {
            entries.remove(*name);
        }
        _ => {}
    }
}

fn group_of(field: &str) -> Option<(i32, Option<u64>)> {
    let (group, started) = field.split_once(':')?;
    // 0 and 1 would be our own group and everything.
    let group = group.parse().ok().filter(|group| *group > 1)?;
    Some((group, started.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(group: Option<(i32, Option<u64>)>, unified: Option<&str>) -> Entry {
        Entry { group, cell: Cell { unified: unified.map(PathBuf::from), memory: None } }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let cases = [
            entry(None, Some("/sys/fs/cgroup/a b/slotd-x.g1@1-2-3")),
            entry(Some((77, Some(5))), None),
            entry(Some((77, None)), Some("/c")),
        ];
        for case in cases {
            let mut entries = BTreeMap::new();
            take(&mut entries, add_line("x.g1", &case).trim_end_matches('\n'));
            assert_eq!(entries.get("x.g1"), Some(&case));
            take(&mut entries, remove_line("x.g1").trim_end_matches('\n'));
            assert!(entries.is_empty());
        }
    }

    #[test]
    fn a_line_can_never_name_everything() {
        for group in ["-1:", "0:", "1:", ":", "x:1", "-"] {
            assert_eq!(group_of(group), None, "{group}");
        }
    }

    #[test]
    fn lines_that_are_not_understood_change_nothing() {
        let mut entries = BTreeMap::new();
        for line in ["", "add", "add\tx", "kill\tall", "add\tx\t-\t-\t-\t-"] {
            take(&mut entries, line);
        }
        assert!(entries.is_empty());
    }
}
