//! An engine that the test plays: it takes connections and requests one by one, and says what it
//! likes.

use std::{io, path::PathBuf};

use slotd::engine::Endpoint;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

use crate::world::soon;

pub(crate) struct Engine {
    path: PathBuf,
    listener: UnixListener,
}

/// One connection of the endpoint's.
pub(crate) struct Line {
    stream: UnixStream,
    buffer: Vec<u8>,
}

/// One request as it arrived.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Engine {
    pub(crate) fn start(path: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        Self { path, listener }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.path.clone())
    }

    /// Takes the next connection.
    pub(crate) async fn accept(&self) -> Line {
        let (stream, _) = soon("a connection", self.listener.accept()).await.unwrap();
        Line { stream, buffer: Vec::new() }
    }

    /// Answers every request on every connection, for ever; shows each to `seen`.
    pub(crate) async fn answer_all(self, seen: impl Fn(&Request) + Clone + Send + 'static) {
        let mut lines = JoinSet::new();
        while let Ok((stream, _)) = self.listener.accept().await {
            let mut line = Line { stream, buffer: Vec::new() };
            let seen = seen.clone();
            lines.spawn(async move {
                while let Some(request) = line.next_request().await {
                    seen(&request);
                    line.answer("200 OK", "{}").await;
                }
            });
        }
    }

    /// Takes the next connection, however long it takes.
    pub(crate) async fn accept_next(&self) -> Option<Line> {
        let (stream, _) = self.listener.accept().await.ok()?;
        Some(Line { stream, buffer: Vec::new() })
    }

    /// Takes the next connection and the request on it.
    pub(crate) async fn request(&self) -> (Line, Request) {
        let mut line = self.accept().await;
        let request = line.request().await;
        (line, request)
    }
}

impl Request {
    /// The value of a header, if it was sent.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Line {
    /// Reads the next request, whole.
    pub(crate) async fn request(&mut self) -> Request {
        soon("a request", self.read_request()).await
    }

    /// Reads the next request, or nothing when the endpoint hangs up.
    pub(crate) async fn next_request(&mut self) -> Option<Request> {
        if self.buffer.is_empty() && self.stream.read_buf(&mut self.buffer).await.ok()? == 0 {
            return None;
        }
        Some(self.read_request().await)
    }

    async fn read_request(&mut self) -> Request {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            self.read().await;
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).unwrap();
        let mut request = Request { head, body: Vec::new() };
        let length: usize = request.header("content-length").unwrap_or("0").parse().unwrap();
        while self.buffer.len() < length {
            self.read().await;
        }
        request.body = self.buffer.drain(..length).collect();
        request
    }

    /// Waits for so many bytes.
    pub(crate) async fn raw(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            soon("bytes for the engine", self.read()).await;
        }
        self.buffer.drain(..count).collect()
    }

    async fn read(&mut self) {
        let count = self.stream.read_buf(&mut self.buffer).await.unwrap();
        assert_ne!(count, 0, "the endpoint hung up in mid-request");
    }

    /// Waits until the endpoint has hung up.
    pub(crate) async fn hung_up(&mut self) {
        let mut rest = [0; 1];
        let count = soon("the endpoint to hang up", self.stream.read(&mut rest)).await;
        assert!(matches!(count, Ok(0) | Err(_)), "the endpoint sent more");
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends bytes to an endpoint that may have hung up.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Begins a stream of events.
    pub(crate) async fn begin_stream(&mut self) {
        self.send(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\
             server: llama.cpp\r\naccess-control-allow-origin: *\r\nset-cookie: a=b\r\n\r\n",
        )
        .await;
    }

    /// Sends one chunk of a chunked body.
    pub(crate) async fn chunk(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        let framed = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        self.send(framed).await;
    }

    /// Ends a chunked body.
    pub(crate) async fn end_stream(&mut self) {
        self.send("0\r\n\r\n").await;
    }

    /// Sends a whole JSON answer.
    pub(crate) async fn answer(&mut self, status: &str, body: &str) {
        let length = body.len();
        self.send(format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        ))
        .await;
    }
}
