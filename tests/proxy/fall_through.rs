//! What nobody here has, asked of another server: its key, its refusals, its streams, its absence.

use std::{sync::Arc, time::Duration};

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use slotd::{
    config::daemon::{BaseUrl, FallThrough as Setting},
    proxy::{Access, FallThrough},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    client::{Client, chat},
    world::{DEADLINE, World, limits, soon},
};

/// slotd's own key there.
const KEY: &str = "sk-upstream-canary";

fn setting(url: &str) -> Setting {
    Setting {
        url: BaseUrl::read(url).unwrap(),
        key_file: None,
        ca_file: None,
        timeout: DEADLINE,
        models: Vec::new(),
    }
}

fn made(setting: Setting) -> FallThrough {
    let upstream = FallThrough::new(setting, RootCertStore::empty()).unwrap();
    assert!(upstream.set_key(KEY));
    upstream
}

/// Another server, which the test plays.
struct Elsewhere(TcpListener);

/// One connection to it.
struct Line<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl Elsewhere {
    async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn url(&self) -> String {
        format!("http://{}/api/v1", self.0.local_addr().unwrap())
    }

    /// An endpoint above it.
    async fn world(&self, change: impl FnOnce(&mut Setting)) -> World {
        let mut setting = setting(&self.url());
        change(&mut setting);
        World::start_above(limits(), Access::default(), |_| Some(made(setting))).await
    }

    async fn accept(&self) -> Line<TcpStream> {
        let (stream, _) = soon("a connection", self.0.accept()).await.unwrap();
        Line { stream, buffer: Vec::new() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    /// Reads the next request: its head and its body.
    async fn request(&mut self) -> (String, Vec<u8>) {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            self.read().await;
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.unwrap_or("0").parse().unwrap();
        while self.buffer.len() < length {
            self.read().await;
        }
        (head, self.buffer.drain(..length).collect())
    }

    async fn read(&mut self) {
        let count = soon("a request", self.stream.read_buf(&mut self.buffer)).await.unwrap();
        assert_ne!(count, 0, "the endpoint hung up in mid-request");
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn answer(&mut self, status: &str, headers: &str, body: &str) {
        let length = body.len();
        self.send(format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}"))
            .await;
    }

    async fn hung_up(&mut self) {
        let count = soon("the endpoint to hang up", self.stream.read(&mut [0; 1])).await;
        assert!(matches!(count, Ok(0) | Err(_)), "the endpoint sent more");
    }
}

#[tokio::test]
async fn what_nobody_here_has_is_asked_there_with_slotds_own_key() {
    let elsewhere = Elsewhere::start().await;
    let mut world = elsewhere.world(|_| {}).await;
    let (engine, _gate) = world.make_ready("chat", 1, (4, 16));
    let headers = "authorization: Bearer sk-clients-own\r\nx-api-key: sk-clients-own\r\n\
                   cookie: a=sk-clients-own\r\nopenai-organization: org-clients-own\r\n\
                   x-forwarded-for: 10.0.0.1\r\nx-custom: kept\r\n";
    let mut client = world.client().await;
    let body = format!(" {}", chat("gpt-5", false));
    client.post_with("/v1/chat/completions?a=b", headers, body.as_bytes()).await;
    let mut line = elsewhere.accept().await;
    let (head, seen) = line.request().await;
    assert!(head.starts_with("POST /api/v1/chat/completions?a=b HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: {}\r\n", elsewhere.0.local_addr().unwrap())), "{head}");
    assert!(head.contains(&format!("authorization: Bearer {KEY}\r\n")), "{head}");
    assert!(head.contains("x-slotd-hops: 1\r\n") && head.contains("x-custom: kept\r\n"), "{head}");
    assert!(!head.contains("clients-own") && !head.contains("10.0.0.1"), "{head}");
    assert_eq!(seen, body.as_bytes(), "byte for byte");
    let owner = "openai-organization: org-slotds\r\nset-cookie: a=b\r\nserver: x\r\n";
    line.answer("200 OK", owner, "{\"id\":\"1\"}").await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status, answer.text()), (200, "{\"id\":\"1\"}"));
    assert_eq!(answer.head.header("x-slotd-slot"), Some("fall-through"));
    for gone in ["openai-organization", "set-cookie", "server"] {
        assert_eq!(answer.head.header(gone), None, "{gone}");
    }

    // Anthropic's API takes keys in a header of its own.
    client.post_with("/v1/messages", headers, br#"{"model":"claude","messages":[]}"#).await;
    let (head, _) = line.request().await;
    assert!(head.starts_with("POST /api/v1/messages HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("x-api-key: {KEY}\r\n")), "{head}");
    assert!(!head.contains("authorization") && !head.contains("clients-own"), "{head}");
    line.answer("200 OK", "", "{}").await;
    assert_eq!(client.answer().await.head.status, 200);

    // What is here stays here.
    client.post(chat("chat", false)).await;
    let (mut line, seen) = engine.request().await;
    assert_eq!(seen.header("x-slotd-hops"), None);
    line.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.head.header("x-slotd-slot"), Some("chat"));
}

#[tokio::test]
async fn its_refusals_are_told_in_the_clients_dialect() {
    let elsewhere = Elsewhere::start().await;
    let world = elsewhere.world(|_| {}).await;
    let refusal =
        r#"{"error":{"message":"slow down","type":"rate_limit_error","param":null,"code":"x"}}"#;
    let mut client = world.client().await;
    client.post(chat("gpt-5", true)).await;
    let mut line = elsewhere.accept().await;
    line.request().await;
    line.answer("429 Too Many Requests", "retry-after: 7\r\n", refusal).await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status, answer.head.header("retry-after")), (429, Some("7")));
    assert_eq!(answer.error()["message"], "slow down");

    client.post_with("/v1/messages", "", br#"{"model":"claude","messages":[]}"#).await;
    line.request().await;
    line.answer("500 Internal Server Error", "", r#"{"error":{"message":"oops"}}"#).await;
    let answer = client.answer().await;
    assert_eq!(answer.head.status, 500);
    assert_eq!(answer.json()["type"], "error");
    assert_eq!(answer.json()["error"]["message"], "oops");

    let mut ollama = world.ollama_client().await;
    let body =
        br#"{"model":"gpt-5:latest","stream":false,"messages":[{"role":"user","content":"x"}]}"#;
    ollama.post_with("/api/chat", "", body).await;
    let (_, seen) = line.request().await;
    let seen: serde_json::Value = serde_json::from_slice(&seen).unwrap();
    assert_eq!(seen["model"], "gpt-5");
    line.answer("404 Not Found", "", r#"{"error":{"message":"no such model"}}"#).await;
    let answer = ollama.answer().await;
    assert_eq!((answer.head.status, answer.text()), (404, r#"{"error":"no such model"}"#));
}

#[tokio::test]
async fn what_it_says_of_slotds_key_is_not_passed_on() {
    let elsewhere = Elsewhere::start().await;
    let world = elsewhere.world(|_| {}).await;
    let mut client = world.client().await;
    let mut line = None;
    for status in ["401 Unauthorized", "403 Forbidden"] {
        client.post(chat("gpt-5", false)).await;
        let line = match &mut line {
            Some(line) => line,
            none => none.insert(elsewhere.accept().await),
        };
        line.request().await;
        line.answer(status, "x-key: sk-upst\r\n", r#"{"error":{"message":"bad key sk-upst***"}}"#)
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.head.status, 502);
        assert_eq!(answer.head.header("x-should-retry"), Some("false"));
        assert_eq!(answer.head.header("x-key"), None);
        assert_eq!(answer.error()["code"], "fall_through_refused");
        assert!(!answer.text().contains("sk-upst"), "{}", answer.text());
    }
    client.post(chat("gpt-5", false)).await;
    line.as_mut().unwrap().request().await;
    line.as_mut().unwrap().answer("302 Found", "location: http://127.0.0.1:1/\r\n", "").await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status, answer.head.header("location")), (502, None), "not followed");
    assert_eq!(answer.error()["code"], "bad_fall_through_answer");
}

const STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

async fn stream<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut Client,
    line: &mut Line<S>,
) -> Vec<u8> {
    line.request().await;
    line.send(STREAM).await;
    let head = client.head().await;
    assert_eq!((head.status, head.header("x-accel-buffering")), (200, Some("no")));
    let mut body = Vec::new();
    for event in ["data: {\"a\":1}\n\n", "data: {\"a\":2}\n\n"] {
        line.send(format!("{:x}\r\n{event}\r\n", event.len())).await;
        assert_eq!(client.chunk(&mut body).await, Some(event.len()), "it passes as it comes");
    }
    body
}

#[tokio::test]
async fn streams_pass_as_they_come_and_what_breaks_off_never_looks_whole() {
    let elsewhere = Elsewhere::start().await;
    let world = elsewhere.world(|_| {}).await;
    let mut client = world.client().await;
    client.post(chat("gpt-5", true)).await;
    let mut line = elsewhere.accept().await;
    let mut body = stream(&mut client, &mut line).await;
    line.send("e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").await;
    while client.chunk(&mut body).await.unwrap() > 0 {}
    assert!(body.ends_with(b"data: [DONE]\n\n"));

    client.post(chat("gpt-5", true)).await;
    let mut body = stream(&mut client, &mut line).await;
    drop(line);
    while client.chunk(&mut body).await.is_some_and(|count| count > 0) {}
    let body = String::from_utf8(body).unwrap();
    assert!(body.contains("fall_through_broke_off"), "{body}");

    // An end in order that is none for its API.
    let mut client = world.client().await;
    client.post(chat("gpt-5", true)).await;
    let mut line = elsewhere.accept().await;
    let mut body = stream(&mut client, &mut line).await;
    line.send("0\r\n\r\n").await;
    let last = loop {
        match client.chunk(&mut body).await {
            Some(count) if count > 0 => {}
            last => break last,
        }
    };
    assert_eq!(last, None, "no last chunk");
    assert!(String::from_utf8(body).unwrap().contains("fall_through_broke_off"));
}

#[tokio::test]
async fn only_names_that_were_written_go_there_and_those_are_listed() {
    let elsewhere = Elsewhere::start().await;
    let models = ["gpt-*", "o3", "chat"].map(str::to_owned).to_vec();
    let mut world = elsewhere.world(|setting| setting.models = models).await;
    let (_engine, _gate) = world.make_ready("chat", 1, (4, 16));
    let mut client = world.client().await;
    let listed = client.get("/v1/models").await.json();
    let ids: Vec<_> = listed["data"].as_array().unwrap().iter().map(|entry| &entry["id"]).collect();
    assert_eq!(ids, ["chat", "o3"]);
    assert_eq!(client.get("/v1/models/o3").await.json()["owned_by"], "fall-through");
    assert_eq!(client.get("/v1/models/gpt-5").await.head.status, 404);
    let answer = client.ask(chat("o3-mini", false)).await;
    assert_eq!((answer.head.status, &answer.error()["code"]), (404, &"model_not_found".into()));
    client.post(chat("gpt-5", false)).await;
    elsewhere.accept().await.request().await;
}

#[tokio::test]
async fn two_that_point_at_each_other_come_to_an_end() {
    let itself = |address| Some(made(setting(&format!("http://{address}"))));
    let world = World::start_above(limits(), Access::default(), itself).await;
    let mut client = world.client().await;
    for stream in [false, true] {
        let answer = client.ask(chat("gpt-5", stream)).await;
        assert_eq!(answer.head.status, 404);
        assert_eq!(answer.error()["code"], "model_not_found");
        let message = answer.error()["message"].as_str().unwrap().to_owned();
        assert!(message.contains("the request came through 3 servers"), "{message}");
    }
    let body = chat("gpt-5", false);
    client.post_with("/v1/chat/completions", "x-slotd-hops: many\r\n", body.as_bytes()).await;
    assert_eq!(client.answer().await.head.status, 404);
}

#[tokio::test]
async fn nobody_there_and_nobody_who_answers_are_told() {
    let elsewhere = Elsewhere::start().await;
    let world = elsewhere.world(|setting| setting.timeout = Duration::from_millis(50)).await;
    let mut client = world.client().await;
    client.post(chat("gpt-5", false)).await;
    let _line = elsewhere.accept().await;
    let answer = client.answer().await;
    assert_eq!(
        (answer.head.status, &answer.error()["code"]),
        (504, &"fall_through_timeout".into())
    );
    drop(elsewhere);
    let answer = client.ask(chat("gpt-5", false)).await;
    assert_eq!(answer.head.status, 502);
    assert_eq!(answer.error()["code"], "fall_through_unreachable");
    assert!(answer.head.header("retry-after").is_some());
}

#[tokio::test]
async fn a_stream_that_takes_too_long_ends_with_the_word_for_it() {
    let elsewhere = Elsewhere::start().await;
    let world = elsewhere.world(|setting| setting.timeout = Duration::from_secs(1)).await;
    let mut client = world.client().await;
    client.post(chat("gpt-5", true)).await;
    let mut line = elsewhere.accept().await;
    let mut body = stream(&mut client, &mut line).await;
    while client.chunk(&mut body).await.is_some_and(|count| count > 0) {}
    assert!(String::from_utf8(body).unwrap().contains("fall_through_timeout"));
    line.hung_up().await;
}

#[tokio::test]
async fn a_client_that_leaves_and_a_person_who_cancels_end_it_there() {
    let elsewhere = Elsewhere::start().await;
    let world = elsewhere.world(|_| {}).await;
    let mut client = world.client().await;
    client.post(chat("gpt-5", true)).await;
    let mut line = elsewhere.accept().await;
    stream(&mut client, &mut line).await;
    let flights = world.flights.list();
    assert_eq!(flights.iter().map(|one| one.slot.as_str()).collect::<Vec<_>>(), ["fall-through"]);
    drop(client);
    line.hung_up().await;

    let mut client = world.client().await;
    client.post(chat("gpt-5", true)).await;
    let mut line = elsewhere.accept().await;
    let mut body = stream(&mut client, &mut line).await;
    assert!(world.flights.cancel(world.flights.list().last().unwrap().id));
    while client.chunk(&mut body).await.is_some_and(|count| count > 0) {}
    assert!(String::from_utf8(body).unwrap().contains("request_cancelled"));
    line.hung_up().await;
}

/// Takes a connection as a server with a certificate.
async fn shaken(
    elsewhere: &Elsewhere,
    made: &CertifiedKey<KeyPair>,
) -> std::io::Result<Line<TlsStream<TcpStream>>> {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let Line { stream, .. } = elsewhere.accept().await;
    let stream = soon("a handshake", TlsAcceptor::from(Arc::new(config)).accept(stream)).await?;
    Ok(Line { stream, buffer: Vec::new() })
}

#[tokio::test]
async fn over_tls_the_upstream_has_to_be_the_one_that_was_meant() {
    let elsewhere = Elsewhere::start().await;
    let (right, wrong) = (
        generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap(),
        generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap(),
    );
    let trusted: CertificateDer<'static> = right.cert.der().clone();
    let url = format!("https://localhost:{}/v1", elsewhere.0.local_addr().unwrap().port());
    let below = |_| {
        let mut roots = RootCertStore::empty();
        roots.add(trusted).unwrap();
        let upstream = FallThrough::new(setting(&url), roots).unwrap();
        assert!(upstream.set_key(KEY));
        Some(upstream)
    };
    let world = World::start_above(limits(), Access::default(), below).await;
    let mut client = world.client().await;
    client.post(chat("gpt-5", false)).await;
    assert!(shaken(&elsewhere, &wrong).await.is_err(), "the client hangs up");
    let answer = client.answer().await;
    assert_eq!(answer.error()["code"], "fall_through_unreachable");

    client.post(chat("gpt-5", true)).await;
    let mut line = shaken(&elsewhere, &right).await.unwrap();
    let mut body = stream(&mut client, &mut line).await;
    line.send("e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").await;
    while client.chunk(&mut body).await.unwrap() > 0 {}
    assert!(body.ends_with(b"data: [DONE]\n\n"));
}
