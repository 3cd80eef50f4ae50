//! The paths beyond chat, on a real llama-server: whether it has them, how its answers look and end.

use std::path::Path;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use super::{client, daemon, profile};
use crate::common::Daemon;

async fn answered(answer: Response) -> (StatusCode, Value) {
    let status = answer.status();
    let text = answer.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"));
    (status, body)
}

async fn post(daemon: &Daemon, path: &str, body: Value) -> (StatusCode, Value) {
    answered(daemon.post(path, &body).await).await
}

async fn get(daemon: &Daemon, path: &str) -> (StatusCode, Value) {
    answered(daemon.client.get(format!("{}{path}", daemon.url)).send().await.unwrap()).await
}

/// Reads a stream to its clean end; returns the data of its events.
async fn events(daemon: &Daemon, path: &str, body: Value) -> Vec<Value> {
    let answer = daemon.post(path, &body).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let text = answer.text().await.unwrap_or_else(|error| panic!("{path} was cut: {error}"));
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

fn with_stream(body: &Value) -> Value {
    let mut body = body.clone();
    body["stream"] = json!(true);
    body
}

/// Puts the texts of a stream's events of one kind together.
fn texts(events: &[Value], kind: &str, pointer: &str) -> String {
    let of_kind = events.iter().filter(|event| event["type"] == kind);
    of_kind.filter_map(|event| event.pointer(pointer)?.as_str()).collect()
}

#[tokio::test]
async fn responses_are_the_same_at_once_and_as_a_stream_that_ends_with_its_last_event() {
    let daemon = daemon(&[("small", &profile("llama-server", ""))]).await;
    let body = json!({"model": "small", "input": "Say hello.", "max_output_tokens": 6,
        "temperature": 0, "seed": 1});
    let (status, whole) = post(&daemon, "/v1/responses", body.clone()).await;
    assert_eq!((status.as_u16(), &whole["status"]), (200, &json!("completed")), "{whole}");
    let events = events(&daemon, "/v1/responses", with_stream(&body)).await;
    assert_eq!(events.first().unwrap()["type"], "response.created");
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.completed", "{last}");
    let text = texts(&events, "response.output_text.delta", "/delta");
    assert!(!text.is_empty());
    assert_eq!(json!(text), whole["output"][0]["content"][0]["text"]);
    let (status, counted) = post(&daemon, "/v1/responses/input_tokens", body).await;
    assert_eq!(status, 200);
    assert_eq!(counted["input_tokens"], whole["usage"]["input_tokens"]);
    let (status, body) =
        post(&daemon, "/v1/responses/compact", json!({"model": "small", "input": "x"})).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (404, &json!("path_not_served")));
    let (status, body) = post(&daemon, "/v1/responses", json!({"model": "small"})).await;
    assert_eq!((status.as_u16(), &body["error"]["type"]), (400, &json!("invalid_request_error")));
    assert_eq!(body["error"]["message"], "'input' is required");
}

#[tokio::test]
async fn messages_are_the_same_at_once_and_as_a_stream_and_their_tokens_are_counted() {
    let daemon = daemon(&[("small", &profile("llama-server", ""))]).await;
    let messages = json!([{"role": "user", "content": "Say hello."}]);
    let body = json!({"model": "small", "messages": messages, "max_tokens": 6, "temperature": 0});
    let (status, whole) = post(&daemon, "/v1/messages", body.clone()).await;
    assert_eq!((status.as_u16(), &whole["type"]), (200, &json!("message")), "{whole}");
    let events = events(&daemon, "/v1/messages", with_stream(&body)).await;
    assert_eq!(events.first().unwrap()["type"], "message_start");
    assert_eq!(events.last().unwrap()["type"], "message_stop");
    let text = texts(&events, "content_block_delta", "/delta/text");
    assert_eq!(json!(text), whole["content"][0]["text"]);
    let question = json!({"model": "small", "messages": body["messages"]});
    let (status, counted) = post(&daemon, "/v1/messages/count_tokens", question).await;
    assert!(status.is_success() && counted["input_tokens"].as_u64().unwrap() > 3, "{counted}");
    let unknown = json!({"model": "other", "messages": [], "max_tokens": 1});
    let (status, body) = post(&daemon, "/v1/messages", unknown).await;
    assert_eq!((status.as_u16(), &body["type"]), (404, &json!("error")));
    assert_eq!(body["error"]["type"], "not_found_error");
}

#[tokio::test]
async fn anthropics_client_is_served_by_llama_server() {
    let daemon = daemon(&[("small", &profile("llama-server", ""))]).await;
    let python = super::set("SLOTD_TEST_PYTHON");
    client(Path::new(&python), &["tests/sdk/anthropic_client.py", &daemon.url, "small"]).await;
}

#[tokio::test]
async fn llama_servers_own_paths_answer_as_it_does() {
    let daemon = daemon(&[("small", &profile("llama-server", "parallel = 2"))]).await;
    let text = json!({"model": "small", "content": "hello world"});
    let (status, tokens) = post(&daemon, "/tokenize", text).await;
    assert_eq!(status, 200);
    let (_, back) =
        post(&daemon, "/detokenize", json!({"model": "small", "tokens": tokens["tokens"]})).await;
    assert_eq!(back["content"], "hello world");
    let messages = json!([{"role": "user", "content": "Say hello."}]);
    let (_, templated) =
        post(&daemon, "/apply-template", json!({"model": "small", "messages": messages})).await;
    assert!(templated["prompt"].as_str().unwrap().contains("Say hello."), "{templated}");
    let (status, props) = get(&daemon, "/props?model=small").await;
    assert_eq!((status.as_u16(), &props["total_slots"]), (200, &json!(2)), "{props}");
    let (status, slots) = get(&daemon, "/slots").await;
    assert_eq!((status.as_u16(), slots.as_array().unwrap().len()), (200, 2), "the only slot");
    let (status, adapters) = get(&daemon, "/lora-adapters").await;
    assert_eq!((status.as_u16(), adapters), (200, json!([])));
    let body = json!({"model": "small", "prompt": "The sea", "n_predict": 4, "temperature": 0});
    let (status, whole) = post(&daemon, "/completion", body.clone()).await;
    assert_eq!(status, 200);
    let events = events(&daemon, "/completion", with_stream(&body)).await;
    let parts: String = events.iter().filter_map(|event| event["content"].as_str()).collect();
    assert_eq!(
        (json!(parts), &events.last().unwrap()["stop"]),
        (whole["content"].clone(), &json!(true))
    );
}

#[tokio::test]
async fn what_the_model_or_the_engine_cannot_do_is_said_in_one_form() {
    let daemon = daemon(&[("small", &profile("llama-server", ""))]).await;
    let infill = json!({"model": "small", "input_prefix": "a", "input_suffix": "b"});
    for (path, body, said) in [
        ("/infill", infill, "Infill is not supported by this model"),
        ("/props", json!({"model": "small"}), "`--props`"),
        ("/slots/0?action=save", json!({"model": "small", "filename": "x"}), "`--slot-save-path`"),
    ] {
        let (status, body) = post(&daemon, path, body).await;
        assert_eq!(
            (status.as_u16(), &body["error"]["type"]),
            (501, &json!("not_supported_error")),
            "{body}"
        );
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(said), "{path}: {message}");
    }
    let (status, body) =
        post(&daemon, "/v1/rerank", json!({"model": "small", "query": "a", "documents": ["b"]}))
            .await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (400, &json!("capability_not_offered")));
    // What the engine cannot do says nothing of its health.
    let slot = daemon.slot("small").await;
    assert_eq!((&slot["state"], &slot["restarts"]), (&json!("ready"), &json!(0)));
}

#[tokio::test]
async fn documents_are_ranked_in_all_spellings() {
    let keys = "capabilities = [\"rerank\"]";
    let daemon = daemon(&[("rank", &profile("llama-server", keys))]).await;
    let body =
        json!({"query": "What is a panda?", "documents": ["A bear.", "Tax law."], "top_n": 1});
    for path in ["/rerank", "/v1/rerank", "/reranking", "/v1/reranking", "/v2/rerank"] {
        let (status, ranked) = post(&daemon, path, body.clone()).await;
        assert_eq!(status, 200, "{path}: {ranked}");
        let results = ranked["results"].as_array().unwrap();
        assert_eq!(results.len(), 1, "{path}: {ranked}");
        assert!(results[0]["relevance_score"].is_number(), "{path}: {ranked}");
    }
    let (status, refused) =
        post(&daemon, "/v2/rerank", json!({"query": "x", "documents": 3})).await;
    assert_eq!(status, 400);
    assert!(refused["message"].is_string(), "Cohere's form: {refused}");
}

#[tokio::test]
async fn the_escape_hatch_leads_to_everything_that_the_engine_has() {
    let daemon = daemon(&[("small", &profile("llama-server", ""))]).await;
    let (status, health) = get(&daemon, "/upstream/small/health").await;
    assert_eq!((status.as_u16(), &health["status"]), (200, &json!("ok")));
    let (_, models) = get(&daemon, "/upstream/small/v1/models").await;
    assert_eq!(models["data"][0]["id"], "small", "the engine's own list: {models}");
    let messages = json!([{"role": "user", "content": "Say hello."}]);
    let chat = json!({"messages": messages, "max_tokens": 4, "stream": true, "temperature": 0});
    let events = events(&daemon, "/upstream/small/v1/chat/completions", chat).await;
    assert!(events.len() > 2, "{events:?}");
    let (status, refused) = get(&daemon, "/upstream/small/nonsense").await;
    assert_eq!((status.as_u16(), &refused["error"]["message"]), (404, &json!("File Not Found")));
}
