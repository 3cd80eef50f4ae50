//! The worker beside llama-server: the same raw prompts, the same tokens.
//!
//! With weights and caches of single precision nothing is rounded but the last bits of sums: the
//! tokens are the same, and the numbers within a ten-thousandth.
//!
//! With quantised weights both round the inputs of products to integers of 8 bits. A last bit that
//! differs anywhere falls to the other side of a half somewhere, and after some layers two right
//! computations lie as far from each other as each from the floats: 0.12 of a log-probability on
//! average with this model. So the tokens part where the two best are near, and must not elsewhere.
//!
//! Each engine computes on one thread: two wait for each other at every product, and so for
//! whatever else the machine does.

#![cfg(feature = "worker")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a broken set-up is a failed test"
)]

#[path = "agreement/prompts.rs"]
mod prompts;
#[path = "agreement/random_model.rs"]
mod random_model;
#[path = "agreement/single_precision.rs"]
mod single_precision;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use prompts::PROMPTS;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

/// Longer than anything here takes on a slow machine; only a failure waits this long.
const DEADLINE: Duration = Duration::from_mins(5);
const TOKENS: usize = 64;
/// By how much the two best may differ in one engine where the other takes another: weights of single precision.
const EXACT: f64 = 1e-3;
/// The same with quantised weights: 0.2 was seen.
const NEAR: f64 = 0.5;
/// llama-server rounds nothing to half precision with these; its flash attention does so whatever the cache holds.
const UNROUNDED: [&str; 6] =
    ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"];

/// One engine on a Unix socket, killed when dropped.
struct Engine {
    _child: Child,
    client: reqwest::Client,
}

/// A token that was taken, with the best at its place, best first.
struct Step {
    taken: String,
    best: Vec<(String, f64)>,
}

fn from_environment(name: &str) -> PathBuf {
    env::var_os(name).unwrap_or_else(|| panic!("set {name}, `make test` does")).into()
}

impl Engine {
    async fn start(command: &mut Command, socket: PathBuf) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let client = reqwest::Client::builder().unix_socket(socket).build().unwrap();
        let engine = Self { _child: child, client };
        let ready = async {
            while !engine.is_ready().await {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(DEADLINE, ready).await.unwrap();
        engine
    }

    async fn is_ready(&self) -> bool {
        let answer = self.client.get("http://engine/health").send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    async fn get(&self, path: &str) -> String {
        let answer = self.client.get(format!("http://engine{path}")).send();
        let answer = timeout(DEADLINE, answer).await.unwrap().unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        timeout(DEADLINE, answer.text()).await.unwrap().unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let request = self.client.post(format!("http://engine{path}")).body(body.to_string());
        let request = request.header("content-type", "application/json");
        let answer = timeout(DEADLINE, request.send()).await.unwrap().unwrap();
        timeout(DEADLINE, answer.json()).await.unwrap().unwrap()
    }
}

fn ranked(mut best: Vec<(String, f64)>) -> Vec<(String, f64)> {
    best.sort_by(|a, b| b.1.total_cmp(&a.1));
    best
}

async fn of_llama_server(engine: &Engine, prompt: &str) -> Vec<Step> {
    let body = json!({
        "prompt": prompt, "n_predict": TOKENS, "temperature": 0, "n_probs": 5,
        "cache_prompt": false, "seed": 1,
    });
    let answer = engine.post("/completion", body).await;
    let steps = answer["completion_probabilities"].as_array().unwrap().iter().map(|step| {
        let best = step["top_logprobs"].as_array().unwrap().iter();
        let best = best.map(|one| (text(&one["token"]), one["logprob"].as_f64().unwrap()));
        Step { taken: text(&step["token"]), best: ranked(best.collect()) }
    });
    steps.collect()
}

async fn of_worker(engine: &Engine, prompt: &str) -> Vec<Step> {
    let body = json!({ "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "logprobs": 5 });
    let answer = engine.post("/v1/completions", body).await;
    let scores = &answer["choices"][0]["logprobs"];
    let taken = scores["tokens"].as_array().unwrap().iter();
    let steps = taken.zip(scores["top_logprobs"].as_array().unwrap()).map(|(taken, best)| {
        let best = best.as_object().unwrap().iter();
        let best = best.map(|(token, logprob)| (token.clone(), logprob.as_f64().unwrap()));
        Step { taken: text(taken), best: ranked(best.collect()) }
    });
    steps.collect()
}

/// The token that ends a text has no text of its own.
fn text(token: &Value) -> String {
    token.as_str().filter(|text| *text != "<|im_end|>").unwrap_or_default().to_owned()
}

/// How much better the best is than `other`; infinite where that is not among the best.
fn gap(step: &Step, other: &str) -> f64 {
    let other = step.best.iter().find(|(token, _)| token == other);
    other.map_or(f64::INFINITY, |(_, logprob)| step.best[0].1 - logprob)
}

struct Both {
    _folder: TempDir,
    llama_server: Engine,
    worker: Engine,
}

async fn both(parallel: &str) -> Both {
    let folder = tempfile::Builder::new().prefix("slotd-").tempdir_in("/tmp").unwrap();
    both_on(folder, &from_environment("SLOTD_TEST_MODEL"), parallel, &[]).await
}

async fn both_on(folder: TempDir, model: &Path, parallel: &str, more: &[&str]) -> Both {
    let (theirs, ours) = (folder.path().join("llama.sock"), folder.path().join("worker.sock"));
    let mut command = Command::new(from_environment("SLOTD_TEST_LLAMA_SERVER"));
    command.arg("--model").arg(model).arg("--host").arg(&theirs).arg("--metrics");
    command.args(more);
    command.args(["--parallel", parallel, "--ctx-size", "512", "--threads", "1"]);
    let llama_server = Engine::start(&mut command, theirs).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotd"));
    command.arg("worker").arg("--model").arg(model).arg("--socket").arg(&ours);
    command.args(["--parallel", parallel, "--context", "512", "--threads", "1"]);
    Both { _folder: folder, llama_server, worker: Engine::start(&mut command, ours).await }
}

#[tokio::test]
async fn greedy_tokens_of_single_precision_are_those_of_llama_server() {
    let folder = tempfile::Builder::new().prefix("slotd-").tempdir_in("/tmp").unwrap();
    let model = single_precision::write(folder.path(), &from_environment("SLOTD_TEST_MODEL"));
    let both = both_on(folder, &model, "1", &UNROUNDED).await;
    part_at_ties_only(&both, EXACT).await;
}

#[tokio::test]
async fn greedy_tokens_of_quantised_weights_are_those_of_llama_server_but_for_near_ties() {
    let folder = tempfile::Builder::new().prefix("slotd-").tempdir_in("/tmp").unwrap();
    let model = from_environment("SLOTD_TEST_MODEL");
    part_at_ties_only(&both_on(folder, &model, "1", &UNROUNDED).await, NEAR).await;
}

/// Fails if one engine takes another token than the other though it leads by more than `near`.
#[expect(clippy::print_stdout, reason = "a table for people")]
async fn part_at_ties_only(both: &Both, near: f64) {
    let Both { llama_server, worker, .. } = both;
    println!("prompt | equal tokens | llama-server takes, by | the worker takes, by");
    let mut far = Vec::new();
    for prompt in PROMPTS {
        let (theirs, ours) =
            tokio::join!(of_llama_server(llama_server, prompt), of_worker(worker, prompt));
        let equal = theirs.iter().zip(&ours).take_while(|(a, b)| a.taken == b.taken).count();
        // The worker tells of no token that ends its text.
        let (a, b) = (theirs.get(equal), ours.get(equal));
        let taken = [a, b].map(|step| step.map_or("", |step| step.taken.as_str()));
        let by_a = a.map_or(0.0, |a| gap(a, taken[1]));
        let by_b = b.map_or(0.0, |b| gap(b, taken[0]));
        println!("{prompt:?} | {equal} | {:?} {by_a:.3} | {:?} {by_b:.3}", taken[0], taken[1]);
        if by_a > near || by_b > near {
            far.push(prompt);
        }
    }
    assert!(far.is_empty(), "no near tie: {far:?}");
}

/// Both compute with floats of single precision, and differ by the order of sums; but llama-server reads the
/// GELU of gemma3 from a table in half precision.
///
/// Bytes that are no letters are forbidden: llama-server tells nothing of tokens that end within a
/// letter.
#[tokio::test]
async fn random_models_of_each_architecture_give_the_numbers_of_llama_server() {
    let bias: BTreeMap<String, f64> = (128..256).map(|id| (id.to_string(), -100.0)).collect();
    let mut far = Vec::new();
    for kind in &random_model::KINDS {
        let folder = tempfile::Builder::new().prefix("slotd-").tempdir_in("/tmp").unwrap();
        let model = random_model::write(folder.path(), kind, None);
        let Both { llama_server, worker, _folder } = both_on(folder, &model, "1", &UNROUNDED).await;
        let mut all = 0;
        for prompt in ["Hi", "The quick brown fox jumps over", "abcabcab 0123 abc"] {
            let body = json!({
                "messages": [{ "role": "user", "content": prompt }], "logit_bias": bias,
                "max_tokens": 24, "temperature": 0, "logprobs": true, "top_logprobs": 8,
            });
            let theirs = llama_server.post("/v1/chat/completions", body.clone()).await;
            let ours = worker.post("/v1/chat/completions", body).await;
            let prompts = [&theirs, &ours].map(|answer| answer["usage"]["prompt_tokens"].clone());
            assert_eq!(prompts[0], prompts[1], "{}", kind.architecture);
            let (equal, most) = compared(&theirs, &ours);
            println!("{} {prompt:?} | {equal} equal | off by {most}", kind.architecture);
            all += equal;
            let near = if kind.architecture == "gemma3" { 0.01 } else { 1e-4 };
            if most > near {
                far.push((kind.architecture, prompt, equal, most));
            }
        }
        assert!(all > 10, "{}: {all} tokens were compared", kind.architecture);
    }
    assert!(far.is_empty(), "{far:?}");
}

const TOOLS_TEMPLATE: &str = "{% if tools %}Call {{ tools | tojson }} as <tool_call>\n\
    {\"name\": …, \"arguments\": …}\n</tool_call>\n{% endif %}{% for message in messages %}\
    {{ message.role }}: {{ message.content }}{% if message.tool_calls %}\
    {{ message.tool_calls[0].function.arguments.text }}{% endif %}\n{% endfor %}";

/// A worker on a model of random weights whose template tells of tools; the folder is the model's.
async fn worker_with_tools() -> (TempDir, Engine) {
    let folder = tempfile::Builder::new().prefix("slotd-").tempdir_in("/tmp").unwrap();
    let model = random_model::write(folder.path(), &random_model::KINDS[0], Some(TOOLS_TEMPLATE));
    let socket = folder.path().join("worker.sock");
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotd"));
    command.arg("worker").arg("--model").arg(&model).arg("--socket").arg(&socket);
    let worker = Engine::start(command.args(["--context", "2048", "--threads", "1"]), socket).await;
    (folder, worker)
}

#[tokio::test]
async fn half_a_call_that_had_to_be_made_is_told_to_nobody() {
    let (_folder, worker) = worker_with_tools().await;
    let parameters = json!({
        "type": "object", "properties": { "city": { "enum": ["Rome"] } },
        "required": ["city"], "additionalProperties": false,
    });
    let tool =
        json!({ "type": "function", "function": { "name": "go", "parameters": parameters } });
    let mut body = json!({
        "messages": [{ "role": "user", "content": "Go." }], "temperature": 0.7, "seed": 3,
        "tools": [tool], "tool_choice": "required", "max_tokens": 5,
    });
    let cut = worker.post("/v1/chat/completions", body.clone()).await;
    let choice = &cut["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&Value::Null, &json!("length")),
        "{cut}"
    );
    assert!(choice["message"].get("tool_calls").is_none(), "{cut}");

    body["stream"] = json!(true);
    let request = worker.client.post("http://engine/v1/chat/completions").body(body.to_string());
    let text = timeout(DEADLINE, request.send()).await.unwrap().unwrap().text().await.unwrap();
    assert!(!text.contains("name") && text.contains("\"finish_reason\":\"length\""), "{text}");

    body["stream"] = json!(false);
    body["max_tokens"] = json!(400);
    body["stop"] = json!(["city"]);
    let whole = worker.post("/v1/chat/completions", body).await;
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{whole}");
    let arguments = choice["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(arguments).unwrap(), json!({ "city": "Rome" }));
}

/// A model of random weights calls nothing of itself: that it calls well is the grammar's doing.
#[tokio::test]
async fn a_tool_that_has_to_be_called_is_called_with_arguments_of_its_schema() {
    let (_folder, worker) = worker_with_tools().await;
    let tool = |name: &str| {
        let text = json!({ "enum": ["left", "right"] });
        let parameters = json!({
            "type": "object", "properties": { "text": text, "count": { "enum": [1, 2] } },
            "required": ["text", "count"], "additionalProperties": false,
        });
        json!({ "type": "function", "function": { "name": name, "parameters": parameters } })
    };
    let mut body = json!({
        "messages": [{ "role": "user", "content": "Turn." }], "temperature": 0.7, "seed": 3,
        "tools": [tool("turn"), tool("go")], "tool_choice": "required",
    });
    let answer = worker.post("/v1/chat/completions", body.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null),
        "{answer}"
    );
    let call = &choice["message"]["tool_calls"][0];
    assert!(["turn", "go"].contains(&call["function"]["name"].as_str().unwrap()), "{call}");
    assert_eq!(call["type"], "function");
    let text = call["function"]["arguments"].as_str().unwrap();
    let arguments: Value = serde_json::from_str(text).unwrap();
    assert!(arguments["text"].is_string() && arguments["count"].is_u64(), "{arguments}");

    body["tool_choice"] = json!({ "type": "function", "function": { "name": "go" } });
    body["stream"] = json!(true);
    let request = worker.client.post("http://engine/v1/chat/completions").body(body.to_string());
    let text = timeout(DEADLINE, request.send()).await.unwrap().unwrap().text().await.unwrap();
    assert!(text.contains("\"tool_calls\":[{") && text.contains("\"name\":\"go\""), "{text}");
    assert!(text.contains("\"finish_reason\":\"tool_calls\""), "{text}");
    assert!(!text.contains("<tool"), "{text}");

    body["stream"] = json!(false);
    body["tool_choice"] = json!("none");
    body["max_tokens"] = json!(4);
    let without = worker.post("/v1/chat/completions", body.clone()).await;
    body["tool_choice"] = json!("auto");
    let former = json!({ "id": "a", "type": "function", "function": { "name": "go", "arguments": "{\"text\": \"left\"}" } });
    body["messages"] = json!([{ "role": "user", "content": "Turn." }, { "role": "assistant", "content": null, "tool_calls": [former] }, { "role": "tool", "tool_call_id": "a", "content": "done" }]);
    let with = worker.post("/v1/chat/completions", body).await;
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens(&with) > tokens(&without) + 100, "the model saw no tools: {with} {without}");
}

/// Gives how many tokens are equal, and how far the logarithms of what both have among the best lie
/// apart at most. Where the tokens part, the two that were taken are a part of that.
fn compared(theirs: &Value, ours: &Value) -> (usize, f64) {
    let steps = |answer: &Value| -> Vec<Value> {
        answer["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default()
    };
    let best = |step: &Value| -> BTreeMap<u64, f64> {
        let best = step["top_logprobs"].as_array().unwrap().iter();
        best.map(|one| (one["id"].as_u64().unwrap(), one["logprob"].as_f64().unwrap())).collect()
    };
    let (theirs, ours) = (steps(theirs), steps(ours));
    let (mut equal, mut most) = (0, 0.0_f64);
    for (theirs, ours) in theirs.iter().zip(&ours) {
        let (a, b) = (best(theirs), best(ours));
        let both = a.iter().filter_map(|(id, logprob)| Some(logprob - b.get(id)?));
        most = both.map(f64::abs).fold(most, f64::max);
        if theirs["id"] != ours["id"] {
            let taken = [theirs, ours].map(|step| step["logprob"].as_f64().unwrap());
            return (equal, most.max((taken[0] - taken[1]).abs()));
        }
        equal += 1;
    }
    // One of them may tell of the token that ends a text.
    assert!(theirs.len().abs_diff(ours.len()) <= 1, "{} and {}", theirs.len(), ours.len());
    (equal, most)
}

/// Gives the paths of all keys, those of lists' elements as one.
fn keys(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    if let Some(map) = value.as_object() {
        for (key, value) in map {
            let path = format!("{path}/{key}");
            keys(value, &path, found);
            found.insert(path);
        }
    }
    for value in value.as_array().into_iter().flatten() {
        keys(value, path, found);
    }
}

/// Gives the keys that llama-server has and the worker lacks, but for those of `excused`.
fn lacking(theirs: &Value, ours: &Value, excused: &[&str]) -> Vec<String> {
    let (mut wanted, mut there) = (BTreeSet::new(), BTreeSet::new());
    keys(theirs, "", &mut wanted);
    keys(ours, "", &mut there);
    let excused = |key: &String| excused.iter().any(|excused| key.contains(excused));
    wanted.difference(&there).filter(|key| !excused(key)).cloned().collect()
}

/// What the worker does not do, and so has no settings for.
const EXCUSED: [&str; 17] = [
    "/params/adaptive_",
    "/params/backend_sampling",
    "/params/chat_format",
    "/params/dry_",
    "/params/generation_prompt",
    "/params/mirostat_",
    "/params/post_sampling_probs",
    "/params/reasoning_",
    "/params/speculative",
    "/params/stream",
    "/params/timings_per_token",
    "/params/samplers",
    "/chat_template_caps/",
    "/cors_proxy_enabled",
    "/media_marker",
    "/ui",
    "/ui_settings",
];

#[tokio::test]
async fn monitors_find_what_llama_server_shows_them() {
    let Both { llama_server, worker, _folder } = both("2").await;
    let json = async |engine: &Engine, path| -> Value {
        serde_json::from_str(&engine.get(path).await).unwrap()
    };
    let body = json!({ "prompt": "Once upon", "max_tokens": 5, "n_predict": 5 });
    for engine in [&llama_server, &worker] {
        engine.post("/v1/completions", body.clone()).await;
    }
    for path in ["/props", "/slots"] {
        let (theirs, ours) = (json(&llama_server, path).await, json(&worker, path).await);
        assert_eq!(lacking(&theirs, &ours, &EXCUSED), Vec::<String>::new(), "{path}: {ours}");
    }
    let slots = json(&worker, "/slots").await;
    let used = slots.as_array().unwrap().iter().find(|slot| slot["id_task"].is_u64()).unwrap();
    assert_eq!((slots.as_array().unwrap().len(), &used["is_processing"]), (2, &json!(false)));
    assert_eq!(used["next_token"][0]["n_decoded"], 5);
    assert_eq!(json(&worker, "/props").await["total_slots"], 2);

    let samples = |text: &str| -> BTreeMap<String, f64> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.map(|line| line.rsplit_once(' ').unwrap());
        pairs.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
    };
    let types = |text: &str| -> BTreeSet<String> {
        text.lines().filter(|line| line.starts_with("# TYPE")).map(str::to_owned).collect()
    };
    let (theirs, ours) = (llama_server.get("/metrics").await, worker.get("/metrics").await);
    let lacking: Vec<String> = types(&theirs).difference(&types(&ours)).cloned().collect();
    assert!(lacking.iter().all(|name| name.contains(":spec_decode_")), "{lacking:?}");
    let ours = samples(&ours);
    assert!((ours["llamacpp:tokens_predicted_total"] - 5.0).abs() < 0.1, "{ours:?}");
    assert!(ours["llamacpp:prompt_tokens_total"] > 0.9, "{ours:?}");
    assert!(ours["llamacpp:requests_processing"].abs() < 0.1, "{ours:?}");
}

#[tokio::test]
async fn logprobs_of_a_chat_have_the_shape_and_nearly_the_values_of_llama_server() {
    let Both { llama_server, worker, _folder } = both("1").await;
    let body = json!({
        "messages": [{ "role": "user", "content": "Name three colours." }],
        "max_tokens": 12, "temperature": 0, "logprobs": true, "top_logprobs": 3,
    });
    let theirs = llama_server.post("/v1/chat/completions", body.clone()).await;
    let ours = worker.post("/v1/chat/completions", body).await;
    let (theirs, ours) = (&theirs["choices"][0]["logprobs"], &ours["choices"][0]["logprobs"]);
    assert_eq!(lacking(theirs, ours, &[]), Vec::<String>::new(), "{ours}");
    let steps = |logprobs: &Value| logprobs["content"].as_array().unwrap().clone();
    let (mut off, mut count) = (0.0, 0.0);
    for (theirs, ours) in steps(theirs).iter().zip(&steps(ours)) {
        if theirs["id"] != ours["id"] {
            break;
        }
        assert_eq!((&theirs["token"], &theirs["bytes"]), (&ours["token"], &ours["bytes"]));
        assert_eq!(ours["top_logprobs"].as_array().unwrap().len(), 3);
        assert_eq!(ours["top_logprobs"][0]["logprob"], ours["logprob"]);
        off += (theirs["logprob"].as_f64().unwrap() - ours["logprob"].as_f64().unwrap()).abs();
        count += 1.0;
    }
    println!("{count} tokens, off by {} on average", off / count);
    assert!(count > 0.0 && off / count < 0.3, "{off} of {count}");
}
