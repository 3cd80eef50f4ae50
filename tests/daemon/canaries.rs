//! Keys, prompts and completions stay between a client and its engine.

use std::{
    fmt::Write,
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    access::new_key,
    common::{Daemon, fake, scratch},
};

const PROMPT: &str = "canary-prompt-5f1c";

/// Every file below a directory but sockets.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), found);
        } else if !kind.is_socket() && !kind.is_fifo() {
            found.push(entry.path());
        }
    }
}

fn has(bytes: &[u8], canary: &str) -> bool {
    bytes.windows(canary.len()).any(|window| window == canary.as_bytes())
}

async fn metrics(daemon: &Daemon, key: &str) -> String {
    let page = daemon.client.get(format!("{}/metrics", daemon.url)).bearer_auth(key);
    let page = page.send().await.unwrap().text().await.unwrap();
    assert!(page.contains("slotd_requests_total{slot=\"chat\""), "{page}");
    page
}

fn content(answer: &str) -> String {
    let answer: Value = serde_json::from_str(answer).unwrap();
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn canaries_are_in_no_log_state_error_or_process_list() {
    let dir = scratch(&[("chat", &fake("tokens=20", ""))]);
    let key = new_key(dir.path(), &["laptop"]).await;
    let admin = new_key(dir.path(), &["--admin", "ops"]).await;
    let daemon =
        Daemon::start_through(dir, "RUST_LOG=trace; export RUST_LOG; exec \"$@\"", &[]).await;
    let url = format!("{}/v1/chat/completions", daemon.url);
    let mut said = String::new();
    let mut completion = String::new();
    let wrong = "sk-slotd-canary-wrong-9d2e";
    let message = json!([{"role": "user", "content": PROMPT}]);
    for (model, key, stream) in [
        ("chat", key.as_str(), false),
        ("chat", key.as_str(), true),
        ("none", key.as_str(), false),
        ("chat", wrong, false),
        ("chat", admin.as_str(), false),
    ] {
        let body = json!({"model": model, "messages": message, "stream": stream});
        for header in ["authorization", "x-api-key"] {
            let value = if header == "x-api-key" { "" } else { "Bearer " }.to_owned() + key;
            let request = daemon.client.post(&url).header(header, value).json(&body);
            let answer = request.send().await.unwrap();
            let is_fine = answer.status().is_success();
            writeln!(said, "{:?}", answer.headers()).unwrap();
            let text = answer.text().await.unwrap();
            if !is_fine {
                said.push_str(&text);
            } else if !stream {
                completion = content(&text);
            }
        }
    }
    let broken = format!("{{\"model\": \"chat\", \"messages\": \"{PROMPT}\", {PROMPT}}}");
    let answer = daemon.client.post(&url).bearer_auth(&key).body(broken).send().await.unwrap();
    said.push_str(&answer.text().await.unwrap());
    let slot = daemon.until_state("chat", "ready").await;
    said.push_str(&slot.to_string());
    said.push_str(&daemon.daemon().await.to_string());
    let metrics = metrics(&daemon, &key).await;
    said.push_str(&metrics);

    assert!(completion.len() > 20, "{completion}");
    let mut found = Vec::new();
    files(daemon.dir.path(), &mut found);
    assert!(found.iter().any(|file| file.ends_with("daemon.log")), "{found:?}");
    let engine = slot["pid"].as_u64().unwrap();
    for process in [u64::try_from(daemon.pid().as_raw()).unwrap(), engine] {
        for what in ["cmdline", "environ"] {
            found.push(PathBuf::from(format!("/proc/{process}/{what}")));
        }
    }
    for canary in [key.as_str(), admin.as_str(), wrong, PROMPT, completion.as_str()] {
        assert!(!has(said.as_bytes(), canary), "`{canary}` is in an error or a status:\n{said}");
        for file in &found {
            let bytes = fs::read(file).unwrap();
            assert!(!has(&bytes, canary), "`{canary}` is in {}", file.display());
        }
    }
}
