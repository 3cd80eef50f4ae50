//! What monitors of llama.cpp's server read: properties, slots, metrics, under its names.
//!
//! Source: `tools/server/README.md` of llama.cpp, and what its server answers.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Query, State},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::{Served, refusal::Refusal};
use crate::worker::{
    engine::Engine,
    report::{Asked, Report, SeatReport, Task},
    sampler::Sampling,
};

/// `GET /props`.
pub(super) async fn props(State(served): State<Arc<Served>>) -> Result<axum::Json<Json>, Refusal> {
    let engine = served.engine()?;
    Ok(axum::Json(json!({
        "default_generation_settings": {
            "params": params(None),
            "n_ctx": engine.context,
        },
        "n_ctx": engine.context,
        "total_slots": served.parallel,
        "model_path": served.model_path,
        "model_alias": served.model_name,
        "model_ftype": engine.file_type,
        "chat_template": engine.template.source(),
        "chat_template_caps": {},
        "bos_token": engine.vocabulary.begin_text,
        "eos_token": engine.vocabulary.end_text,
        "modalities": { "vision": false, "video": false, "audio": false },
        "endpoint_slots": true,
        "endpoint_props": false,
        "endpoint_metrics": true,
        "build_info": concat!("slotd-", env!("CARGO_PKG_VERSION")),
        "is_sleeping": false,
    })))
}

/// The query of `GET /slots`.
#[derive(Debug, Deserialize)]
pub(super) struct SlotsQuery {
    /// Anything but `0` makes it an error that all slots are busy.
    fail_on_no_slot: Option<String>,
}

/// `GET /slots`: one object a sequence.
pub(super) async fn slots(
    State(served): State<Arc<Served>>,
    Query(query): Query<SlotsQuery>,
) -> Result<axum::Json<Json>, Refusal> {
    let engine = served.engine()?;
    let report = engine.report().await?;
    let fails = query.fail_on_no_slot.is_some_and(|word| word != "0");
    if fails && report.seats.iter().all(|seat| seat.is_processing) {
        return Err(Refusal::no_slot());
    }
    let slots = report.seats.iter().enumerate().map(|(id, seat)| slot(&engine, id, seat));
    Ok(axum::Json(slots.collect()))
}

fn slot(engine: &Engine, id: usize, seat: &SeatReport) -> Json {
    let mut slot = json!({
        "id": id,
        "n_ctx": engine.context,
        "speculative": false,
        "is_processing": seat.is_processing,
    });
    if let (Some(task), Some(slot)) = (&seat.task, slot.as_object_mut()) {
        slot.extend([
            ("id_task".to_owned(), json!(task.id)),
            ("n_prompt_tokens".to_owned(), json!(task.prompt_tokens)),
            ("n_prompt_tokens_processed".to_owned(), json!(task.processed_tokens)),
            ("n_prompt_tokens_cache".to_owned(), json!(task.cached_tokens)),
            ("params".to_owned(), params(task.asked.as_ref())),
            ("next_token".to_owned(), json!([next_token(seat.is_processing, task)])),
        ]);
    }
    slot
}

fn next_token(is_processing: bool, task: &Task) -> Json {
    let most = task.asked.as_ref().map(|asked| asked.most_tokens);
    let remain =
        most.and_then(|most| i64::try_from(most.checked_sub(task.completion_tokens)?).ok());
    json!({
        "has_next_token": is_processing,
        "has_new_line": task.has_new_line,
        "n_remain": remain.unwrap_or(-1),
        "n_decoded": task.completion_tokens,
    })
}

/// Gives how an answer is made; what this engine does not do is told as switched off.
fn params(asked: Option<&Asked>) -> Json {
    let usual = Sampling::default();
    let sampling = asked.map_or(&usual, |asked| &asked.sampling);
    let most = asked.and_then(|asked| i64::try_from(asked.most_tokens).ok()).unwrap_or(-1);
    json!({
        "seed": if asked.is_some() { sampling.seed } else { u64::from(u32::MAX) },
        "temperature": sampling.temperature,
        "dynatemp_range": 0.0,
        "dynatemp_exponent": 1.0,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "top_n_sigma": -1.0,
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "typical_p": 1.0,
        "repeat_last_n": i64::try_from(sampling.recent).unwrap_or(-1),
        "repeat_penalty": sampling.repeat_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "dry_multiplier": 0.0,
        "mirostat": 0,
        "max_tokens": most,
        "n_predict": most,
        "n_keep": 0,
        "n_discard": 0,
        "ignore_eos": asked.is_some_and(|asked| asked.ignore_end),
        "n_probs": sampling.logprobs.unwrap_or(0),
        "min_keep": 0,
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
        "lora": [],
    })
}

/// `GET /metrics`: the text format of Prometheus.
pub(super) async fn metrics(State(served): State<Arc<Served>>) -> Result<Response, Refusal> {
    let report = served.engine()?.report().await?;
    let head = [(CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((head, exposition(&report)).into_response())
}

fn exposition(report: &Report) -> String {
    let work = &report.work;
    let busy = report.seats.iter().filter(|seat| seat.is_processing).count();
    let seconds = |time: Duration| time.as_secs_f64();
    let each = |count: usize, by: f64| if by > 0.0 { float(count) / by } else { 0.0 };
    let counters = [
        ("prompt_tokens", "Prompt tokens computed, without cached ones", float(work.prompt_tokens)),
        ("prompt_tokens_cached", "Prompt tokens that were known", float(work.cached_tokens)),
        ("prompt_seconds", "Time that prompts took", seconds(work.prompt_time)),
        ("tokens_predicted", "Tokens generated", float(work.completion_tokens)),
        ("tokens_predicted_seconds", "Time that answers took", seconds(work.completion_time)),
        ("n_decode", "Steps of the model", float(work.steps)),
    ];
    let gauges = [
        (
            "prompt_tokens_seconds",
            "Prompt tokens a second",
            each(work.prompt_tokens, seconds(work.prompt_time)),
        ),
        (
            "predicted_tokens_seconds",
            "Generated tokens a second",
            each(work.completion_tokens, seconds(work.completion_time)),
        ),
        ("requests_processing", "Requests that are worked on", float(busy)),
        ("requests_deferred", "Requests that wait for a sequence", float(report.waiting)),
        (
            "n_busy_slots_per_decode",
            "Sequences that took part in a step, on average",
            each(work.busy_seats, float(work.steps)),
        ),
    ];
    let mut text = String::new();
    let mut write = |name: String, help: &str, kind: &str, value: f64| {
        let name = format!("llamacpp:{name}");
        let lines = format!("# HELP {name} {help}.\n# TYPE {name} {kind}\n{name} {value}\n");
        text.push_str(&lines);
    };
    for (name, help, value) in counters {
        write(format!("{name}_total"), help, "counter", value);
    }
    // Without `_total`, as llama.cpp's server has it.
    let longest = float(work.most_tokens);
    write("n_tokens_max".to_owned(), "The longest sequence", "counter", longest);
    for (name, help, value) in gauges {
        write(name.to_owned(), help, "gauge", value);
    }
    text
}

#[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "counts for people to read")]
fn float(count: usize) -> f64 {
    count as f64
}
