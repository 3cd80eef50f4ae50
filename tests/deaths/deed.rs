//! What is done to an engine so that it dies.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::time::sleep;

use crate::{cases::Setting, daemon::Daemon};

/// When something is done, and what.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Nothing,
    Loading(Deed),
    Ready(Deed),
}

#[derive(Clone, Debug)]
pub(crate) enum Deed {
    Signal(Signal),
    /// Rust's runtime takes the first `SIGSEGV` that is no stack overflow, and makes the next one
    /// deadly.
    Twice(Signal),
    /// To the child of a wrapper that waits for it.
    SignalInner(Signal),
    /// Sets the memory limit of its cgroup.
    LimitMib(u64),
    /// Leaves its cgroup this much more than it uses, and asks for more.
    SqueezeMib(u64),
    /// Sets its limit of address space.
    VirtualMib(u64),
    /// Has it print a prompt that speaks of memory, then sends a signal.
    EchoThen(Signal),
    /// Cuts the mapped model.
    CutModel(PathBuf),
    /// Puts another program in the place of the running one, then kills that.
    ReplaceEngine(PathBuf),
}

/// A prompt of lines that engines print when they die of memory.
const PROMPT: &str = "Why?\nCUDA error: out of memory\nterminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\nggml_vulkan: Device memory allocation of size 1073741824 failed.\n0.00.100.000 E x: cudaMalloc failed: out of memory\nerror: out of memory\n";

pub(crate) async fn perform(daemon: &Daemon, setting: &Setting, slot: &str, act: &Act) {
    let (deed, state) = match act {
        Act::Nothing => return,
        Act::Loading(deed) => (deed, "starting"),
        Act::Ready(deed) => (deed, "ready"),
    };
    let is_there = |view: &Value| view["state"] == state && view["pid"].is_u64();
    let Some(view) = daemon.until(slot, is_there).await else { return };
    let pid = Pid::from_raw(i32::try_from(view["pid"].as_u64().unwrap()).unwrap());
    match deed {
        Deed::Signal(signal) => kill(pid, *signal).unwrap(),
        Deed::Twice(signal) => {
            // Two that come together are one.
            while kill(pid, *signal).is_ok() && is_alive(pid) {
                sleep(Duration::from_millis(20)).await;
            }
        }
        Deed::SignalInner(signal) => kill(inner(pid), *signal).unwrap(),
        Deed::LimitMib(mib) => limit(pid, mib << 20),
        Deed::SqueezeMib(mib) => {
            limit(pid, used(pid) + (mib << 20));
            daemon.ask(slot, &"why ".repeat(6000)).await;
        }
        Deed::VirtualMib(mib) => {
            let status = Command::new("prlimit")
                .args([format!("--pid={pid}"), format!("--as={}", mib << 20)])
                .stdin(Stdio::null())
                .status();
            assert!(status.unwrap().success());
        }
        Deed::EchoThen(signal) => {
            daemon.ask(slot, PROMPT).await;
            kill(pid, *signal).unwrap();
        }
        Deed::CutModel(path) => {
            fs::File::options().write(true).open(path).unwrap().set_len(4096).unwrap();
            daemon.ask(slot, "why").await;
        }
        Deed::ReplaceEngine(path) => {
            let other = setting.folder.join("other");
            fs::copy("/bin/false", &other).unwrap();
            fs::rename(&other, path).unwrap();
            kill(pid, Signal::SIGKILL).unwrap();
        }
    }
}

fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn inner(pid: Pid) -> Pid {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap())
}

/// The directory of its cgroup, and the names of limit and usage there.
fn cgroup(pid: Pid) -> (PathBuf, &'static str, &'static str) {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let memory = text.lines().find_map(|line| line.split_once(":memory:"));
    if let Some((_, path)) = memory {
        let dir = PathBuf::from(format!("/sys/fs/cgroup/memory{path}"));
        return (dir, "memory.limit_in_bytes", "memory.usage_in_bytes");
    }
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    (PathBuf::from(format!("/sys/fs/cgroup{path}")), "memory.max", "memory.current")
}

fn limit(pid: Pid, bytes: u64) {
    let (dir, limit, _) = cgroup(pid);
    fs::write(dir.join(limit), bytes.to_string()).unwrap();
}

fn used(pid: Pid) -> u64 {
    let (dir, _, used) = cgroup(pid);
    fs::read_to_string(dir.join(used)).unwrap().trim().parse().unwrap()
}
