//! A stream whose client was told 200 before its engine died without a word: it goes on the general way,
//! which tries once more, and what comes of that is written here.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method,
    body::Body as _,
    header::{HeaderName, HeaderValue},
};
use tokio::time::Instant;

use super::{
    super::{
        Client,
        body::Asked,
        exchange::{Order, reach},
        flight::Flight,
        hold::Held,
        pending::Pending,
        record::Fingerprint,
        replicas::Candidates,
        surface::Form,
    },
    body::put_chunk,
    door::Door,
    head::Asking,
    passage::Served,
};

/// Makes the same request as the general way has it. `None` if its slot is gone.
pub(super) fn order(
    client: &Client,
    asking: &Asking,
    (flight, form): (&Arc<Flight>, Form),
    body: Bytes,
) -> Option<Order> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(&asking.forward).ok()?;
    let pairs = request.headers.iter().filter_map(|header| {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(header.value).ok()?))
    });
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(name, value);
    }
    let table = client.shared.routes.load();
    let replicas = table.replicas(flight.slot().as_str())?;
    let hold = replicas.first.profile.requests.queue_timeout.unwrap_or(client.shared.limits.hold);
    Some(Order {
        method: Method::POST,
        candidates: Candidates::new(&replicas, &body),
        path: request.path?.parse().ok()?,
        headers,
        fingerprint: Fingerprint::of(&body),
        asked: Asked { is_stream: true, ..Asked::unread(body, None) },
        refusals: form.refusals,
        is_look: form.is_look,
        deadline: Instant::now() + hold,
        flight: Arc::clone(flight),
    })
}

/// Writes what comes of the request on the general way.
pub(super) async fn go_on(
    door: &mut Door,
    client: &Arc<Client>,
    (order, form): (Order, Form),
    asking: &Asking,
) -> Served {
    client.has_tried.store(true, Ordering::Relaxed);
    let (slot, flight) = (order.flight.slot(), Arc::clone(&order.flight));
    let pending = Pending::new(flight, reach(Arc::clone(client), order));
    let held = Held::new(Arc::clone(client), (slot, form), asking.silence, (pending, None));
    let mut held = Box::pin(held);
    loop {
        let frame = poll_fn(|context| {
            if let Poll::Ready(frame) = Pin::new(&mut held).poll_frame(context) {
                return Poll::Ready(Some(frame));
            }
            door.poll_gone(context).map(|()| None)
        });
        let mut out = Vec::new();
        let is_whole = match frame.await {
            Some(Some(Ok(frame))) => {
                put_chunk(&mut out, &frame.into_data().unwrap_or_default());
                false
            }
            Some(None) => {
                out.extend_from_slice(b"0\r\n\r\n");
                true
            }
            Some(Some(Err(_))) | None => return Served::Over,
        };
        if door.send(&out).await.is_err() {
            return Served::Over;
        }
        // Whoever waits for its last words to be out learns it here.
        client.flushes.note();
        if is_whole {
            return Served::Kept;
        }
    }
}
