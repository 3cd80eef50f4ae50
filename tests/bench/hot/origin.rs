//! An engine that costs next to nothing: hand-written HTTP/1.1 on one thread, on TCP and on a Unix
//! socket at once.
//!
//! A body with `"stream":true` gets `"events":N` events, `"pace_ms":M` apart; any other gets 600 bytes
//! of JSON. Each event says when it was written, by the monotonic clock.

use std::{fs, path::PathBuf, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixListener},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::sys::monotonic_ns;

/// The size of an answer that is no stream.
const ANSWER: usize = 600;
const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
    cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
const STREAM_END: &[u8] = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";

/// Serves for ever. Prints the port once both sockets are open.
#[expect(clippy::print_stdout, reason = "whoever started it reads the port")]
pub(crate) async fn serve(unix: PathBuf) {
    drop(fs::remove_file(&unix));
    let unix = UnixListener::bind(unix).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", tcp.local_addr().unwrap().port());
    serve_on(tcp, Some(unix)).await;
}

/// Serves a TCP address for ever, for peers that start their engines themselves.
pub(crate) async fn serve_tcp(address: String) {
    serve_on(TcpListener::bind(address).await.unwrap(), None).await;
}

async fn serve_on(tcp: TcpListener, unix: Option<UnixListener>) {
    let answer = answer();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = tcp.accept() => {
                let (stream, _) = accepted.unwrap();
                stream.set_nodelay(true).unwrap();
                connections.spawn(connection(stream, answer));
            }
            accepted = accept(unix.as_ref()) => {
                connections.spawn(connection(accepted, answer));
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn accept(unix: Option<&UnixListener>) -> tokio::net::UnixStream {
    match unix {
        Some(listener) => listener.accept().await.unwrap().0,
        None => std::future::pending().await,
    }
}

fn answer() -> &'static [u8] {
    let start = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":""#;
    let end = r#""},"finish_reason":"stop"}],"usage":{"prompt_tokens":80,"completion_tokens":60,"total_tokens":140}}"#;
    let fill = "word ".repeat(ANSWER).split_at(ANSWER - start.len() - end.len()).0.to_owned();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {ANSWER}\r\n\r\n"
    );
    format!("{head}{start}{fill}{end}").into_bytes().leak()
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, answer: &'static [u8]) {
    let mut buffer = Vec::with_capacity(4 << 10);
    loop {
        let Some(length) = request(&mut stream, &mut buffer).await else { return };
        let body = &buffer[..length];
        let is_stream = find(body, b"\"stream\":true").is_some();
        let written = if is_stream {
            let (events, pace) = (number(body, b"\"events\":"), number(body, b"\"pace_ms\":"));
            let phase = number(body, b"\"phase_ms\":");
            // The buffer of a stream that waits is not what is measured.
            buffer = Vec::new();
            events_of(&mut stream, events, (pace, phase)).await
        } else {
            buffer.drain(..length);
            stream.write_all(answer).await.is_ok()
        };
        if !written {
            return;
        }
    }
}

/// Reads one whole request; returns its length.
async fn request<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut Vec<u8>) -> Option<usize> {
    loop {
        if let Some(end) = find(buffer, b"\r\n\r\n") {
            let length = end + 4 + content_length(&buffer[..end]);
            while buffer.len() < length {
                buffer.reserve(length - buffer.len());
                if stream.read_buf(buffer).await.ok()? == 0 {
                    return None;
                }
            }
            return Some(length);
        }
        buffer.reserve(2 << 10);
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

async fn events_of<S: AsyncWrite + Unpin>(
    stream: &mut S,
    events: u64,
    (pace, phase): (u64, u64),
) -> bool {
    if stream.write_all(STREAM_HEAD).await.is_err() {
        return false;
    }
    let begin = Instant::now() + Duration::from_millis(phase);
    for number in 0..events {
        if pace > 0 {
            sleep_until(begin + Duration::from_millis(pace.saturating_mul(number))).await;
        }
        let event = event(number);
        if stream.write_all(event.as_bytes()).await.is_err() {
            return false;
        }
    }
    stream.write_all(STREAM_END).await.is_ok()
}

/// One event as one chunk of about 210 bytes.
fn event(number: u64) -> String {
    let now = monotonic_ns();
    let event = format!(
        "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\
         \"model\":\"bench\",\"seq\":{number},\"ns\":{now:020},\"choices\":[{{\"index\":0,\
         \"delta\":{{\"content\":\"word\"}},\"finish_reason\":null}}]}}\n\n"
    );
    format!("{:x}\r\n{event}\r\n", event.len())
}

pub(crate) fn content_length(head: &[u8]) -> usize {
    let text = String::from_utf8_lossy(head);
    let value = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
    });
    value.unwrap_or(0)
}

pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, what)
}

pub(crate) fn number(bytes: &[u8], key: &[u8]) -> u64 {
    let Some(at) = find(bytes, key) else { return 0 };
    let digits = bytes[at + key.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}
