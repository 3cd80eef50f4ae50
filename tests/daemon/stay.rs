//! What a person orders of a slot's stay in memory, by the command line; and that it is kept.

use std::{fs, process::Output, time::Duration};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

use super::common::{DEADLINE, Daemon, fake, scratch};

pub(crate) async fn slotd(daemon: &Daemon, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotd"));
    command.arg("--control").arg(daemon.dir.path().join("state/run/control.sock"));
    command.args(line.split(' ')).kill_on_drop(true);
    timeout(DEADLINE, command.output()).await.unwrap().unwrap()
}

pub(crate) async fn said(daemon: &Daemon, line: &str) -> String {
    let output = slotd(daemon, line).await;
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn orders_of_a_slots_stay_are_taken_before_it_runs_and_outlive_the_daemon() {
    let (held, spare) = (fake("", "memory = \"60MiB\""), fake("", "memory = \"60MiB\""));
    let dir = scratch(&[("held", &held), ("spare", &spare)]);
    fs::create_dir(dir.path().join("slotd")).unwrap();
    let settings = "memory_limit = \"150MiB\"\nmemory_reserve = \"0B\"\n";
    fs::write(dir.path().join("slotd/slotd.toml"), settings).unwrap();
    let mut daemon = Daemon::start(dir).await;

    let told = said(&daemon, "pin held").await;
    assert_eq!(told, "held: is never unloaded for another slot or for want of memory\n");
    said(&daemon, "priority spare 10").await;
    daemon.until("held", "pinned", |view| view["pinned"] == true).await;
    daemon.until("spare", "ranked", |view| view["priority"] == 10).await;
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());

    let daemon = Daemon::start(daemon.dir).await;
    let view = daemon.slot("held").await;
    assert_eq!((&view["pinned"], &view["ordered"]), (&json!(true), &json!(["pinned"])));
    assert_eq!(daemon.slot("spare").await["priority"], 10);
    assert!(said(&daemon, "status held").await.contains("by order  pinned\n"));

    for slot in ["held", "spare"] {
        daemon.order(slot, "load").await;
        daemon.until_state(slot, "ready").await;
    }
    let told = said(&daemon, "ensure 30MiB").await;
    assert_eq!(told, "30 MiB of memory can be had, nobody had to go\n");
    let told = said(&daemon, "ensure 80MiB").await;
    assert_eq!(told, "80 MiB of memory can be had; unloaded for it: spare\n");
    assert_eq!(daemon.slot("spare").await["state"], "offline");
    let refused = slotd(&daemon, "ensure 100MiB").await;
    assert_eq!(refused.status.code(), Some(69));
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(
        told.contains("100 MiB of memory cannot be had: 90 MiB is free, no slot may go"),
        "{told}"
    );
    assert_eq!(daemon.slot("held").await["state"], "ready");

    said(&daemon, "unpin held").await;
    let told = said(&daemon, "ensure 100MiB").await;
    assert_eq!(told, "100 MiB of memory can be had; unloaded for it: held\n");
    assert_eq!(daemon.slot("held").await["ordered"], json!([]));
}

#[tokio::test]
async fn orders_go_with_a_profile_that_was_removed_while_no_daemon_ran_and_a_fault_leaves_them() {
    let dir = scratch(&[("gone", &fake("", "")), ("faulty", &fake("", ""))]);
    let daemon = Daemon::start(dir).await;
    said(&daemon, "pin gone").await;
    said(&daemon, "pin faulty").await;
    let state = daemon.dir.path().join("state/state.json");
    let written = async {
        let pins =
            || fs::read_to_string(&state).unwrap_or_default().matches("\"pinned\":true").count();
        while pins() < 2 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, written).await.expect("orders were never written");
    let dir = daemon.killed().await;
    fs::remove_file(dir.path().join("profiles/gone.toml")).unwrap();
    fs::write(dir.path().join("profiles/faulty.toml"), "this is = no profile").unwrap();

    let daemon = Daemon::start(dir).await;
    for slot in ["gone", "faulty"] {
        daemon.write_profile(slot, &fake("", ""));
        daemon.until(slot, "there", |view| view["state"] == "offline").await;
    }
    assert_eq!(daemon.slot("gone").await["ordered"], json!([]), "another one of that name");
    assert_eq!(daemon.slot("faulty").await["ordered"], json!(["pinned"]));
}

/// It said yes, and nothing came of it.
#[tokio::test]
async fn an_offload_of_a_slot_without_a_lower_rung_is_refused() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("", ""))])).await;
    let refused = slotd(&daemon, "offload chat").await;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        told.contains("whether `chat` has a lower rung is not known before its first load"),
        "{told}"
    );
    assert!(!refused.status.success());
    daemon.order("chat", "load").await;
    daemon.until_state("chat", "ready").await;
    let refused = slotd(&daemon, "offload chat").await;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("`chat` is on the last rung of its ladder"), "{told}");
    assert_eq!(daemon.slot("chat").await["generation"], 1);
}
