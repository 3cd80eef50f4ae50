//! Streams that survive a real llama-server.

use std::collections::BTreeSet;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{daemon, profile};
use crate::common::Daemon;

const TOKENS: u64 = 40;

/// What a stream has said.
#[derive(Debug, Default)]
struct Seen {
    rest: String,
    /// The text of each event that has some.
    texts: Vec<String>,
    ids: BTreeSet<String>,
    finish: Option<String>,
    usage: Value,
    is_done: bool,
}

impl Seen {
    fn note(&mut self, data: &[u8]) {
        self.rest.push_str(std::str::from_utf8(data).expect("events end between characters"));
        while let Some(end) = self.rest.find("\n\n") {
            let event: String = self.rest.drain(..end + 2).collect();
            let Some(data) = event.trim_end().strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                self.is_done = true;
                continue;
            }
            let event: Value = serde_json::from_str(data).unwrap();
            assert_eq!(event["error"], Value::Null, "the stream broke: {event}");
            self.ids.insert(event["id"].to_string());
            if let Some(choice) = event["choices"].get(0) {
                let text = choice.pointer("/delta/content").or_else(|| choice.get("text"));
                let text = text.and_then(Value::as_str).filter(|text| !text.is_empty());
                self.texts.extend(text.map(ToOwned::to_owned));
                self.finish = choice["finish_reason"].as_str().map(ToOwned::to_owned);
            }
            if event["usage"].is_object() {
                self.usage = event["usage"].clone();
            }
        }
    }
}

/// A request whose answer depends on nothing but its text. A prompt that is not cached is computed in
/// the same batches each time.
fn request(path: &str, model: &str) -> Value {
    let mut body = json!({"model": model, "max_tokens": TOKENS, "temperature": 0,
        "cache_prompt": false, "ignore_eos": true});
    if path.contains("chat") {
        body["messages"] = json!([{"role": "user", "content": "Tell a story of the sea."}]);
    } else {
        body["prompt"] = json!("Once upon a time, the sea");
    }
    body
}

/// What the engine writes after `prefix` if it is asked for that and nothing else.
async fn continuation(daemon: &Daemon, path: &str, mut body: Value, prefix: &[String]) -> String {
    let text = prefix.concat();
    body["max_tokens"] = json!(TOKENS - u64::try_from(prefix.len()).unwrap());
    if path.contains("chat") {
        let turn = json!({"role": "assistant", "content": text});
        body["messages"].as_array_mut().unwrap().push(turn);
        body["continue_final_message"] = json!(true);
        body["add_generation_prompt"] = json!(false);
    } else {
        body["prompt"] = json!(format!("{}{text}", body["prompt"].as_str().unwrap()));
    }
    let answer: Value = daemon.post(path, &body).await.json().await.unwrap();
    let choice = &answer["choices"][0];
    let text = choice.pointer("/message/content").unwrap_or(&choice["text"]).as_str().unwrap();
    text.strip_prefix(&prefix.concat()).unwrap_or(text).to_owned()
}

/// How many tokens had come when the last stream was continued.
fn seam(daemon: &Daemon) -> usize {
    let log = daemon.log();
    let line = log.lines().rfind(|line| line.contains("a stream is continued")).expect("one was");
    let tokens = line.split("tokens=").nth(1).unwrap();
    tokens.split_whitespace().next().unwrap().parse().unwrap()
}

/// Kills the engine in mid-stream and returns what the client saw.
async fn seen_over_a_death(daemon: &Daemon, path: &str, body: &Value) -> Seen {
    let mut asked = body.clone();
    asked["stream"] = json!(true);
    asked["stream_options"] = json!({"include_usage": true});
    let mut stream = daemon.post(path, &asked).await;
    assert_eq!(stream.status(), 200);
    let slot = stream.headers()["x-slotd-slot"].to_str().unwrap().to_owned();
    let pid = daemon.slot(&slot).await["pid"].as_i64().unwrap();
    let mut seen = Seen::default();
    while seen.texts.len() < 8 {
        seen.note(&stream.chunk().await.unwrap().expect("it goes on"));
    }
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    while let Some(data) = stream.chunk().await.unwrap() {
        seen.note(&data);
    }
    assert!(seen.is_done && seen.rest.is_empty(), "{seen:?}");
    seen
}

/// The client's text is what had come and what the next engine makes of that.
async fn a_stream_survives(daemon: &Daemon, path: &str, model: &str) {
    let body = request(path, model);
    let seen = seen_over_a_death(daemon, path, &body).await;
    assert_eq!((seen.ids.len(), seen.finish.as_deref()), (1, Some("length")), "{seen:?}");
    let seam = seam(daemon);
    assert!((8..40).contains(&seam), "{seam}");
    let (prefix, rest) = seen.texts.split_at(seam);
    assert_eq!(rest.concat(), continuation(daemon, path, body.clone(), prefix).await);
    let whole: Value = daemon.post(path, &body).await.json().await.unwrap();
    // The tokens of the prompt are the next engine's count less the text so far, which may be other
    // tokens when it is read than when it was written.
    assert_eq!(seen.usage["completion_tokens"], whole["usage"]["completion_tokens"]);
    let count = |key: &str| seen.usage[key].as_u64().unwrap();
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
}

#[tokio::test]
async fn streams_survive_the_death_of_their_llama_server() {
    let keys = "parallel = 1\nresume = true";
    let daemon = daemon(&[("chat", &profile("llama-server", keys))]).await;
    a_stream_survives(&daemon, "/v1/chat/completions", "chat").await;
    a_stream_survives(&daemon, "/v1/completions", "chat").await;
    assert_eq!(daemon.slot("chat").await["restarts"], 2);
}

#[tokio::test]
async fn streams_go_on_at_another_llama_server_of_their_route() {
    let replica = profile("llama-server", "parallel = 1\nresume = true\nroutes = [\"pool\"]");
    let daemon = daemon(&[("a", &replica), ("b", &replica)]).await;
    for path in ["/v1/chat/completions", "/v1/completions"] {
        for slot in ["a", "b"] {
            daemon.order(slot, "load").await;
            daemon.until_state(slot, "ready").await;
        }
        a_stream_survives(&daemon, path, "pool").await;
    }
}
