//! `POST /v1/…`: from the request to the engine's answer, or to the sentence that says why not.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Request, Response, Uri,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT},
};
use tokio::time::{Instant, timeout};

use super::{
    Client, Limits,
    answer::Answer,
    body::{self, Asked},
    exchange::{Order, copy_headers, reach},
    flight::{Flight, Sender},
    hold::Held,
    listing,
    meters::Outcome,
    pending::Pending,
    record::Fingerprint,
    relay::Relay,
    replicas::Candidates,
    reply::{Body, Fault},
    resume::Resuming,
};
use crate::spec::{
    SlotName,
    profile::Capability,
    requests::{Lane, Requests},
};

/// How much earlier than the client's own deadline it is answered.
const BEFORE_DEADLINE: Duration = Duration::from_secs(5);

const LANE: HeaderName = HeaderName::from_static("x-slotd-lane");
const COLD_START: HeaderName = HeaderName::from_static("x-slotd-cold-start-ms");
const QUEUE: HeaderName = HeaderName::from_static("x-slotd-queue-ms");

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
    let found = find(client, &asked, capability).and_then(|(candidates, wishes)| {
        let lane = lane(&head.headers)?.unwrap_or(wishes.lane);
        Ok((candidates, wishes, lane))
    });
    let (candidates, wishes, lane) = match found {
        Ok(found) => found,
        Err(fault) => return (None, fault.response()),
    };
    let sender = sender(client, &head.headers, lane);
    let flight = client.shared.flights.begin(&candidates.first, wishes.on_client_gone, sender);
    let patience = wishes.queue_timeout.unwrap_or(client.shared.limits.hold);
    let request = (head.uri, head.headers);
    let mut response = serve(client, (candidates, flight.clone(), patience), request, asked).await;
    flight.note_status(response.status());
    say_waits(&flight, response.headers_mut());
    (Some(flight.slot()), response)
}

/// Reads which lane a client asks for.
fn lane(headers: &HeaderMap) -> Result<Option<Lane>, Fault> {
    let Some(typed) = headers.get(LANE) else { return Ok(None) };
    let known = Lane::ALL.into_iter().find(|lane| typed == lane.as_str());
    known.map(Some).ok_or_else(|| {
        let message = "the header `x-slotd-lane` is `interactive` or `batch`".to_owned();
        Fault::bad_request(None, "unknown_lane", message)
    })
}

fn sender(client: &Client, headers: &HeaderMap, lane: Lane) -> Sender {
    Sender {
        peer: client.peer,
        agent: headers.get(USER_AGENT).cloned(),
        request_id: headers.get("x-request-id").cloned(),
        key: None,
        lane,
    }
}

/// Says how long the request has waited, where it has.
fn say_waits(flight: &Flight, headers: &mut HeaderMap) {
    let (cold_start, queue) = flight.waits();
    for (name, wait) in [(COLD_START, cold_start), (QUEUE, queue)] {
        if let Ok(ms @ 1..) = u64::try_from(wait.as_millis()) {
            headers.insert(name, HeaderValue::from(ms));
        }
    }
}

fn find(
    client: &Client,
    asked: &Asked,
    capability: Capability,
) -> Result<(Candidates, Requests), Fault> {
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
    Ok((Candidates::new(&replicas, &asked.bytes), route.profile.requests.clone()))
}

async fn serve(
    client: &Arc<Client>,
    (candidates, flight, hold): (Candidates, Arc<Flight>, Duration),
    (path, headers): (Uri, HeaderMap),
    asked: Asked,
) -> Response<Body> {
    let limits = &client.shared.limits;
    let silence = silence(limits, &headers);
    // A stream can be told that it still waits; anything else must be answered before its client
    // gives up.
    let patience = if asked.is_stream { hold } else { hold.min(silence) };
    let deadline = Instant::now() + patience;
    // An absolute form names a host, which is not the engine's.
    let path = path.path_and_query().cloned().map_or(path, Uri::from);
    let fingerprint = Fingerprint::of(&asked.bytes);
    let first = candidates.first.clone();
    let order = Order {
        candidates,
        path,
        headers,
        bytes: asked.bytes,
        fingerprint,
        deadline,
        flight: flight.clone(),
    };
    let again = (asked.is_stream && order.candidates.resume).then(|| order.clone());
    let reached = reach(Arc::clone(client), order);
    let mut pending = Pending::new(Arc::clone(&flight), reached);
    if !asked.is_stream {
        return finish(pending.await, client, &flight, again);
    }
    if let Ok(answer) = timeout(limits.quiet.min(silence), &mut pending).await {
        return finish(answer, client, &flight, again);
    }
    held(client, &first, silence, (pending, again))
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
    client: &Arc<Client>,
    flight: &Flight,
    again: Option<Order>,
) -> Response<Body> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(fault) => {
            flight.end(Outcome::Refused);
            return fault.response();
        }
    };
    let is_events = answer.is_events();
    let mut headers = HeaderMap::new();
    copy_headers(&answer.headers, &mut headers);
    if is_events {
        mark_stream(&mut headers);
    }
    let status = answer.status;
    let mut response = Response::new(passed_on(answer, client, again));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Makes the body that passes an answer on; a stream that is to survive its engine comes with what
/// was asked.
pub(super) fn passed_on(answer: Answer, client: &Arc<Client>, again: Option<Order>) -> Body {
    match again.filter(|_| answer.is_events()) {
        Some(order) => Resuming::new(Arc::clone(client), order, answer).boxed_unsync(),
        None => Relay::new(answer, Arc::clone(&client.flushes)).boxed_unsync(),
    }
}

/// Commits to a stream whose engine is not there yet.
fn held(
    client: &Arc<Client>,
    slot: &SlotName,
    silence: Duration,
    pending: (Pending, Option<Order>),
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
