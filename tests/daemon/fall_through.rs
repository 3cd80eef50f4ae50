//! A daemon above another one: what only the other has is served through both.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    access::{new_key, until_logged},
    common::{DEADLINE, Daemon, fake, scratch},
};

/// Writes slotd.toml of a daemon, and the key that it shows the other one.
fn point(dir: &Path, url: &str, key: &str) {
    fs::create_dir_all(dir.join("slotd")).unwrap();
    let setting = format!("[fall_through]\nurl = \"{url}\"\nkey_file = \"other.key\"\n");
    fs::write(dir.join("slotd/slotd.toml"), setting).unwrap();
    write_key(dir, key);
}

fn write_key(dir: &Path, key: &str) {
    let file = dir.join("slotd/other.key");
    fs::write(&file, format!("{key}\n")).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn what_only_another_daemon_has_is_served_through_both_with_its_key() {
    let below = scratch(&[("big", &fake("tokens=5", ""))]);
    let key = new_key(below.path(), &["above"]).await;
    let below = Daemon::start(below).await;
    let above = scratch(&[("small", &fake("", ""))]);
    point(above.path(), &below.url, &key);
    let above = Daemon::start(above).await;

    let answer = above.chat("big").await;
    assert_eq!(answer.status(), 200, "{}\n{}", above.log(), below.log());
    assert_eq!(answer.headers()["x-slotd-slot"], "fall-through");
    let answer: Value = answer.json().await.unwrap();
    assert!(answer["choices"][0]["message"]["content"].is_string(), "{answer}");
    let messages = json!([{"role": "user", "content": "Say hello."}]);
    let body = json!({"model": "big", "messages": messages, "stream": true});
    let stream = above.post("/v1/chat/completions", &body).await.text().await.unwrap();
    assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");
    assert_eq!(above.chat("small").await.headers()["x-slotd-slot"], "small");
    assert_eq!(above.chat("none").await.status(), 404, "the other daemon's own refusal");
    let metrics = above.client.get(format!("{}/metrics", above.url)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let counted = "slotd_requests_total{slot=\"fall-through\",outcome=\"answered\"} 2";
    assert!(metrics.contains(counted), "{metrics}");

    // A key that is wrong is the operator's to see, and a new one counts at once.
    write_key(above.dir.path(), "sk-wrong-canary");
    let begin = Instant::now();
    while above.chat("big").await.status() != 502 {
        assert!(begin.elapsed() < DEADLINE, "the wrong key was never shown");
        sleep(std::time::Duration::from_millis(5)).await;
    }
    until_logged(&above, "fall-through upstream refused slotd's key").await;
    write_key(above.dir.path(), &key);
    while above.chat("big").await.status() != 200 {
        assert!(begin.elapsed() < DEADLINE, "the right key was never shown");
        sleep(std::time::Duration::from_millis(5)).await;
    }
    for canary in [&key, "sk-wrong-canary"] {
        assert!(!above.log().contains(canary), "a key is in the log");
    }
}

#[tokio::test]
async fn a_key_that_others_can_read_is_not_taken() {
    let dir = scratch(&[]);
    point(dir.path(), "https://127.0.0.1:1/v1", "sk-canary");
    let file = dir.path().join("slotd/other.key");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_slotd"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--state-dir"]).arg(dir.path().join("state"));
    let output = command.env("XDG_CONFIG_HOME", dir.path()).env("HOME", dir.path()).output().await;
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("other.key: has mode 0644"), "{said}");
    assert!(!said.contains("sk-canary"));
}
