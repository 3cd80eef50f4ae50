//! A client that costs as little as hyper lets it: one kept connection, one request at a time.

use std::{net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, StatusCode,
    client::conn::http1::{SendRequest, handshake},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::Instant,
};

pub(crate) const CHAT: &str =
    r#"{"messages":[{"role":"user","content":"Say hello."}],"max_tokens":1,"model":"chat"}"#;

/// One kept connection.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

impl Connection {
    pub(crate) async fn unix(path: &Path) -> Self {
        Self::over(UnixStream::connect(path).await.unwrap()).await
    }

    pub(crate) async fn tcp(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream).await
    }

    async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Self {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            drop(connection.await);
        });
        Self { sender, _driver: driver }
    }

    /// Sends chats one after the other; returns how long each took.
    pub(crate) async fn chats(&mut self, count: usize) -> Vec<Duration> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let began = Instant::now();
            let status = self.send("POST", "/v1/chat/completions", CHAT).await;
            times.push(began.elapsed());
            assert_eq!(status, StatusCode::OK);
        }
        times
    }

    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        body: &'static str,
    ) -> StatusCode {
        self.sender.ready().await.unwrap();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from_static(body.as_bytes())))
            .unwrap();
        let answer = self.sender.send_request(request).await.unwrap();
        let status = answer.status();
        answer.into_body().collect().await.unwrap();
        status
    }
}

/// Asks an engine for its health every millisecond; returns when it first said 200.
pub(crate) async fn first_200(socket: &Path) -> Instant {
    loop {
        // Each time anew: llama-server closes a connection after a hundred questions.
        if UnixStream::connect(socket).await.is_ok()
            && Connection::unix(socket).await.send("GET", "/health", "").await == StatusCode::OK
        {
            return Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
