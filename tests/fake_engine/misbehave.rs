//! What engines do that their supervisor has to bear.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, raise},
    time::{ClockId, clock_gettime},
    unistd::{dup2_stderr, dup2_stdout, setsid},
};

use crate::{append, say, script::Script};

/// Does what the script asks for before the engine serves.
pub(crate) fn before_serving(script: &Script) -> io::Result<()> {
    if let Some(text) = &script.say {
        say(text);
    }
    if let Some(path) = &script.dump {
        dump(path)?;
    }
    flood(script.flood)?;
    if script.fork {
        grandchild(Session::Same, Stdout::Closed)?;
    }
    if script.setsid {
        grandchild(Session::Own, Stdout::Closed)?;
    }
    if script.hold_stdout {
        grandchild(Session::Same, Stdout::Held)?;
    }
    for _ in 0..script.zombies {
        Command::new("/bin/true").stdin(Stdio::null()).spawn()?;
    }
    for _ in 0..script.sleepers {
        grandchild(Session::Same, Stdout::Closed)?;
    }
    if script.close_output {
        let null = fs::File::options().write(true).open("/dev/null")?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
    }
    if script.abort {
        raise(Signal::SIGABRT)?;
    }
    if script.segv {
        // Rust's own handler takes the first one, and makes the next one deadly.
        raise(Signal::SIGSEGV)?;
        raise(Signal::SIGSEGV)?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Session {
    Same,
    Own,
}

#[derive(Clone, Copy)]
enum Stdout {
    Closed,
    Held,
}

/// Starts a process that sleeps for ever, and says its process id.
fn grandchild(session: Session, stdout: Stdout) -> io::Result<()> {
    let mut command = Command::new("/bin/sleep");
    command.arg("1000000").stdin(Stdio::null());
    if let Stdout::Closed = stdout {
        command.stdout(Stdio::null()).stderr(Stdio::null());
    }
    if let Session::Own = session {
        own_session(&mut command);
    }
    let pid = command.spawn()?.id();
    say(&format!("grandchild {pid}"));
    Ok(())
}

#[expect(unsafe_code, reason = "code between fork and exec has no safe form")]
fn own_session(command: &mut Command) {
    let run = || setsid().map(drop).map_err(io::Error::from);
    // SAFETY: `run` makes one system call.
    unsafe { command.pre_exec(run) };
}

/// CPU time of this thread so far.
pub(crate) fn cpu_time() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Writes `bytes` bytes to stdout.
fn flood(bytes: usize) -> io::Result<()> {
    let mut line = vec![b'x'; 1023];
    line.push(b'\n');
    for _ in 0..bytes.div_ceil(line.len()) {
        io::stdout().write_all(&line)?;
    }
    Ok(())
}

/// Writes down what it found itself in: files, environment, limits, signals.
fn dump(path: &std::path::Path) -> io::Result<()> {
    let mut text = String::new();
    let mut note =
        |line: std::fmt::Arguments<'_>| writeln!(text, "{line}").map_err(io::Error::other);
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let target = fs::read_link(entry.path()).unwrap_or_default();
        // The listing itself is one.
        if !target.to_string_lossy().ends_with("/fd") {
            note(format_args!("fd {} {}", entry.file_name().display(), target.display()))?;
        }
    }
    for (key, value) in std::env::vars_os() {
        note(format_args!("env {}={}", key.display(), value.display()))?;
    }
    note(format_args!("oom_score_adj {}", fs::read_to_string("/proc/self/oom_score_adj")?.trim()))?;
    for line in fs::read_to_string("/proc/self/status")?.lines() {
        if ["Sig", "Umask"].iter().any(|start| line.starts_with(start)) {
            note(format_args!("{}", line.replace(":\t", " ")))?;
        }
    }
    for line in fs::read_to_string("/proc/self/limits")?.lines() {
        if line.starts_with("Max core") {
            note(format_args!("{line}"))?;
        }
    }
    note(format_args!("cgroup {}", fs::read_to_string("/proc/self/cgroup")?.replace('\n', " ")))?;
    append(path, &text)
}
