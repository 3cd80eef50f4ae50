//! Engines that outlive the program that slotd started: a container, whose client is all that slotd
//! sees. Here the client is a shell, and the container the fake engine in a session of its own, which
//! only the stop command ends.

use std::{fs, path::Path};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use serde_json::json;
use tempfile::TempDir;

use super::common::{Daemon, fake_engine, gone, is_alive, scratch, write_profile};

/// Writes down who the container is, and stays as long as it lives.
const CLIENT: &str =
    "setsid \"$@\" & echo $! > \"$PID_FILE\"; while kill -0 $! 2>/dev/null; do sleep 0.02; done";
/// What ends it: `docker stop`, as it were.
const STOP: &str =
    "echo \"stopping $1\"; echo once >> \"$PID_FILE.stops\"; kill $(cat \"$PID_FILE\")";

/// Ends a container that a failed test leaves.
struct Container(u64);

impl Drop for Container {
    fn drop(&mut self) {
        if is_alive(self.0) {
            let group = Pid::from_raw(i32::try_from(self.0).unwrap());
            killpg(group, Signal::SIGKILL).unwrap();
        }
    }
}

/// `client` is run before the container's client is, in the same shell.
fn profile(dir: &Path, (client, stop): (&str, &str), keys: &str) -> String {
    let client = format!("{client}{CLIENT}");
    let engine = fake_engine().display().to_string();
    let command = json!(["sh", "-c", client, "sh", engine, "socket={socket}"]);
    let stop = json!(["sh", "-c", stop, "sh", "{socket}"]);
    let pid_file = dir.join("container.pid").display().to_string();
    format!(
        "engine = \"command\"\ncommand = {command}\nstop_command = {stop}\nenv = {{ PID_FILE = {} }}\n{keys}\n",
        json!(pid_file)
    )
}

fn container(dir: &TempDir) -> u64 {
    fs::read_to_string(dir.path().join("container.pid")).unwrap().trim().parse().unwrap()
}

fn stops(dir: &TempDir) -> usize {
    fs::read_to_string(dir.path().join("container.pid.stops")).unwrap_or_default().lines().count()
}

async fn started(parts: (&str, &str), keys: &str) -> (Daemon, Container, u64) {
    let dir = scratch(&[]);
    write_profile(dir.path(), "chat", &profile(dir.path(), parts, keys));
    let daemon = Daemon::start(dir).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let client = daemon.slot("chat").await["pid"].as_u64().unwrap();
    let container = Container(container(&daemon.dir));
    (daemon, container, client)
}

#[tokio::test]
async fn a_container_is_ended_by_the_stop_command_alone_and_once() {
    // A client that would not heed a signal: it ends because the container does.
    let (daemon, container, client) = started(("trap : TERM; ", STOP), "").await;
    daemon.order("chat", "unload").await;
    daemon.until_state("chat", "offline").await;
    assert!(!is_alive(container.0) && !is_alive(client));
    let slot = daemon.slot("chat").await;
    assert_eq!(slot["deaths"][0]["verdict"], "stopped-by-us", "{slot:#}");
    assert_eq!(stops(&daemon.dir), 1);
    let log = fs::read_to_string(daemon.dir.path().join("state/logs/chat/g1.log")).unwrap();
    let said = log.lines().find(|line| line.starts_with("stopping /")).unwrap_or_default();
    assert!(Path::new(said).extension().is_some_and(|kind| kind == "sock"), "{log}");
}

#[tokio::test]
async fn a_container_whose_client_was_killed_is_ended_before_the_next_one_starts() {
    let (daemon, container, client) = started(("", STOP), "").await;
    kill(Pid::from_raw(i32::try_from(client).unwrap()), Signal::SIGKILL).unwrap();
    let is_next =
        |view: &serde_json::Value| view["state"] == "ready" && view["pid"].as_u64() != Some(client);
    daemon.order("chat", "load").await;
    daemon.until("chat", "ready again", is_next).await;
    gone(container.0).await;
    assert_eq!(stops(&daemon.dir), 1);
    let next = Container(self::container(&daemon.dir));
    daemon.order("chat", "unload").await;
    daemon.until_state("chat", "offline").await;
    gone(next.0).await;
}

#[tokio::test]
async fn a_stop_command_that_fails_or_hangs_leaves_the_rest_to_signals_and_is_tried_once_more() {
    let fails = "test -e \"$PID_FILE.again\" || { touch \"$PID_FILE.again\"; exit 3; }; ";
    let hangs = "test -e \"$PID_FILE.again\" || { touch \"$PID_FILE.again\"; sleep 1000; }; ";
    for first in [fails, hangs] {
        let stop = format!("{first}{STOP}");
        let (daemon, container, client) = started(("", &stop), "stop_timeout = \"1s\"").await;
        daemon.order("chat", "unload").await;
        daemon.until_state("chat", "offline").await;
        gone(container.0).await;
        assert!(!is_alive(client), "{}", daemon.log());
        assert_eq!(stops(&daemon.dir), 1, "{}", daemon.log());
    }
}

#[tokio::test]
async fn a_daemon_that_ends_leaves_no_container_behind() {
    let (mut daemon, container, client) = started(("", STOP), "").await;
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success(), "{}", daemon.log());
    gone(container.0).await;
    gone(client).await;
}
