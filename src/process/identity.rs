//! Who a process is, beyond its number: start time and process-id namespace.

use std::fs;

/// Tells this daemon's cgroup directories from those of another: namespace, pid, start time.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Tag(String);

impl Tag {
    /// Returns the tag of this process; `None` where there is no `/proc`.
    pub(super) fn own() -> Option<Self> {
        let pid = std::process::id();
        Some(Self(format!("{}-{pid}-{}", namespace()?, start_time(pid)?)))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Tells whether the owner of `tag` is known to be gone. False for what is not a tag, and for one
/// from another process-id namespace, whose processes cannot be seen from here.
pub(super) fn is_gone(tag: &str) -> bool {
    let mut parts = tag.split('-');
    let (Some(space), Some(pid), Some(start), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let (Ok(pid), Ok(start)) = (pid.parse::<u32>(), start.parse::<u64>()) else {
        return false;
    };
    namespace().as_deref() == Some(space) && start_time(pid) != Some(start)
}

/// Returns when process `pid` started, in clock ticks since boot; `None` if there is no such
/// process or no `/proc`. Source: `proc_pid_stat(5)`, field 22.
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    after_name(&stat)?.nth(19)?.parse().ok()
}

/// Returns the wait status of a process that has ended and that nobody has reaped yet, if it is the
/// one that started at `started`. Source: `proc_pid_stat(5)`, fields 3, 22 and 52.
pub(super) fn unreaped_status(pid: u32, started: u64) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = after_name(&stat)?;
    let is_zombie = fields.next()? == "Z";
    let is_same = fields.nth(18)?.parse() == Ok(started);
    let status = fields.nth(29)?.parse().ok()?;
    (is_zombie && is_same).then_some(status)
}

/// Tells whether process group `group` has a member that is not a zombie; `None` where there is no
/// `/proc`.
pub(super) fn has_live_member(group: u32) -> Option<bool> {
    let group = group.to_string();
    let live = fs::read_dir("/proc").ok()?.filter_map(Result::ok).any(|entry| {
        // Entries that are no processes have no such file; processes may end under our eyes.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some(mut fields) = after_name(&stat) else { return false };
        let (state, member_of) = (fields.next(), fields.nth(1));
        member_of == Some(&group) && !matches!(state, Some("Z" | "X"))
    });
    Some(live)
}

/// Splits the fields of a `stat` line from the third on: the second, a name in brackets, may hold
/// anything.
fn after_name(stat: &str) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    stat.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace())
}

fn namespace() -> Option<String> {
    let link = fs::read_link("/proc/self/ns/pid").ok()?;
    let text = link.to_str()?;
    Some(text.chars().filter(char::is_ascii_digit).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn our_own_tag_is_not_gone() {
        let own = Tag::own().unwrap();
        assert!(!is_gone(own.as_str()), "{own:?}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_tag_with_another_start_time_is_gone() {
        let (pid, space) = (std::process::id(), namespace().unwrap());
        assert!(is_gone(&format!("{space}-{pid}-1")));
    }

    #[test]
    fn what_cannot_be_judged_is_not_gone() {
        for tag in ["", "x", "1-2", "1-2-3-4", "0-1-1"] {
            assert!(!is_gone(tag), "{tag}");
        }
    }
}
