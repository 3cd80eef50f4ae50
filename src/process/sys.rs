//! The calls that safe code cannot make, and nothing else: all `unsafe` of this folder is here.

use std::{
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{Resource, rlim_t, setrlimit},
        signal::{SigSet, Signal},
        stat::{Mode, umask},
    },
    unistd::{Pid, getppid, write},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::spec::{death::ExitStatus, profile::OnExit};

/// What a child does between `fork` and `exec`. All of it is prepared before the fork: the child of
/// a threaded process may neither allocate nor lock.
#[derive(Debug)]
pub(super) struct Setup {
    /// Whether the child is to end with the daemon.
    pub(super) on_exit: OnExit,
    /// The daemon. A child that finds another parent came too late for the parent-death signal.
    pub(super) parent: Pid,
    /// Open `cgroup.procs` files to join, each with the byte that reports a refusal.
    pub(super) joins: Vec<(OwnedFd, u8)>,
    /// What to write to `oom_score_adj`.
    pub(super) oom_score: Vec<u8>,
    /// The soft and the hard limit of open files, where the daemon has raised its own.
    pub(super) files: Option<(rlim_t, rlim_t)>,
    /// Takes one byte for each thing that could not be done and that an engine can live without.
    pub(super) report: OwnedFd,
}

/// Reports that `oom_score_adj` could not be raised.
pub(super) const NO_OOM_SCORE: u8 = b'o';

/// Makes `command` run `setup` in each child before `exec`.
#[expect(unsafe_code, reason = "code between fork and exec has no safe form")]
pub(super) fn run_before_exec(command: &mut Command, setup: Setup) {
    // SAFETY: `Setup::run` makes system calls only, on memory that was prepared before the fork: it
    // takes no lock, allocates nothing and cannot panic.
    unsafe { command.pre_exec(move || setup.run()) };
}

/// Makes `command` start in a session of its own with nothing but its three standard streams.
#[expect(unsafe_code, reason = "code between fork and exec has no safe form")]
pub(super) fn detach_before_exec(command: &mut Command) {
    let run = || {
        nix::unistd::setsid()?;
        reset_signals()?;
        mark_close_on_exec();
        Ok(())
    };
    // SAFETY: `run` makes system calls only, as `Setup::run` does.
    unsafe { command.pre_exec(run) };
}

impl Setup {
    fn run(&self) -> io::Result<()> {
        self.die_with_parent()?;
        for (procs, refused) in &self.joins {
            // `0` names the writer itself.
            if write(procs, b"0").is_err() {
                self.report(*refused);
            }
        }
        if self.raise_oom_score().is_err() {
            self.report(NO_OOM_SCORE);
        }
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        if let Some((soft, hard)) = self.files {
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        }
        umask(Mode::from_bits_truncate(0o077));
        reset_signals()?;
        mark_close_on_exec();
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn die_with_parent(&self) -> io::Result<()> {
        use nix::sys::prctl;
        if self.on_exit == OnExit::Stop {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
        }
        // The parent may have died before the line above: then no signal comes any more.
        if getppid() == self.parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    }

    #[cfg(not(target_os = "linux"))]
    fn die_with_parent(&self) -> io::Result<()> {
        // There is no parent-death signal: the guard alone ends a child whose daemon was killed.
        if getppid() == self.parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    }

    #[cfg(target_os = "linux")]
    fn raise_oom_score(&self) -> nix::Result<()> {
        use nix::fcntl::{OFlag, open};
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = open(c"/proc/self/oom_score_adj", flags, Mode::empty())?;
        write(file.as_fd(), &self.oom_score).map(drop)
    }

    #[cfg(not(target_os = "linux"))]
    fn raise_oom_score(&self) -> nix::Result<()> {
        // There is no such score; the value is unused.
        let _: &[u8] = &self.oom_score;
        Ok(())
    }

    fn report(&self, what: u8) {
        // A report that does not fit is one more thing that an engine can live without.
        write(self.report.as_fd(), &[what]).ok();
    }
}

/// Gives each signal its default meaning and an empty mask: an engine must not inherit what the
/// daemon, or the shell or service manager behind it, ignores.
#[expect(
    unsafe_code,
    reason = "a safe wrapper would have to keep handlers, of which there are none"
)]
fn reset_signals() -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: `SIG_DFL` runs no code. Numbers that cannot be set (KILL, STOP, the C library's
        // own) are refused by the call, which is what is wanted.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    Ok(())
}

#[cfg(target_os = "linux")]
const LAST_SIGNAL: libc::c_int = 64;
#[cfg(not(target_os = "linux"))]
const LAST_SIGNAL: libc::c_int = 31;

/// Marks every open file above 2 to be closed by `exec`. They are not closed here, because one of
/// them is the pipe on which the parent learns that `exec` failed.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no safe wrapper of `close_range` is at hand")]
fn mark_close_on_exec() {
    let (first, last, flags) = (3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: the call takes three numbers, and changes a flag of files that are open anyway.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if done != 0 {
        mark_each(65_536);
    }
}

#[cfg(not(target_os = "linux"))]
fn mark_close_on_exec() {
    mark_each(10_240);
}

/// Marks file by file, for kernels without `close_range` (Linux before 5.11, macOS).
#[expect(unsafe_code, reason = "the numbers of files that others own have no safe form")]
fn mark_each(end: libc::c_int) {
    for fd in 3..end {
        // SAFETY: setting the flag of a file that is open is harmless to its owner in the parent,
        // whose table is another one; a number that is not open is refused.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Takes over the file with number `fd` if it is a listening socket, and closes it at `exec`. What
/// is anything else belongs to somebody and is not touched.
#[expect(unsafe_code, reason = "a file that is known by its number alone has no safe form")]
pub(super) fn take_listener(fd: RawFd) -> Option<OwnedFd> {
    let mut listens: libc::c_int = 0;
    let mut size = libc::socklen_t::try_from(size_of::<libc::c_int>()).ok()?;
    let value = (&raw mut listens).cast();
    // SAFETY: the call fills `listens`, whose size it is told; a number that is no socket is refused.
    let done = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN, value, &raw mut size)
    };
    if done != 0 || listens == 0 {
        return None;
    }
    // SAFETY: it is open. This program has not opened a listening socket yet (the caller's promise),
    // so nobody in it owns this one.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    Some(socket)
}

/// Opens a handle that becomes readable when the process `pid` ends.
///
/// # Errors
/// `ESRCH` when there is none, `ENOSYS` before Linux 5.3 and elsewhere; the caller then waits in a thread.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no safe wrapper of `pidfd_open` is at hand")]
pub(super) fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers. Of whom the handle is, is the caller's to know: an unreaped
    // child, or a process that is examined through the handle.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let raw = RawFd::try_from(raw).map_err(io::Error::other)?;
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this file for us a moment ago; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[cfg(not(target_os = "linux"))]
pub(super) fn open_pidfd(_: Pid) -> io::Result<OwnedFd> {
    Err(Errno::ENOSYS.into())
}

/// Tells whether the process behind a handle has ended.
pub(super) fn has_ended(handle: &OwnedFd) -> bool {
    let mut files = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
    // What cannot be asked counts as ended: nothing is done to it then.
    poll(&mut files, PollTimeout::ZERO) != Ok(0)
}

/// Signals the process group that the process behind a handle leads, or led; `None` asks whether
/// there is a member. It can reach nobody else: a handle never names another process.
///
/// # Errors
/// `ESRCH` when nobody is left; `EINVAL` before Linux 6.9, where only the leader can be reached.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no safe wrapper of `pidfd_send_signal` is at hand")]
pub(super) fn signal_group(handle: &OwnedFd, signal: Option<Signal>) -> nix::Result<()> {
    use std::os::fd::AsRawFd;
    /// Source: `linux/pidfd.h`, `PIDFD_SIGNAL_PROCESS_GROUP`.
    const WHOLE_GROUP: libc::c_uint = 1 << 2;
    #[expect(clippy::as_conversions, reason = "the number of a signal is what it is defined as")]
    let number = signal.map_or(0, |signal| signal as libc::c_int);
    let send = |flags: libc::c_uint| {
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the call takes numbers and a null pointer, which means "as `kill` would send it".
        let done = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, handle.as_raw_fd(), number, info, flags)
        };
        Errno::result(done).map(drop)
    };
    match send(WHOLE_GROUP) {
        Err(Errno::EINVAL) => send(0).and(Err(Errno::EINVAL)),
        done => done,
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn signal_group(_: &OwnedFd, _: Option<Signal>) -> nix::Result<()> {
    Err(Errno::EINVAL)
}

/// Reads how the process behind a handle ended, though it was nobody's child here; `None` before its
/// parent has reaped it, and before Linux 6.15.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no safe wrapper of this `ioctl` is at hand")]
pub(super) fn exit_of(handle: &OwnedFd) -> Option<ExitStatus> {
    use std::os::fd::AsRawFd;
    /// Source: `linux/pidfd.h`: `struct pidfd_info` as of its first version, 64 bytes.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const WITH_EXIT: u64 = 1 << 3;
    /// `_IOWR(0xFF, 11, struct pidfd_info)`.
    const GET_INFO: libc::c_ulong = 0xc040_ff0b;
    let mut info = Info { mask: WITH_EXIT, ..Info::default() };
    // SAFETY: the request carries the size of `info`, which is writable and of the kernel's layout.
    let done = unsafe { libc::ioctl(handle.as_raw_fd(), GET_INFO, &raw mut info) };
    if done != 0 || info.mask & WITH_EXIT == 0 {
        return None;
    }
    Some(exit_status(info.exit_code))
}

/// Reads a wait status.
pub(super) fn exit_status(status: i32) -> ExitStatus {
    if libc::WIFSIGNALED(status) {
        ExitStatus::Signal(libc::WTERMSIG(status))
    } else if libc::WIFEXITED(status) {
        ExitStatus::Code(libc::WEXITSTATUS(status))
    } else {
        ExitStatus::Unknown
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn exit_of(_: &OwnedFd) -> Option<ExitStatus> {
    None
}

/// Lets the runtime watch a file. The caller has entered it.
#[expect(unsafe_code, reason = "the safe form is deprecated, because it takes types that lie")]
pub(super) fn watch(file: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, names one file until it is dropped, and gives the same number
    // each time; the `AsyncFd` owns it.
    let watched = unsafe { AsyncFd::register_with_interest(file, interest) };
    Ok(watched?)
}

/// Whether to wait for the end of a child.
#[derive(Clone, Copy, Debug)]
pub(super) enum Peek {
    /// Return at once.
    Now,
    /// Block the thread until it has ended.
    Block,
}

/// Reads how the child `pid` ended and leaves it unreaped; `None` while it runs.
///
/// # Errors
/// `ECHILD` when it is no child of ours or was reaped.
#[expect(unsafe_code, reason = "the safe wrapper is missing on macOS and loses real-time signals")]
pub(super) fn peek_exit(pid: Pid, peek: Peek) -> io::Result<Option<ExitStatus>> {
    let id = libc::id_t::try_from(pid.as_raw()).map_err(io::Error::other)?;
    let flags = libc::WEXITED
        | libc::WNOWAIT
        | match peek {
            Peek::Now => libc::WNOHANG,
            Peek::Block => 0,
        };
    let mut found = MaybeUninit::<libc::siginfo_t>::zeroed();
    loop {
        // SAFETY: `found` is writable and of the type that the call fills.
        let done = unsafe { libc::waitid(libc::P_PID, id, found.as_mut_ptr(), flags) };
        if done == 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: all zeroes is a valid `siginfo_t`, and so is what the kernel writes.
    let found = unsafe { found.assume_init() };
    // SAFETY: after `waitid` the fields of a child's end are the ones in use; zero if there is none.
    let ended = unsafe { found.si_pid() };
    // SAFETY: as above.
    let status = unsafe { found.si_status() };
    Ok(match (ended, found.si_code) {
        (0, _) => None,
        (_, libc::CLD_EXITED) => Some(ExitStatus::Code(status)),
        (_, libc::CLD_KILLED | libc::CLD_DUMPED) => Some(ExitStatus::Signal(status)),
        (_, _) => Some(ExitStatus::Unknown),
    })
}
