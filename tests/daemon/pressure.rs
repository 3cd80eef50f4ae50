//! A machine that runs short, really so: a GPU that strangers fill, and marks that lie above what there is.

use std::fs;

use super::{
    common::{Daemon, fake, scratch},
    gpus::{Driver, needs, visible_to},
};

/// A directory whose daemon has these settings.
fn with_settings(profiles: &[(&str, &str)], settings: &str) -> tempfile::TempDir {
    let dir = scratch(profiles);
    fs::create_dir(dir.path().join("slotd")).unwrap();
    fs::write(dir.path().join("slotd/slotd.toml"), settings).unwrap();
    dir
}

#[tokio::test]
async fn a_gpu_that_strangers_fill_is_told_and_whoever_is_on_it_goes() {
    let driver = Driver::new("present 8000 6000\n");
    let (on_gpu, plain) = (needs("1000MiB"), fake("", "memory = \"100MiB\""));
    let daemon = driver.daemon(&[("on-gpu", &on_gpu), ("on-cpu", &plain)]).await;
    let mut events = daemon.events().await;
    for slot in ["on-gpu", "on-cpu"] {
        daemon.order(slot, "load").await;
        daemon.until_state(slot, "ready").await;
    }
    assert_eq!(visible_to(&daemon, "on-gpu").await, "GPU-00000000");
    let answer = daemon.chat("on-gpu").await;
    let pace = answer.headers().get("x-slotd-throttle").cloned();
    assert!(pace.is_none_or(|pace| pace == "0.5"), "a busy CPU at the most");

    driver.set("present 8000 10\n");
    let told = events.until(|event| event["source"] == "gpu-0").await;
    assert_eq!((&told["event"], &told["to"]), (&"pressure-changed".into(), &"critical".into()));
    daemon.until("on-gpu", "gone", |view| view["unloaded_for"] == "gpu-0").await;
    daemon.until_state("on-gpu", "offline").await;
    assert_eq!(daemon.slot("on-cpu").await["state"], "ready");
    assert_eq!(daemon.daemon().await["pressure"]["sources"]["gpu-0"], "critical");
    let answer = daemon.chat("on-cpu").await;
    assert_eq!(answer.headers()["x-slotd-throttle"], "0.25");
    let metrics = daemon.client.get(format!("{}/metrics", daemon.url)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.contains("slotd_pressure{source=\"gpu-0\"} 2\n"), "{metrics}");

    driver.set("present 8000 6000\n");
    let told = events.until(|event| event["source"] == "gpu-0").await;
    assert_eq!((&told["from"], &told["to"]), (&"critical".into(), &"normal".into()));
}

#[tokio::test]
async fn a_host_that_runs_short_unloads_idle_slots_and_leaves_pinned_ones() {
    let settings = "[pressure.elevated]\nmemory_free_percent = 99\n[pressure.critical]\nmemory_free_percent = 99\n";
    let (pinned, spare) =
        (fake("", "memory = \"100MiB\"\npinned = true"), fake("", "memory = \"100MiB\""));
    let tiny = fake("", "memory = \"1MiB\"");
    let profiles = [("pinned", &*pinned), ("spare", &*spare), ("tiny", &*tiny)];
    let daemon = Daemon::start(with_settings(&profiles, settings)).await;
    for slot in ["pinned", "tiny", "spare"] {
        daemon.order(slot, "load").await;
    }
    daemon.until("spare", "gone", |view| view["unloaded_for"] == "memory").await;
    daemon.until_state("spare", "offline").await;
    for slot in ["pinned", "tiny"] {
        assert_eq!(daemon.until_state(slot, "ready").await["generation"], 1);
    }
    assert_eq!(daemon.daemon().await["pressure"]["throttle"], 0.0);
}
