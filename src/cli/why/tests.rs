use insta::assert_snapshot;

use super::*;
use crate::{
    cli::example,
    spec::{
        Bytes, Generation,
        death::{
            Confidence, Evidence, ExitStatus, KernelLog, LogCause, LogFinding, MemorySample,
            MemoryTimeline,
        },
    },
};

fn text(slot: &SlotObject) -> String {
    Story::of(slot).text(Paint::Never)
}

fn death(verdict: Verdict, reason: &str, evidence: Option<Evidence>) -> DeathObject {
    DeathObject {
        generation: Generation(3),
        pid: evidence.as_ref().map(|_| 4111),
        verdict,
        confidence: Confidence::Certain,
        reason: reason.to_owned(),
        phase: Phase::Starting,
        ran_for_ms: 1_240,
        at_unix_ms: 1_795_251_612_345,
        evidence,
    }
}

/// A slot in `state` whose last death is this one.
fn after(state: &str, death: DeathObject) -> SlotObject {
    SlotObject {
        state: state.to_owned(),
        verdict: Some(death.verdict),
        reason: Some(death.reason.clone()),
        pid: None,
        since_ms: 4_000,
        tally: 1,
        deaths: vec![death],
        ..example::ready()
    }
}

fn found(cause: LogCause, line: &str) -> LogFinding {
    LogFinding { cause, line: line.to_owned(), confidence: Confidence::Likely }
}

fn timeline(limit: Option<u64>, rss: &[u64]) -> MemoryTimeline {
    let samples = rss.iter().rev().enumerate().map(|(at, rss)| MemorySample {
        before_ms: 100 + 250 * u64::try_from(at).unwrap(),
        rss_bytes: Some(Bytes(rss << 20)),
        available_bytes: Some(Bytes(12 << 30)),
    });
    let mut samples: Vec<_> = samples.collect();
    samples.reverse();
    let limit_bytes = limit.map(|limit| Bytes(limit << 20));
    MemoryTimeline { total_bytes: Some(Bytes(24 << 30)), limit_bytes, samples }
}

#[test]
fn a_kill_for_want_of_memory_below_a_limit() {
    let evidence = Evidence {
        oom_kills: Some(1),
        kernel_log: KernelLog::OomKill {
            line:
                "Memory cgroup out of memory: Killed process 4111 (llama-server) total-vm:912004kB"
                    .to_owned(),
        },
        memory: Box::new(timeline(Some(150), &[12, 61, 118, 149])),
        last_lines: vec!["0.00.005.269 I srv    load_model: loading model".to_owned()],
        ..Evidence::of(ExitStatus::Signal(9))
    };
    let reason = "SIGKILL ended it while starting; its cgroup counted 1 OOM kill(s)";
    let slot = after("backoff", death(Verdict::OomHost, reason, Some(evidence)));
    let slot = SlotObject { retry_in_ms: Some(4_900), ..slot };
    assert_snapshot!(text(&slot), @r"
    chat: backoff; oom-host (certain), 2026-11-21 09:00:12 UTC

    what happened
      - there was not enough memory of the host for it (while loading, after 1.2s; pid 4111, generation 3)

    how we know
      - ended by SIGKILL
      - slotd had sent it no signal
      - its own cgroup counted 1 OOM kill in its last seconds
      - the kernel's log: `Memory cgroup out of memory: Killed process 4111 (llama-server) total-vm:912004kB`
      - its own log names no cause that is known
      - its memory was limited to 150 MiB
      - its memory: 12 MiB 850ms before, 61 MiB 600ms before, 118 MiB 350ms before, 149 MiB 100ms before; the machine had 12 GiB of 24 GiB left
      - its last words:
        | 0.00.005.269 I srv    load_model: loading model

    what slotd did
      - it waits before the next start (1 death in a row): 4.9s left

    what you can do
      - raise the limit of 150 MiB, or lower `context` or `parallel` in /etc/slotd/profiles/chat.toml, or name a smaller quantisation
      - the next try comes in 4.9s; `slotd load chat` tries at once
    ");
}

#[test]
fn a_kill_by_an_admin() {
    let evidence = Evidence {
        oom_kills: Some(0),
        kernel_log: KernelLog::Silent,
        memory: Box::new(timeline(None, &[276, 276])),
        last_lines: vec!["0.12.005.269 I srv  update_slots: all slots are idle".to_owned()],
        ..Evidence::of(ExitStatus::Signal(9))
    };
    let reason = "SIGKILL ended it after it had been ready; slotd did not send it, and its cgroup \
                  counted no OOM kill";
    let death = DeathObject {
        phase: Phase::Serving,
        ran_for_ms: 754_000,
        ..death(Verdict::KilledByOther, reason, Some(evidence))
    };
    let slot = after("ready", death);
    assert_snapshot!(text(&SlotObject { generation: Generation(4), ..slot }), @r"
    chat: ready; killed-by-other (certain), 2026-11-21 09:00:12 UTC

    what happened
      - somebody else ended it, by a signal (while serving, after 12m; pid 4111, generation 3)

    how we know
      - ended by SIGKILL
      - slotd had sent it no signal
      - its own cgroup counted no OOM kill in its last seconds
      - the kernel's log does not name it
      - its own log names no cause that is known
      - its memory: 276 MiB 350ms before, 276 MiB 100ms before; the machine had 12 GiB of 24 GiB left
      - its last words:
        | 0.12.005.269 I srv  update_slots: all slots are idle

    what slotd did
      - 1 start since; the last is generation 4
      - it serves again, for 4.0s

    what you can do
      - ask who sent the signal: another admin, a script, a daemon that watches memory; nothing in the profile is to blame
    ");
}

#[test]
fn memory_of_a_device() {
    let line = "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9000.00 MiB on device 0: \
                cudaMalloc failed: out of memory";
    let evidence = Evidence {
        oom_kills: Some(0),
        log: Some(found(LogCause::OutOfDeviceMemory, line)),
        ..Evidence::of(ExitStatus::Code(1))
    };
    let reason = format!("it exited with code 1 while starting; its log says `{line}`");
    let death = DeathObject {
        confidence: Confidence::Likely,
        ..death(Verdict::OomDevice, &reason, Some(evidence))
    };
    let slot = SlotObject { tally: 8, ..after("failed", death) };
    assert_snapshot!(text(&slot), @r"
    chat: failed; oom-device (likely), 2026-11-21 09:00:12 UTC

    what happened
      - there was not enough memory of the device for it (while loading, after 1.2s; pid 4111, generation 3)

    how we know
      - exit code 1
      - slotd had sent it no signal
      - its own cgroup counted no OOM kill in its last seconds
      - the kernel's log cannot be read here
      - its own log: `ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9000.00 MiB on device 0: cudaMalloc failed: out of memory`

    what slotd did
      - it gave up after 8 deaths in a row

    what you can do
      - lower `context`, `parallel` or `gpu_layers` in /etc/slotd/profiles/chat.toml, or name a smaller quantisation; see what else is on the device
      - then `slotd load chat`
    ");
}

#[test]
fn a_typo_in_a_flag() {
    let evidence = Evidence {
        oom_kills: Some(0),
        log: Some(found(LogCause::BadConfig, "error: invalid argument: --bogus")),
        last_lines: vec!["error: invalid argument: --bogus".to_owned()],
        ..Evidence::of(ExitStatus::Code(1))
    };
    let reason = "it exited with code 1 while starting; its log says `error: invalid argument: \
                  --bogus`";
    let death = DeathObject {
        confidence: Confidence::Likely,
        ran_for_ms: 21,
        ..death(Verdict::BadConfig, reason, Some(evidence))
    };
    assert_snapshot!(text(&after("failed", death)), @r"
    chat: failed; bad-config (likely), 2026-11-21 09:00:12 UTC

    what happened
      - it refused its arguments (while loading, after 21ms; pid 4111, generation 3)

    how we know
      - exit code 1
      - slotd had sent it no signal
      - its own cgroup counted no OOM kill in its last seconds
      - the kernel's log cannot be read here
      - its own log: `error: invalid argument: --bogus`
      - its last words:
        | error: invalid argument: --bogus

    what slotd did
      - it does not try again: unchanged, it could only fail again

    what you can do
      - correct /etc/slotd/profiles/chat.toml
      - then `slotd load chat`
    ");
}

#[test]
fn a_crash_behind_a_wrapper_after_others() {
    let evidence = Evidence { machine_oom_kills: Some(0), ..Evidence::of(ExitStatus::Code(139)) };
    let reason = "SIGSEGV ended it after it had been ready";
    let last = DeathObject {
        confidence: Confidence::Likely,
        phase: Phase::Serving,
        ..death(Verdict::Crash, reason, Some(evidence))
    };
    let earlier =
        DeathObject { generation: Generation(2), at_unix_ms: 1_795_251_000_000, ..last.clone() };
    let ours = DeathObject {
        generation: Generation(1),
        at_unix_ms: 1_795_250_000_000,
        verdict: Verdict::StoppedByUs,
        confidence: Confidence::Certain,
        ..last.clone()
    };
    let slot = SlotObject { tally: 2, ..after("starting", last.clone()) };
    let slot = SlotObject { generation: Generation(4), deaths: vec![ours, earlier, last], ..slot };
    assert_snapshot!(text(&slot), @r"
    chat: starting; crash (likely), 2026-11-21 09:00:12 UTC

    what happened
      - it crashed (while serving, after 1.2s; pid 4111, generation 3)

    how we know
      - exit code 139: a wrapper's word for SIGSEGV
      - slotd had sent it no signal
      - it had no cgroup that counts OOM kills
      - the machine counted no OOM kill in these seconds
      - the kernel's log cannot be read here
      - its own log names no cause that is known

    what slotd did
      - 1 start since; the last is generation 4
      - it starts the engine again, for 4.0s

    what you can do
      - `slotd logs chat` shows all that it wrote; if it comes again, report it to the engine with its version
      - it loads; `slotd logs -f chat` shows what it writes

    before that
      - 2026-11-21 08:50:00 UTC  crash (likely), generation 2
      - 2026-11-21 08:33:20 UTC  stopped-by-us (certain), generation 1
    ");
}

#[test]
fn a_model_that_is_not_there() {
    let reason = "the model file `/srv/models/chat.gguf` is not there";
    let slot = after("failed", death(Verdict::MissingFile, reason, None));
    assert_snapshot!(text(&slot), @r"
    chat: failed; missing-file (certain), 2026-11-21 09:00:12 UTC

    what happened
      - a file that it needs is not there (found before the start, generation 3)
      - the model file `/srv/models/chat.gguf` is not there

    how we know
      - slotd's own check before the start; no process was made

    what slotd did
      - it does not try again: unchanged, it could only fail again

    what you can do
      - mend what is missing, or name another in /etc/slotd/profiles/chat.toml
      - then `slotd load chat`
    ");
}

#[test]
fn a_load_that_took_too_long() {
    let evidence = Evidence {
        oom_kills: Some(0),
        kernel_log: KernelLog::Silent,
        ..Evidence::of(ExitStatus::Signal(9))
    };
    let reason = "it was not ready after 60 s (`start_timeout`) and was killed";
    let death =
        DeathObject { ran_for_ms: 60_000, ..death(Verdict::StartTimeout, reason, Some(evidence)) };
    assert_snapshot!(text(&SlotObject { tally: 8, ..after("failed", death) }), @r"
    chat: failed; start-timeout (certain), 2026-11-21 09:00:12 UTC

    what happened
      - it was not ready in time (while loading, after 1m 0s; pid 4111, generation 3)
      - it was not ready after 60 s (`start_timeout`) and was killed

    how we know
      - ended by SIGKILL
      - slotd's own clock: it killed it itself
      - its own cgroup counted no OOM kill in its last seconds
      - the kernel's log does not name it
      - its own log names no cause that is known

    what slotd did
      - it gave up after 8 deaths in a row

    what you can do
      - raise `start_timeout` in /etc/slotd/profiles/chat.toml if the load only needs longer
      - then `slotd load chat`
    ");
}

#[test]
fn a_slot_that_never_died() {
    assert_snapshot!(text(&example::ready()), @r"
    chat: ready; no engine of it has died by itself

    what you can do
      - nothing to do
    ");
}

#[test]
fn json_has_the_same_story() {
    let slot = after("failed", death(Verdict::MissingFile, "it is not there", None));
    let story = serde_json::to_value(Story::of(&slot)).unwrap();
    assert_eq!(story["what_happened"][1], "it is not there");
    assert_eq!(story["death"]["confidence"], "certain");
    assert!(story["how_we_know"].is_array() && story["earlier"].is_array(), "{story}");
}

#[test]
fn an_edit_that_was_undone() {
    let reason = "it exited with 1 while starting; its log says `error: invalid argument: --contxt`; the profile that worked before is in force again";
    let death =
        DeathObject { generation: Generation(4), ..death(Verdict::BadConfig, reason, None) };
    let slot = SlotObject { deaths: vec![death], ..example::rolled_back() };
    assert_snapshot!(text(&slot), @r"
    chat: ready; bad-config (certain), 2026-11-21 09:00:12 UTC

    what happened
      - it refused its arguments (found before the start, generation 4)
      - it exited with 1 while starting; its log says `error: invalid argument: --contxt`; the profile that worked before is in force again

    how we know
      - slotd's own check before the start; no process was made

    what slotd did
      - 1 start since; the last is generation 5
      - it serves, for 12m
      - the slot runs its previous profile; the edit of 2026-11-21 09:00:12 UTC failed: its log says `error: invalid argument: --contxt` (bad-config)

    what you can do
      - correct /etc/slotd/profiles/chat.toml, or try it as it is with `slotd restart chat`
    ");
}

#[test]
fn somebody_elses_engine_has_a_story_without_a_death() {
    assert_snapshot!(text(&example::absent()), @r"
    remote: offline

    what happened
      - nobody listens at http://127.0.0.1:8080, for 12m; somebody else runs this engine

    what you can do
      - start it at http://127.0.0.1:8080: slotd does not run this engine, and sends requests there as soon as it answers
    ");
}

#[test]
fn a_slot_in_line_says_what_it_waits_for() {
    assert_snapshot!(text(&example::queued()), @r"
    coder: queued

    what happened
      - it waits for memory: it needs 20 GiB of memory, and 6.5 GiB can be had; it waits for chat; 4.2s in line

    what you can do
      - wait: it is loaded as soon as there is room; `slotd unload coder` takes it out of the line
    ");
}

#[test]
fn what_rules_and_pressure_did_is_told() {
    let rule = RuleActObject {
        rule: "evening".to_owned(),
        when: "when any pressure is critical".to_owned(),
        order: "unload chat".to_owned(),
        at_unix_ms: 1_772_398_800_000,
    };
    let slot = SlotObject {
        state: "offline".to_owned(),
        pid: None,
        unloaded_for: Some("memory".to_owned()),
        rule: Some(rule),
        ..example::ready()
    };
    assert_snapshot!(text(&slot), @r"
    chat: offline; no engine of it has died by itself

    what slotd did
      - it unloaded it because of pressure: the machine ran short of memory
      - the rule `evening` (when any pressure is critical) asked for `unload chat` at 2026-03-01 21:00:00 UTC

    what you can do
      - it went because the machine ran short; the next request or `slotd load chat` loads it
    ");
    let lowered = SlotObject { displaced_by: Some("coder".parse().unwrap()), ..example::ready() };
    assert!(text(&lowered).contains("  - it put it on a lower rung to make room for coder\n"));
}

#[test]
fn a_slot_that_can_never_fit_says_so() {
    assert_snapshot!(text(&example::giant()), @r"
    giant: queued

    what happened
      - it does not fit: it needs 200 GiB of memory, and 62 GiB can be had on this machine, whoever goes

    what you can do
      - give it less in /etc/slotd/profiles/giant.toml (a shorter `context`, a smaller model), or engines more (`memory_limit` of the daemon); `slotd unload giant` takes it out of the line
    ");
}

#[test]
fn a_slot_that_pinned_ones_keep_out_is_not_told_to_wait() {
    assert_snapshot!(text(&example::blocked()), @r"
    guest: queued

    what happened
      - it waits for memory: it needs 60 GiB of memory, and 40 GiB can be had, even if all that may go were gone; chat (18 GiB), embed (2.0 GiB) make room for nobody; 4.2s in line

    what you can do
      - unload some of `chat`, `embed` (`slotd unload NAME`) until there is room, or `slotd unpin` what is pinned; `slotd unload guest` takes it out of the line
    ");
}

#[test]
fn a_kept_slot_that_pressure_keeps_out_says_what_it_waits_for() {
    assert_snapshot!(text(&example::kept_out()), @r"
    coder: offline

    what happened
      - it was unloaded because the machine ran short of memory; it took 10 GiB of memory, and comes back once 12 GiB is free: with less the machine would run short again

    what you can do
      - wait: it comes back by itself; the next request or `slotd load coder` loads it at once
    ");
}

/// It said that the next request loads it, and that a load does so at once.
#[test]
fn a_slot_that_needs_another_machine_says_so_at_rest_too() {
    assert_snapshot!(text(&example::skipped()), @r"
    elsewhere: offline

    what happened
      - it is skipped on this machine: its profile needs `gpus` = 1, and 0 are there

    what you can do
      - ask for less under `[needs]` in /etc/slotd/profiles/elsewhere.toml, or run it on a machine that has it
    ");
    let queued = SlotObject { state: "queued".to_owned(), ..example::skipped() };
    let told = text(&queued);
    assert!(
        told.ends_with("has it; `slotd unload elsewhere` takes it out of the line\n"),
        "{told}"
    );
}
