//! Greedy tokens of both engines on the same file, one prompt after the other.
//!
//! On a file of single precision, with caches of single precision, neither rounds what it multiplies: what is
//! left is the order of sums. `scripts/bench-worker` makes that file of the small model.

use serde_json::{Value, json};

use super::{
    Files, Kind,
    engine::{Engine, Setup},
};

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

/// A token that was taken, its log-probability, and how much better it was than the next.
struct Step {
    taken: String,
    logprob: f64,
    lead: f64,
}

pub(super) async fn run(files: &Files, tokens: u64) {
    // Its flash attention sums in half precision whatever the cache holds.
    let more = &["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"];
    let setup = Setup { threads: 1, sequences: 1, context: 512, more };
    let worker = Engine::start(files, Kind::Worker, setup).await;
    let llama = Engine::start(files, Kind::LlamaServer, setup).await;
    println!(
        "\n| prompt | equal tokens | lead of the best where they part | log-probabilities differ by at most |"
    );
    println!("|---|---|---|---|");
    let (mut all, mut widest) = (0, 0.0_f64);
    for prompt in PROMPTS {
        let (theirs, ours) =
            (of_llama(&llama, prompt, tokens).await, of_worker(&worker, prompt, tokens).await);
        let equal = theirs.iter().zip(&ours).take_while(|(a, b)| a.taken == b.taken).count();
        let is_all = equal == theirs.len().min(ours.len());
        all += u32::from(is_all);
        let apart = theirs[..equal].iter().zip(&ours).map(|(a, b)| (a.logprob - b.logprob).abs());
        let apart = apart.fold(0.0, f64::max);
        let lead = if is_all { 0.0 } else { theirs[equal].lead.min(ours[equal].lead) };
        widest = widest.max(lead);
        println!("| {prompt:?} | {equal} of {} | {lead:.6} | {apart:.6} |", theirs.len());
    }
    println!(
        "\n{all} of {} equal; the others part where the best leads by at most {widest:.6}",
        PROMPTS.len()
    );
}

async fn of_llama(engine: &Engine, prompt: &str, tokens: u64) -> Vec<Step> {
    let body = json!({ "prompt": prompt, "n_predict": tokens, "temperature": 0, "n_probs": 2,
        "cache_prompt": false });
    let answer = engine.post("/completion", &body).await;
    let steps = answer["completion_probabilities"].as_array().unwrap().iter().map(|step| {
        let best = step["top_logprobs"].as_array().unwrap().iter();
        let best: Vec<f64> = best.map(|one| one["logprob"].as_f64().unwrap()).collect();
        Step { taken: text(&step["token"]), logprob: best[0], lead: best[0] - best[1] }
    });
    steps.collect()
}

async fn of_worker(engine: &Engine, prompt: &str, tokens: u64) -> Vec<Step> {
    let body = json!({ "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 2 });
    let answer = engine.post("/v1/completions", &body).await;
    let scores = &answer["choices"][0]["logprobs"];
    let taken = scores["tokens"].as_array().unwrap().iter();
    let steps = taken.zip(scores["top_logprobs"].as_array().unwrap()).map(|(taken, best)| {
        let mut best: Vec<f64> =
            best.as_object().unwrap().values().map(|logprob| logprob.as_f64().unwrap()).collect();
        best.sort_by(|a, b| b.total_cmp(a));
        // Two tokens may have one text.
        let next = best.get(1).copied().unwrap_or(best[0]);
        Step { taken: text(taken), logprob: best[0], lead: best[0] - next }
    });
    steps.collect()
}

/// The token that ends a text has no text of its own.
fn text(token: &Value) -> String {
    token.as_str().filter(|text| *text != "<|im_end|>").unwrap_or_default().to_owned()
}
