//! The daemon is told to end, at every awkward moment.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::Instant;

use super::common::{DEADLINE, Daemon, fake, gone, scratch};

async fn ends_well(mut daemon: Daemon) {
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    let status = daemon.ended().await;
    assert!(status.success(), "{status}\n{}", daemon.log());
    assert!(began.elapsed() < DEADLINE / 2, "it took {:?}", began.elapsed());
}

#[tokio::test]
async fn a_stop_during_a_load_ends_it() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("ready_after=1h", ""))])).await;
    daemon.order("chat", "load").await;
    let slot = daemon.until("chat", "started", |view| view["pid"].is_u64()).await;
    ends_well(daemon).await;
    gone(slot["pid"].as_u64().unwrap()).await;
}

#[tokio::test]
async fn a_stop_during_a_backoff_waits_for_nothing() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("die_at_start=1", ""))])).await;
    daemon.order("chat", "load").await;
    daemon.until_state("chat", "backoff").await;
    ends_well(daemon).await;
}

#[tokio::test]
async fn a_stop_during_a_drain_lets_the_answer_finish() {
    let profile = fake("tokens=100 token_gap=10ms", "");
    let daemon = Daemon::start(scratch(&[("chat", &profile)])).await;
    let body = json!({"model": "chat", "stream": true, "messages": []});
    let mut stream = daemon.post("/v1/chat/completions", &body).await;
    stream.chunk().await.unwrap().unwrap();
    daemon.order("chat", "unload").await;
    daemon.until_state("chat", "draining").await;
    ends_well(daemon).await;
    let rest = stream.text().await.unwrap();
    assert!(rest.trim_end().ends_with("data: [DONE]"), "the stream was cut: {rest}");
}

#[tokio::test]
async fn a_second_signal_ends_the_daemon_at_once_and_its_engines_with_it() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let profile = fake("ignore=TERM fork", "stop_timeout = \"10m\"");
        let mut daemon = Daemon::start(scratch(&[("chat", &profile)])).await;
        assert_eq!(daemon.chat("chat").await.status(), 200);
        let slot = daemon.slot("chat").await;
        daemon.signal(signal);
        daemon.until_state("chat", "stopping").await;
        daemon.signal(signal);
        assert_eq!(daemon.ended().await.code(), Some(130));
        gone(slot["pid"].as_u64().unwrap()).await;
    }
}

#[tokio::test]
async fn a_port_that_somebody_took_is_replaced_by_another() {
    let dir = scratch(&[]);
    let stolen = dir.path().join("stolen");
    let profile = fake(&format!("steal_port_once={}", stolen.display()), "")
        .replace("socket={socket}", "port={port}");
    super::common::write_profile(dir.path(), "chat", &profile);
    let daemon = Daemon::start(dir).await;
    assert_eq!(daemon.chat("chat").await.status(), 503);
    let slot = daemon.slot("chat").await;
    assert_eq!(slot["verdict"], "port-busy", "{slot:#}");
    daemon.order("chat", "load").await;
    daemon.until_state("chat", "ready").await;
}

#[tokio::test]
async fn an_engine_never_sees_the_daemons_secrets() {
    let dir = scratch(&[]);
    let dump = dir.path().join("dump");
    let profile = fake(&format!("dump={}", dump.display()), "");
    super::common::write_profile(dir.path(), "chat", &profile);
    let secret = std::path::Path::new("canary-of-a-secret");
    let names = ["HF_TOKEN", "OPENAI_API_KEY", "CREDENTIALS_DIRECTORY", "LISTEN_FDS", "SLOTD_KEY"];
    let daemon = Daemon::start_with(dir, &names.map(|name| (name, secret))).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let seen = fs::read_to_string(&dump).unwrap();
    assert!(seen.contains("env PATH="), "{seen}");
    assert!(!seen.contains("canary"), "{seen}");
    assert!(!daemon.log().contains("canary"));
}
