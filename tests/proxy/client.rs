//! A client that sees each byte, and whether an answer was whole.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::world::soon;

pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    text: String,
}

/// An answer, as far as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    /// Whether the framing says that nothing is missing.
    pub(crate) is_whole: bool,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{:?}", self.text()))
    }

    /// The error object; all four keys must be there.
    pub(crate) fn error(&self) -> Value {
        with_four_keys(&self.json()["error"])
    }

    /// The error object of the stream's last event.
    pub(crate) fn last_event_error(&self) -> Value {
        assert!(self.text().ends_with("\n\n"), "the last event has no end");
        let event = self.text().trim_end().rsplit("\n\n").next().unwrap();
        let event: Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        with_four_keys(&event["error"])
    }
}

fn with_four_keys(error: &Value) -> Value {
    for key in ["message", "type", "param", "code"] {
        assert!(error.as_object().unwrap().contains_key(key), "{key} is missing in {error}");
    }
    assert!(error["code"].is_string() || error["code"].is_null(), "{error}");
    error.clone()
}

/// A chat request for a slot.
pub(crate) fn chat(model: &str, stream: bool) -> String {
    serde_json::json!({"messages": [], "model": model, "stream": stream}).to_string()
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends a POST with more headers, each with its line end.
    pub(crate) async fn post_with(&mut self, path: &str, headers: &str, body: &[u8]) {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        self.send([head.as_bytes(), body].concat()).await;
    }

    pub(crate) async fn post(&mut self, body: impl AsRef<[u8]>) {
        self.post_with("/v1/chat/completions", "", body.as_ref()).await;
    }

    /// Asks a chat and waits for the whole answer.
    pub(crate) async fn ask(&mut self, body: impl AsRef<[u8]>) -> Answer {
        self.post(body).await;
        self.answer().await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
        self.answer().await
    }

    /// Waits for so many bytes; fewer if the connection ends before.
    pub(crate) async fn raw(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.take(count, &mut bytes).await;
        bytes
    }

    /// Waits for the head of an answer.
    pub(crate) async fn head(&mut self) -> Head {
        let end = self.wait_for(b"\r\n\r\n").await.expect("a head");
        let text = String::from_utf8(self.buffer.drain(..end).collect()).unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        Head { status, text }
    }

    /// Waits for a whole answer, or as much of it as there is.
    pub(crate) async fn answer(&mut self) -> Answer {
        let head = self.head().await;
        self.rest(head).await
    }

    /// Waits for the body that belongs to a head.
    pub(crate) async fn rest(&mut self, head: Head) -> Answer {
        let mut body = Vec::new();
        let is_whole = if head.status == 204 {
            true
        } else if let Some(length) = head.header("content-length") {
            self.take(length.parse().unwrap(), &mut body).await.is_some()
        } else {
            assert_eq!(head.header("transfer-encoding"), Some("chunked"), "{head:?}");
            loop {
                match self.chunk(&mut body).await {
                    Some(0) => break true,
                    Some(_) => {}
                    None => break false,
                }
            }
        };
        Answer { head, body, is_whole }
    }

    /// Waits for the next chunk; 0 is the last, `None` an end without one.
    pub(crate) async fn chunk(&mut self, body: &mut Vec<u8>) -> Option<usize> {
        let end = self.wait_for(b"\r\n").await?;
        let line = String::from_utf8(self.buffer.drain(..end).collect()).unwrap();
        let length = usize::from_str_radix(line.trim(), 16).unwrap();
        self.take(length, body).await?;
        self.take(2, &mut Vec::new()).await?;
        Some(length)
    }

    /// Moves bytes to `body`; `None` if the connection ended before there were as many.
    async fn take(&mut self, length: usize, body: &mut Vec<u8>) -> Option<()> {
        while self.buffer.len() < length && self.read().await.is_some() {}
        let there = length.min(self.buffer.len());
        body.extend(self.buffer.drain(..there));
        (there == length).then_some(())
    }

    /// Waits for a mark and returns where it ends.
    async fn wait_for(&mut self, mark: &[u8]) -> Option<usize> {
        loop {
            let found = self.buffer.windows(mark.len()).position(|bytes| bytes == mark);
            if let Some(at) = found {
                return Some(at + mark.len());
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Option<()> {
        match soon("bytes for the client", self.stream.read_buf(&mut self.buffer)).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(()),
        }
    }
}
