//! The way of a request to its engine, where nothing is in it: one slot, ready, with a free seat, and
//! a body that goes along as it is.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    super::{
        Client,
        body::rename_model,
        depth,
        flight::{Flight, Sender},
        gate::Lease,
        record::Fingerprint,
        surface::Form,
    },
    head::Asking,
};
use crate::spec::requests::OnClientGone;

/// A request that has its seat.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) lease: Lease,
    pub(super) flight: Arc<Flight>,
    pub(super) form: Form,
    pub(super) is_stream: bool,
    /// The body, where it is another one than the client's.
    pub(super) body: Option<Bytes>,
}

#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
}

/// Finds the way of a request. `None` if there is anything to wait for, to choose, to change or to
/// refuse: nothing has happened then.
pub(super) fn find(client: &Client, asking: &mut Asking, body: &[u8]) -> Option<Way> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    depth::check(body).ok()?;
    let peek: Peek<'_> = serde_json::from_slice(body).ok()?;
    let is_stream = peek.stream.is_some_and(|stream| stream.get() == "true");
    let (shared, work) = (&client.shared, asking.work);
    let table = shared.routes.load();
    let replicas = table.replicas(&peek.model)?;
    let route = replicas.first;
    let wishes = &route.profile.requests;
    let is_plain = replicas.slots.len() == 1
        && !work.is_unknown_to(route.engine_word())
        && route.takes(work.capability)
        && wishes.params_of(Some(&peek.model)).is_none()
        && wishes.on_client_gone != OnClientGone::Drain
        && !(route.profile.resume && is_stream);
    let gate = route.gate.as_ref().filter(|_| is_plain)?;
    let renamed = match gate.model() {
        Some(name) => Some(rename_model(&Bytes::copy_from_slice(body), name)?),
        None => None,
    };
    let request = Fingerprint::of(body);
    if gate.is_guilty(request) {
        return None;
    }
    // The turn goes back by itself if there is no seat.
    let turn = shared.access.free_turn(asking.caller.as_ref()).ok()?;
    let lease = gate.try_lease(request)?;
    let sender = Sender {
        peer: client.peer,
        agent: asking.agent.take(),
        request_id: asking.request_id.take(),
        key: asking.caller.as_ref().map(|caller| Arc::clone(&caller.name)),
        lane: wishes.lane,
        _turn: turn,
    };
    let flight = shared.flights.begin(gate.slot(), wishes.on_client_gone, sender);
    flight.serve(gate.slot());
    Some(Way { lease, flight, form: work.form, is_stream, body: renamed })
}
