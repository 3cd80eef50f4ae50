//! The daemon's side of the guard: what must end if the daemon is killed, told to the guard.

use std::{
    collections::BTreeMap,
    io::{self, PipeWriter, Write},
    os::fd::AsFd,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::{
    process::Child,
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tracing::warn;

use super::{cgroup::Cell, guard, spawn::Job, sys};

/// A guard that ends at once is replaced no more often than this.
const PAUSE: Duration = Duration::from_secs(1);

/// What belongs to one child.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Entry {
    /// The process group's number and its leader's start time, once the child runs.
    pub(super) group: Option<(i32, Option<u64>)>,
    /// Its cgroup directories.
    pub(super) cell: Cell,
}

/// Everything that must end with the daemon, and the guard that knows it.
#[derive(Debug)]
pub(super) struct Register {
    entries: BTreeMap<String, Entry>,
    guard: Option<Guard>,
    starter: Option<Starter>,
}

#[derive(Debug)]
struct Starter {
    program: PathBuf,
    runtime: Handle,
    jobs: mpsc::WeakSender<Job>,
}

#[derive(Debug)]
struct Guard {
    pid: u32,
    lines: PipeWriter,
    /// Takes the pipe of a guard that must not act any more. If it is dropped, the guard finds its
    /// pipe closed and acts.
    dismiss: oneshot::Sender<PipeWriter>,
    /// Ends when the guard is reaped.
    watch: JoinHandle<()>,
}

impl Register {
    /// Keeps a register that nobody reads.
    pub(super) fn without_guard() -> Self {
        Self { entries: BTreeMap::new(), guard: None, starter: None }
    }

    /// Starts the guard. Its end is told to `jobs`.
    pub(super) fn start(
        program: PathBuf,
        runtime: Handle,
        jobs: mpsc::WeakSender<Job>,
    ) -> Result<Self, (PathBuf, io::Error)> {
        let starter = Starter { program, runtime, jobs };
        match starter.start(&BTreeMap::new()) {
            Ok(guard) => {
                Ok(Self { entries: BTreeMap::new(), guard: Some(guard), starter: Some(starter) })
            }
            Err(error) => Err((starter.program, error)),
        }
    }

    /// Puts an entry on record, in place of one of the same name.
    pub(super) fn add(&mut self, name: &str, entry: Entry) {
        let line = guard::add_line(name, &entry);
        self.entries.insert(name.to_owned(), entry);
        self.tell(&line);
    }

    /// Takes an entry off the record.
    pub(super) fn remove(&mut self, name: &str) {
        self.entries.remove(name);
        self.tell(&guard::remove_line(name));
    }

    /// Replaces the guard if it is the one that ended.
    pub(super) fn guard_ended(&mut self, pid: u32) {
        if self.guard.take_if(|guard| guard.pid == pid).is_some() {
            warn!(pid, "guard ended and is replaced");
            self.replace();
        }
    }

    /// Ends the guard for good, without letting it act. Blocks until it is reaped.
    pub(super) fn dismiss_guard(&mut self) {
        let (Some(guard), Some(starter)) = (self.guard.take(), self.starter.take()) else { return };
        // If its watch has ended, so has the guard.
        drop(guard.dismiss.send(guard.lines));
        // A watch that broke off is of no more use.
        drop(starter.runtime.block_on(guard.watch));
    }

    fn tell(&mut self, line: &str) {
        let told = self.guard.as_mut().map(|guard| guard.lines.write_all(line.as_bytes()));
        match told {
            Some(Ok(())) => {}
            // A guard that does not read is as good as none. It ends when it finds its pipe closed.
            Some(Err(error)) => {
                warn!(%error, "guard took no line and is replaced");
                self.replace();
            }
            None => self.replace(),
        }
    }

    /// Starts a new guard and tells it everything. If that fails, the next line tries again.
    fn replace(&mut self) {
        if let Some(old) = self.guard.take() {
            // Its list is an old one. If its watch has ended, so has the guard.
            drop(old.dismiss.send(old.lines));
        }
        let Some(starter) = &self.starter else { return };
        match starter.start(&self.entries) {
            Ok(guard) => self.guard = Some(guard),
            Err(error) => warn!(%error, "guard was not started"),
        }
    }
}

impl Starter {
    /// Starts a guard that knows `entries` from the first moment.
    fn start(&self, entries: &BTreeMap<String, Entry>) -> io::Result<Guard> {
        let (stdin, mut lines) = io::pipe()?;
        // A guard that does not read must not hold up a spawn.
        let flags = fcntl(lines.as_fd(), FcntlArg::F_GETFL)?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(lines.as_fd(), FcntlArg::F_SETFL(flags))?;
        // A pipe takes 64 KiB, the lines of some 250 children.
        for (name, entry) in entries {
            lines.write_all(guard::add_line(name, entry).as_bytes())?;
        }
        let mut command = Command::new(&self.program);
        command.arg(guard::SUBCOMMAND).env_clear().current_dir("/");
        command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::null());
        sys::detach_before_exec(&mut command);
        let _entered = self.runtime.enter();
        let child = tokio::process::Command::from(command).spawn()?;
        let pid = child.id().unwrap_or(0);
        let (dismiss, dismissed) = oneshot::channel();
        // It ends with the guard, which ends with its pipe; the runtime's end drops it.
        let watch = self.runtime.spawn(watch(child, pid, dismissed, self.jobs.clone()));
        Ok(Guard { pid, lines, dismiss, watch })
    }
}

/// Waits for the guard's end and tells the thread, at most once a second.
async fn watch(
    mut guard: Child,
    pid: u32,
    dismissed: oneshot::Receiver<PipeWriter>,
    jobs: mpsc::WeakSender<Job>,
) {
    let earliest = Instant::now() + PAUSE;
    tokio::select! {
        // Only that it ended matters.
        ended = guard.wait() => drop(ended),
        Ok(lines) = dismissed => {
            // The pipe stays open until the guard is gone, so that it does not act on its list.
            drop(guard.kill().await);
            drop(lines);
            return;
        }
    }
    tokio::time::sleep_until(earliest).await;
    if let Some(jobs) = jobs.upgrade() {
        // Without the thread there is nothing to guard.
        drop(jobs.send(Job::GuardEnded(pid)).await);
    }
}
