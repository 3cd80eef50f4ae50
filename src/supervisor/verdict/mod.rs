//! From evidence to a verdict.
//!
//! Pure. The wait status alone never decides between memory and anything else.

mod words;

use self::words::{describe, with_last_line, with_xids};
use crate::spec::death::{Confidence, Evidence, ExitStatus, KernelLog, LogCause, Phase, Verdict};

/// What slotd itself had done to the child before it died.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum OurPart {
    /// Nothing.
    None,
    /// It was told to stop, or killed after its grace.
    Stopped,
}

/// What is made of the evidence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Judgement {
    pub(super) verdict: Verdict,
    pub(super) confidence: Confidence,
    /// One sentence: what happened, and what the judgement rests on.
    pub(super) reason: String,
}

/// Judges one death.
///
/// 1. We asked for it.
/// 2. The kernel's log names it, or the spawn's own cgroup counted an OOM kill. Where neither can
///    be read: `SIGKILL` in the same seconds as an OOM kill that was counted nearby.
/// 3. `SIGKILL` and the signals that mean "end": somebody else, not memory.
/// 4. The engine's own exit code or last words say why.
/// 5. Another signal: a crash.
/// 6. Exit code 0, or a code without a known text.
///
/// What the driver reported of its GPUs is told beside it, and decides nothing: one fault has many effects,
/// and a program's own mistake is reported as well.
pub(super) fn judge(evidence: &Evidence, phase: Phase, ours: OurPart) -> Judgement {
    let judged = judge_end(evidence, phase, ours);
    match with_xids(&judged.reason, evidence) {
        Some(reason) if ours != OurPart::Stopped => Judgement { reason, ..judged },
        Some(_) | None => judged,
    }
}

fn judge_end(evidence: &Evidence, phase: Phase, ours: OurPart) -> Judgement {
    let end = End::of(evidence.status);
    let how = describe(end.status, phase);
    let judged = |verdict, confidence, reason| Judgement { verdict, confidence, reason };
    if ours == OurPart::Stopped {
        let reason = format!("slotd stopped it: {how}");
        return judged(Verdict::StoppedByUs, Confidence::Certain, reason); // (1)
    }
    if let Some((confidence, words)) = oom_kill(evidence, end) {
        return judged(Verdict::OomHost, confidence, format!("{how}; {words}")); // (2)
    }
    if let ExitStatus::Signal(signal @ (1 | 2 | 3 | 9 | 15)) = end.status {
        let (confidence, words) = somebody(evidence, signal);
        let reason = format!("{how}; slotd did not send it, and {words}");
        return judged(Verdict::KilledByOther, end.at_most(confidence), reason); // (3)
    }
    if let Some((verdict, confidence, words)) = own_words(evidence, end, phase) {
        return judged(verdict, confidence, format!("{how}; {words}")); // (4)
    }
    match (end.status, phase) {
        (ExitStatus::Signal(_), _) => {
            let reason = match &evidence.kernel_log {
                KernelLog::Fault { line } => format!("{how}; the kernel's log says `{line}`"),
                KernelLog::Unreadable | KernelLog::Silent | KernelLog::OomKill { .. } => how,
            };
            judged(Verdict::Crash, end.at_most(Confidence::Certain), reason) // (5)
        }
        (ExitStatus::Code(0), _) => {
            judged(Verdict::UnexpectedExit, Confidence::Certain, with_last_line(&how, evidence))
        }
        (ExitStatus::Code(_) | ExitStatus::Unknown, Phase::Starting) => {
            judged(Verdict::UnexpectedExit, Confidence::Guessed, with_last_line(&how, evidence))
        }
        (ExitStatus::Code(_), Phase::Serving) => {
            judged(Verdict::Crash, Confidence::Likely, with_last_line(&how, evidence))
        }
        (ExitStatus::Unknown, Phase::Serving) => {
            judged(Verdict::Crash, Confidence::Guessed, with_last_line(&how, evidence))
        } // (6)
    }
}

/// How a child ended.
#[derive(Clone, Copy, Debug)]
struct End {
    status: ExitStatus,
    teller: Teller,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Teller {
    /// The wait status itself.
    Kernel,
    /// A shell or another wrapper, whose exit code is 128 + the signal's number.
    Wrapper,
}

impl End {
    /// Source: the last signal of Linux that is no real-time signal is 31.
    fn of(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Code(code @ (129..=159)) => {
                Self { status: ExitStatus::Signal(code - 128), teller: Teller::Wrapper }
            }
            ExitStatus::Code(_) | ExitStatus::Signal(_) | ExitStatus::Unknown => {
                Self { status, teller: Teller::Kernel }
            }
        }
    }

    /// A program may return such a code for reasons of its own.
    fn at_most(self, confidence: Confidence) -> Confidence {
        match self.teller {
            Teller::Kernel => confidence,
            Teller::Wrapper => confidence.min(Confidence::Likely),
        }
    }

    fn was_killed(self) -> bool {
        self.status == ExitStatus::Signal(9)
    }

    /// Tells whether a kill for want of memory can end so, of the process or of one that it needed.
    fn can_be_oom_kill(self) -> bool {
        !matches!(self.status, ExitStatus::Code(0) | ExitStatus::Signal(1 | 2 | 3 | 15))
    }
}

/// Says what tells of a kill by the kernel for want of memory.
fn oom_kill(evidence: &Evidence, end: End) -> Option<(Confidence, String)> {
    if !end.can_be_oom_kill() {
        return None;
    }
    // The kernel kills with SIGKILL; another end may follow from the kill of a helper.
    let told = if end.was_killed() { Confidence::Certain } else { Confidence::Likely };
    let counted = evidence.oom_kills.filter(|kills| *kills > 0);
    match (counted, &evidence.kernel_log) {
        (Some(kills), _) => Some((told, format!("its cgroup counted {kills} OOM kill(s)"))),
        (None, KernelLog::OomKill { line }) => {
            Some((told, format!("the kernel's log says `{line}`")))
        }
        (None, KernelLog::Unreadable) if evidence.oom_kills.is_none() && end.was_killed() => {
            nearby(evidence).map(|words| (Confidence::Likely, words))
        }
        (None, KernelLog::Unreadable | KernelLog::Silent | KernelLog::Fault { .. }) => None,
    }
}

/// OOM kills in the same seconds that cannot be placed on this very child.
fn nearby(evidence: &Evidence) -> Option<String> {
    if evidence.daemon_oom_kills.is_some_and(|kills| kills > 0) {
        return Some(
            "in the same seconds the cgroup that it shared with slotd counted an OOM kill"
                .to_owned(),
        );
    }
    // Anybody's, on a machine with many: it counts only where memory was short everywhere.
    let is_counted = evidence.machine_oom_kills.is_some_and(|kills| kills > 0);
    (is_counted && evidence.memory.was_scarce() == Some(true))
        .then(|| "in the same seconds the machine, short of memory, counted an OOM kill".to_owned())
}

/// Says what speaks against memory when a signal came that slotd did not send.
fn somebody(evidence: &Evidence, signal: i32) -> (Confidence, String) {
    let (confidence, words) = match evidence {
        Evidence { oom_kills: Some(_), .. } => {
            (Confidence::Certain, "its cgroup counted no OOM kill")
        }
        Evidence { machine_oom_kills: Some(0), .. } => {
            (Confidence::Certain, "the machine counted no OOM kill")
        }
        Evidence { kernel_log: KernelLog::Silent | KernelLog::Fault { .. }, .. } => {
            (Confidence::Likely, "the kernel's log knows of no OOM kill")
        }
        Evidence { machine_oom_kills: Some(_), .. } => {
            (Confidence::Guessed, "an OOM kill that the machine counted need not be this one")
        }
        Evidence { .. } => (Confidence::Guessed, "no OOM counter was to be had"),
    };
    // The kernel ends nobody with the others for want of memory.
    let confidence = if signal == 9 { confidence } else { Confidence::Certain };
    let hint = if evidence.memory.was_scarce() == Some(true) {
        "; the machine was short of memory, a daemon that watches it may have sent it"
    } else {
        ""
    };
    (confidence, format!("{words}{hint}"))
}

/// The engine's own account: its last words first, for they say more than a number.
fn own_words(evidence: &Evidence, end: End, phase: Phase) -> Option<(Verdict, Confidence, String)> {
    let (cause, confidence, words) = match (&evidence.log, evidence.code_cause) {
        (Some(finding), code) => {
            let agree = code == Some(finding.cause);
            let confidence = if agree { Confidence::Certain } else { finding.confidence };
            (finding.cause, confidence, format!("its log says `{}`", finding.line))
        }
        (None, Some(cause)) => {
            let words = with_last_line("the exit code says so", evidence);
            (cause, Confidence::Certain, words)
        }
        (None, None) => return None,
    };
    let verdict = match (cause, phase) {
        // Whoever runs out of memory does not end well.
        (LogCause::OutOfMemory | LogCause::OutOfDeviceMemory, _)
            if end.status == ExitStatus::Code(0) =>
        {
            return None;
        }
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
    // A failed allocation ends in an exit or an abort; another signal may only have come after it.
    let is_usual = matches!(end.status, ExitStatus::Code(_) | ExitStatus::Signal(6));
    let confidence = if is_usual { confidence } else { Confidence::Guessed };
    Some((verdict, confidence, words))
}

#[cfg(test)]
mod tests;
