//! `POST /v1/…`: from the request to the engine's answer, or to the sentence that says why not.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Request, Response, Uri,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue},
};
use tokio::time::{Instant, timeout};

use super::{
    Client, Limits,
    answer::Answer,
    body::{self, Asked},
    exchange::{Order, copy_headers, reach},
    hold::{Held, Pending},
    listing,
    record::Fingerprint,
    relay::Relay,
    replicas::Candidates,
    reply::{Body, Fault},
};
use crate::spec::{SlotName, profile::Capability};

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
    client: &Arc<Client>,
    request: Request<Incoming>,
    capability: Capability,
) -> (Option<SlotName>, Response<Body>) {
    let (head, incoming) = request.into_parts();
    let asked = match body::read(&head.headers, incoming, client.shared.limits.max_body).await {
        Ok(asked) => asked,
        Err(fault) => return (None, fault.response()),
    };
    let candidates = match find(client, &asked, capability) {
        Ok(candidates) => candidates,
        Err(fault) => return (None, fault.response()),
    };
    let (slot, response) = serve(client, candidates, (head.uri, head.headers), asked).await;
    (Some(slot), response)
}

fn find(client: &Client, asked: &Asked, capability: Capability) -> Result<Candidates, Fault> {
    let table = client.shared.routes.load();
    let replicas =
        table.replicas(&asked.model).ok_or_else(|| listing::unknown(&table, &asked.model))?;
    let route = replicas.first;
    if !route.profile.offers(capability) {
        let message = format!(
            "slot `{}` is not offered for `{}`; `capabilities` in its profile says for what",
            route.slot,
            capability.as_str()
        );
        return Err(Fault::bad_request(Some("model"), "capability_not_offered", message));
    }
    Ok(Candidates::new(&replicas, &asked.bytes))
}

/// Returns the slot that served, or the one that speaks for those that did not.
async fn serve(
    client: &Arc<Client>,
    candidates: Candidates,
    (path, headers): (Uri, HeaderMap),
    asked: Asked,
) -> (SlotName, Response<Body>) {
    let limits = &client.shared.limits;
    let silence = silence(limits, &headers);
    // A stream can be told that it still waits; anything else must be answered before its client
    // gives up.
    let patience = if asked.is_stream { limits.hold } else { limits.hold.min(silence) };
    let deadline = Instant::now() + patience;
    // An absolute form names a host, which is not the engine's.
    let path = path.path_and_query().cloned().map_or(path, Uri::from);
    let fingerprint = Fingerprint::of(&asked.bytes);
    let first = candidates.first.clone();
    let order = Order { candidates, path, headers, bytes: asked.bytes, fingerprint, deadline };
    let mut pending: Pending = Box::pin(reach(Arc::clone(client), order));
    if !asked.is_stream {
        return finish(pending.await, first, client);
    }
    if let Ok(answer) = timeout(limits.quiet.min(silence), &mut pending).await {
        return finish(answer, first, client);
    }
    let response = held(client, &first, silence, pending);
    (first, response)
}

/// How long the client hears nothing at most: our limit, or a little less than what it says it
/// waits.
fn silence(limits: &Limits, headers: &HeaderMap) -> Duration {
    let theirs = headers
        .get("x-stainless-read-timeout")
        .and_then(|value| value.to_str().ok()?.parse::<f64>().ok())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .map(|theirs| theirs.saturating_sub(BEFORE_DEADLINE).max(Duration::from_secs(1)));
    theirs.map_or(limits.silence, |theirs| theirs.min(limits.silence))
}

fn finish(
    answer: Result<Answer, Fault>,
    first: SlotName,
    client: &Client,
) -> (SlotName, Response<Body>) {
    let answer = match answer {
        Ok(answer) => answer,
        Err(fault) => return (first, fault.response()),
    };
    let slot = answer.gate().slot().clone();
    let is_events = answer.is_events();
    let mut headers = HeaderMap::new();
    copy_headers(&answer.headers, &mut headers);
    if is_events {
        mark_stream(&mut headers);
    }
    let status = answer.status;
    let mut response =
        Response::new(Relay::new(answer, Arc::clone(&client.flushes)).boxed_unsync());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    (slot, response)
}

/// Commits to a stream whose engine is not there yet.
fn held(
    client: &Arc<Client>,
    slot: &SlotName,
    silence: Duration,
    pending: Pending,
) -> Response<Body> {
    let held = Held::new(Arc::clone(client), slot.clone(), silence, pending);
    let mut response = Response::new(held.boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    mark_stream(headers);
    response
}

/// Caches and proxies on the way must pass a stream on as it comes. Its length is open: an error may
/// have to follow.
fn mark_stream(headers: &mut HeaderMap) {
    headers.remove(CONTENT_LENGTH);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_own_deadline_shortens_its_wait() {
        let limits = Limits::new(1, Duration::from_mins(10));
        let after = |text: &'static str| {
            let value = HeaderValue::from_static(text);
            let headers = [(HeaderName::from_static("x-stainless-read-timeout"), value)];
            silence(&limits, &headers.into_iter().collect())
        };
        assert_eq!(silence(&limits, &HeaderMap::new()), Duration::from_secs(290));
        assert_eq!(after("600"), Duration::from_secs(290));
        assert_eq!(after("60.5"), Duration::from_millis(55_500));
        assert_eq!(after("2"), Duration::from_secs(1));
        for nonsense in ["", "-1", "NaN", "inf", "soon"] {
            assert_eq!(after(nonsense), Duration::from_secs(290), "{nonsense}");
        }
    }
}
