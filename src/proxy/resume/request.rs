//! What is asked to begin with, and what is asked of the engine that goes on.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::event::Said;

/// A request whose stream may be continued.
#[derive(Clone, Debug)]
pub(super) struct Resumable {
    form: Form,
    body: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    Chat,
    Completion,
}

impl Form {
    fn of(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" => Some(Self::Chat),
            "/v1/completions" => Some(Self::Completion),
            _ => None,
        }
    }
}

/// Tells whether streams of this path are those that this module follows. Others have ends and errors
/// of their own form.
pub(in crate::proxy) fn is_followed(path: &str) -> bool {
    Form::of(path).is_some()
}

/// What follows a stream that broke.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// This is to be asked for.
    Ask(Bytes),
    /// All the tokens that were asked for have come.
    Enough,
}

/// Keys that ask for what a continuation could not give, whatever their value is, but for those of
/// [`says_nothing`].
const HINDRANCES: [&str; 16] = [
    "tools",
    "functions",
    "logprobs",
    "top_logprobs",
    "n_probs",
    "response_format",
    "grammar",
    "json_schema",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "echo",
    "suffix",
    "audio",
];
/// Keys that limit the tokens of an answer, the one that counts first.
const LIMITS: [&str; 3] = ["max_completion_tokens", "max_tokens", "n_predict"];

impl Resumable {
    /// Reads a request.
    ///
    /// # Errors
    /// Says what in it cannot be continued.
    pub(super) fn of(path: &str, body: &[u8]) -> Result<Self, String> {
        let Some(form) = Form::of(path) else {
            return Err("only chats and completions are continued".to_owned());
        };
        let Ok(Value::Object(body)) = serde_json::from_slice(body) else {
            return Err("its request cannot be read".to_owned());
        };
        let hindrance = HINDRANCES
            .into_iter()
            .find(|key| body.get(*key).is_some_and(|value| !says_nothing(key, value)));
        if let Some(key) = hindrance {
            return Err(format!("the request has `{key}`"));
        }
        if ["n", "best_of"].iter().any(|key| body.get(*key).is_some_and(|n| *n != 1)) {
            return Err("the request asks for several answers".to_owned());
        }
        let has_text = match form {
            Form::Chat => body.get("messages").is_some_and(Value::is_array),
            Form::Completion => body.get("prompt").is_some_and(Value::is_string),
        };
        if !has_text {
            return Err("the request has no text to go on from".to_owned());
        }
        Ok(Self { form, body })
    }

    /// Tells whether the form is that of chats.
    pub(super) fn is_chat(&self) -> bool {
        self.form == Form::Chat
    }

    /// Makes the request that goes on after what was said.
    pub(super) fn next(&self, said: &Said) -> Next {
        let mut body = self.body.clone();
        let limit = LIMITS
            .into_iter()
            .find_map(|key| Some((key, body.get(key)?.as_i64().filter(|n| *n > 0)?)));
        if let Some((key, limit)) = limit {
            let left = limit.saturating_sub(i64::try_from(said.tokens).unwrap_or(i64::MAX));
            if left <= 0 {
                return Next::Enough;
            }
            body.insert(key.to_owned(), left.into());
        }
        if !said.text.is_empty() {
            match self.form {
                Form::Chat => append_turn(&mut body, &said.text),
                Form::Completion => append_text(&mut body, &said.text),
            }
        }
        Next::Ask(Value::Object(body).to_string().into())
    }
}

/// Tells whether a value is the same as the key's absence.
fn says_nothing(key: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => {
            key == "response_format" && object.get("type").is_some_and(|kind| kind == "text")
        }
        Value::Number(number) => key == "n_probs" && number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) => false,
    }
}

/// The answer so far becomes a turn that has begun. The two flags are what llama.cpp's server, vLLM
/// and `SGLang` understand; the candle worker goes on with a last turn of the assistant's in any case.
fn append_turn(body: &mut Map<String, Value>, text: &str) {
    let Some(messages) = body.get_mut("messages").and_then(Value::as_array_mut) else { return };
    // A client that began the answer itself has its own beginning continued.
    let begun = messages
        .last_mut()
        .filter(|last| last.get("role").is_some_and(|role| role == "assistant"))
        .and_then(|last| last.get_mut("content"));
    if let Some(Value::String(begun)) = begun {
        begun.push_str(text);
    } else {
        messages.push(json!({"role": "assistant", "content": text}));
    }
    body.insert("continue_final_message".to_owned(), true.into());
    body.insert("add_generation_prompt".to_owned(), false.into());
}

fn append_text(body: &mut Map<String, Value>, text: &str) {
    if let Some(Value::String(prompt)) = body.get_mut("prompt") {
        prompt.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str, tokens: u64) -> Said {
        let mut said = Said::default();
        (said.text, said.tokens) = (text.to_owned(), tokens);
        said
    }

    fn next(path: &str, body: &Value, said: &Said) -> Value {
        let resumable = Resumable::of(path, body.to_string().as_bytes()).unwrap();
        match resumable.next(said) {
            Next::Ask(bytes) => serde_json::from_slice(&bytes).unwrap(),
            Next::Enough => Value::Null,
        }
    }

    #[test]
    fn a_chat_goes_on_with_the_turn_that_has_begun() {
        let body = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true, "x": 1});
        let asked = next("/v1/chat/completions", &body, &said("Hello, ", 2));
        assert_eq!(asked["messages"][1], json!({"role": "assistant", "content": "Hello, "}));
        assert_eq!((&asked["continue_final_message"], &asked["x"]), (&json!(true), &json!(1)));
        let again = next("/v1/chat/completions", &asked, &said("you", 1));
        assert_eq!(again["messages"][1]["content"], "Hello, you");
        assert_eq!(again["messages"].as_array().unwrap().len(), 2);
        assert_eq!(next("/v1/chat/completions", &body, &said("", 0)), body);
    }

    #[test]
    fn a_completion_goes_on_after_its_prompt_with_the_tokens_that_are_left() {
        let body = json!({"prompt": "The sea", "max_tokens": 10});
        let asked = next("/v1/completions", &body, &said(" is wide", 2));
        assert_eq!(asked, json!({"prompt": "The sea is wide", "max_tokens": 8}));
        assert_eq!(next("/v1/completions", &body, &said("x", 10)), Value::Null);
    }

    #[test]
    fn what_a_continuation_could_not_honour_is_named() {
        let why = |more: Value| {
            let mut body = json!({"messages": []});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Resumable::of("/v1/chat/completions", body.to_string().as_bytes()).err()
        };
        assert_eq!(why(json!({"tools": [{}]})).unwrap(), "the request has `tools`");
        assert_eq!(why(json!({"logprobs": true})).unwrap(), "the request has `logprobs`");
        assert_eq!(why(json!({"n": 2})).unwrap(), "the request asks for several answers");
        let schema = json!({"response_format": {"type": "json_schema"}});
        assert_eq!(why(schema).unwrap(), "the request has `response_format`");
        let nothing = json!({
            "tools": [], "logprobs": false, "n": 1, "grammar": null, "suffix": "",
            "response_format": {"type": "text"}
        });
        assert_eq!(why(nothing), None);
        assert!(Resumable::of("/v1/completions", br#"{"prompt": [1, 2]}"#).is_err());
        assert!(Resumable::of("/v1/embeddings", b"{}").is_err());
    }
}
