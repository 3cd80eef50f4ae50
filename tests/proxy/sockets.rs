//! Web sockets: taken over by the engine, bytes both ways, ended with either side.

use slotd::proxy::Blame;

use crate::{
    client::Client,
    engine::{Engine, Line},
    world::World,
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
