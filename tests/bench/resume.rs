//! Streams that survive their engine: llama-server killed at random moments, chats and completions,
//! with the same slot restarted and with a replica.
//!
//! Each stream's text must be what had come, and what the engine makes of that if it is asked for
//! nothing else. `SLOTD_BENCH_RESUME` says how many streams, 40 without it.

use std::{
    env,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Programs, daemon::Daemon, median, ms};

const STREAMS: u64 = 40;
const TOKENS: u64 = 40;
const CHATS: [&str; 4] = [
    "Tell a story of the sea.",
    "Why is the sky blue?",
    "Describe a market in the morning.",
    "Explain how bread is baked.",
];
const BEGINNINGS: [&str; 4] = [
    "Once upon a time, the sea",
    "The reason why the sky is blue",
    "The market opens at six, and",
    "To bake bread, first",
];

/// How the streams of one kind of set-up came out.
#[derive(Default)]
struct Tally {
    streams: u64,
    /// Their text is what had come and the engine's own continuation of that.
    exact: u64,
    /// Their text is that of an undisturbed answer as well.
    undisturbed: u64,
    /// One id, all tokens of the answer counted, `[DONE]`.
    well_formed: u64,
    /// The tokens of the prompt too: text that was written may be read as other tokens.
    prompt_exact: u64,
    gaps: Vec<Duration>,
}

/// Numbers that look random; those of one seed are always the same.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 31) % end
    }
}

pub(crate) async fn resume(programs: &Programs) {
    let Some((llama, model)) = &programs.llama else { return };
    let streams = env::var("SLOTD_BENCH_RESUME").ok().and_then(|text| text.parse().ok());
    let each = streams.unwrap_or(STREAMS) / 2;
    let mut random = Random(RandomState::new().hash_one("seed"));
    println!("\nStreams continued, seed {}:", random.0);
    println!(
        "\n| set-up | streams | prefix + continuation | well-formed | prompt tokens exact | as undisturbed | gap p50 | longest gap |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let profile = |route: &str| {
        let model = model.display();
        format!(
            "model = \"{model}\"\nengine = \"llama-server\"\ncontext = 1024\nparallel = 1\nthreads = 1\nresume = true\nessential = true\n{route}"
        )
    };
    let replica = profile("routes = [\"pool\"]\n");
    let pool = [("a", replica.clone()), ("b", replica)];
    let alone = [("pool", profile(""))];
    for (name, profiles) in [("same slot restarted", &alone[..]), ("replica", &pool[..])] {
        let env = [("SLOTD_LLAMA_SERVER", llama.as_path())];
        let daemon = Daemon::start_with(&programs.slotd, profiles, &env).await;
        let tally = all(&daemon, profiles, each, &mut random).await;
        daemon.end().await;
        println!(
            "| {name} | {} | {} | {} | {} | {} | {} | {} |",
            tally.streams,
            tally.exact,
            tally.well_formed,
            tally.prompt_exact,
            tally.undisturbed,
            ms(median(&tally.gaps)),
            ms(super::worst(&tally.gaps))
        );
    }
}

async fn all(
    daemon: &Daemon,
    profiles: &[(&str, String)],
    streams: u64,
    random: &mut Random,
) -> Tally {
    let mut tally = Tally::default();
    let mut undisturbed = Vec::new();
    for question in 0..8 {
        undisturbed.push(daemon.ask(path(question), &request(question)).await);
    }
    for stream in 0..streams {
        for (slot, _) in profiles {
            daemon.load(slot).await;
        }
        let question = stream % 8;
        let whole = &undisturbed[usize::try_from(question).unwrap()];
        one(daemon, question, whole, random, &mut tally).await;
    }
    tally
}

async fn one(
    daemon: &Daemon,
    question: u64,
    whole: &Value,
    random: &mut Random,
    tally: &mut Tally,
) {
    let (path, body) = (path(question), request(question));
    let (count, late) = (1 + random.below(TOKENS - 4), Duration::from_millis(random.below(40)));
    let mut asked = body.clone();
    asked["stream"] = json!(true);
    asked["stream_options"] = json!({"include_usage": true});
    let mut stream = daemon.post(path, &asked).await;
    let slot = stream.headers()["x-slotd-slot"].to_str().unwrap().to_owned();
    let mut seen = Seen::default();
    let (mut is_killed, mut last, mut gap) = (false, Instant::now(), Duration::ZERO);
    while let Ok(Some(data)) = stream.chunk().await {
        let before = seen.texts.len();
        seen.note(&data);
        if seen.texts.len() > before {
            gap = if before == 0 { gap } else { gap.max(last.elapsed()) };
            last = Instant::now();
        }
        if !is_killed && u64::try_from(seen.texts.len()).unwrap() >= count {
            is_killed = true;
            tokio::time::sleep(late).await;
            daemon.kill(&slot).await;
        }
    }
    tally.streams += 1;
    tally.gaps.push(gap);
    let text = seen.texts.concat();
    let is_well_formed = seen.is_done
        && seen.error.is_none()
        && seen.ids.len() == 1
        && seen.usage["completion_tokens"] == whole["usage"]["completion_tokens"];
    let is_prompt_exact = seen.usage["prompt_tokens"] == whole["usage"]["prompt_tokens"];
    tally.prompt_exact += u64::from(is_prompt_exact);
    tally.well_formed += u64::from(is_well_formed);
    tally.undisturbed += u64::from(text == text_of(whole));
    let seam = daemon.seam().min(seen.texts.len());
    let prefix = seen.texts[..seam].concat();
    let after = after(body, question, &prefix, TOKENS - u64::try_from(seam).unwrap());
    let continuation = daemon.ask(path, &after).await;
    let continuation = text_of(&continuation);
    let continuation = continuation.strip_prefix(&prefix).unwrap_or(&continuation);
    let is_exact = text == format!("{prefix}{continuation}");
    tally.exact += u64::from(is_exact);
    if !is_exact || !is_well_formed {
        println!("{question} at {seam}: {seen:?}, expected {prefix:?} and {continuation:?}");
    }
}

/// What a stream has said.
#[derive(Debug, Default)]
struct Seen {
    rest: String,
    texts: Vec<String>,
    ids: std::collections::BTreeSet<String>,
    usage: Value,
    error: Option<Value>,
    is_done: bool,
}

impl Seen {
    fn note(&mut self, data: &[u8]) {
        self.rest.push_str(std::str::from_utf8(data).unwrap());
        while let Some(end) = self.rest.find("\n\n") {
            let event: String = self.rest.drain(..end + 2).collect();
            let Some(data) = event.trim_end().strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                self.is_done = true;
                continue;
            }
            let event: Value = serde_json::from_str(data).unwrap();
            if event["error"].is_object() {
                self.error = Some(event);
                continue;
            }
            self.ids.insert(event["id"].to_string());
            if event["usage"].is_object() {
                self.usage = event["usage"].clone();
            }
            let Some(choice) = event["choices"].get(0) else { continue };
            let text = choice.pointer("/delta/content").or_else(|| choice.get("text"));
            let text = text.and_then(Value::as_str).filter(|text| !text.is_empty());
            self.texts.extend(text.map(ToOwned::to_owned));
        }
    }
}

fn path(question: u64) -> &'static str {
    if question.is_multiple_of(2) { "/v1/chat/completions" } else { "/v1/completions" }
}

/// A request whose answer depends on nothing but its text: a prompt that is not cached is computed in
/// the same batches each time.
fn request(question: u64) -> Value {
    let mut body = json!({"model": "pool", "max_tokens": TOKENS, "temperature": 0,
        "cache_prompt": false, "ignore_eos": true});
    let which = usize::try_from(question / 2).unwrap();
    if question.is_multiple_of(2) {
        body["messages"] = json!([{"role": "user", "content": CHATS[which]}]);
    } else {
        body["prompt"] = json!(BEGINNINGS[which]);
    }
    body
}

/// The request for what comes after `prefix`.
fn after(mut body: Value, question: u64, prefix: &str, left: u64) -> Value {
    body["max_tokens"] = json!(left);
    if question.is_multiple_of(2) {
        let turn = json!({"role": "assistant", "content": prefix});
        body["messages"].as_array_mut().unwrap().push(turn);
        body["continue_final_message"] = json!(true);
        body["add_generation_prompt"] = json!(false);
    } else {
        body["prompt"] = json!(format!("{}{prefix}", body["prompt"].as_str().unwrap()));
    }
    body
}

fn text_of(answer: &Value) -> String {
    let choice = &answer["choices"][0];
    let text = choice.pointer("/message/content").unwrap_or(&choice["text"]);
    text.as_str().unwrap().to_owned()
}
