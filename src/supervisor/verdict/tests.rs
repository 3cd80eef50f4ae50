use super::*;
use crate::spec::{
    Bytes,
    death::{LogFinding, MemorySample, MemoryTimeline},
    gpu::XidBefore,
};

fn ended(status: ExitStatus) -> Evidence {
    Evidence::of(status)
}

fn says(cause: LogCause) -> LogFinding {
    LogFinding { cause, line: "error: so it is".to_owned(), confidence: Confidence::Likely }
}

fn verdict(evidence: &Evidence, phase: Phase) -> Verdict {
    judge(evidence, phase, OurPart::None).verdict
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
    let Judgement { verdict, reason, .. } = judge(&evidence, Phase::Serving, OurPart::Stopped);
    assert_eq!(verdict, Verdict::StoppedByUs);
    assert_eq!(reason, "slotd stopped it: SIGKILL ended it after it had been ready");
}

#[test]
fn a_kill_by_an_admin_is_not_a_memory_death() {
    let with_counter = Evidence { oom_kills: Some(0), ..ended(ExitStatus::Signal(9)) };
    let Judgement { verdict, reason, .. } = judge(&with_counter, Phase::Serving, OurPart::None);
    assert_eq!(verdict, Verdict::KilledByOther);
    assert!(reason.ends_with("and its cgroup counted no OOM kill"), "{reason}");
    let Judgement { verdict, reason, .. } =
        judge(&ended(ExitStatus::Signal(9)), Phase::Serving, OurPart::None);
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
    let Judgement { verdict: aborted, reason, .. } =
        judge(&ended(ExitStatus::Code(134)), Phase::Serving, OurPart::None);
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
    let Judgement { verdict, reason, .. } = judge(&silent, Phase::Starting, OurPart::None);
    assert_eq!(verdict, Verdict::UnexpectedExit);
    assert_eq!(reason, "it exited with code 3 while starting; the last line of its log is `bye`");
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

fn judged(evidence: &Evidence) -> (Verdict, Confidence) {
    let Judgement { verdict, confidence, .. } = judge(evidence, Phase::Serving, OurPart::None);
    (verdict, confidence)
}

fn killed() -> Evidence {
    ended(ExitStatus::Signal(9))
}

fn oom_line() -> KernelLog {
    KernelLog::OomKill { line: "Out of memory: Killed process 7 (llama-server)".to_owned() }
}

/// A machine with this much of 16 GiB left in the last second.
fn left(available: u64) -> MemoryTimeline {
    let sample = MemorySample {
        before_ms: 400,
        rss_bytes: Some(Bytes(12 << 30)),
        available_bytes: Some(Bytes(available)),
    };
    MemoryTimeline { total_bytes: Some(Bytes(16 << 30)), limit_bytes: None, samples: vec![sample] }
}

#[test]
fn a_kill_counted_or_named_by_the_kernel_is_certain() {
    let counted = Evidence { oom_kills: Some(1), ..killed() };
    assert_eq!(judged(&counted), (Verdict::OomHost, Confidence::Certain));
    let named = Evidence { kernel_log: oom_line(), ..killed() };
    assert_eq!(judged(&named), (Verdict::OomHost, Confidence::Certain));
    // Of a member that ended in its own way, the kill was another's: a helper's.
    let helper = Evidence { oom_kills: Some(1), ..ended(ExitStatus::Code(1)) };
    assert_eq!(judged(&helper), (Verdict::OomHost, Confidence::Likely));
}

#[test]
fn an_end_that_was_asked_for_is_no_memory_death_whatever_a_helper_died_of() {
    for status in [ExitStatus::Signal(15), ExitStatus::Signal(2), ExitStatus::Code(0)] {
        let evidence = Evidence { oom_kills: Some(1), kernel_log: oom_line(), ..ended(status) };
        assert_ne!(judged(&evidence).0, Verdict::OomHost, "{status:?}");
    }
}

#[test]
fn kills_counted_nearby_decide_only_where_nothing_better_is_readable() {
    let shared = Evidence { daemon_oom_kills: Some(1), ..killed() };
    assert_eq!(judged(&shared), (Verdict::OomHost, Confidence::Likely));
    let machine =
        Evidence { machine_oom_kills: Some(2), memory: Box::new(left(200 << 20)), ..killed() };
    assert_eq!(judged(&machine), (Verdict::OomHost, Confidence::Likely));
    let plenty = Evidence { memory: Box::new(left(9 << 30)), ..machine.clone() };
    assert_eq!(judged(&plenty), (Verdict::KilledByOther, Confidence::Guessed));
    let own_counter = Evidence { oom_kills: Some(0), ..machine.clone() };
    assert_eq!(judged(&own_counter), (Verdict::KilledByOther, Confidence::Certain));
    let silent_log = Evidence { kernel_log: KernelLog::Silent, ..machine };
    assert_eq!(judged(&silent_log), (Verdict::KilledByOther, Confidence::Likely));
    let crash = Evidence {
        machine_oom_kills: Some(2),
        memory: Box::new(left(200 << 20)),
        ..ended(ExitStatus::Signal(11))
    };
    assert_eq!(judged(&crash).0, Verdict::Crash);
}

#[test]
fn a_kill_without_any_counter_is_somebodys_and_a_guess() {
    assert_eq!(judged(&killed()), (Verdict::KilledByOther, Confidence::Guessed));
    let no_kills = Evidence { machine_oom_kills: Some(0), ..killed() };
    assert_eq!(judged(&no_kills), (Verdict::KilledByOther, Confidence::Certain));
    let scarce = Evidence { oom_kills: Some(0), memory: Box::new(left(100 << 20)), ..killed() };
    let reason = judge(&scarce, Phase::Serving, OurPart::None).reason;
    assert!(reason.ends_with("short of memory, a daemon that watches it may have sent it"));
}

#[test]
fn a_wrappers_code_is_never_as_certain_as_a_wait_status() {
    let signal = Evidence { oom_kills: Some(0), ..killed() };
    let code = Evidence { status: ExitStatus::Code(137), ..signal.clone() };
    assert_eq!(judged(&signal).1, Confidence::Certain);
    assert_eq!(judged(&code), (Verdict::KilledByOther, Confidence::Likely));
    for (code, name) in [(139, "SIGSEGV"), (152, "SIGXCPU"), (159, "SIGSYS")] {
        let judgement = judge(&ended(ExitStatus::Code(code)), Phase::Serving, OurPart::None);
        assert_eq!(judgement.verdict, Verdict::Crash);
        assert!(judgement.reason.starts_with(name), "{judgement:?}");
    }
}

#[test]
fn an_engine_that_ended_well_did_not_die_of_what_it_had_said_before() {
    let evidence =
        Evidence { log: Some(says(LogCause::OutOfMemory)), ..ended(ExitStatus::Code(0)) };
    assert_eq!(judged(&evidence), (Verdict::UnexpectedExit, Confidence::Certain));
}

#[test]
fn words_and_a_code_that_agree_are_certain_and_a_signal_after_words_is_a_guess() {
    let words = Evidence { log: Some(says(LogCause::OutOfMemory)), ..ended(ExitStatus::Code(71)) };
    assert_eq!(judged(&words), (Verdict::OomHost, Confidence::Likely));
    let both = Evidence { code_cause: Some(LogCause::OutOfMemory), ..words.clone() };
    assert_eq!(judged(&both), (Verdict::OomHost, Confidence::Certain));
    let aborted = Evidence { status: ExitStatus::Signal(6), ..words.clone() };
    assert_eq!(judged(&aborted).1, Confidence::Likely);
    let faulted = Evidence { status: ExitStatus::Signal(11), ..words };
    assert_eq!(judged(&faulted).1, Confidence::Guessed);
}

#[test]
fn a_fault_in_the_kernels_log_is_told() {
    let line = "llama-server[7]: segfault at 0 ip 0 sp 0 error 4".to_owned();
    let evidence =
        Evidence { kernel_log: KernelLog::Fault { line }, ..ended(ExitStatus::Signal(11)) };
    let judgement = judge(&evidence, Phase::Serving, OurPart::None);
    assert_eq!((judgement.verdict, judgement.confidence), (Verdict::Crash, Confidence::Certain));
    assert!(judgement.reason.ends_with("`llama-server[7]: segfault at 0 ip 0 sp 0 error 4`"));
}

#[test]
fn a_fault_of_its_gpu_is_told_beside_the_verdict_and_does_not_change_it() {
    let xids = vec![XidBefore { gpu: 1, code: 31, before_ms: 40 }];
    let crashed = Evidence { xids, ..ended(ExitStatus::Signal(6)) };
    let Judgement { verdict, reason, .. } = judge(&crashed, Phase::Serving, OurPart::None);
    assert_eq!(verdict, Verdict::Crash);
    let wanted = "; GPU 1 reported Xid 31 (GPU memory page fault) 40 ms before";
    assert!(reason.ends_with(wanted), "{reason}");
    let stopped = judge(&crashed, Phase::Serving, OurPart::Stopped).reason;
    assert!(!stopped.contains("Xid"), "{stopped}");
}
