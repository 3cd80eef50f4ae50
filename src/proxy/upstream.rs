//! Connections to one engine: kept, reused, replaced.

use std::{
    io,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinSet,
};

use crate::engine::Endpoint;

/// The connections to one engine. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Pool {
    endpoint: Endpoint,
    /// The one used last is taken first: it is the least likely to have been closed.
    idle: Mutex<Vec<Connection>>,
    drivers: Mutex<JoinSet<()>>,
}

/// One connection; whoever holds it has the only use of it.
pub(super) type Connection = SendRequest<Full<Bytes>>;

/// Says why there was no answer.
#[derive(Debug, Error)]
pub(super) enum UpstreamFault {
    /// The engine cannot be reached.
    #[error("connect to the engine")]
    Connect(#[from] io::Error),
    /// The connection broke before a response head.
    #[error("hear from the engine")]
    Broken(#[from] hyper::Error),
}

impl Pool {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, idle: Mutex::default(), drivers: Mutex::default() }
    }

    /// Sends a request and returns the head of the answer with the connection that its body comes
    /// on. A kept connection that turns out to be closed is replaced, once.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Connection), UpstreamFault> {
        while let Some(mut connection) = self.take() {
            if connection.ready().await.is_err() {
                continue;
            }
            match connection.send_request(request.clone()).await {
                Ok(answer) => return Ok((answer, connection)),
                // It was closed just as it was used: the engine has seen nothing, or said nothing.
                Err(error) if error.is_canceled() || error.is_incomplete_message() => break,
                Err(error) => return Err(error.into()),
            }
        }
        let mut connection = self.connect().await?;
        let answer = connection.send_request(request).await?;
        Ok((answer, connection))
    }

    /// Takes a connection back once its answer has ended.
    pub(super) fn keep(&self, connection: Connection) {
        if !connection.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }

    fn take(&self) -> Option<Connection> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    async fn connect(&self) -> Result<Connection, UpstreamFault> {
        match &self.endpoint {
            Endpoint::Unix(path) => self.drive(UnixStream::connect(path).await?).await,
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                // Without it small writes wait 40 ms for the other side's acknowledgement.
                stream.set_nodelay(true)?;
                self.drive(stream).await
            }
        }
    }

    async fn drive<S>(&self, stream: S) -> Result<Connection, UpstreamFault>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut drivers = self.drivers.lock().unwrap_or_else(PoisonError::into_inner);
        while drivers.try_join_next().is_some() {}
        drivers.spawn(async move {
            // Its fault reaches the one who waits for the answer.
            drop(connection.await);
        });
        Ok(sender)
    }
}
