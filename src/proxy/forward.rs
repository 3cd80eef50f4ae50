//! `POST /v1/…`: from the request to the engine's answer, or to the sentence that says why not.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue},
};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout};

use super::{
    Shared,
    body::{self, Asked},
    exchange::{Answer, Order, is_hop_by_hop, reach},
    hold::{self, Pending},
    listing,
    relay::{self, Events},
    reply::{Body, Fault, full},
};
use crate::spec::{SlotName, profile::Capability};

/// The most of an engine's error that is read.
const ERROR_BYTES: usize = 64 << 10;
/// How much earlier than the client's own deadline it is answered.
const BEFORE_DEADLINE: Duration = Duration::from_secs(5);

/// Says which capability a path needs, if it is one that engines serve.
pub(super) fn capability(path: &str) -> Option<Capability> {
    match path {
        "/v1/chat/completions" => Some(Capability::Chat),
        "/v1/completions" => Some(Capability::Completion),
        "/v1/embeddings" => Some(Capability::Embed),
        _ => None,
    }
}

/// Serves one request. The slot is returned for the response's header once it is known.
pub(super) async fn forward(
    shared: &Shared,
    request: Request<Incoming>,
    capability: Capability,
) -> (Option<SlotName>, Response<Body>) {
    let (head, incoming) = request.into_parts();
    let asked = match body::read(&head.headers, incoming, shared.limits.max_body).await {
        Ok(asked) => asked,
        Err(fault) => return (None, fault.response()),
    };
    let slot = match find(shared, &asked, capability) {
        Ok(slot) => slot,
        Err(fault) => return (None, fault.response()),
    };
    let response = serve(shared, &slot, (head.uri, head.headers), asked).await;
    (Some(slot), response)
}

fn find(shared: &Shared, asked: &Asked, capability: Capability) -> Result<SlotName, Fault> {
    let table = shared.routes.load();
    let route = table.find(&asked.model).ok_or_else(|| listing::unknown(&table, &asked.model))?;
    if !route.profile.offers(capability) {
        let message = format!(
            "slot `{}` is not offered for `{}`; `capabilities` in its profile says for what",
            route.slot,
            capability.as_str()
        );
        return Err(Fault::bad_request(Some("model"), "capability_not_offered", message));
    }
    Ok(route.slot.clone())
}

async fn serve(
    shared: &Shared,
    slot: &SlotName,
    (path, headers): (Uri, HeaderMap),
    asked: Asked,
) -> Response<Body> {
    let deadline = Instant::now() + patience(shared, &headers);
    let order = Order { slot: slot.clone(), path, headers, bytes: asked.bytes, deadline };
    let mut pending: Pending = reach(shared.clone(), order).boxed();
    if !asked.is_stream {
        return finish(pending.await, slot).await;
    }
    if let Ok(answer) = timeout(shared.limits.quiet, &mut pending).await {
        return finish(answer, slot).await;
    }
    let frames = hold::frames(shared.clone(), slot.clone(), pending);
    let mut response = Response::new(boxed(frames));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    mark_stream(response.headers_mut());
    response
}

fn boxed<S>(frames: S) -> Body
where
    S: futures_util::Stream<Item = Result<hyper::body::Frame<Bytes>, super::reply::Aborted>>
        + Send
        + 'static,
{
    StreamBody::new(frames).boxed_unsync()
}

/// How long the request may wait: our limit, or a little less than what the client says it waits.
fn patience(shared: &Shared, headers: &HeaderMap) -> Duration {
    let theirs = headers
        .get("x-stainless-read-timeout")
        .and_then(|value| value.to_str().ok()?.parse::<f64>().ok())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .map(|theirs| theirs.saturating_sub(BEFORE_DEADLINE).max(Duration::from_secs(1)));
    theirs.map_or(shared.limits.hold, |theirs| theirs.min(shared.limits.hold))
}

async fn finish(answer: Result<Answer, Fault>, slot: &SlotName) -> Response<Body> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(fault) => return fault.response(),
    };
    if !answer.response.status().is_success() {
        return engine_error(answer, slot).await;
    }
    let is_events = answer
        .response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let events = if is_events { Events::UntilDone } else { Events::None };
    let (head, body) = relay::body(answer, events);
    let mut response = Response::new(body);
    *response.status_mut() = head.status();
    copy_headers(head.headers(), response.headers_mut());
    if is_events {
        mark_stream(response.headers_mut());
    }
    response
}

/// Caches and proxies on the way must pass a stream on as it comes.
fn mark_stream(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
}

/// Passes an engine's headers on, but for those about its connection, its name, its cookies and what
/// it would allow web pages.
fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        let is_ours = matches!(name.as_str(), "server" | "set-cookie" | "x-request-id")
            || name.as_str().starts_with("access-control-")
            || is_hop_by_hop(name, from);
        if !is_ours {
            to.append(name, value.clone());
        }
    }
}

/// Passes an engine's refusal on in the one form of ours.
async fn engine_error(answer: Answer, slot: &SlotName) -> Response<Body> {
    let Answer { response, connection, lease } = answer;
    let (head, incoming) = response.into_parts();
    let Ok(body) = Limited::new(incoming, ERROR_BYTES).collect().await else {
        return Fault::engine_died(slot, "broke off while it refused a request").response();
    };
    lease.gate().pool().keep(connection);
    let bytes = body.to_bytes();
    let body = normalised(head.status, &bytes);
    let mut response = Response::new(full(Bytes::from(body.to_string())));
    *response.status_mut() = head.status;
    copy_headers(&head.headers, response.headers_mut());
    response.headers_mut().remove(CONTENT_LENGTH);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Gives an engine's error all four keys, with `code` a text or null; the original goes along.
fn normalised(status: StatusCode, bytes: &Bytes) -> Value {
    let upstream: Value = serde_json::from_slice(bytes)
        .unwrap_or_else(|_| String::from_utf8_lossy(bytes).trim().into());
    let empty = Map::new();
    let error = upstream.get("error").unwrap_or(&upstream);
    let fields = error.as_object().unwrap_or(&empty);
    let text = |key: &str| fields.get(key).and_then(Value::as_str);
    let kind = text("type");
    // LangChain knows an overflow by OpenAI's code alone.
    let is_overflow = kind == Some("exceed_context_size_error");
    let code = if is_overflow { Some("context_length_exceeded") } else { text("code") };
    let fallback = if status.is_client_error() { "invalid_request_error" } else { "server_error" };
    let kind = if is_overflow { "invalid_request_error" } else { kind.unwrap_or(fallback) };
    let message = text("message").or_else(|| error.as_str()).unwrap_or("the engine refused");
    json!({"error": {
        "message": message,
        "type": kind,
        "param": fields.get("param").cloned().unwrap_or(Value::Null),
        "code": code,
        "upstream": upstream,
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engines_overflow_becomes_the_code_that_clients_know() {
        let llama = br#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_ctx":64}}"#;
        let error = normalised(StatusCode::BAD_REQUEST, &Bytes::from_static(llama));
        insta::assert_snapshot!(error, @r#"{"error":{"message":"too long","type":"invalid_request_error","param":null,"code":"context_length_exceeded","upstream":{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_ctx":64}}}}"#);
    }

    #[test]
    fn an_error_that_is_no_object_is_wrapped() {
        let error = normalised(StatusCode::BAD_GATEWAY, &Bytes::from_static(b"oops"));
        insta::assert_snapshot!(error, @r#"{"error":{"message":"oops","type":"server_error","param":null,"code":null,"upstream":"oops"}}"#);
    }
}
