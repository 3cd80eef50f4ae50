//! Slots that do not fit at once: who waits, who makes room, who comes back. Fake engines, and figures
//! of a person's own.

use std::{fs, os::unix::fs::symlink, path::Path, process::Output, time::Duration};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout},
};

use super::{
    common::{DEADLINE, Daemon, fake, scratch},
    stay::{said, slotd},
};

/// A directory whose daemon lets engines have 100 MiB together.
fn small(profiles: &[(&str, &str)]) -> TempDir {
    let dir = scratch(profiles);
    fs::create_dir(dir.path().join("slotd")).unwrap();
    let settings =
        "memory_limit = \"100MiB\"\nmemory_reserve = \"0B\"\nrestore_after = \"500ms\"\n";
    fs::write(dir.path().join("slotd/slotd.toml"), settings).unwrap();
    dir
}

fn needs(memory: &str, keys: &str) -> String {
    fake("", &format!("memory = \"{memory}\"\nmin_residency = \"0s\"\n{keys}"))
}

#[tokio::test]
async fn a_slot_that_does_not_fit_waits_until_the_other_is_gone() {
    let (held, wanted) = (needs("60MiB", "pinned = true"), needs("60MiB", ""));
    let daemon = Daemon::start(small(&[("held", &held), ("wanted", &wanted)])).await;
    daemon.order("held", "load").await;
    daemon.until_state("held", "ready").await;

    daemon.order("wanted", "load").await;
    let queued = daemon
        .until("wanted", "queued with its reason", |view| {
            view["waits_for"].as_str().is_some_and(|told| told.contains("can be had"))
        })
        .await;
    assert_eq!((&queued["state"], &queued["need_bytes"]), (&json!("queued"), &json!(60_u64 << 20)));
    assert_eq!(
        queued["waits_for"],
        "it needs 60 MiB of memory, and 40 MiB can be had, even if all that may go were gone; held (60 MiB) makes room for nobody"
    );
    assert_eq!(daemon.slot("held").await["state"], "ready");

    daemon.order("held", "unload").await;
    daemon.until_state("wanted", "ready").await;
    assert_eq!(daemon.slot("held").await["state"], "offline");
}

#[tokio::test]
async fn a_request_has_the_idle_slot_make_room_and_that_one_comes_back() {
    let (kept, guest) = (needs("60MiB", "autostart = true"), needs("60MiB", ""));
    let daemon = Daemon::start(small(&[("kept", &kept), ("guest", &guest)])).await;
    daemon.until_state("kept", "ready").await;

    let (answer, displaced) = tokio::join!(
        daemon.chat("guest"),
        daemon.until("kept", "displaced", |view| view["displaced_by"] == "guest")
    );
    assert_eq!(answer.status(), 200);
    assert_eq!(displaced["generation"], 1);
    let back = daemon
        .until("kept", "back", |view| view["state"] == "ready" && view["generation"] == 2)
        .await;
    assert_eq!(back["displaced_by"], json!(null));
    assert_eq!(daemon.slot("guest").await["state"], "offline");
}

#[tokio::test]
async fn what_can_never_fit_is_told_at_once_and_nobody_makes_room() {
    let (held, giant) = (needs("60MiB", ""), needs("200MiB", ""));
    let daemon = Daemon::start(small(&[("held", &held), ("giant", &giant)])).await;
    daemon.order("held", "load").await;
    daemon.until_state("held", "ready").await;

    for _ in 0..5 {
        let answer = daemon.chat("giant").await;
        assert_eq!(answer.status(), 503);
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["code"], "no_memory");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("200 MiB of memory, and 100 MiB can be had on this machine"),
            "{message}"
        );
    }
    let held = daemon.slot("held").await;
    assert_eq!((&held["state"], &held["generation"]), (&json!("ready"), &json!(1)));

    // Nor does a person wait for it.
    let load = timeout(DEADLINE, slotd(&daemon, "load giant")).await.expect("it waits for ever");
    let told = String::from_utf8_lossy(&load.stderr).into_owned();
    assert_eq!(load.status.code(), Some(69), "{told}");
    assert!(told.contains("giant can never be loaded here: it needs 200 MiB of memory"), "{told}");
    assert_eq!(daemon.slot("held").await["generation"], 1);
}

#[tokio::test]
async fn who_was_displaced_comes_back_after_a_restart_of_the_daemon() {
    let (first, guest) = (needs("60MiB", ""), needs("60MiB", ""));
    let mut daemon = Daemon::start(small(&[("first", &first), ("guest", &guest)])).await;
    assert_eq!(daemon.chat("first").await.status(), 200);
    assert_eq!(daemon.chat("guest").await.status(), 200);
    let displaced = daemon.until_state("first", "offline").await;
    assert_eq!(displaced["displaced_by"], "guest");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());
    let Daemon { dir, .. } = daemon;
    let daemon = Daemon::start(dir).await;
    let back = daemon.until_state("first", "ready").await;
    assert_eq!(back["displaced_by"], json!(null));
    assert_eq!(daemon.slot("guest").await["state"], "offline", "nobody has asked for it");
}

#[tokio::test]
async fn two_slots_that_fit_one_at_a_time_answer_both_their_clients() {
    let (left, right) = (needs("60MiB", ""), needs("60MiB", ""));
    let daemon = Daemon::start(small(&[("left", &left), ("right", &right)])).await;
    for _ in 0..3 {
        let (first, second) = tokio::join!(daemon.chat("left"), daemon.chat("right"));
        assert_eq!(
            (first.status(), second.status()),
            (200.try_into().unwrap(), 200.try_into().unwrap())
        );
    }
}

#[tokio::test]
async fn what_is_kept_loaded_comes_by_importance_and_what_does_not_fit_is_told_once() {
    let kept =
        |memory, priority| needs(memory, &format!("autostart = true\npriority = {priority}"));
    let (first, second, last) = (kept("60MiB", 90), kept("30MiB", 50), kept("60MiB", 10));
    let daemon =
        Daemon::start(small(&[("a-last", &last), ("b-first", &first), ("c-second", &second)]))
            .await;
    daemon.until_state("b-first", "ready").await;
    daemon.until_state("c-second", "ready").await;
    let queued = daemon
        .until("a-last", "queued with its reason", |view| {
            view["waits_for"].as_str().is_some_and(|told| told.contains("waits for b-first"))
        })
        .await;
    assert_eq!(
        queued["waits_for"],
        "it needs 60 MiB of memory, and 10 MiB can be had; it waits for b-first (60 MiB), c-second (30 MiB)"
    );
    let log = daemon.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("slot waits for memory")).collect();
    assert_eq!(told.len(), 1, "{log}");
    assert!(told[0].contains("it needs 60 MiB of memory"), "{told:?}");
}

#[tokio::test]
async fn a_slot_that_needs_another_machine_is_skipped_and_not_failed() {
    let keys =
        "engine = \"command\"\ncommand = [\"/nowhere/engine\", \"{port}\"]\nautostart = true\n";
    let asking = format!("{keys}[needs]\ngpu_memory = \"1024TiB\"\nmemory = \"1024TiB\"\n");
    let daemon = Daemon::start(small(&[("elsewhere", &asking)])).await;
    let view = daemon
        .until("elsewhere", "skipped", |view| {
            view["waits_for"].as_str().is_some_and(|told| told.contains("skipped"))
        })
        .await;
    assert_eq!((&view["state"], &view["verdict"]), (&json!("queued"), &json!(null)));
    let told = view["waits_for"].as_str().unwrap();
    assert!(told.contains("its profile needs `"), "{told}");
    let answer = daemon.chat("elsewhere").await;
    assert_eq!(answer.status(), 503);
    assert!(daemon.log().contains("slot skipped"), "{}", daemon.log());
}

/// A command of somebody whose own folders are `home`.
async fn slotd_of(home: &Path, dir: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotd"));
    command.arg("--control").arg(dir.join("state/run/control.sock")).args(line.split(' '));
    command.env("XDG_CONFIG_HOME", home).env("HOME", home).kill_on_drop(true);
    timeout(DEADLINE, command.output()).await.unwrap().unwrap()
}

/// What an admin reads of a slot that is to be loaded; `settings` stand in the daemon's folder.
async fn fit(dir: &Path, line: &str) -> String {
    let output = slotd_of(dir, dir, line).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    // The machine's own figure is not ours.
    let (free, rest) = said.lines().last().unwrap().split_once(" of ").unwrap();
    let rest = rest.split_once("can be had").unwrap().1;
    let table: Vec<_> = said.lines().filter(|line| line.starts_with("as ")).collect();
    format!("{}\n{free} can be had{rest}", table.join("\n"))
}

/// It counted by rules of its own: no limit, no promises, nobody pinned.
#[tokio::test]
async fn fit_counts_by_the_rules_of_the_daemon() {
    let (held, wanted) = (needs("60MiB", "pinned = true"), needs("60MiB", ""));
    let dir = small(&[("held", &held), ("wanted", &wanted)]);
    // Where a client without options looks for them, too.
    let here = dir.path().to_owned();
    symlink(here.join("profiles"), here.join("slotd/profiles")).unwrap();
    let daemon = Daemon::start(dir).await;
    let says = |fits: &str, free: &str| {
        format!(
            "as its profile says (`memory`, `gpu_memory`)\nas written  60 MiB  -    {fits}\n{free}"
        )
    };
    let free = says("yes", "100 MiB can be had");
    assert_eq!(fit(daemon.dir.path(), "fit wanted").await, free);
    daemon.order("held", "load").await;
    daemon.until_state("held", "ready").await;
    let told = fit(daemon.dir.path(), "fit wanted").await;
    let held = "no rung fits, even if all that may go were gone; `held` is pinned: unpinned, it could make room";
    assert_eq!(told, says("no", &format!("40 MiB can be had; {held}")));
    assert_eq!(fit(daemon.dir.path(), "fit held").await, free, "what it has itself is free for it");
    slotd(&daemon, "unpin held").await;
    daemon.until("held", "unpinned", |view| view["pinned"] == false).await;
    let told = fit(daemon.dir.path(), "fit wanted").await;
    let goes = "unloading `held` would make room for the first";
    assert_eq!(told, says("no", &format!("40 MiB can be had; no rung fits; {goes}")));
    assert_eq!(daemon.slot("held").await["generation"], 1);
    // A slot that the daemon has not taken is one that is to come.
    let (own, other) = (here.join("profiles/wanted.toml"), here.join("slotd/profiles"));
    fs::remove_file(&other).unwrap();
    fs::create_dir(&other).unwrap();
    for name in ["wanted.toml", "late.toml"] {
        fs::copy(&own, other.join(name)).unwrap();
    }
    assert_eq!(fit(daemon.dir.path(), "fit late").await, told);
    // Without a daemon its settings count.
    let dir = daemon.killed().await;
    assert_eq!(fit(dir.path(), "fit wanted").await, free);
}

/// It read the caller's own folders: it knew no slot of a daemon that has others, or summed up another one of that
/// name without a word.
#[tokio::test]
async fn fit_reads_the_profile_that_the_daemon_has() {
    let daemon = Daemon::start(small(&[("wanted", &needs("60MiB", ""))])).await;
    let home = tempfile::tempdir().unwrap();
    let fit = async |line| slotd_of(home.path(), daemon.dir.path(), line).await;
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let told = fit("fit wanted").await;
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    assert!(text(&told).contains("as written  60 MiB  -    yes"), "{}", text(&told));
    let limit = "100 MiB of the 100 MiB that engines may take (`memory_limit`) can be had\n";
    assert!(text(&told).ends_with(limit), "{}", text(&told));

    let own = home.path().join("slotd/profiles");
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("wanted.toml"), needs("5MiB", "")).unwrap();
    fs::write(own.join("late.toml"), needs("5MiB", "")).unwrap();
    fs::write(home.path().join("slotd/slotd.toml"), "memory_limit = \"7MiB\"\n").unwrap();
    assert_eq!(text(&fit("fit wanted").await), text(&told));
    let late = fit("fit late").await;
    assert!(text(&late).ends_with(limit), "{}", text(&late));
    let noted = String::from_utf8_lossy(&late.stderr).into_owned();
    assert!(noted.starts_with("the daemon has no slot `late`; its profile is "), "{noted}");
    let unknown = String::from_utf8_lossy(&fit("fit nowhere").await.stderr).into_owned();
    assert!(unknown.contains("`nowhere` is neither a slot of the daemon or in `"), "{unknown}");
}

/// The type was ignored, and stood in the name of the rung.
#[tokio::test]
async fn a_type_of_caches_that_the_engine_does_not_know_is_refused() {
    let daemon = Daemon::start(small(&[("wanted", &needs("60MiB", ""))])).await;
    let refused = slotd(&daemon, "fit wanted --cache-type q8_0").await;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(69), "{told}");
    assert_eq!(
        told,
        "slotd: `--cache-type` is of llama-server only, and the engine of `wanted` is command\n"
    );
}

/// It was `offline` like any other, a load of it waited for ever, and all was well.
#[tokio::test]
async fn a_slot_that_needs_another_machine_is_told_so_everywhere() {
    let asking = needs("10MiB", "[needs]\nmemory = \"1024TiB\"\n");
    let daemon = Daemon::start(small(&[("elsewhere", &asking)])).await;
    let unmet = "its profile needs `memory` = 1024 TiB, and there is ";
    let skipped = format!("it is skipped on this machine: {unmet}");
    assert_eq!(daemon.chat("elsewhere").await.status(), 503);
    let view = daemon.until_state("elsewhere", "offline").await;
    assert!(view["skipped"].as_str().unwrap().starts_with(unmet), "{view}");

    for (command, told) in [
        ("ps", format!("\nelsewhere: {skipped}")),
        ("ps", "offline skipped".to_owned()),
        ("status", format!("elsewhere is skipped on this machine: {unmet}")),
        ("status elsewhere", format!("  skipped   {unmet}")),
        ("status elsewhere", "next: ask for less under `[needs]` in ".to_owned()),
        ("why elsewhere", format!("  - {skipped}")),
        ("why elsewhere", "  - ask for less under `[needs]` in ".to_owned()),
        ("fit elsewhere", format!("\n{skipped}")),
    ] {
        let said = said(&daemon, command).await;
        assert!(said.contains(&told), "{command}: {told}\nis not in\n{said}");
    }
    let load =
        timeout(DEADLINE, slotd(&daemon, "load elsewhere")).await.expect("it waits for ever");
    let told = String::from_utf8_lossy(&load.stderr).into_owned();
    assert_eq!(load.status.code(), Some(69), "{told}");
    assert!(told.contains(&format!("elsewhere is skipped on this machine: {unmet}")), "{told}");
    let said = said(&daemon, "why elsewhere").await;
    assert!(said.contains("; `slotd unload elsewhere` takes it out of the line"), "{said}");
}

/// Waits until a peak of `more_than` bytes is on the disk, and returns the most that is there.
async fn noted(dir: &Path, more_than: u64) -> u64 {
    let file = dir.join("state/peaks.json");
    let end = Instant::now() + DEADLINE;
    loop {
        let read = fs::read(&file).ok();
        let peaks = read.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let peaks = peaks.and_then(|peaks| peaks["peaks"].as_array().cloned()).unwrap_or_default();
        let most = peaks.iter().filter_map(|peak| peak["host_bytes"].as_u64()).max();
        if let Some(most) = most.filter(|most| *most > more_than) {
            return most;
        }
        assert!(Instant::now() < end, "no such peak: {peaks:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_an_engine_took_at_most_is_known_at_its_next_start_and_after_a_restart() {
    const ALLOCATED: u64 = 40 << 20;
    let dir = scratch(&[
        ("chat", &fake("alloc=40MiB", "")),
        ("changed", &fake("alloc=40MiB tokens=9", "")),
    ]);
    let daemon = Daemon::start(dir).await;
    let promised = |view: &Value| view["promised_bytes"].as_u64().unwrap_or_default();
    daemon.order("chat", "load").await;
    let first = daemon.until_state("chat", "ready").await;
    assert!(promised(&first) < ALLOCATED, "nothing was known: {first:#}");
    let peak = noted(daemon.dir.path(), ALLOCATED).await;

    daemon.order("chat", "restart").await;
    let is_second = |view: &Value| view["generation"] == 2 && view["state"] == "ready";
    let second = daemon.until("chat", "the second", is_second).await;
    // With a margin of a twentieth.
    assert!((peak..peak + (16 << 20)).contains(&promised(&second)), "{peak}: {second:#}");

    let daemon = Daemon::start(daemon.killed().await).await;
    daemon.order("chat", "load").await;
    let third = daemon.until_state("chat", "ready").await;
    assert!((peak..peak + (16 << 20)).contains(&promised(&third)), "{peak}: {third:#}");
    daemon.order("changed", "load").await;
    let changed = daemon.until_state("changed", "ready").await;
    assert!(promised(&changed) < ALLOCATED, "it has other arguments: {changed:#}");
}
