//! Requests for text, told as OpenAI's.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    super::reply::Fault,
    messages::{self, Message},
};

/// Options that engines take by the same name.
const SAME: [&str; 9] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
];

/// A request as Ollama's clients send it, for a chat or for a text. Unknown keys are passed by, as
/// Ollama does.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    pub(super) model: Option<String>,
    messages: Option<Vec<Message>>,
    tools: Option<Value>,
    prompt: Option<String>,
    suffix: Option<String>,
    system: Option<String>,
    template: Option<String>,
    images: Option<Vec<String>>,
    raw: Option<bool>,
    format: Option<Value>,
    options: Option<Map<String, Value>>,
    think: Option<Value>,
    stream: Option<bool>,
    pub(super) keep_alive: Option<Value>,
}

/// The same request as OpenAI's: the path and the body, but for the model.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) path: &'static str,
    pub(super) body: Map<String, Value>,
}

impl Asked {
    /// Tells whether the answer is to come line by line. It is where nothing is said.
    pub(super) fn is_stream(&self) -> bool {
        self.stream.unwrap_or(true)
    }

    /// Tells whether the model is to be let go of after the answer: `keep_alive` is 0 in any unit.
    pub(super) fn is_last(&self) -> bool {
        is_zero(self.keep_alive.as_ref())
    }

    /// Tells whether a chat has nothing to answer: it is to load the model.
    pub(super) fn is_empty_chat(&self) -> bool {
        self.messages.as_ref().is_none_or(Vec::is_empty)
    }

    /// Tells whether there is no prompt: the model is to be loaded.
    pub(super) fn is_empty_prompt(&self) -> bool {
        let is_empty = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
        is_empty(&self.prompt)
            && is_empty(&self.suffix)
            && self.images.as_ref().is_none_or(Vec::is_empty)
    }

    /// Tells a chat.
    pub(super) fn chat(mut self) -> Result<Told, Fault> {
        let mut body = self.common()?;
        let messages = messages::told(self.messages.unwrap_or_default())?;
        body.insert("messages".to_owned(), messages.into());
        let has_tools = |tools: &Value| tools.as_array().is_some_and(|tools| !tools.is_empty());
        if let Some(tools) = self.tools.filter(has_tools) {
            body.insert("tools".to_owned(), tools);
        }
        Ok(Told { path: "/v1/chat/completions", body })
    }

    /// Tells a text: a chat of one turn, or what is to be continued as it stands.
    pub(super) fn generate(mut self) -> Result<Told, Fault> {
        let is_there = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        for (key, text) in [("suffix", &self.suffix), ("template", &self.template)] {
            if is_there(text) {
                let message = format!(
                    "`{key}` is not taken; send the whole prompt as the model wants it, with `raw`"
                );
                return Err(Fault::bad_request(Some(key), "unsupported_parameter", message));
            }
        }
        let mut body = self.common()?;
        let prompt = self.prompt.unwrap_or_default();
        let images = self.images.unwrap_or_default();
        if self.raw == Some(true) {
            if !images.is_empty() {
                let message = "images and `raw` do not go together".to_owned();
                return Err(Fault::bad_request(Some("images"), "unsupported_parameter", message));
            }
            body.insert("prompt".to_owned(), prompt.into());
            return Ok(Told { path: "/v1/completions", body });
        }
        let system = self.system.filter(|text| !text.is_empty());
        let mut messages: Vec<Value> =
            system.map(|text| json!({"role": "system", "content": text})).into_iter().collect();
        let content = messages::with_images(prompt, images)?;
        messages.push(json!({"role": "user", "content": content}));
        body.insert("messages".to_owned(), messages.into());
        Ok(Told { path: "/v1/chat/completions", body })
    }

    /// Tells what chats and texts have in common.
    fn common(&mut self) -> Result<Map<String, Value>, Fault> {
        let mut body = Map::new();
        body.insert("stream".to_owned(), self.is_stream().into());
        if self.is_stream() {
            body.insert("stream_options".to_owned(), json!({"include_usage": true}));
        }
        options(self.options.take().unwrap_or_default(), &mut body);
        if let Some(format) = response_format(self.format.take())? {
            body.insert("response_format".to_owned(), format);
        }
        match self.think.take() {
            Some(Value::Bool(thinks)) => {
                let template = json!({"enable_thinking": thinks});
                body.insert("chat_template_kwargs".to_owned(), template);
            }
            Some(Value::String(effort)) => {
                body.insert("reasoning_effort".to_owned(), effort.into());
            }
            Some(_) | None => {}
        }
        Ok(body)
    }
}

/// Tells options of sampling. Those that are about how a model is loaded are the profile's to say.
fn options(mut options: Map<String, Value>, body: &mut Map<String, Value>) {
    // Below zero: until the model ends by itself.
    if let Some(most) = options.get("num_predict").and_then(Value::as_i64).filter(|most| *most >= 0)
    {
        body.insert("max_tokens".to_owned(), most.into());
    }
    for name in SAME {
        if let Some(value) = options.remove(name).filter(|value| !value.is_null()) {
            body.insert(name.to_owned(), value);
        }
    }
}

fn response_format(format: Option<Value>) -> Result<Option<Value>, Fault> {
    match format {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text == "json" => Ok(Some(json!({"type": "json_object"}))),
        Some(Value::Object(schema)) => Ok(Some(json!({
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": true, "schema": schema},
        }))),
        Some(_) => {
            let message = "`format` is \"json\" or a JSON schema".to_owned();
            Err(Fault::bad_request(Some("format"), "bad_format", message))
        }
    }
}

/// Tells whether a time is none: 0, "0", "0s", "0m".
pub(super) fn is_zero(time: Option<&Value>) -> bool {
    match time {
        Some(Value::Number(number)) => number.as_f64() == Some(0.0),
        Some(Value::String(text)) => {
            let mut digits = text.bytes().filter(u8::is_ascii_digit).peekable();
            digits.peek().is_some() && digits.all(|digit| digit == b'0')
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: Value) -> Asked {
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn a_chat_is_told_with_its_options_format_and_tools() {
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        let told = asked(json!({
            "model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": tools,
            "format": {"type": "object"}, "think": false, "keep_alive": "5m", "stream": false,
            "options": {"num_predict": 7, "temperature": 0.5, "top_k": 3, "stop": ["x"], "seed": 1,
                "num_ctx": 8192, "num_gpu": 1, "mirostat": 2, "min_p": null},
        }));
        insta::assert_snapshot!(Value::Object(told.chat().unwrap().body), @r#"{"stream":false,"max_tokens":7,"temperature":0.5,"top_k":3,"seed":1,"stop":["x"],"response_format":{"type":"json_schema","json_schema":{"name":"answer","strict":true,"schema":{"type":"object"}}},"chat_template_kwargs":{"enable_thinking":false},"messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function","function":{"name":"f"}}]}"#);
    }

    #[test]
    fn a_prompt_is_a_chat_of_one_turn_or_raw() {
        let told = asked(json!({"prompt": "hi", "system": "be brief", "format": "json",
            "options": {"num_predict": -1}}));
        let told = told.generate().unwrap();
        assert_eq!(told.path, "/v1/chat/completions");
        insta::assert_snapshot!(Value::Object(told.body), @r#"{"stream":true,"stream_options":{"include_usage":true},"response_format":{"type":"json_object"},"messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hi"}]}"#);
        let raw = asked(json!({"prompt": "hi", "raw": true, "stream": false})).generate().unwrap();
        assert_eq!((raw.path, &raw.body["prompt"]), ("/v1/completions", &json!("hi")));
    }

    #[test]
    fn what_cannot_be_told_is_refused_and_named() {
        for (body, param) in [
            (json!({"prompt": "a", "suffix": "b"}), "suffix"),
            (json!({"prompt": "a", "template": "{{ .Prompt }}"}), "template"),
            (json!({"prompt": "a", "format": "yaml"}), "format"),
            (json!({"prompt": "a", "raw": true, "images": ["/9j/"]}), "images"),
        ] {
            let fault = asked(body).generate().unwrap_err();
            assert_eq!(fault.error().param.as_deref(), Some(param));
        }
    }

    #[test]
    fn keep_alive_is_zero_in_any_unit() {
        for zero in [json!(0), json!(0.0), json!("0"), json!("0s"), json!("-0h0m")] {
            assert!(is_zero(Some(&zero)), "{zero}");
        }
        for other in [json!(-1), json!(300), json!("5m"), json!("-1"), json!("10s"), json!("")] {
            assert!(!is_zero(Some(&other)), "{other}");
        }
        assert!(!is_zero(None));
    }
}
