//! What engines serve: from the request to the engine's answer, or to the sentence that says why not.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Request, Response,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT},
    http::request::Parts,
    upgrade::OnUpgrade,
};
use tokio::time::{Instant, timeout};

use super::{
    Client, Limits,
    access::Caller,
    answer::Answer,
    body::{self, Asked},
    exchange::{Order, copy_headers, reach},
    fall_through,
    flight::{Flight, Sender},
    hold::Held,
    intake,
    meters::Outcome,
    pending::Pending,
    record::Fingerprint,
    relay::Relay,
    reply::{Body, Fault},
    resume::{Resuming, is_followed},
    surface::{Form, Work},
    target::{self, Target},
    tunnel,
};
use crate::spec::{SlotName, requests::Lane};

/// How much earlier than the client's own deadline it is answered.
const BEFORE_DEADLINE: Duration = Duration::from_secs(5);

const LANE: HeaderName = HeaderName::from_static("x-slotd-lane");
pub(super) const COLD_START: HeaderName = HeaderName::from_static("x-slotd-cold-start-ms");
const QUEUE: HeaderName = HeaderName::from_static("x-slotd-queue-ms");

/// What is asked of whom, in which form, and where that is noted.
type What = (Target, Form, Arc<Flight>);

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
        let model = asked.model.as_deref().filter(|_| upgrade.is_none());
        if fall_through::takes(&client.shared, model, &head.headers)? {
            return Ok((asked, None));
        }
        let target = target::of_work(&client.shared.routes.load(), &asked, (&head.uri, work))?;
        Ok::<_, Fault>((asked, Some(target)))
    };
    match found.await {
        Ok((asked, None)) => fall_through::pass(client, head, work.form, asked).await,
        Ok((mut asked, Some(target))) => {
            if let Some(params) = target.profile.requests.params_of(asked.model.as_deref()) {
                asked.change(&params);
            }
            let form = work.form_of(&head.method);
            go(client, head, (target, form), (asked, upgrade)).await
        }
        Err(fault) => (None, fault.response_in(work.form.dialect)),
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
    go(client, head, (target, Form::RAW), (asked, upgrade)).await
}

/// Brings a request on its way: from here on it is in flight.
pub(super) async fn go(
    client: &Arc<Client>,
    head: Parts,
    (target, form): (Target, Form),
    (asked, upgrade): (Asked, Option<OnUpgrade>),
) -> (Option<SlotName>, Response<Body>) {
    let profile = Arc::clone(&target.profile);
    let wishes = &profile.requests;
    let sender = match sender(client, &head, wishes.lane) {
        Ok(sender) => sender,
        Err(fault) => return (None, fault.response_in(form.dialect)),
    };
    let first = &target.candidates.first;
    let flight = client.shared.flights.begin(first, wishes.on_client_gone, sender);
    let hold = wishes.queue_timeout.unwrap_or(client.shared.limits.hold);
    let what = (target, form, Arc::clone(&flight));
    let mut response = match upgrade {
        Some(theirs) => take_over(client, head, (what, hold), (asked, theirs)).await,
        None => serve(client, head, (what, hold), asked).await,
    };
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

/// Says who sent a request; `usual` is the lane of one that names none.
pub(super) fn sender(client: &Client, head: &Parts, usual: Lane) -> Result<Sender, Fault> {
    let caller = head.extensions.get::<Caller>();
    let lane = lane(&head.headers)?.unwrap_or(usual);
    Ok(Sender {
        peer: client.peer,
        agent: head.headers.get(USER_AGENT).cloned(),
        request_id: head.headers.get("x-request-id").cloned(),
        key: caller.map(|caller| Arc::clone(&caller.name)),
        lane,
        _turn: client.shared.access.turn(caller)?,
    })
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

async fn serve(
    client: &Arc<Client>,
    head: Parts,
    ((target, form, flight), hold): (What, Duration),
    asked: Asked,
) -> Response<Body> {
    let limits = &client.shared.limits;
    let silence = silence(limits, &head.headers);
    let is_stream = asked.is_stream;
    // Most streams can be told that they still wait; anything else must be answered before its
    // client gives up.
    let may_be_told = is_stream && form.dialect.has_signs_of_life();
    let patience = if may_be_told { hold } else { hold.min(silence) };
    let deadline = Instant::now() + patience;
    let first = target.candidates.first.clone();
    let order = order(head, (target, form, Arc::clone(&flight)), asked, deadline);
    let is_resumed = is_stream && order.candidates.resume && is_followed(order.path.path());
    let again = is_resumed.then(|| order.clone());
    let mut pending = Pending::new(Arc::clone(&flight), reach(Arc::clone(client), order));
    if !may_be_told {
        return finish(pending.await, client, &flight, (form, again));
    }
    if let Ok(answer) = timeout(limits.quiet.min(silence), &mut pending).await {
        return finish(answer, client, &flight, (form, again));
    }
    held(client, (first, form), silence, (pending, again))
}

/// Brings a connection to an engine that is to take it over.
async fn take_over(
    client: &Arc<Client>,
    head: Parts,
    (what, hold): (What, Duration),
    (asked, theirs): (Asked, OnUpgrade),
) -> Response<Body> {
    let patience = hold.min(silence(&client.shared.limits, &head.headers));
    let (dialect, flight) = (what.1.dialect, Arc::clone(&what.2));
    let order = order(head, what, asked, Instant::now() + patience);
    let opened = Box::pin(tunnel::open(client, &order, theirs)).await;
    opened.unwrap_or_else(|fault| {
        flight.end(Outcome::Refused);
        fault.response_in(dialect)
    })
}

fn order(head: Parts, (target, form, flight): What, asked: Asked, deadline: Instant) -> Order {
    Order {
        flight,
        method: head.method,
        fingerprint: fingerprint(&asked, &target),
        candidates: target.candidates,
        path: target.path,
        headers: head.headers,
        asked,
        refusals: form.refusals,
        is_look: form.is_look,
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
pub(super) fn silence(limits: &Limits, headers: &HeaderMap) -> Duration {
    let theirs = headers.get("x-stainless-read-timeout").and_then(|value| value.to_str().ok());
    silence_of(limits, theirs)
}

/// The same, by what a client says of how many seconds it waits.
pub(super) fn silence_of(limits: &Limits, theirs: Option<&str>) -> Duration {
    let theirs = theirs
        .and_then(|seconds| seconds.parse::<f64>().ok())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .map(|theirs| theirs.saturating_sub(BEFORE_DEADLINE).max(Duration::from_secs(1)));
    theirs.map_or(limits.silence, |theirs| theirs.min(limits.silence))
}

fn finish(
    answer: Result<Answer, Fault>,
    client: &Arc<Client>,
    flight: &Flight,
    (form, again): (Form, Option<Order>),
) -> Response<Body> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(fault) => {
            flight.end(Outcome::Refused);
            return fault.response_in(form.dialect);
        }
    };
    let is_events = answer.is_events();
    let mut headers = HeaderMap::new();
    copy_headers(&answer.headers, &mut headers);
    if is_events {
        mark_stream(&mut headers);
    }
    let status = answer.status;
    let mut response = Response::new(passed_on(answer, client, (form, again)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Makes the body that passes an answer on; a stream that is to survive its engine comes with what
/// was asked.
pub(super) fn passed_on(
    answer: Answer,
    client: &Arc<Client>,
    (form, again): (Form, Option<Order>),
) -> Body {
    match again.filter(|_| answer.is_events()) {
        Some(order) => Resuming::new(Arc::clone(client), order, answer).boxed_unsync(),
        None => Relay::new(answer, form, Arc::clone(&client.flushes)).boxed_unsync(),
    }
}

/// Commits to a stream whose engine is not there yet.
fn held(
    client: &Arc<Client>,
    what: (SlotName, Form),
    silence: Duration,
    pending: (Pending, Option<Order>),
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
pub(super) fn mark_stream(headers: &mut HeaderMap) {
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
