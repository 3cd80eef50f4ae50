//! What a request asks for is done, or refused with a reason; it is never passed over.

use std::fs;

use serde_json::{Value, json};

use super::{Worker, fails, model, text};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn limits_and_schemas_in_the_fields_of_llama_server_hold() {
    let worker = Worker::ready(&["--context", "256"]).await;
    let short = worker.complete(&json!({ "prompt": "Count: 1, 2,", "n_predict": 2 })).await;
    assert_eq!(short["usage"]["completion_tokens"], 2);
    let truth = json!({ "prompt": "x", "json_schema": { "type": "boolean" }, "max_tokens": 30 });
    let truth = worker.complete(&truth).await;
    assert!(["true", "false"].contains(&text(&truth).trim()), "{truth}");
    let bound = json!({ "prompt": "x", "grammar": "root ::= \"yes\"" });
    let (status, answer) = worker.post("/v1/completions", &bound).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("unsupported")), "{answer}");
}

#[tokio::test]
async fn a_schema_that_fails_in_mid_answer_is_the_clients_fault_and_not_the_engines() {
    let worker = Worker::ready(&["--context", "256"]).await;
    let large = json!({ "type": "string", "pattern": "^(([a-z]{1,100}){1,100}){1,100}$" });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": large } });
    // The letter `a`, again and again: the pattern grows with each.
    let body = json!({
        "prompt": "x", "response_format": format, "max_tokens": 60, "temperature": 0, "logit_bias": { "81": 100 },
    });
    let (status, answer) = worker.post("/v1/completions", &body).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_value")), "{answer}");
    assert_eq!(
        answer["error"]["message"],
        "the answer cannot be kept to its schema: a pattern of it is too large"
    );
    // A stream without an end is an engine's that died.
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let events = worker.stream("/v1/completions", &streamed).await;
    let [.., fault, end] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((&fault["error"]["code"], end), (&json!("invalid_value"), &json!("[DONE]")));
}

#[tokio::test]
async fn a_developer_speaks_as_the_system() {
    let worker = Worker::ready(&["--context", "256"]).await;
    let tokens = async |role: &str| {
        let messages = json!([
            { "role": role, "content": "Be brief." },
            { "role": "user", "content": "Hi" },
        ]);
        let (_, answer) =
            worker.post(CHAT, &json!({ "messages": messages, "max_tokens": 1 })).await;
        answer["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let system = tokens("system").await;
    assert_eq!(tokens("developer").await, system);
    assert!(tokens("user").await > system, "the template's own system prompt comes before it");
}

#[tokio::test]
async fn calls_without_results_and_texts_that_are_too_long_are_refused_for_what_they_are() {
    let worker = Worker::ready(&["--context", "64"]).await;
    let call =
        json!({ "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } });
    let messages = json!([
        { "role": "user", "content": "Hi" },
        { "role": "assistant", "content": null, "tool_calls": [call] },
    ]);
    let (status, answer) = worker.post(CHAT, &json!({ "messages": messages })).await;
    assert_eq!(
        (status, &answer["error"]["message"]),
        (400, &json!("`messages[1].tool_calls` cannot be continued, their results have to follow"))
    );
    let message = async |path: &str, body: Value| {
        let (status, answer) = worker.post(path, &body).await;
        assert_eq!(status, 400, "{answer}");
        answer["error"]["message"].as_str().unwrap().to_owned()
    };
    let long = message("/v1/embeddings", json!({ "input": "word ".repeat(100) })).await;
    assert!(long.ends_with(" tokens, the context holds 64"), "{long}");
    let hex = message("/v1/embeddings", json!({ "input": "x", "encoding_format": "hex" })).await;
    assert_eq!(hex, "`encoding_format` is `hex`, expected `float` or `base64`");
}

#[tokio::test]
async fn a_damaged_model_is_told_with_its_file_and_the_number_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let socket = folder.path().join("w.sock");
    let options = ["--socket", socket.to_str().unwrap()];
    let mut file = fs::read(model()).unwrap();
    let key = b"llama.block_count";
    // The key is followed by its type, which takes four bytes.
    let at = file.windows(key.len()).position(|bytes| bytes == key).unwrap() + key.len() + 4;
    file.splice(at..at + 4, 4_000_000_000_u32.to_le_bytes());
    fs::write(&path, &file).unwrap();
    let (code, line) = fails(path.to_str().unwrap(), &options).await;
    let file = path.display();
    let told = format!("error: `{file}`: `llama.block_count` is 4000000000, expected 1 to 1024");
    assert_eq!((code, line), (Some(65), told));

    fs::write(&path, "").unwrap();
    let (_, line) = fails(path.to_str().unwrap(), &options).await;
    assert_eq!(line, format!("error: `{file}` is not a whole GGUF file: it is empty"));
}
