//! The shapes of completion answers, whole and in chunks.

use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::options::random;
use crate::worker::{
    clock::unix_seconds,
    job::{Done, Reason},
    sampler::Scored,
    text::{Call, Vocabulary},
};

/// Which of the two APIs an answer is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Api {
    Chat,
    Completion,
}

/// What all chunks of one answer have in common.
#[derive(Clone, Debug)]
pub(super) struct Envelope {
    pub(super) api: Api,
    id: String,
    created: u64,
    model: String,
}

/// Tokens taken in and made, over all choices of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    prompt: usize,
    cached: usize,
    completion: usize,
}

impl Envelope {
    pub(super) fn new(api: Api, model: &str) -> Self {
        let prefix = match api {
            Api::Chat => "chatcmpl",
            Api::Completion => "cmpl",
        };
        let id = format!("{prefix}-{:016x}{:016x}", random(), random());
        Self { api, id, created: unix_seconds(), model: model.to_owned() }
    }

    /// Gives an object with `choices` and no usage.
    pub(super) fn chunk(&self, choices: Json) -> Map<String, Json> {
        let object = match self.api {
            Api::Chat => "chat.completion.chunk",
            Api::Completion => "text_completion",
        };
        self.with(object, choices)
    }

    /// Gives the object of a whole answer.
    pub(super) fn whole(&self, choices: Json) -> Map<String, Json> {
        let object = match self.api {
            Api::Chat => "chat.completion",
            Api::Completion => "text_completion",
        };
        self.with(object, choices)
    }

    fn with(&self, object: &str, choices: Json) -> Map<String, Json> {
        Map::from_iter([
            ("id".to_owned(), json!(self.id)),
            ("object".to_owned(), json!(object)),
            ("created".to_owned(), json!(self.created)),
            ("model".to_owned(), json!(self.model)),
            ("system_fingerprint".to_owned(), json!(concat!("slotd-", env!("CARGO_PKG_VERSION")))),
            ("choices".to_owned(), choices),
        ])
    }

    /// Gives the choice of a first chunk, where the API has one.
    pub(super) fn opening(&self, index: usize) -> Option<Json> {
        match self.api {
            Api::Chat => {
                let delta = json!({ "role": "assistant", "content": "" });
                Some(choice(index, ("delta", delta), &Json::Null, None))
            }
            Api::Completion => None,
        }
    }

    /// Gives the choice of a chunk of text.
    pub(super) fn delta(&self, index: usize, text: &str, logprobs: &Json) -> Json {
        match self.api {
            Api::Chat => choice(index, ("delta", json!({ "content": text })), logprobs, None),
            Api::Completion => choice(index, ("text", json!(text)), logprobs, None),
        }
    }

    /// Gives the choices of the chunks of calls, one each.
    pub(super) fn call_deltas(index: usize, calls: &[Call]) -> Vec<Json> {
        let delta = |(at, call): (usize, &Call)| {
            let mut call = tool_call(call);
            if let Some(call) = call.as_object_mut() {
                call.insert("index".to_owned(), json!(at));
            }
            choice(index, ("delta", json!({ "tool_calls": [call] })), &Json::Null, None)
        };
        calls.iter().enumerate().map(delta).collect()
    }

    /// Gives the choice of the chunk that ends an answer.
    pub(super) fn closing(&self, index: usize, calls: &[Call], done: &Done) -> Json {
        let reason = Some(word(calls, done));
        match self.api {
            Api::Chat => choice(index, ("delta", json!({})), &Json::Null, reason),
            Api::Completion => choice(index, ("text", json!("")), &Json::Null, reason),
        }
    }

    /// Gives the choice of a whole answer.
    pub(super) fn choice(
        &self,
        index: usize,
        (text, calls): (Option<&str>, &[Call]),
        logprobs: &Json,
        done: &Done,
    ) -> Json {
        let reason = Some(word(calls, done));
        match self.api {
            Api::Chat => {
                let mut message = json!({ "role": "assistant", "content": text, "refusal": null });
                if let (Some(message), false) = (message.as_object_mut(), calls.is_empty()) {
                    let calls = calls.iter().map(tool_call).collect();
                    message.insert("tool_calls".to_owned(), calls);
                }
                choice(index, ("message", message), logprobs, reason)
            }
            Api::Completion => {
                choice(index, ("text", json!(text.unwrap_or_default())), logprobs, reason)
            }
        }
    }

    /// Gives the probabilities in the API's shape; `offset` is where the first token's text begins.
    pub(super) fn logprobs(
        &self,
        scores: &[Scored],
        offset: usize,
        vocabulary: &Vocabulary,
    ) -> Json {
        match self.api {
            Api::Chat => {
                let content: Vec<Json> =
                    scores.iter().map(|scored| chat_score(scored, vocabulary)).collect();
                json!({ "content": content, "refusal": null })
            }
            Api::Completion => completion_scores(scores, offset, vocabulary),
        }
    }
}

impl Usage {
    /// Counts one more choice; choices of one prompt count that prompt once.
    pub(super) fn add(&mut self, done: &Done, is_new_prompt: bool) {
        if is_new_prompt {
            self.prompt = self.prompt.saturating_add(done.prompt_tokens);
            self.cached = self.cached.saturating_add(done.cached_tokens);
        }
        self.completion = self.completion.saturating_add(done.completion_tokens);
    }

    pub(super) fn json(&self) -> Json {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt.saturating_add(self.completion),
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }
}

/// Gives times and speeds under the names of llama.cpp's server.
pub(super) fn timings(done: &Done) -> Json {
    let computed = done.prompt_tokens.saturating_sub(done.cached_tokens);
    let (prompt_ms, prompt_each, prompt_rate) = rates(computed, done.prompt_time);
    let (made_ms, made_each, made_rate) = rates(done.completion_tokens, done.completion_time);
    json!({
        "cache_n": done.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_each,
        "prompt_per_second": prompt_rate,
        "predicted_n": done.completion_tokens,
        "predicted_ms": made_ms,
        "predicted_per_token_ms": made_each,
        "predicted_per_second": made_rate,
    })
}

/// Milliseconds in all, milliseconds a token, tokens a second.
fn rates(tokens: usize, time: Duration) -> (f64, f64, f64) {
    #[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "a count of tokens")]
    let tokens = tokens as f64;
    let seconds = time.as_secs_f64();
    let each = if tokens > 0.0 { seconds * 1e3 / tokens } else { 0.0 };
    (seconds * 1e3, each, if seconds > 0.0 { tokens / seconds } else { 0.0 })
}

fn choice(index: usize, (key, value): (&str, Json), logprobs: &Json, reason: Option<&str>) -> Json {
    json!({ "index": index, key: value, "logprobs": logprobs, "finish_reason": reason })
}

/// Gives why an answer ended, in the API's words.
fn word(calls: &[Call], done: &Done) -> &'static str {
    match (done.reason, calls.is_empty()) {
        (Reason::Stop, false) => "tool_calls",
        (reason, _) => reason.word(),
    }
}

fn tool_call(call: &Call) -> Json {
    json!({
        "id": format!("call_{:016x}", random()),
        "type": "function",
        "function": { "name": call.name, "arguments": call.arguments },
    })
}

fn token_text(id: u32, vocabulary: &Vocabulary) -> String {
    String::from_utf8_lossy(vocabulary.bytes(id)).into_owned()
}

fn chat_score(scored: &Scored, vocabulary: &Vocabulary) -> Json {
    let one = |id: u32, logprob: f32| {
        json!({
            "id": id,
            "token": token_text(id, vocabulary),
            "logprob": finite(logprob),
            "bytes": vocabulary.bytes(id),
        })
    };
    let mut entry = one(scored.id, scored.logprob);
    let top: Vec<Json> = scored.top.iter().map(|(id, logprob)| one(*id, *logprob)).collect();
    if let Some(entry) = entry.as_object_mut() {
        entry.insert("top_logprobs".to_owned(), json!(top));
    }
    entry
}

fn completion_scores(scores: &[Scored], offset: usize, vocabulary: &Vocabulary) -> Json {
    let mut offsets = Vec::with_capacity(scores.len());
    let mut at = offset;
    let mut tokens = Vec::with_capacity(scores.len());
    for scored in scores {
        let text = token_text(scored.id, vocabulary);
        offsets.push(at);
        at = at.saturating_add(text.chars().count());
        tokens.push(text);
    }
    let top = scores.iter().map(|scored| {
        scored
            .top
            .iter()
            .map(|(id, logprob)| (token_text(*id, vocabulary), json!(finite(*logprob))))
            .collect::<Map<_, _>>()
    });
    // The first token of a prompt follows nothing: it has no probability.
    let logprob = |scored: &Scored| (!scored.logprob.is_nan()).then(|| finite(scored.logprob));
    json!({
        "tokens": tokens,
        "token_logprobs": scores.iter().map(logprob).collect::<Vec<_>>(),
        "top_logprobs": top.collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

/// JSON has no infinity; the API writes -9999 for "never".
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
