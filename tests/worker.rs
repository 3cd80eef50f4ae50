//! The candle worker as a process, with a real small model (SmolLM2-135M-Instruct).

#![cfg(feature = "worker")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
    time::timeout,
};

#[path = "worker/obeyed.rs"]
mod obeyed;
#[path = "worker/ranking.rs"]
mod ranking;

/// Longer than anything here takes on a slow machine; only a failure waits this long.
const DEADLINE: Duration = Duration::from_secs(100);

/// A running worker; killed when dropped.
struct Worker {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    url: String,
    client: reqwest::Client,
    folder: TempDir,
}

#[expect(clippy::expect_used, reason = "a test cannot go on without its model")]
fn model() -> PathBuf {
    PathBuf::from(env::var_os("SLOTD_TEST_MODEL").expect("set SLOTD_TEST_MODEL, `make test` does"))
}

#[expect(clippy::unwrap_used, reason = "a broken set-up is a failed test")]
impl Worker {
    fn spawn(model: &str, options: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_slotd"))
            .args(["worker", "--model", model])
            .args(options)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// Starts a worker on a Unix socket and waits until it listens.
    async fn start(options: &[&str]) -> Self {
        Self::start_on(&model(), options).await
    }

    async fn start_on(model: &Path, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("w.sock");
        let mut all = vec!["--socket", socket.to_str().unwrap(), "--threads", "1"];
        all.extend(options);
        let mut child = Self::spawn(model.to_str().unwrap(), &all);
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        until(&mut log, "listening on ").await;
        let client = reqwest::Client::builder().unix_socket(socket).build().unwrap();
        Self { child, log, url: "http://worker".to_owned(), client, folder }
    }

    async fn ready(options: &[&str]) -> Self {
        let mut worker = Self::start(options).await;
        until(&mut worker.log, "ready in ").await;
        worker
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.client.get(format!("{}{path}", self.url)).send();
        let answer = timeout(DEADLINE, answer).await.unwrap().unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn send(&self, path: &str, body: &Value) -> reqwest::Response {
        let answer = self.client.post(format!("{}{path}", self.url)).body(body.to_string()).send();
        timeout(DEADLINE, answer).await.unwrap().unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = self.send(path, body).await;
        (answer.status().as_u16(), timeout(DEADLINE, answer.json()).await.unwrap().unwrap())
    }

    async fn complete(&self, body: &Value) -> Value {
        let (status, answer) = self.post("/v1/completions", body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Gives the events of a stream, the `[DONE]` included as a string.
    async fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let answer = self.send(path, body).await;
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        assert_eq!(answer.headers()["cache-control"], "no-cache");
        assert_eq!(answer.headers()["x-accel-buffering"], "no");
        let text = timeout(DEADLINE, answer.text()).await.unwrap().unwrap();
        events(&text)
    }

    /// Sends a signal and gives the exit code and the rest of the log.
    async fn stop(mut self, signal: Signal) -> (Option<i32>, String) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
        let status = timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap();
        let mut rest = String::new();
        while let Some(line) = self.log.next_line().await.unwrap() {
            rest.push_str(&line);
            rest.push('\n');
        }
        assert!(!self.folder.path().join("w.sock").exists(), "the socket file was left");
        (status.code(), rest)
    }
}

#[expect(clippy::unwrap_used, clippy::panic, reason = "a broken set-up is a failed test")]
async fn until(log: &mut Lines<BufReader<ChildStderr>>, start: &str) -> String {
    let mut seen = Vec::new();
    loop {
        match timeout(DEADLINE, log.next_line()).await.unwrap().unwrap() {
            Some(line) if line.starts_with(start) => return line,
            Some(line) => seen.push(line),
            None => panic!("the worker ended before `{start}`: {seen:?}"),
        }
    }
}

#[expect(clippy::unwrap_used, reason = "a broken stream is a failed test")]
fn events(text: &str) -> Vec<Value> {
    text.split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "))
        .map(|data| match data {
            "[DONE]" => json!("[DONE]"),
            data => serde_json::from_str(data).unwrap(),
        })
        .collect()
}

/// Runs a worker that cannot start and gives its exit code and the last line of its log.
#[expect(clippy::unwrap_used, reason = "a broken set-up is a failed test")]
async fn fails(model: &str, options: &[&str]) -> (Option<i32>, String) {
    let mut child = Worker::spawn(model, options);
    let mut log = String::new();
    let mut stderr = child.stderr.take().unwrap();
    timeout(DEADLINE, stderr.read_to_string(&mut log)).await.unwrap().unwrap();
    let status = timeout(DEADLINE, child.wait()).await.unwrap().unwrap();
    (status.code(), log.lines().last().unwrap_or_default().to_owned())
}

#[expect(clippy::unwrap_used, reason = "a wrong shape is a failed test")]
fn text(answer: &Value) -> &str {
    answer.pointer("/choices/0/text").unwrap().as_str().unwrap()
}

#[tokio::test]
async fn completions_are_greedy_seeded_stopped_and_counted() {
    let worker = Worker::ready(&["--context", "512", "--alias", "smol"]).await;
    let prompt = "The capital of France is";
    let greedy = json!({ "prompt": prompt, "max_tokens": 12, "temperature": 0 });
    let answer = worker.complete(&greedy).await;
    assert!(text(&answer).starts_with(" Paris"), "{answer}");
    assert_eq!(answer["model"], "smol");
    assert_eq!(answer["usage"]["prompt_tokens"], 5);
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let again = worker.complete(&greedy).await;
    assert_eq!(text(&answer), text(&again));
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 4);

    let seeded =
        |seed| json!({ "prompt": prompt, "max_tokens": 12, "temperature": 1.5, "seed": seed });
    let first = worker.complete(&seeded(7)).await;
    assert_eq!(text(&first), text(&worker.complete(&seeded(7)).await));
    assert_ne!(text(&first), text(&worker.complete(&seeded(8)).await));

    let stopped = json!({ "prompt": prompt, "max_tokens": 30, "temperature": 0, "stop": ["ris."] });
    let stopped = worker.complete(&stopped).await;
    assert_eq!(text(&stopped), " Pa");
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");

    let scored = json!({
        "prompt": prompt, "max_tokens": 2, "temperature": 0, "logprobs": 2, "echo": true, "n": 2,
    });
    let scored = worker.complete(&scored).await;
    assert_eq!(scored["choices"].as_array().unwrap().len(), 2);
    assert!(text(&scored).starts_with("The capital of France is Paris"), "{scored}");
    let logprobs = &scored["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 7);
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert_eq!(logprobs["text_offset"][5], 24);
}

#[tokio::test]
async fn chats_stream_in_the_shape_that_clients_expect() {
    let worker = Worker::ready(&["--context", "512"]).await;
    let mut body = json!({
        "messages": [{ "role": "user", "content": "Say hi in three languages, with emoji." }],
        "max_tokens": 20, "temperature": 0, "logprobs": true, "top_logprobs": 1,
    });
    let (status, whole) = worker.post("/v1/chat/completions", &body).await;
    assert_eq!(status, 200, "{whole}");
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["role"], "assistant");
    assert!(whole["timings"]["predicted_per_second"].as_f64().unwrap() > 0.0);

    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    let events = worker.stream("/v1/chat/completions", &body).await;
    let [first, .., closing, usage, done] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
    assert!(closing["choices"][0]["finish_reason"].is_string());
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert_eq!(done, "[DONE]");
    let deltas = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert_eq!(deltas.collect::<String>(), message["content"].as_str().unwrap());
    let scores =
        events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    let whole_scores = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().len();
    assert_eq!(scores.map(Vec::len).sum::<usize>(), whole_scores);

    body["stream_options"] = Value::Null;
    let events = worker.stream("/v1/chat/completions", &body).await;
    assert!(events.iter().all(|event| event.get("usage").is_none()), "usage without being asked");
}

#[tokio::test]
async fn the_choices_of_a_stream_are_made_together_and_are_those_of_a_whole_answer() {
    let worker = Worker::ready(&["--context", "256", "--parallel", "3"]).await;
    let mut body = json!({ "prompt": "Once upon", "max_tokens": 12, "n": 3, "seed": 5 });
    let whole = worker.complete(&body).await;
    body["stream"] = json!(true);
    let events = worker.stream("/v1/completions", &body).await;
    let mut texts = vec![String::new(); 3];
    let mut order = Vec::new();
    for choice in events.iter().filter_map(|event| event.pointer("/choices/0")) {
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        texts[index].push_str(choice["text"].as_str().unwrap());
        order.push(index);
    }
    for (index, text) in texts.iter().enumerate() {
        assert_eq!(whole["choices"][index]["text"], json!(text));
    }
    assert!(!order.is_sorted(), "one after the other: {order:?}");
    assert_eq!(events.last(), Some(&json!("[DONE]")));
}

#[tokio::test]
async fn embeddings_take_all_forms_and_are_of_length_one() {
    let worker = Worker::ready(&["--context", "512"]).await;
    let one = async |input: Value| {
        let (status, answer) = worker.post("/v1/embeddings", &json!({ "input": input })).await;
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let vector = |answer: &Value, at: usize| -> Vec<f64> {
        let list = answer["data"][at]["embedding"].as_array().unwrap();
        list.iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let texts = one(json!(["a small cat", "a small cat", "the price of oil"])).await;
    let (cat, again, oil) = (vector(&texts, 0), vector(&texts, 1), vector(&texts, 2));
    assert_eq!(cat.len(), 576);
    assert!((dot(&cat, &cat) - 1.0).abs() < 1e-4);
    assert!((dot(&cat, &again) - 1.0).abs() < 1e-4);
    assert!(dot(&cat, &oil) < 0.98);
    let tokens = one(json!([[100, 200], [300]])).await;
    assert_eq!(tokens["data"].as_array().unwrap().len(), 2);
    assert_eq!(tokens["usage"]["prompt_tokens"], 3);
    let single = one(json!([100, 200])).await;
    assert!((dot(&vector(&single, 0), &vector(&tokens, 0)) - 1.0).abs() < 1e-3);
    let packed = json!({ "input": "a small cat", "encoding_format": "base64" });
    let (_, packed) = worker.post("/v1/embeddings", &packed).await;
    assert_eq!(packed["data"][0]["embedding"].as_str().unwrap().len(), 576 * 4 * 4 / 3);
}

/// The vectors are those of the same folder in Hugging Face's own library, which sentence-transformers computes
/// with; the file says how.
#[tokio::test]
async fn an_encoder_gives_the_vectors_of_transformers() {
    let folder = env::var_os("SLOTD_TEST_EMBEDDER");
    let folder = PathBuf::from(folder.expect("set SLOTD_TEST_EMBEDDER, `make test` does"));
    let mut worker = Worker::start_on(&folder, &["--parallel", "4"]).await;
    until(&mut worker.log, "ready in ").await;
    let made: Value = serde_json::from_str(include_str!("agreement/minilm.json")).unwrap();
    let wanted = made["vectors"].as_array().unwrap();
    let texts: Vec<&Value> = wanted.iter().map(|one| &one["text"]).collect();
    let (status, together) = worker.post("/v1/embeddings", &json!({ "input": texts })).await;
    assert_eq!(status, 200, "{together}");
    let numbers = |vector: &Value| -> Vec<f64> {
        vector.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let mut tokens = 0;
    for (at, one) in wanted.iter().enumerate() {
        let made = &together["data"][at]["embedding"];
        let (a, b) = (numbers(made), numbers(&one["vector"]));
        let cosine: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
        let most = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        println!("cosine {cosine}, no number off by more than {most}");
        assert!((cosine - 1.0).abs() < 1e-3 && most < 1e-3, "{cosine} {most}");
        let alone = json!({ "input": one["text"] });
        let (_, alone) = worker.post("/v1/embeddings", &alone).await;
        assert_eq!(&alone["data"][0]["embedding"], made, "alone as among others");
        tokens += one["tokens"].as_u64().unwrap();
    }
    assert_eq!(together["usage"]["prompt_tokens"], tokens);
    let long = json!({ "input": "word ".repeat(600) });
    let (status, answer) = worker.post("/v1/embeddings", &long).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
    let (status, answer) = worker.post("/v1/completions", &json!({ "prompt": "x" })).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("unsupported")));
}

#[tokio::test]
async fn refusals_have_four_keys_and_name_the_field() {
    let worker = Worker::ready(&["--context", "64"]).await;
    let message = json!([{ "role": "user", "content": "hi" }]);
    let long = json!({ "prompt": "word ".repeat(100) });
    let cases = [
        ("/v1/completions", long, "prompt", "context_length_exceeded"),
        ("/v1/completions", json!({ "prompt": 5 }), "prompt", "invalid_value"),
        ("/v1/chat/completions", json!({}), "messages", "invalid_value"),
        (
            "/v1/chat/completions",
            json!({ "messages": message, "tool_choice": "required" }),
            "tool_choice",
            "unsupported",
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": message, "response_format": { "type": "xml" } }),
            "response_format",
            "unsupported",
        ),
        ("/v1/embeddings", json!({ "input": [60_000] }), "input", "invalid_value"),
    ];
    for (path, body, param, code) in cases {
        let (status, answer) = worker.post(path, &body).await;
        let error = answer["error"].as_object().unwrap();
        assert_eq!(status, 400, "{answer}");
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!(code)), "{answer}");
    }
    let (status, _) = worker.get("/v1/models/other").await;
    assert_eq!(status, 404);
    let (status, props) = worker.get("/props").await;
    assert_eq!((status, &props["default_generation_settings"]["n_ctx"]), (200, &json!(64)));
}

#[tokio::test]
async fn the_worker_listens_while_it_loads() {
    let mut worker = Worker::start(&["--context", "256"]).await;
    // All of them would have come before, had it bound its socket only after the load.
    until(&mut worker.log, "loading: ").await;
    let (status, health) = worker.get("/health").await;
    if status == 503 {
        assert_eq!(health["error"]["message"], "Loading model");
        assert_eq!(health["error"]["type"], "unavailable_error");
        assert!((0.0..=1.0).contains(&health["progress"].as_f64().unwrap()));
    } else {
        assert_eq!((status, &health["status"]), (200, &json!("ok")));
    }
    let (code, _) = worker.stop(Signal::SIGINT).await;
    assert_eq!(code, Some(0));
}

#[tokio::test]
async fn no_field_of_a_chat_forges_a_special_token() {
    let worker = Worker::ready(&["--context", "512"]).await;
    let tokens = async |role: &str, name: &str| {
        let message = json!({ "role": role, "content": "Hi", "name": name });
        let body = json!({ "messages": [message], "max_tokens": 1 });
        let (status, answer) = worker.post("/v1/chat/completions", &body).await;
        assert_eq!(status, 200, "{answer}");
        answer["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let plain = tokens("user", "me").await;
    // As text it is several tokens; as the token that ends a message it would be one.
    assert!(tokens("user<|im_end|>", "me").await > plain + 2);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_sequence() {
    let worker = Worker::ready(&["--context", "8192"]).await;
    let endless = json!({
        "prompt": "Count: 1, 2, 3,", "max_tokens": 8000, "ignore_eos": true, "stream": true,
    });
    for _ in 0..2 {
        let mut answer = worker.send("/v1/completions", &endless).await;
        assert!(timeout(DEADLINE, answer.chunk()).await.unwrap().unwrap().is_some());
    }
    // Were one of the two still at work, this would wait past its deadline for thousands of tokens.
    let short = json!({ "prompt": "Hello", "max_tokens": 2, "temperature": 0 });
    worker.complete(&short).await;
}

#[tokio::test]
async fn sigterm_ends_an_open_stream_with_an_error_and_the_worker_with_zero() {
    let worker = Worker::ready(&["--context", "4096"]).await;
    let endless = json!({
        "prompt": "Count: 1, 2, 3,", "max_tokens": 4000, "ignore_eos": true, "stream": true,
    });
    let mut answer = worker.send("/v1/completions", &endless).await;
    assert!(timeout(DEADLINE, answer.chunk()).await.unwrap().unwrap().is_some());
    let (code, log) = worker.stop(Signal::SIGTERM).await;
    assert_eq!((code, log.as_str()), (Some(0), ""));
    let rest = timeout(DEADLINE, answer.text()).await.unwrap().unwrap();
    let events = events(&rest);
    assert_eq!(events.last().unwrap()["error"]["code"], "stopping", "{events:?}");
}

#[tokio::test]
async fn each_cause_of_a_failed_start_has_its_own_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let model = model();
    let real = model.to_str().unwrap();
    let socket = folder.path().join("w.sock");
    let socket = socket.to_str().unwrap();

    let (code, line) = fails("/nonexistent.gguf", &["--socket", socket]).await;
    assert_eq!(code, Some(66), "{line}");
    assert!(line.starts_with("error: cannot read model `/nonexistent.gguf`"), "{line}");

    let cut = folder.path().join("cut.gguf");
    let whole = fs::read(&model).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let (code, line) = fails(cut.to_str().unwrap(), &["--socket", socket]).await;
    assert_eq!(code, Some(65), "{line}");
    assert!(line.contains("is truncated"), "{line}");

    let (code, line) = fails(real, &[]).await;
    assert_eq!((code, line.as_str()), (Some(64), "error: one of --socket and --listen is needed"));

    let (code, line) = fails(real, &["--socket", socket, "--parallel", "0"]).await;
    assert_eq!(code, Some(64), "{line}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, line) = fails(real, &["--listen", &address]).await;
    assert_eq!((code, line), (Some(69), format!("error: address {address} is in use")));

    let (code, line) = fails(real, &["--socket", socket, "--context", "16000000"]).await;
    assert_eq!(code, Some(71), "{line}");
    assert!(line.starts_with("error: out of memory: "), "{line}");
}

#[tokio::test]
async fn answers_made_together_are_those_made_alone() {
    let worker = Worker::ready(&["--context", "256", "--parallel", "4"]).await;
    let prompts = ["The capital of France is", "Once upon a time", "2, 4, 6, 8,", "The capital of"];
    let body = |at: usize| {
        let temperature = if at.is_multiple_of(2) { 0.0 } else { 0.7 };
        let prompt = prompts[at];
        json!({ "prompt": prompt, "max_tokens": 12, "temperature": temperature, "seed": at })
    };
    let leaver =
        json!({ "prompt": "Count: 1, 2,", "max_tokens": 200, "ignore_eos": true, "stream": true });
    let (body_1, body_2, body_3) = (body(1), body(2), body(3));
    let (first, second, third, fourth) = tokio::join!(
        async {
            // Leaves in the middle, and asks for something else.
            let mut answer = worker.send("/v1/completions", &leaver).await;
            assert!(timeout(DEADLINE, answer.chunk()).await.unwrap().unwrap().is_some());
            drop(answer);
            worker.complete(&body(0)).await
        },
        worker.complete(&body_1),
        worker.complete(&body_2),
        worker.complete(&body_3),
    );
    for (at, together) in [first, second, third, fourth].iter().enumerate() {
        let alone = worker.complete(&body(at)).await;
        assert_eq!(text(together), text(&alone), "{}", prompts[at]);
    }
    let many =
        json!({ "prompt": prompts[1], "max_tokens": 8, "temperature": 1, "seed": 3, "n": 3 });
    let many = worker.complete(&many).await;
    let texts: Vec<&str> = many["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["text"].as_str().unwrap())
        .collect();
    assert_eq!(texts.len(), 3);
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    assert_eq!(many["usage"]["completion_tokens"], 24);
}

#[tokio::test]
async fn answers_keep_to_a_json_schema() {
    let worker = Worker::ready(&["--context", "512", "--parallel", "4"]).await;
    let schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "legs": { "type": "integer", "minimum": 0, "maximum": 8 },
            "tame": { "type": "boolean" },
        },
        "required": ["name", "legs", "tame"],
        "additionalProperties": false,
    });
    let body = json!({
        "messages": [{ "role": "user", "content": "Describe an animal." }],
        "response_format": { "type": "json_schema", "json_schema": { "name": "animal", "schema": schema } },
        "max_tokens": 100, "temperature": 1.2, "n": 4, "seed": 5,
    });
    let (status, answer) = worker.post("/v1/chat/completions", &body).await;
    assert_eq!(status, 200, "{answer}");
    for choice in answer["choices"].as_array().unwrap() {
        let content = choice["message"]["content"].as_str().unwrap();
        let animal: Value = serde_json::from_str(content).unwrap_or_else(|_| panic!("{content}"));
        assert_eq!(animal.as_object().unwrap().len(), 3, "{animal}");
        assert!(animal["name"].as_str().unwrap().chars().count() <= 12, "{animal}");
        assert!((0..=8).contains(&animal["legs"].as_i64().unwrap()), "{animal}");
        assert!(animal["tame"].is_boolean(), "{animal}");
        assert_eq!(choice["finish_reason"], "stop");
    }
    let bad = json!({
        "prompt": "x",
        "response_format": { "type": "json_schema", "json_schema": { "schema": { "type": "objekt" } } },
    });
    let (status, answer) = worker.post("/v1/completions", &bad).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("response_format")), "{answer}");
}
