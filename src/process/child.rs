//! One engine process with everything that it started.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Handle,
    sync::watch,
};
use tracing::debug;

use super::{
    adopt,
    cgroup::Cell,
    counters::Counters,
    identity,
    spawn::Forget,
    sys::{self, Peek},
};
use crate::{
    spec::{death::ExitStatus, identity::Identity},
    supervisor::StopSignal,
};

const POLL_MIN: Duration = Duration::from_millis(5);
const POLL_MAX: Duration = Duration::from_millis(50);
/// How often, and how far apart, the status of an adopted child is looked for.
const STATUS_TRIES: u32 = 20;
const STATUS_PAUSE: Duration = Duration::from_millis(1);

/// An engine process. Its owner awaits [`Child::wait`], then [`Child::reap`]; dropping it earlier
/// kills everything that belongs to it.
#[derive(Debug)]
pub struct Child {
    /// Taken by `drop` alone.
    body: Option<Body>,
    runtime: Handle,
}

/// Sends signals to a child's group from elsewhere. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StopHandle {
    group: Arc<Group>,
}

/// Lets a child outlive the daemon: first its identity is written down, then the guard forgets it.
#[derive(Clone, Debug)]
pub struct KeepHandle {
    group: Arc<Group>,
    forget: Forget,
}

/// What a spawn hands over.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) pid: Pid,
    pub(super) hold: Hold,
    pub(super) cell: Cell,
    pub(super) socket: Option<PathBuf>,
    pub(super) forget: Forget,
}

/// What makes sure that a signal reaches this child and nobody else.
#[derive(Debug)]
pub(super) enum Hold {
    /// It is our child: its number is ours until we reap it.
    Number,
    /// Another daemon's child, which anybody may reap: only this handle still names it then.
    Handle(OwnedFd),
}

#[derive(Debug)]
struct Body {
    group: Arc<Group>,
    notice: Notice,
    status: Option<ExitStatus>,
    oom_kills: Option<u64>,
    socket: Option<PathBuf>,
    forget: Forget,
}

#[derive(Debug)]
struct Group {
    /// Process id of the leader, which is the number of the group.
    id: Pid,
    hold: Hold,
    cell: Cell,
    leader: Mutex<Leader>,
}

/// Whether the group's number is still pinned by its leader.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Leader {
    /// It runs or is a zombie: the number is ours.
    Unreaped,
    /// It was reaped; everything was killed before.
    Reaped,
    /// And nothing else is left.
    Gone,
}

/// How the end of the leader becomes known.
#[derive(Debug)]
enum Notice {
    /// The kernel's handle on the process becomes readable.
    Handle(AsyncFd<OwnedFd>),
    /// The same, of another daemon's child: its status is not for us to wait for.
    Adopted(AsyncFd<OwnedFd>, Option<u64>),
    /// A thread waits. For macOS and Linux before 5.3.
    Thread(watch::Receiver<bool>),
    /// Neither could be had: asked again and again.
    Polled,
}

impl Child {
    /// Takes over an unreaped child. The caller has entered `runtime`.
    pub(super) fn new(parts: Parts, runtime: Handle) -> Self {
        let Parts { pid, hold, cell, socket, forget } = parts;
        let group = Arc::new(Group { id: pid, hold, cell, leader: Mutex::new(Leader::Unreaped) });
        let notice = Notice::new(pid, &group.hold);
        let body = Body { group, notice, status: None, oom_kills: None, socket, forget };
        Self { body: Some(body), runtime }
    }

    /// Returns the process id, which is the number of the process group too.
    pub fn pid(&self) -> u32 {
        self.body().group.number()
    }

    /// Waits until the process has ended, and returns how. Its group may still hold others, and the
    /// process stays a zombie until [`Child::reap`]. Cancel-safe; returns at once when called again.
    pub async fn wait(&mut self) -> ExitStatus {
        self.body_mut().wait().await
    }

    /// Waits for the end of the process, kills what is left of its group and cgroup, and returns
    /// once both are empty. Removes the cgroup and the socket file. Cancel-safe.
    pub async fn reap(&mut self) {
        self.body_mut().reap().await;
    }

    /// Returns how many of its processes the kernel has killed for want of memory; `None` where
    /// nobody counts. The last figure stays after [`Child::reap`].
    pub fn oom_kills(&self) -> Option<u64> {
        let body = self.body();
        body.oom_kills.or_else(|| body.group.cell.oom_kills())
    }

    /// Returns a reader of its counters, which may be read while somebody waits for its end.
    pub fn counters(&self) -> Counters {
        Counters::new(self.body().group.cell.clone())
    }

    /// Returns what it takes to let the child outlive the daemon.
    pub fn keep_handle(&self) -> KeepHandle {
        let body = self.body();
        KeepHandle { group: Arc::clone(&body.group), forget: body.forget.clone() }
    }

    /// Lets the child run on, watched and signalled by nobody.
    pub fn leave(mut self) {
        // What is in the body only holds files.
        drop(self.body.take());
    }

    /// Returns a handle for signals.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle { group: Arc::clone(&self.body().group) }
    }

    #[expect(clippy::expect_used, reason = "the body is taken by `drop`, after which nobody calls")]
    fn body(&self) -> &Body {
        self.body.as_ref().expect("only `drop` takes the body")
    }

    #[expect(clippy::expect_used, reason = "the body is taken by `drop`, after which nobody calls")]
    fn body_mut(&mut self) -> &mut Body {
        self.body.as_mut().expect("only `drop` takes the body")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take() else { return };
        if *body.group.leader() != Leader::Gone {
            body.group.kill();
            // Nobody is left to wait for it but the runtime, which ends with the daemon.
            drop(self.runtime.spawn(async move { body.reap().await }));
        }
    }
}

impl StopHandle {
    /// Signals the whole group. Does nothing once the child was reaped: all was killed before.
    pub fn signal(&self, signal: StopSignal) {
        match signal {
            StopSignal::Terminate => {
                let leader = self.group.leader();
                self.group.signal(*leader, Signal::SIGTERM);
                // A stopped process hears nothing but this.
                self.group.signal(*leader, Signal::SIGCONT);
            }
            StopSignal::Kill => self.group.kill(),
        }
    }
}

impl KeepHandle {
    /// Returns what a later daemon recognises the child by, as long as it lives; `nonce` is what its
    /// environment holds. `None` where that cannot be read.
    pub fn identity(&self, nonce: String) -> Option<Identity> {
        adopt::identify(self.group.number(), nonce, &self.group.cell)
    }

    /// Takes the child off the guard's list: from here on it outlives a daemon that is killed.
    pub async fn release(&self) {
        self.forget.release().await;
    }
}

impl Group {
    fn leader(&self) -> MutexGuard<'_, Leader> {
        // The value is one word: a panic elsewhere cannot leave it half changed.
        self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self) -> u32 {
        self.id.as_raw().unsigned_abs()
    }

    /// Sends `signal` while the leader pins the number.
    fn signal(&self, leader: Leader, signal: Signal) {
        let sent = match (&self.hold, leader) {
            (Hold::Number, Leader::Unreaped) => killpg(self.id, signal),
            (Hold::Number, Leader::Reaped | Leader::Gone) | (Hold::Handle(_), Leader::Gone) => {
                Ok(())
            }
            (Hold::Handle(handle), Leader::Unreaped | Leader::Reaped) => {
                sys::signal_group(handle, Some(signal))
            }
        };
        if let Err(error) = sent {
            debug!(pid = self.number(), %signal, %error, "process group took no signal");
        }
    }

    fn kill(&self) {
        let leader = self.leader();
        if *leader != Leader::Gone {
            self.cell.kill();
        }
        self.signal(*leader, Signal::SIGKILL);
    }

    /// Kills all, then reaps the leader and those members that are our own children.
    fn kill_and_reap(&self) {
        let mut leader = self.leader();
        self.cell.kill();
        self.signal(*leader, Signal::SIGKILL);
        self.reap_members();
        if *leader == Leader::Unreaped {
            *leader = Leader::Reaped;
        }
    }

    /// Reaps every ended child of ours in the group: the leader, and as init or subreaper orphans
    /// too.
    fn reap_members(&self) {
        if matches!(self.hold, Hold::Handle(_)) {
            return;
        }
        let members = Pid::from_raw(-self.id.as_raw());
        let still = |status| status == WaitStatus::StillAlive;
        while waitpid(members, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| !still(status)) {}
    }

    /// Waits until the group is empty, killing members that appear late.
    async fn emptied(&self) {
        let mut pause = POLL_MIN;
        let mut looks = 0_u32;
        loop {
            self.reap_members();
            let sent = match &self.hold {
                Hold::Number => killpg(self.id, Signal::SIGKILL),
                Hold::Handle(handle) => sys::signal_group(handle, Some(Signal::SIGKILL)),
            };
            // ESRCH alone means empty: macOS answers EPERM for a group of zombies. EINVAL for a handle is
            // an old kernel: beyond the leader, which has ended, nobody can be named for sure.
            let is_old = matches!(self.hold, Hold::Handle(_)) && sent == Err(Errno::EINVAL);
            if is_old || sent == Err(Errno::ESRCH) {
                return;
            }
            looks = looks.saturating_add(1);
            // Zombies count as members until their parent reaps them, which may be never.
            if looks > 1 && identity::has_live_member(self.number()) == Some(false) {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = POLL_MAX.min(pause.saturating_mul(2));
        }
    }
}

impl Body {
    async fn wait(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        let status = self.notice.ended(self.group.id).await;
        self.status = Some(status);
        status
    }

    async fn reap(&mut self) {
        self.wait().await;
        if *self.group.leader() == Leader::Gone {
            return;
        }
        self.group.kill_and_reap();
        self.group.cell.kill_until_empty().await;
        // All members started in the cgroup, which cannot be left: it being empty says all.
        if self.group.cell.unified.is_none() {
            self.group.emptied().await;
        }
        self.oom_kills = self.group.cell.oom_kills();
        self.group.cell.remove();
        if let Some(socket) = &self.socket {
            // Most engines remove it themselves.
            drop(fs::remove_file(socket));
        }
        self.forget.tell().await;
        *self.group.leader() = Leader::Gone;
    }
}

impl Notice {
    /// Takes the best that can be had: a child that runs must not be lost for want of a file.
    fn new(pid: Pid, hold: &Hold) -> Self {
        if let Hold::Handle(handle) = hold {
            let started = identity::start_time(pid.as_raw().unsigned_abs());
            let handle = handle.try_clone().and_then(|fd| sys::watch(fd, Interest::READABLE));
            return handle.map_or(Self::Polled, |handle| Self::Adopted(handle, started));
        }
        let handle = sys::open_pidfd(pid).and_then(|fd| sys::watch(fd, Interest::READABLE));
        handle.map(Self::Handle).or_else(|_| Self::thread(pid)).unwrap_or(Self::Polled)
    }

    fn thread(pid: Pid) -> io::Result<Self> {
        let (tx, rx) = watch::channel(false);
        let wait = move || {
            // An error means that there is nothing to wait for.
            drop(sys::peek_exit(pid, Peek::Block));
            tx.send_replace(true);
        };
        // It ends with the child, and nobody needs its result.
        let thread = std::thread::Builder::new().name(format!("wait-{pid}"));
        thread.stack_size(64 << 10).spawn(wait).map(|_| Self::Thread(rx))
    }

    async fn ended(&mut self, pid: Pid) -> ExitStatus {
        if let Self::Adopted(handle, started) = self {
            while !sys::has_ended(handle.get_ref()) {
                match handle.readable().await {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(_) => return ExitStatus::Unknown,
                }
            }
            let pid = pid.as_raw().unsigned_abs();
            return exit_of_adopted(handle.get_ref(), (pid, *started)).await;
        }
        loop {
            match sys::peek_exit(pid, Peek::Now) {
                Ok(Some(status)) => return status,
                Ok(None) => {}
                Err(error) => {
                    debug!(%pid, %error, "exit status was not readable");
                    return ExitStatus::Unknown;
                }
            }
            match self {
                Self::Handle(handle) | Self::Adopted(handle, _) => match handle.readable().await {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(_) => return ExitStatus::Unknown,
                },
                Self::Polled => tokio::time::sleep(POLL_MAX).await,
                Self::Thread(ended) => drop(ended.wait_for(|ended| *ended).await.is_ok()),
            }
        }
    }
}

/// Reads the status of an adopted child: of a zombie from `/proc`, of one that its real parent has
/// reaped from the kernel's handle. No news of a death waits long for it.
async fn exit_of_adopted(handle: &OwnedFd, (pid, started): (u32, Option<u64>)) -> ExitStatus {
    for _ in 0..STATUS_TRIES {
        let zombie = started.and_then(|started| identity::unreaped_status(pid, started));
        if let Some(status) = zombie.map(sys::exit_status).or_else(|| sys::exit_of(handle)) {
            return status;
        }
        tokio::time::sleep(STATUS_PAUSE).await;
    }
    ExitStatus::Unknown
}
