//! Requests whose slot is not ready, or whose engine has no seat free.

use std::time::Duration;

use slotd::{
    proxy::{Blame, Gate},
    spec::{
        Bytes, Monotime,
        death::Verdict,
        memory::{Basis, Need},
    },
    supervisor::{Holder, Refusal, Shortage, StateView, Wait},
};

use crate::{
    client::chat,
    world::{World, limits, soon},
};

fn starting(percent: u8) -> StateView {
    let give_up_at = Monotime::default();
    StateView::Starting { pid: None, percent: Some(percent), attempt: 1, give_up_at }
}

/// Waits until so many requests wait for a seat.
async fn waiting(gate: &Gate, count: usize) {
    soon("the queue", async {
        while gate.waiting() != count {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_for_a_slot_that_is_down_is_held_until_it_is_ready() {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |_| {});
    let mut client = world.client().await;
    let body = chat("chat", false);
    client.post(&body).await;
    let waiter = world.demanded().await;
    let (engine, _gate) = world.make_ready("chat", 1, (1, 0));
    world.answer(waiter, Ok(()));
    let (mut line, request) = engine.request().await;
    assert_eq!(request.body, body.as_bytes());
    line.answer("200 OK", "{}").await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status, answer.text()), (200, "{}"));
}

#[tokio::test]
async fn a_held_stream_gets_signs_of_life_and_then_its_engines_stream() {
    let mut limits = limits();
    limits.quiet = Duration::from_millis(30);
    limits.sign_of_life = Duration::from_millis(30);
    let mut world = World::start(limits).await;
    world.set_state("chat", starting(41));
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let waiter = world.demanded().await;
    let head = client.head().await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    assert_eq!(head.header("x-slotd-slot"), Some("chat"));
    let mut signs = Vec::new();
    client.chunk(&mut signs).await;
    world.set_state("chat", starting(99));
    while !signs.ends_with(b": loading chat 99 %\n\n") {
        client.chunk(&mut signs).await;
    }
    let signs = String::from_utf8(signs).unwrap();
    assert!(signs.starts_with(": loading chat 41 %\n\n"), "{signs}");
    let (engine, _gate) = world.make_ready("chat", 1, (1, 0));
    world.answer(waiter, Ok(()));
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk("data: {}\n\ndata: [DONE]\n\n").await;
    line.end_stream().await;
    let answer = client.rest(head).await;
    assert!(answer.is_whole);
    assert!(answer.text().ends_with("data: {}\n\ndata: [DONE]\n\n"), "{}", answer.text());
}

#[tokio::test]
async fn a_held_stream_that_is_refused_ends_with_an_error_event_and_an_abort() {
    let mut limits = limits();
    limits.quiet = Duration::from_millis(10);
    let mut world = World::start(limits).await;
    world.set_state("chat", starting(1));
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let waiter = world.demanded().await;
    let head = client.head().await;
    let (verdict, reason) = (Verdict::BadModel, "the file is cut short".to_owned());
    world.answer(waiter, Err(Refusal::Failed { verdict, reason }));
    let answer = client.rest(head).await;
    assert!(!answer.is_whole);
    assert_eq!(answer.last_event_error()["code"], "slot_failed");
}

#[tokio::test]
async fn a_held_stream_whose_engine_refuses_gets_the_engines_reason() {
    let mut limits = limits();
    limits.quiet = Duration::from_millis(10);
    let mut world = World::start(limits).await;
    let (engine, _gate) = world.make_ready("chat", 1, (1, 0));
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    let head = client.head().await;
    line.answer("400 Bad Request", r#"{"error":{"code":400,"message":"no","type":"bad"}}"#).await;
    let answer = client.rest(head).await;
    assert!(!answer.is_whole);
    assert!(answer.text().starts_with(": chat is busy\n\n"), "{}", answer.text());
    assert_eq!(answer.last_event_error()["message"], "no");
}

#[tokio::test]
async fn a_held_stream_whose_engine_dies_without_a_word_goes_on_with_the_next() {
    let mut limits = limits();
    limits.quiet = Duration::from_millis(10);
    let mut world = World::start(limits).await;
    let (engine, gate) = world.make_ready("chat", 1, (1, 0));
    let mut client = world.client().await;
    client.post(chat("chat", true)).await;
    let (line, first) = engine.request().await;
    let head = client.head().await;
    world.set_state("chat", StateView::Offline);
    gate.mark_dead(Blame::Nobody);
    drop((line, engine));
    let waiter = world.demanded().await;
    let (engine, _gate) = world.make_ready("chat", 2, (1, 0));
    world.answer(waiter, Ok(()));
    let (mut line, second) = engine.request().await;
    assert_eq!((first.body, first.head), (second.body, second.head));
    line.begin_stream().await;
    line.chunk("data: {}\n\n").await;
    line.chunk("data: [DONE]\n\n").await;
    line.end_stream().await;
    let answer = client.rest(head).await;
    assert!(answer.is_whole);
    assert!(answer.text().starts_with(": chat is busy\n\n"), "{}", answer.text());
    assert!(answer.text().ends_with("data: {}\n\ndata: [DONE]\n\n"), "{}", answer.text());
    // Its connection takes the next request.
    client.post(chat("chat", false)).await;
    line.request().await;
    line.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.head.status, 200);
}

#[tokio::test]
async fn who_gives_up_a_load_is_told_to_come_back_in_half_of_the_time_it_takes() {
    let mut limits = limits();
    limits.hold = Duration::from_millis(20);
    let mut world = World::start(limits).await;
    world.set_state("chat", starting(3));
    world.set_load("chat", Duration::from_secs(41));
    let answer = world.client().await.ask(chat("chat", false)).await;
    assert_eq!((answer.head.status, answer.error()["code"].as_str()), (503, Some("slot_loading")));
    assert_eq!(answer.head.header("retry-after"), Some("21"));
    assert_eq!(answer.head.header("retry-after-ms"), Some("20500"));
}

#[tokio::test]
async fn a_request_that_waits_for_memory_in_vain_is_told_who_holds_it() {
    let mut limits = limits();
    limits.hold = Duration::from_millis(20);
    let mut world = World::start(limits).await;
    let gib = |number: u64| Bytes(number << 30);
    let lack = Shortage::Host { needed: gib(20), free: gib(6) };
    let holder = |slot: &str, host| Holder { slot: slot.parse().unwrap(), host, gpus: Bytes(0) };
    let holders = [holder("small", gib(1)), holder("big", gib(16))].into();
    let need = Need { host: gib(20), gpu: None, basis: Basis::Header };
    world.set_state("chat", StateView::Queued { need, wait: Wait::Turn { lack, holders } });
    let answer = world.client().await.ask(chat("chat", false)).await;
    assert_eq!((answer.head.status, answer.error()["code"].as_str()), (503, Some("no_memory")));
    assert!(answer.head.header("retry-after").is_some());
    insta::assert_snapshot!(answer.error()["message"].as_str().unwrap(), @"slot `chat` waits for memory, and the request has waited for it as long as it may: it needs 20 GiB of memory, and 6.0 GiB can be had; it waits for big (16 GiB), small (1.0 GiB)");
}

#[tokio::test]
async fn a_request_held_for_too_long_is_told_to_come_back() {
    let mut limits = limits();
    limits.hold = Duration::from_millis(20);
    let mut world = World::start(limits).await;
    world.make_slot("chat", |_| {});
    let answer = world.client().await.ask(chat("chat", false)).await;
    assert_eq!(answer.head.status, 503);
    assert!(answer.head.header("retry-after").is_some());
    insta::assert_snapshot!(answer.error(), @r#"{"message":"slot `chat` is still loading, try again","type":"server_error","param":null,"code":"slot_loading"}"#);
    let waiter = world.demanded().await;
    assert_eq!(world.left().await, waiter);
}

#[tokio::test]
async fn an_engine_at_work_is_not_hurried_by_the_limit_of_the_queue() {
    let mut limits = limits();
    limits.hold = Duration::from_millis(20);
    limits.silence = Duration::from_millis(20);
    let mut world = World::start(limits.clone()).await;
    let (engine, _gate) = world.make_ready("chat", 1, (1, 0));
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;
    // The time that must pass is the thing under test.
    tokio::time::sleep(limits.hold * 5).await;
    line.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.head.status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_while_it_is_held_leaves_the_queue() {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |_| {});
    for stream in [false, true] {
        let mut client = world.client().await;
        client.post(chat("chat", stream)).await;
        let waiter = world.demanded().await;
        drop(client);
        assert_eq!(world.left().await, waiter);
    }
}

#[tokio::test]
async fn a_full_engine_queues_then_refuses_and_lets_the_next_in() {
    let mut world = World::start(limits()).await;
    let (engine, gate) = world.make_ready("chat", 1, (1, 1));
    let mut first = world.client().await;
    first.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;

    let mut second = world.client().await;
    second.post(chat("chat", false)).await;
    waiting(&gate, 1).await;
    let mut third = world.client().await;
    third.post(chat("chat", false)).await;
    let refused = third.answer().await;
    assert_eq!(refused.head.status, 429);
    assert_eq!(refused.head.header("retry-after"), Some("1"));
    insta::assert_snapshot!(refused.error(), @r#"{"message":"slot `chat` is overloaded: its queue is full (1 waiting)","type":"rate_limit_error","param":null,"code":"queue_full"}"#);

    line.answer("200 OK", "{\"n\":1}").await;
    assert_eq!(first.answer().await.text(), "{\"n\":1}");
    line.request().await;
    line.answer("200 OK", "{\"n\":2}").await;
    assert_eq!(second.answer().await.text(), "{\"n\":2}");
    assert_eq!(gate.in_flight(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_gives_its_place_back() {
    let mut world = World::start(limits()).await;
    let (engine, gate) = world.make_ready("chat", 1, (1, 1));
    let mut first = world.client().await;
    first.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;
    let mut gone = world.client().await;
    gone.post(chat("chat", false)).await;
    waiting(&gate, 1).await;
    drop(gone);
    waiting(&gate, 0).await;
    let mut last = world.client().await;
    last.post(chat("chat", false)).await;
    waiting(&gate, 1).await;
    line.answer("200 OK", "{}").await;
    line.request().await;
    line.answer("200 OK", "{}").await;
    assert_eq!(last.answer().await.head.status, 200);
}

#[tokio::test]
async fn those_who_wait_at_a_gate_that_closes_go_back_to_the_core() {
    let mut world = World::start(limits()).await;
    let (old, gate) = world.make_ready("chat", 1, (1, 4));
    let mut first = world.client().await;
    first.post(chat("chat", false)).await;
    let (mut line, _) = old.request().await;
    let mut second = world.client().await;
    second.post(chat("chat", false)).await;
    world.set_state("chat", StateView::Draining { pid: 1 });
    gate.close();
    let waiter = world.demanded().await;
    line.answer("200 OK", "{}").await;
    assert_eq!(first.answer().await.head.status, 200, "a drain waits for requests in flight");
    soon("the drain", gate.drained()).await;
    let (new, _gate) = world.make_ready("chat", 2, (1, 4));
    world.answer(waiter, Ok(()));
    let (mut line, _) = new.request().await;
    line.answer("200 OK", "{}").await;
    assert_eq!(second.answer().await.head.status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_with_bytes_behind_its_request_leaves_the_queue() {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |_| {});
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    let waiter = world.demanded().await;
    client.send("\r\nGET / HTTP/1.1\r\n").await;
    drop(client);
    assert_eq!(world.left().await, waiter);
}

#[tokio::test]
async fn signs_of_life_come_within_the_clients_own_deadline() {
    let mut limits = limits();
    limits.sign_of_life = Duration::from_hours(1);
    limits.quiet = Duration::ZERO;
    let mut world = World::start(limits).await;
    world.make_slot("chat", |_| {});
    let mut client = world.client().await;
    let body = chat("chat", true);
    let head =
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-stainless-read-timeout: 6";
    client.send(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
    client.head().await;
    let _waiter = world.demanded().await;
    for _ in 0..2 {
        assert!(client.chunk(&mut Vec::new()).await.is_some(), "the stream ended");
    }
}
