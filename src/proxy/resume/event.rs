//! Events of a stream: cut at their ends, followed for their text, and told as one stream's.

use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value, json};

/// An event larger than this is no event.
const LARGEST: usize = 4 << 20;
/// So many tokens at once are no token: the engine repeats what it was to go on from.
const REPETITION: u64 = 4;

/// Cuts a stream at the ends of its events.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Splitter(BytesMut);

impl Splitter {
    /// Takes what came.
    pub(in crate::proxy) fn push(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
    }

    /// Returns the next whole event, with the empty line that ends it.
    pub(in crate::proxy) fn next(&mut self) -> Option<Bytes> {
        let end = |mark: &[u8]| {
            let at = self.0.windows(mark.len()).position(|bytes| bytes == mark)?;
            at.checked_add(mark.len())
        };
        let end = [end(b"\n\n"), end(b"\r\n\r\n")].into_iter().flatten().min()?;
        Some(self.0.split_to(end).freeze())
    }

    /// Tells whether what came cannot become an event.
    pub(in crate::proxy) fn is_stuck(&self) -> bool {
        self.0.len() > LARGEST
    }

    /// Throws a broken event away.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// What a stream has said so far, of all its engines together.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// The text of the answer.
    pub(super) text: String,
    /// Its tokens: engines send an event for each.
    pub(super) tokens: u64,
    /// The end of the answer was announced: the text is whole.
    pub(super) is_finished: bool,
    /// The stream has said that it is whole.
    pub(super) is_done: bool,
    /// What came that cannot be continued.
    pub(super) hindrance: Option<&'static str>,
    /// What is the same in each event of a stream.
    head: Option<Head>,
}

/// The keys by which clients know a stream.
#[derive(Clone, Debug)]
struct Head {
    id: Value,
    created: Value,
    model: Value,
    object: Value,
}

/// One engine's part of a stream.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// The text and the tokens of the parts before; none in the first one.
    before: Option<(String, u64)>,
    has_begun: bool,
}

impl Part {
    /// The part that goes on after what was said.
    pub(super) fn after(said: &Said) -> Self {
        Self { before: Some((said.text.clone(), said.tokens)), has_begun: false }
    }

    /// Follows an event; returns what the client is to see of it.
    pub(super) fn pass(&mut self, event: Bytes, said: &mut Said) -> Option<Bytes> {
        let Some(data) = data_of(&event) else { return Some(event) };
        if data == "[DONE]" {
            said.is_done = true;
            return Some(event);
        }
        let Ok(Value::Object(mut object)) = serde_json::from_str(&data) else { return Some(event) };
        if object.contains_key("error") {
            said.hindrance.get_or_insert("its engine told of an error");
            return Some(event);
        }
        let is_first = self.before.is_none();
        if is_first && said.head.is_none() {
            said.head = Some(Head::of(&object));
        }
        let is_shown = self.follow(&mut object, said);
        if is_first {
            return Some(event);
        }
        is_shown.then(|| said.retell(object))
    }

    /// Takes the text of an event; returns whether anything is in it that the client has not seen.
    fn follow(&mut self, object: &mut Map<String, Value>, said: &mut Said) -> bool {
        self.add_up(object);
        let choices = object.get_mut("choices").and_then(Value::as_array_mut);
        let choice = match choices.map(Vec::as_mut_slice) {
            Some([choice]) => choice,
            Some([]) | None => return true,
            Some(_) => {
                said.hindrance.get_or_insert("it has several choices");
                return true;
            }
        };
        let is_finish = choice.get("finish_reason").is_some_and(|reason| !reason.is_null());
        said.is_finished |= is_finish;
        let delta = choice.get("delta");
        let has =
            |key| delta.and_then(|delta| delta.get(key)).is_some_and(|v: &Value| !v.is_null());
        if has("tool_calls") || has("function_call") {
            said.hindrance.get_or_insert("a tool call had begun");
        } else if has("reasoning_content") || has("reasoning") {
            said.hindrance.get_or_insert("it holds reasoning");
        }
        let is_chat = delta.is_some();
        let text =
            if is_chat { choice.pointer_mut("/delta/content") } else { choice.get_mut("text") };
        let Some(Value::String(text)) = text else { return is_finish };
        if text.is_empty() {
            return is_finish;
        }
        self.drop_repetition(text);
        said.tokens = said.tokens.saturating_add(1);
        said.text.push_str(text);
        true
    }

    /// Some engines say the beginning of a turn again, all at once, before they go on.
    fn drop_repetition(&mut self, text: &mut String) {
        let is_begin = !std::mem::replace(&mut self.has_begun, true);
        if let Some((before, tokens)) = self.before.as_ref().filter(|_| is_begin)
            && *tokens >= REPETITION
            && let Some(rest) = text.strip_prefix(before.as_str())
        {
            *text = rest.to_owned();
        }
    }

    /// Counts the tokens of the parts before to the answer, not to the prompt.
    fn add_up(&self, object: &mut Map<String, Value>) {
        let Some(tokens) = self.before.as_ref().map(|(_, tokens)| *tokens) else { return };
        let Some(usage) = object.get_mut("usage").and_then(Value::as_object_mut) else { return };
        let count = |key: &str, change: fn(u64, u64) -> u64, usage: &mut Map<String, Value>| {
            if let Some(counted) = usage.get(key).and_then(Value::as_u64) {
                usage.insert(key.to_owned(), change(counted, tokens).into());
            }
        };
        count("prompt_tokens", u64::saturating_sub, usage);
        count("completion_tokens", u64::saturating_add, usage);
    }
}

impl Head {
    fn of(object: &Map<String, Value>) -> Self {
        let get = |key: &str| object.get(key).cloned().unwrap_or_default();
        Self { id: get("id"), created: get("created"), model: get("model"), object: get("object") }
    }
}

impl Said {
    /// Makes an event of another engine one of this stream.
    fn retell(&self, mut object: Map<String, Value>) -> Bytes {
        if let Some(head) = &self.head {
            for (key, value) in
                [("id", &head.id), ("created", &head.created), ("model", &head.model)]
            {
                if !value.is_null() {
                    object.insert(key.to_owned(), value.clone());
                }
            }
        }
        event(&Value::Object(object))
    }

    /// Makes the events that end a stream whose text is whole.
    pub(super) fn ending(&self, is_chat: bool) -> Bytes {
        let done = Bytes::from_static(b"data: [DONE]\n\n");
        if self.is_finished {
            return done;
        }
        let choice = if is_chat {
            json!({"index": 0, "delta": {}, "finish_reason": "length"})
        } else {
            json!({"index": 0, "text": "", "finish_reason": "length"})
        };
        let head = self.head.clone();
        let object = head.map(|head| head.object).unwrap_or_default();
        let last = json!({"object": object, "choices": [choice]});
        let last = last.as_object().cloned().unwrap_or_default();
        Bytes::from([self.retell(last), done].concat())
    }
}

fn event(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}

/// Returns the data of an event, its lines put together; `None` if it has none.
pub(in crate::proxy) fn data_of(event: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(event).ok()?;
    let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
    let lines: Vec<&str> = data.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(id: &str, content: &str) -> Bytes {
        event(&json!({"id": id, "choices": [{"index": 0, "delta": {"content": content}}]}))
    }

    fn content(event: Option<Bytes>) -> Option<String> {
        let object: Value = serde_json::from_str(&data_of(&event?)?).ok()?;
        assert_eq!(object["id"], "first");
        object.pointer("/choices/0/delta/content")?.as_str().map(ToOwned::to_owned)
    }

    #[test]
    fn a_stream_is_cut_at_the_ends_of_its_events_however_it_comes() {
        let stream = b"data: a\n\ndata: b\r\n\r\n: c\n\ndata: d";
        for step in 1..stream.len() {
            let (mut splitter, mut events) = (Splitter::default(), Vec::new());
            for piece in stream.chunks(step) {
                splitter.push(piece);
                events.extend(std::iter::from_fn(|| splitter.next()));
            }
            assert_eq!(events, ["data: a\n\n", "data: b\r\n\r\n", ": c\n\n"], "{step}");
        }
    }

    #[test]
    fn a_second_part_is_told_as_the_first_ones_stream() {
        let (mut said, mut part) = (Said::default(), Part::default());
        for text in ["The", " sea", " is", " a", " vast"] {
            let event = chunk("first", text);
            assert_eq!(part.pass(event.clone(), &mut said), Some(event), "the first is untouched");
        }
        let mut part = Part::after(&said);
        let role = event(&json!({"choices": [{"delta": {"role": "assistant", "content": null}}]}));
        assert_eq!(part.pass(role, &mut said), None, "the turn has begun already");
        // A repetition comes all at once.
        let repeated = part.pass(chunk("second", "The sea is a vast and"), &mut said);
        assert_eq!(content(repeated).as_deref(), Some(" and"));
        assert_eq!(
            content(part.pass(chunk("second", " blue"), &mut said)).as_deref(),
            Some(" blue")
        );
        assert_eq!((said.text.as_str(), said.tokens), ("The sea is a vast and blue", 7));
        let usage = json!({"prompt_tokens": 15, "completion_tokens": 2, "total_tokens": 17});
        let last = part.pass(event(&json!({"choices": [], "usage": usage})), &mut said).unwrap();
        let last: Value = serde_json::from_str(&data_of(&last).unwrap()).unwrap();
        let sum = json!({"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17});
        assert_eq!((&last["usage"], &last["id"]), (&sum, &json!("first")));
    }

    #[test]
    fn an_engine_that_happens_to_say_the_same_again_is_believed() {
        let mut said = Said { text: "ha".to_owned(), tokens: 1, ..Said::default() };
        let mut part = Part::after(&said);
        let event = event(&json!({"id": "first", "choices": [{"delta": {"content": "ha"}}]}));
        assert_eq!(content(part.pass(event, &mut said)).as_deref(), Some("ha"));
        assert_eq!(said.text, "haha");
    }

    #[test]
    fn what_cannot_be_continued_is_seen_as_it_comes() {
        let hindrance = |value: Value| {
            let mut said = Said::default();
            Part::default().pass(event(&value), &mut said);
            said.hindrance
        };
        let delta = |delta: Value| json!({"choices": [{"index": 0, "delta": delta}]});
        assert_eq!(hindrance(delta(json!({"tool_calls": [{}]}))), Some("a tool call had begun"));
        assert_eq!(hindrance(delta(json!({"reasoning_content": "x"}))), Some("it holds reasoning"));
        assert_eq!(hindrance(json!({"choices": [{}, {}]})), Some("it has several choices"));
        assert_eq!(hindrance(json!({"error": {}})), Some("its engine told of an error"));
        assert_eq!(hindrance(delta(json!({"content": "x"}))), None);
    }
}
