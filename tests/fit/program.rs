//! `make fit-table`: what slotd predicts an engine will take against what it took.
//!
//! Arguments: the slotd program, llama-server, a model; further words pick rows by parts of their names.
//! Starts the real llama-server and the real worker as slotd does, on the real model and on models that
//! it makes, fills their caches, and prints a Markdown table. Fails if a prediction is off by more than
//! 5 % and by more than 32 MiB.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::panic,
    clippy::too_many_lines,
    reason = "models that are made here are small, and a trial that cannot be made ends with the place where it broke"
)]

mod engine;
mod generate;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use engine::Trial;
use generate::{Format, Shape};
use slotd::spec::{
    Bytes,
    ladder::{CacheType, Rung},
};

const LEEWAY: u64 = 32 << 20;
const SHARE: u64 = 20;
/// Longer prompts take minutes on two cores.
const LONG: u32 = 2048;

/// One row of the table.
struct Row {
    engine: &'static str,
    /// None is the real model.
    shape: Option<Shape>,
    context: u32,
    parallel: u32,
    cache: Option<CacheType>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut given = env::args_os().skip(1);
    let mut path = || fs::canonicalize(given.next().unwrap()).unwrap();
    let (slotd, llama, model) = (path(), path(), path());
    let picked: Vec<String> = given.map(|word| word.into_string().unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    println!("| engine | model | context × parallel | cache | predicted | measured | error |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let (mut count, mut off) = (0, 0);
    for row in rows() {
        let name = format!("{} {}", row.engine, row.shape.map_or("SmolLM2", |shape| shape.name));
        if !picked.is_empty() && !picked.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let file = file(&row, folder.path(), &model);
        let is_long = row.context > LONG && row.engine == "llama-server";
        let trial = Trial {
            profile: format!(
                "model = '{}'\nengine = {:?}\ncontext = {}\nparallel = {}\nargs = {}\n",
                file.display(),
                row.engine,
                row.context,
                row.parallel,
                if is_long { r#"["--cache-ram", "0"]"# } else { "[]" },
            ),
            rung: Rung { cache_type: row.cache, ..Rung::default() },
            folder: folder.path(),
            slotd: &slotd,
            llama: &llama,
            prompt: if is_long { LONG } else { row.context },
            rounds: rounds(&row, is_long),
            grows: row.shape.is_some_and(|shape| shape.window.is_some()),
            parallel: row.parallel,
            embeds: row.shape.is_some_and(|shape| shape.is_encoder()),
        };
        let measured = engine::measure(&trial).await;
        count += 1;
        off += u32::from(print(&name, &row, &measured));
        if row.shape.is_some() {
            drop(fs::remove_file(&file));
        }
    }
    println!("\n{count} rows, {off} off by more than 5 % and 32 MiB.");
    if off == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How often it is asked. Copies of a window are made as one prompt grows; what is kept of earlier
/// prompts is filled by the second.
fn rounds(row: &Row, is_long: bool) -> u32 {
    match row.shape.and_then(|shape| shape.window) {
        Some(_) => 5,
        None if is_long => 1,
        None => 2,
    }
}

fn file(row: &Row, folder: &Path, model: &Path) -> PathBuf {
    let Some(shape) = &row.shape else { return model.to_owned() };
    let path = folder.join("made.gguf");
    generate::write(&path, shape, model);
    path
}

fn print(name: &str, row: &Row, measured: &engine::Measured) -> bool {
    let (predicted, peak) = (measured.estimate.host.sum(), measured.peak);
    let error = predicted.0.abs_diff(peak.0);
    let is_off = error > LEEWAY.max(peak.0 / SHARE);
    let sign = if predicted < peak { "-" } else { "+" };
    let percent = error as f64 * 100.0 / peak.0 as f64;
    let mark = if is_off { " **off**" } else { "" };
    let (engine, model) = name.split_once(' ').unwrap();
    println!(
        "| {engine} | {model} | {} × {} | {} | {predicted} | {peak} | {sign}{percent:.1} %, {sign}{}{mark} |",
        row.context,
        row.parallel,
        row.cache.map_or(if row.engine == "candle" { "f32" } else { "f16" }, CacheType::as_str),
        Bytes(error),
    );
    let parts = &measured.estimate.host;
    eprintln!(
        "  weights {} cache {} prompts {} compute {} rest {}; it says {}",
        parts.weights, parts.cache, parts.prompts, parts.compute, parts.rest, measured.said
    );
    is_off
}

fn rows() -> Vec<Row> {
    let llama = |shape, context, parallel, cache| Row {
        engine: "llama-server",
        shape,
        context,
        parallel,
        cache,
    };
    let candle =
        |shape, context, parallel| Row { engine: "candle", shape, context, parallel, cache: None };
    let base = Shape {
        name: "llama, Q8_0",
        architecture: "llama",
        layers: 8,
        width: 512,
        feed_forward: 1024,
        heads: 8,
        kv_heads: 8,
        head: 64,
        window: None,
        experts: None,
        format: Format::Q8_0,
        has_output: false,
    };
    let grouped = Shape {
        name: "llama, 16 heads on 2, Q4_0",
        heads: 16,
        kv_heads: 2,
        layers: 12,
        format: Format::Q4_0,
        has_output: true,
        ..base
    };
    let qwen = Shape {
        name: "qwen3, 8 heads on 4, Q4_K",
        architecture: "qwen3",
        kv_heads: 4,
        head: 128,
        format: Format::Q4K,
        ..base
    };
    let moe = Shape {
        name: "qwen3moe, 16 experts, Q4_K",
        architecture: "qwen3moe",
        experts: Some(16),
        ..qwen
    };
    let gemma = Shape {
        name: "gemma3, window 512, Q4_1",
        architecture: "gemma3",
        layers: 12,
        kv_heads: 4,
        head: 128,
        window: Some(512),
        format: Format::Q4_1,
        ..base
    };
    let half = Shape { name: "llama, F16", format: Format::F16, layers: 6, ..base };
    let six = Shape { name: "llama, Q6_K", format: Format::Q6K, ..base };
    let large = Shape {
        name: "llama, 630M, Q4_K",
        layers: 12,
        width: 2048,
        feed_forward: 5632,
        heads: 32,
        kv_heads: 4,
        format: Format::Q4K,
        ..base
    };
    let bert = Shape {
        name: "bert, F16",
        architecture: "bert",
        layers: 6,
        feed_forward: 2048,
        format: Format::F16,
        ..base
    };
    let q8 = Some(CacheType::Q8_0);
    vec![
        llama(None, 512, 1, None),
        llama(None, 1024, 2, None),
        llama(None, 1024, 1, q8),
        llama(Some(base), 8192, 1, None),
        llama(Some(base), 2048, 4, q8),
        llama(Some(grouped), 4096, 2, None),
        llama(Some(grouped), 8192, 1, q8),
        llama(Some(qwen), 4096, 1, None),
        llama(Some(qwen), 2048, 3, None),
        llama(Some(moe), 2048, 1, None),
        llama(
            Some(Shape { format: Format::Q8_0, name: "qwen3moe, 16 experts, Q8_0", ..moe }),
            2048,
            2,
            None,
        ),
        llama(Some(gemma), 4096, 2, None),
        llama(Some(gemma), 8192, 1, q8),
        llama(Some(half), 2048, 2, None),
        llama(Some(six), 4096, 1, None),
        llama(Some(large), 512, 1, None),
        llama(Some(bert), 512, 4, None),
        candle(None, 512, 1),
        candle(None, 1024, 2),
        candle(Some(base), 2048, 2),
        candle(Some(grouped), 2048, 1),
        candle(Some(Shape { format: Format::Q4K, name: "llama, Q4_K", ..base }), 2048, 1),
        candle(Some(large), 512, 1),
        candle(Some(half), 2048, 1),
    ]
}
