//! How an end is told.

use crate::spec::{
    death::{Evidence, ExitStatus, Phase},
    gpu::{XidBefore, XidName},
};

/// Adds the last line of the log that says anything.
pub(super) fn with_last_line(how: &str, evidence: &Evidence) -> String {
    match evidence.last_lines.iter().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => {
            let line: String = line.trim().chars().take(200).collect();
            format!("{how}; the last line of its log is `{line}`")
        }
        None => format!("{how}; its log is empty"),
    }
}

/// Adds the last two faults that were reported of its GPUs, where there were some.
pub(super) fn with_xids(reason: &str, evidence: &Evidence) -> Option<String> {
    let told = evidence.xids.iter().rev().take(2).rev().map(|xid| {
        let XidBefore { gpu, code, before_ms } = xid;
        format!("GPU {gpu} reported {} {before_ms} ms before", XidName(*code))
    });
    let told = told.collect::<Vec<_>>().join(", ");
    (!told.is_empty()).then(|| format!("{reason}; {told}"))
}

/// Says how and when it ended.
pub(super) fn describe(status: ExitStatus, phase: Phase) -> String {
    let when = match phase {
        Phase::Starting => "while starting",
        Phase::Serving => "after it had been ready",
    };
    match status {
        ExitStatus::Code(code) => format!("it exited with code {code} {when}"),
        ExitStatus::Signal(signal) => format!("{} ended it {when}", signal_name(signal)),
        ExitStatus::Unknown => format!("it ended {when}, its wait status could not be read"),
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}
