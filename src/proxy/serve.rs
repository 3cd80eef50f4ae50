//! The listener: connections accepted, requests told apart, connections ended in order.

use std::{
    convert::Infallible,
    future::poll_fn,
    hash::{BuildHasher, RandomState},
    io,
    pin::pin,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue},
    rt::{Read, Write},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::resource::{Resource, getrlimit};
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::debug;

use super::{
    ByteRelay, Client, Shared, access, body, bytes,
    cores::Lanes,
    flush::{Counted, Hangs, Rewound},
    forward, keepalive,
    listeners::{Api, Listeners},
    listing, metrics, ollama,
    reply::{Body, Fault, insert, text},
    shortage::Shortage,
    surface::{self, ENDPOINTS, UPSTREAM, Work},
    target::decoded,
    throttle, trace,
};
use crate::spec::{SlotName, control::is_control};

/// How long a client may take for a request's head, and a connection may idle.
pub(super) const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// How long the listener rests when the system has no more files or memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Files that connections never take.
const RESERVED_FILES: usize = 64;
/// So many connections may be open however few files there are.
const MIN_CONNECTIONS: usize = 8;
/// How long open connections are given when the listener ends.
const END_DEADLINE: Duration = Duration::from_secs(2);
/// How long the first request of a connection is waited for when no more connections are taken.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// The most of a request's head. hyper takes 100 headers at most by itself.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// What stands before a model's id.
const ONE_MODEL: &str = "/v1/models/";

/// Whether the daemon takes requests: what `/readyz` answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// The profiles have not been read yet.
    Starting,
    /// It serves.
    Serving,
    /// Another daemon is to go on with the same socket: no more connections are taken, open ones end
    /// with the request they are at.
    Leaving,
    /// It is stopping: those who wait are answered, readiness says no.
    Stopping,
    /// It ends: the listener closes.
    Ended,
}

impl Phase {
    /// Tells whether no more connections are taken.
    fn is_closed(self) -> bool {
        matches!(self, Self::Leaving | Self::Ended)
    }
}

/// Serves connections until `phase` says [`Phase::Leaving`] or [`Phase::Ended`], and returns when
/// open ones have ended; after `Ended` they are given a moment.
pub async fn serve(listeners: Listeners, shared: Shared, mut phase: watch::Receiver<Phase>) {
    let mut connections = JoinSet::new();
    let watcher = phase.clone();
    let most = most_connections();
    let (mut shortage, lanes) = (Shortage::default(), shared.lanes.clone());
    let mut clock = JoinSet::new();
    if let Some(limit) = shared.limits.total {
        let flights = Arc::clone(&shared.flights);
        clock.spawn(async move { flights.end_late(limit).await });
    }
    loop {
        let is_full = connections.len() >= most;
        let accepted = tokio::select! {
            accepted = listeners.accept(), if !is_full => accepted,
            Some(_) = connections.join_next(), if is_full => continue,
            _ = phase.wait_for(|phase| phase.is_closed()) => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer, api)) => {
                let (shared, flushes) = (shared.clone(), Arc::default());
                let local = stream.local_addr().ok().map(|address| address.ip());
                let tunnel = Mutex::default();
                let has_tried = AtomicBool::new(false);
                let client = Client { shared, flushes, peer, local, api, has_tried, tunnel };
                let client = Arc::new(client);
                let stream = match moved(stream, &client.shared.lanes) {
                    Ok(stream) => stream,
                    Err(error) => {
                        debug!(%error, "connection lost on its way to its thread");
                        continue;
                    }
                };
                let task = connection(stream, client, watcher.clone());
                lanes.spawn(&mut connections, task);
                if connections.len() >= most {
                    shortage.tell(&format!("{most} are open, the others wait"));
                }
            }
            Err(error) => {
                shortage.tell(&error.to_string());
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listeners);
    end(connections, phase).await;
    clock.shutdown().await;
}

/// Waits until open connections have ended; once the phase is [`Phase::Ended`], not for long.
async fn end(mut connections: JoinSet<()>, mut phase: watch::Receiver<Phase>) {
    tokio::select! {
        () = all_ended(&mut connections) => return,
        _ = phase.wait_for(|phase| *phase == Phase::Ended) => {}
    }
    if timeout(END_DEADLINE, all_ended(&mut connections)).await.is_err() {
        connections.shutdown().await;
    }
}

async fn all_ended(connections: &mut JoinSet<()>) {
    while connections.join_next().await.is_some() {}
}

/// How many connections may be open at once: each may need another one to an engine, and the control
/// API and the engines' starts have files of their own.
fn most_connections() -> usize {
    let Ok((files, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return MIN_CONNECTIONS };
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    (files.saturating_sub(RESERVED_FILES) / 2).max(MIN_CONNECTIONS)
}

/// A connection on its way to the thread that serves it.
enum Moved {
    Here(TcpStream),
    Elsewhere(std::net::TcpStream),
}

fn moved(stream: TcpStream, lanes: &Lanes) -> io::Result<Moved> {
    Ok(if lanes.are_elsewhere() {
        Moved::Elsewhere(stream.into_std()?)
    } else {
        Moved::Here(stream)
    })
}

/// Takes a connection in on the thread that serves it.
fn arrived(stream: Moved) -> io::Result<TcpStream> {
    let stream = match stream {
        Moved::Here(stream) => stream,
        Moved::Elsewhere(stream) => TcpStream::from_std(stream)?,
    };
    // Without it each streamed token may wait 40 ms for the client's acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "connection without TCP_NODELAY");
    }
    if let Err(error) = keepalive::set(&stream) {
        debug!(%error, "connection without keepalive");
    }
    Ok(stream)
}

async fn connection(stream: Moved, client: Arc<Client>, mut phase: watch::Receiver<Phase>) {
    let stream = match arrived(stream) {
        Ok(stream) => stream,
        Err(error) => {
            debug!(%error, "connection lost on its way to its thread");
            return;
        }
    };
    let Some(certificate) = &client.shared.access.certificate else {
        return Box::pin(converse(stream, client, phase)).await;
    };
    let certificate = certificate.load_full();
    let shaken = tokio::select! {
        shaken = timeout(HEAD_DEADLINE, certificate.accept(stream)) => shaken,
        _ = phase.wait_for(|phase| *phase == Phase::Ended) => return,
    };
    match shaken {
        Ok(Ok(stream)) => Box::pin(speak(TokioIo::new(stream), client, phase)).await,
        Ok(Err(error)) => debug!(%error, "handshake failed"),
        Err(_) => debug!("handshake took too long"),
    }
}

/// Speaks as bytes for as long as that is surely enough, then HTTP.
async fn converse(stream: TcpStream, client: Arc<Client>, phase: watch::Receiver<Phase>) {
    let is_plain = matches!(client.api, Api::Endpoint)
        && client.shared.byte_relay == ByteRelay::On
        && *phase.borrow() != Phase::Starting;
    if !is_plain {
        return Box::pin(speak(TokioIo::new(stream), client, phase)).await;
    }
    let life = bytes::Life::default();
    let end = {
        let mut watched = phase.clone();
        let mut talk = pin!(bytes::converse(stream, &client, &life));
        let mut ended = pin!(leaves(&mut watched, life.begun()));
        let mut is_watched = false;
        let end = poll_fn(|context| {
            if let Poll::Ready(end) = talk.as_mut().poll(context) {
                return Poll::Ready(Some(end));
            }
            // Once it is watched, a change wakes this task: until then there is nothing to see.
            if is_watched && matches!(phase.has_changed(), Ok(false)) {
                return Poll::Pending;
            }
            is_watched = true;
            ended.as_mut().poll(context).map(|()| None)
        });
        if let Some(end) = end.await {
            end
        } else {
            life.close();
            talk.await
        }
    };
    if let bytes::End::Elsewhere(stream, read) = end {
        Box::pin(speak(Rewound::new(TokioIo::new(stream), read), client, phase)).await;
    }
}

/// Waits until connections are to end; one that has not asked anything yet is given a moment where the
/// next daemon goes on.
async fn leaves(phase: &mut watch::Receiver<Phase>, begun: impl Future<Output = ()>) {
    let is_leaving =
        phase.wait_for(|phase| phase.is_closed()).await.is_ok_and(|phase| *phase == Phase::Leaving);
    if is_leaving {
        // Who has just connected gets an answer: their request is on its way.
        drop(timeout(FIRST_REQUEST, begun).await);
    }
}

/// Speaks HTTP on a connection until it ends.
async fn speak<S>(stream: S, client: Arc<Client>, mut phase: watch::Receiver<Phase>)
where
    S: Read + Write + Hangs + Unpin + Send + 'static,
{
    let stream = Counted::new(stream, Arc::clone(&client.flushes));
    let ready = phase.clone();
    let begun = Arc::new(Notify::new());
    let begins = Arc::clone(&begun);
    let served_client = Arc::clone(&client);
    let service = service_fn(move |request| {
        begins.notify_one();
        let (client, phase) = (Arc::clone(&served_client), *ready.borrow());
        async move { Ok::<_, Infallible>(answer(&client, phase, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_header_size(MAX_HEAD_BYTES)
        .serve_connection(stream, service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = leaves(&mut phase, begun.notified());
    let served = tokio::select! {
        served = connection.as_mut() => Some(served),
        () = ended => None,
    };
    let served = if let Some(served) = served {
        served
    } else {
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    if let Err(error) = served {
        debug!(%error, "connection ended");
    }
    if let Some(tunnel) = client.take_tunnel() {
        Box::pin(tunnel.run()).await;
    }
}

async fn answer(client: &Arc<Client>, phase: Phase, request: Request<Incoming>) -> Response<Body> {
    let request_id = request_id(&request);
    let mut request = request;
    request.headers_mut().insert(REQUEST_ID, request_id.clone());
    let trace = trace::continue_trace(request.headers_mut());
    let (slot, mut response) = Box::pin(admit(client, phase, request)).await;
    debug!(
        request_id = request_id.to_str().ok(),
        slot = slot.as_ref().map(SlotName::as_str),
        status = response.status().as_u16(),
        "request answered"
    );
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, request_id);
    if let Some(trace) = trace {
        headers.insert(trace::TRACEPARENT, trace);
    }
    if let Some(slot) = slot {
        insert(headers, HeaderName::from_static("x-slotd-slot"), slot.as_str());
    }
    if let Some(pace) = client.shared.throttle.header() {
        let name = HeaderName::from_static(throttle::NAME);
        headers.insert(name, HeaderValue::from_static(pace));
    }
    response
}

/// Lets those in who may ask; an answer goes to pages that may read it.
async fn admit(
    client: &Arc<Client>,
    phase: Phase,
    mut request: Request<Incoming>,
) -> (Option<SlotName>, Response<Body>) {
    let access = &client.shared.access;
    let page = match access.page(&request, client.local) {
        Ok(page) => page,
        Err(fault) => return (None, turned_away(client, request, &fault).await),
    };
    let (slot, mut response) = if page.is_some() && access::is_preflight(&request) {
        (None, access::preflight(&request))
    } else {
        match access.caller(&request) {
            Ok(caller) => {
                if let Some(caller) = caller {
                    request.extensions_mut().insert(caller);
                }
                Box::pin(route(client, phase, request)).await
            }
            Err(fault) => (None, turned_away(client, request, &fault).await),
        }
    };
    access::let_read(response.headers_mut(), &access.origins, page);
    (slot, response)
}

/// Answers who may not ask. A client that is still sending reads no answer, so that its body is read,
/// within limits.
async fn turned_away(client: &Client, request: Request<Incoming>, fault: &Fault) -> Response<Body> {
    let (head, incoming) = request.into_parts();
    body::discard(&head.headers, incoming, client.shared.limits.max_body).await;
    fault.response_in(client.dialect(head.uri.path()))
}

async fn route(
    client: &Arc<Client>,
    phase: Phase,
    request: Request<Incoming>,
) -> (Option<SlotName>, Response<Body>) {
    let path = request.uri().path();
    if let Api::Ollama(clock) = client.api
        && ollama::has(path)
    {
        return Box::pin(ollama::answer((client, clock), phase, request)).await;
    }
    if let Some(control) = client.shared.control.as_ref().filter(|_| is_control(path)) {
        return (None, control.answer(request).await);
    }
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let work = surface::work(path);
    let is_upstream = path.starts_with(UPSTREAM);
    if phase == Phase::Starting && (work.is_some() || is_upstream || path.starts_with("/v1/")) {
        return (None, Fault::starting().response_in(surface::dialect(path)));
    }
    if is_upstream {
        return forward::upstream(client, request).await;
    }
    if *request.method() == Method::OPTIONS {
        return (None, options(path, work));
    }
    if let Some(work) = work {
        return if work.takes(request.method()) {
            forward::forward(client, request, work).await
        } else {
            (None, wrong_method(path, work.methods()))
        };
    }
    let response = match path {
        _ if is_ours(path) && !is_read => wrong_method(path, "GET, HEAD"),
        "/" => text(StatusCode::OK, "slotd is running\n"),
        "/health" | "/healthz" | "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" if phase == Phase::Serving => text(StatusCode::OK, "ok\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        "/metrics" => metrics::answer(&client.shared).await,
        "/v1/models" | "/models" => listing::all(&client.shared),
        _ => match path.strip_prefix(ONE_MODEL) {
            Some(name) => listing::one(&client.shared, &decoded(name)),
            None => unknown_path(path),
        },
    };
    (None, response)
}

/// Tells whether slotd answers the path itself.
fn is_ours(path: &str) -> bool {
    matches!(
        path,
        "/" | "/health" | "/healthz" | "/livez" | "/readyz" | "/metrics" | "/v1/models" | "/models"
    ) || path.starts_with(ONE_MODEL)
}

/// Says what may be asked of a path.
fn options(path: &str, work: Option<Work>) -> Response<Body> {
    let methods = match work {
        Some(work) => work.methods(),
        None if is_ours(path) || path == "*" => "GET, HEAD",
        None => return unknown_path(path),
    };
    let mut response = text(StatusCode::NO_CONTENT, "");
    response.headers_mut().remove(CONTENT_TYPE);
    insert(response.headers_mut(), ALLOW, &format!("{methods}, OPTIONS"));
    response
}

fn wrong_method(path: &str, allowed: &'static str) -> Response<Body> {
    let message = format!("`{path}` takes {allowed}");
    let fault = Fault::refused(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
    let mut response = fault.response_in(surface::dialect(path));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn unknown_path(path: &str) -> Response<Body> {
    let path: String = path.chars().take(100).collect();
    let message = format!("there is no `{path}`; there is {ENDPOINTS}");
    Fault::not_found("not_found", message).response()
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Takes the client's id if it is one that logs can bear, else makes one.
fn request_id(request: &Request<Incoming>) -> HeaderValue {
    let theirs = request.headers().get(REQUEST_ID).filter(|id| is_request_id(id.as_bytes()));
    theirs.cloned().unwrap_or_else(new_request_id)
}

/// Tells whether an id is one that logs can bear.
pub(super) fn is_request_id(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// Makes an id for a request that has none: `req-`, its life, its number, both in hexadecimal digits.
pub(super) fn new_request_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    static COUNT: AtomicU64 = AtomicU64::new(0);
    /// Tells the ids of one life of the daemon from those of another.
    static LIFE: LazyLock<String> =
        LazyLock::new(|| format!("req-{:08x}-", RandomState::new().hash_one("life") >> 32));
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut id = [0_u8; 32];
    let (life, length) = (LIFE.as_bytes(), count.checked_ilog(16).unwrap_or(0).saturating_add(1));
    let digits = (0..length)
        .rev()
        .filter_map(|place| DIGITS.get(usize::try_from(count >> (4 * place) & 15).ok()?).copied());
    let mut end = 0_usize;
    for (place, byte) in id.iter_mut().zip(life.iter().copied().chain(digits)) {
        (*place, end) = (byte, end.saturating_add(1));
    }
    let id = id.get(..end).and_then(|id| HeaderValue::from_bytes(id).ok());
    id.unwrap_or(HeaderValue::from_static("req"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_requests_are_numbered_in_plain_hexadecimal() {
        let mut last = None;
        for _ in 0..300 {
            let id = new_request_id();
            let (life, digits) = id.to_str().unwrap().split_at(13);
            assert!(life.starts_with("req-") && life.ends_with('-'), "{id:?}");
            let number = u64::from_str_radix(digits, 16).unwrap();
            assert_eq!(format!("{number:x}"), digits);
            assert!(last < Some(number), "{id:?}");
            last = Some(number);
        }
    }
}
