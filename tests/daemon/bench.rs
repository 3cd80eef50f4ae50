//! `slotd bench` where something is wrong: another one runs, the slot or its engine cannot, the history is
//! broken. What it measures of real engines is in `real`.

use std::{
    fs,
    process::{Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use slotd::store::{BenchHolder, BenchLock};
use tokio::{process::Command, time::timeout};

use super::{
    access::new_key,
    common::{DEADLINE, Daemon, fake, scratch},
};

/// Runs `slotd bench` to its end.
pub(crate) async fn bench(daemon: &Daemon, arguments: &[&str]) -> Output {
    bench_with(daemon, arguments, &[]).await
}

async fn bench_with(daemon: &Daemon, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = command(daemon, arguments);
    timeout(DEADLINE * 3, command.envs(environment.iter().copied()).output())
        .await
        .unwrap()
        .unwrap()
}

fn command(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotd"));
    command.env("SLOTD_CONTROL", daemon.dir.path().join("state/run/control.sock"));
    command.env("XDG_CONFIG_HOME", daemon.dir.path()).env_remove("SLOTD_URL");
    command.arg("bench").args(arguments).kill_on_drop(true);
    command
}

/// What a bench says on success, as JSON.
pub(crate) fn figures(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refusal(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const SHORT: [&str; 8] = ["--runs", "2", "--prompt", "8", "--generate", "4", "--json", "chat"];

#[tokio::test]
async fn the_second_bench_is_told_who_measures_what() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("", ""))])).await;
    let (pid, slot) = (std::process::id(), "other".parse().unwrap());
    let holder = BenchHolder { pid, slot, since_unix_ms: 0 };
    let held = BenchLock::take(&daemon.dir.path().join("state"), &holder).unwrap();
    let said = refusal(&bench(&daemon, &SHORT).await, 75);
    let named = format!("(pid {pid}); two at once would measure each other\n");
    assert!(said.starts_with("slotd: `slotd bench other` runs already, for "), "{said}");
    assert!(said.ends_with(&named), "{said}");
    assert_eq!(daemon.slot("chat").await["state"], "offline", "nothing was loaded for it");
    drop(held);
    assert!(bench(&daemon, &SHORT).await.status.success(), "the lock is free again");
}

#[tokio::test]
async fn an_engine_without_times_of_its_own_is_timed_from_outside() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("", ""))])).await;
    let first = figures(&bench(&daemon, &SHORT).await);
    assert_eq!((&first["by_engine"], &first["last"]), (&json!(false), &Value::Null));
    let runs = &first["figures"]["generated_tokens_per_second"]["runs"];
    assert_eq!(runs.as_array().map(Vec::len), Some(2), "{first:#}");
    let history = daemon.dir.path().join("state/bench.json");
    let second = figures(&bench(&daemon, &SHORT).await);
    assert_eq!(second["last"]["at_unix_ms"], first["at_unix_ms"]);
    assert_eq!(second["changes"].as_array().map(Vec::len), Some(3), "{second:#}");
    // Half a file: whatever was measured before, a bench goes on and begins anew.
    let text = fs::read(&history).unwrap();
    fs::write(&history, &text[..text.len() / 2]).unwrap();
    let said = refusal(&bench(&daemon, &["--history", "chat"]).await, 69);
    assert!(said.contains("earlier benches in ") && said.contains(" cannot be read: "), "{said}");
    assert_eq!(fs::read(&history).unwrap(), text[..text.len() / 2], "a look changes nothing");
    let broken = bench(&daemon, &SHORT).await;
    assert_eq!(figures(&broken)["last"], Value::Null);
    let said = String::from_utf8_lossy(&broken.stderr).into_owned();
    assert!(said.contains("earlier benches cannot be read"), "{said}");
    assert_eq!(figures(&bench(&daemon, &SHORT).await)["last"]["slot"], "chat");
}

#[tokio::test]
async fn what_cannot_be_measured_is_refused_with_the_reason() {
    let daemon = Daemon::start(scratch(&[
        ("rank", &fake("", "capabilities = [\"rerank\"]")),
        ("few", &fake("tokens=2", "")),
        ("dies", &fake("die_after_tokens=2", "")),
        ("vectors", &fake("", "capabilities = [\"embed\"]")),
    ]))
    .await;
    let of = |slot| [&SHORT[..7], &[slot]].concat();
    let said = refusal(&bench(&daemon, &of("rank")).await, 69);
    let reason = "it is offered for rerank alone, and only text and vectors are measured";
    assert_eq!(said, format!("slotd: `rank` cannot be measured: {reason}\n"));
    let said = refusal(&bench(&daemon, &of("few")).await, 69);
    assert!(said.contains("4 tokens were asked for and 2 came"), "{said}");
    let said = refusal(&bench(&daemon, &of("dies")).await, 69);
    let reason = "the engine of slot `dies` died in mid-answer; `slotd status dies` says why";
    assert_eq!(said, format!("slotd: the answer broke off: {reason}\n"));
    let said = refusal(&bench(&daemon, &of("none")).await, 69);
    assert!(said.starts_with("slotd: there is no slot `none`"), "{said}");
    let vectors = figures(&bench(&daemon, &of("vectors")).await);
    assert_eq!(vectors["load"]["work"], "embed");
    assert_eq!(vectors["figures"]["inputs_per_second"]["runs"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn an_endpoint_with_keys_is_measured_with_one() {
    let dir = scratch(&[("chat", &fake("", ""))]);
    let key = new_key(dir.path(), &["bench"]).await;
    let daemon = Daemon::start(dir).await;
    let said = refusal(&bench(&daemon, &SHORT).await, 69);
    assert!(said.contains("name one with --api-key-file or `SLOTD_API_KEY`"), "{said}");
    let with_key = bench_with(&daemon, &SHORT, &[("SLOTD_API_KEY", &key)]).await;
    assert_eq!(figures(&with_key)["slot"], "chat");
}

#[tokio::test]
async fn an_interrupted_bench_leaves_nothing_behind() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("token_gap=60s", ""))])).await;
    let mut child = command(&daemon, &SHORT).stderr(Stdio::piped()).spawn().unwrap();
    daemon.until_state("chat", "ready").await;
    kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), Signal::SIGINT).unwrap();
    let end = timeout(DEADLINE, child.wait()).await.unwrap().unwrap();
    assert_eq!(end.code(), Some(130));
    assert!(!daemon.dir.path().join("state/bench.json").exists());
    let slot = "chat".parse().unwrap();
    let holder = BenchHolder { pid: 1, slot, since_unix_ms: 0 };
    assert!(BenchLock::take(&daemon.dir.path().join("state"), &holder).is_ok());
}
