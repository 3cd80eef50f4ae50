//! Engines that somebody else runs: here the test itself, outside of slotd.

use std::{fs, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::common::{DEADLINE, Daemon, fake_engine, is_alive, llama_server, model, scratch};

/// An engine of the test's own, on a socket of the test's own.
struct Engine {
    child: Child,
}

impl Engine {
    fn fake(socket: &str, script: &str) -> Self {
        let mut command = Command::new(fake_engine());
        command.arg(format!("socket={socket}")).args(script.split_whitespace());
        Self::start(command)
    }

    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: command.kill_on_drop(true).spawn().unwrap() }
    }

    fn pid(&self) -> u64 {
        self.child.id().unwrap().into()
    }

    async fn end(mut self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
        timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap();
    }
}

/// A daemon with the slot `remote`, and the socket that its engine is to listen on.
async fn daemon(keys: &str) -> (Daemon, String) {
    let dir = scratch(&[]);
    let socket = dir.path().join("their.sock").display().to_string();
    fs::write(dir.path().join("profiles/remote.toml"), profile(&socket, keys)).unwrap();
    (Daemon::start(dir).await, socket)
}

fn profile(socket: &str, keys: &str) -> String {
    format!("engine = \"external\"\nurl = \"unix:{socket}\"\n{keys}\n")
}

async fn absent(daemon: &Daemon) -> Value {
    daemon.until("remote", "absent", |slot| slot["absence"].is_string()).await
}

async fn refusal(answer: reqwest::Response) -> (u16, String, String, Option<String>) {
    let status = answer.status().as_u16();
    let retry = answer.headers().get("retry-after").map(|at| at.to_str().unwrap().to_owned());
    let body: Value = answer.json().await.unwrap();
    let text = |key: &str| body["error"][key].as_str().unwrap().to_owned();
    (status, text("code"), text("message"), retry)
}

/// Asks for a stream without an end to wait for.
async fn stream(daemon: &Daemon) -> reqwest::Response {
    let messages = json!([{"role": "user", "content": "Go on."}]);
    let body = json!({"model": "remote", "stream": true, "messages": messages});
    let mut stream = daemon.post("/v1/chat/completions", &body).await;
    assert_eq!(stream.status(), 200);
    assert!(stream.chunk().await.unwrap().is_some());
    stream
}

/// What comes of a stream until it ends or breaks.
async fn rest(mut stream: reqwest::Response) -> String {
    let mut all = Vec::new();
    let reading = async {
        while let Ok(Some(chunk)) = stream.chunk().await {
            all.extend_from_slice(&chunk);
        }
    };
    timeout(DEADLINE, reading).await.expect("the stream never ended");
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn it_is_offline_while_it_is_not_there_and_comes_back_by_itself() {
    let (daemon, socket) = daemon("").await;
    let slot = absent(&daemon).await;
    assert_eq!((&slot["state"], &slot["engine"]), (&json!("offline"), &json!("external")));
    assert_eq!(slot["absence"], format!("nobody listens at unix:{socket}"));
    assert_eq!(slot["url"], format!("unix:{socket}"));
    let (status, code, message, retry) = refusal(daemon.chat("remote").await).await;
    assert_eq!((status, code.as_str(), retry.as_deref()), (503, "slot_offline", Some("5")));
    assert!(message.contains("nobody listens") && message.contains("does not run"), "{message}");

    let engine = Engine::fake(&socket, "");
    let slot = daemon.until_state("remote", "ready").await;
    assert_eq!((&slot["pid"], &slot["asleep"]), (&Value::Null, &json!(false)));
    assert_eq!(daemon.chat("remote").await.status(), 200);
    engine.end(Signal::SIGTERM).await;
    let slot = absent(&daemon).await;
    assert_eq!((&slot["state"], &slot["verdict"]), (&json!("offline"), &Value::Null));
    assert_eq!((&slot["restarts"], &slot["deaths"]), (&json!(0), &json!([])));

    // Nobody looked in between: a request has it looked at once.
    fs::remove_file(&socket).unwrap();
    let _engine = Engine::fake(&socket, "");
    daemon.until_state("remote", "ready").await;
    assert_eq!(daemon.chat("remote").await.status(), 200);
}

#[tokio::test]
async fn a_request_is_held_while_it_loads() {
    let (daemon, socket) = daemon("").await;
    let _engine = Engine::fake(&socket, "ready_after=1500ms");
    daemon.until_state("remote", "starting").await;
    assert_eq!(daemon.chat("remote").await.status(), 200);
    assert_eq!(daemon.slot("remote").await["state"], "ready");
}

#[tokio::test]
async fn its_death_ends_streams_with_an_error_and_is_seen_at_once() {
    let (daemon, socket) = daemon("").await;
    let engine = Engine::fake(&socket, "tokens=100000 token_gap=5ms");
    daemon.until_state("remote", "ready").await;
    let streams = [stream(&daemon).await, stream(&daemon).await];
    engine.end(Signal::SIGKILL).await;
    for stream in streams {
        let text = rest(stream).await;
        assert!(text.contains("\"code\":\"engine_died\""), "{text}");
        assert!(!text.contains("[DONE]"), "{text}");
    }
    let (status, code, ..) = refusal(daemon.chat("remote").await).await;
    assert_eq!((status, code.as_str()), (503, "slot_offline"));
    assert_eq!(daemon.slot("remote").await["deaths"], json!([]));
}

#[tokio::test]
async fn it_is_never_told_to_end_by_unload_edit_or_shutdown() {
    let (mut daemon, socket) = daemon("").await;
    let engine = Engine::fake(&socket, "tokens=40 token_gap=20ms");
    daemon.until_state("remote", "ready").await;
    let running = stream(&daemon).await;
    daemon.order("remote", "unload").await;
    let text = rest(running).await;
    assert!(text.contains("[DONE]"), "a stream in flight goes on to its end: {text}");
    daemon.until_state("remote", "offline").await;
    let (status, code, message, retry) = refusal(daemon.chat("remote").await).await;
    assert_eq!((status, code.as_str(), retry), (503, "slot_unloaded", None));
    assert!(message.contains("`slotd load remote`"), "{message}");

    daemon.order("remote", "load").await;
    daemon.until_state("remote", "ready").await;
    daemon.write_profile("remote", &profile(&socket, "parallel = 2"));
    daemon
        .until("remote", "edited", |slot| slot["parallel"] == 2 && slot["state"] == "ready")
        .await;
    assert_eq!(daemon.chat("remote").await.status(), 200);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());
    assert!(is_alive(engine.pid()), "somebody else's engine was ended");
}

#[tokio::test]
async fn another_model_at_its_address_is_not_taken_for_the_right_one() {
    let (daemon, socket) = daemon("model = \"right\"").await;
    let wrong = Engine::fake(&socket, "alias=wrong");
    let told = format!("unix:{socket} serves `wrong`, and the profile says `right`");
    daemon.until("remote", "refused", |slot| slot["absence"] == told.as_str()).await;
    wrong.end(Signal::SIGKILL).await;
    fs::remove_file(&socket).unwrap();
    let _right = Engine::fake(&socket, "alias=right");
    let slot = daemon.until_state("remote", "ready").await;
    assert_eq!(slot["model"], "right");
    // Its name there is a name for clients too.
    assert_eq!(daemon.chat("right").await.status(), 200);
}

#[tokio::test]
async fn a_slot_may_become_somebody_elses_and_ours_again() {
    let ours = super::common::fake("", "");
    let dir = scratch(&[("remote", &ours)]);
    let socket = dir.path().join("their.sock").display().to_string();
    let theirs = Engine::fake(&socket, "");
    let daemon = Daemon::start(dir).await;
    daemon.order("remote", "load").await;
    let pid = daemon.until_state("remote", "ready").await["pid"].as_u64().unwrap();
    daemon.write_profile("remote", &profile(&socket, ""));
    daemon.until("remote", "theirs", |slot| slot["asleep"] == false).await;
    assert!(!is_alive(pid), "our own engine is gone");
    daemon.write_profile("remote", &ours);
    daemon.until("remote", "ours", |slot| slot["url"].is_null()).await;
    assert_eq!(daemon.chat("remote").await.status(), 200);
    assert!(is_alive(theirs.pid()));
}

#[tokio::test]
async fn orders_say_what_slotd_cannot_do() {
    let (daemon, socket) = daemon("").await;
    absent(&daemon).await;
    let said = |verb: &'static str| {
        let control = daemon.dir.path().join("state/run/control.sock");
        async move {
            let mut command = Command::new(env!("CARGO_BIN_EXE_slotd"));
            command.args([verb, "remote", "--control"]).arg(control);
            let output = timeout(DEADLINE, command.output()).await.unwrap().unwrap();
            assert!(!output.status.success(), "{verb}");
            String::from_utf8(output.stderr).unwrap()
        }
    };
    let text = said("load").await;
    assert!(text.contains(&format!("offline: nobody listens at unix:{socket}")), "{text}");
    assert!(text.contains(&format!("start it at unix:{socket}")), "{text}");
    let text = said("restart").await;
    assert!(text.contains("somebody else runs the engine of `remote`"), "{text}");
}

/// Waits for so many more looks of slotd's.
async fn looks(daemon: &Daemon, more: usize) {
    let count = || daemon.log().matches("engine looked at").count();
    let (before, end) = (count(), Instant::now() + DEADLINE);
    while count() < before + more {
        assert!(Instant::now() < end, "slotd does not look");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A llama-server of the test's own, which sleeps after a second without work.
fn sleepy_llama(socket: &str) -> Engine {
    let mut command = Command::new(llama_server());
    command.arg("--model").arg(model()).args(["--host", socket, "--alias", "up"]);
    command.args(["-c", "512", "-t", "1", "--no-webui", "--sleep-idle-seconds", "1"]);
    Engine::start(command)
}

#[tokio::test]
async fn a_sleeping_llama_server_is_ready_is_left_asleep_and_wakes_for_a_request() {
    let (daemon, socket) = daemon("model = \"up\"").await;
    absent(&daemon).await;
    let engine = sleepy_llama(&socket);
    let slot = daemon.until("remote", "asleep", |slot| slot["asleep"] == true).await;
    assert_eq!(slot["state"], "ready");
    looks(&daemon, 2).await;
    let asked = reqwest::Client::builder().unix_socket(socket.as_str()).build().unwrap();
    let props = asked.get("http://up/props").send().await.unwrap();
    assert_eq!(props.json::<Value>().await.unwrap()["is_sleeping"], true, "a look woke it");
    assert_eq!(daemon.chat("remote").await.status(), 200);
    // The same again after somebody stopped it and started another.
    engine.end(Signal::SIGTERM).await;
    absent(&daemon).await;
    drop(fs::remove_file(&socket));
    let _engine = sleepy_llama(&socket);
    daemon.until_state("remote", "ready").await;
    assert_eq!(daemon.chat("up").await.status(), 200);
}

#[tokio::test]
async fn slotds_own_address_is_no_engines() {
    let daemon = Daemon::start(scratch(&[])).await;
    let text = format!("engine = \"external\"\nurl = \"{}\"\n", daemon.url);
    daemon.write_profile("mirror", &text);
    let view = daemon.until("mirror", "absent", |slot| slot["absence"].is_string()).await;
    let answer = daemon.chat("mirror").await;
    assert_eq!(answer.status(), 503, "{view:#}");
    let answer: Value = answer.json().await.unwrap();
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("is slotd's own address"), "{message}");
}
