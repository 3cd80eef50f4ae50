//! Pulls of a daemon: for a slot, and for who asks over the control API.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use slotd::runtime::since_1970;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
    time::timeout,
};

use crate::{
    DEADLINE, World, scratch,
    world::{content, run, snapshot},
};

pub(crate) struct Daemon {
    child: Child,
    dir: TempDir,
    variables: Vec<(String, String)>,
    control: reqwest::Client,
    url: String,
}

/// A model that is loaded as a folder: a header as short as can be, and one tensor.
pub(crate) fn safetensors(length: usize) -> Vec<u8> {
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
    pub(crate) async fn start(world: &World, profile: &str) -> Self {
        Self::start_with(world, profile, &[]).await
    }

    /// Starts it with more variables in its environment.
    pub(crate) async fn start_with(
        world: &World,
        profile: &str,
        variables: &[(&str, &str)],
    ) -> Self {
        let dir = scratch();
        let profiles = dir.path().join("profiles");
        fs::create_dir(&profiles).unwrap();
        fs::write(profiles.join("chat.toml"), profile).unwrap();
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self::start_in(world, dir, variables.iter().map(own).collect()).await
    }

    /// Kills it, and starts the next one in its place.
    pub(crate) async fn again(mut self, world: &World) -> Self {
        self.child.kill().await.unwrap();
        Self::start_in(world, self.dir, self.variables).await
    }

    async fn start_in(world: &World, dir: TempDir, variables: Vec<(String, String)>) -> Self {
        let profiles = dir.path().join("profiles");
        let log = fs::File::create(dir.path().join("daemon.log")).unwrap();
        let mut command = world.command(&["serve", "--listen", "127.0.0.1:0", "--state-dir"]);
        command.arg(dir.path().join("state")).arg("--profiles").arg(&profiles);
        command.env("XDG_CONFIG_HOME", dir.path()).env("RUST_LOG", "slotd=debug");
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let mut child = command.stderr(log).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap();
        let url = line.as_deref().and_then(|line| line.strip_prefix("listening on "));
        let url = url.unwrap().to_owned();
        let socket = dir.path().join("state/run/control.sock");
        let control = reqwest::Client::builder().unix_socket(socket).build().unwrap();
        Self { child, dir, variables, control, url }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("state/run/control.sock")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("daemon.log")).unwrap()
    }

    pub(crate) fn profile(&self) -> String {
        fs::read_to_string(self.dir.path().join("profiles/chat.toml")).unwrap()
    }

    /// Asks the slot for a short answer.
    pub(crate) async fn chat(&self) -> (u16, Value) {
        let messages = json!([{"role": "user", "content": "Hi"}]);
        let body = json!({"model": "chat", "messages": messages, "max_tokens": 1});
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let sent = client.post(format!("{}/v1/chat/completions", self.url)).json(&body).send();
        let answer = timeout(DEADLINE, sent).await.unwrap().unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.control.get(format!("http://slotd{path}")).send().await.unwrap();
        answer.json().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let sent = self.control.post(format!("http://slotd{path}")).json(body).send().await;
        let answer = sent.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Every line of a stream to its end, or to the first that is wanted.
    pub(crate) async fn watch(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
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
    profile_with("socket={socket}", keys)
}

pub(crate) fn profile_with(listens: &str, keys: &str) -> String {
    let slotd = Path::new(env!("CARGO_BIN_EXE_slotd"));
    let engine = slotd.parent().unwrap().join("examples/fake_engine");
    let words = json!([engine, listens]);
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
    assert_eq!(slot["verdict"], "model-not-fetched");
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
async fn a_request_for_a_model_that_is_not_there_is_told_what_to_fetch_and_its_slot_starts_after_that()
 {
    let world = world();
    let daemon = Daemon::start(&world, &profile("")).await;
    for _ in 0..3 {
        let (status, body) = daemon.chat().await;
        assert_eq!((status, &body["error"]["code"]), (503, &json!("download_required")), "{body}");
    }
    let (_, body) = daemon.chat().await;
    insta::assert_snapshot!(body["error"]["message"].as_str().unwrap(), @"slot `chat` cannot be loaded yet: model `o/s` has to be downloaded: it is not on this machine; fetch it with `slotd pull o/s`; it starts by itself once that is there");
    let slot = daemon.get("/v1/slots/chat").await;
    assert_eq!((&slot["state"], &slot["generation"]), (&json!("failed"), &json!(1)), "{slot:#}");
    assert_eq!(world.pull(&["o/s"]).await.code, Some(0));
    daemon.watch("/v1/slots/chat/watch", |slot| slot["state"] == "ready").await;
    assert_eq!(daemon.chat().await.0, 200);
}

#[tokio::test]
async fn a_pull_that_a_killed_daemon_had_under_way_goes_on_with_the_next() {
    let world = world();
    let daemon = Daemon::start(&world, &profile("")).await;
    let slow = json!({ "model": "o/s", "limit_rate_bytes_per_s": 500_000 });
    assert_eq!(daemon.post("/v1/pulls", &slow).await.0, 202);
    daemon.watch("/v1/pulls/1/watch", |pull| pull["done_bytes"].as_u64() > Some(100_000)).await;
    let daemon = daemon.again(&world).await;
    let pull = daemon.get("/v1/pulls").await[0].clone();
    assert_eq!((&pull["id"], &pull["model"]), (&json!(1), &json!("o/s")), "{pull}");
    let seen = daemon.watch("/v1/pulls/1/watch", |pull| pull["stage"] == "done").await;
    assert!(seen.last().unwrap()["resumed_bytes"].as_u64() > Some(0), "{seen:?}");
    assert_eq!(snapshot(&world.cache(), "o/s").len(), 3);
    // One that is done is not begun again.
    let daemon = daemon.again(&world).await;
    assert_eq!(daemon.get("/v1/pulls").await, json!([]));
}

#[tokio::test]
async fn what_could_be_freed_is_what_clean_would_free() {
    let world = world();
    let blobs = world.cache().join("models--o--old/blobs");
    fs::create_dir_all(&blobs).unwrap();
    for (name, hours) in [("a", 30), ("b.incomplete", 30), ("c.incomplete", 0)] {
        let file = fs::File::create(blobs.join(name)).unwrap();
        file.set_len(50_000).unwrap();
        let then = since_1970().checked_sub(Duration::from_hours(hours)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + then).unwrap();
    }
    let cleaned = run(world.command(&["models", "clean", "--dry-run", "--json"])).await;
    let plan: Value = serde_json::from_str(&cleaned.out).unwrap();
    let removals = plan["removals"].as_array().unwrap().iter();
    let bytes: u64 = removals.map(|removal| removal["bytes"].as_u64().unwrap()).sum();
    let daemon = Daemon::start(&world, &profile("")).await;
    let huge = json!({ "model": "o/s", "reserve_bytes": 1_u64 << 60 });
    let (_, body) = daemon.post("/v1/pulls", &huge).await;
    assert_eq!(body["error"]["shortage"]["freeable_bytes"], json!(bytes), "{body}");
    assert_eq!(bytes, 100_000);
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
