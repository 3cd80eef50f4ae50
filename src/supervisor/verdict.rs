//! From evidence to a verdict.
//!
//! Pure. The wait status alone never decides between memory and anything else.

use crate::spec::death::{Evidence, ExitStatus, LogCause, Phase, Verdict};

/// What slotd itself had done to the child before it died.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum OurPart {
    /// Nothing.
    None,
    /// It was told to stop, or killed after its grace.
    Stopped,
}

/// Judges one death, and says in one sentence what the judgement rests on.
///
/// 1. We asked for it.
/// 2. The spawn's own cgroup counted an OOM kill.
/// 3. `SIGKILL` and the signals that mean "end": somebody else, not memory.
/// 4. The engine's own exit code or last words say why.
/// 5. Another signal: a crash.
/// 6. Exit code 0, or a code without a known text.
pub(super) fn judge(evidence: &Evidence, phase: Phase, ours: OurPart) -> (Verdict, String) {
    let status = effective(evidence.status);
    let how = describe(status, phase);
    if ours == OurPart::Stopped {
        return (Verdict::StoppedByUs, format!("slotd stopped it: {how}")); // (1)
    }
    if let Some(kills) = evidence.oom_kills.filter(|kills| *kills > 0) {
        let reason = format!("{how}; its cgroup counted {kills} OOM kill(s)");
        return (Verdict::OomHost, reason); // (2)
    }
    if let ExitStatus::Signal(1 | 2 | 3 | 9 | 15) = status {
        let cgroup = match evidence.oom_kills {
            Some(_) => "its cgroup counted no OOM kill",
            None => "no OOM counter was to be had",
        };
        return (Verdict::KilledByOther, format!("{how}; slotd did not send it, and {cgroup}")); // (3)
    }
    if let Some((verdict, words)) = own_words(evidence, phase) {
        return (verdict, format!("{how}; {words}")); // (4)
    }
    match (status, phase) {
        (ExitStatus::Signal(_), _) => (Verdict::Crash, how), // (5)
        (ExitStatus::Code(0), _) | (_, Phase::Starting) => {
            (Verdict::UnexpectedExit, with_last_line(&how, evidence))
        } // (6)
        (ExitStatus::Code(_) | ExitStatus::Unknown, Phase::Serving) => {
            (Verdict::Crash, with_last_line(&how, evidence))
        }
    }
}

/// A shell or another wrapper reports a signal as 128 + its number.
fn effective(status: ExitStatus) -> ExitStatus {
    match status {
        ExitStatus::Code(code @ (129..=143)) => ExitStatus::Signal(code - 128),
        ExitStatus::Code(_) | ExitStatus::Signal(_) | ExitStatus::Unknown => status,
    }
}

/// The engine's own account: its last words first, for they say more than a number.
fn own_words(evidence: &Evidence, phase: Phase) -> Option<(Verdict, String)> {
    let from_log = evidence
        .log
        .as_ref()
        .map(|finding| (finding.cause, format!("its log says `{}`", finding.line)));
    let from_code =
        evidence.code_cause.map(|cause| (cause, with_last_line("the exit code says so", evidence)));
    let (cause, words) = from_log.or(from_code)?;
    let verdict = match (cause, phase) {
        (LogCause::OutOfMemory, _) => Verdict::OomHost,
        (LogCause::OutOfDeviceMemory, _) => Verdict::OomDevice,
        (LogCause::BadConfig, Phase::Starting) => Verdict::BadConfig,
        (LogCause::MissingFile, Phase::Starting) => Verdict::MissingFile,
        (LogCause::BadModel, Phase::Starting) => Verdict::BadModel,
        (LogCause::PortBusy, Phase::Starting) => Verdict::PortBusy,
        // Once it was ready, its arguments, files and address had been good.
        (
            LogCause::BadConfig | LogCause::MissingFile | LogCause::BadModel | LogCause::PortBusy,
            Phase::Serving,
        ) => return None,
    };
    Some((verdict, words))
}

fn with_last_line(how: &str, evidence: &Evidence) -> String {
    match evidence.last_lines.iter().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => {
            let line: String = line.trim().chars().take(200).collect();
            format!("{how}; the last line of its log is `{line}`")
        }
        None => format!("{how}; its log is empty"),
    }
}

fn describe(status: ExitStatus, phase: Phase) -> String {
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
        other => return format!("signal {other}"),
    };
    name.to_owned()
}
