use insta::assert_snapshot;

use super::*;
use crate::cli::example;

fn text(slot: &SlotObject) -> String {
    slot_text(slot, &["srv  update_slots: all slots are idle".to_owned()], Paint::Never)
}

#[test]
fn a_ready_slot_is_told() {
    assert_snapshot!(text(&example::ready()), @r"
    chat: ready for 12m
      model     models/SmolLM2-135M-Instruct.Q4_1.gguf
      engine    llama-server (/usr/libexec/slotd/llama-server)
      process   pid 4242, generation 3, 276 MiB
      cores     computes on 3 CPU cores
      requests  1 of 4 running, 0 waiting
      names     gpt-4o, default
      profile   /etc/slotd/profiles/chat.toml
      loads in  about 1.3s

    log, last 1 line:
      | srv  update_slots: all slots are idle

    next: nothing to do
    ");
}

#[test]
fn a_starting_slot_is_told_with_its_progress() {
    assert_snapshot!(text(&example::starting()), @r"
    coder-large: starting for 3.1s
      model     bartowski/Qwen2.5-Coder-32B-Instruct-GGUF:Q4_K_M
      engine    llama-server (/usr/libexec/slotd/llama-server)
      process   pid 4250, generation 3, 276 MiB
      cores     computes on 3 CPU cores
      loading   attempt 2, 42 %, 3.1s of about 7.0s
      requests  0 of 4 running, 5 waiting
      profile   /etc/slotd/profiles/coder-large.toml
      loads in  about 7.0s
      rung      2 of 4, q8_0 cache

    log, last 1 line:
      | srv  update_slots: all slots are idle

    next: it loads; `slotd logs -f coder-large` shows what it writes
    ");
}

#[test]
fn a_slot_that_backs_off_is_told_with_its_evidence() {
    assert_snapshot!(text(&example::backoff()), @r"
    embed: backoff for 900ms
      model     models/SmolLM2-135M-Instruct.Q4_1.gguf
      engine    candle (/usr/bin/slotd)
      profile   /etc/slotd/profiles/embed.toml
      loads in  about 1.3s
      restarts  2

    last death: crash (certain), 2026-11-21 09:00:12 UTC (generation 7, pid 4111, after 1m 5s)
      reason    SIGSEGV ended it after it had been ready
      evidence  signal 11; no OOM kill; nothing known in its log
      | slot launch_slot_: id  0 | task 12 | processing task
      | ggml.c:3456: GGML_ASSERT(ne[0] > 0) failed

    log, last 1 line:
      | srv  update_slots: all slots are idle

    next: the next try comes in 9.4s; `slotd load embed` tries at once
    ");
}

#[test]
fn a_failed_slot_is_told_with_what_to_do() {
    assert_snapshot!(slot_text(&example::failed(), &[], Paint::Never), @r"
    vision: failed for 2h 5m
      model     small.gguf
      engine    llama-server
      profile   /etc/slotd/profiles/vision.toml

    last death: bad-model (likely), 2026-11-21 09:00:12 UTC (generation 1, pid 4099, after 210ms)
      reason    it exited with code 1 while starting; its log says `gguf_init_from_file: tensor data is not within file bounds`
      evidence  exit code 1; no OOM counter; its log says `gguf_init_from_file: tensor data is not within file bounds`

    next: fetch the model again, or name another in /etc/slotd/profiles/vision.toml, then `slotd load vision`
    ");
}

#[test]
fn a_slot_at_rest_is_told() {
    assert_snapshot!(slot_text(&example::offline(), &[], Paint::Never), @r"
    small: offline for 3d 4h
      model     small.gguf
      engine    auto
      profile   /etc/slotd/profiles/small.toml

    next: the next request loads it; `slotd load small` loads it at once
    ");
}

#[test]
fn somebody_elses_engine_is_told() {
    assert_snapshot!(slot_text(&example::absent(), &[], Paint::Never), @r"
    remote: offline for 12m
      model     qwen
      engine    external
      address   http://127.0.0.1:8080
      offline   nobody listens at http://127.0.0.1:8080
      profile   /etc/slotd/profiles/remote.toml

    next: start it at http://127.0.0.1:8080: slotd does not run this engine, and sends requests there as soon as it answers
    ");
    let asleep = SlotObject {
        state: "ready".to_owned(),
        absence: None,
        asleep: Some(true),
        in_flight: Some(0),
        ..example::absent()
    };
    assert_snapshot!(slot_text(&asleep, &[], Paint::Never), @r"
    remote: ready for 12m
      model     qwen
      engine    external
      address   http://127.0.0.1:8080
      asleep    yes
      requests  0 running, 0 waiting
      profile   /etc/slotd/profiles/remote.toml

    next: nothing to do: the next request wakes it
    ");
}

#[test]
fn a_slot_in_line_says_what_it_waits_for() {
    assert_snapshot!(slot_text(&example::queued(), &[], Paint::Never), @r"
    coder: queued for 4.2s
      model     models/SmolLM2-135M-Instruct.Q4_1.gguf
      engine    llama-server (/usr/libexec/slotd/llama-server)
      queued    it needs 20 GiB of memory, and 6.5 GiB can be had; it waits for chat
      requests  2 waiting
      profile   /etc/slotd/profiles/coder.toml
      loads in  about 1.3s

    next: wait: it is loaded as soon as there is room; `slotd unload coder` takes it out of the line
    ");
}

#[test]
fn a_slot_that_needs_another_machine_is_told() {
    assert_snapshot!(slot_text(&example::skipped(), &[], Paint::Never), @r"
    elsewhere: offline for 3d 4h
      model     small.gguf
      engine    auto
      skipped   its profile needs `gpus` = 1, and 0 are there
      profile   /etc/slotd/profiles/elsewhere.toml

    next: ask for less under `[needs]` in /etc/slotd/profiles/elsewhere.toml, or run it on a machine that has it
    ");
}

/// All was well.
#[test]
fn what_can_never_be_loaded_and_a_machine_at_its_end_are_not_well() {
    let sources = [("memory", "critical"), ("cpu", "normal"), ("gpu-0", "critical")];
    let sources = sources.map(|(source, level)| (source.to_owned(), level.to_owned())).into();
    let level = "critical".to_owned();
    let pressure = Some(PressureObject { level, throttle: 0.0, sources });
    let well = DaemonObject { faults: Vec::new(), storage: Vec::new(), ..example::daemon() };
    let strained = DaemonObject { pressure, ..well };
    let slots = [example::giant(), example::skipped(), example::queued()];
    let told = daemon_text(&strained, &slots, Paint::Never);
    assert_snapshot!(told.split_once("\n\n").unwrap().1, @r"
    health:
      - giant can never be loaded here; `slotd status giant` says why
      - elsewhere is skipped on this machine: its profile needs `gpus` = 1, and 0 are there
      - next to nothing is left of gpu-0, memory: clients that can wait are asked to hold back (throttle 0)
    ");
}

#[test]
fn an_unready_slot_is_told() {
    assert_snapshot!(slot_text(&example::unready(), &[], Paint::Never), @r"
    voice: unready for 12m
      engine    command (/opt/whisper/server)
      process   pid 4242, generation 3, 276 MiB
      requests  1 of 1 running, 0 waiting
      profile   /etc/slotd/profiles/voice.toml

    next: it runs and says that it is not ready: no requests go to it until it is; `slotd restart voice` replaces it
    ");
}

#[test]
fn an_edit_that_failed_is_told() {
    let slot = example::rolled_back();
    assert_snapshot!(slot_text(&slot, &[], Paint::Never), @r"
    chat: ready for 12m
      model     models/SmolLM2-135M-Instruct.Q4_1.gguf
      engine    llama-server (/usr/libexec/slotd/llama-server)
      process   pid 4242, generation 5, 276 MiB
      cores     computes on 3 CPU cores
      requests  1 of 4 running, 0 waiting
      names     gpt-4o, default
      profile   /etc/slotd/profiles/chat.toml
      edit      runs its previous profile; the edit of 2026-11-21 09:00:12 UTC failed: its log says `error: invalid argument: --contxt` (bad-config)
      loads in  about 1.3s

    next: correct /etc/slotd/profiles/chat.toml, or try it as it is with `slotd restart chat`
    ");
    let daemon = DaemonObject { faults: Vec::new(), storage: Vec::new(), ..example::daemon() };
    let told = daemon_text(&daemon, &[slot], Paint::Never);
    assert_snapshot!(told.lines().last().unwrap(), @"  - chat runs its previous profile: its edit failed (bad-config); `slotd status chat` says why");
}

#[test]
fn slots_on_their_way_down_are_told() {
    for state in ["draining", "stopping", "reaping"] {
        let slot = SlotObject { state: state.to_owned(), ..example::unready() };
        let text = slot_text(&slot, &[], Paint::Never);
        assert!(text.starts_with(&format!("voice: {state} for 12m\n")), "{text}");
        assert!(text.ends_with("next: wait: it is on its way down\n"), "{text}");
    }
}

#[test]
fn the_daemon_is_told_with_what_is_wrong() {
    let daemon = example::daemon();
    assert_snapshot!(daemon_text(&daemon, &example::slots(), Paint::Never), @r"
    slotd 1.2.3, pid 4001, up 3d 4h
      endpoint  http://127.0.0.1:7568
      control   /run/slotd/control.sock
      state     /var/lib/slotd
      profiles  /etc/slotd/profiles
      slots     5, 1 of them ready
      cores     6 of 8 in use by engines
      pressure  memory elevated; throttle 0.5

    health:
      - embed waits to start again (crash); `slotd status embed` says why
      - vision has failed (bad-model); `slotd status vision` says why
      - /var/lib/slotd/logs (engine logs) takes no writes since 2026-11-21 09:00:12 UTC: No space left on device; what engines write is lost
      - profile not applied: /etc/slotd/profiles/chat.toml:2:1: contxt: unknown key
        hint: did you mean `context`?
    ");
    let pressure = daemon.pressure.clone().map(|pressure| {
        let sources = [("disk".to_owned(), "critical".to_owned())].into();
        PressureObject { sources, ..pressure }
    });
    let short = daemon_text(&DaemonObject { pressure, ..daemon.clone() }, &[], Paint::Never);
    let told = short.lines().find(|line| line.contains("history")).unwrap();
    assert_snapshot!(told, @"  history   not written while the disk is nearly full: peaks, uses and deaths are kept in memory alone, benches are not kept, engine logs are cut at 1 MiB");
    let well = DaemonObject { faults: Vec::new(), storage: Vec::new(), pressure: None, ..daemon };
    assert_snapshot!(daemon_text(&well, &[example::ready()], Paint::Never), @r"
    slotd 1.2.3, pid 4001, up 3d 4h
      endpoint  http://127.0.0.1:7568
      control   /run/slotd/control.sock
      state     /var/lib/slotd
      profiles  /etc/slotd/profiles
      slots     1, 1 of them ready
      cores     3 of 8 in use by engines

    health: all is well
    ");
}
