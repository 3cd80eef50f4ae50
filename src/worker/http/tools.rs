//! The tools of a chat: which are shown to the model, and whether one has to be called.

use serde_json::{Map, Value as Json};

use super::{
    answer::Calls,
    fields::{Fields, wrong},
    refusal::Refusal,
};
use crate::worker::{
    engine::Engine,
    text::{CallStyle, Tool},
};

/// What a request says about tools.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// What the template is given, as it came.
    pub(super) shown: Vec<Json>,
    /// How the model writes calls; `None` if there are none.
    style: Option<CallStyle>,
    /// One of these has to be called.
    forced: Vec<Tool>,
}

/// What `tool_choice` says.
enum Choice<'a> {
    Auto,
    None,
    Required,
    Named(&'a str),
}

impl Tools {
    pub(super) fn read(fields: &Fields, engine: &Engine) -> Result<Self, Refusal> {
        let choice = choice(fields)?;
        let shown = fields.list("tools")?.map(<[Json]>::to_vec).unwrap_or_default();
        if matches!(choice, Choice::None) {
            return Ok(Self::default());
        }
        let read = |(at, tool): (usize, &Json)| {
            Tool::read(tool)
                .ok_or_else(|| Refusal::field(format!("tools[{at}]"), "is no function with a name"))
        };
        let tools = shown.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        let forced = match choice {
            Choice::Auto | Choice::None => Vec::new(),
            Choice::Required => tools,
            Choice::Named(name) => tools.into_iter().filter(|tool| tool.name == name).collect(),
        };
        let is_forced = matches!(choice, Choice::Required | Choice::Named(_));
        let style = CallStyle::of_template(engine.template.source());
        if is_forced && style.is_none() {
            return Err(Refusal::unsupported(
                "tool_choice",
                "asks for a call of a tool, the model's chat template knows no tools",
            ));
        }
        if is_forced && forced.is_empty() {
            return Err(Refusal::field(
                "tool_choice",
                "asks for a tool that `tools` does not have",
            ));
        }
        let style = style.filter(|_| !shown.is_empty());
        Ok(Self { shown, style, forced })
    }

    /// Gives what an answer that has to call a tool begins with, and the schema of the rest.
    pub(super) fn forced(&self) -> Option<(&'static str, Json)> {
        let style = self.style.filter(|_| !self.forced.is_empty())?;
        Some((style.opening(), style.schema(&self.forced)))
    }

    /// Gives how calls are looked for in the answer.
    pub(super) fn calls(&self) -> Calls {
        match self.style {
            None => Calls::None,
            Some(style) if self.forced.is_empty() => Calls::Sought(style),
            Some(style) => Calls::Forced(style.opened()),
        }
    }
}

fn choice(fields: &Fields) -> Result<Choice<'_>, Refusal> {
    const FORMS: &str = "`auto`, `none`, `required` or a function with its name";
    match fields.any("tool_choice") {
        None => Ok(Choice::Auto),
        Some(Json::String(word)) => match word.as_str() {
            "auto" => Ok(Choice::Auto),
            "none" => Ok(Choice::None),
            "required" => Ok(Choice::Required),
            other => Err(Refusal::field("tool_choice", format!("is `{other}`, expected {FORMS}"))),
        },
        Some(other) => {
            let name = other.pointer("/function/name").and_then(Json::as_str);
            name.map(Choice::Named).ok_or_else(|| wrong("tool_choice", FORMS, other))
        }
    }
}

/// Turns the arguments of former calls, which the API has as texts, into the objects that templates
/// expect.
pub(super) fn open_arguments(message: &mut Map<String, Json>) {
    let calls = message.get_mut("tool_calls").and_then(Json::as_array_mut);
    for call in calls.into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(opened) =
                arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
        {
            *arguments = opened;
        }
    }
}
