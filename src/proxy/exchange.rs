//! One exchange with an engine: the request rebuilt, sent once, and once more if its engine died
//! before it had said anything.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, Uri,
    body::Incoming,
    header::{self, HeaderName},
};
use tokio::time::{Instant, timeout_at};

use super::{
    Shared,
    body::rename_model,
    gate::{Gate, GateRefusal, Lease, Standing},
    reply::Fault,
    upstream::Connection,
};
use crate::spec::{SlotName, profile::EngineChoice};

/// How long to wait for the news of a death after a connection broke.
const NEWS_OF_DEATH: Duration = Duration::from_secs(2);
/// How often a request may find its slot gone again before it is turned away.
const ROUNDS: usize = 8;

/// A request as it will be sent, as often as it has to be.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) slot: SlotName,
    pub(super) path: Uri,
    pub(super) headers: HeaderMap,
    pub(super) bytes: Bytes,
    pub(super) deadline: Instant,
}

/// An engine's answer, its head read, its body to come.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) connection: Connection,
    pub(super) lease: Lease,
}

/// Brings a request to its slot's engine, waiting for the engine where it must.
///
/// 1. A ready engine: wait for a turn. A gate that closes meanwhile sends back to (2).
/// 2. No ready engine: ask the core, wait for its answer, look again.
/// 3. The engine dies before it has said anything: once more from the start.
pub(super) async fn reach(shared: Shared, order: Order) -> Result<Answer, Fault> {
    let waited = timeout_at(order.deadline, reach_in_time(&shared, &order)).await;
    waited.unwrap_or_else(|_| Err(Fault::still_loading(&order.slot)))
}

async fn reach_in_time(shared: &Shared, order: &Order) -> Result<Answer, Fault> {
    let mut may_try_again = true;
    for _ in 0..ROUNDS {
        let lease = turn(shared, order).await?;
        match send(&lease, order, shared).await {
            Ok((response, connection)) => return Ok(Answer { response, connection, lease }),
            Err(what) => {
                let has_died = has_died(lease.gate()).await;
                if !(has_died && may_try_again) {
                    return Err(Fault::engine_died(&order.slot, what));
                }
                may_try_again = false; // (3)
            }
        }
    }
    Err(Fault::still_loading(&order.slot))
}

/// Waits for a turn at the slot's engine, and for the engine itself.
async fn turn(shared: &Shared, order: &Order) -> Result<Lease, Fault> {
    for _ in 0..ROUNDS {
        let gate = open_gate(shared, &order.slot);
        if let Some(gate) = gate {
            let patience = order.deadline.saturating_duration_since(Instant::now());
            match gate.lease(patience).await {
                Ok(lease) => return Ok(lease), // (1)
                Err(GateRefusal::Closed) => {}
                Err(refusal) => return Err(Fault::of_gate(&order.slot, refusal)),
            }
        }
        let slip = shared.mailbox.ask(&order.slot).await; // (2)
        slip.await.map_err(|refusal| Fault::of_refusal(&order.slot, refusal))?;
    }
    Err(Fault::still_loading(&order.slot))
}

fn open_gate(shared: &Shared, slot: &SlotName) -> Option<Arc<Gate>> {
    shared.routes.load().slot(slot)?.gate.clone()
}

async fn send(
    lease: &Lease,
    order: &Order,
    shared: &Shared,
) -> Result<(Response<Incoming>, Connection), &'static str> {
    let request = rebuild(order, shared).ok_or("was sent a request that cannot be built")?;
    let mut standing = lease.gate().standing();
    tokio::select! {
        sent = lease.gate().pool().send(request) => sent.map_err(|_| "died before it answered"),
        _ = standing.wait_for(|standing| *standing != Standing::Alive) => {
            Err("was stopped before it answered")
        }
    }
}

/// Makes the request anew: nothing that belonged to the client's connection goes along, and no key
/// of the client's.
fn rebuild(order: &Order, shared: &Shared) -> Option<Request<Full<Bytes>>> {
    let bytes = engines_own_name(order, shared)
        .map_or_else(|| order.bytes.clone(), |name| rename_model(&order.bytes, &name));
    let mut request = Request::new(Full::new(bytes));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = order.path.path_and_query()?.as_str().parse().ok()?;
    let headers = request.headers_mut();
    for (name, value) in &order.headers {
        if !is_hop_by_hop(name, &order.headers)
            && ![header::HOST, header::CONTENT_LENGTH, header::AUTHORIZATION, header::COOKIE]
                .contains(name)
        {
            headers.append(name, value.clone());
        }
    }
    headers.insert(header::HOST, header::HeaderValue::from_static("engine"));
    Some(request)
}

/// A command may serve its model under a name that it insists on: the profile's `model`.
fn engines_own_name(order: &Order, shared: &Shared) -> Option<String> {
    let table = shared.routes.load();
    let profile = &table.slot(&order.slot)?.profile;
    match (&profile.engine, &profile.model) {
        (EngineChoice::Command(_), Some(model)) => Some(model.typed()),
        (_, _) => None,
    }
}

/// Tells whether a header is about one connection only.
/// Source: RFC 9110 section 7.6.1.
pub(super) fn is_hop_by_hop(name: &HeaderName, headers: &HeaderMap) -> bool {
    const NAMES: [&str; 8] = [
        "connection",
        "expect",
        "keep-alive",
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

/// Waits for the news that the engine has died; says whether it came.
async fn has_died(gate: &Gate) -> bool {
    let mut standing = gate.standing();
    let end = Instant::now() + NEWS_OF_DEATH;
    let died = standing.wait_for(|standing| *standing != Standing::Alive);
    matches!(timeout_at(end, died).await, Ok(Ok(standing)) if *standing == Standing::Dead)
}
