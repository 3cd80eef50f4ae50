//! Engines that live and do nothing are found and replaced; those that only take their time are not.

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::common::{DEADLINE, Daemon, fake, is_alive, scratch, write_profile};

/// The shortest patience there is.
const PATIENCE: &str = "hang_timeout = \"2s\"\nstop_timeout = \"1s\"";

/// A daemon with one slot whose first engine falls into `wedge` with its first request.
async fn daemon_with(wedge: &str) -> Daemon {
    let dir = scratch(&[]);
    let once = dir.path().join("wedged");
    let script = format!("wedge={wedge} once={}", once.display());
    write_profile(dir.path(), "chat", &fake(&script, PATIENCE));
    let daemon = Daemon::start(dir).await;
    daemon.order("chat", "load").await;
    daemon.until_state("chat", "ready").await;
    daemon
}

fn pid_of(slot: &Value) -> Pid {
    Pid::from_raw(slot["pid"].as_i64().unwrap().try_into().unwrap())
}

/// Waits until the first engine was replaced; its verdict and reason.
async fn replaced(daemon: &Daemon) -> (String, String) {
    let is_next = |slot: &Value| slot["generation"] == 2 && slot["state"] == "ready";
    let slot = daemon.until("chat", "replaced", is_next).await;
    assert_eq!(slot["restarts"], 1);
    let text = |key: &str| slot[key].as_str().unwrap().to_owned();
    (text("verdict"), text("reason"))
}

#[tokio::test]
async fn a_stopped_engine_is_replaced_and_its_request_answered() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("", PATIENCE))])).await;
    daemon.order("chat", "load").await;
    let before = daemon.until_state("chat", "ready").await;
    kill(pid_of(&before), Signal::SIGSTOP).unwrap();
    let answer = daemon.chat("chat").await;
    assert_eq!(answer.status(), 200, "the request went to the next engine");
    let (verdict, reason) = replaced(&daemon).await;
    assert_eq!(verdict, "hung");
    assert!(reason.contains("used no CPU time") && reason.contains("SIGSTOP"), "{reason}");
    assert!(!is_alive(before["pid"].as_u64().unwrap()));
}

#[tokio::test]
async fn an_engine_that_spins_is_replaced_once_its_client_has_given_up() {
    let daemon = daemon_with("spin").await;
    let url = format!("{}/v1/chat/completions", daemon.url);
    let body = json!({"model": "chat", "messages": []});
    let request = daemon.client.post(url).json(&body).timeout(Duration::from_millis(500));
    assert!(request.send().await.unwrap_err().is_timeout());
    let (verdict, reason) = replaced(&daemon).await;
    assert_eq!(verdict, "hung");
    assert!(reason.contains("no request to work on; meanwhile it used"), "{reason}");
    assert_eq!(daemon.chat("chat").await.status(), 200);
}

#[tokio::test]
async fn an_engine_that_takes_no_connections_is_replaced() {
    let daemon = daemon_with("deaf").await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let (verdict, reason) = replaced(&daemon).await;
    assert_eq!(verdict, "hung");
    assert!(reason.contains("answered no look at its health"), "{reason}");
    assert_eq!(daemon.chat("chat").await.status(), 200);
}

#[tokio::test]
async fn an_engine_that_answers_its_health_and_nothing_else_is_replaced() {
    let daemon = daemon_with("stall").await;
    assert_eq!(daemon.chat("chat").await.status(), 200, "the request went to the next engine");
    let (verdict, reason) = replaced(&daemon).await;
    assert_eq!(verdict, "hung");
    assert!(reason.starts_with("it answers looks at its health, but"), "{reason}");
}

#[tokio::test]
async fn an_engine_that_fails_every_request_is_replaced() {
    let daemon = daemon_with("500").await;
    let ask = async |question: usize| {
        let messages = json!([{"role": "user", "content": question.to_string()}]);
        let body = json!({"model": "chat", "messages": messages});
        daemon.post("/v1/chat/completions", &body).await.status().as_u16()
    };
    for question in [0, 0, 0, 0, 0, 0, 1, 2, 3] {
        assert_eq!(ask(question).await, 500, "the same request over and over proves nothing");
    }
    assert_eq!(daemon.slot("chat").await["generation"], 1);
    assert_eq!(ask(4).await, 500);
    let (verdict, reason) = replaced(&daemon).await;
    assert_eq!(verdict, "poisoned");
    assert!(reason.starts_with("the last 5 requests all failed"), "{reason}");
    assert_eq!(ask(5).await, 200);
}

#[tokio::test]
async fn a_request_that_took_two_engines_down_is_not_given_to_a_third() {
    let dir = scratch(&[]);
    let spawn_log = dir.path().join("spawns");
    let script = format!("poison=arsenic spawn_log={}", spawn_log.display());
    write_profile(dir.path(), "chat", &fake(&script, ""));
    let daemon = Daemon::start(dir).await;
    let ask = async |what: &str| {
        let messages = json!([{"role": "user", "content": what}]);
        daemon.post("/v1/chat/completions", &json!({"model": "chat", "messages": messages})).await
    };
    assert_eq!(ask("arsenic").await.status(), 502, "it was tried twice");
    let answer = ask("arsenic").await;
    assert_eq!(answer.status(), 422);
    assert_eq!(answer.headers()["x-should-retry"], "false");
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["error"]["code"], "poison_request", "{body}");
    let spawns = std::fs::read_to_string(spawn_log).unwrap().matches("started").count();
    assert_eq!(spawns, 2);
    let slot = daemon.slot("chat").await;
    assert_eq!((&slot["verdict"], &slot["generation"]), (&json!("crash"), &json!(2)), "{slot}");
    assert_eq!(ask("sugar").await.status(), 200, "others are served by the next engine");
}

#[tokio::test]
async fn a_long_prompt_of_an_engine_too_busy_for_its_health_is_left_alone() {
    // Three times the patience, of CPU time: longer on a busy machine.
    let script = "prompt=6s health=busy";
    let daemon = Daemon::start(scratch(&[("chat", &fake(script, PATIENCE))])).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let slot = daemon.slot("chat").await;
    assert_eq!((&slot["generation"], &slot["verdict"]), (&json!(1), &Value::Null), "{slot}");
}

#[tokio::test]
async fn a_daemon_that_stood_still_itself_begins_to_count_anew() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("", PATIENCE))])).await;
    daemon.order("chat", "load").await;
    let slot = daemon.until_state("chat", "ready").await;
    kill(pid_of(&slot), Signal::SIGSTOP).unwrap();
    let readings = || daemon.log().matches("event=\"vitals-read\"").count();
    until(|| readings() > 0).await;
    daemon.signal(Signal::SIGSTOP);
    // The time is what this is about: longer than the patience.
    sleep(Duration::from_secs(3)).await;
    let before = readings();
    daemon.signal(Signal::SIGCONT);
    until(|| readings() > before).await;
    kill(pid_of(&slot), Signal::SIGCONT).unwrap();
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let after = daemon.slot("chat").await;
    assert_eq!((&after["generation"], &after["verdict"]), (&json!(1), &Value::Null), "{after}");
}

#[tokio::test]
async fn a_load_that_comes_forward_may_take_longer_than_one_that_does_not() {
    let moving = "ready_after=6s progress";
    let keys = |seconds| format!("start_timeout = \"{seconds}s\"\nmax_restarts = 0");
    let stuck = "ready_after=1h alloc=64MiB";
    let profiles = [("moving", &*fake(moving, &keys(3))), ("stuck", &*fake(stuck, &keys(7)))];
    let daemon = Daemon::start(scratch(&profiles)).await;
    daemon.order("moving", "load").await;
    daemon.order("stuck", "load").await;
    let slot = daemon.until_state("stuck", "failed").await;
    assert_eq!(slot["verdict"], "start-timeout");
    let reason = slot["reason"].as_str().unwrap();
    assert!(reason.starts_with("it was not ready after 7 s (`start_timeout`)"), "{reason}");
    assert!(reason.contains("; it held 6"), "the memory is told: {reason}");
    let slot = daemon.until_state("moving", "ready").await;
    assert_eq!((&slot["generation"], &slot["verdict"]), (&json!(1), &Value::Null), "{slot}");
}

async fn until(holds: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "it never came to pass");
        sleep(Duration::from_millis(5)).await;
    }
}
