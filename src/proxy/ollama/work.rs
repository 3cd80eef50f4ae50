//! Work for an engine: the request told as OpenAI's, sent, and its answer told back.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, Uri,
    body::Incoming,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue},
    http::request::Parts,
};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{
    super::{
        Client,
        body::{self, Asked},
        dialect::Dialect,
        fall_through,
        forward::{self, COLD_START},
        payload::Payload,
        reply::{Body, Fault, full},
        surface::{self, Form, Work},
        target,
    },
    Asker,
    answer::Teller,
    embed, lines, listing,
    load::{self, Leaving},
    request,
};
use crate::spec::SlotName;

/// The most of an answer that is read at once to be told anew.
const LARGEST: usize = 64 << 20;

/// What is asked of an engine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// `/api/chat`.
    Chat,
    /// `/api/generate`.
    Generate,
    /// `/api/embed`: several texts.
    Embed,
    /// `/api/embeddings`: one text.
    Embeddings,
}

/// A slot, once it is known, and the answer.
pub(super) type Answered = (Option<SlotName>, Response<Body>);

/// Serves one request.
pub(super) async fn answer(asker: Asker<'_>, request: Request<Incoming>, kind: Kind) -> Answered {
    let began = Instant::now();
    let (head, incoming) = request.into_parts();
    let answered = async {
        body::check_encoding(&head.headers)?;
        let limit = asker.0.shared.limits.max_body;
        let bytes = body::collect(&head.headers, incoming, limit).await?;
        match kind {
            Kind::Chat | Kind::Generate => text(asker, head, (kind, &bytes), began).await,
            Kind::Embed | Kind::Embeddings => {
                embed::answer(asker.0, head, (kind, &bytes), began).await
            }
        }
    };
    answered.await.unwrap_or_else(|fault: Fault| (None, fault.response_in(Dialect::Ollama)))
}

async fn text(
    (client, clock): Asker<'_>,
    head: Parts,
    (kind, bytes): (Kind, &[u8]),
    began: Instant,
) -> Result<Answered, Fault> {
    let mut asked: request::Asked = listing::read(bytes)?;
    let name = asked.model.take().filter(|name| !name.is_empty());
    let (is_stream, is_last) = (asked.is_stream(), asked.is_last());
    let is_chat = kind == Kind::Chat;
    let is_empty = if is_chat { asked.is_empty_chat() } else { asked.is_empty_prompt() };
    if is_empty {
        return load::answer((client, clock), &head, (kind, name), is_last).await;
    }
    let told = if is_chat { asked.chat() } else { asked.generate() }?;
    let order = (told.path, told.body, name.clone());
    let (slot, response) = send(client, head, order, is_stream).await?;
    if !response.status().is_success() {
        return Ok((slot, response));
    }
    let leaving = slot.clone().filter(|_| is_last);
    let leaving = leaving.map(|slot| Leaving::new(&client.shared, slot));
    let name = name.or_else(|| slot.as_ref().map(ToString::to_string)).unwrap_or_default();
    let cold_start = cold_start(response.headers());
    let teller = Teller::new(kind, name, clock, (began, cold_start));
    let (mut head, body) = response.into_parts();
    head.headers.remove(CONTENT_LENGTH);
    let kind = head.headers.get(CONTENT_TYPE);
    let is_events = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let (kind, body) = if is_stream && is_events {
        let lines = lines::Lines::new(body, teller, Arc::clone(&client.flushes), leaving);
        (lines::CONTENT, lines.boxed_unsync())
    } else {
        let bytes = collect(body, slot.as_ref()).await?;
        let whole = teller.whole(&bytes).map_err(|_| unreadable(slot.as_ref()))?;
        let kind = if is_stream { lines::CONTENT } else { "application/json" };
        (kind, full(lines::line(&whole)))
    };
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok((slot, Response::from_parts(head, body)))
}

/// Sends a request that was told anew: a path, a body, and the name of its model.
pub(super) async fn send(
    client: &Arc<Client>,
    mut head: Parts,
    (path, mut told, name): (&'static str, Map<String, Value>, Option<String>),
    is_stream: bool,
) -> Result<Answered, Fault> {
    let work = work_of(path)?;
    let form = Form { dialect: Dialect::Ollama, ..work.form };
    let (asked, target) = {
        let table = client.shared.routes.load();
        let name = name.map(|name| match listing::find(&table, &name) {
            Some(name) => name.to_owned(),
            // Another server does not know the tag that Ollama's clients add.
            None if client.shared.fall_through.is_some() => listing::untagged(&name).to_owned(),
            None => name,
        });
        if let Some(name) = &name {
            told.insert("model".to_owned(), name.as_str().into());
        }
        let bytes = Bytes::from(Value::Object(told).to_string());
        let payload = Payload::bytes(bytes);
        let asked = Asked { payload, model: name, is_stream, model_at: None };
        head.method = Method::POST;
        head.uri = Uri::from_static(path);
        let falls = fall_through::takes(&client.shared, asked.model.as_deref(), &head.headers)?;
        let target =
            if falls { None } else { Some(target::of_work(&table, &asked, (&head.uri, work))?) };
        (asked, target)
    };
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(match target {
        Some(target) => forward::go(client, head, (target, form), (asked, None)).await,
        None => fall_through::pass(client, head, form, asked).await,
    })
}

/// Returns what the endpoint knows of a path.
pub(super) fn work_of(path: &str) -> Result<Work, Fault> {
    surface::work(path)
        .ok_or_else(|| Fault::not_found("path_not_served", format!("`{path}` is not served here")))
}

/// Reads an answer whole, before anything of it is told.
pub(super) async fn collect(body: Body, slot: Option<&SlotName>) -> Result<Bytes, Fault> {
    match Limited::new(body, LARGEST).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(_) => Err(match slot {
            Some(slot) => Fault::engine_died(slot, "broke off in mid-answer"),
            None => unreadable(None),
        }),
    }
}

/// Says that an engine's answer is none of OpenAI's.
pub(super) fn unreadable(slot: Option<&SlotName>) -> Fault {
    const WHAT: &str = "answered what is none of OpenAI's API";
    match slot {
        Some(slot) => Fault::engine_misbehaved(slot, WHAT),
        None => Fault::not_found("bad_engine_answer", format!("the engine {WHAT}")),
    }
}

/// Returns how long a request waited for its engine, as its answer says.
pub(super) fn cold_start(headers: &HeaderMap) -> Duration {
    let ms = headers.get(COLD_START).and_then(|value| value.to_str().ok()?.parse().ok());
    Duration::from_millis(ms.unwrap_or(0))
}
