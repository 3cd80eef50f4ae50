//! The whole daemon on real processes: the fake engine, for faults that cannot be ordered.

use std::{fs, path::Path, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::common::{DEADLINE, Daemon, fake, gone, is_alive, scratch, write_profile};

fn spawns(log: &Path) -> usize {
    fs::read_to_string(log)
        .unwrap_or_default()
        .lines()
        .filter(|line| line.starts_with("started "))
        .count()
}

async fn error_of(answer: reqwest::Response) -> Value {
    let body: Value = answer.json().await.unwrap();
    let error = body["error"].as_object().cloned().unwrap();
    for key in ["message", "type", "param", "code"] {
        assert!(error.contains_key(key), "{key} is missing in {error:?}");
    }
    Value::Object(error)
}

#[tokio::test]
async fn the_first_request_loads_the_slot_and_is_answered() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("ready_after=100ms", ""))])).await;
    assert_eq!(daemon.slot("chat").await["state"], "offline");
    let answer = daemon.chat("chat").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-slotd-slot"], "chat");
    assert!(answer.headers().contains_key("x-request-id"));
    let slot = daemon.until_state("chat", "ready").await;
    assert_eq!(slot["verdict"], Value::Null);
    assert_eq!(slot["generation"], 1);
}

#[tokio::test]
async fn listing_models_wakes_nothing() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("", "aliases = [\"gpt-4o\"]"))])).await;
    daemon.until_state("chat", "offline").await;
    let url = format!("{}/v1/models", daemon.url);
    let list: Value = daemon.client.get(url).send().await.unwrap().json().await.unwrap();
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert!(ids.contains(&&json!("chat")) && ids.contains(&&json!("gpt-4o")), "{list}");
    assert_eq!(daemon.slot("chat").await["state"], "offline");
}

#[tokio::test]
async fn an_unknown_model_is_refused_by_naming_what_there_is() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("", ""))])).await;
    daemon.until_state("chat", "offline").await;
    let answer = daemon.chat("caht").await;
    assert_eq!(answer.status(), 404);
    let error = error_of(answer).await;
    assert_eq!(error["code"], "model_not_found");
    assert!(error["message"].as_str().unwrap().contains("chat"), "{error}");
}

#[tokio::test]
async fn a_killed_engine_ends_its_streams_with_an_error_and_is_back_for_the_next_request() {
    let script = "tokens=100000 token_gap=2ms";
    let daemon = Daemon::start(scratch(&[("chat", &fake(script, "parallel = 32"))])).await;
    daemon.order("chat", "load").await;
    let before = daemon.until_state("chat", "ready").await;
    let body = json!({"model": "chat", "stream": true, "messages": []});
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = daemon.post("/v1/chat/completions", &body).await;
        assert_eq!(stream.status(), 200);
        let first = stream.chunk().await.unwrap().unwrap();
        streams.push((stream, first.to_vec()));
    }
    let pid = before["pid"].as_u64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    let short = json!({"model": "chat", "messages": [], "max_tokens": 3});
    let next = daemon.post("/v1/chat/completions", &short).await;
    assert_eq!(next.status(), 200, "a request right after the death is held and answered");
    for (mut stream, mut text) in streams {
        let cut = loop {
            match stream.chunk().await {
                Ok(Some(chunk)) => text.extend_from_slice(&chunk),
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        let text = String::from_utf8(text).unwrap();
        assert!(cut, "a stream ended cleanly: {text}");
        let last = text.trim_end().lines().last().unwrap();
        let event: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(event["error"]["code"], "engine_died", "{last}");
        assert!(!text.contains("[DONE]"));
    }
    let after = daemon.until_state("chat", "ready").await;
    assert_ne!(after["pid"], before["pid"]);
    assert_eq!(after["verdict"], "killed-by-other");
    assert_eq!(after["restarts"], 1);
    assert!(after["reason"].as_str().unwrap().contains("SIGKILL"), "{after}");
}

#[tokio::test]
async fn an_engine_that_dies_at_start_is_told_at_once_and_not_spawned_by_requests() {
    let dir = scratch(&[]);
    let spawn_log = dir.path().join("spawns");
    let script = format!("die_at_start=1 spawn_log={}", spawn_log.display());
    write_profile(dir.path(), "chat", &fake(&script, ""));
    let daemon = Daemon::start(dir).await;
    daemon.until_state("chat", "offline").await;
    for _ in 0..20 {
        let answer = daemon.chat("chat").await;
        assert_eq!(answer.status(), 503);
        assert!(answer.headers().contains_key("retry-after"));
        let error = error_of(answer).await;
        assert!(error["message"].as_str().unwrap().contains("unexpected-exit"), "{error}");
    }
    assert_eq!(spawns(&spawn_log), 1, "a request during the backoff started an engine");
    assert_eq!(daemon.slot("chat").await["state"], "backoff");
}

#[tokio::test]
async fn an_edit_moves_only_the_slot_that_it_changed() {
    let script = "tokens=200 token_gap=5ms";
    let daemon = Daemon::start(scratch(&[("first", &fake(script, ""))])).await;
    let body = json!({"model": "first", "stream": true, "messages": []});
    let mut stream = daemon.post("/v1/chat/completions", &body).await;
    let mut text = stream.chunk().await.unwrap().unwrap().to_vec();
    let before = daemon.slot("first").await;
    daemon.write_profile("second", &fake("", ""));
    daemon.until_state("second", "offline").await;
    assert_eq!(daemon.chat("second").await.status(), 200);
    while let Some(chunk) = stream.chunk().await.unwrap() {
        text.extend_from_slice(&chunk);
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.trim_end().ends_with("data: [DONE]"), "the stream was disturbed");
    let after = daemon.slot("first").await;
    assert_eq!((&after["pid"], &after["generation"]), (&before["pid"], &before["generation"]));
}

#[tokio::test]
async fn a_bad_edit_keeps_the_profile_that_worked() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("", ""))])).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let before = daemon.slot("chat").await;
    daemon.write_profile("chat", "engine = \"comand\"\n");
    daemon.write_profile("other", &fake("", ""));
    daemon.until_state("other", "offline").await;
    let after = daemon.slot("chat").await;
    assert_eq!((&after["pid"], &after["state"]), (&before["pid"], &json!("ready")));
    assert!(daemon.log().contains("chat.toml:1:10"), "{}", daemon.log());
}

#[tokio::test]
async fn a_removed_profile_drains_its_engine_and_forgets_the_slot() {
    let script = "tokens=40 token_gap=10ms";
    let daemon = Daemon::start(scratch(&[("chat", &fake(script, ""))])).await;
    let body = json!({"model": "chat", "stream": true, "messages": []});
    let mut stream = daemon.post("/v1/chat/completions", &body).await;
    stream.chunk().await.unwrap().unwrap();
    let pid = daemon.slot("chat").await["pid"].as_u64().unwrap();
    fs::remove_file(daemon.dir.path().join("profiles/chat.toml")).unwrap();
    let rest = stream.text().await.unwrap();
    assert!(rest.trim_end().ends_with("data: [DONE]"), "the stream was cut: {rest}");
    gone(pid).await;
    let end = Instant::now() + DEADLINE;
    while daemon.chat("chat").await.status() != 404 {
        assert!(Instant::now() < end, "the slot was never forgotten");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request_at_the_engine() {
    let dir = scratch(&[]);
    let requests = dir.path().join("requests");
    let script = format!("tokens=100000 token_gap=5ms log_requests={}", requests.display());
    write_profile(dir.path(), "chat", &fake(&script, ""));
    let daemon = Daemon::start(dir).await;
    let body = json!({"model": "chat", "stream": true, "messages": []});
    let mut stream = daemon.post("/v1/chat/completions", &body).await;
    stream.chunk().await.unwrap().unwrap();
    drop(stream);
    let end = Instant::now() + DEADLINE;
    while !fs::read_to_string(&requests).unwrap_or_default().contains("cancelled") {
        assert!(Instant::now() < end, "the engine was never told");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_idle_slot_is_unloaded_and_comes_back_on_request() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("", "idle_timeout = \"300ms\""))])).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let slot = daemon.until_state("chat", "offline").await;
    assert_eq!(slot["verdict"], "stopped-by-us");
    assert_eq!(daemon.chat("chat").await.status(), 200);
}

#[tokio::test]
async fn an_engine_that_ignores_sigterm_is_killed_after_its_grace() {
    let profile = fake("ignore=TERM fork", "stop_timeout = \"200ms\"");
    let daemon = Daemon::start(scratch(&[("chat", &profile)])).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let pid = daemon.slot("chat").await["pid"].as_u64().unwrap();
    daemon.order("chat", "unload").await;
    let slot = daemon.until_state("chat", "offline").await;
    assert!(!is_alive(pid));
    assert_eq!(slot["verdict"], "stopped-by-us");
}

#[tokio::test]
async fn a_stopped_daemon_leaves_nothing_behind() {
    let mut daemon = Daemon::start(scratch(&[("chat", &fake("fork setsid", ""))])).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let pid = daemon.slot("chat").await["pid"].as_u64().unwrap();
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());
    assert!(!is_alive(pid));
    assert_eq!(leftovers(daemon.dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_killed_daemon_leaves_nothing_behind() {
    let mut daemon = Daemon::start(scratch(&[("chat", &fake("fork", ""))])).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let pid = daemon.slot("chat").await["pid"].as_u64().unwrap();
    daemon.signal(Signal::SIGKILL);
    daemon.ended().await;
    gone(pid).await;
    let end = Instant::now() + DEADLINE;
    while !leftovers(daemon.dir.path()).is_empty() {
        assert!(Instant::now() < end, "{:?}", leftovers(daemon.dir.path()));
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_second_daemon_on_the_same_state_directory_is_refused() {
    let daemon = Daemon::start(scratch(&[])).await;
    let second = tokio::process::Command::new(env!("CARGO_BIN_EXE_slotd"))
        .args(["serve", "--listen", "127.0.0.1:0", "--state-dir"])
        .arg(daemon.dir.path().join("state"))
        .arg("--profiles")
        .arg(daemon.dir.path().join("profiles"))
        .output()
        .await
        .unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(75), "{said}");
    assert!(said.contains(&daemon.pid().to_string()), "the holder is not named: {said}");
}

#[tokio::test]
async fn generations_and_deaths_are_remembered_over_a_restart() {
    let mut daemon = Daemon::start(scratch(&[("chat", &fake("", ""))])).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    daemon.signal(Signal::SIGTERM);
    daemon.ended().await;
    let Daemon { dir, .. } = daemon;
    let daemon = Daemon::start(dir).await;
    let slot = daemon.until_state("chat", "offline").await;
    assert_eq!(slot["verdict"], "stopped-by-us");
    assert_eq!(daemon.chat("chat").await.status(), 200);
    assert_eq!(daemon.slot("chat").await["generation"], 2);
}

/// Processes whose command line names the scratch directory.
fn leftovers(dir: &Path) -> Vec<String> {
    let needle = dir.to_str().unwrap();
    let own = std::process::id().to_string();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()) && *name != own)
        .filter_map(|pid| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            line.contains(needle).then(|| format!("{pid} {}", line.replace('\0', " ")))
        })
        .collect()
}
