//! Crowds and floods: many slow senders, and a body that never ends.

use std::{fs, time::Duration};

use futures_util::future::join_all;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use super::{Counter, beside};
use crate::world::{World, soon};

const CROWD: usize = 500;

/// Memory of this process, which the endpoint is a part of, in bytes.
fn memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
}

/// Both ends of every connection are this process's.
fn make_room_for_files() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(8192), most).unwrap();
}

#[tokio::test]
async fn five_hundred_slow_senders_harm_nobody_and_are_sent_away() {
    make_room_for_files();
    let (world, engine, _gate) = World::ready().await;
    let counter = Counter::start(engine);
    let mut healthy = world.client().await;
    beside(&mut healthy).await;
    let before = memory();
    let mut senders = Vec::new();
    for number in 0..CROWD {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n";
        // Some stop in the line, some in a field, some after much of one.
        let text = match number % 3 {
            0 => "POST /v1/ch".to_owned(),
            1 => format!("{head}x-slow: a"),
            _ => format!("{head}x-slow: {}", "a".repeat(16 << 10)),
        };
        stream.write_all(text.as_bytes()).await.unwrap();
        senders.push(stream);
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..100 {
        let begin = Instant::now();
        beside(&mut healthy).await;
        slowest = slowest.max(begin.elapsed());
    }
    let mut newcomer = world.client().await;
    beside(&mut newcomer).await;
    let grown = memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB for {CROWD} slow senders", grown >> 20);
    let ends = senders.into_iter().map(|mut stream| async move {
        let mut rest = Vec::new();
        // Ends with an answer or a reset: what counts is that it ends.
        drop(stream.read_to_end(&mut rest).await);
    });
    soon("the end of every slow sender", join_all(ends)).await;
    beside(&mut newcomer).await;
    assert_eq!(counter.requests(), 103);
    println!("{CROWD} slow senders: {} KiB, slowest beside {slowest:?}", grown >> 10);
}

#[tokio::test]
async fn a_body_of_64_mib_is_not_kept() {
    for is_chunked in [false, true] {
        let (world, engine, _gate) = World::ready().await;
        let counter = Counter::start(engine);
        let mut healthy = world.client().await;
        beside(&mut healthy).await;
        let before = memory();
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let framing = if is_chunked {
            "transfer-encoding: chunked".to_owned()
        } else {
            format!("content-length: {}", 64 << 20)
        };
        let head =
            format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{framing}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let spaces = " ".repeat(64 << 10);
        let piece = if is_chunked { format!("10000\r\n{spaces}\r\n") } else { spaces };
        let mut most = 0;
        for _ in 0..1024 {
            // It may stop reading: the answer is there then.
            if soon("room for a piece", stream.write_all(piece.as_bytes())).await.is_err() {
                break;
            }
            most = most.max(memory().saturating_sub(before));
        }
        beside(&mut healthy).await;
        assert!(most < 16 << 20, "{} MiB for a body over the limit", most >> 20);
        assert_eq!(counter.requests(), 2);
        println!("64 MiB, chunked {is_chunked}: {} KiB", most >> 10);
    }
}
