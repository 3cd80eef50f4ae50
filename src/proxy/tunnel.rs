//! Connections that a client and an engine take over (web sockets). Bytes go both ways until one side
//! ends, or the engine does.
//!
//! The engine says 101 first; then the client is told so, and its own connection runs the tunnel.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use http_body_util::{BodyExt, Limited};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::handshake,
    header::{CONNECTION, HeaderValue, UPGRADE},
    upgrade::{self, OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, split},
    time::timeout,
};
use tracing::debug;

use super::{
    Client,
    exchange::{Order, copy_headers, rebuild, turn},
    flight::Flight,
    gate::{Gate, Lease},
    meters::Outcome,
    normalise,
    payload::Sending,
    reply::{Body, Fault, full},
    upstream::Stream,
};

/// How long an engine may take to say whether it takes over, and the most of its refusal.
const HANDSHAKE_DEADLINE: Duration = Duration::from_mins(1);
/// How long the other side is given once one has ended.
const FAREWELL: Duration = Duration::from_secs(2);
const REFUSAL_BYTES: usize = 64 << 10;

/// Both ends of a connection that was taken over, and its seat at the engine.
#[derive(Debug)]
pub(super) struct Tunnel {
    flight: Arc<Flight>,
    client: OnUpgrade,
    engine: Upgraded,
    lease: Lease,
    _silent: Silent,
}

/// A seat whose silence says nothing of the engine.
#[derive(Debug)]
struct Silent(Arc<Gate>);

impl Silent {
    fn new(gate: &Arc<Gate>) -> Self {
        gate.begin_silence();
        Self(Arc::clone(gate))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.0.end_silence();
    }
}

/// Takes the client's side of a web socket, if the request asks for one.
pub(super) fn asked_for(request: &mut Request<Incoming>) -> Option<OnUpgrade> {
    let headers = request.headers();
    let is_websocket =
        headers.get(UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let is_meant = headers.get_all(CONNECTION).iter().any(|value| {
        let named = value.to_str().unwrap_or_default().split(',');
        named.into_iter().any(|name| name.trim().eq_ignore_ascii_case("upgrade"))
    });
    (is_websocket && is_meant).then(|| upgrade::on(request))
}

/// Brings a web socket to its engine. The tunnel is left with the client's connection, which runs it
/// once the answer is written.
pub(super) async fn open(
    client: &Client,
    order: &Order,
    theirs: OnUpgrade,
) -> Result<Response<Body>, Fault> {
    let mut lease = turn(&client.shared, order).await?;
    let gate = Arc::clone(lease.gate());
    order.flight.serve(gate.slot());
    let opened = async {
        let stream = gate.upstream().open().await.ok()?;
        shake(stream, order).await
    };
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE_DEADLINE, opened) => shaken.ok().flatten(),
        () = gate.ended().cancelled() => None,
    };
    let Some(shaken) = shaken else {
        return Err(Fault::engine_died(gate.slot(), "hung up before it took the connection over"));
    };
    lease.note_word();
    let mut headers = HeaderMap::new();
    copy_headers(shaken.response.headers(), &mut headers);
    let Some(engine) = shaken.engine else {
        let (head, body) = shaken.response.into_parts();
        if head.status.is_success() {
            let what = "did not take the connection over";
            return Err(Fault::engine_misbehaved(gate.slot(), what));
        }
        let error = normalise::error_object(head.status, &body);
        return Err(Fault::of_engine(head.status, headers, error));
    };
    let silent = Silent::new(&gate);
    let flight = Arc::clone(&order.flight);
    client.leave(Tunnel { flight, client: theirs, engine, lease, _silent: silent });
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let mut response = Response::new(full(bytes::Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    Ok(response)
}

/// What an engine said, and its side of the connection if it took it over.
struct Shaken {
    response: Response<bytes::Bytes>,
    engine: Option<Upgraded>,
}

async fn shake(stream: Stream, order: &Order) -> Option<Shaken> {
    let (mut sender, connection) = handshake::<_, Sending>(TokioIo::new(stream)).await.ok()?;
    let mut request = rebuild(order, order.asked.payload.send());
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let mut driver = pin!(connection.with_upgrades());
    let mut is_driven = true;
    let mut answered = pin!(async {
        let response = sender.send_request(request).await.ok()?;
        let (head, body) = response.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let mut whole = Response::from_parts(head, body);
            let engine = upgrade::on(&mut whole).await.ok();
            return Some(Shaken { response: whole.map(|_| bytes::Bytes::new()), engine });
        }
        let refusal = Limited::new(body, REFUSAL_BYTES).collect().await.ok()?.to_bytes();
        Some(Shaken { response: Response::from_parts(head, refusal), engine: None })
    });
    poll_fn(|context| {
        // Before: hands the request over. After: takes what the connection read.
        if let Poll::Ready(shaken) = answered.as_mut().poll(context) {
            return Poll::Ready(shaken);
        }
        if is_driven {
            is_driven = driver.as_mut().poll(context).is_pending();
        }
        answered.as_mut().poll(context)
    })
    .await
}

/// Passes bytes both ways until one side ends. What the other one has to say to that it may say.
async fn pass(client: impl AsyncRead + AsyncWrite, engine: impl AsyncRead + AsyncWrite) {
    let (mut from_client, mut to_client) = split(client);
    let (mut from_engine, mut to_engine) = split(engine);
    let up = async {
        // However a side ended, the other one is told that it did.
        drop(copy(&mut from_client, &mut to_engine).await);
        drop(to_engine.shutdown().await);
    };
    let down = async {
        drop(copy(&mut from_engine, &mut to_client).await);
        drop(to_client.shutdown().await);
    };
    let (mut up, mut down) = (pin!(up), pin!(down));
    tokio::select! {
        () = up.as_mut() => drop(timeout(FAREWELL, down).await),
        () = down.as_mut() => drop(timeout(FAREWELL, up).await),
    }
}

impl Tunnel {
    /// Passes bytes both ways until one side ends.
    pub(super) async fn run(self) {
        let Self { flight, client, engine, mut lease, _silent } = self;
        let Ok(client) = client.await else { return };
        let (mut client, mut engine) = (TokioIo::new(client), TokioIo::new(engine));
        let gate = Arc::clone(lease.gate());
        tokio::select! {
            () = pass(&mut client, &mut engine) => {
                debug!(slot = %gate.slot(), "tunnel ended");
                lease.note_session();
                flight.end(Outcome::Answered);
            }
            () = gate.ended().cancelled() => flight.end(Outcome::Broken),
            () = flight.cancelled() => drop(flight.end_cancelled()),
        }
    }
}
