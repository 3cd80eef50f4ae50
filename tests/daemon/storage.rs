//! The disk is full, read-only, or holds what no slotd wrote. Slots go on all the same.
//!
//! A full and a read-only disk are small file systems of this machine's memory, mounted for the test;
//! where the user may not mount, these tests end at once.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::common::{DEADLINE, Daemon, fake, scratch};

/// A file system of 1 MiB for the state directory, and the sockets elsewhere.
struct SmallDisk {
    state: PathBuf,
    sockets: TempDir,
}

impl SmallDisk {
    fn mount(dir: &Path) -> Option<Self> {
        let state = dir.join("state");
        fs::create_dir(&state).unwrap();
        if !run("mount", &["-t", "tmpfs", "-o", "size=1m", "slotd-test"], &state) {
            return None;
        }
        let sockets = tempfile::Builder::new().prefix("slotd-").tempdir_in("/tmp").unwrap();
        Some(Self { state, sockets })
    }

    /// Covers it with one that nobody can write to.
    fn cover(&self) {
        assert!(run("mount", &["-t", "tmpfs", "-o", "ro", "slotd-test"], &self.state));
    }

    fn uncover(&self) {
        assert!(run("umount", &["--lazy"], &self.state));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &["--lazy"], &self.state);
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) -> bool {
    let ran = Command::new(program).args(arguments).arg(path).output();
    ran.is_ok_and(|ran| ran.status.success())
}

fn state_of(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("state.json")).unwrap()).unwrap()
}

async fn said(daemon: &Daemon, what: &str) {
    let end = Instant::now() + DEADLINE;
    while !daemon.log().contains(what) {
        assert!(Instant::now() < end, "it never said `{what}`:\n{}", daemon.log());
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_full_disk_is_told_once_and_stops_no_slot() {
    let dir = scratch(&[("chat", &fake("", "")), ("other", &fake("", ""))]);
    let Some(disk) = SmallDisk::mount(dir.path()) else { return };
    let daemon = Daemon::start_with(dir, &[("RUNTIME_DIRECTORY", disk.sockets.path())]).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let ballast = disk.state.join("ballast");
    fs::write(&ballast, vec![0; 2 << 20]).unwrap_err();
    daemon.order("chat", "restart").await;
    daemon.until("chat", "new", |view| view["generation"] == 2 && view["state"] == "ready").await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    assert_eq!(daemon.chat("other").await.status(), 200, "a slot without a log folder yet");
    said(&daemon, "state file not written").await;
    // What was there is whole, whatever it says.
    if disk.state.join("state.json").exists() {
        state_of(&disk.state);
    }
    fs::remove_file(&ballast).unwrap();
    said(&daemon, "state file written again").await;
    assert_eq!(state_of(&disk.state)["slots"]["chat"]["generation"], 2);
    let log = daemon.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("state file not written")).collect();
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(told[0].contains("No space left on device"), "{told:#?}");
}

#[tokio::test]
async fn a_disk_that_turns_read_only_stops_no_slot() {
    let dir = scratch(&[("chat", &fake("", ""))]);
    let Some(disk) = SmallDisk::mount(dir.path()) else { return };
    let daemon = Daemon::start_with(dir, &[("RUNTIME_DIRECTORY", disk.sockets.path())]).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    daemon.order("chat", "unload").await;
    daemon.until_state("chat", "offline").await;
    disk.cover();
    assert_eq!(daemon.chat("chat").await.status(), 200, "{}", daemon.log());
    said(&daemon, "engine's log not kept").await;
    said(&daemon, "state file not written").await;
    disk.uncover();
    said(&daemon, "state file written again").await;
    assert_eq!(state_of(&disk.state)["slots"]["chat"]["generation"], 2);
}

#[tokio::test]
async fn a_state_file_of_a_newer_slotd_is_left_alone_and_refused() {
    let dir = scratch(&[]);
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    let newer = r#"{"version":999,"slots":"who knows"}"#;
    fs::write(state.join("state.json"), newer).unwrap();
    let ran = tokio::process::Command::new(env!("CARGO_BIN_EXE_slotd"))
        .args(["serve", "--listen", "127.0.0.1:0", "--state-dir"])
        .arg(&state)
        .env("XDG_CONFIG_HOME", dir.path())
        .output()
        .await
        .unwrap();
    assert_eq!(ran.status.code(), Some(78), "{ran:?}");
    assert_eq!(fs::read_to_string(state.join("state.json")).unwrap(), newer);
}

#[tokio::test]
async fn a_damaged_state_file_is_set_aside_and_the_daemon_serves() {
    let dir = scratch(&[("chat", &fake("", ""))]);
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("state.json"), r#"{"version":1,"slots":{"chat":{"gener"#).unwrap();
    let daemon = Daemon::start(dir).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    said(&daemon, "state file set aside").await;
    let kept = fs::read_dir(&state).unwrap().filter(|entry| {
        entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("state.json.bad-")
    });
    assert_eq!(kept.count(), 1);
}

#[tokio::test]
async fn a_clock_that_was_set_changes_no_wait() {
    let day = 86_400_000_u64;
    for at_unix_ms in [0, 40_000 * day] {
        let dir = scratch(&[("chat", &fake("", "")), ("dying", &fake("die_at_start=1", ""))]);
        let mut daemon = Daemon::start(dir).await;
        assert_eq!(daemon.chat("dying").await.status(), 503);
        daemon.signal(Signal::SIGTERM);
        assert!(daemon.ended().await.success());
        let Daemon { dir, .. } = daemon;
        // The deaths were on another day, or are going to be.
        let path = dir.path().join("state/state.json");
        let mut state = state_of(&dir.path().join("state"));
        state["slots"]["dying"]["deaths"][0]["at_unix_ms"] = json!(at_unix_ms);
        state["slots"]["dying"]["last_used_unix_ms"] = json!(at_unix_ms);
        fs::write(path, state.to_string()).unwrap();
        let daemon = Daemon::start(dir).await;
        assert_eq!(daemon.chat("chat").await.status(), 200);
        assert_eq!(daemon.chat("dying").await.status(), 503);
        // The answer comes with the news of the death, before nothing is left of the engine.
        let slot = daemon.until_state("dying", "backoff").await;
        let wait = slot["retry_in_ms"].as_u64().unwrap();
        assert!((1..=6_000).contains(&wait), "{slot:#}");
    }
}

#[tokio::test]
async fn a_daemon_killed_while_it_writes_leaves_a_whole_state_file() {
    let mut dir = scratch(&[("chat", &fake("", ""))]);
    for _ in 0..10 {
        let mut daemon = Daemon::start(dir).await;
        let temporary = daemon.dir.path().join("state/state.json.new");
        daemon.order("chat", "load").await;
        let end = Instant::now() + DEADLINE;
        let read = || fs::read(daemon.dir.path().join("state/state.json")).ok();
        let before = read();
        // The moment between the write and the rename, or just after it.
        while !temporary.exists() && read() == before {
            assert!(Instant::now() < end, "it never wrote");
            tokio::task::yield_now().await;
        }
        daemon.signal(Signal::SIGKILL);
        daemon.ended().await;
        Daemon { dir, .. } = daemon;
        let state = dir.path().join("state");
        if state.join("state.json").exists() {
            assert_eq!(state_of(&state)["version"], 1);
        }
    }
    let daemon = Daemon::start(dir).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    assert!(!daemon.log().contains("set aside"), "{}", daemon.log());
}
