//! Ollama's API: what engines get, what clients get, how either is told that something went wrong.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use slotd::{
    config::keys::Keys,
    proxy::{Access, Blame, Limits},
    spec::{death::Verdict, profile::Capability},
    supervisor::Refusal,
};

use crate::{
    client::{Answer, Client},
    engine::{Line, Request},
    world::{World, limits},
};

const DONE: &str = "data: [DONE]\n\n";

async fn post(client: &mut Client, path: &str, body: &Value) {
    client.post_with(path, "", body.to_string().as_bytes()).await;
}

async fn ask(client: &mut Client, path: &str, body: &Value) -> Answer {
    post(client, path, body).await;
    client.answer().await
}

fn hello(more: &Value) -> Value {
    let mut body = json!({"model": "chat", "messages": [{"role": "user", "content": "hi"}]});
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

fn said(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

/// The error of an answer: a text, and nothing else.
fn error(answer: &Answer) -> String {
    let body = answer.json();
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    body["error"].as_str().unwrap_or_else(|| panic!("{body} is no text")).to_owned()
}

fn lines(answer: &Answer) -> Vec<Value> {
    assert!(answer.text().ends_with('\n') || answer.body.is_empty());
    answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn delta(text: &str) -> String {
    format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {"content": text}}]}))
}

async fn stream_begun(line: &mut Line, text: &str) {
    line.begin_stream().await;
    line.chunk(delta(text)).await;
}

#[tokio::test]
async fn a_chat_is_told_both_ways_under_any_of_its_names() {
    let (world, engine, _gate) = World::ready().await;
    for name in ["chat", "chat:latest", "org/small:latest", ""] {
        let mut client = world.ollama_client().await;
        let body = hello(&json!({"stream": false, "model": name, "options": {"num_predict": 3}}));
        post(&mut client, "/api/chat", &body).await;
        let (mut line, request) = engine.request().await;
        assert!(request.head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{}", request.head);
        let told = said(&request);
        assert_eq!((&told["max_tokens"], &told["stream"]), (&json!(3), &json!(false)));
        assert_ne!(told["model"], json!("chat:latest"));
        let usage = json!({"prompt_tokens": 4, "completion_tokens": 1});
        let message = json!({"role": "assistant", "content": "hello"});
        let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
        let engines = json!({"choices": [choice], "usage": usage});
        line.answer("200 OK", &engines.to_string()).await;
        let answer = client.answer().await;
        assert_eq!(answer.head.header("content-type"), Some("application/json"));
        assert_eq!(answer.head.header("x-slotd-slot"), Some("chat"));
        let told = answer.json();
        assert_eq!(told["model"], if name.is_empty() { "chat" } else { name });
        assert_eq!(told["message"], json!({"role": "assistant", "content": "hello"}));
        assert_eq!((&told["prompt_eval_count"], &told["eval_count"]), (&json!(4), &json!(1)));
        assert_eq!((&told["done"], &told["done_reason"]), (&json!(true), &json!("stop")));
    }
}

#[tokio::test]
async fn a_stream_comes_line_by_line_where_nothing_is_said() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.ollama_client().await;
    post(&mut client, "/api/chat", &hello(&json!({}))).await;
    let (mut line, request) = engine.request().await;
    assert_eq!(said(&request)["stream"], true);
    assert_eq!(said(&request)["stream_options"]["include_usage"], true);
    line.begin_stream().await;
    let head = client.head().await;
    assert_eq!(head.header("content-type"), Some("application/x-ndjson"));
    // Events cut anywhere, comments and several at once come to whole lines.
    let first = delta("hé");
    let (begin, rest) = first.as_bytes().split_at(first.find('é').unwrap() + 1);
    line.chunk(begin).await;
    line.chunk(rest).await;
    let mut body = Vec::new();
    client.chunk(&mut body).await.unwrap();
    let told: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(told["message"]["content"], "hé", "a line comes as soon as its event is whole");
    let finish = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]});
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2},
        "timings": {"prompt_ms": 2.0, "predicted_ms": 4.0}});
    let end = format!(": hm\n\n{}data: {finish}\n\ndata: {usage}\n\n{DONE}", delta("llo"));
    line.chunk(end).await;
    line.end_stream().await;
    let answer = client.rest(head).await;
    assert!(answer.is_whole);
    let told = lines(&answer);
    assert_eq!((&told[0]["message"]["content"], &told[0]["done"]), (&json!("llo"), &json!(false)));
    let last = &told[1];
    assert_eq!(told.len(), 2);
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("length")));
    assert_eq!((&last["prompt_eval_count"], &last["eval_count"]), (&json!(9), &json!(2)));
    assert_eq!(
        (&last["prompt_eval_duration"], &last["eval_duration"]),
        (&json!(2_000_000), &json!(4_000_000))
    );
}

#[tokio::test]
async fn a_prompt_is_a_chat_and_a_raw_one_a_completion() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.ollama_client().await;
    let body = json!({"model": "chat", "prompt": "hi", "system": "be brief", "stream": false});
    post(&mut client, "/api/generate", &body).await;
    let (mut line, request) = engine.request().await;
    assert_eq!(said(&request)["messages"][0]["role"], "system");
    line.answer("200 OK", r#"{"choices":[{"message":{"content":"yes"}}]}"#).await;
    assert_eq!(client.answer().await.json()["response"], "yes");

    let raw = json!({"model": "chat", "prompt": "The capital of France is", "raw": true});
    post(&mut client, "/api/generate", &raw).await;
    let request = line.request().await;
    assert!(request.head.starts_with("POST /v1/completions "), "{}", request.head);
    line.begin_stream().await;
    line.chunk(format!("data: {}\n\n{DONE}", json!({"choices": [{"text": " Paris"}]}))).await;
    line.end_stream().await;
    let told = lines(&client.answer().await);
    assert_eq!((&told[0]["response"], &told[1]["done"]), (&json!(" Paris"), &json!(true)));
}

#[tokio::test]
async fn vectors_come_in_order_and_as_the_engine_wrote_them() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.ollama_client().await;
    let body = json!({"model": "chat", "input": ["a", "b"], "truncate": true});
    post(&mut client, "/api/embed", &body).await;
    let (mut line, request) = engine.request().await;
    let told = said(&request);
    assert_eq!(told, json!({"input": ["a", "b"], "encoding_format": "float", "model": "chat"}));
    let vectors = r#"{"data":[{"index":1,"embedding":[2e-9]},{"index":0,"embedding":[1.10,-3]}],"usage":{"prompt_tokens":2}}"#;
    line.answer("200 OK", vectors).await;
    let answer = client.answer().await;
    assert!(answer.text().contains(r#""embeddings":[[1.10,-3],[2e-9]]"#), "{}", answer.text());
    assert_eq!(answer.json()["prompt_eval_count"], 2);

    post(&mut client, "/api/embeddings", &json!({"model": "chat", "prompt": "a"})).await;
    assert_eq!(said(&line.request().await)["input"], "a");
    line.answer("200 OK", vectors).await;
    assert_eq!(client.answer().await.text(), r#"{"embedding":[1.10,-3]}"#);
}

#[tokio::test]
async fn errors_are_texts_whoever_they_come_from() {
    let (mut world, engine, _gate) = World::ready().await;
    let mut client = world.ollama_client().await;
    let unknown = ask(&mut client, "/api/chat", &hello(&json!({"model": "chta"}))).await;
    assert_eq!(unknown.head.status, 404);
    insta::assert_snapshot!(error(&unknown), @"model `chta` is not served here; did you mean `chat`? there is `chat`");
    for (path, body, status) in [
        ("/api/chat", json!([]), 400),
        ("/api/chat", json!({"model": "chat", "messages": "hi"}), 400),
        ("/api/generate", json!({"model": "chat", "prompt": "a", "suffix": "b"}), 400),
        ("/api/show", json!({"model": "nobody"}), 404),
        ("/api/pull", json!({"model": "llama3"}), 501),
        ("/api/push", json!({}), 501),
        ("/api/create", json!({}), 501),
        ("/api/copy", json!({}), 501),
        ("/api/nothing", json!({}), 404),
        ("/api/tags", json!({}), 405),
    ] {
        let answer = ask(&mut world.ollama_client().await, path, &body).await;
        assert_eq!(answer.head.status, status, "{path}");
        assert!(!error(&answer).is_empty());
    }
    post(&mut client, "/api/chat", &hello(&json!({}))).await;
    let (mut line, _) = engine.request().await;
    line.answer("400 Bad Request", r#"{"error":{"code":400,"message":"too long"}}"#).await;
    let refused = client.answer().await;
    assert_eq!((refused.head.status, error(&refused).as_str()), (400, "too long"));

    post(&mut client, "/api/chat", &hello(&json!({"stream": false}))).await;
    line.request().await;
    line.answer("200 OK", r#"{"choices":3}"#).await;
    let odd = client.answer().await;
    assert_eq!(odd.head.status, 502);
    assert!(error(&odd).contains("none of OpenAI's API"));

    world.make_slot("down", |_| {});
    post(&mut client, "/api/generate", &json!({"model": "down", "prompt": "a"})).await;
    let waiter = world.demanded().await;
    let reason = "it is cut short".to_owned();
    world.answer(waiter, Err(Refusal::Failed { verdict: Verdict::BadModel, reason }));
    let failed = client.answer().await;
    assert_eq!(failed.head.status, 503);
    assert!(error(&failed).contains("it is cut short"));
}

#[tokio::test]
async fn a_death_in_mid_stream_is_a_line_and_an_aborted_connection() {
    let (world, engine, gate) = World::ready().await;
    let mut client = world.ollama_client().await;
    post(&mut client, "/api/chat", &hello(&json!({}))).await;
    let (mut line, _) = engine.request().await;
    stream_begun(&mut line, "one").await;
    let head = client.head().await;
    let mut body = Vec::new();
    client.chunk(&mut body).await.unwrap();
    // An event that was begun is lost, not told in halves.
    line.chunk("data: {\"choices\":[{\"del").await;
    gate.mark_dead(Blame::Request);
    drop(line);
    let answer = client.rest(head).await;
    assert!(!answer.is_whole, "the stream ended cleanly");
    let told = lines(&answer);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0]["error"].as_str().unwrap().contains("died in mid-answer"), "{told:?}");
}

#[tokio::test]
async fn a_stream_without_its_end_is_not_told_as_whole() {
    let (world, engine, _gate) = World::ready().await;
    for (sent, word) in [
        (delta("one"), "ended its stream before it was whole"),
        ("data: {\"error\":{\"message\":\"no memory\"}}\n\n".to_owned(), "no memory"),
        ("data: no JSON\n\n".to_owned(), "none of OpenAI's API"),
    ] {
        let mut client = world.ollama_client().await;
        post(&mut client, "/api/chat", &hello(&json!({}))).await;
        let (mut line, _) = engine.request().await;
        line.begin_stream().await;
        line.chunk(sent).await;
        line.end_stream().await;
        let answer = client.answer().await;
        let told = lines(&answer);
        let errors: Vec<_> = told.iter().filter_map(|line| line["error"].as_str()).collect();
        assert!(!answer.is_whole && errors.len() == 1 && errors[0].contains(word), "{told:?}");
        assert!(told.iter().all(|line| line["done"] != json!(true)));
    }
}

#[tokio::test]
async fn a_stream_that_waits_is_held_without_a_word() {
    let quick = Limits {
        quiet: Duration::from_millis(1),
        sign_of_life: Duration::from_millis(1),
        ..limits()
    };
    let mut world = World::start(quick).await;
    world.make_slot("chat", |_| {});
    let mut client = world.ollama_client().await;
    post(&mut client, "/api/chat", &hello(&json!({}))).await;
    let waiter = world.demanded().await;
    // Elsewhere signs of life come at this pace: a client there sees several before its answer.
    let mut other = world.client().await;
    other.post(crate::client::chat("chat", true)).await;
    let second = world.demanded().await;
    let head = other.head().await;
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    for _ in 0..3 {
        other.chunk(&mut Vec::new()).await.unwrap();
    }
    let (engine, _gate) = world.make_ready("chat", 1, (1, 4));
    world.answer(waiter, Ok(()));
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk(format!("{}{DONE}", delta("up"))).await;
    line.end_stream().await;
    let answer = client.answer().await;
    assert_eq!(lines(&answer).len(), 2);
    assert!(answer.head.header("x-slotd-cold-start-ms").is_some());
    assert!(lines(&answer)[1]["load_duration"].as_u64().unwrap() > 0);
    world.answer(second, Ok(()));
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_stream_ends_the_engines_work() {
    let (world, engine, gate) = World::ready().await;
    let mut client = world.ollama_client().await;
    post(&mut client, "/api/chat", &hello(&json!({}))).await;
    let (mut line, _) = engine.request().await;
    stream_begun(&mut line, "one").await;
    client.head().await;
    assert_eq!(world.flights.list().len(), 1);
    drop(client);
    line.hung_up().await;
    assert_eq!(gate.in_flight(), 0);
}

#[tokio::test]
async fn keep_alive_of_zero_lets_a_slot_go_that_nobody_else_uses() {
    let (mut world, engine, _gate) = World::ready().await;
    let mut client = world.ollama_client().await;
    for stream in [true, false] {
        let body = hello(&json!({"keep_alive": "0s", "stream": stream}));
        post(&mut client, "/api/chat", &body).await;
        let (mut line, _) = engine.request().await;
        if stream {
            line.begin_stream().await;
            line.chunk(DONE).await;
            line.end_stream().await;
        } else {
            line.answer("200 OK", r#"{"choices":[{"message":{"content":"yes"}}]}"#).await;
        }
        assert!(client.answer().await.is_whole);
        assert_eq!(world.unloaded().await, "chat");
        drop(line);
    }
    let body = json!({"model": "chat", "keep_alive": 0});
    let answer = ask(&mut client, "/api/generate", &body).await;
    assert_eq!(answer.json()["done_reason"], "unload");
    assert_eq!(world.unloaded().await, "chat");

    let mut other = world.ollama_client().await;
    post(&mut other, "/api/chat", &hello(&json!({"keep_alive": -1}))).await;
    let (line, _) = engine.request().await;
    let answer = ask(&mut client, "/api/generate", &body).await;
    assert_eq!(answer.head.status, 409);
    assert!(error(&answer).contains("at work for others"));
    drop(line);
}

#[tokio::test]
async fn no_prompt_loads_the_model_and_asks_it_nothing() {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |_| {});
    for (path, body) in [
        ("/api/generate", json!({"model": "chat"})),
        ("/api/chat", json!({"model": "chat", "messages": []})),
    ] {
        let mut client = world.ollama_client().await;
        post(&mut client, path, &body).await;
        let waiter = world.demanded().await;
        world.answer(waiter, Ok(()));
        let told = client.answer().await.json();
        assert_eq!((&told["done"], &told["done_reason"]), (&json!(true), &json!("load")));
    }
}

#[tokio::test]
async fn models_are_listed_and_shown_as_clients_look_for_them() {
    let (mut world, _engine, _gate) = World::ready().await;
    world.make_slot("vectors", |profile| {
        profile.capabilities = vec![Capability::Embed];
        profile.aliases = vec!["org/vec:Q8_0".to_owned()];
        profile.context = Some(512);
    });
    world.make_slot("voice", |profile| profile.capabilities = vec![Capability::Speech]);
    let mut client = world.ollama_client().await;
    let tags = client.get("/api/tags").await.json();
    let names: Vec<_> =
        tags["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["chat:latest", "vectors:latest", "org/vec:Q8_0"]);
    let running = client.get("/api/ps").await.json();
    assert_eq!(running["models"].as_array().unwrap().len(), 1);
    assert_eq!(running["models"][0]["expires_at"], "9999-12-31T23:59:59Z");
    let shown = ask(&mut client, "/api/show", &json!({"model": "vectors:latest"})).await.json();
    assert_eq!(shown["capabilities"], json!(["embedding"]));
    assert_eq!(shown["model_info"]["llm.context_length"], 512);
    let shown = ask(&mut client, "/api/show", &json!({"name": "chat"})).await.json();
    assert_eq!(shown["capabilities"][0], "completion");
    assert!(client.get("/api/version").await.json()["version"].is_string());
    assert_eq!(client.get("/").await.text(), "Ollama is running");
    // As at Ollama, OpenAI's API is spoken there too, and its errors are its own.
    assert!(client.get("/v1/models").await.json()["data"].is_array());
    assert_eq!(client.get("/v2/nothing").await.error()["code"], "not_found");
    // And nothing of Ollama's at the endpoint.
    assert_eq!(world.client().await.get("/api/tags").await.head.status, 404);
}

#[tokio::test]
async fn the_same_doors_are_shut_as_at_the_endpoint() {
    let access = Access::default();
    access.keys.store(Arc::new(Keys::Asked(Vec::new())));
    let mut world = World::start_with(limits(), access).await;
    world.make_slot("chat", |_| {});
    let mut client = world.ollama_client().await;
    assert_eq!(client.get("/").await.head.status, 200);
    let refused = client.get("/api/tags").await;
    assert_eq!(refused.head.status, 401);
    assert!(error(&refused).contains("slotd key new"));
    client.send("GET /api/tags HTTP/1.1\r\nhost: evil.example\r\n\r\n").await;
    let refused = client.answer().await;
    assert_eq!(refused.head.status, 403);
    assert!(error(&refused).contains("`Host`"));
}
