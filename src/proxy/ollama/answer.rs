//! Answers of OpenAI's API, told as Ollama's: whole, or piece by piece.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{super::listeners::WallClock, work::Kind};
use crate::spec::date::rfc3339;

/// Tells one answer.
#[derive(Debug)]
pub(super) struct Teller {
    kind: Kind,
    /// The model by the name that the client used.
    model: String,
    clock: WallClock,
    began: Instant,
    /// How long it waited for its engine.
    cold_start: Duration,
    /// When the first piece came.
    first: Option<Instant>,
    calls: Vec<Call>,
    finish: Option<String>,
    usage: Usage,
    timings: Timings,
}

/// What an event of a stream comes to.
#[derive(Debug, PartialEq)]
pub(super) enum Told {
    /// Nothing to say.
    Nothing,
    /// A piece of the answer.
    Piece(Value),
    /// The engine's error, or slotd's.
    Error(String),
}

/// A whole answer, or an event of a stream.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    timings: Option<Timings>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(alias = "delta")]
    message: Option<Message>,
    /// Of completions.
    text: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Message {
    content: Option<String>,
    reasoning_content: Option<String>,
    /// Some engines send both.
    reasoning: Option<String>,
    tool_calls: Option<Vec<CallPart>>,
}

#[derive(Deserialize)]
struct CallPart {
    index: Option<usize>,
    id: Option<String>,
    function: Option<FunctionPart>,
}

#[derive(Deserialize)]
struct FunctionPart {
    name: Option<String>,
    arguments: Option<String>,
}

/// A call of a tool, as far as it came.
#[derive(Debug, Default)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// Source: llama.cpp, `result_timings::to_json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Timings {
    prompt_ms: f64,
    predicted_ms: f64,
}

/// What a piece of an answer says.
#[derive(Debug, Default)]
struct Said {
    text: String,
    thinking: String,
}

impl Teller {
    /// `began` is when the request came.
    pub(super) fn new(
        kind: Kind,
        model: String,
        clock: WallClock,
        (began, cold_start): (Instant, Duration),
    ) -> Self {
        Self {
            kind,
            model,
            clock,
            began,
            cold_start,
            first: None,
            calls: Vec::new(),
            finish: None,
            usage: Usage::default(),
            timings: Timings::default(),
        }
    }

    /// Tells a whole answer.
    pub(super) fn whole(mut self, answer: &[u8]) -> Result<Value, serde_json::Error> {
        let chunk: Chunk = serde_json::from_slice(answer)?;
        let said = self.gather(chunk);
        let calls = self.take_calls();
        Ok(self.last(&said, calls))
    }

    /// Tells what an event of a stream says.
    pub(super) fn event(&mut self, data: &str) -> Result<Told, serde_json::Error> {
        let chunk: Chunk = serde_json::from_str(data)?;
        if let Some(error) = chunk.error {
            let message = error.get("message").unwrap_or(&error);
            let message = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
            return Ok(Told::Error(message));
        }
        let said = self.gather(chunk);
        if said.text.is_empty() && said.thinking.is_empty() {
            return Ok(Told::Nothing);
        }
        Ok(Told::Piece(self.piece(&said, Vec::new()).into()))
    }

    /// Tells the end of a stream: its calls of tools, if it has any, then the figures.
    pub(super) fn end(&mut self) -> Vec<Value> {
        let calls = self.take_calls();
        let nothing = Said::default();
        let mut lines = Vec::new();
        if !calls.is_empty() {
            lines.push(self.piece(&nothing, calls).into());
        }
        lines.push(self.last(&nothing, Vec::new()));
        lines
    }

    /// Tells that nothing was asked of the model, and why it answers all the same.
    pub(super) fn nothing(self, reason: &str) -> Value {
        let mut told = self.piece(&Said::default(), Vec::new());
        told.insert("done".to_owned(), true.into());
        told.insert("done_reason".to_owned(), reason.into());
        told.into()
    }

    fn gather(&mut self, chunk: Chunk) -> Said {
        self.usage = chunk.usage.unwrap_or(std::mem::take(&mut self.usage));
        self.timings = chunk.timings.unwrap_or(std::mem::take(&mut self.timings));
        let mut said = Said::default();
        // One answer is asked for.
        let Some(choice) = chunk.choices.into_iter().next() else { return said };
        self.first.get_or_insert_with(Instant::now);
        self.finish = choice.finish_reason.or(self.finish.take());
        let message = choice.message.unwrap_or_default();
        said.text = message.content.or(choice.text).unwrap_or_default();
        said.thinking = message.reasoning_content.or(message.reasoning).unwrap_or_default();
        for (at, part) in message.tool_calls.unwrap_or_default().into_iter().enumerate() {
            self.add_call(part.index.unwrap_or(at), part);
        }
        said
    }

    /// Puts a part of a call to those before it.
    fn add_call(&mut self, index: usize, part: CallPart) {
        /// No answer calls that many tools.
        const MOST: usize = 128;
        if index >= MOST {
            return;
        }
        if self.calls.len() <= index {
            self.calls.resize_with(index.saturating_add(1), Call::default);
        }
        let Some(call) = self.calls.get_mut(index) else { return };
        if let Some(id) = part.id {
            call.id = id;
        }
        let Some(function) = part.function else { return };
        call.name.push_str(&function.name.unwrap_or_default());
        call.arguments.push_str(&function.arguments.unwrap_or_default());
    }

    /// Returns the calls. One whose arguments were cut off is none.
    fn take_calls(&mut self) -> Vec<Value> {
        let calls = std::mem::take(&mut self.calls).into_iter().enumerate();
        let told = calls.filter_map(|(index, call)| {
            let text = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
            let arguments: Map<String, Value> = serde_json::from_str(text).ok()?;
            let function = json!({"index": index, "name": call.name, "arguments": arguments});
            Some(json!({"id": call.id, "function": function}))
        });
        told.collect()
    }

    fn piece(&self, said: &Said, calls: Vec<Value>) -> Map<String, Value> {
        let mut told = Map::new();
        told.insert("model".to_owned(), self.model.as_str().into());
        told.insert("created_at".to_owned(), rfc3339((self.clock)()).into());
        let mut message = Map::new();
        if self.kind == Kind::Chat {
            message.insert("role".to_owned(), "assistant".into());
            message.insert("content".to_owned(), said.text.as_str().into());
        } else {
            told.insert("response".to_owned(), said.text.as_str().into());
        }
        let place = if self.kind == Kind::Chat { &mut message } else { &mut told };
        if !said.thinking.is_empty() {
            place.insert("thinking".to_owned(), said.thinking.as_str().into());
        }
        if !calls.is_empty() {
            place.insert("tool_calls".to_owned(), calls.into());
        }
        if self.kind == Kind::Chat {
            told.insert("message".to_owned(), message.into());
        }
        told.insert("done".to_owned(), false.into());
        told
    }

    fn last(&self, said: &Said, calls: Vec<Value>) -> Value {
        let mut told = self.piece(said, calls);
        let reason = match self.finish.as_deref() {
            None | Some("tool_calls" | "function_call") => "stop",
            Some(reason) => reason,
        };
        let now = Instant::now();
        // What the engine measured, else what was seen from here.
        let measured =
            |ms: f64| Duration::try_from_secs_f64(ms / 1000.0).ok().filter(|time| !time.is_zero());
        let first = self.first.unwrap_or(now);
        let prompt = measured(self.timings.prompt_ms)
            .unwrap_or_else(|| first.duration_since(self.began).saturating_sub(self.cold_start));
        let generated =
            measured(self.timings.predicted_ms).unwrap_or_else(|| now.duration_since(first));
        let figures = json!({
            "done": true,
            "done_reason": reason,
            "total_duration": ns(now.duration_since(self.began)),
            "load_duration": ns(self.cold_start),
            "prompt_eval_count": self.usage.prompt_tokens,
            "prompt_eval_duration": ns(prompt),
            "eval_count": self.usage.completion_tokens,
            "eval_duration": ns(generated),
        });
        if let Value::Object(figures) = figures {
            told.extend(figures);
        }
        told.into()
    }
}

/// Tells a time as Ollama does.
pub(super) fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn teller(kind: Kind) -> Teller {
        let times = (Instant::now(), Duration::from_millis(3));
        Teller::new(kind, "m:latest".to_owned(), || 0, times)
    }

    #[test]
    fn a_whole_chat_is_told_with_its_figures_in_nanoseconds() {
        let answer = json!({
            "choices": [{"index": 0, "finish_reason": "length", "message":
                {"role": "assistant", "content": "hi", "reasoning_content": "hm"}}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2},
            "timings": {"prompt_ms": 1.5, "predicted_ms": 20.25},
        });
        let mut told = teller(Kind::Chat).whole(answer.to_string().as_bytes()).unwrap();
        assert!(told["total_duration"].take().is_u64());
        insta::assert_snapshot!(told, @r#"{"model":"m:latest","created_at":"1970-01-01T00:00:00.000Z","message":{"role":"assistant","content":"hi","thinking":"hm"},"done":true,"done_reason":"length","total_duration":null,"load_duration":3000000,"prompt_eval_count":5,"prompt_eval_duration":1500000,"eval_count":2,"eval_duration":20250000}"#);
    }

    #[test]
    fn a_text_is_told_in_its_own_keys() {
        let answer = json!({"choices": [{"text": "Paris", "finish_reason": "stop"}]});
        let told = teller(Kind::Generate).whole(answer.to_string().as_bytes()).unwrap();
        assert_eq!((&told["response"], &told["done_reason"]), (&json!("Paris"), &json!("stop")));
        assert!(told.get("message").is_none());
    }

    #[test]
    fn calls_of_tools_come_in_parts_and_are_told_whole() {
        let mut teller = teller(Kind::Chat);
        let part = |part: Value| {
            json!({"choices": [{"delta": {"content": null, "tool_calls": [part]}}]}).to_string()
        };
        for part in [
            part(json!({"index": 0, "id": "a", "function": {"name": "f", "arguments": "{\"x\""}})),
            part(json!({"index": 0, "function": {"arguments": ":1}"}})),
            part(json!({"index": 1, "id": "b", "function": {"name": "g", "arguments": ""}})),
            part(json!({"index": 2, "id": "c", "function": {"name": "h", "arguments": "{\"cut"}})),
        ] {
            assert_eq!(teller.event(&part).unwrap(), Told::Nothing);
        }
        let finish = json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]});
        assert_eq!(teller.event(&finish.to_string()).unwrap(), Told::Nothing);
        let lines = teller.end();
        assert_eq!(
            lines[0]["message"]["tool_calls"],
            json!([{"id": "a", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}},
                {"id": "b", "function": {"index": 1, "name": "g", "arguments": {}}}])
        );
        assert_eq!((&lines[0]["done"], &lines[1]["done"]), (&json!(false), &json!(true)));
        assert_eq!(lines[1]["done_reason"], "stop");
    }

    #[test]
    fn errors_are_told_as_texts_in_either_form() {
        let mut teller = teller(Kind::Chat);
        for error in [json!({"error": "gone"}), json!({"error": {"message": "gone", "code": 1}})] {
            let told = teller.event(&error.to_string()).unwrap();
            assert_eq!(told, Told::Error("gone".to_owned()));
        }
    }
}
