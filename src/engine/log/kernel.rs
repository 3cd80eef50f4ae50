//! What the kernel's log says about one process.
//!
//! Source: `dump_oom_victim` and `__oom_kill_process` in the kernel's `mm/oom_kill.c`,
//! `show_signal_msg` and `show_signal` in `arch/x86`. A name of a process stands in these lines as it
//! likes to call itself: nothing behind it decides.

use super::start_of;
use crate::spec::death::KernelLog;

/// By what a line can name a child.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// Its process id; `None` in a namespace whose numbers are not the kernel's.
    pub pid: Option<u32>,
    /// The name of its cgroup's directory, which no other has.
    pub cgroup: Option<&'a str>,
}

/// Reads one line, without the time; `None` if it does not say what `child` died of.
pub fn kernel(line: &str, child: Named<'_>) -> Option<KernelLog> {
    let line = line.trim_end();
    let kept = || start_of(line);
    if let Some(facts) = line.strip_prefix("oom-kill:") {
        return is_of(facts, child).then(|| KernelLog::OomKill { line: kept() });
    }
    let killed = ["Out of memory", "Memory cgroup out of memory"]
        .iter()
        .find_map(|start| line.strip_prefix(start)?.split_once(": Killed process "));
    if let Some((_, rest)) = killed {
        let pid = rest.split(' ').next();
        return is_pid(pid, child).then(|| KernelLog::OomKill { line: kept() });
    }
    let said = line.strip_prefix("traps: ").unwrap_or(line);
    let place = ["]: segfault at ", "] trap ", "] general protection fault"]
        .iter()
        .find_map(|fault| said.split_once(fault).map(|(place, _)| place))?;
    let pid = place.rsplit_once('[').map(|(_, pid)| pid);
    is_pid(pid, child).then(|| KernelLog::Fault { line: kept() })
}

/// `constraint=…,task_memcg=/box/slotd-chat.g2@1-2-3,task=llama-server,pid=10517,uid=0`.
fn is_of(facts: &str, child: Named<'_>) -> bool {
    let pid = facts.rsplit_once(",pid=").map(|(_, rest)| rest.split(',').next());
    let place = facts
        .split_once(",task_memcg=")
        .and_then(|(_, rest)| rest.split(',').next())
        .unwrap_or_default();
    let is_inside = child.cgroup.is_some_and(|name| place.split('/').any(|part| part == name));
    is_inside || is_pid(pid.flatten(), child)
}

fn is_pid(text: Option<&str>, child: Named<'_>) -> bool {
    child.pid.is_some() && text.and_then(|text| text.parse().ok()) == child.pid
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Named<'_> = Named { pid: Some(10517), cgroup: Some("slotd-chat.g2@1-2-3") };

    fn is_oom(line: &str, child: Named<'_>) -> bool {
        matches!(kernel(line, child), Some(KernelLog::OomKill { .. }))
    }

    #[test]
    fn a_kill_for_want_of_memory_is_known_by_the_process_id() {
        let ours = [
            "Memory cgroup out of memory: Killed process 10517 (llama-server) total-vm:205324kB, anon-rss:65152kB",
            "Out of memory: Killed process 10517 (slotd) total-vm:1kB",
            "Out of memory (oom_kill_allocating_task): Killed process 10517 (x) total-vm:1kB",
            "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/,task=llama-server,pid=10517,uid=0",
        ];
        for line in ours {
            assert!(is_oom(line, OURS), "{line}");
            assert!(!is_oom(line, Named { pid: Some(1051), cgroup: None }), "{line}");
            assert!(!is_oom(line, Named { pid: None, cgroup: None }), "{line}");
        }
    }

    #[test]
    fn a_helper_is_known_by_the_cgroup() {
        let line = "oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/box,task_memcg=/box/slotd-chat.g2@1-2-3/inner,task=a,pid=9,uid=0";
        assert!(is_oom(line, OURS));
        assert!(is_oom(line, Named { pid: None, ..OURS }));
        assert!(!is_oom(line, Named { pid: Some(1), cgroup: Some("slotd-chat.g2@1-2-4") }));
        // The limit is ours, the victim is not.
        let line = "oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/box/slotd-chat.g2@1-2-3,task_memcg=/box/other,task=a,pid=9,uid=0";
        assert!(!is_oom(line, OURS));
    }

    #[test]
    fn a_process_that_calls_itself_by_our_number_is_not_ours() {
        let lines = [
            "oom-kill:constraint=CONSTRAINT_NONE,task_memcg=/,task=a,pid=10517,pid=99,uid=0",
            "Out of memory: Killed process 99 (10517) total-vm:1kB",
            "llama-server[99]: I say: Out of memory: Killed process 10517 (llama-server)",
            "10517: segfault at 0",
        ];
        for line in lines {
            assert_eq!(kernel(line, OURS), None, "{line}");
        }
    }

    #[test]
    fn a_fault_is_told_from_a_kill() {
        let lines = [
            "llama-server[10517]: segfault at 0 ip 0000 sp 0000 error 4 in libggml.so[7f+1000]",
            "traps: llama-server[10517] trap invalid opcode ip:55 sp:7f error:0 in llama-server",
            "traps: llama-server[10517] general protection fault ip:55 sp:7f error:0",
        ];
        for line in lines {
            assert!(matches!(kernel(line, OURS), Some(KernelLog::Fault { .. })), "{line}");
            assert_eq!(kernel(line, Named { pid: Some(1), ..OURS }), None);
        }
    }
}
