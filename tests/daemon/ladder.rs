//! The ladder with the real llama-server: down once where memory is short, up again when it is not.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::common::{Daemon, llama_server, model, scratch};

/// MiB that hold the second rung and not the first: 32768 tokens take 720 MiB as `f16`, 383 as `q8_0`.
const TIGHT: &str = "700";

/// Writes a llama-server that runs with as many MiB as the file `limit` says; 0 is no limit. The limit
/// is set on the cgroup that slotd made for the spawn, or on the address space where there is none.
fn limited(dir: &Path) {
    let text = format!(
        r#"#!/bin/sh
mib=$(cat '{limit}')
cell=$(sed -n 's/^[0-9]*:memory://p; s/^0:://p' /proc/self/cgroup | grep '/slotd-[^/]*$' | head -n 1)
if [ "$mib" -gt 0 ] && [ "$1" = --model ]; then
    bytes=$((mib << 20))
    (echo $bytes > "/sys/fs/cgroup/memory$cell/memory.limit_in_bytes") 2>/dev/null ||
        (echo $bytes > "/sys/fs/cgroup$cell/memory.max") 2>/dev/null || ulimit -v $((mib << 10))
fi
exec '{engine}' "$@"
"#,
        limit = dir.join("limit").display(),
        engine = llama_server().display(),
    );
    let program = dir.join("limited");
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(dir.join("slotd")).unwrap();
    let settings =
        format!("llama_server = {:?}\nclimb_after = \"1s\"\n", program.display().to_string());
    fs::write(dir.join("slotd/slotd.toml"), settings).unwrap();
}

fn is_ready_on(view: &Value, rung: u64) -> bool {
    view["state"] == "ready" && view["rung"]["index"] == rung
}

fn verdicts(view: &Value) -> Vec<&str> {
    let deaths = view["deaths"].as_array().unwrap();
    deaths.iter().map(|death| death["verdict"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_slot_that_does_not_fit_serves_on_a_lower_rung_and_climbs_when_it_does() {
    let model = model().display().to_string();
    let profile = format!(
        "model = {model:?}\nengine = \"llama-server\"\ncontext = 8192\nparallel = 4\nthreads = 1\n"
    );
    let dir = scratch(&[("chat", &profile)]);
    limited(dir.path());
    fs::write(dir.path().join("limit"), TIGHT).unwrap();
    let mut daemon = Daemon::start(dir).await;

    // The request that meets the failed start is held, and answered from the lower rung.
    let (answer, low) = tokio::join!(
        daemon.chat("chat"),
        daemon.until("chat", "ready", |view| view["state"] == "ready")
    );
    assert_eq!(answer.status(), 200);
    assert_eq!(low["rung"], json!({"index": 1, "of": 2, "name": "q8_0 cache"}));
    assert_eq!(
        (verdicts(&low), &low["generation"], &low["restarts"]),
        (vec!["oom-host"], &json!(2), &json!(1))
    );
    let listed: Value = daemon
        .client
        .get(format!("{}/v1/models/chat", daemon.url))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(listed["rung"], low["rung"]);

    // A climb that finds the limit still there is undone, and nobody counts it.
    let back = daemon
        .until("chat", "back down", |view| is_ready_on(view, 1) && view["generation"] == 4)
        .await;
    assert_eq!(verdicts(&back), ["oom-host", "stopped-by-us", "oom-host"]);

    // The next daemon begins where this one ended, and climbs once the limit is gone.
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());
    let dir = daemon.dir;
    fs::write(dir.path().join("limit"), "0").unwrap();
    let daemon = Daemon::start(dir).await;
    let remembered = daemon.slot("chat").await;
    assert_eq!(remembered["rung"], json!({"index": 1, "of": 0, "name": "rung 2"}));
    let (answer, _) = tokio::join!(
        daemon.chat("chat"),
        daemon.until("chat", "as before", |view| is_ready_on(view, 1))
    );
    assert_eq!(answer.status(), 200);
    let high = daemon.until("chat", "up again", |view| is_ready_on(view, 0)).await;
    assert_eq!(high["rung"]["name"], "as written");
    assert_eq!(daemon.chat("chat").await.status(), 200);
}
