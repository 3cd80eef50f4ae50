//! Too much of everything: processes, lines, files, deaths at once.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use super::common::{DEADLINE, Daemon, fake, gone, scratch, write_profile};

/// Asks the daemon for its health, and returns how long the answer took.
async fn health(daemon: &Daemon) -> Duration {
    let began = Instant::now();
    let answer = daemon.client.get(format!("{}/healthz", daemon.url)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    began.elapsed()
}

fn pid_of(slot: &Value) -> u64 {
    slot["pid"].as_u64().unwrap()
}

fn processes_of(group: u64) -> usize {
    let of_group = |pid: String| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit(") ").next()?.split(' ');
        let (state, of) = (fields.next()?, fields.nth(1)?.parse::<u64>().ok()?);
        // A zombie is nobody: its new parent may be slow to take note.
        (of == group && state != "Z").then_some(())
    };
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    pids.filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit())).filter_map(of_group).count()
}

#[tokio::test]
async fn a_storm_of_zombies_is_its_engines_own() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("zombies=1000", ""))])).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    health(&daemon).await;
    let children = format!("/proc/{0}/task/{0}/children", daemon.pid());
    let zombies = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
    };
    let children = fs::read_to_string(children).unwrap();
    assert_eq!(children.split_whitespace().filter(|pid| zombies(pid)).count(), 0);
}

#[tokio::test]
async fn a_horde_of_processes_slows_nobody_and_ends_with_its_engine() {
    let profiles = [("horde", fake("sleepers=400", "")), ("chat", fake("", ""))];
    let daemon = Daemon::start(scratch(&profiles.each_ref().map(|(n, p)| (*n, p.as_str())))).await;
    assert_eq!(daemon.chat("horde").await.status(), 200);
    let pid = pid_of(&daemon.slot("horde").await);
    assert_eq!(processes_of(pid), 401);
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let fastest = [health(&daemon).await, health(&daemon).await, health(&daemon).await];
    // The fastest of three: the machine may be busy with other tests.
    let fastest = fastest.into_iter().min().unwrap();
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
    daemon.order("horde", "unload").await;
    daemon.until_state("horde", "offline").await;
    assert_eq!(processes_of(pid), 0);
}

#[tokio::test]
async fn an_engine_that_lets_go_of_its_output_stays_ready_and_costs_nothing() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("close_output", ""))])).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    // What is measured is that time passes and nothing is done.
    sleep(Duration::from_secs(1)).await;
    let used = ticks() - before;
    assert!(used < 20, "{used} hundredths of a second of CPU in one of doing nothing");
    assert_eq!(daemon.slot("chat").await["state"], "ready");
}

#[tokio::test]
async fn a_flood_of_lines_holds_nobody_up_and_is_bounded_on_disk_and_in_memory() {
    let profiles = [("flood", fake("flood=200MiB", "")), ("chat", fake("", ""))];
    let daemon = Daemon::start(scratch(&profiles.each_ref().map(|(n, p)| (*n, p.as_str())))).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let before = resident(&daemon);
    assert_eq!(daemon.chat("flood").await.status(), 200);
    let logs = daemon.dir.path().join("state/logs/flood");
    let end = Instant::now() + DEADLINE;
    while size_of(&logs) > 48 << 20 {
        assert!(Instant::now() < end, "{} bytes of log are kept", size_of(&logs));
        sleep(Duration::from_millis(20)).await;
    }
    let more = resident(&daemon).saturating_sub(before);
    assert!(more < 32 << 10, "the daemon grew by {more} KiB");
}

fn resident(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

fn size_of(dir: &Path) -> u64 {
    let sizes = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    sizes.sum()
}

#[tokio::test]
async fn a_crowd_of_connections_leaves_files_for_the_rest_and_is_served_when_it_thins() {
    let dir = scratch(&[("chat", &fake("", "")), ("other", &fake("", ""))]);
    let daemon = Daemon::start_through(dir, "ulimit -n 100; exec \"$@\"", &[]).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let address = daemon.url.strip_prefix("http://").unwrap();
    let mut crowd = Vec::new();
    for _ in 0..60 {
        // The kernel takes them, whether the daemon does or not.
        crowd.push(TcpStream::connect(address).await.unwrap());
    }
    let end = Instant::now() + DEADLINE;
    while !daemon.log().contains("connections not accepted") {
        assert!(Instant::now() < end, "it never ran out of files");
        sleep(Duration::from_millis(5)).await;
    }
    // The control API and the starts of engines do not feel it.
    let pid = pid_of(&daemon.slot("chat").await);
    daemon.order("other", "load").await;
    daemon.until_state("other", "ready").await;
    drop(crowd);
    assert_eq!(daemon.chat("chat").await.status(), 200);
    assert_eq!(daemon.chat("other").await.status(), 200);
    assert_eq!(pid_of(&daemon.slot("chat").await), pid);
    let said = daemon.log().matches("connections not accepted").count();
    assert_eq!(said, 1, "one shortage is told once");
}

/// A cgroup that limits the number of processes; none where the machine has no such controller.
struct FewProcesses(PathBuf);

impl FewProcesses {
    fn new() -> Option<Self> {
        let dir = PathBuf::from(format!("/sys/fs/cgroup/pids/slotd-test-{}", std::process::id()));
        fs::create_dir(&dir).ok().map(|()| Self(dir))
    }

    fn limit(&self, most: &str) {
        fs::write(self.0.join("pids.max"), most).unwrap();
    }

    fn count(&self) -> String {
        fs::read_to_string(self.0.join("pids.current")).unwrap().trim().to_owned()
    }
}

impl Drop for FewProcesses {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

#[tokio::test]
async fn a_machine_without_room_for_a_process_delays_a_start_and_disturbs_nobody() {
    let Some(few) = FewProcesses::new() else { return };
    let dir = scratch(&[("chat", &fake("", "")), ("other", &fake("", ""))]);
    let line = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", few.0.display());
    let mut daemon = Daemon::start_through(dir, &line, &[]).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let before = daemon.slot("chat").await;
    few.limit(&few.count());
    assert_eq!(daemon.chat("other").await.status(), 503);
    let slot = daemon.slot("other").await;
    assert_eq!(slot["state"], "backoff", "{slot:#}");
    assert!(slot["reason"].as_str().unwrap().contains("short of a resource"), "{slot:#}");
    few.limit("max");
    daemon.order("other", "load").await;
    daemon.until_state("other", "ready").await;
    assert_eq!(daemon.slot("chat").await["pid"], before["pid"]);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());
}

#[tokio::test]
async fn engines_that_all_die_at_once_all_come_back_one_each() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let dir = scratch(&[]);
    let spawns = dir.path().join("spawns");
    for name in names {
        let script = format!("spawn_log={}", spawns.display());
        write_profile(dir.path(), name, &fake(&script, "autostart = true"));
    }
    let daemon = Daemon::start(dir).await;
    let mut pids = Vec::new();
    for name in names {
        pids.push(pid_of(&daemon.until_state(name, "ready").await));
    }
    for pid in &pids {
        kill(Pid::from_raw(i32::try_from(*pid).unwrap()), Signal::SIGKILL).unwrap();
    }
    for (name, old) in names.iter().zip(&pids) {
        gone(*old).await;
        let slot = daemon.until(name, "back", |view| view["generation"] == 2).await;
        assert_eq!(slot["restarts"], 1, "{slot:#}");
        daemon.until_state(name, "ready").await;
    }
    let started = fs::read_to_string(&spawns).unwrap();
    assert_eq!(started.matches("started ").count(), 2 * names.len());
}

#[tokio::test]
async fn a_daemon_that_was_suspended_with_its_engine_ends_nobody() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("", ""))])).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let before = daemon.slot("chat").await;
    let engine = Pid::from_raw(i32::try_from(pid_of(&before)).unwrap());
    for pid in [daemon.pid(), engine] {
        kill(pid, Signal::SIGSTOP).unwrap();
    }
    // Longer than two looks at a ready engine: a gap in time is what this is about.
    sleep(Duration::from_secs(5)).await;
    kill(daemon.pid(), Signal::SIGCONT).unwrap();
    health(&daemon).await;
    kill(engine, Signal::SIGCONT).unwrap();
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let after = daemon.slot("chat").await;
    assert_eq!((&after["pid"], &after["state"]), (&before["pid"], &before["state"]));
}
