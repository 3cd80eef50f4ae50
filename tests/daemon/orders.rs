//! Orders over the endpoint: an admin key reaches the control API, nobody else does.

use std::{fs, os::unix::fs::PermissionsExt, process::Output, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::{process::Command, time::timeout};

use super::{
    access::new_key,
    common::{DEADLINE, Daemon, fake, scratch},
};

async fn asked(daemon: &Daemon, line: &str, headers: &[(&str, &str)]) -> reqwest::Response {
    let (method, path) = line.split_once(' ').unwrap();
    let url = format!("{}{path}", daemon.url);
    let mut request = daemon.client.request(method.parse().unwrap(), url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    timeout(DEADLINE, request.send()).await.unwrap().unwrap()
}

/// Runs a client as on another machine: no directories of the daemon's, a URL.
async fn remote(daemon: &Daemon, key: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotd"));
    command.args(arguments).env_clear().env("HOME", "/nowhere");
    command.env("SLOTD_URL", &daemon.url).env("SLOTD_ADMIN_KEY", key).kill_on_drop(true);
    timeout(DEADLINE, command.output()).await.unwrap().unwrap()
}

#[tokio::test]
async fn an_admin_key_gives_orders_over_the_endpoint_and_no_other_does() {
    let dir = scratch(&[("chat", &fake("", ""))]);
    let infer = new_key(dir.path(), &["laptop"]).await;
    let admin = new_key(dir.path(), &["--admin", "ops"]).await;
    let mut daemon = Daemon::start(dir).await;
    for line in [
        "GET /v1/slots",
        "GET /v1/slots/chat",
        "POST /v1/slots/chat/load",
        "GET /v1/slots/chat/logs",
        "GET /v1/requests",
        "GET /v1/daemon",
    ] {
        assert_eq!(asked(&daemon, line, &[]).await.status(), 401, "{line}");
        let refused = asked(&daemon, line, &[("x-api-key", &infer)]).await;
        assert_eq!(refused.status(), 403, "{line}");
        let refused: Value = refused.json().await.unwrap();
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains("`laptop` asks models"), "{message}");
        for (name, value) in [("host", "evil.example"), ("origin", "https://evil.example")] {
            let headers = [("x-api-key", admin.as_str()), (name, value)];
            assert_eq!(asked(&daemon, line, &headers).await.status(), 403, "{line} {name}");
        }
        let answer = asked(&daemon, line, &[("x-api-key", &admin)]).await;
        assert!(answer.status().is_success(), "{line}: {}", answer.status());
    }
    daemon.until_state("chat", "ready").await;
    let none = asked(&daemon, "GET /v1/slots/none", &[("x-api-key", &admin)]).await;
    assert_eq!(none.status(), 404, "the control API's own answer");

    // A stream of changes ends when the daemon does, and holds nothing up.
    let bearer = format!("Bearer {admin}");
    let mut changes =
        asked(&daemon, "GET /v1/slots/chat/watch", &[("authorization", &bearer)]).await;
    let first: Value = serde_json::from_slice(&changes.chunk().await.unwrap().unwrap()).unwrap();
    assert_eq!(first["state"], "ready");
    daemon.signal(Signal::SIGTERM);
    while changes.chunk().await.is_ok_and(|chunk| chunk.is_some()) {}
    assert!(daemon.ended().await.success());
}

#[tokio::test]
async fn the_command_line_gives_orders_over_the_network_with_an_admin_key() {
    let dir = scratch(&[("chat", &fake("", ""))]);
    let infer = new_key(dir.path(), &["laptop"]).await;
    let admin = new_key(dir.path(), &["--admin", "ops"]).await;
    let daemon = Daemon::start(dir).await;
    let loaded = remote(&daemon, &admin, &["load", "chat"]).await;
    assert!(loaded.status.success(), "{loaded:?}");
    let shown = remote(&daemon, &admin, &["ps"]).await;
    assert!(String::from_utf8(shown.stdout).unwrap().contains("ready"));
    let refused = remote(&daemon, &infer, &["ps"]).await;
    assert_eq!(refused.status.code(), Some(69));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("`laptop` asks models"));

    let file = daemon.dir.path().join("admin.key");
    fs::write(&file, format!("{admin}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let file = file.display().to_string();
    let shown = remote(&daemon, "", &["status", "chat", "--key-file", &file]).await;
    assert!(shown.status.success(), "{shown:?}");
    let said = |output: Output| String::from_utf8(output.stderr).unwrap();
    let odd = remote(&daemon, "", &["ps", "--url", "https://box:7568"]).await;
    assert_eq!(odd.status.code(), Some(64));
    assert!(said(odd).contains("is not `http://HOST:PORT`"));
    // Its profile is beside the daemon.
    let far = said(remote(&daemon, &admin, &["fit", "chat"]).await);
    assert!(far.contains("`slotd fit chat` reads the slot's profile beside the daemon"), "{far}");
    let url = daemon.url.clone();
    drop(daemon.killed().await);
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotd"));
    command.args(["ps", "--url", &url]).env_clear().kill_on_drop(true);
    let nobody = timeout(Duration::from_secs(20), command.output()).await.unwrap().unwrap();
    assert!(said(nobody).contains(&format!("no daemon answers at {url}")));
}
