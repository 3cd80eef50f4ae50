//! Figures that engines tell of themselves, under one naming.
//!
//! Ready engines are asked when somebody asks for the page, all at once and not for long; what they do
//! not say in time is left out. llama-server tells them when it runs with `--metrics`.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use hyper::{
    Request, Uri,
    header::{HOST, HeaderValue},
};
use tokio::time::timeout;

use super::{
    gate::Gate,
    metrics::{Family, Page},
    payload::Payload,
    routes::RouteTable,
};

/// How long an engine is waited for. One that is busy with a long prompt answers after it.
const DEADLINE: Duration = Duration::from_millis(500);
/// The most of an engine's page that is read.
const MOST: usize = 1 << 20;

/// One figure and what engines call it.
struct Mapped {
    family: Family,
    theirs: [&'static str; 2],
}

const fn mapped(
    (name, kind): (&'static str, &'static str),
    help: &'static str,
    theirs: [&'static str; 2],
) -> Mapped {
    Mapped { family: Family { name, kind, help }, theirs }
}

/// Source: llama.cpp `tools/server/README.md`, `GET /metrics`; vLLM's documentation, production metrics.
static MAP: [Mapped; 8] = [
    mapped(
        ("slotd_engine_prompt_tokens_total", "counter"),
        "Prompt tokens, as the engine counts them.",
        ["llamacpp:prompt_tokens_total", "vllm:prompt_tokens_total"],
    ),
    mapped(
        ("slotd_engine_generation_tokens_total", "counter"),
        "Generated tokens, as the engine counts them.",
        ["llamacpp:tokens_predicted_total", "vllm:generation_tokens_total"],
    ),
    mapped(
        ("slotd_engine_prompt_tokens_per_second", "gauge"),
        "Speed on prompts, as the engine measures it.",
        ["llamacpp:prompt_tokens_seconds", "vllm:avg_prompt_throughput_toks_per_s"],
    ),
    mapped(
        ("slotd_engine_generation_tokens_per_second", "gauge"),
        "Speed of generation, as the engine measures it.",
        ["llamacpp:predicted_tokens_seconds", "vllm:avg_generation_throughput_toks_per_s"],
    ),
    mapped(
        ("slotd_engine_num_requests_running", "gauge"),
        "Requests that the engine says it works on.",
        ["llamacpp:requests_processing", "vllm:num_requests_running"],
    ),
    mapped(
        ("slotd_engine_num_requests_waiting", "gauge"),
        "Requests that wait inside the engine.",
        ["llamacpp:requests_deferred", "vllm:num_requests_waiting"],
    ),
    mapped(
        ("slotd_engine_kv_cache_usage_ratio", "gauge"),
        "How much of its KV cache the engine uses, 0 to 1.",
        ["llamacpp:kv_cache_usage_ratio", "vllm:kv_cache_usage_perc"],
    ),
    mapped(
        ("slotd_engine_busy_slots_per_decode", "gauge"),
        "Sequences that the engine worked on at once, on average.",
        ["llamacpp:n_busy_slots_per_decode", ""],
    ),
];

/// Returns every family, in the order of the page.
#[cfg(test)]
pub(super) fn families() -> impl Iterator<Item = &'static Family> {
    MAP.iter().map(|mapped| &mapped.family)
}

/// Asks every ready engine and adds what it says.
pub(super) async fn add(page: &mut Page, table: &RouteTable) {
    let asked = table.slots().filter_map(|(slot, route)| {
        let gate = Arc::clone(route.own_gate.as_ref()?);
        Some(async move { Some((slot, timeout(DEADLINE, ask(&gate)).await.ok()??)) })
    });
    let told: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
    for Mapped { family, theirs } in &MAP {
        let mut is_begun = false;
        for (slot, text) in &told {
            if let Some(figure) = find(text, theirs) {
                if !is_begun {
                    page.family(*family);
                    is_begun = true;
                }
                page.sample(family.name, &[("slot", slot.as_str())], figure);
            }
        }
    }
}

/// Reads an engine's page. It takes no seat and counts as no use of the slot.
async fn ask(gate: &Arc<Gate>) -> Option<String> {
    let request = || {
        let mut request = Request::new(Payload::bytes(Bytes::new()).send());
        *request.uri_mut() = Uri::from_static("/metrics");
        request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
        request
    };
    let (response, mut line) = gate.send(request).await.ok()?;
    if !response.status().is_success() {
        return None;
    }
    let (mut body, mut text) = (response.into_body(), Vec::new());
    while let Some(frame) = poll_fn(|context| line.poll_body(&mut body, context)).await {
        text.extend_from_slice(&frame.ok()?.into_data().unwrap_or_default());
        if text.len() > MOST {
            return None;
        }
    }
    poll_fn(|context| {
        line.settle(context);
        std::task::Poll::Ready(())
    })
    .await;
    gate.keep(line);
    String::from_utf8(text).ok()
}

/// Returns the sum of all samples of a name, whatever their labels.
fn find(text: &str, theirs: &[&str]) -> Option<f64> {
    let figures = text.lines().filter_map(|line| {
        let (name, rest) = line.split_at_checked(line.find(['{', ' '])?)?;
        let value = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once('}')?.1,
            None => rest,
        };
        let figure: f64 = value.split_whitespace().next()?.parse().ok()?;
        (theirs.contains(&name) && figure.is_finite()).then_some(figure)
    });
    figures.fold(None, |sum, figure| Some(sum.unwrap_or(0.0) + figure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engines_figures_are_found_with_and_without_labels() {
        let text = "# HELP llamacpp:requests_processing x\nllamacpp:requests_processing 2\n\
                    vllm:num_requests_running{model_name=\"a } b\"} 3 1700000000\n\
                    llamacpp:requests_deferred NaN\nno number\n";
        assert_eq!(find(text, &["llamacpp:requests_processing"]), Some(2.0));
        let both = ["llamacpp:requests_processing", "vllm:num_requests_running"];
        assert_eq!(find(text, &both), Some(5.0));
        assert_eq!(find(text, &["llamacpp:requests_deferred"]), None);
        assert_eq!(find(text, &[""]), None);
    }
}
