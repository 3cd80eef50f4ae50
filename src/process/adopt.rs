//! Processes of an earlier daemon: recognised beyond doubt, or left alone.
//!
//! 1. The machine has not been booted since.
//! 2. A handle on the process is opened before anything else is read of it.
//! 3. Start time, program, process group and the nonce in its environment are the recorded ones.
//! 4. The process behind the handle still runs: all that was read was read of this one.
//!
//! What fails (3) is somebody else's process: nothing is ever sent to it. What cannot be read is not
//! known, which is treated alike.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt, net::UnixStream},
    },
    path::{Path, PathBuf},
};

use nix::{
    sys::socket::{getsockopt, sockopt},
    unistd::{Pid, getpgid},
};

use super::{cgroup::Cell, identity as process_identity, sys};
use crate::spec::{
    Generation, SlotName,
    identity::{Identity, NONCE_VARIABLE},
};

/// What a record turned out to name.
#[derive(Debug)]
pub enum Examined {
    /// The engine that was recorded, alive.
    Ours(Proven),
    /// Nothing that lives.
    Gone,
    /// Another process, or one of which too little can be read; one clause for a person.
    Unproven(String),
}

/// An engine of an earlier daemon, with the handle through which alone it is signalled.
#[derive(Debug)]
pub struct Proven {
    pub(super) pid: Pid,
    pub(super) handle: OwnedFd,
    pub(super) cell: Cell,
}

impl Proven {
    /// Returns the cgroup directories that must not be cleaned away as leftovers.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        [&self.cell.unified, &self.cell.memory].into_iter().flatten().cloned().collect()
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }
}

/// Tells whether who listens on the socket at `path` is the process `pid`, or of its process group.
/// Blocks where nobody accepts.
pub fn listens_on(pid: u32, path: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(path) else { return false };
    let Ok(pid) = i32::try_from(pid).map(Pid::from_raw) else { return false };
    peer_of(&stream).is_some_and(|peer| peer == pid || getpgid(Some(peer)) == Ok(pid))
}

#[cfg(not(target_os = "macos"))]
fn peer_of(stream: &UnixStream) -> Option<Pid> {
    let peer = getsockopt(stream, sockopt::PeerCredentials).ok()?;
    Some(Pid::from_raw(peer.pid()))
}

#[cfg(target_os = "macos")]
fn peer_of(stream: &UnixStream) -> Option<Pid> {
    getsockopt(stream, sockopt::LocalPeerPid).ok().map(Pid::from_raw)
}

/// Returns what a later daemon has to find again of the running process `pid`; `None` where that
/// cannot be read.
pub(super) fn identify(pid: u32, nonce: String, cell: &Cell) -> Option<Identity> {
    Some(Identity {
        boot_id: boot_id()?,
        pid,
        start_time: process_identity::start_time(pid)?,
        executable: executable(pid).ok()?,
        nonce,
        cgroup: cell.unified.clone(),
        memory_cgroup: cell.memory.clone(),
    })
}

/// Looks at the process that was recorded for a generation of a slot. Sends nothing.
pub fn examine(identity: &Identity, slot: &SlotName, generation: Generation) -> Examined {
    let unproven = |text: &str| Examined::Unproven(text.to_owned());
    if boot_id().as_ref() != Some(&identity.boot_id) {
        return Examined::Gone; // (1)
    }
    let pid = match i32::try_from(identity.pid) {
        Ok(pid) if pid > 1 => Pid::from_raw(pid),
        Ok(_) | Err(_) => return unproven("its process id is none of an engine"),
    };
    let handle = match sys::open_pidfd(pid) {
        Ok(handle) => handle, // (2)
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Examined::Gone,
        Err(error) => return Examined::Unproven(format!("it cannot be watched: {error}")),
    };
    if process_identity::start_time(identity.pid) != Some(identity.start_time) {
        return unproven("the process with its id started at another time"); // (3)
    }
    match executable(identity.pid) {
        Ok(found) if found == identity.executable => {}
        Ok(_) => return unproven("the process with its id runs another program"),
        Err(error) => return Examined::Unproven(format!("its program cannot be read: {error}")),
    }
    match has_nonce(identity.pid, &identity.nonce) {
        Ok(true) => {}
        Ok(false) => return unproven("the process with its id was not started by slotd for it"),
        Err(error) => {
            return Examined::Unproven(format!("its environment cannot be read: {error}"));
        }
    }
    if getpgid(Some(pid)) != Ok(pid) {
        return unproven("the process with its id leads no group");
    }
    if sys::has_ended(&handle) {
        return Examined::Gone; // (4)
    }
    let cell = Cell {
        unified: identity.cgroup.clone().filter(|path| is_cell(path, slot, generation, pid)),
        memory: identity.memory_cgroup.clone().filter(|path| is_cell(path, slot, generation, pid)),
    };
    Examined::Ours(Proven { pid, handle, cell })
}

/// A directory is the engine's own if it has the name that slotd gives and the engine in it: others
/// would be killed with it.
fn is_cell(path: &Path, slot: &SlotName, generation: Generation, pid: Pid) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_named = name.strip_prefix("slotd-").and_then(|rest| rest.split_once('.'));
    let is_named =
        is_named.is_some_and(|(_, of)| of.starts_with(&format!("{slot}.g{generation}@")));
    let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    is_named && members.lines().any(|line| line.parse() == Ok(pid.as_raw()))
}

fn boot_id() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

fn executable(pid: u32) -> io::Result<(u64, u64)> {
    // The link leads to the very file that runs, also after it was replaced on disk.
    let file = fs::metadata(format!("/proc/{pid}/exe"))?;
    Ok((file.dev(), file.ino()))
}

fn has_nonce(pid: u32, nonce: &str) -> io::Result<bool> {
    let wanted = format!("{NONCE_VARIABLE}={nonce}");
    let environment = fs::read(format!("/proc/{pid}/environ"))?;
    let is_drawn = nonce.len() == 32 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok(is_drawn && environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    const NONCE: &str = "0123456789abcdef0123456789abcdef";

    /// A process that nobody may signal; what it started as, and its record.
    fn sleeper(nonce: Option<&str>) -> (Child, Identity) {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("sleep");
        command.arg("1000").process_group(0);
        if let Some(nonce) = nonce {
            command.env(NONCE_VARIABLE, nonce);
        }
        let child = command.spawn().unwrap();
        // A spawn is over a moment before the new program's environment can be read.
        while fs::read(format!("/proc/{}/environ", child.id())).unwrap().is_empty() {
            std::thread::yield_now();
        }
        let identity = identify(child.id(), NONCE.to_owned(), &Cell::default()).unwrap();
        (child, identity)
    }

    fn look(identity: &Identity) -> Examined {
        examine(identity, &"chat".parse().unwrap(), Generation(1))
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_recorded_process_is_proven_and_any_difference_makes_it_a_stranger() {
        let (mut child, identity) = sleeper(Some(NONCE));
        assert!(matches!(look(&identity), Examined::Ours(_)), "{:?}", look(&identity));
        let (device, inode) = identity.executable;
        let forged = [
            Identity { start_time: identity.start_time + 1, ..identity.clone() },
            Identity { executable: (device, inode + 1), ..identity.clone() },
            Identity { nonce: NONCE.replace('0', "1"), ..identity.clone() },
            Identity { nonce: String::new(), ..identity.clone() },
            Identity { pid: 1, ..identity.clone() },
            Identity { pid: 0, ..identity.clone() },
            Identity { pid: u32::MAX, ..identity.clone() },
            Identity { pid: std::process::id(), ..identity.clone() },
        ];
        for forged in forged {
            assert!(matches!(look(&forged), Examined::Unproven(_)), "{forged:?}");
        }
        let elsewhere = Identity { boot_id: "another".to_owned(), ..identity.clone() };
        assert!(matches!(look(&elsewhere), Examined::Gone));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(look(&identity), Examined::Gone));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_stranger_is_not_proven_even_if_all_that_can_be_seen_is_recorded() {
        let (mut child, identity) = sleeper(None);
        assert!(matches!(look(&identity), Examined::Unproven(_)));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_cgroup_that_is_not_the_engines_own_is_not_taken_over() {
        let (mut child, identity) = sleeper(Some(NONCE));
        let forged = Identity { cgroup: Some("/sys/fs/cgroup".into()), ..identity };
        let Examined::Ours(proven) = look(&forged) else { panic!("it is ours") };
        assert_eq!(proven.cell, Cell::default());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
