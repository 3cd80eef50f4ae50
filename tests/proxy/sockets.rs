//! Web sockets: taken over by the engine, bytes both ways, ended with either side.

use std::sync::Arc;

use arc_swap::ArcSwap;
use slotd::{
    config::keys::{self, Keys, Role},
    proxy::{Access, Blame},
};

use crate::{
    client::Client,
    engine::{Engine, Line},
    world::{World, limits, soon},
};

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
    upgrade: websocket\r\nsec-websocket-accept: abc\r\n\r\n";

async fn open(world: &World, engine: &Engine) -> (Client, Line) {
    let mut client = world.client().await;
    client
        .send(
            "GET /upstream/chat/v1/realtime?a=b HTTP/1.1\r\nhost: localhost\r\n\
             connection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-key: xyz\r\nsec-websocket-version: 13\r\n\r\n",
        )
        .await;
    let (mut line, seen) = engine.request().await;
    assert!(seen.head.starts_with("GET /v1/realtime?a=b HTTP/1.1"), "{}", seen.head);
    assert_eq!(seen.header("connection"), Some("upgrade"));
    assert_eq!(seen.header("upgrade"), Some("websocket"));
    assert_eq!(seen.header("sec-websocket-key"), Some("xyz"));
    line.send(SWITCH).await;
    let head = client.head().await;
    assert_eq!((head.status, head.header("sec-websocket-accept")), (101, Some("abc")));
    assert_eq!(head.header("x-slotd-slot"), Some("chat"));
    (client, line)
}

#[tokio::test]
async fn bytes_go_both_ways_and_the_clients_end_is_the_engines() {
    let (world, engine, gate) = World::ready().await;
    let (mut client, mut line) = open(&world, &engine).await;
    line.send("first from the engine").await;
    assert_eq!(client.raw("first from the engine".len()).await, b"first from the engine");
    client.send("from the client").await;
    assert_eq!(line.raw("from the client".len()).await, b"from the client");
    assert_eq!((gate.in_flight(), gate.expecting()), (1, 0), "its silence is nothing odd");
    drop(client);
    line.hung_up().await;
}

#[tokio::test]
async fn the_engines_end_is_the_clients() {
    let (world, engine, gate) = World::ready().await;
    let (mut client, line) = open(&world, &engine).await;
    drop(line);
    assert_eq!(client.raw(1).await, b"");
    let (mut client, _line) = open(&world, &engine).await;
    gate.mark_dead(Blame::Nobody);
    assert_eq!(client.raw(1).await, b"");
}

#[tokio::test]
async fn an_engine_that_refuses_is_told_in_words() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    client
        .send(
            "GET /upstream/chat/ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\n\r\n",
        )
        .await;
    let (mut line, _) = engine.request().await;
    line.answer("404 Not Found", r#"{"error":"no such path"}"#).await;
    let answer = client.answer().await;
    assert_eq!(
        (answer.head.status, answer.error()["message"].as_str()),
        (404, Some("no such path"))
    );
}

#[tokio::test]
async fn a_key_among_the_protocols_is_a_key_and_goes_no_further() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let key = keys::add(&file, "page", Role::Infer).unwrap();
    let known = Keys::Asked(keys::read(&file).unwrap().unwrap());
    let access = Access { keys: Arc::new(ArcSwap::from_pointee(known)), ..Access::default() };
    let mut world = World::start_with(limits(), access).await;
    let (engine, _gate) = world.make_ready("chat", 1, (4, 16));
    let open = |key: &str| {
        format!(
            "GET /upstream/chat/v1/realtime HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-key: xyz\r\nsec-websocket-protocol: realtime, \
             openai-insecure-api-key.{key}, openai-beta.realtime-v1\r\n\r\n"
        )
    };
    let mut stranger = world.client().await;
    stranger.send(open("sk-wrong")).await;
    assert_eq!(stranger.answer().await.head.status, 401);
    let mut client = world.client().await;
    client.send(open(&key)).await;
    let (mut line, seen) = engine.request().await;
    let protocols = seen.header("sec-websocket-protocol");
    assert_eq!(protocols, Some("realtime, openai-beta.realtime-v1"));
    assert!(!seen.head.contains(&key));
    line.send(SWITCH).await;
    assert_eq!(client.head().await.status, 101);
}

#[tokio::test]
async fn a_seat_is_free_again_once_either_side_has_ended() {
    let (world, engine, gate) = World::ready().await;
    let free = async || {
        soon("the seat", async {
            while gate.in_flight() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    // The engine holds its side open, and the client holds its own.
    let (client, line) = open(&world, &engine).await;
    drop(client);
    free().await;
    drop(line);
    let (client, line) = open(&world, &engine).await;
    drop(line);
    free().await;
    drop(client);
}
