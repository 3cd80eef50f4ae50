//! Calls of tools in what a model writes, in the form that its chat template teaches it.

use serde_json::{Map, Value as Json, json};

/// How a model writes a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CallStyle {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`, one after the other (Hermes, Qwen).
    Tagged,
    /// A list of such objects after `[TOOL_CALLS]`, which is a token without a text (Mistral).
    List,
    /// One object with `parameters`, and nothing else (Llama 3).
    Bare,
}

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// JSON, as the API has it.
    pub(crate) arguments: String,
}

const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";
const LIST: &str = "[TOOL_CALLS]";

impl CallStyle {
    /// Reads the style off a template; `None` if it does not know tools.
    pub(crate) fn of_template(source: &str) -> Option<Self> {
        if !source.contains("tools") {
            return None;
        }
        if source.contains(BEGIN) {
            Some(Self::Tagged)
        } else if source.contains(LIST) {
            Some(Self::List)
        } else if source.contains("parameters") || source.contains("<|python_tag|>") {
            Some(Self::Bare)
        } else {
            None
        }
    }

    /// Tells whether an answer is a call as a whole, or has none.
    pub(super) fn is_call_alone(self) -> bool {
        match self {
            Self::Tagged => false,
            Self::List | Self::Bare => true,
        }
    }

    /// Gives where calls may begin in `text`, all that is not told yet: what stands before is content for certain.
    pub(crate) fn may_begin(self, text: &str) -> usize {
        match self {
            Self::Tagged => {
                let begun = (1..BEGIN.len())
                    .rev()
                    .find(|count| BEGIN.get(..*count).is_some_and(|begin| text.ends_with(begin)));
                let tail = text.len().saturating_sub(begun.unwrap_or(0));
                text.find(BEGIN).unwrap_or(tail)
            }
            Self::List | Self::Bare => {
                let first = text.trim_start().chars().next();
                if first.is_none_or(|first| matches!(first, '{' | '[')) { 0 } else { text.len() }
            }
        }
    }

    /// Divides a whole answer into what is said and what is called. What cannot be read as a call
    /// is said.
    pub(crate) fn divide(self, text: &str) -> (String, Vec<Call>) {
        let divided = match self {
            Self::Tagged => tagged(text),
            Self::List => {
                let list = text.trim().trim_start_matches(LIST);
                let calls = serde_json::from_str::<Vec<Json>>(list).ok();
                let calls = calls.and_then(|calls| calls.iter().map(call).collect());
                calls.map(|calls| (String::new(), calls))
            }
            Self::Bare => {
                let call = serde_json::from_str(text.trim()).ok().as_ref().and_then(call);
                call.map(|call| (String::new(), vec![call]))
            }
        };
        divided.filter(|(_, calls)| !calls.is_empty()).unwrap_or_else(|| (text.to_owned(), vec![]))
    }

    /// Gives what an answer that has to call a tool begins with: it is put into the prompt.
    pub(crate) fn opening(self) -> &'static str {
        match self {
            Self::Tagged => "<tool_call>\n",
            Self::List => LIST,
            Self::Bare => "",
        }
    }

    /// Gives how calls are looked for behind that begin.
    pub(crate) fn opened(self) -> Self {
        match self {
            Self::Tagged | Self::Bare => Self::Bare,
            Self::List => Self::List,
        }
    }

    /// Gives the schema of what follows that begin and calls one of `tools`.
    pub(crate) fn schema(self, tools: &[Tool]) -> Json {
        let arguments = if self == Self::Bare { "parameters" } else { "arguments" };
        let call = |(at, tool): (usize, &Tool)| {
            json!({
                "type": "object",
                "properties": {
                    "name": { "const": tool.name },
                    arguments: { "$ref": format!("#/$defs/{at}") },
                },
                "required": ["name", arguments],
                "additionalProperties": false,
            })
        };
        let any = tools.iter().enumerate().map(call).collect::<Vec<_>>();
        let parameters = tools.iter().enumerate().map(|(at, tool)| {
            let mut parameters = tool.parameters.clone();
            move_refs(&mut parameters, &format!("#/$defs/{at}"));
            (at.to_string(), parameters)
        });
        let definitions = Json::Object(parameters.collect());
        match self {
            Self::Tagged | Self::Bare => json!({ "anyOf": any, "$defs": definitions }),
            Self::List => json!({
                "type": "array",
                "items": { "anyOf": any },
                "minItems": 1,
                "maxItems": 1,
                "$defs": definitions,
            }),
        }
    }
}

/// A tool that may be called.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// A JSON schema.
    pub(crate) parameters: Json,
}

impl Tool {
    /// Reads an element of a request's `tools`.
    pub(crate) fn read(tool: &Json) -> Option<Self> {
        let function = tool.get("function")?;
        let any = || Json::Object(Map::from_iter([("type".to_owned(), json!("object"))]));
        Some(Self {
            name: function.get("name")?.as_str()?.to_owned(),
            parameters: function
                .get("parameters")
                .filter(|it| it.is_object())
                .map_or_else(any, Json::clone),
        })
    }
}

/// Lets each reference within a schema point below `root`, where it stands as a part of another.
fn move_refs(schema: &mut Json, root: &str) {
    match schema {
        Json::Object(keys) => {
            if let Some(Json::String(to)) = keys.get_mut("$ref")
                && let Some(path) = to.strip_prefix('#')
            {
                *to = format!("{root}{}", path.trim_end_matches('/'));
            }
            for part in keys.values_mut() {
                move_refs(part, root);
            }
        }
        Json::Array(parts) => {
            for part in parts {
                move_refs(part, root);
            }
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

fn tagged(text: &str) -> Option<(String, Vec<Call>)> {
    let mut parts = text.split(BEGIN);
    let mut said = parts.next()?.trim_end().to_owned();
    let mut calls = Vec::new();
    for part in parts {
        // The last one may lack its end: some models stop there.
        let (body, after) = part.split_once(END).unwrap_or((part, ""));
        calls.push(call(&serde_json::from_str(body.trim()).ok()?)?);
        said.push_str(after.trim());
    }
    Some((said, calls))
}

fn call(value: &Json) -> Option<Call> {
    let arguments = value.get("arguments").or_else(|| value.get("parameters"));
    Some(Call {
        name: value.get("name")?.as_str()?.to_owned(),
        arguments: match arguments? {
            Json::String(text) => text.clone(),
            other @ (Json::Null
            | Json::Bool(_)
            | Json::Number(_)
            | Json::Array(_)
            | Json::Object(_)) => other.to_string(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, arguments: &str) -> Call {
        Call { name: name.to_owned(), arguments: arguments.to_owned() }
    }

    #[test]
    fn calls_are_found_in_the_form_of_the_template() {
        let style = CallStyle::of_template("{% if tools %}<tool_call>{% endif %}").unwrap();
        let text = "Let me see.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": 1}}\n\
                    </tool_call>\n<tool_call>{\"name\": \"b\", \"arguments\": {}}";
        let calls = vec![call("a", "{\"x\":1}"), call("b", "{}")];
        assert_eq!(style.divide(text), ("Let me see.".to_owned(), calls));
        let list = CallStyle::of_template("tools [TOOL_CALLS]").unwrap();
        let text = " [{\"name\": \"a\", \"arguments\": {\"x\": 1}}]";
        assert_eq!(list.divide(text), (String::new(), vec![call("a", "{\"x\":1}")]));
        let bare = CallStyle::of_template("tools \"parameters\"").unwrap();
        let text = "{\"name\": \"a\", \"parameters\": {\"x\": 1}}";
        assert_eq!(bare.divide(text), (String::new(), vec![call("a", "{\"x\":1}")]));
        assert_eq!(CallStyle::of_template("{{ messages }}"), None);
    }

    #[test]
    fn what_is_no_call_is_said() {
        for (style, text) in [
            (CallStyle::Tagged, "a <tool_call>nothing</tool_call>"),
            (CallStyle::Tagged, "a < b"),
            (CallStyle::Bare, "{\"name\": 3}"),
            (CallStyle::List, "[1, 2]"),
        ] {
            assert_eq!(style.divide(text), (text.to_owned(), Vec::new()));
        }
    }

    #[test]
    fn what_may_become_a_call_is_held_back() {
        assert_eq!(CallStyle::Tagged.may_begin("well <tool"), 5);
        assert_eq!(CallStyle::Tagged.may_begin("a<tool_call>{"), 1);
        assert_eq!(CallStyle::Tagged.may_begin("a < b"), 5);
        assert_eq!(CallStyle::Bare.may_begin(" "), 0);
        assert_eq!(CallStyle::Bare.may_begin("{\"name"), 0);
        assert_eq!(CallStyle::Bare.may_begin("So"), 2);
    }
}
