//! Streams: every byte as it came, and never a clean end that is none.

use slotd::proxy::Blame;

use crate::{
    client::chat,
    world::{World, soon},
};

const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

#[tokio::test]
async fn a_stream_passes_byte_for_byte_in_order() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    let head = client.head().await;
    let mut sent = Vec::new();
    for number in 0_usize..400 {
        let piece = vec![u8::try_from(number % 251).unwrap(); 1 + number * number % 5000];
        sent.extend_from_slice(&piece);
        line.chunk(&piece).await;
    }
    sent.extend_from_slice(DONE.as_bytes());
    line.chunk(DONE).await;
    line.end_stream().await;
    let answer = client.rest(head).await;
    assert!(answer.is_whole);
    assert!(answer.body == sent, "a byte was lost, changed or moved");
}

#[tokio::test]
async fn each_event_arrives_as_it_is_sent_and_the_head_is_slotds() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    let head = client.head().await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("x-slotd-slot"), Some("chat"));
    assert_eq!(head.header("cache-control"), Some("no-cache"));
    assert_eq!(head.header("x-accel-buffering"), Some("no"));
    assert!(head.header("x-request-id").is_some());
    for name in ["server", "access-control-allow-origin", "set-cookie"] {
        assert_eq!(head.header(name), None);
    }
    for _ in 0..3 {
        line.chunk(EVENT).await;
        let mut event = Vec::new();
        assert_eq!(client.chunk(&mut event).await, Some(EVENT.len()));
        assert_eq!(event, EVENT.as_bytes());
    }
}

#[tokio::test]
async fn a_death_in_mid_event_ends_with_an_error_event_and_an_abort() {
    let (world, engine, gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(EVENT).await;
    line.chunk("data: {\"choices\":[{").await;
    drop((line, engine));
    let answer = client.answer().await;
    assert!(!answer.is_whole, "the stream ended as if it were whole");
    assert!(!answer.text().contains("[DONE]"));
    assert!(answer.text().starts_with(EVENT));
    insta::assert_snapshot!(answer.last_event_error(), @r#"{"message":"the engine of slot `chat` died in mid-answer; `slotd status chat` says why","type":"server_error","param":null,"code":"engine_died"}"#);
    soon("the seat", async {
        gate.close();
        gate.drained().await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_ends_without_done_is_broken() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(EVENT).await;
    line.end_stream().await;
    let answer = client.answer().await;
    assert!(!answer.is_whole);
    // It lives: nothing is said of a death.
    assert_eq!(answer.last_event_error()["code"], "bad_engine_answer");
}

#[tokio::test]
async fn a_stream_that_said_done_is_whole_however_its_connection_ends() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(EVENT).await;
    line.chunk(DONE).await;
    drop(line);
    let answer = client.answer().await;
    assert!(answer.is_whole);
    assert_eq!(answer.text(), [EVENT, DONE].concat());
}

#[tokio::test]
async fn a_cut_ends_streams_at_once_and_hangs_up_on_the_engine() {
    let (world, engine, gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(EVENT).await;
    let head = client.head().await;
    assert_eq!(gate.in_flight(), 1);
    gate.cut();
    let answer = client.rest(head).await;
    assert!(!answer.is_whole);
    insta::assert_snapshot!(answer.last_event_error(), @r#"{"message":"the engine of slot `chat` was stopped in mid-answer; `slotd status chat` says why","type":"server_error","param":null,"code":"engine_died"}"#);
    line.hung_up().await;
    soon("the seat", gate.drained()).await;
}

#[tokio::test]
async fn a_dead_engine_whose_socket_stays_open_ends_its_streams() {
    let (world, engine, gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(EVENT).await;
    let head = client.head().await;
    gate.mark_dead(Blame::Nobody);
    let answer = client.rest(head).await;
    assert!(!answer.is_whole);
    assert_eq!(answer.text().split("\n\n").count(), 3, "{}", answer.text());
    assert_eq!(answer.last_event_error()["code"], "engine_died");
}

#[tokio::test]
async fn a_client_that_reads_late_still_gets_the_error_event() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    let head = client.head().await;
    // More than the sockets in between hold: the endpoint cannot write when the engine dies.
    let event = format!("data: {}\n\n", "x".repeat(1 << 20));
    let flood = async {
        for _ in 0..16 {
            line.chunk(&event).await;
        }
        drop(line);
    };
    let (answer, ()) = tokio::join!(client.rest(head), flood);
    assert!(!answer.is_whole);
    assert_eq!(answer.last_event_error()["code"], "engine_died");
    assert!(answer.body.len() > 16 * event.len(), "events were lost");
}

#[tokio::test]
async fn an_engine_learns_at_once_that_its_client_has_gone() {
    let (world, engine, gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(EVENT).await;
    client.head().await;
    drop(client);
    line.hung_up().await;
    gate.close();
    soon("the seat", gate.drained()).await;
}

#[tokio::test]
async fn an_engine_that_has_not_answered_learns_that_its_client_has_gone() {
    let (world, engine, gate) = World::ready().await;
    for stream in [false, true] {
        let mut client = world.client().await;
        client.post(chat("chat", stream)).await;
        let (mut line, _) = engine.request().await;
        drop(client);
        line.hung_up().await;
    }
    gate.close();
    soon("the seats", gate.drained()).await;
}

#[tokio::test]
async fn an_answer_cut_short_is_never_whole() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;
    line.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"half\":").await;
    drop(line);
    let answer = client.answer().await;
    assert!(!answer.is_whole);
    assert_eq!(answer.text(), "{\"half\":");
}
