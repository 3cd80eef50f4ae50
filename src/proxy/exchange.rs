//! One exchange with an engine: the request rebuilt, sent once, and once more if its engine died
//! before it had said anything.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    header::{self, HeaderName, HeaderValue},
};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Client, Shared,
    access::without_key,
    answer::Answer,
    body::Asked,
    flight::{Flight, Stage},
    gate::{Ending, Gate, GateRefusal, Lease},
    normalise,
    payload::{Payload, Sending},
    record::Fingerprint,
    replicas::Candidates,
    reply::Fault,
    surface::Refusals,
    upstream::SendFault,
};
use crate::spec::SlotName;

/// How long to wait for the news of a death after a connection broke.
const NEWS_OF_DEATH: Duration = Duration::from_secs(2);
/// How often a request may find its slot gone again before it is turned away.
const ROUNDS: usize = 8;
/// The most of an engine's refusal that is read, and how long that may take.
pub(super) const REFUSAL_BYTES: usize = 64 << 10;
pub(super) const REFUSAL_DEADLINE: Duration = Duration::from_secs(10);

/// A request as it will be sent, as often as it has to be.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) method: Method,
    /// The slots that may serve it.
    pub(super) candidates: Candidates,
    pub(super) path: Uri,
    pub(super) headers: HeaderMap,
    pub(super) asked: Asked,
    pub(super) fingerprint: Fingerprint,
    pub(super) refusals: Refusals,
    /// It loads no engine, and is no use of one.
    pub(super) is_look: bool,
    /// Until when the request may wait for an engine. The engine's own work has no deadline.
    pub(super) deadline: Instant,
    pub(super) flight: Arc<Flight>,
}

impl Order {
    /// Makes the same order with another body.
    pub(super) fn saying(&self, bytes: Bytes) -> Self {
        let asked = Asked { payload: Payload::bytes(bytes), model_at: None, ..self.asked.clone() };
        Self { asked, ..self.clone() }
    }

    /// Tells whether a slot other than this engine's could serve the request now.
    pub(super) fn has_another(&self, client: &Client, engine: &Gate) -> bool {
        self.candidates.has_another(&client.shared, engine)
    }
}

/// Brings a request to an engine, waiting for one where it must, and returns the engine's answer if
/// that is no refusal.
///
/// 1. A ready engine: wait for a turn. A gate that closes meanwhile sends back to (2).
/// 2. No ready engine: ask the core, wait for its answer, look again. A core that has not been told of
///    an engine's end yet would still grant it: that news goes first.
/// 3. The engine dies before it has said anything: once more from the start, which leads to another
///    slot of the route if one is ready. Where one is, so does an engine that is being stopped.
///
/// A request that is cancelled meanwhile leaves the queue, or its engine.
pub(super) async fn reach(client: Arc<Client>, order: Order) -> Result<Answer, Fault> {
    let flight = Arc::clone(&order.flight);
    tokio::select! {
        biased;
        () = flight.cancelled() => {
            Err(flight.end_cancelled())
        }
        answer = reach_engine(client, order) => answer,
    }
}

async fn reach_engine(client: Arc<Client>, order: Order) -> Result<Answer, Fault> {
    let shared = &client.shared;
    if shared.suspects.is_guilty(order.fingerprint) {
        // No engine is loaded only to be spared.
        return Err(Fault::poison(&order.candidates.first));
    }
    let mut may_try_again = !client.has_tried.swap(false, Ordering::Relaxed);
    loop {
        let mut lease = turn(shared, &order).await?;
        let slot = lease.gate().slot().clone();
        order.flight.serve(&slot);
        let fault = match send(&lease, &order).await {
            Ok(answer) => {
                let answer = Answer::new(answer, lease, Arc::clone(&order.flight));
                return accepted(answer, (&order, &slot)).await;
            }
            Err(fault) => fault,
        };
        let what = match fault {
            SendFault::Garbled(_) => {
                lease.note_failure();
                return Err(Fault::engine_misbehaved(&slot, "answered what is no HTTP"));
            }
            SendFault::Cut => "was stopped before it answered",
            SendFault::Gone => "died before it answered",
        };
        lease.note_break();
        let goes_on = match fault {
            SendFault::Gone => has_died(lease.gate()).await,
            SendFault::Cut => order.candidates.has_another(shared, lease.gate()),
            SendFault::Garbled(_) => false,
        };
        let is_wanted = !order.flight.is_abandoned() && Instant::now() < order.deadline;
        if !(goes_on && may_try_again && is_wanted) {
            return Err(Fault::engine_died(&slot, what));
        }
        may_try_again = false; // (3)
    }
}

/// Waits for a turn at an engine, and for the engine itself.
pub(super) async fn turn(shared: &Shared, order: &Order) -> Result<Lease, Fault> {
    let candidates = &order.candidates;
    for _ in 0..ROUNDS {
        if let Some(gate) = candidates.choose(shared) {
            if !gate.has_seat() {
                candidates.spill(shared).await;
            }
            let patience = order.deadline.saturating_duration_since(Instant::now());
            let (began, lane) = (Instant::now(), order.flight.sender.lane);
            order.flight.enter(Stage::Queued);
            let leased = gate.lease(order.fingerprint, (lane, patience)).await;
            order.flight.add_queue(began.elapsed());
            match leased {
                Ok(lease) if lease.gate().is_guilty(order.fingerprint) => {
                    return Err(Fault::poison(gate.slot()));
                }
                Ok(mut lease) => {
                    if order.is_look {
                        lease.only_look();
                    }
                    return Ok(lease); // (1)
                }
                Err(GateRefusal::Closed) if candidates.has_another(shared, &gate) => continue,
                Err(GateRefusal::Closed) => {}
                Err(refusal) => return Err(Fault::of_gate(&gate, refusal)),
            }
        }
        if order.is_look {
            return Err(Fault::not_loaded(&candidates.first));
        }
        let began = Instant::now();
        order.flight.enter(Stage::Loading);
        let mut asked = pin!(async {
            candidates.judged(shared).await;
            candidates.ask(shared).await
        });
        let granted = timeout_at(order.deadline, &mut asked).await;
        order.flight.add_cold_start(began.elapsed());
        match granted {
            Ok(Ok(())) => {} // (2)
            Ok(Err((slot, refusal))) => {
                return Err(Fault::of_refusal(&slot, refusal, eta(shared, &slot)));
            }
            // While the core still holds the request: what it waits for is told as it is.
            Err(_) => return Err(in_vain(shared, &candidates.first)),
        }
    }
    Err(in_vain(shared, &candidates.first))
}

/// Says what a request has waited for in vain.
pub(super) fn in_vain(shared: &Shared, slot: &SlotName) -> Fault {
    let wait = shared.routes.load().slot(slot).and_then(|route| route.wait.clone());
    match wait {
        Some(wait) => Fault::no_memory_in_time(slot, &wait.sentence()),
        None => Fault::still_loading(slot, eta(shared, slot)),
    }
}

/// How long the slot should still take to be ready.
pub(super) fn eta(shared: &Shared, slot: &SlotName) -> Option<Duration> {
    shared.routes.load().slot(slot)?.eta(Instant::now())
}

async fn send(
    lease: &Lease,
    order: &Order,
) -> Result<(hyper::Response<hyper::body::Incoming>, super::upstream::Line), SendFault> {
    let payload = match lease.gate().model() {
        Some(name) => order.asked.renamed(name),
        None => order.asked.payload.clone(),
    };
    lease.gate().send(|| rebuild(order, payload.send())).await
}

/// Makes the request anew: nothing that belonged to the client's connection goes along, no key of
/// the client's, and nothing that says where it came from. The answer must come uncompressed: its end
/// is read.
pub(super) fn rebuild(order: &Order, body: Sending) -> Request<Sending> {
    let mut request = Request::new(body);
    *request.method_mut() = order.method.clone();
    *request.uri_mut() = order.path.clone();
    keep_headers(&order.headers, request.headers_mut());
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
    request
}

/// Takes over those headers of a client's request that may go further.
pub(super) fn keep_headers(from: &HeaderMap, to: &mut HeaderMap) {
    const KEPT_BACK: [HeaderName; 11] = [
        HeaderName::from_static("api-key"),
        HeaderName::from_static("x-api-key"),
        header::ACCEPT_ENCODING,
        header::AUTHORIZATION,
        header::CONTENT_LENGTH,
        header::COOKIE,
        header::FORWARDED,
        header::HOST,
        header::ORIGIN,
        header::PROXY_AUTHORIZATION,
        header::REFERER,
    ];
    to.reserve(from.len());
    for (name, value) in from {
        let is_kept_back = KEPT_BACK.contains(name)
            || name.as_str().starts_with("x-forwarded-")
            || is_hop_by_hop(name, from);
        if is_kept_back {
            continue;
        }
        if name == header::SEC_WEBSOCKET_PROTOCOL {
            to.extend(without_key(value).map(|kept| (name.clone(), kept)));
        } else {
            to.append(name, value.clone());
        }
    }
}

/// Lets an answer through; reads a refusal and gives it the form that clients know.
async fn accepted(mut answer: Answer, (order, slot): (&Order, &SlotName)) -> Result<Answer, Fault> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    let (status, mut headers) = (answer.status, HeaderMap::new());
    if status.is_server_error() && !says_little(status) {
        answer.note_failure();
    }
    if order.refusals == Refusals::AsTheyAre {
        return Ok(answer);
    }
    copy_headers(&answer.headers, &mut headers);
    match timeout(REFUSAL_DEADLINE, answer.read(REFUSAL_BYTES)).await {
        Ok(Some(body)) => {
            Err(Fault::of_engine(status, headers, normalise::error_object(status, &body)))
        }
        Ok(None) | Err(_) => {
            Err(Fault::engine_died(slot, "broke off while it refused the request"))
        }
    }
}

/// What an engine cannot do at all, or not yet, says nothing of what it can.
pub(super) fn says_little(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::SERVICE_UNAVAILABLE)
}

/// Passes an engine's headers on, but for those about its connection, its name, its cookies and what
/// it would allow web pages.
pub(super) fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    to.reserve(from.len());
    for (name, value) in from {
        let is_ours = matches!(name.as_str(), "server" | "set-cookie" | "x-request-id")
            || name.as_str().starts_with("access-control-")
            || is_hop_by_hop(name, from);
        if !is_ours {
            to.append(name, value.clone());
        }
    }
}

/// Tells whether a header is about one connection only.
/// Source: RFC 9110 section 7.6.1.
fn is_hop_by_hop(name: &HeaderName, headers: &HeaderMap) -> bool {
    const NAMES: [&str; 9] = [
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    NAMES.contains(&name.as_str())
        || headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|named| named.trim().eq_ignore_ascii_case(name.as_str()))
}

/// Waits for the news that the engine has died, and what of; says whether it came. One that is being stopped
/// counts as well: the core knows what comes next.
pub(super) async fn has_died(gate: &Gate) -> bool {
    drop(timeout(NEWS_OF_DEATH, gate.judged().cancelled()).await);
    gate.ending() != Some(Ending::Cut) && gate.is_closed()
}
