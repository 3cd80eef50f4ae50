//! The byte relay and hyper, held against each other: the same requests through both, and what the
//! client got and the engine saw.

use std::collections::BTreeMap;

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use slotd::proxy::ByteRelay;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    client::chat,
    corpus::cases::{self, Expected},
    engine::{Engine, Line},
    world::{World, limits, soon},
};

/// What an engine says to a request, and whether it goes on with the connection.
#[derive(Clone, Debug)]
struct Saying {
    pieces: Vec<Vec<u8>>,
    hangs_up: bool,
}

/// One exchange: what a client sends, in pieces, and what the engine says to whatever reaches it.
#[derive(Clone, Debug)]
struct Exchange {
    sent: Vec<Vec<u8>>,
    saying: Saying,
    /// So many answers are waited for. Without any the client closes its side once all is sent: what it
    /// gets then is a matter of moments.
    answers: usize,
}

/// What came of an exchange.
#[derive(Clone, Debug, Default, PartialEq)]
struct Outcome {
    answers: Vec<Answered>,
    /// Whether the last answer broke off.
    is_cut: bool,
    /// Heads (as a set of lines) and bodies of what reached the engine.
    seen: Vec<(Vec<String>, Vec<u8>)>,
}

/// What the byte relay says by the clock of these tests; hyper has a clock of its own.
const OWN_DATE: &[u8] = b"\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n";

/// An endpoint whose engine says what it is told to.
struct Side {
    world: World,
    says: watch::Sender<Saying>,
    seen: mpsc::Receiver<(String, Vec<u8>)>,
    /// Answers that the byte relay wrote.
    by_bytes: usize,
    _engine: JoinSet<()>,
}

impl Side {
    async fn start(byte_relay: ByteRelay) -> Self {
        let mut world = World::start_by(limits(), byte_relay).await;
        let (engine, _gate) = world.make_ready("chat", 1, (4, 16));
        let nothing = Saying { pieces: Vec::new(), hangs_up: true };
        let (says, hears) = watch::channel(nothing);
        let (shows, seen) = mpsc::channel(64);
        let mut task = JoinSet::new();
        task.spawn(serve(engine, hears, shows));
        Self { world, says, seen, by_bytes: 0, _engine: task }
    }

    async fn play(&mut self, exchange: &Exchange) -> Outcome {
        self.says.send_replace(exchange.saying.clone());
        let mut stream = TcpStream::connect(self.world.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for piece in &exchange.sent {
            // The endpoint may have hung up in the middle, which is an answer too.
            if stream.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        if exchange.answers == 0 {
            drop(stream.shutdown().await);
        }
        let (mut read, mut answers, mut is_cut) = (Vec::new(), Vec::new(), false);
        while exchange.answers == 0 || answers.len() < exchange.answers {
            if let Some((answer, length)) = whole(&read) {
                self.by_bytes += usize::from(find(&read, OWN_DATE).is_some());
                answers.push(answer);
                read.drain(..length);
                continue;
            }
            if let Ok(0) | Err(_) = soon("an answer", stream.read_buf(&mut read)).await {
                answers.extend(begun(&read));
                is_cut = true;
                break;
            }
        }
        if exchange.answers == 0 {
            answers.clear();
        }
        drop(stream);
        let mut seen = Vec::new();
        while let Ok((head, body)) = self.seen.try_recv() {
            let mut lines: Vec<String> = head.lines().map(str::to_owned).collect();
            lines.retain(|line| !line.starts_with("x-request-id: req-"));
            lines.sort();
            seen.push((lines, body));
        }
        Outcome { answers, is_cut, seen }
    }
}

async fn serve(
    engine: Engine,
    says: watch::Receiver<Saying>,
    shows: mpsc::Sender<(String, Vec<u8>)>,
) {
    let mut lines = JoinSet::new();
    loop {
        let Some(line) = engine.accept_next().await else { return };
        lines.spawn(answer(line, says.clone(), shows.clone()));
    }
}

async fn answer(
    mut line: Line,
    says: watch::Receiver<Saying>,
    shows: mpsc::Sender<(String, Vec<u8>)>,
) {
    while let Some(request) = line.next_request().await {
        shows.send((request.head, request.body)).await.unwrap();
        let saying = says.borrow().clone();
        for piece in &saying.pieces {
            if line.try_send(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        if saying.hangs_up {
            return;
        }
    }
}

type Headers = BTreeMap<String, Vec<String>>;
type Answered = (u16, Headers, String);

/// Reads an answer if all of it is there; says how long it is.
fn whole(read: &[u8]) -> Option<(Answered, usize)> {
    let (status, headers, body) = parts(read)?;
    let head = read.len() - body.len();
    if status == 100 {
        let (answer, length) = whole(body)?;
        return Some((answer, head + length));
    }
    let (body, length) = match headers.get("content-length") {
        Some(length) => {
            let length: usize = length[0].parse().unwrap();
            (body.get(..length)?.to_vec(), length)
        }
        None if status == 204 => (Vec::new(), 0),
        None if !headers.contains_key("transfer-encoding") => return None,
        None => {
            let (data, length) = dechunked(body);
            (data, length?)
        }
    };
    let answer = (status, told(headers), String::from_utf8_lossy(&body).into_owned());
    Some((answer, head + length))
}

/// Reads as much of an answer as there is.
fn begun(read: &[u8]) -> Option<Answered> {
    let (status, headers, body) = parts(read)?;
    if status == 100 {
        return begun(body);
    }
    let is_chunked = headers.contains_key("transfer-encoding");
    let body = if is_chunked { dechunked(body).0 } else { body.to_vec() };
    Some((status, told(headers), String::from_utf8_lossy(&body).into_owned()))
}

/// What may differ: ids and the time.
fn told(mut headers: Headers) -> Headers {
    headers.remove("x-slotd-queue-ms");
    for name in ["x-request-id", "date"] {
        if let Some(values) = headers.get_mut(name)
            && (name == "date" || values[0].starts_with("req-"))
        {
            *values = vec![format!("{} of them", values.len())];
        }
    }
    headers
}

fn parts(read: &[u8]) -> Option<(u16, Headers, &[u8])> {
    let end = find(read, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let mut headers = Headers::new();
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        headers.entry(name.to_owned()).or_default().push(value.to_owned());
    }
    Some((status, headers, &read[end + 4..]))
}

/// Takes a body out of its chunks; says how long it was with them, if its end is there.
fn dechunked(all: &[u8]) -> (Vec<u8>, Option<usize>) {
    let (mut body, mut bytes) = (Vec::new(), all);
    loop {
        let Some(end) = find(bytes, b"\r\n") else { return (body, None) };
        let size = usize::from_str_radix(&String::from_utf8_lossy(&bytes[..end]), 16).unwrap();
        let data = &bytes[end + 2..];
        if size == 0 {
            let length = all.len() - data.len() + 2;
            return (body, data.starts_with(b"\r\n").then_some(length));
        }
        body.extend_from_slice(&data[..size.min(data.len())]);
        let Some(rest) = data.get(size + 2..) else { return (body, None) };
        bytes = rest;
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Bodies that are JSON, nearly JSON, and none.
fn bodies() -> impl Strategy<Value = String> {
    let model = prop_oneof![
        6 => Just("\"chat\"".to_owned()),
        1 => Just("\"org/small\"".to_owned()),
        1 => Just("\"ch\\u0061t\"".to_owned()),
        1 => Just("\"nobody\"".to_owned()),
        1 => Just("3".to_owned()),
    ];
    let stream = prop_oneof![
        Just(String::new()),
        Just(",\"stream\":true".to_owned()),
        Just(", \"stream\" : false".to_owned()),
        Just(",\"stream\":null".to_owned()),
        Just(",\"stream\":\"true\"".to_owned()),
    ];
    let end = prop_oneof![
        10 => Just("}".to_owned()),
        1 => Just("} ".to_owned()),
        1 => Just("}}".to_owned()),
        1 => Just(String::new()),
        1 => Just(",\"model\":\"chat\"}".to_owned()),
    ];
    let start =
        prop_oneof![8 => Just("{"), 1 => Just(" \n{"), 1 => Just("["), 1 => Just("\u{feff}{")];
    (start, "[a-z\\\\\"é]{0,200}", model, stream, end).prop_map(
        |(start, text, model, stream, end)| {
            let text = serde_json::Value::from(text);
            format!("{start}\"messages\":[{text}],\"model\":{model}{stream}{end}")
        },
    )
}

fn fields() -> impl Strategy<Value = Vec<String>> {
    let one = prop_oneof![
        Just("content-type: application/json"),
        Just("User-Agent: test/1"),
        Just("user-agent: other"),
        Just("accept: */*"),
        Just("Accept-Encoding: gzip"),
        Just("cookie: a=b"),
        Just("x-request-id: mine-1"),
        Just("X-Request-Id: not one"),
        Just("x-one: 1, 2"),
        Just("x-one: again"),
        Just("x-forwarded-for: 10.0.0.1"),
        Just("referer: http://a"),
        Just("connection: keep-alive"),
        Just("connection: close"),
        Just("connection: x-one"),
        Just("x-stainless-read-timeout: 600"),
        Just("x-slotd-lane: batch"),
        Just("expect: 100-continue"),
        Just("te: trailers"),
        Just("x-odd: \u{e9}"),
        Just("x_under: score"),
        Just("content-encoding: identity"),
        Just("origin: http://localhost:1"),
        Just("origin: http://elsewhere"),
        Just("traceparent: nonsense"),
        Just("x-tab:\tvalue\t"),
        Just("x-empty:"),
        Just("authorization: Bearer none"),
    ];
    prop::collection::vec(one.prop_map(str::to_owned), 0..5)
}

/// What engines say, whole and broken.
fn sayings() -> impl Strategy<Value = Saying> {
    const EVENT: &str = "data: {\"choices\":[]}\n\n";
    const DONE: &str = "data: [DONE]\n\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let stream = "content-type: text/event-stream\r\ncache-control: private";
    let texts: Vec<String> = [
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}".to_owned(),
        "HTTP/1.1 201 Made\r\nServer: x\r\nX-Two: 2\r\nset-cookie: a\r\nContent-Length: 2\r\n\r\n{}".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ndate: today\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nuntil the end".to_owned(),
        "HTTP/1.0 200 OK\r\n\r\nuntil the end".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort".to_owned(),
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned(),
        "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        "HTTP/1.1 400 Bad\r\ncontent-length: 31\r\nx-why: so\r\n\r\n{\"error\":{\"message\":\"no model\"}}".to_owned(),
        "HTTP/1.1 500 Oh\r\ntransfer-encoding: chunked\r\n\r\n4\r\noops\r\n0\r\n\r\n".to_owned(),
        "HTTP/1.1 503 Busy\r\ncontent-length: 9\r\n\r\nshort".to_owned(),
        "HTTP/1.1 429 Many\r\nretry-after: 3\r\ncontent-length: 2\r\n\r\n{}".to_owned(),
        format!("HTTP/1.1 200 OK\r\n{stream}\r\ntransfer-encoding: chunked\r\n\r\n{}{}0\r\n\r\n", chunk(EVENT), chunk(DONE)),
        format!("HTTP/1.1 200 OK\r\n{stream}\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk(EVENT)),
        format!("HTTP/1.1 200 OK\r\n{stream}\r\ntransfer-encoding: chunked\r\n\r\n{}{}", chunk(EVENT), chunk(DONE)),
        format!("HTTP/1.1 200 OK\r\n{stream}\r\ntransfer-encoding: chunked\r\n\r\n{}5\r\nda", chunk(EVENT)),
        format!("HTTP/1.1 200 OK\r\n{stream}\r\ntransfer-encoding: chunked\r\n\r\n{};x=y\r\n{EVENT}\r\n{}0\r\nx: y\r\n\r\n", "15", chunk(DONE)),
        format!("HTTP/1.1 200 OK\r\n{stream}\r\ncontent-length: {}\r\n\r\n{EVENT}{DONE}", EVENT.len() + DONE.len()),
        format!("HTTP/1.1 200 OK\r\n{stream}\r\n\r\n{EVENT}{DONE}"),
        format!("HTTP/1.1 200 OK\r\n{stream}\r\n\r\n{EVENT}"),
        "nonsense\r\n\r\n".to_owned(),
    ]
    .into();
    (prop::sample::select(texts), 1..400_usize).prop_map(|(text, cut)| {
        // Only where nothing follows does the engine say the end by hanging up.
        let is_closed =
            ["until the end", "short", "nonsense", "5\r\nda"].iter().any(|end| text.contains(end))
                || !(text.ends_with("0\r\n\r\n")
                    || text.contains("ontent-length")
                    || text.contains(" 204"));
        let pieces = text.as_bytes().chunks(cut).map(<[u8]>::to_vec).collect();
        Saying { pieces, hangs_up: is_closed }
    })
}

fn exchanges() -> impl Strategy<Value = Exchange> {
    let path = prop_oneof![
        6 => Just("/v1/chat/completions"),
        1 => Just("/v1/completions"),
        1 => Just("/v1/embeddings"),
        1 => Just("/v1/messages"),
        1 => Just("/v1/responses"),
        1 => Just("/v1/chat/completions?a=b"),
        1 => Just("/nowhere"),
    ];
    (path, fields(), bodies(), sayings(), 1..600_usize, 0..8_u32).prop_map(
        |(path, fields, body, saying, cut, odd)| {
            let host = match odd {
                0 => "Host:  127.0.0.1:80",
                1 => "host: elsewhere",
                _ => "host: localhost",
            };
            let fields = fields.iter().fold(String::new(), |all, field| all + field + "\r\n");
            let text = format!(
                "POST {path} HTTP/1.1\r\n{host}\r\n{fields}content-length: {}\r\n\r\n{body}",
                body.len()
            );
            let sent = text.as_bytes().chunks(cut).map(<[u8]>::to_vec).collect();
            Exchange { sent, saying, answers: 1 }
        },
    )
}

fn whole_answer() -> Saying {
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    Saying { pieces: vec![answer.as_bytes().to_vec()], hangs_up: false }
}

async fn compare(sides: &mut [Side; 2], name: &str, exchange: &Exchange) -> Option<String> {
    let [bytes, hyper] = sides;
    let (by_bytes, by_hyper) = (bytes.play(exchange).await, hyper.play(exchange).await);
    (by_bytes != by_hyper).then(|| {
        let sent =
            String::from_utf8_lossy(&exchange.sent.concat()).chars().take(900).collect::<String>();
        let said = String::from_utf8_lossy(&exchange.saying.pieces.concat()).into_owned();
        format!("{name}:\nsent {sent:?}\nsaid {said:?}\nbytes {by_bytes:?}\nhyper {by_hyper:?}\n")
    })
}

async fn sides() -> [Side; 2] {
    [Side::start(ByteRelay::On).await, Side::start(ByteRelay::Off).await]
}

#[tokio::test]
async fn the_corpus_comes_to_the_same_on_both_ways() {
    let mut sides = sides().await;
    let (mut faults, mut count) = (Vec::new(), 0);
    for case in cases::all() {
        let answers = match case.expected {
            Expected::Passes(requests) => requests,
            Expected::Refused | Expected::Ours | Expected::AtMostOne => 1,
            Expected::Waits => 0,
        };
        let exchange = Exchange { sent: vec![case.bytes], saying: whole_answer(), answers };
        faults.extend(compare(&mut sides, case.name, &exchange).await);
        count += 1;
    }
    assert!(faults.is_empty(), "{} of {count}:\n{}", faults.len(), faults.join("\n"));
    assert!(count >= 150, "{count}");
}

#[tokio::test]
async fn random_requests_and_answers_come_to_the_same_on_both_ways() {
    const COUNT: usize = 1500;
    let mut sides = sides().await;
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let (mut faults, mut statuses, mut reached) = (Vec::new(), BTreeMap::new(), 0);
    for number in 0..COUNT {
        let exchange = exchanges().new_tree(&mut runner).unwrap().current();
        faults.extend(compare(&mut sides, &format!("exchange {number}"), &exchange).await);
        let result = sides[0].play(&exchange).await;
        reached += result.seen.len();
        for (status, ..) in &result.answers {
            *statuses.entry(*status).or_insert(0_usize) += 1;
        }
        if faults.len() > 5 {
            break;
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(reached > COUNT / 3, "{reached} of {COUNT} reached the engine");
    let [bytes, hyper] = &sides;
    assert!(bytes.by_bytes > COUNT / 4, "{} answers by the byte relay", bytes.by_bytes);
    assert_eq!(hyper.by_bytes, 0);
    for status in [200, 400, 403, 404, 429, 500, 502] {
        assert!(statuses.contains_key(&status), "{status} never came: {statuses:?}");
    }
    println!(
        "{COUNT} exchanges, {reached} reached the engine, {statuses:?}, {} twice by bytes",
        bytes.by_bytes
    );
}

#[tokio::test]
async fn requests_one_after_the_other_and_at_once_come_to_the_same_on_both_ways() {
    let body = chat("chat", false);
    let one = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    for side in &mut sides().await {
        side.says.send_replace(whole_answer());
        let mut stream = TcpStream::connect(side.world.address).await.unwrap();
        // Three at once, then one that goes to hyper, then one more.
        stream.write_all(one.repeat(3).as_bytes()).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        stream.write_all(one.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        while read.windows(12).filter(|bytes| bytes == b"HTTP/1.1 200").count() < 5 {
            let count = soon("five answers", stream.read_buf(&mut read)).await.unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&read));
        }
        let mut seen = 0;
        while side.seen.try_recv().is_ok() {
            seen += 1;
        }
        assert_eq!(seen, 4);
    }
}
