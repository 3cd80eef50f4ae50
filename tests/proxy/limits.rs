//! What one client, one key and one body may take: requests at once, brackets, time.

use std::{fmt::Write, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use serde_json::json;
use slotd::{
    config::keys::{self, Keys, Role},
    proxy::Access,
};

use crate::{
    client::{Answer, Client, chat},
    world::{World, limits},
};

/// Two keys; the line of the second one bounds it to one request.
fn two_keys() -> ([String; 2], Keys) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let made = ["laptop", "phone"].map(|name| keys::add(&file, name, Role::Infer).unwrap());
    let mut text = std::fs::read_to_string(&file).unwrap();
    text.truncate(text.trim_end().len());
    writeln!(text, " max_in_flight=1").unwrap();
    std::fs::write(&file, text).unwrap();
    (made, Keys::Asked(keys::read(&file).unwrap().unwrap()))
}

async fn post(client: &mut Client, path: &str, key: &str, body: &str) {
    client.post_with(path, &format!("x-api-key: {key}\r\n"), body.as_bytes()).await;
}

#[tokio::test]
async fn a_key_has_so_many_requests_in_flight_and_another_key_as_many_of_its_own() {
    let ([laptop, phone], keys) = two_keys();
    let access = Access {
        keys: Arc::new(ArcSwap::from_pointee(keys)),
        max_in_flight: Some(2),
        ..Access::default()
    };
    let mut world = World::start_with(limits(), access).await;
    let (engine, _gate) = world.make_ready("chat", 1, (8, 16));
    let path = "/v1/chat/completions";
    let body = chat("chat", false);
    let (mut clients, mut lines) = (Vec::new(), Vec::new());
    for key in [&laptop, &laptop, &phone] {
        let mut client = world.client().await;
        post(&mut client, path, key, &body).await;
        lines.push(engine.request().await.0);
        clients.push(client);
    }
    let mut client = world.client().await;
    for (key, name, most) in [(&laptop, "laptop", 2), (&phone, "phone", 1)] {
        post(&mut client, path, key, &body).await;
        let refused = client.answer().await;
        assert_eq!((refused.head.status, refused.head.header("retry-after")), (429, Some("1")));
        let error = refused.error();
        assert_eq!(
            (&error["code"], &error["type"]),
            (&json!("key_limit"), &json!("rate_limit_error"))
        );
        let said = format!("the key `{name}` has {most} requests in flight");
        assert!(error["message"].as_str().unwrap().starts_with(&said), "{error}");
    }
    post(&mut client, "/v1/messages", &phone, r#"{"model":"chat","messages":[]}"#).await;
    assert_eq!(client.answer().await.json()["error"]["type"], "rate_limit_error");
    client
        .send(format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\nx-api-key: {phone}\r\n\r\n"))
        .await;
    let metrics = client.answer().await;
    for line in ["{key=\"laptop\"} 1", "{key=\"phone\"} 2"] {
        let line = format!("slotd_key_limit_refused_total{line}\n");
        assert!(metrics.text().contains(&line), "{}", metrics.text());
    }
    // An answer that has ended makes room.
    lines[2].answer("200 OK", "{}").await;
    assert_eq!(clients[2].answer().await.head.status, 200);
    post(&mut client, path, &phone, &body).await;
    lines[2].request().await;
    lines[2].answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.head.status, 200);
}

const DEEP: usize = 100_000;

fn is_too_deep(answer: &Answer, path: &str) {
    let text = answer.text();
    assert_eq!(answer.head.status, 400, "{path}: {text}");
    assert!(text.contains("nests more than 1000 brackets deep"), "{path}: {text}");
}

#[tokio::test]
async fn a_hundred_thousand_brackets_are_refused_in_each_dialect() {
    let (world, engine, _gate) = World::ready().await;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let (opened, closed) = (open.repeat(DEEP), close.repeat(DEEP));
        for nested in [format!("{opened}1{closed}"), opened.clone()] {
            let body = format!("{{\"model\":\"chat\",\"messages\":{nested}}}");
            for path in [
                "/v1/chat/completions",
                "/v1/completions",
                "/v1/responses",
                "/v1/messages",
                "/v1/messages/count_tokens",
                "/v1/embeddings",
                "/v2/rerank",
                "/tokenize",
                "/props",
            ] {
                let mut client = world.client().await;
                client.post_with(path, "", body.as_bytes()).await;
                is_too_deep(&client.answer().await, path);
            }
            for path in ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"]
            {
                let mut client = world.ollama_client().await;
                client.post_with(path, "", body.as_bytes()).await;
                let answer = client.answer().await;
                is_too_deep(&answer, path);
                assert!(answer.json()["error"].is_string(), "{path}");
            }
        }
    }
    // A list of all, and what nobody looks into.
    let body = "[".repeat(DEEP);
    let mut client = world.client().await;
    is_too_deep(&client.ask(&body).await, "a list");
    client.post_with("/upstream/chat/any", "", body.as_bytes()).await;
    let (mut line, seen) = engine.request().await;
    assert_eq!(seen.body, body.as_bytes());
    line.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.head.status, 200);
}

#[tokio::test]
async fn a_request_takes_no_longer_than_it_may() {
    let mut limits = limits();
    limits.total = Some(Duration::from_millis(200));
    let mut world = World::start(limits).await;
    let (engine, gate) = world.make_ready("chat", 1, (4, 16));
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status, &answer.error()["code"]), (504, &json!("request_timeout")));
    assert_eq!(answer.head.header("x-should-retry"), Some("false"));
    line.hung_up().await;

    client.post(chat("chat", true)).await;
    let (mut line, _) = engine.request().await;
    line.begin_stream().await;
    line.chunk("data: {\"a\":1}\n\n").await;
    let answer = client.answer().await;
    assert!(!answer.is_whole);
    assert_eq!(answer.last_event_error()["code"], "request_timeout");
    line.hung_up().await;
    assert_eq!(gate.in_flight(), 0);

    // One that is quick enough.
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;
    line.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.head.status, 200);
}
