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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::death::LogFinding;

    fn ended(status: ExitStatus) -> Evidence {
        Evidence { status, code_cause: None, log: None, oom_kills: None, last_lines: Vec::new() }
    }

    fn says(cause: LogCause) -> LogFinding {
        LogFinding { cause, line: "error: so it is".to_owned() }
    }

    fn verdict(evidence: &Evidence, phase: Phase) -> Verdict {
        judge(evidence, phase, OurPart::None).0
    }

    fn while_serving(status: ExitStatus) -> Verdict {
        verdict(&ended(status), Phase::Serving)
    }

    #[test]
    fn what_we_stopped_is_no_death_of_its_own_whatever_else_is_seen() {
        let evidence = Evidence {
            oom_kills: Some(3),
            log: Some(says(LogCause::OutOfDeviceMemory)),
            ..ended(ExitStatus::Signal(9))
        };
        let (verdict, reason) = judge(&evidence, Phase::Serving, OurPart::Stopped);
        assert_eq!(verdict, Verdict::StoppedByUs);
        assert_eq!(reason, "slotd stopped it: SIGKILL ended it after it had been ready");
    }

    #[test]
    fn a_kill_by_an_admin_is_not_a_memory_death() {
        let with_counter = Evidence { oom_kills: Some(0), ..ended(ExitStatus::Signal(9)) };
        let (verdict, reason) = judge(&with_counter, Phase::Serving, OurPart::None);
        assert_eq!(verdict, Verdict::KilledByOther);
        assert!(reason.ends_with("and its cgroup counted no OOM kill"), "{reason}");
        let (verdict, reason) = judge(&ended(ExitStatus::Signal(9)), Phase::Serving, OurPart::None);
        assert_eq!(verdict, Verdict::KilledByOther);
        assert!(reason.ends_with("and no OOM counter was to be had"), "{reason}");
    }

    #[test]
    fn the_oom_counter_wins_over_the_log() {
        let evidence = Evidence {
            oom_kills: Some(1),
            log: Some(says(LogCause::BadModel)),
            code_cause: Some(LogCause::BadConfig),
            ..ended(ExitStatus::Code(1))
        };
        assert_eq!(verdict(&evidence, Phase::Starting), Verdict::OomHost);
    }

    #[test]
    fn a_wrappers_exit_code_stands_for_the_signal() {
        assert_eq!(while_serving(ExitStatus::Code(137)), Verdict::KilledByOther);
        assert_eq!(while_serving(ExitStatus::Code(143)), Verdict::KilledByOther);
        let (aborted, reason) = judge(&ended(ExitStatus::Code(134)), Phase::Serving, OurPart::None);
        assert_eq!(aborted, Verdict::Crash);
        assert_eq!(reason, "SIGABRT ended it after it had been ready");
        assert_eq!(while_serving(ExitStatus::Code(128)), Verdict::Crash, "no signal has number 0");
    }

    #[test]
    fn a_wrappers_kill_counted_by_the_cgroup_is_a_memory_death() {
        let evidence = Evidence { oom_kills: Some(1), ..ended(ExitStatus::Code(137)) };
        assert_eq!(verdict(&evidence, Phase::Serving), Verdict::OomHost);
    }

    #[test]
    fn an_abort_after_a_failed_allocation_is_a_memory_death() {
        let abort = ended(ExitStatus::Signal(6));
        assert_eq!(verdict(&abort, Phase::Serving), Verdict::Crash);
        let host = Evidence { log: Some(says(LogCause::OutOfMemory)), ..abort.clone() };
        assert_eq!(verdict(&host, Phase::Serving), Verdict::OomHost);
        let device = Evidence { log: Some(says(LogCause::OutOfDeviceMemory)), ..abort };
        assert_eq!(verdict(&device, Phase::Serving), Verdict::OomDevice);
    }

    #[test]
    fn complaints_about_arguments_count_only_until_it_was_ready() {
        for (cause, expected) in [
            (LogCause::BadConfig, Verdict::BadConfig),
            (LogCause::MissingFile, Verdict::MissingFile),
            (LogCause::BadModel, Verdict::BadModel),
            (LogCause::PortBusy, Verdict::PortBusy),
        ] {
            let logged = Evidence { log: Some(says(cause)), ..ended(ExitStatus::Code(1)) };
            assert_eq!(verdict(&logged, Phase::Starting), expected);
            assert_eq!(verdict(&logged, Phase::Serving), Verdict::Crash);
            let coded = Evidence { code_cause: Some(cause), ..ended(ExitStatus::Code(70)) };
            assert_eq!(verdict(&coded, Phase::Starting), expected);
        }
    }

    #[test]
    fn the_last_words_say_more_than_the_exit_code() {
        let evidence = Evidence {
            log: Some(says(LogCause::MissingFile)),
            code_cause: Some(LogCause::BadConfig),
            ..ended(ExitStatus::Code(64))
        };
        assert_eq!(verdict(&evidence, Phase::Starting), Verdict::MissingFile);
    }

    #[test]
    fn an_end_without_a_word_is_unexpected_and_shows_the_last_line() {
        let last_lines = vec!["loading".to_owned(), "bye".to_owned(), " ".to_owned()];
        let silent = Evidence { last_lines, ..ended(ExitStatus::Code(3)) };
        let (verdict, reason) = judge(&silent, Phase::Starting, OurPart::None);
        assert_eq!(verdict, Verdict::UnexpectedExit);
        assert_eq!(
            reason,
            "it exited with code 3 while starting; the last line of its log is `bye`"
        );
        assert_eq!(while_serving(ExitStatus::Code(3)), Verdict::Crash);
        assert_eq!(while_serving(ExitStatus::Code(0)), Verdict::UnexpectedExit);
        assert_eq!(while_serving(ExitStatus::Unknown), Verdict::Crash);
    }

    #[test]
    fn signals_that_nobody_sends_on_purpose_are_crashes() {
        for signal in [4, 6, 7, 8, 11] {
            assert_eq!(while_serving(ExitStatus::Signal(signal)), Verdict::Crash, "{signal}");
        }
        for signal in [1, 2, 3, 9, 15] {
            let verdict = while_serving(ExitStatus::Signal(signal));
            assert_eq!(verdict, Verdict::KilledByOther, "{signal}");
        }
    }
}
