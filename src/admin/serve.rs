//! The connections of the control socket, each a task that is waited for.

use std::{pin::pin, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    State,
    routes::{App, router},
};

/// How many connections are served at once; more wait in the listener's queue.
const MOST_CONNECTIONS: usize = 256;
/// How long a connection may stay silent before its next request.
const SILENCE: Duration = Duration::from_mins(1);
/// How long an answer may take to get out once the API closes.
const LINGER: Duration = Duration::from_secs(1);
/// How long to wait when no connection can be taken: files may have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves the control API on `listener` until `shutdown` resolves, and returns when its connections
/// have ended: streams at once, answers under way within a second.
pub async fn serve(listener: UnixListener, state: State, shutdown: impl Future<Output = ()>) {
    let (close, closing) = watch::channel(false);
    let router = router(App { state, closing: closing.clone() });
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MOST_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_one(stream, router.clone(), closing.clone()));
                }
                Err(error) => {
                    warn!(%error, "control connection not taken");
                    sleep(PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    close.send_replace(true);
    while connections.join_next().await.is_some() {}
}

async fn serve_one(stream: UnixStream, router: Router, closing: watch::Receiver<bool>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closed(closing) => {
            connection.as_mut().graceful_shutdown();
            // A reader that does not read is not waited for.
            timeout(LINGER, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "control connection ended early");
    }
}

/// Resolves once the API closes.
pub(super) async fn closed(mut closing: watch::Receiver<bool>) {
    // An error means that the API is gone: closed as well.
    drop(closing.wait_for(|closing| *closing).await);
}
