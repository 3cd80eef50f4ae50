//! `slotd bench` on real engines: lengths to the token, times by the engine, caches that know nothing.

use serde_json::{Value, json};

use super::{daemon, profile};
use crate::bench::{bench, figures};

async fn measured_on(engine: &str) {
    let embed = profile(engine, "capabilities = [\"embed\"]");
    let daemon = daemon(&[("chat", &profile(engine, "")), ("embed", &embed)]).await;
    let short = ["--runs", "2", "--prompt", "64", "--generate", "8", "--json"];
    let first = figures(&bench(&daemon, &[&short[..], &["chat"]].concat()).await);
    assert_eq!(first["by_engine"], true, "{first:#}");
    assert_eq!((&first["engine"], &first["last"]), (&json!(engine), &Value::Null));
    check_figures(&first);

    let at_once = [&short[..], &["--concurrency", "2", "chat"]].concat();
    let together = figures(&bench(&daemon, &at_once).await);
    assert_eq!((&together["by_engine"], &together["last"]), (&json!(false), &Value::Null));
    let again = figures(&bench(&daemon, &[&short[..], &["chat"]].concat()).await);
    assert_eq!(again["last"]["at_unix_ms"], first["at_unix_ms"], "other work is not compared");

    let vectors = figures(&bench(&daemon, &[&short[..], &["embed"]].concat()).await);
    check_vectors(&vectors);

    let long = bench(&daemon, &["--generate", "4000", "chat"]).await;
    let said = String::from_utf8_lossy(&long.stderr).into_owned();
    assert!(said.contains("do not fit the context of `chat`, which has 2048"), "{said}");
}

/// Two runs of a prompt of 64 tokens.
fn check_figures(found: &Value) {
    for measure in ["first_token_ms", "prompt_tokens_per_second", "generated_tokens_per_second"] {
        let spread = &found["figures"][measure];
        let [min, median, max] = ["min", "median", "max"]
            .map(|of| spread[of].as_f64().unwrap_or_else(|| panic!("{measure}: {found:#}")));
        assert!(0.0 < min && min <= median && median <= max, "{spread}");
        assert_eq!(spread["runs"].as_array().map(Vec::len), Some(2));
    }
    // What is read before the first token is all of the prompt: no cache knew it.
    let first_token = found["figures"]["first_token_ms"]["min"].as_f64().unwrap();
    let speed = found["figures"]["prompt_tokens_per_second"]["max"].as_f64().unwrap();
    assert!(64.0 * 1e3 / speed <= first_token, "64 tokens at {speed} in {first_token} ms");
}

/// Vectors of 64 tokens each.
fn check_vectors(found: &Value) {
    assert_eq!(found["load"]["work"], "embed");
    let rate = |measure: &str| found["figures"][measure]["runs"][0].as_f64().unwrap();
    let tokens = rate("input_tokens_per_second") / rate("inputs_per_second");
    assert!((tokens - 64.0).abs() < 0.5, "an input is as long as it was asked for: {found:#}");
}

#[tokio::test]
async fn llama_server_is_measured() {
    measured_on("llama-server").await;
}

#[tokio::test]
async fn the_worker_is_measured() {
    measured_on("candle").await;
}
