//! Answers that must keep to a schema, drawn at full temperature.
//!
//! Each schema and its answer go as a line of JSON to the file that `SLOTD_BENCH_ANSWERS` names:
//! whether they are valid is for a validator that slotd does not know (`scripts/bench-worker`).

use std::{collections::BTreeMap, env, fs::File, io::Write};

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Files, Kind, Random,
    engine::{Engine, Setup},
    written,
};

const AT_ONCE: u64 = 8;
const SEED: u64 = 7;

pub(super) async fn run(files: &Files, count: u64) {
    let setup = Setup { threads: 1, sequences: AT_ONCE, context: 1024, more: &[] };
    let worker = Engine::start(files, Kind::Worker, setup).await;
    let mut random = Random(SEED);
    let schemas: Vec<Value> = (0..count).map(|_| written::object(&mut random, 2)).collect();
    let mut file = env::var_os("SLOTD_BENCH_ANSWERS").map(|path| File::create(path).unwrap());
    let began = Instant::now();
    let (mut ends, mut tokens, mut unread) = (BTreeMap::<String, u64>::new(), 0, 0_u64);
    let mut answers = stream::iter(schemas.into_iter().zip(0_u64..))
        .map(|(schema, seed)| ask(&worker, schema, seed))
        .buffer_unordered(usize::try_from(AT_ONCE).unwrap());
    while let Some((schema, answer)) = answers.next().await {
        let choice = &answer["choices"][0];
        let end = choice["finish_reason"].as_str().unwrap().to_owned();
        *ends.entry(end).or_default() += 1;
        tokens += answer["usage"]["completion_tokens"].as_u64().unwrap();
        let text = choice["message"]["content"].as_str().unwrap();
        let is_json = serde_json::from_str::<Value>(text).is_ok();
        unread += u64::from(!is_json);
        if let Some(file) = &mut file {
            writeln!(file, "{}", json!({ "schema": schema, "answer": text })).unwrap();
        }
    }
    println!(
        "\n{count} answers of {tokens} tokens in {:.0} s, {AT_ONCE} at once: {unread} are no JSON; ended by {ends:?}",
        began.elapsed().as_secs_f64()
    );
    assert_eq!(unread, 0, "answers that are no JSON");
}

async fn ask(worker: &Engine, schema: Value, seed: u64) -> (Value, Value) {
    let body = json!({
        "messages": [{ "role": "user", "content": format!("Make up an example of {schema}.") }],
        "response_format": { "type": "json_schema",
            "json_schema": { "name": "example", "strict": true, "schema": schema } },
        "temperature": 1, "seed": seed, "max_tokens": 500,
    });
    let answer = worker.post("/v1/chat/completions", &body).await;
    (schema, answer)
}
