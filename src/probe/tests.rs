use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicU32},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// What a fake answers to one path.
type Script = fn(&str) -> Reply;

enum Reply {
    Answer(u16, String),
    Raw(&'static [u8]),
    Hang,
    /// A body without an end.
    Flood,
    /// One byte after the other, for ever.
    Drip,
}

/// An engine on a Unix socket. Its connections end with it.
struct Fake {
    folder: tempfile::TempDir,
    connections: Arc<AtomicU32>,
    _tasks: JoinSet<()>,
}

impl Fake {
    fn new(script: Script) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("x.sock")).unwrap();
        let connections = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&connections);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                serving.spawn(serve(stream, script));
            }
        });
        Self { folder, connections, _tasks: tasks }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("x.sock")
    }

    fn probe(&self, kind: EngineKind) -> Probe {
        Probe::new(&Endpoint::Unix(self.socket()), kind, "chat")
    }
}

async fn serve(stream: UnixStream, script: Script) {
    let mut stream = BufReader::new(stream);
    while let Some(path) = request(&mut stream).await {
        let out = stream.get_mut();
        let sent = match script(&path) {
            Reply::Answer(status, body) => {
                let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n", body.len());
                out.write_all((head + &body).as_bytes()).await
            }
            Reply::Raw(bytes) => out.write_all(bytes).await,
            Reply::Hang => std::future::pending().await,
            Reply::Flood => {
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n";
                let mut sent = out.write_all(head).await;
                while sent.is_ok() {
                    sent = out.write_all(&[b'x'; 1 << 12]).await;
                }
                sent
            }
            Reply::Drip => {
                let mut sent = out.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
                while sent.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    sent = out.write_all(b"x").await;
                }
                sent
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Reads a request's head; returns its path.
async fn request(stream: &mut BufReader<UnixStream>) -> Option<String> {
    let mut first = String::new();
    stream.read_line(&mut first).await.ok()?;
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
    }
    first.split(' ').nth(1).map(str::to_owned)
}

fn models(id: &str) -> Reply {
    Reply::Answer(200, format!(r#"{{"object":"list","data":[{{"id":"{id}"}}]}}"#))
}

fn ok() -> Reply {
    Reply::Answer(200, r#"{"status":"ok"}"#.to_owned())
}

async fn look(script: Script, kind: EngineKind) -> Health {
    let fake = Fake::new(script);
    fake.probe(kind).look(SOON).await
}

#[tokio::test]
async fn a_ready_engine_is_asked_for_its_model_once_over_one_connection() {
    static LISTS: AtomicU32 = AtomicU32::new(0);
    let fake = Fake::new(|path| {
        if path == "/health" {
            return ok();
        }
        LISTS.fetch_add(1, Ordering::Relaxed);
        models("chat")
    });
    let probe = fake.probe(EngineKind::LlamaServer);
    for _ in 0..3 {
        assert_eq!(probe.look(SOON).await, Health::Ready);
    }
    assert_eq!(LISTS.load(Ordering::Relaxed), 1);
    assert_eq!(fake.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn another_model_behind_the_address_is_an_impostor() {
    let other: Script = |path| if path == "/health" { ok() } else { models("other") };
    let impostor = Health::Impostor { found: "other".into() };
    assert_eq!(look(other, EngineKind::Candle).await, impostor);
    let page: Script = |_| Reply::Answer(200, "<html>".into());
    let health = look(page, EngineKind::LlamaServer).await;
    assert!(matches!(health, Health::Impostor { .. }), "{health:?}");
    // A command's model has a name that slotd does not know.
    assert_eq!(look(other, EngineKind::Command).await, Health::Ready);
}

#[tokio::test]
async fn an_engine_that_hides_its_list_is_believed() {
    let hidden: Script =
        |path| if path == "/health" { ok() } else { Reply::Answer(401, "{}".into()) };
    assert_eq!(look(hidden, EngineKind::LlamaServer).await, Health::Ready);
}

#[tokio::test]
async fn loading_comes_with_its_share_where_it_is_told() {
    let llama: Script = |_| {
        let body = r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#;
        Reply::Answer(503, body.into())
    };
    assert_eq!(look(llama, EngineKind::LlamaServer).await, Health::Loading { percent: None });
    let worker: Script = |_| Reply::Answer(503, r#"{"status":"loading","progress":0.42}"#.into());
    assert_eq!(look(worker, EngineKind::Candle).await, Health::Loading { percent: Some(42) });
    let broken: Script = |_| Reply::Answer(503, r#"{"progress":1e300}"#.into());
    assert_eq!(look(broken, EngineKind::Candle).await, Health::Loading { percent: Some(100) });
}

#[tokio::test]
async fn a_command_without_health_is_ready_when_it_lists_models() {
    let bare: Script = |path| match path {
        "/v1/models" => Reply::Answer(200, String::new()),
        _ => Reply::Answer(404, String::new()),
    };
    assert_eq!(look(bare, EngineKind::Command).await, Health::Ready);
    assert_eq!(look(bare, EngineKind::LlamaServer).await, Health::NotReady { status: 404 });
    let none: Script = |_| Reply::Answer(404, String::new());
    assert_eq!(look(none, EngineKind::Command).await, Health::NotReady { status: 404 });
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let away: Script = |path| match path {
        "/health" => Reply::Raw(b"HTTP/1.1 302 x\r\nlocation: /ok\r\ncontent-length: 0\r\n\r\n"),
        _ => ok(),
    };
    assert_eq!(look(away, EngineKind::Command).await, Health::NotReady { status: 302 });
}

#[tokio::test]
async fn nobody_there_is_refused() {
    let fake = Fake::new(|_| ok());
    let socket = fake.socket();
    let probe = fake.probe(EngineKind::LlamaServer);
    drop(fake);
    assert_eq!(probe.look(SOON).await, Health::Refused);
    // A socket that nobody listens on any more.
    let folder = tempfile::tempdir().unwrap();
    let left = folder.path().join("x.sock");
    drop(UnixListener::bind(&left).unwrap());
    let probe = Probe::new(&Endpoint::Unix(left), EngineKind::LlamaServer, "chat");
    assert_eq!(probe.look(SOON).await, Health::Refused);
    assert!(!socket.exists());

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let probe = Probe::new(&Endpoint::Tcp(address), EngineKind::Command, "chat");
    assert_eq!(probe.look(SOON).await, Health::Refused);
}

#[tokio::test]
async fn an_engine_that_comes_back_is_seen_by_the_same_probe() {
    let ready: Script = |path| if path == "/health" { ok() } else { models("chat") };
    let first = Fake::new(ready);
    let probe = first.probe(EngineKind::LlamaServer);
    assert_eq!(probe.look(SOON).await, Health::Ready);
    let Fake { folder, _tasks: mut tasks, .. } = first;
    tasks.shutdown().await;
    assert_eq!(probe.look(SOON).await, Health::Refused);
    std::fs::remove_file(folder.path().join("x.sock")).unwrap();
    let listener = UnixListener::bind(folder.path().join("x.sock")).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve(stream, ready).await;
    });
    assert_eq!(probe.look(SOON).await, Health::Ready);
}

#[tokio::test]
async fn silence_and_slowness_end_with_the_deadline() {
    let deadline = Duration::from_millis(100);
    let scripts: [Script; 2] = [|_| Reply::Hang, |_| Reply::Drip];
    for script in scripts {
        let fake = Fake::new(script);
        let began = tokio::time::Instant::now();
        assert_eq!(fake.probe(EngineKind::Candle).look(deadline).await, Health::Unknown);
        assert!(began.elapsed() < SOON);
    }
}

#[tokio::test]
async fn garbage_is_unknown_and_a_flood_is_not_drunk() {
    let garbage: Script = |_| Reply::Raw(b"\x16\x03\x01 hello\r\n\r\n");
    assert_eq!(look(garbage, EngineKind::LlamaServer).await, Health::Unknown);
    let cut: Script =
        |_| Reply::Raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n");
    assert_eq!(look(cut, EngineKind::LlamaServer).await, Health::Unknown);
    // The first 64 KiB of a body decide, and the status came before.
    assert_eq!(look(|_| Reply::Flood, EngineKind::Command).await, Health::Ready);
    let lists: Script = |path| if path == "/health" { ok() } else { Reply::Flood };
    let health = look(lists, EngineKind::LlamaServer).await;
    assert!(matches!(health, Health::Impostor { .. }), "{health:?}");
}
