//! Messages of a chat, told as OpenAI's.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::reply::Fault;

/// One message as Ollama's clients send it.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    role: String,
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    thinking: Option<String>,
    #[serde(default)]
    images: Option<Vec<String>>,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCall>>,
    /// Which tool this is the result of.
    #[serde(default, alias = "name")]
    tool_name: Option<String>,
    #[serde(default)]
    tool_call_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ToolCall {
    #[serde(default)]
    id: Option<String>,
    function: Function,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    arguments: Value,
}

/// Calls of the last turn that have no result yet: id and name.
type Open = Vec<(String, String)>;

/// Tells messages as OpenAI's.
///
/// Ollama's calls may have no ids, OpenAI's must: each gets one, and a result goes to the first open
/// call of its tool, or the first one if it names none.
pub(super) fn told(messages: Vec<Message>) -> Result<Vec<Value>, Fault> {
    let (mut open, mut count) = (Open::new(), 0_usize);
    messages.into_iter().map(|message| one(message, &mut open, &mut count)).collect()
}

fn one(message: Message, open: &mut Open, count: &mut usize) -> Result<Value, Fault> {
    let mut told = Map::new();
    let content = message.content.unwrap_or_default();
    told.insert("role".to_owned(), message.role.as_str().into());
    told.insert("content".to_owned(), with_images(content, message.images.unwrap_or_default())?);
    if let Some(thinking) = message.thinking.filter(|text| !text.is_empty()) {
        told.insert("reasoning_content".to_owned(), thinking.into());
    }
    if message.role == "tool" {
        let id = message.tool_call_id.unwrap_or_else(|| closed(open, message.tool_name.as_deref()));
        told.insert("tool_call_id".to_owned(), id.into());
        if let Some(name) = message.tool_name {
            told.insert("name".to_owned(), name.into());
        }
    }
    let calls = message.tool_calls.unwrap_or_default();
    if !calls.is_empty() {
        open.clear();
        let calls: Vec<Value> = calls
            .into_iter()
            .map(|call| {
                *count = count.saturating_add(1);
                let id = call.id.filter(|id| !id.is_empty());
                let id = id.unwrap_or_else(|| format!("call_{count}"));
                let name = call.function.name;
                open.push((id.clone(), name.clone()));
                let arguments = as_text(&call.function.arguments);
                json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
            })
            .collect();
        told.insert("tool_calls".to_owned(), calls.into());
    }
    Ok(Value::Object(told))
}

/// OpenAI's arguments are a text.
fn as_text(arguments: &Value) -> String {
    if arguments.is_null() {
        return "{}".to_owned();
    }
    arguments.as_str().map_or_else(|| arguments.to_string(), str::to_owned)
}

/// Takes the call that a result is of.
fn closed(open: &mut Open, tool: Option<&str>) -> String {
    let at = open.iter().position(|(_, name)| tool.is_none_or(|tool| tool == name));
    match at {
        Some(at) => open.remove(at).0,
        None => "call_0".to_owned(),
    }
}

/// Puts images into a message: parts in the place of a text.
pub(super) fn with_images(text: String, images: Vec<String>) -> Result<Value, Fault> {
    if images.is_empty() {
        return Ok(text.into());
    }
    let mut parts = Vec::new();
    if !text.is_empty() {
        parts.push(json!({"type": "text", "text": text}));
    }
    for image in images {
        let url = if image.starts_with("data:") {
            image
        } else {
            let Some(kind) = kind_of(&image) else {
                let message = "an image is base64 of PNG, JPEG, GIF or WebP";
                return Err(Fault::bad_request(Some("images"), "bad_image", message.to_owned()));
            };
            format!("data:{kind};base64,{image}")
        };
        parts.push(json!({"type": "image_url", "image_url": {"url": url}}));
    }
    Ok(parts.into())
}

/// Tells an image's kind by how its base64 begins.
fn kind_of(image: &str) -> Option<&'static str> {
    const BEGINNINGS: [(&str, &str); 4] = [
        ("iVBORw0KGgo", "image/png"),
        ("/9j/", "image/jpeg"),
        ("R0lGOD", "image/gif"),
        ("UklGR", "image/webp"),
    ];
    BEGINNINGS.into_iter().find(|(begins, _)| image.starts_with(begins)).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(messages: &Value) -> Value {
        told(serde_json::from_value(messages.clone()).unwrap()).unwrap().into()
    }

    #[test]
    fn results_go_to_the_calls_that_they_are_of() {
        let told = of(&json!([
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "thinking": "hm", "tool_calls": [
                {"function": {"name": "weather", "arguments": {"city": "Bonn"}}},
                {"function": {"name": "time"}},
                {"id": "mine", "function": {"name": "weather", "arguments": "{}"}}]},
            {"role": "tool", "tool_name": "time", "content": "noon"},
            {"role": "tool", "content": "rain"},
            {"role": "tool", "tool_name": "weather", "content": "sun"},
        ]));
        assert_eq!(told[0], json!({"role": "user", "content": "weather?"}));
        assert_eq!(told[1]["reasoning_content"], "hm");
        assert_eq!(
            told[1]["tool_calls"][0],
            json!({"id": "call_1", "type": "function",
                "function": {"name": "weather", "arguments": "{\"city\":\"Bonn\"}"}})
        );
        let ids: Vec<_> = (2..5).map(|at| told[at]["tool_call_id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["call_2", "call_1", "mine"]);
    }

    #[test]
    fn images_become_parts_of_the_message() {
        let told = of(&json!([{"role": "user", "content": "what?", "images": ["/9j/4AAQ"]}]));
        assert_eq!(
            told[0]["content"],
            json!([{"type": "text", "text": "what?"},
                {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/4AAQ"}}])
        );
        assert!(with_images(String::new(), vec!["QQ==".to_owned()]).is_err());
    }
}
