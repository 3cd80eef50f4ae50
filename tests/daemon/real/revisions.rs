//! `slotd models use` with a real llama-server and a stream of requests: none fails, none waits for a load.

use std::{fs, time::Duration};

use serde_json::json;

use super::model;
use crate::{
    common::{llama_server, scratch},
    revisions::{Answer, Clients, alone, commit, ended, put, start, using},
};

#[tokio::test]
async fn llama_server_goes_over_to_another_revision_without_a_gap() {
    let keys = "engine = \"llama-server\"\ncontext = 512\nthreads = 1\nparallel = 2\n";
    let dir = scratch(&[("chat", &format!("model = \"o/m\"\n{keys}"))]);
    fs::create_dir(dir.path().join("slotd")).unwrap();
    let engine = llama_server().display().to_string();
    fs::write(dir.path().join("slotd/slotd.toml"), format!("llama_server = {engine:?}\n")).unwrap();
    put(dir.path(), ("main", &commit("1")), ("smol-Q4_1.gguf", "1"));
    put(dir.path(), ("v2", &commit("2")), ("smol-two-Q4_1.gguf", "1"));
    let blob = dir.path().join("hf/hub/models--o--m/blobs/1");
    if fs::hard_link(model(), &blob).is_err() {
        fs::copy(model(), &blob).unwrap();
    }
    let daemon = start(dir).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);

    let clients = Clients::of(&daemon);
    let usual = longest(&clients.more().await);
    let (code, out, told) = ended(using(&daemon, "v2")).await;
    assert_eq!(code, Some(0), "{out}{told}");
    alone(&daemon).await;
    clients.more().await;
    let answers = clients.stop().await;
    let failed = answers.iter().filter(|answer| answer.status != 200).count();
    assert_eq!(failed, 0, "{answers:?}");
    let waited = answers.iter().filter(|answer| answer.has_waited).count();
    assert_eq!(waited, 0, "somebody waited for a load: {answers:?}");
    let slot = daemon.slot("chat").await;
    assert_eq!((&slot["model"], &slot["generation"]), (&json!("o/m@v2"), &json!(2)));
    let runs = fs::read_to_string(format!("/proc/{}/cmdline", slot["pid"])).unwrap();
    assert!(runs.contains("smol-two-Q4_1.gguf"), "{runs}");
    let beside = answers.iter().filter(|answer| answer.slot == "chat~new").count();
    assert!(beside > 0, "no request was served meanwhile");
    println!(
        "{} requests, {failed} failed, {waited} waited for a load, {beside} served by the stand-in; the longest took \
         {:?}, before the change {usual:?}; loads took {} ms",
        answers.len(),
        longest(&answers),
        slot["loads_ms"]
    );
}

fn longest(answers: &[Answer]) -> Duration {
    answers.iter().map(|answer| answer.took).max().unwrap_or_default()
}
