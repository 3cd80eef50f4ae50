//! Pulls of a daemon: for a slot, and for who asks over the control API.

use std::{fs, path::Path, process::Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
    time::timeout,
};

use crate::{
    DEADLINE, World, scratch,
    world::{content, snapshot},
};

struct Daemon {
    _child: Child,
    dir: TempDir,
    control: reqwest::Client,
}

/// A model that is loaded as a folder: a header as short as can be, and one tensor.
fn safetensors(length: usize) -> Vec<u8> {
    let header =
        format!(r#"{{"w":{{"dtype":"U8","shape":[{length}],"data_offsets":[0,{length}]}}}}"#);
    let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&content(7, length));
    file
}

fn world() -> World {
    World::new(&[
        ("o/s/config.json", br#"{"model_type":"llama"}"#),
        ("o/s/tokenizer.json", &content(3, 100_000)),
        ("o/s/model.safetensors", &safetensors(1_500_000)),
    ])
}

impl Daemon {
    async fn start(world: &World, profile: &str) -> Self {
        let dir = scratch();
        let profiles = dir.path().join("profiles");
        fs::create_dir(&profiles).unwrap();
        fs::write(profiles.join("chat.toml"), profile).unwrap();
        let log = fs::File::create(dir.path().join("daemon.log")).unwrap();
        let mut command = world.command(&["serve", "--listen", "127.0.0.1:0", "--state-dir"]);
        command.arg(dir.path().join("state")).arg("--profiles").arg(&profiles);
        command.env("XDG_CONFIG_HOME", dir.path()).env("RUST_LOG", "slotd=debug");
        let mut child = command.stderr(log).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap();
        assert!(line.is_some_and(|line| line.starts_with("listening on")));
        let socket = dir.path().join("state/run/control.sock");
        let control = reqwest::Client::builder().unix_socket(socket).build().unwrap();
        Self { _child: child, dir, control }
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.control.get(format!("http://slotd{path}")).send().await.unwrap();
        answer.json().await.unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let sent = self.control.post(format!("http://slotd{path}")).json(body).send().await;
        let answer = sent.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Every line of a stream to its end, or to the first that is wanted.
    async fn watch(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut answer = self.control.get(format!("http://slotd{path}")).send().await.unwrap();
        let (mut seen, mut buffer) = (Vec::new(), Vec::new());
        let reading = async {
            while let Some(chunk) = answer.chunk().await.unwrap() {
                buffer.extend_from_slice(&chunk);
                let lines = buffer.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                let lines: Vec<u8> = buffer.drain(..lines).collect();
                let values = serde_json::Deserializer::from_slice(&lines).into_iter::<Value>();
                let news = seen.len();
                seen.extend(values.map(Result::unwrap));
                if let Some(at) = seen.iter().skip(news).position(&wanted) {
                    seen.truncate(news + at + 1);
                    return;
                }
            }
        };
        let ended = timeout(DEADLINE, reading).await;
        let log = || fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default();
        assert!(ended.is_ok(), "nothing of {path} was as wanted: {:?}\n{}", seen.last(), log());
        seen
    }
}

fn profile(keys: &str) -> String {
    let slotd = Path::new(env!("CARGO_BIN_EXE_slotd"));
    let engine = slotd.parent().unwrap().join("examples/fake_engine");
    let words = json!([engine, "socket={socket}"]);
    format!("engine = \"command\"\ncommand = {words}\nmodel = \"o/s\"\n{keys}\n")
}

#[tokio::test]
async fn two_pulls_and_a_daemon_fetch_a_model_once() {
    let world = world();
    let slow = json!([{ "path": "resolve", "does": { "slow": { "bytes_per_s": 1_000_000 } } }]);
    world.hub.faults(slow).await;
    let daemon = Daemon::start(&world, &profile("autostart = true\npull = \"auto\"")).await;
    let one_ready = daemon.watch("/v1/slots/chat/watch", |slot| slot["state"] == "ready");
    let (one, two, seen) = tokio::join!(world.pull(&["o/s"]), world.pull(&["o/s"]), one_ready);
    assert_eq!((one.code, two.code), (Some(0), Some(0)), "{}{}", one.said, two.said);
    let states: Vec<_> = seen.iter().map(|slot| slot["state"].as_str().unwrap()).collect();
    assert!(states.starts_with(&["starting"]) && states.ends_with(&["ready"]), "{states:?}");
    let fetches = world.hub.fetches().await;
    assert_eq!(fetches.len(), 3, "{fetches:?}");
    assert_eq!(snapshot(&world.cache(), "o/s").len(), 3);
}

#[tokio::test]
async fn a_start_that_waits_for_its_model_says_how_far_that_is() {
    let world = world();
    let slow = json!([{ "path": "resolve", "does": { "slow": { "bytes_per_s": 1_000_000 } } }]);
    world.hub.faults(slow).await;
    let daemon = Daemon::start(&world, &profile("pull = \"auto\"")).await;
    let (status, _) = daemon.post("/v1/slots/chat/load", &json!({})).await;
    assert_eq!(status, 202);
    let seen = daemon.watch("/v1/slots/chat/watch", |slot| slot["state"] == "ready").await;
    let told = seen.iter().find(|slot| slot["percent"].as_u64().is_some_and(|it| it > 0));
    let pull = &told.expect("a step on the way")["pull"];
    assert_eq!((&pull["model"], &pull["stage"]), (&json!("o/s"), &json!("downloading")));
    assert!(pull["done_bytes"].as_u64() > Some(0));
}

#[tokio::test]
async fn a_model_that_cannot_be_fetched_fails_its_slot_with_the_reason() {
    let world = World::new(&[("o/x/config.json", b"{}")]);
    let daemon = Daemon::start(&world, &profile("autostart = true\npull = \"auto\"")).await;
    let seen = daemon.watch("/v1/slots/chat/watch", |slot| slot["state"] == "failed").await;
    let slot = seen.last().unwrap();
    assert_eq!(slot["verdict"], "missing-file");
    insta::assert_snapshot!(slot["reason"].as_str().unwrap(), @"model `o/s` was not fetched: the hub has no repository `o/s`; check its name");
}

#[tokio::test]
async fn nothing_is_fetched_unless_the_profile_says_so() {
    let world = world();
    let daemon = Daemon::start(&world, &profile("autostart = true")).await;
    let seen = daemon.watch("/v1/slots/chat/watch", |slot| slot["state"] == "failed").await;
    let reason = seen.last().unwrap()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("`slotd pull o/s`"), "{reason}");
    assert!(world.hub.seen().await.is_empty());
}

#[tokio::test]
async fn a_pull_is_asked_for_watched_and_cancelled_over_the_control_api() {
    let world = world();
    let daemon = Daemon::start(&world, &profile("")).await;
    let (status, pull) = daemon.post("/v1/pulls", &json!({ "model": "o/s" })).await;
    assert_eq!((status, &pull["id"]), (202, &json!(1)), "{pull}");
    let seen = daemon.watch("/v1/pulls/1/watch", |pull| pull["stage"] == "done").await;
    assert_eq!(seen.last().unwrap()["percent"], 100);
    assert_eq!(daemon.get("/v1/pulls").await[0]["stage"], "done");

    world.hub.put("o/t/config.json", b"{}");
    world.hub.put("o/t/model.safetensors", &safetensors(3_000_000));
    let slow = json!({ "model": "o/t", "limit_rate_bytes_per_s": 500_000 });
    let (status, pull) = daemon.post("/v1/pulls", &slow).await;
    assert_eq!((status, &pull["stage"]), (202, &json!("downloading")), "{pull}");
    let deleted = daemon.control.delete("http://slotd/v1/pulls/2").send().await.unwrap();
    assert_eq!(deleted.status().as_u16(), 202);
    let seen = daemon.watch("/v1/pulls/2/watch", |pull| pull["stage"] == "cancelled").await;
    assert_eq!(seen.last().unwrap()["code"], "cancelled");
}

#[tokio::test]
async fn what_has_no_room_is_refused_with_the_numbers() {
    let world = world();
    let daemon = Daemon::start(&world, &profile("")).await;
    let huge = json!({ "model": "o/s", "reserve_bytes": 1_u64 << 60 });
    let (status, body) = daemon.post("/v1/pulls", &huge).await;
    assert_eq!((status, &body["error"]["code"]), (507, &json!("insufficient_disk")), "{body}");
    let shortage = &body["error"]["shortage"];
    assert!(shortage["needed_bytes"].as_u64() > Some(1_600_000), "{body}");
    assert_eq!(shortage["reserve_bytes"], json!(1_u64 << 60));
    assert!(shortage["free_bytes"].as_u64() > Some(0));
    let (status, body) = daemon.post("/v1/pulls", &json!({ "model": "o/nothing" })).await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("no_such_model")), "{body}");
    let (status, _) = daemon.post("/v1/pulls", &json!({ "model": "nothing" })).await;
    assert_eq!(status, 400);
    let gone = daemon.control.delete("http://slotd/v1/pulls/99").send().await.unwrap();
    assert_eq!(gone.status().as_u16(), 404);
}
