//! Restarts and upgrades of the daemon: the sockets stay, and so do engines that are to be kept.

use std::{net::TcpListener, path::Path, process::Stdio};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::{process::Command, sync::watch, task::JoinSet, time::timeout};

use super::common::{DEADLINE, Daemon, fake, scratch};

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
    let children = std::fs::read_to_string(children).unwrap();
    let states: Vec<_> = children.split_whitespace().map(state_of).collect();
    assert!(states.iter().all(|state| *state != 'Z'), "{children}: {states:?}");
    // The next image can be told to end, and to upgrade, like the first.
    slotd(daemon.dir.path(), &["upgrade"]).await.unwrap();
    assert_eq!(daemon.daemon().await["images"], 2);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());
}

fn state_of(pid: &str) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()).unwrap_or('-')
}
