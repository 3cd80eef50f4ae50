//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    response::Response,
};
use serde_json::{Map, Value as Json};

use super::{
    Served,
    answer::{Echo, Request},
    blocking,
    fields::{Fields, wrong},
    grammar,
    options::Choices,
    refusal::Refusal,
    shape::{Api, Envelope},
    tools::{self, Tools},
    writer,
};
use crate::worker::{engine::Engine, text::Vocabulary};

/// Answers a chat.
pub(super) async fn chat(
    State(served): State<Arc<Served>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let engine = writer(&served)?;
    let fields = Fields::parse(&body?)?;
    let mut choices = Choices::read(&fields)?;
    let alternatives = Choices::alternatives(&fields, "top_logprobs")?;
    choices.sampling.logprobs = match (fields.flag("logprobs")?, alternatives) {
        (true, alternatives) => Some(alternatives.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => return Err(Refusal::field("top_logprobs", "needs `logprobs`")),
    };
    let tools = Tools::read(&fields, &engine)?;
    let calls = tools.calls();
    let (opening, forced) = tools.forced().unzip();
    if forced.is_some() {
        // A stop string inside a call would cut it in half.
        choices.stops.clear();
    }
    let prompt = {
        let engine = Arc::clone(&engine);
        blocking(move || prompt(&fields, (&tools.shown, opening.unwrap_or_default()), &engine))
            .await??
    };
    let mut jobs = choices.jobs("messages", &prompt, engine.context)?;
    let forced = forced.map(|schema| ("tools", schema));
    let grammar = grammar(&engine, forced.or(choices.schema.take())).await?;
    for job in &mut jobs {
        job.grammar.clone_from(&grammar);
    }
    let request = Request {
        envelope: Envelope::new(Api::Chat, &served.model_name),
        answers_each: jobs.len(),
        jobs,
        echo: Echo::No,
        calls,
        delivery: choices.delivery,
        engine,
    };
    request.answer().await
}

fn prompt(
    fields: &Fields,
    (tools, opening): (&[Json], &str),
    engine: &Engine,
) -> Result<Vec<u32>, Refusal> {
    fields.needed("messages")?;
    let messages = fields.list("messages")?.unwrap_or_default();
    if messages.is_empty() {
        return Err(Refusal::field("messages", "is empty"));
    }
    check_last(messages)?;
    let mut messages = (0..)
        .zip(messages)
        .map(|(at, message)| read(at, message, &engine.vocabulary))
        .collect::<Result<Vec<_>, _>>()?;
    // An answer that has begun is continued where it stands. The answer is the rest alone; llama.cpp's server
    // repeats what was begun.
    let begun = match messages.last().and_then(|last| last.get("role")?.as_str()) {
        Some("assistant") => messages.pop(),
        _ => None,
    };
    let mut text = engine
        .template
        .render(&messages, &variables(fields, tools, &engine.vocabulary)?)
        .map_err(|fault| Refusal::field("messages", format!("cannot be used: {fault}")))?;
    if let Some(begun) = begun.as_ref().and_then(|begun| begun.get("content")?.as_str()) {
        text.push_str(begun);
    }
    text.push_str(opening);
    engine.vocabulary.encode(&text).map_err(Refusal::internal)
}

/// Calls that nobody answered cannot be continued: llama.cpp's server refuses them, too.
fn check_last(messages: &[Json]) -> Result<(), Refusal> {
    let Some((last, before)) = messages.split_last() else { return Ok(()) };
    let calls = last.get("tool_calls").and_then(Json::as_array);
    let is_answer = last.get("role").and_then(Json::as_str) == Some("assistant");
    if is_answer && calls.is_some_and(|calls| !calls.is_empty()) {
        let place = format!("messages[{}].tool_calls", before.len());
        return Err(Refusal::field(place, "cannot be continued, their results have to follow"));
    }
    Ok(())
}

/// Checks a message and makes its content plain text.
fn read(at: usize, message: &Json, vocabulary: &Vocabulary) -> Result<Json, Refusal> {
    let place = format!("messages[{at}]");
    let message = message.as_object().ok_or_else(|| wrong(&place, "an object", message))?;
    let role = message.get("role").unwrap_or(&Json::Null);
    if !role.is_string() {
        return Err(wrong(&format!("{place}.role"), "a string", role));
    }
    let place = format!("{place}.content");
    let content = match message.get("content") {
        None | Some(Json::Null) => String::new(),
        Some(Json::String(text)) => text.clone(),
        Some(Json::Array(parts)) => {
            let texts = parts.iter().map(|part| part_text(&place, part));
            texts.collect::<Result<Vec<_>, _>>()?.join("\n")
        }
        Some(other) => return Err(wrong(&place, "a string or a list of parts", other)),
    };
    let mut message = message.clone();
    message.insert("content".to_owned(), Json::String(content));
    // OpenAI's newer word for it; templates know the older one.
    if role == "developer" {
        message.insert("role".to_owned(), Json::String("system".to_owned()));
    }
    tools::open_arguments(&mut message);
    Ok(disarmed(&Json::Object(message), vocabulary))
}

/// Breaks the special tokens in all texts of a value, its keys included: a template may write any of
/// them into the prompt.
fn disarmed(value: &Json, vocabulary: &Vocabulary) -> Json {
    match value {
        Json::String(text) => Json::String(vocabulary.disarm(text)),
        Json::Array(list) => list.iter().map(|item| disarmed(item, vocabulary)).collect(),
        Json::Object(map) => map
            .iter()
            .map(|(key, item)| (vocabulary.disarm(key), disarmed(item, vocabulary)))
            .collect(),
        Json::Null | Json::Bool(_) | Json::Number(_) => value.clone(),
    }
}

fn part_text(place: &str, part: &Json) -> Result<String, Refusal> {
    match part.get("type").and_then(Json::as_str) {
        Some("text") => match part.get("text") {
            Some(Json::String(text)) => Ok(text.clone()),
            other => Err(wrong(&format!("{place}.text"), "a string", other.unwrap_or(&Json::Null))),
        },
        Some(kind) => Err(Refusal::unsupported(
            place,
            format!("has a part of type `{kind}`, this model reads `text` only"),
        )),
        None => Err(Refusal::field(place, "has a part without a type")),
    }
}

/// The variables that a request adds to the template's own.
fn variables(
    fields: &Fields,
    tools: &[Json],
    vocabulary: &Vocabulary,
) -> Result<Map<String, Json>, Refusal> {
    let given = fields.object("chat_template_kwargs")?.cloned().unwrap_or_default();
    let safe = |(name, value)| (name, disarmed(&value, vocabulary));
    let mut variables: Map<_, _> = given.into_iter().map(safe).collect();
    if !tools.is_empty() {
        let tools = tools.iter().map(|tool| disarmed(tool, vocabulary)).collect();
        variables.insert("tools".to_owned(), tools);
    }
    Ok(variables)
}
