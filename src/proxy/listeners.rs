//! The sockets that clients come to, and which API is spoken at each.

use std::{fmt, io, net::SocketAddr};

use tokio::net::{TcpListener, TcpStream};

/// Tells the time in milliseconds since 1970.
pub type WallClock = fn() -> u64;

/// What [`serve`](super::serve()) accepts on.
#[derive(Debug)]
pub struct Listeners {
    /// The endpoint.
    pub endpoint: TcpListener,
    /// Where Ollama's clients come, if they may.
    pub ollama: Option<OllamaListener>,
}

/// Where Ollama's clients come.
pub struct OllamaListener {
    /// The socket.
    pub socket: TcpListener,
    /// Answers of that API say when they were made.
    pub clock: WallClock,
}

/// Which API is spoken on a connection besides the endpoint's own.
#[derive(Clone, Copy, Debug)]
pub(super) enum Api {
    /// None.
    Endpoint,
    /// Ollama's.
    Ollama(WallClock),
}

impl Listeners {
    /// Accepts the next connection of either socket. Cancel-safe.
    pub(super) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr, Api)> {
        let Some(ollama) = &self.ollama else {
            let (stream, peer) = self.endpoint.accept().await?;
            return Ok((stream, peer, Api::Endpoint));
        };
        let ((stream, peer), api) = tokio::select! {
            accepted = self.endpoint.accept() => (accepted?, Api::Endpoint),
            accepted = ollama.socket.accept() => (accepted?, Api::Ollama(ollama.clock)),
        };
        Ok((stream, peer, api))
    }
}

impl fmt::Debug for OllamaListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OllamaListener").field("socket", &self.socket).finish_non_exhaustive()
    }
}
