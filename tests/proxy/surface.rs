//! Paths beyond chat: which slot they find, what the engine gets, how errors are told.

use serde_json::{Value, json};
use slotd::{
    spec::profile::{Capability, EngineChoice},
    supervisor::Refusal,
};

use crate::{
    client::{Answer, Client},
    engine::{Engine, Request},
    world::{World, limits},
};

/// A ready slot for anything, whose engine is a foreign program.
fn foreign(world: &mut World, slot: &str, capabilities: &[Capability]) -> Engine {
    world.make_slot(slot, |profile| {
        profile.engine = EngineChoice::Command(vec!["serve".to_owned()]);
        profile.capabilities = capabilities.to_vec();
        profile.model = None;
    });
    world.make_ready(slot, 1, (4, 16)).0
}

/// Sends a request, lets the engine answer it, returns what each side saw.
async fn through(engine: &Engine, client: &mut Client, request: &str) -> (Request, Answer) {
    client.send(request).await;
    let (mut line, seen) = engine.request().await;
    line.answer("200 OK", r#"{"ok":true}"#).await;
    (seen, client.answer().await)
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn first_line(request: &Request) -> &str {
    request.head.lines().next().unwrap()
}

#[tokio::test]
async fn every_path_reaches_its_engine_as_it_came() {
    let mut world = World::start(limits()).await;
    let engine = foreign(&mut world, "all", &[]);
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/responses/input_tokens",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/rerank",
        "/v1/rerank",
        "/reranking",
        "/v1/reranking",
        "/v2/rerank",
        "/v1/audio/speech",
        "/v1/images/generations",
        "/completion",
        "/infill",
        "/tokenize",
        "/detokenize",
        "/apply-template",
        "/props",
        "/slots/0?action=erase",
    ] {
        let body = r#"{"model":"all", "odd":[1e3,{"x":null}]}"#;
        let (seen, answer) = through(&engine, &mut world.client().await, &post(path, body)).await;
        assert_eq!(first_line(&seen), format!("POST {path} HTTP/1.1"));
        assert_eq!(seen.body, body.as_bytes(), "{path}");
        assert_eq!(answer.head.header("x-slotd-slot"), Some("all"), "{path}");
    }
    let get = "GET /props?model=all HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let (seen, _) = through(&engine, &mut world.client().await, get).await;
    assert_eq!(first_line(&seen), "GET /props?model=all HTTP/1.1");
    assert_eq!(seen.header("content-length"), None);
}

#[tokio::test]
async fn a_request_without_a_model_goes_to_the_only_slot_for_it() {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |_| {});
    let engine = foreign(&mut world, "vectors", &[Capability::Embed]);
    let mut client = world.client().await;
    let embed = post("/v1/embeddings", r#"{"input":"x"}"#);
    let (seen, answer) = through(&engine, &mut client, &embed).await;
    assert_eq!(seen.body, br#"{"input":"x"}"#);
    assert_eq!(answer.head.header("x-slotd-slot"), Some("vectors"));

    world.make_slot("other", |profile| profile.capabilities = vec![Capability::Embed]);
    client.send(embed).await;
    let refused = client.answer().await;
    assert_eq!(refused.error()["code"], "missing_model");
    let message = refused.error()["message"].to_string();
    assert!(message.contains("`vectors`") && message.contains("`other`"), "{message}");
}

#[tokio::test]
async fn a_path_that_the_engine_lacks_is_refused_with_who_has_it() {
    let mut world = World::start(limits()).await;
    world.make_slot("small", |profile| profile.engine = EngineChoice::Candle);
    world.make_slot("big", |profile| profile.engine = EngineChoice::LlamaServer);
    let mut client = world.client().await;
    client.send(post("/v1/messages", r#"{"model":"small"}"#)).await;
    let answer = client.answer().await;
    assert_eq!(answer.head.status, 404);
    insta::assert_snapshot!(answer.text(), @r#"{"type":"error","error":{"type":"not_found_error","message":"slot `small` runs on `candle`, which has no `/v1/messages`; slots that can: `big`"}}"#);
    client.send(post("/v1/audio/speech", r#"{"model":"big"}"#)).await;
    let answer = client.answer().await;
    insta::assert_snapshot!(answer.error()["message"], @r#""slot `big` runs on `llama-server`, which has no `/v1/audio/speech`; no slot can: it takes a profile with `capabilities = [\"speech\"]` and an engine that has it""#);
    client.send(post("/v1/rerank", r#"{"model":"big"}"#)).await;
    assert_eq!(client.answer().await.error()["code"], "capability_not_offered");
}

#[tokio::test]
async fn cohere_finds_our_engines_rerank_and_reads_its_errors() {
    let mut world = World::start(limits()).await;
    for (name, engine) in [("rank", EngineChoice::LlamaServer), ("worker", EngineChoice::Candle)] {
        world.make_slot(name, |profile| {
            profile.engine = engine;
            profile.capabilities = vec![Capability::Rerank];
        });
        let (engine, _gate) = world.make_ready(name, 1, (1, 1));
        let mut client = world.client().await;
        let body = format!(r#"{{"model":"{name}"}}"#);
        let (seen, _) = through(&engine, &mut client, &post("/v2/rerank", &body)).await;
        assert_eq!(first_line(&seen), "POST /v1/rerank HTTP/1.1");
        for path in ["/rerank", "/v1/reranking"] {
            let mut client = world.client().await;
            let (seen, _) = through(&engine, &mut client, &post(path, &body)).await;
            assert_eq!(first_line(&seen), format!("POST {path} HTTP/1.1"));
        }
    }
    let mut client = world.client().await;
    client.send(post("/v2/rerank", r#"{"model":"none"}"#)).await;
    let error = client.answer().await.json();
    assert!(error["message"].is_string() && error.as_object().unwrap().len() == 1, "{error}");
}

#[tokio::test]
async fn upstream_passes_any_method_path_and_refusal() {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |profile| profile.aliases = vec!["org/big".to_owned()]);
    let (engine, _gate) = world.make_ready("chat", 1, (4, 4));
    for (name, rest) in [("chat", "/any/where?a=b&c"), ("org/big", "/x"), ("org%2Fbig", "/x")] {
        let mut client = world.client().await;
        let request = format!(
            "DELETE /upstream/{name}{rest} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\nraw"
        );
        let (seen, answer) = through(&engine, &mut client, &request).await;
        assert_eq!(first_line(&seen), format!("DELETE {rest} HTTP/1.1"));
        assert_eq!((seen.body.as_slice(), answer.head.status), (&b"raw"[..], 200));
    }
    let mut client = world.client().await;
    client.send("GET /upstream/chat HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let (mut line, seen) = engine.request().await;
    assert_eq!(first_line(&seen), "GET / HTTP/1.1");
    line.answer("418 I'm a teapot", "\"short\"").await;
    let refused = client.answer().await;
    assert_eq!((refused.head.status, refused.text()), (418, "\"short\""));
    client.send("HEAD /upstream/chat/x HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let seen = line.request().await;
    assert_eq!(first_line(&seen), "HEAD /x HTTP/1.1");
    line.send("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n").await;
    assert_eq!(client.head().await.header("content-length"), Some("99"));
    assert_eq!(client.get("/upstream/nobody/x").await.error()["code"], "model_not_found");
}

#[tokio::test]
async fn methods_are_told_and_unknown_paths_say_what_there_is() {
    let world = World::start(limits()).await;
    let mut client = world.client().await;
    for (path, allowed) in [
        ("/v1/chat/completions", "POST, OPTIONS"),
        ("/props", "GET, HEAD, POST, OPTIONS"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
    ] {
        client.send(format!("OPTIONS {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
        let head = client.head().await;
        assert_eq!((head.status, head.header("allow")), (204, Some(allowed)), "{path}");
    }
    let wrong = client.get("/v1/messages").await;
    assert_eq!((wrong.head.status, wrong.head.header("allow")), (405, Some("POST")));
    assert_eq!(wrong.json()["type"], "error");
    let unknown = client.get("/v1/nothing").await;
    assert_eq!(unknown.head.status, 404);
    assert!(unknown.error()["message"].to_string().contains("/v1/messages/count_tokens"));
}

#[tokio::test]
async fn a_message_stream_is_whole_with_its_last_event_and_broken_without() {
    let (world, engine, _gate) = World::ready().await;
    for is_whole in [true, false] {
        let mut client = world.client().await;
        client.send(post("/v1/messages", r#"{"model":"chat","stream":true}"#)).await;
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
        let (event, data) = last.split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        if is_whole {
            assert_eq!(event, "event: message_stop");
        } else {
            assert_eq!((event, &data["type"]), ("event: error", &json!("error")));
            assert_eq!(data["error"]["type"], "api_error");
        }
    }
}

#[tokio::test]
async fn a_response_that_its_engine_leaves_says_so_in_its_own_event() {
    let (world, engine, gate) = World::ready().await;
    let mut client = world.client().await;
    client.send(post("/v1/responses", r#"{"model":"chat","stream":true}"#)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk("event: response.created\ndata: {\"type\":\"response.created\"}\n\n").await;
    let head = client.head().await;
    let mut begun = Vec::new();
    client.chunk(&mut begun).await.unwrap();
    gate.mark_dead(slotd::proxy::Blame::Nobody);
    drop(line);
    let answer = client.rest(head).await;
    assert!(!answer.is_whole);
    let last = answer.text().trim_end().rsplit("\n\n").next().unwrap();
    let data: Value =
        serde_json::from_str(last.strip_prefix("event: error\ndata: ").unwrap()).unwrap();
    assert_eq!((&data["type"], &data["error"]["code"]), (&json!("error"), &json!("engine_died")));
}

#[tokio::test]
async fn refusals_of_the_core_come_in_the_dialect_of_the_path() {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |_| {});
    let mut client = world.client().await;
    client.send(post("/v1/messages", r#"{"model":"chat"}"#)).await;
    let waiter = world.demanded().await;
    world.answer(waiter, Err(Refusal::QueueFull { waiting: 3 }));
    let answer = client.answer().await;
    assert_eq!((answer.head.status, answer.head.header("retry-after")), (429, Some("1")));
    assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
}
