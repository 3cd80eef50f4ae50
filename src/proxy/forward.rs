//! What engines serve: from the request to the engine's answer, or to the sentence that says why not.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Request, Response,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue},
    http::request::Parts,
    upgrade::OnUpgrade,
};
use tokio::time::{Instant, timeout};

use super::{
    Client, Limits,
    answer::Answer,
    body::{self, Asked},
    exchange::{Order, copy_headers, reach},
    hold::{Held, Pending},
    intake,
    record::Fingerprint,
    relay::Relay,
    reply::{Body, Fault},
    surface::{Form, Work},
    target::{self, Target},
    tunnel,
};
use crate::spec::SlotName;

/// How much earlier than the client's own deadline it is answered.
const BEFORE_DEADLINE: Duration = Duration::from_secs(5);

/// Serves one request. The slot is returned for the response's header once it is known.
pub(super) async fn forward(
    client: &Arc<Client>,
    mut request: Request<Incoming>,
    work: Work,
) -> (Option<SlotName>, Response<Body>) {
    let upgrade = tunnel::asked_for(&mut request);
    let (head, incoming) = request.into_parts();
    let found = async {
        let limit = client.shared.limits.max_body;
        let spool = (limit, client.shared.spool_dir.as_path());
        let asked = intake::read(&head, incoming, work.intake, spool).await?;
        let target = target::of_work(&client.shared.routes.load(), &asked, (&head.uri, work))?;
        Ok((asked, target))
    };
    match found.await {
        Ok((asked, target)) => {
            let what = (target, work.form);
            let (slot, response) = match upgrade {
                Some(theirs) => take_over(client, head, (what, asked), theirs).await,
                None => serve(client, head, what, asked).await,
            };
            (Some(slot), response)
        }
        Err(fault) => (None, Fault::response_in(&fault, work.form.dialect)),
    }
}

/// Passes one request on to the engine of the slot that its path names, whatever it is.
pub(super) async fn upstream(
    client: &Arc<Client>,
    mut request: Request<Incoming>,
) -> (Option<SlotName>, Response<Body>) {
    let upgrade = tunnel::asked_for(&mut request);
    let (head, incoming) = request.into_parts();
    let target = match target::of_path(&client.shared.routes.load(), &head.uri) {
        Ok(target) => target,
        Err(fault) => return (None, fault.response()),
    };
    let limit = client.shared.limits.max_body;
    let asked = match body::collect(&head.headers, incoming, limit).await {
        Ok(bytes) => Asked::unread(bytes, None),
        Err(fault) => return (Some(target.candidates.first), fault.response()),
    };
    let what = (target, Form::RAW);
    let (slot, response) = match upgrade {
        Some(theirs) => take_over(client, head, (what, asked), theirs).await,
        None => serve(client, head, what, asked).await,
    };
    (Some(slot), response)
}

/// Returns the slot that served, or the one that speaks for those that did not.
async fn serve(
    client: &Arc<Client>,
    head: Parts,
    (target, form): (Target, Form),
    asked: Asked,
) -> (SlotName, Response<Body>) {
    let limits = &client.shared.limits;
    let silence = silence(limits, &head.headers);
    // A stream can be told that it still waits; anything else must be answered before its client
    // gives up.
    let patience = if asked.is_stream { limits.hold } else { limits.hold.min(silence) };
    let deadline = Instant::now() + patience;
    let is_stream = asked.is_stream;
    let first = target.candidates.first.clone();
    let order = order(head, (target, form), asked, deadline);
    let mut pending: Pending = Box::pin(reach(Arc::clone(client), order));
    if !is_stream {
        return finish(pending.await, (first, form), client);
    }
    if let Ok(answer) = timeout(limits.quiet.min(silence), &mut pending).await {
        return finish(answer, (first, form), client);
    }
    let response = held(client, (first.clone(), form), silence, pending);
    (first, response)
}

/// Brings a connection to an engine that is to take it over.
async fn take_over(
    client: &Arc<Client>,
    head: Parts,
    (what, asked): ((Target, Form), Asked),
    theirs: OnUpgrade,
) -> (SlotName, Response<Body>) {
    let limits = &client.shared.limits;
    let patience = limits.hold.min(silence(limits, &head.headers));
    let (first, dialect) = (what.0.candidates.first.clone(), what.1.dialect);
    let order = order(head, what, asked, Instant::now() + patience);
    let opened = Box::pin(tunnel::open(client, &order, theirs)).await;
    opened.unwrap_or_else(|fault| (first, fault.response_in(dialect)))
}

fn order(head: Parts, (target, form): (Target, Form), asked: Asked, deadline: Instant) -> Order {
    Order {
        method: head.method,
        fingerprint: fingerprint(&asked, &target),
        candidates: target.candidates,
        path: target.path,
        headers: head.headers,
        asked,
        refusals: form.refusals,
        deadline,
    }
}

/// Requests without a body are told apart by what they ask for.
fn fingerprint(asked: &Asked, target: &Target) -> Fingerprint {
    if asked.payload.is_empty() {
        let told = format!("{} {}", target.candidates.first, target.path);
        return Fingerprint::of(told.as_bytes());
    }
    asked.payload.fingerprint()
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
    (first, form): (SlotName, Form),
    client: &Client,
) -> (SlotName, Response<Body>) {
    let answer = match answer {
        Ok(answer) => answer,
        Err(fault) => return (first, fault.response_in(form.dialect)),
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
        Response::new(Relay::new(answer, form, Arc::clone(&client.flushes)).boxed_unsync());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    (slot, response)
}

/// Commits to a stream whose engine is not there yet.
fn held(
    client: &Arc<Client>,
    what: (SlotName, Form),
    silence: Duration,
    pending: Pending,
) -> Response<Body> {
    let held = Held::new(Arc::clone(client), what, silence, pending);
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
