//! The whole daemon with real engines and a real model: llama-server and the candle worker.

mod bench;
mod full_disk;
mod resume;
mod revisions;
mod surface;

use std::{env, path::Path, process::Stdio};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};

use super::common::{DEADLINE, Daemon, fake, is_alive, llama_server, model, scratch};

/// A profile of the real model on one engine.
fn profile(engine: &str, keys: &str) -> String {
    let model = model().display().to_string();
    format!("model = {model:?}\nengine = {engine:?}\ncontext = 2048\nthreads = 1\n{keys}\n")
}

/// A daemon that knows the llama-server of the tests.
async fn daemon(profiles: &[(&str, &str)]) -> Daemon {
    let dir = scratch(profiles);
    let settings = dir.path().join("slotd/slotd.toml");
    std::fs::create_dir_all(settings.parent().unwrap()).unwrap();
    std::fs::write(
        &settings,
        format!("llama_server = {:?}\n", llama_server().display().to_string()),
    )
    .unwrap();
    Daemon::start(dir).await
}

/// Runs a client program to its end.
async fn client(program: &Path, arguments: &[&str]) {
    let run = Command::new(program)
        .args(arguments)
        .env("NO_PROXY", "127.0.0.1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(DEADLINE * 3, run).await.unwrap().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
}

fn set(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("set {name}, `make test` does"))
}

async fn openai_clients_against(engine: &str) {
    let daemon = daemon(&[("smollm2", &profile(engine, ""))]).await;
    let url = format!("{}/v1", daemon.url);
    let python = set("SLOTD_TEST_PYTHON");
    client(Path::new(&python), &["tests/sdk/openai_client.py", &url, "smollm2"]).await;
    let modules = set("SLOTD_TEST_NODE_MODULES");
    client(Path::new("node"), &["tests/sdk/openai_client.mjs", &modules, &url, "smollm2"]).await;
    let slot = daemon.slot("smollm2").await;
    assert_eq!((&slot["engine"], &slot["restarts"]), (&json!(engine), &json!(0)));
}

#[tokio::test]
async fn openai_clients_are_served_by_llama_server() {
    openai_clients_against("llama-server").await;
}

#[tokio::test]
async fn openai_clients_are_served_by_the_worker() {
    openai_clients_against("candle").await;
}

#[tokio::test]
async fn models_that_embed_alone_are_offered_for_that_once_they_were_looked_at() {
    let embedder = set("SLOTD_TEST_EMBEDDER");
    let vectors = format!("model = {embedder:?}\nengine = \"candle\"\n");
    let daemon = daemon(&[("vectors", &vectors), ("words", &fake("", ""))]).await;
    let unnamed = json!({ "messages": [{ "role": "user", "content": "hello" }] });
    let before = daemon.post("/v1/chat/completions", &unnamed).await;
    assert_eq!(before.status(), 400, "it may be meant for either");
    daemon.order("vectors", "load").await;
    let slot = daemon.until_state("vectors", "ready").await;
    assert_eq!(slot["capabilities"], json!(["embed"]), "{slot:#}");
    let after = daemon.post("/v1/chat/completions", &unnamed).await;
    assert_eq!(after.status(), 200);
    assert_eq!(after.headers()["x-slotd-slot"], "words");
    // It is known of the model, loaded or not.
    daemon.order("vectors", "unload").await;
    let slot = daemon.until_state("vectors", "offline").await;
    assert_eq!(slot["capabilities"], json!(["embed"]), "{slot:#}");
}

#[tokio::test]
async fn ollamas_client_is_served_by_llama_server() {
    let dir = scratch(&[("smollm2", &profile("llama-server", ""))]);
    let settings = dir.path().join("slotd/slotd.toml");
    std::fs::create_dir_all(settings.parent().unwrap()).unwrap();
    let engine = llama_server().display().to_string();
    let text = format!("llama_server = {engine:?}\nollama_listen = \"127.0.0.1:0\"\n");
    std::fs::write(&settings, text).unwrap();
    let daemon = Daemon::start(dir).await;
    let address = daemon.daemon().await["ollama_listen"].as_str().unwrap().to_owned();
    let python = set("SLOTD_TEST_PYTHON");
    let host = format!("http://{address}");
    client(Path::new(&python), &["tests/sdk/ollama_client.py", &host, "smollm2"]).await;
    let slot = daemon.until_state("smollm2", "offline").await;
    assert_eq!((&slot["pid"], &slot["restarts"]), (&Value::Null, &json!(0)));
}

#[tokio::test]
async fn a_killed_llama_server_is_replaced_while_twenty_streams_run() {
    let mut daemon = daemon(&[("chat", &profile("llama-server", "parallel = 20"))]).await;
    daemon.order("chat", "load").await;
    let before = daemon.until_state("chat", "ready").await;
    let messages = json!([{"role": "user", "content": "Tell a very long story."}]);
    let body = json!({"model": "chat", "stream": true, "messages": messages, "max_tokens": 1500,
        "ignore_eos": true});
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = daemon.post("/v1/chat/completions", &body).await;
        assert_eq!(stream.status(), 200);
        let first = stream.chunk().await.unwrap().unwrap().to_vec();
        streams.push((stream, first));
    }
    let pid = before["pid"].as_u64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    let answer = daemon.chat("chat").await;
    assert_eq!(answer.status(), 200, "a request right after the death is held and answered");
    for (mut stream, mut text) in streams {
        let is_cut = loop {
            match stream.chunk().await {
                Ok(Some(chunk)) => text.extend_from_slice(&chunk),
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        let text = String::from_utf8(text).unwrap();
        assert!(is_cut && !text.contains("[DONE]"), "a stream ended cleanly");
        assert!(text.trim_end().lines().last().unwrap().contains("engine_died"));
    }
    let after = daemon.until_state("chat", "ready").await;
    assert_ne!(after["pid"], before["pid"]);
    assert_eq!(after["verdict"], "killed-by-other");
    assert!(!is_alive(pid));
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());
    assert!(!is_alive(after["pid"].as_u64().unwrap()));
}

#[tokio::test]
async fn a_kept_llama_server_serves_the_next_daemon_without_a_reload() {
    let keep = profile("llama-server", "on_exit = \"keep\"");
    let daemon = daemon(&[("chat", &keep)]).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let before = daemon.until_state("chat", "ready").await;
    let daemon = Daemon::start(daemon.killed().await).await;
    let after = daemon.slot("chat").await;
    assert_eq!((&after["state"], &after["pid"]), (&json!("ready"), &before["pid"]));
    assert_eq!(daemon.chat("chat").await.status(), 200);
    daemon.order("chat", "unload").await;
    daemon.until_state("chat", "offline").await;
    assert!(!is_alive(before["pid"].as_u64().unwrap()));
}

#[tokio::test]
async fn a_stopped_llama_server_is_replaced_and_the_next_request_answered() {
    let keys = "parallel = 2\nhang_timeout = \"5s\"";
    let daemon = daemon(&[("chat", &profile("llama-server", keys))]).await;
    let messages = json!([{"role": "user", "content": "Tell a very long story."}]);
    let body = json!({"model": "chat", "stream": true, "messages": messages, "max_tokens": 1500,
        "ignore_eos": true});
    let mut stream = daemon.post("/v1/chat/completions", &body).await;
    let mut text = stream.chunk().await.unwrap().unwrap().to_vec();
    let before = daemon.slot("chat").await;
    let pid = before["pid"].as_u64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGSTOP).unwrap();
    assert_eq!(daemon.chat("chat").await.status(), 200, "it went to the next engine");
    while let Ok(Some(chunk)) = stream.chunk().await {
        text.extend_from_slice(&chunk);
    }
    let text = String::from_utf8(text).unwrap();
    assert!(!text.contains("[DONE]") && text.contains("engine_died"), "the stream ended cleanly");
    let after = daemon.until_state("chat", "ready").await;
    assert_eq!((&after["verdict"], &after["restarts"]), (&json!("hung"), &json!(1)));
    let reason = after["reason"].as_str().unwrap();
    assert!(reason.contains("used no CPU time") && reason.contains("SIGSTOP"), "{reason}");
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_long_prompt_of_llama_server_is_left_alone_at_the_shortest_patience() {
    let keys = "parallel = 1\nhang_timeout = \"2s\"";
    let long = profile("llama-server", keys).replace("context = 2048", "context = 4096");
    let daemon = daemon(&[("chat", &long)]).await;
    let prompt = "The quick brown fox jumps over the lazy dog again. ".repeat(100);
    let body = json!({"model": "chat", "prompt": prompt, "max_tokens": 1});
    let status = daemon.post("/v1/completions", &body).await.status();
    assert_eq!(status, 200);
    let slot = daemon.slot("chat").await;
    assert_eq!((&slot["generation"], &slot["verdict"]), (&json!(1), &Value::Null), "{slot}");
}

#[tokio::test]
async fn an_edit_adds_a_worker_while_llama_server_streams() {
    let daemon = daemon(&[("first", &profile("llama-server", "parallel = 1"))]).await;
    let messages = json!([{"role": "user", "content": "Count."}]);
    let body = json!({"model": "first", "stream": true, "messages": messages, "max_tokens": 600,
        "ignore_eos": true});
    let mut stream = daemon.post("/v1/chat/completions", &body).await;
    let mut text = stream.chunk().await.unwrap().unwrap().to_vec();
    let before = daemon.slot("first").await;
    daemon.write_profile("second", &profile("candle", ""));
    daemon.until_state("second", "offline").await;
    assert_eq!(daemon.chat("second").await.status(), 200);
    while let Some(chunk) = stream.chunk().await.unwrap() {
        text.extend_from_slice(&chunk);
    }
    assert!(String::from_utf8(text).unwrap().trim_end().ends_with("data: [DONE]"));
    let (first, second) = (daemon.slot("first").await, daemon.slot("second").await);
    assert_eq!((&first["pid"], &first["state"]), (&before["pid"], &json!("ready")));
    assert_eq!((&second["engine"], &second["state"]), (&json!("candle"), &json!("ready")));
}

#[tokio::test]
async fn a_missing_and_a_truncated_model_are_said_in_one_sentence_and_not_retried() {
    let whole = std::fs::read(model()).unwrap();
    let dir = scratch(&[
        ("missing", "model = \"/nonexistent/model.gguf\"\nengine = \"candle\"\n"),
        ("cut", "model = \"cut.gguf\"\nengine = \"candle\"\n"),
        ("engine", "engine = \"command\"\ncommand = [\"/nonexistent/engine\", \"{socket}\"]\n"),
    ]);
    std::fs::write(dir.path().join("profiles/cut.gguf"), &whole[..whole.len() / 2]).unwrap();
    let daemon = Daemon::start(dir).await;
    for (slot, verdict, said) in [
        ("missing", "missing-file", "/nonexistent/model.gguf"),
        ("cut", "bad-model", "cut short"),
        ("engine", "spawn-failed", "/nonexistent/engine"),
    ] {
        let answer = daemon.chat(slot).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["x-should-retry"]),
            (503, &"false".parse().unwrap())
        );
        let body: Value = answer.json().await.unwrap();
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(said) && message.contains(verdict), "{message}");
        let view = daemon.slot(slot).await;
        assert_eq!((&view["state"], &view["verdict"]), (&json!("failed"), &json!(verdict)));
    }
}
