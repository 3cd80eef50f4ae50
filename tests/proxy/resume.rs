//! Streams that survive their engine.

use std::sync::Arc;

use serde_json::{Value, json};
use slotd::{
    proxy::{Blame, Gate},
    supervisor::{Refusal, StateView},
};

use crate::{
    client::Client,
    engine::{Engine, Line},
    world::{World, limits},
};

const DONE: &str = "data: [DONE]\n\n";

fn chunk(id: &str, text: &str) -> String {
    let delta = json!({"choices": [{"index": 0, "delta": {"content": text}}], "id": id});
    format!("data: {delta}\n\n")
}

fn ask(more: &Value) -> String {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let mut body = json!({"messages": messages, "model": "chat", "stream": true});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

/// An endpoint with one ready slot whose streams are continued.
async fn world() -> (World, Engine, Arc<Gate>) {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |profile| profile.resume = true);
    let (engine, gate) = world.make_ready("chat", 1, (4, 4));
    (world, engine, gate)
}

/// Kills the engine of `chat`; the request that asks for the next one gets it.
async fn next_engine(
    world: &mut World,
    (line, gate): (Line, Arc<Gate>),
    number: u64,
) -> (Engine, Arc<Gate>) {
    drop(line);
    world.set_state("chat", StateView::Reaping { pid: 1 });
    gate.mark_dead(Blame::Nobody);
    let waiter = world.demanded().await;
    let next = world.make_ready("chat", number, (4, 4));
    world.answer(waiter, Ok(()));
    next
}

/// Waits until the client has seen so much.
async fn seen(client: &mut Client, body: &mut Vec<u8>, text: &str) {
    while !String::from_utf8_lossy(body).contains(text) {
        client.chunk(body).await.unwrap();
    }
}

fn texts(stream: &str) -> String {
    let events = stream.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let objects = events.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    let text = |object: Value| {
        let choice = object["choices"].get(0)?.clone();
        let text = choice.pointer("/delta/content").or_else(|| choice.get("text"))?;
        text.as_str().map(ToOwned::to_owned)
    };
    objects.filter_map(text).collect()
}

#[tokio::test]
async fn a_stream_goes_on_at_the_next_engine_as_one() {
    let (mut world, engine, gate) = world().await;
    let mut client = world.client().await;
    client.post(ask(&json!({"max_tokens": 9}))).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(chunk("one", "Hel")).await;
    line.chunk(chunk("one", "lo")).await;
    // Half an event comes too: it is no part of the text.
    line.chunk(&chunk("one", " lost").as_bytes()[..20]).await;
    let head = client.head().await;
    let mut body = Vec::new();
    seen(&mut client, &mut body, "lo\"").await;
    let (next, _gate) = next_engine(&mut world, (line, gate), 2).await;
    let (mut line, request) = next.request().await;
    let asked: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(asked["messages"][1], json!({"role": "assistant", "content": "Hello"}));
    assert_eq!(asked["max_tokens"], 7);
    line.begin_stream().await;
    line.chunk(chunk("two", " wor")).await;
    line.chunk(chunk("two", "ld")).await;
    let usage = json!({"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14});
    line.chunk(format!("data: {}\n\n", json!({"choices": [], "id": "two", "usage": usage}))).await;
    line.chunk(DONE).await;
    line.end_stream().await;
    let rest = client.rest(head).await;
    assert!(rest.is_whole);
    let stream = String::from_utf8([body, rest.body].concat()).unwrap();
    assert_eq!(texts(&stream), "Hello world");
    assert!(stream.ends_with(DONE));
    assert!(!stream.contains("lost") && !stream.contains("two"), "{stream}");
    assert!(stream.contains(r#""prompt_tokens":10,"completion_tokens":4"#), "{stream}");
}

#[tokio::test]
async fn a_completion_goes_on_at_another_slot_of_its_route_at_once() {
    let mut world = World::start(limits()).await;
    for slot in ["a", "b"] {
        world.make_slot(slot, |profile| {
            profile.routes = vec!["pool".to_owned()];
            profile.resume = true;
        });
    }
    let (a, gate_a) = world.make_ready("a", 1, (4, 4));
    let mut client = world.client().await;
    let body = json!({"prompt": "The sea", "model": "pool", "stream": true}).to_string();
    client.post_with("/v1/completions", "", body.as_bytes()).await;
    let (mut line, _) = a.request().await;
    line.begin_stream().await;
    line.chunk("data: {\"choices\":[{\"text\":\" is\"}],\"id\":\"one\"}\n\n").await;
    let head = client.head().await;
    let mut seen_so_far = Vec::new();
    seen(&mut client, &mut seen_so_far, " is").await;
    let (b, _gate_b) = world.make_ready("b", 1, (4, 4));
    // It is unloaded, not dead: the other one takes over all the same.
    gate_a.cut();
    let (mut line, request) = b.request().await;
    let asked: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(asked["prompt"], "The sea is");
    line.begin_stream().await;
    line.chunk("data: {\"choices\":[{\"text\":\" wide\"}],\"id\":\"two\"}\n\n").await;
    line.chunk(DONE).await;
    line.end_stream().await;
    let rest = client.rest(head).await;
    assert!(rest.is_whole);
    let stream = String::from_utf8([seen_so_far, rest.body].concat()).unwrap();
    assert_eq!(texts(&stream), " is wide");
}

#[tokio::test]
async fn a_stream_whose_tokens_have_all_come_needs_no_engine() {
    let (world, engine, gate) = world().await;
    let mut client = world.client().await;
    client.post(ask(&json!({"max_tokens": 2}))).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(chunk("one", "a")).await;
    line.chunk(chunk("one", "b")).await;
    let head = client.head().await;
    let mut body = Vec::new();
    seen(&mut client, &mut body, "\"b\"").await;
    drop(line);
    gate.mark_dead(Blame::Nobody);
    let rest = client.rest(head).await;
    assert!(rest.is_whole);
    let end = rest.text();
    assert!(end.contains(r#""finish_reason":"length""#) && end.ends_with(DONE), "{end}");
}

#[tokio::test]
async fn a_stream_that_cannot_be_continued_says_why() {
    let (world, engine, gate) = world().await;
    let mut client = world.client().await;
    client.post(ask(&json!({"logprobs": true}))).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(chunk("one", "a")).await;
    let head = client.head().await;
    let mut body = Vec::new();
    seen(&mut client, &mut body, "\"a\"").await;
    drop(line);
    gate.mark_dead(Blame::Nobody);
    let rest = client.rest(head).await;
    assert!(!rest.is_whole);
    insta::assert_snapshot!(rest.last_event_error()["message"].as_str().unwrap(), @"the engine of slot `chat` died in mid-answer, and the stream cannot be continued: the request has `logprobs`; `slotd status chat` says why");
}

#[tokio::test]
async fn an_engine_that_cannot_come_back_ends_the_stream_with_its_reason() {
    let (mut world, engine, gate) = world().await;
    let mut client = world.client().await;
    client.post(ask(&json!({}))).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(chunk("one", "a")).await;
    let head = client.head().await;
    let mut body = Vec::new();
    seen(&mut client, &mut body, "\"a\"").await;
    drop(line);
    world.set_state("chat", StateView::Reaping { pid: 1 });
    gate.mark_dead(Blame::Nobody);
    let waiter = world.demanded().await;
    world.answer(waiter, Err(Refusal::Unloaded));
    let rest = client.rest(head).await;
    assert!(!rest.is_whole);
    assert_eq!(rest.last_event_error()["code"], "slot_unloaded");
}

#[tokio::test]
async fn a_request_that_kills_each_engine_is_not_continued_for_ever() {
    let (mut world, mut engine, mut gate) = world().await;
    let mut client = world.client().await;
    client.post(ask(&json!({}))).await;
    let mut head = None;
    let mut body = Vec::new();
    for number in 2..4 {
        let (mut line, _) = engine.request().await;
        line.begin_stream().await;
        line.chunk(chunk("one", &format!("part {number}"))).await;
        if head.is_none() {
            head = Some(client.head().await);
        }
        seen(&mut client, &mut body, &format!("part {number}")).await;
        drop(line);
        world.set_state("chat", StateView::Reaping { pid: 1 });
        gate.mark_dead(Blame::Request);
        if number == 2 {
            let waiter = world.demanded().await;
            (engine, gate) = world.make_ready("chat", number, (4, 4));
            world.answer(waiter, Ok(()));
        }
    }
    let rest = client.rest(head.unwrap()).await;
    assert!(!rest.is_whole);
    assert_eq!(rest.last_event_error()["code"], "poison_request");
}

#[tokio::test]
async fn a_stream_of_another_form_keeps_its_own_end_and_its_own_error() {
    let (world, engine, _gate) = world().await;
    for is_whole in [true, false] {
        let mut client = world.client().await;
        client.post_with("/v1/messages", "", br#"{"model":"chat","stream":true}"#).await;
        let (mut line, _) = engine.request().await;
        line.begin_stream().await;
        line.chunk("event: message_start\ndata: {\"type\":\"message_start\"}\n\n").await;
        if is_whole {
            line.chunk("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n").await;
        }
        line.end_stream().await;
        let answer = client.answer().await;
        assert_eq!(answer.is_whole, is_whole);
        let last = answer.text().trim_end().rsplit("\n\n").next().unwrap();
        let event = if is_whole { "event: message_stop" } else { "event: error" };
        assert!(last.starts_with(event), "{last}");
    }
}
