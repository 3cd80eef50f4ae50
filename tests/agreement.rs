//! The worker beside llama-server: the same raw prompts, the same tokens, or a near tie where they
//! part.
//!
//! Both round the inputs of products to integers of 8 bits. A last bit that differs anywhere falls
//! to the other side of a half somewhere, and after some layers two right computations lie as far
//! from each other as each from the floats: 0.12 of a log-probability on average with this model,
//! up to one at worst. So the tokens part where the two best are nearer than that, and must not
//! elsewhere.

#![cfg(feature = "worker")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a broken set-up is a failed test"
)]

use std::{env, path::PathBuf, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

/// Longer than anything here takes on a slow machine; only a failure waits this long.
const DEADLINE: Duration = Duration::from_mins(5);
const TOKENS: usize = 64;
/// By how much the two best may differ in one engine where the other takes another.
const NEAR: f64 = 1.0;

const PROMPTS: [&str; 20] = [
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):\n",
    "The three primary colours are",
    "Water boils at",
    "In 1969 the first man",
    "Dear Sir or Madam,\n",
    "SELECT name FROM users WHERE",
    "The meaning of life is",
    "My favourite recipe begins with",
    "Photosynthesis is the process by which",
    "1, 1, 2, 3, 5, 8,",
    "Q: What is the largest planet?\nA:",
    "The quick brown fox",
    "To install the program, first",
    "A haiku about the sea:\n",
    "The theory of relativity says that",
    "import numpy as np\n",
    "Good morning, ladies and gentlemen.",
    "The difference between a virus and a bacterium is",
];

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

#[tokio::test]
async fn greedy_tokens_are_those_of_llama_server_but_for_near_ties() {
    let folder = tempfile::Builder::new().prefix("slotd-").tempdir_in("/tmp").unwrap();
    let model = from_environment("SLOTD_TEST_MODEL");
    let (theirs, ours) = (folder.path().join("llama.sock"), folder.path().join("worker.sock"));
    let mut command = Command::new(from_environment("SLOTD_TEST_LLAMA_SERVER"));
    command.arg("--model").arg(&model).arg("--host").arg(&theirs);
    command.args(["--parallel", "1", "--ctx-size", "512", "--threads", "2"]);
    let llama_server = Engine::start(&mut command, theirs).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotd"));
    command.arg("worker").arg("--model").arg(&model).arg("--socket").arg(&ours);
    let worker = Engine::start(command.args(["--context", "512", "--threads", "2"]), ours).await;

    println!("prompt | equal tokens | llama-server takes, by | the worker takes, by");
    let mut far = Vec::new();
    for prompt in PROMPTS {
        let theirs = of_llama_server(&llama_server, prompt).await;
        let ours = of_worker(&worker, prompt).await;
        let equal = theirs.iter().zip(&ours).take_while(|(a, b)| a.taken == b.taken).count();
        // The worker tells of no token that ends its text.
        let (a, b) = (theirs.get(equal), ours.get(equal));
        let taken = [a, b].map(|step| step.map_or("", |step| step.taken.as_str()));
        let by_a = a.map_or(0.0, |a| gap(a, taken[1]));
        let by_b = b.map_or(0.0, |b| gap(b, taken[0]));
        println!("{prompt:?} | {equal} | {:?} {by_a:.3} | {:?} {by_b:.3}", taken[0], taken[1]);
        if by_a > NEAR || by_b > NEAR {
            far.push(prompt);
        }
    }
    assert!(far.is_empty(), "no near tie: {far:?}");
}
