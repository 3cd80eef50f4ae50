//! Restarts and upgrades of the daemon: the sockets stay, and so do engines that are to be kept.

use std::{
    fs, net::TcpListener, os::unix::fs::MetadataExt, path::Path, process::Stdio, time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    process::Command,
    sync::watch,
    task::{JoinSet, yield_now},
    time::{Instant, timeout},
};

use super::common::{DEADLINE, Daemon, fake, gone, is_alive, scratch, write_profile};

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// Runs a subcommand against a daemon and returns what it said, if it went well.
async fn slotd(dir: &Path, arguments: &[&str]) -> Result<String, String> {
    let run = Command::new(env!("CARGO_BIN_EXE_slotd"))
        .arg("--control")
        .arg(dir.join("state/run/control.sock"))
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(DEADLINE, run).await.unwrap().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
}

/// Asks short questions one after another, each on a connection of its own, until told to end;
/// returns what was answered.
struct Clients {
    end: watch::Sender<bool>,
    tasks: JoinSet<Vec<u16>>,
}

impl Clients {
    fn start(count: usize, url: &str, model: &str) -> Self {
        let (end, ends) = watch::channel(false);
        let body = json!({"model": model, "messages": [], "max_tokens": 2});
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let (url, body) = (format!("{url}/v1/chat/completions"), body.clone());
            let ends = ends.clone();
            tasks.spawn(async move {
                let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0);
                let client = client.build().unwrap();
                let mut statuses = Vec::new();
                while !*ends.borrow() {
                    let answer = client.post(&url).json(&body).send().await;
                    // 0 is a connection that was refused or broken.
                    statuses.push(answer.map_or(0, |answer| answer.status().as_u16()));
                }
                statuses
            });
        }
        Self { end, tasks }
    }

    async fn end(self) -> Vec<u16> {
        self.end.send_replace(true);
        timeout(DEADLINE, self.tasks.join_all()).await.unwrap().concat()
    }
}

#[tokio::test]
async fn an_inherited_socket_is_served_and_outlives_the_daemon() {
    let (listener, url) = listener();
    let dir = scratch(&[("chat", &fake("", ""))]);
    let daemon = Daemon::start_activated(dir, &listener).await;
    assert_eq!(daemon.url, url, "`--listen` must not win over the socket");
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let dir = daemon.killed().await;
    // Nobody accepts: the connection waits in the socket's queue.
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({"model": "chat", "messages": [], "max_tokens": 2});
    let asking = client.post(format!("{url}/v1/chat/completions")).json(&body).send();
    let starting = Daemon::start_activated(dir, &listener);
    let (answer, _daemon) =
        timeout(DEADLINE, async { tokio::join!(asking, starting) }).await.unwrap();
    assert_eq!(answer.unwrap().status(), 200);
}

#[tokio::test]
async fn a_stop_with_a_kept_socket_ends_streams_first_and_refuses_nobody() {
    let (listener, url) = listener();
    let dir = scratch(&[("chat", &fake("tokens=60 token_gap=10ms", "parallel = 32"))]);
    let mut daemon = Daemon::start_activated(dir, &listener).await;
    let body = json!({"model": "chat", "stream": true, "messages": []});
    let mut stream = daemon.post("/v1/chat/completions", &body).await;
    let mut text = stream.chunk().await.unwrap().unwrap().to_vec();
    let clients = Clients::start(4, &url, "chat");
    daemon.signal(Signal::SIGTERM);
    while let Some(chunk) = stream.chunk().await.unwrap() {
        text.extend_from_slice(&chunk);
    }
    assert!(String::from_utf8(text).unwrap().trim_end().ends_with("data: [DONE]"));
    assert!(daemon.ended().await.success());
    let Daemon { dir, .. } = daemon;
    let daemon = Daemon::start_activated(dir, &listener).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let statuses = clients.end().await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
}

#[tokio::test]
async fn variables_of_somebody_elses_sockets_change_nothing() {
    let dir = scratch(&[("chat", &fake("", ""))]);
    let (fds, handover) = (Path::new("3"), Path::new("1 1 slotd-endpoint=3"));
    let env = [("LISTEN_FDS", fds), ("LISTEN_PID", Path::new("1")), ("SLOTD_HANDOVER", handover)];
    let daemon = Daemon::start_with(dir, &env).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
}

#[tokio::test]
async fn an_upgrade_keeps_the_process_and_refuses_nobody() {
    let dir = scratch(&[("chat", &fake("tokens=60 token_gap=10ms", "parallel = 32"))]);
    let mut daemon = Daemon::start(dir).await;
    let body = json!({"model": "chat", "stream": true, "messages": []});
    let mut stream = daemon.post("/v1/chat/completions", &body).await;
    let mut text = stream.chunk().await.unwrap().unwrap().to_vec();
    let clients = Clients::start(4, &daemon.url, "chat");
    let said = slotd(daemon.dir.path(), &["upgrade"]).await.unwrap();
    assert!(said.starts_with("upgraded: slotd "), "{said}");
    while let Some(chunk) = stream.chunk().await.unwrap() {
        text.extend_from_slice(&chunk);
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.trim_end().ends_with("data: [DONE]"), "the stream was cut: {text}");
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let statuses = clients.end().await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    let shown = daemon.daemon().await;
    assert_eq!((&shown["images"], &shown["pid"]), (&json!(1), &json!(daemon.pid().as_raw())));
    let children = format!("/proc/{0}/task/{0}/children", daemon.pid());
    let children = fs::read_to_string(children).unwrap();
    let states: Vec<_> = children.split_whitespace().map(state_of).collect();
    assert!(states.iter().all(|state| *state != 'Z'), "{children}: {states:?}");
    // The next image can be told to end, and to upgrade, like the first.
    slotd(daemon.dir.path(), &["upgrade"]).await.unwrap();
    assert_eq!(daemon.daemon().await["images"], 2);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());
}

/// Children of tests that the daemon did not end.
struct Left(u64);

impl Drop for Left {
    fn drop(&mut self) {
        // A failed test must not leave an engine behind; after a good one there is none.
        let pid = i32::try_from(self.0).unwrap();
        if is_alive(self.0) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

const KEEP: &str = "on_exit = \"keep\"\nparallel = 64";

#[tokio::test]
async fn kept_engines_outlive_a_killed_daemon_and_serve_the_next_one_without_a_reload() {
    let (listener, url) = listener();
    let dir = scratch(&[]);
    let spawns = dir.path().join("spawns");
    let script = format!("tokens=100000 token_gap=2ms spawn_log={}", spawns.display());
    for slot in ["one", "two"] {
        write_profile(dir.path(), slot, &fake(&script, KEEP));
    }
    let daemon = Daemon::start_activated(dir, &listener).await;
    let mut before = Vec::new();
    for slot in ["one", "two"] {
        daemon.order(slot, "load").await;
        before.push(daemon.until_state(slot, "ready").await);
    }
    let _left: Vec<_> = before.iter().map(|slot| Left(slot["pid"].as_u64().unwrap())).collect();
    let body = json!({"model": "one", "stream": true, "messages": []});
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = daemon.post("/v1/chat/completions", &body).await;
        assert_eq!(stream.status(), 200);
        stream.chunk().await.unwrap().unwrap();
        streams.push(stream);
    }
    let clients = Clients::start(4, &url, "two");
    let dir = daemon.killed().await;
    for mut stream in streams {
        let cut = loop {
            match stream.chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        assert!(cut, "a stream through a killed daemon ended cleanly");
    }
    let daemon = Daemon::start_activated(dir, &listener).await;
    for (slot, before) in ["one", "two"].iter().zip(&before) {
        let after = daemon.slot(slot).await;
        for key in ["state", "pid", "generation", "engine"] {
            assert_eq!(after[key], before[key], "{key}\n{}", daemon.log());
        }
        let short = json!({"model": slot, "messages": [], "max_tokens": 3});
        assert_eq!(daemon.post("/v1/chat/completions", &short).await.status(), 200);
    }
    let statuses = clients.end().await;
    // What was in flight at the kill is broken; nobody is refused before or after.
    let broken = statuses.iter().filter(|status| **status != 200).count();
    assert!(broken <= 4 && statuses.len() > broken, "{statuses:?}");
    let log = fs::read_to_string(&spawns).unwrap();
    let started = log.lines().filter(|line| line.starts_with("started ")).count();
    assert_eq!(started, 2, "an engine was spawned anew\n{log}\n{}", daemon.log());
    adopted_engines_die_and_stop_like_any_other(&daemon, &before).await;
}

async fn adopted_engines_die_and_stop_like_any_other(daemon: &Daemon, before: &[Value]) {
    let pid = before[0]["pid"].as_u64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    let after = daemon.until("one", "restarted", |slot| slot["restarts"] == 1).await;
    assert_eq!(after["verdict"], "killed-by-other", "{after:#}");
    daemon.until_state("one", "ready").await;
    daemon.order("one", "unload").await;
    daemon.order("two", "unload").await;
    gone(before[1]["pid"].as_u64().unwrap()).await;
    daemon.until_state("one", "offline").await;
    daemon.until_state("two", "offline").await;
    let records = daemon.dir.path().join("state/engines");
    assert_eq!(fs::read_dir(records).unwrap().count(), 0, "a record outlived its engine");
}

#[tokio::test]
async fn an_edit_while_no_daemon_ran_replaces_the_kept_engine_and_a_removal_ends_it() {
    let dir = scratch(&[("edited", &fake("", KEEP)), ("removed", &fake("", KEEP))]);
    let mut daemon = Daemon::start(dir).await;
    let mut pids = Vec::new();
    for slot in ["edited", "removed"] {
        daemon.order(slot, "load").await;
        pids.push(daemon.until_state(slot, "ready").await["pid"].as_u64().unwrap());
    }
    let _left: Vec<_> = pids.iter().map(|pid| Left(*pid)).collect();
    // A daemon that is told to end leaves them as well.
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    let Daemon { dir, .. } = daemon;
    write_profile(dir.path(), "edited", &fake("tokens=7", KEEP));
    fs::remove_file(dir.path().join("profiles/removed.toml")).unwrap();
    let daemon = Daemon::start(dir).await;
    for pid in pids {
        gone(pid).await;
    }
    let edited = daemon.until_state("edited", "ready").await;
    assert_eq!(edited["generation"], 2);
    daemon.order("edited", "unload").await;
    daemon.until_state("edited", "offline").await;
}

#[tokio::test]
async fn an_upgrade_keeps_engines_that_are_to_be_kept_and_stops_the_others() {
    let dir = scratch(&[("kept", &fake("", KEEP)), ("stopped", &fake("", ""))]);
    let daemon = Daemon::start(dir).await;
    let mut before = Vec::new();
    for slot in ["kept", "stopped"] {
        daemon.order(slot, "load").await;
        before.push(daemon.until_state(slot, "ready").await);
    }
    let _left = Left(before[0]["pid"].as_u64().unwrap());
    let clients = Clients::start(4, &daemon.url, "kept");
    let said = slotd(daemon.dir.path(), &["upgrade"]).await.unwrap();
    assert!(said.contains("with 1 engine"), "{said}");
    assert_eq!(daemon.slot("kept").await["pid"], before[0]["pid"], "{}", daemon.log());
    assert_eq!(daemon.slot("stopped").await["state"], "offline");
    assert!(!is_alive(before[1]["pid"].as_u64().unwrap()));
    let statuses = clients.end().await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    daemon.order("kept", "unload").await;
    gone(before[0]["pid"].as_u64().unwrap()).await;
}

#[tokio::test]
async fn a_forged_or_stale_record_never_makes_the_daemon_signal_a_stranger() {
    let dir = scratch(&[("chat", &fake("", KEEP))]);
    let daemon = Daemon::start(dir).await;
    daemon.order("chat", "load").await;
    let pid = daemon.until_state("chat", "ready").await["pid"].as_u64().unwrap();
    let _left = Left(pid);
    let path = daemon.dir.path().join("state/engines/chat.g1.json");
    let record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let dir = daemon.killed().await;
    let mut sleep = Command::new("sleep");
    let mut sleeper = sleep.arg("1000").process_group(0).kill_on_drop(true).spawn().unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", sleeper.id().unwrap())).unwrap();
    let began: u64 =
        stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    let exe = fs::metadata(format!("/proc/{}/exe", sleeper.id().unwrap())).unwrap();
    let mut forged = record.clone();
    forged["identity"]["pid"] = json!(sleeper.id().unwrap());
    let stale = forged.clone();
    forged["identity"]["start_time"] = json!(began);
    forged["identity"]["executable"] = json!([exe.dev(), exe.ino()]);
    forged["generation"] = json!(3);
    let mut other_boot = record.clone();
    other_boot["identity"]["boot_id"] = json!("another");
    let folder = path.parent().unwrap();
    let texts =
        [stale.to_string(), forged.to_string(), other_boot.to_string(), "garbage".to_owned()];
    for (index, text) in texts.iter().enumerate() {
        fs::write(folder.join(format!("forged.g{index}.json")), text).unwrap();
    }
    fs::File::create(folder.join("huge.g1.json")).unwrap().set_len(1 << 30).unwrap();
    let daemon = Daemon::start(dir).await;
    assert_eq!(daemon.slot("chat").await["pid"], json!(pid), "{}", daemon.log());
    assert!(sleeper.try_wait().unwrap().is_none(), "a stranger was signalled");
    daemon.order("chat", "unload").await;
    gone(pid).await;
    assert!(sleeper.try_wait().unwrap().is_none(), "a stranger was signalled");
    sleeper.kill().await.unwrap();
}

/// How often the daemon is killed; `SLOTD_KILLS` sets another number.
const KILLS: u32 = 5;

#[tokio::test]
async fn with_stop_nothing_is_left_a_second_after_the_daemon_was_killed() {
    let kills = std::env::var("SLOTD_KILLS").ok().map_or(KILLS, |kills| kills.parse().unwrap());
    let mut longest = Duration::ZERO;
    for _ in 0..kills {
        let loading = fake("ready_after=60s", KEEP);
        let dir = scratch(&[("chat", &fake("fork", "")), ("load", &loading)]);
        let daemon = Daemon::start(dir).await;
        daemon.order("chat", "load").await;
        daemon.order("load", "load").await;
        daemon.until_state("chat", "ready").await;
        // Not ready yet: also one that is to be kept ends with the daemon.
        daemon.until("load", "spawned", |slot| slot["pid"].is_u64()).await;
        let dir = daemon.killed().await;
        let since = Instant::now();
        // Engines, grandchildren, the guard: all have the directory in their arguments or as theirs.
        while any_process_of(dir.path()) {
            assert!(since.elapsed() < Duration::from_secs(1), "something is left");
            yield_now().await;
        }
        longest = longest.max(since.elapsed());
    }
    println!("{kills} kills, nothing left after at most {} ms", longest.as_millis());
}

/// Tells whether a process that is no zombie names the directory in its arguments.
fn any_process_of(dir: &Path) -> bool {
    let dir = dir.to_str().unwrap().as_bytes();
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes.into_iter().any(|process| {
        // A zombie has no arguments; entries that are no processes have no such file.
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        arguments.windows(dir.len()).any(|window| window == dir)
    })
}

fn state_of(pid: &str) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()).unwrap_or('-')
}
