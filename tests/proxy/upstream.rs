//! Connections to engines: reused, replaced, and requests that outlive an engine.

use std::time::Duration;

use slotd::{proxy::Blame, supervisor::StateView};
use tokio::time::timeout;

use crate::{
    client::chat,
    world::{World, soon},
};

#[tokio::test]
async fn a_connection_is_used_again() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk("data: [DONE]\n\n").await;
    line.end_stream().await;
    assert!(client.answer().await.is_whole);
    for _ in 0..3 {
        client.post(chat("chat", false)).await;
        line.request().await;
        line.answer("200 OK", "{}").await;
        assert_eq!(client.answer().await.head.status, 200);
    }
    client.post(chat("chat", false)).await;
    line.request().await;
    line.answer("400 Bad Request", "{}").await;
    assert_eq!(client.answer().await.head.status, 400);
    client.post(chat("chat", false)).await;
    line.request().await;
}

#[tokio::test]
async fn an_idle_connection_that_the_engine_closed_is_replaced() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;
    line.answer("200 OK", "{}").await;
    client.answer().await;
    drop(line);
    client.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;
    line.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.head.status, 200);
}

#[tokio::test]
async fn a_connection_closed_just_as_it_is_used_again_is_replaced() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;
    line.answer("200 OK", "{}").await;
    client.answer().await;
    client.post(chat("chat", false)).await;
    let first = line.request().await;
    drop(line);
    let (mut line, again) = engine.request().await;
    assert_eq!(first.body, again.body);
    line.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.head.status, 200);
}

#[tokio::test]
async fn a_closed_gate_hangs_up_on_idle_connections() {
    let (world, engine, gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;
    line.answer("200 OK", "{}").await;
    client.answer().await;
    gate.close();
    line.hung_up().await;
}

#[tokio::test]
async fn an_engine_that_answers_before_it_has_read_all_gets_nothing_more_on_that_connection() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    let prompt = "x".repeat(900 << 10);
    client.post(format!("{{\"prompt\":\"{prompt}\",\"model\":\"chat\"}}")).await;
    let mut line = engine.accept().await;
    line.raw(100).await;
    line.answer("413 Payload Too Large", r#"{"error":{"message":"big"}}"#).await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status, answer.error()["message"].as_str()), (413, Some("big")));
    client.post(chat("chat", false)).await;
    let (mut next, _) = engine.request().await;
    next.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.head.status, 200);
}

#[tokio::test]
async fn a_request_whose_engine_died_unheard_goes_to_the_next_engine() {
    for stream in [false, true] {
        let mut world = World::start(crate::world::limits()).await;
        let (old, gate) = world.make_ready("chat", 1, (4, 4));
        let mut client = world.client().await;
        let body = chat("chat", stream);
        client.post(&body).await;
        let (line, _) = old.request().await;
        drop((line, old));
        world.set_state("chat", StateView::Reaping { pid: 1 });
        gate.mark_dead(Blame::Nobody);
        let waiter = world.demanded().await;
        let (new, _gate) = world.make_ready("chat", 2, (4, 4));
        world.answer(waiter, Ok(()));
        let (mut line, request) = new.request().await;
        assert_eq!(request.body, body.as_bytes());
        line.answer("200 OK", "{}").await;
        assert_eq!(client.answer().await.head.status, 200);
    }
}

#[tokio::test]
async fn a_request_that_two_engines_died_of_is_not_given_to_a_third() {
    let mut world = World::start(crate::world::limits()).await;
    let (old, gate) = world.make_ready("chat", 1, (4, 4));
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    drop(old.request().await);
    world.set_state("chat", StateView::Reaping { pid: 1 });
    gate.mark_dead(Blame::Nobody);
    let waiter = world.demanded().await;
    let (new, gate) = world.make_ready("chat", 2, (4, 4));
    world.answer(waiter, Ok(()));
    drop(new.request().await);
    gate.mark_dead(Blame::Nobody);
    let answer = client.answer().await;
    assert_eq!(answer.head.status, 502);
    insta::assert_snapshot!(answer.error(), @r#"{"message":"the engine of slot `chat` died before it answered; `slotd status chat` says why","type":"server_error","param":null,"code":"engine_died"}"#);
}

#[tokio::test]
async fn an_engine_that_is_not_there_yet_dead_is_waited_for() {
    let mut world = World::start(crate::world::limits()).await;
    let (old, gate) = world.make_ready("chat", 1, (4, 4));
    // The engine is gone; the core has not been told.
    drop(old);
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    soon("a seat taken", async {
        while gate.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.set_state("chat", StateView::Reaping { pid: 1 });
    gate.mark_dead(Blame::Nobody);
    let waiter = world.demanded().await;
    let (new, _gate) = world.make_ready("chat", 2, (4, 4));
    world.answer(waiter, Ok(()));
    let (mut line, _) = new.request().await;
    line.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.head.status, 200);
}

#[tokio::test]
async fn while_nobody_knows_why_an_engine_ended_its_streams_end_and_who_comes_waits() {
    let mut world = World::start(crate::world::limits()).await;
    let (old, gate) = world.make_ready("chat", 1, (4, 4));
    let mut early = world.client().await;
    early.post(chat("chat", true)).await;
    let (mut line, _) = old.request().await;
    line.begin_stream().await;
    line.chunk("data: {}\n\n").await;
    let head = early.head().await;
    gate.mark_ended();
    let answer = early.rest(head).await;
    assert_eq!(answer.last_event_error()["code"], "engine_died");
    let mut late = world.client().await;
    late.post(chat("chat", false)).await;
    // The core would grant an engine of whose end it has not heard, again and again.
    let is_asked = timeout(Duration::from_millis(100), world.demanded()).await.is_ok();
    assert!(!is_asked, "asked before the core was told");
    gate.mark_dead(Blame::Nobody);
    world.set_state("chat", StateView::Reaping { pid: 1 });
    let waiter = world.demanded().await;
    let (new, _gate) = world.make_ready("chat", 2, (4, 4));
    world.answer(waiter, Ok(()));
    let (mut line, _) = new.request().await;
    line.answer("200 OK", "{}").await;
    assert_eq!(late.answer().await.head.status, 200);
}

#[tokio::test]
async fn an_answer_that_is_no_http_is_the_engines_fault() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;
    line.send("this is no HTTP at all\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!(answer.head.status, 502);
    insta::assert_snapshot!(answer.error(), @r#"{"message":"the engine of slot `chat` answered what is no HTTP; `slotd logs chat` may say why","type":"server_error","param":null,"code":"bad_engine_answer"}"#);
}
