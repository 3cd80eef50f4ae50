//! A slot that goes over to another revision of its model, with an engine that stands in for it meanwhile.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    common::{DEADLINE, Daemon, fake_engine, gone, is_alive, scratch},
    stay::said,
};

/// Who asks all the time.
const CLIENTS: usize = 2;

/// Puts a revision of `o/m` into the hub's cache below `home`.
pub(crate) fn put(home: &Path, (name, commit): (&str, &str), (file, blob): (&str, &str)) {
    let repo = home.join("hf/hub/models--o--m");
    let snapshot = repo.join("snapshots").join(commit);
    for folder in [&snapshot, &repo.join("blobs"), &repo.join("refs")] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(repo.join("refs").join(name), commit).unwrap();
    symlink(format!("../../blobs/{blob}"), snapshot.join(file)).unwrap();
}

pub(crate) fn commit(digit: &str) -> String {
    digit.repeat(40)
}

/// A GGUF file without tensors.
fn gguf() -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend([0_u64, 1, 11].map(u64::to_le_bytes).concat());
    file.extend(b"split.count");
    file.extend([4, 1_u32].map(u32::to_le_bytes).concat());
    file
}

/// Starts a daemon with a slot `chat` and three revisions: `main`; `v2`, whose engine becomes ready once the test
/// lets it; and `v3`, whose engine does not start.
async fn started(keys: &str, settings: &str) -> Daemon {
    let dir = scratch(&[]);
    fs::create_dir(dir.path().join("slotd")).unwrap();
    fs::write(dir.path().join("slotd/slotd.toml"), settings).unwrap();
    for (name, digit) in [("main", "1"), ("v2", "2"), ("v3", "3")] {
        put(dir.path(), (name, &commit(digit)), ("m-Q8_0.gguf", "1"));
    }
    fs::write(dir.path().join("hf/hub/models--o--m/blobs/1"), gguf()).unwrap();
    let script = "case $1 in */111*) ;; */333*) exit 3 ;; *) \
        case $2 in *~new*) door=stand-in ;; *) door=slot ;; esac; \
        until [ -e \"$4/$door\" ]; do sleep 0.02; done ;; esac; exec \"$3\" \"$2\" alias=\"$1\"";
    let (engine, home) = (fake_engine(), dir.path().to_owned());
    let words = json!(["/bin/sh", "-c", script, "sh", "{model}", "socket={socket}", engine, home]);
    let profile = format!("model = \"o/m\"\nengine = \"command\"\ncommand = {words}\n{keys}\n");
    fs::write(dir.path().join("profiles/chat.toml"), profile).unwrap();
    let daemon = start(dir).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    daemon
}

pub(crate) async fn start(dir: TempDir) -> Daemon {
    let home = dir.path().to_owned();
    let env = [("HF_HOME", home.join("hf")), ("HOME", home.clone())];
    let env: Vec<_> = env.iter().map(|(name, path)| (*name, path.as_path())).collect();
    Daemon::start_with(dir, &env).await
}

/// Lets an engine become ready: `stand-in` or `slot`.
fn open(daemon: &Daemon, door: &str) {
    fs::write(daemon.dir.path().join(door), "").unwrap();
}

/// Begins `slotd models use chat REVISION`.
pub(crate) fn using(daemon: &Daemon, revision: &str) -> Child {
    using_with(daemon, &[revision])
}

fn using_with(daemon: &Daemon, words: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_slotd"))
        .arg("--control")
        .arg(daemon.dir.path().join("state/run/control.sock"))
        .args(["models", "use", "chat"])
        .args(words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// The end of a command: its exit code, what it wrote, and what it said beside that.
pub(crate) async fn ended(command: Child) -> (Option<i32>, String, String) {
    let output = timeout(DEADLINE, command.wait_with_output()).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn profile(daemon: &Daemon) -> String {
    fs::read_to_string(daemon.dir.path().join("profiles/chat.toml")).unwrap()
}

/// Waits until nothing stands in for the slot.
pub(crate) async fn alone(daemon: &Daemon) {
    let end = Instant::now() + DEADLINE;
    while daemon.slot("chat~new").await["error"]["code"] != "slot_not_found" {
        assert!(Instant::now() < end, "it still stands in\n{}", daemon.log());
        sleep(Duration::from_millis(5)).await;
    }
}

fn pid(slot: &Value) -> u64 {
    slot["pid"].as_u64().unwrap_or_else(|| panic!("{slot:#}"))
}

/// An answer to one of those who ask all the time.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    client: usize,
    pub(crate) status: u16,
    pub(crate) slot: String,
    model: String,
    /// It had to wait for a slot to be loaded.
    pub(crate) has_waited: bool,
    pub(crate) took: Duration,
}

/// Clients that ask all the time.
pub(crate) struct Clients {
    tasks: JoinSet<()>,
    answers: Arc<Mutex<Vec<Answer>>>,
    is_over: Arc<AtomicBool>,
}

impl Clients {
    pub(crate) fn of(daemon: &Daemon) -> Self {
        let mut all =
            Self { tasks: JoinSet::new(), answers: Arc::default(), is_over: Arc::default() };
        for client in 0..CLIENTS {
            let (answers, is_over) = (Arc::clone(&all.answers), Arc::clone(&all.is_over));
            let url = format!("{}/v1/chat/completions", daemon.url);
            let http = daemon.client.clone();
            all.tasks.spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let answer = ask(client, &http, &url).await;
                    answers.lock().unwrap().push(answer);
                }
            });
        }
        all
    }

    /// Waits until each has been answered some more times; returns the answers to requests that began after this
    /// was called.
    pub(crate) async fn more(&self) -> Vec<Answer> {
        let before = self.answers.lock().unwrap().len();
        let end = Instant::now() + DEADLINE;
        loop {
            let mut counts = [0; CLIENTS];
            let answers: Vec<_> =
                self.answers.lock().unwrap().iter().skip(before).cloned().collect();
            let later = answers.into_iter().filter(|answer| {
                counts[answer.client] += 1;
                counts[answer.client] > 1
            });
            let later: Vec<_> = later.collect();
            if counts.iter().all(|count| *count > 10) {
                return later;
            }
            assert!(Instant::now() < end, "requests wait: {:?}", later.last());
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn stop(mut self) -> Vec<Answer> {
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.answers.lock().unwrap().clone()
    }
}

async fn ask(client: usize, http: &reqwest::Client, url: &str) -> Answer {
    let messages = json!([{"role": "user", "content": "Say hello."}]);
    let body = json!({"model": "chat", "messages": messages, "max_tokens": 4});
    let began = Instant::now();
    let answer = timeout(DEADLINE, http.post(url).json(&body).send()).await.unwrap().unwrap();
    let slot = answer.headers().get("x-slotd-slot").map(|slot| slot.to_str().unwrap().to_owned());
    let has_waited = answer.headers().contains_key("x-slotd-cold-start-ms");
    let (status, slot) = (answer.status().as_u16(), slot.unwrap_or_default());
    let body: Value = answer.json().await.unwrap();
    let model = body["model"].as_str().unwrap_or_default().to_owned();
    Answer { client, status, slot, model, has_waited, took: began.elapsed() }
}

/// Tells whether all were served by that slot's engine, from that revision.
fn all_of(answers: &[Answer], slot: &str, digit: &str) -> bool {
    let is_of =
        |one: &Answer| one.status == 200 && one.slot == slot && one.model.contains(&commit(digit));
    answers.iter().all(is_of)
}

/// Waits until the slot itself loads what its stand-in serves meanwhile.
async fn reloading(daemon: &Daemon) {
    let is_reloading = |slot: &Value| slot["state"] == "starting" && slot["generation"] == 2;
    daemon.until("chat", "reloading", is_reloading).await;
}

#[tokio::test]
async fn nobody_waits_while_a_slot_goes_over_to_another_revision() {
    let daemon = started("", "").await;
    let clients = Clients::of(&daemon);
    let command = using(&daemon, "v2");

    daemon
        .until("chat~new", "coming", |slot| slot["state"] == "starting" && slot["pid"].is_u64())
        .await;
    let answers = clients.more().await;
    assert!(all_of(&answers, "chat", "1"), "{answers:?}");

    open(&daemon, "stand-in");
    reloading(&daemon).await;
    // The slot has no engine, and none of these waits for it.
    let answers = clients.more().await;
    assert!(all_of(&answers, "chat~new", "2"), "{answers:?}");
    let stand_in = daemon.slot("chat~new").await;
    assert_eq!(stand_in["stands_in_for"], "chat");
    assert!(said(&daemon, "ps").await.contains("ready, stands in for chat"));
    assert!(!daemon.models().await.contains("~new"), "nobody asks for it by name");

    open(&daemon, "slot");
    let (code, out, told) = ended(command).await;
    assert_eq!(code, Some(0), "{out}{told}");
    assert!(out.starts_with("chat: serves `o/m@v2` after"), "{out}");
    alone(&daemon).await;
    gone(pid(&stand_in)).await;
    let answers = clients.more().await;
    assert!(all_of(&answers, "chat", "2"), "{answers:?}");

    let answers = clients.stop().await;
    let is_served = |answer: &Answer| answer.status == 200 && !answer.has_waited;
    assert!(answers.iter().all(is_served), "somebody waited for a load: {answers:?}");
    for client in 0..CLIENTS {
        let of_client = answers.iter().filter(|answer| answer.client == client);
        let is_new: Vec<_> = of_client.map(|one| one.model.contains(&commit("2"))).collect();
        assert!(is_new.is_sorted(), "somebody went back to the earlier revision: {is_new:?}");
    }
    assert_eq!(daemon.slot("chat").await["generation"], 2, "the earlier one was drained once");
    let state = fs::read_to_string(daemon.dir.path().join("state/state.json")).unwrap_or_default();
    assert!(!state.contains("~new"), "it is remembered: {state}");
}

#[tokio::test]
async fn requests_that_a_stand_in_serves_count_as_its_slots_own() {
    // Requests with parameters added are relayed as a whole, others byte by byte.
    let daemon = started("[params]\nset = { temperature = 0.5 }", "").await;
    let command = using(&daemon, "v2");
    open(&daemon, "stand-in");
    reloading(&daemon).await;
    let answer = daemon.chat("chat").await;
    assert_eq!(answer.headers()["x-slotd-slot"], "chat~new");
    drop(answer.bytes().await.unwrap());
    open(&daemon, "slot");
    let (code, out, told) = ended(command).await;
    assert_eq!(code, Some(0), "{out}{told}");
    let metrics = daemon.client.get(format!("{}/metrics", daemon.url)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(
        metrics.contains("slotd_requests_total{slot=\"chat\",outcome=\"answered\"} 2\n"),
        "{metrics}"
    );
    assert!(!metrics.contains("~new"), "{metrics}");
}

#[tokio::test]
async fn an_engine_that_cannot_run_twice_goes_over_without_a_stand_in() {
    let daemon = started("", "").await;
    open(&daemon, "slot");
    let (code, out, told) = ended(using_with(&daemon, &["v2", "--no-stand-in"])).await;
    assert_eq!(code, Some(0), "{out}{told}");
    assert!(out.starts_with("chat: serves `o/m@v2` after"), "{out}");
    assert!(!daemon.log().contains("slot stands in"), "{}", daemon.log());
}

#[tokio::test]
async fn a_command_that_is_killed_before_the_cut_over_changes_nothing() {
    let daemon = started("", "").await;
    let (before, text) = (daemon.slot("chat").await, profile(&daemon));
    let mut command = using(&daemon, "v2");
    let coming = daemon
        .until("chat~new", "coming", |slot| slot["state"] == "starting" && slot["pid"].is_u64())
        .await;
    command.kill().await.unwrap();
    alone(&daemon).await;
    gone(pid(&coming)).await;
    assert_eq!(profile(&daemon), text);
    let after = daemon.slot("chat").await;
    assert_eq!((&after["pid"], &after["state"]), (&before["pid"], &json!("ready")));

    // The next one begins anew, and gets what it asks for.
    open(&daemon, "stand-in");
    open(&daemon, "slot");
    let (code, out, told) = ended(using(&daemon, "v2")).await;
    assert_eq!(code, Some(0), "{out}{told}");
}

#[tokio::test]
async fn a_command_that_is_interrupted_during_the_cut_over_leaves_nothing_behind() {
    let daemon = started("", "").await;
    let command = using(&daemon, "v2");
    open(&daemon, "stand-in");
    reloading(&daemon).await;
    let stand_in = daemon.slot("chat~new").await;
    let interrupted = i32::try_from(command.id().unwrap()).unwrap();
    kill(Pid::from_raw(interrupted), Signal::SIGINT).unwrap();
    ended(command).await;
    alone(&daemon).await;
    gone(pid(&stand_in)).await;
    // The edit goes on by itself.
    open(&daemon, "slot");
    let answer = daemon.chat("chat").await;
    assert_eq!(answer.status(), 200);
    let slot = daemon.until_state("chat", "ready").await;
    assert_eq!((&slot["model"], &slot["generation"]), (&json!("o/m@v2"), &json!(2)));
}

#[tokio::test]
async fn a_revision_that_does_not_start_touches_nothing() {
    let daemon = started("", "").await;
    let (before, text) = (daemon.slot("chat").await, profile(&daemon));
    let clients = Clients::of(&daemon);
    let (code, out, told) = ended(using(&daemon, "v3")).await;
    assert_eq!(code, Some(69), "{out}{told}");
    assert!(told.contains("slotd: chat: stays at `o/m`: "), "{told}");
    assert!(
        told.contains("exited with code 3") && told.contains("the profile is as it was"),
        "{told}"
    );
    assert!(told.contains("`--no-stand-in` starts none beside the present one"), "{told}");
    alone(&daemon).await;
    assert_eq!(profile(&daemon), text);
    let after = daemon.slot("chat").await;
    assert_eq!(
        (&after["pid"], &after["state"], &after["rejected_edit"]),
        (&before["pid"], &json!("ready"), &Value::Null)
    );
    clients.more().await;
    let answers = clients.stop().await;
    assert!(all_of(&answers, "chat", "1"), "{answers:?}");
}

#[tokio::test]
async fn where_memory_is_short_requests_wait_and_the_reason_is_told() {
    let settings = "memory_limit = \"100MiB\"\nmemory_reserve = \"0B\"\n";
    let daemon = started("memory = \"60MiB\"", settings).await;
    open(&daemon, "slot");
    let (code, out, told) = ended(using(&daemon, "v2")).await;
    assert_eq!(code, Some(0), "{out}{told}");
    assert!(out.starts_with("chat: serves `o/m@v2` after"), "{out}");
    let why =
        told.lines().find(|line| line.contains("stands in")).unwrap_or_else(|| panic!("{told}"));
    insta::assert_snapshot!(why, @"chat: no engine stands in for it, requests wait while it loads: it needs 60 MiB of memory, and 40 MiB can be had; it waits for chat (60 MiB)");
    assert_eq!(daemon.chat("chat").await.status(), 200);
}

#[tokio::test]
async fn where_no_slot_can_stand_in_the_reason_is_told() {
    let daemon = started("stop_command = [\"/bin/true\"]", "").await;
    open(&daemon, "slot");
    let (code, out, told) = ended(using(&daemon, "v2")).await;
    assert_eq!(code, Some(0), "{out}{told}");
    let why =
        told.lines().find(|line| line.contains("stands in")).unwrap_or_else(|| panic!("{told}"));
    insta::assert_snapshot!(why, @"chat: no engine stands in for it, requests wait while it loads: `chat` has a `stop_command`, which could end both of two engines");

    daemon.order("chat", "unload").await;
    daemon.until_state("chat", "offline").await;
    let (code, out, told) = ended(using(&daemon, "main")).await;
    assert_eq!((code, &*told), (Some(0), ""), "{out}");
    assert_eq!(out, "chat: uses `o/m@main` from its next load on\n");
}

#[tokio::test]
async fn no_next_daemon_has_a_stand_in() {
    let daemon = started("on_exit = \"keep\"", "").await;
    let before = daemon.slot("chat").await;
    let command = using(&daemon, "v2");
    open(&daemon, "stand-in");
    reloading(&daemon).await;
    let stand_in = daemon.slot("chat~new").await;
    assert_eq!(stand_in["state"], "ready");
    open(&daemon, "slot");
    let dir: TempDir = daemon.killed().await;
    gone(pid(&stand_in)).await;
    ended(command).await;
    let daemon = start(dir).await;
    alone(&daemon).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    assert!(!is_alive(pid(&before)));
    let logs: PathBuf = daemon.dir.path().join("state/logs/chat~new");
    assert!(logs.is_dir(), "what it wrote last can be read");
    let (code, out, told) = ended(using(&daemon, "main")).await;
    assert_eq!(code, Some(0), "{out}{told}");
    // It would outlive this test.
    daemon.order("chat", "unload").await;
    daemon.until_state("chat", "offline").await;
}
