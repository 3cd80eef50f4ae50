//! Against figures that people published of models that no test could hold.
//!
//! The logs are of older versions: those reserved logits for a whole batch.

use super::{
    cache::{self, Layout, Stored},
    compute::{self, Counted, Graph},
    *,
};
use crate::spec::{
    SlotName,
    ladder::CacheType,
    model::{Numbers, Place, Tensor, WeightKind},
};

fn facts(architecture: &str, vocabulary: u64, numbers: &[(&str, u64)]) -> ModelFacts {
    let numbers = numbers.iter().map(|(key, value)| ((*key).to_owned(), Numbers::All(*value)));
    ModelFacts {
        architecture: architecture.to_owned(),
        numbers: numbers.collect(),
        vocabulary,
        ..ModelFacts::default()
    }
}

fn command_r() -> ModelFacts {
    facts(
        "command-r",
        256_000,
        &[
            ("block_count", 40),
            ("context_length", 131_072),
            ("embedding_length", 8192),
            ("feed_forward_length", 22_528),
            ("attention.head_count", 64),
            ("attention.head_count_kv", 64),
        ],
    )
}

fn layout(cells: u64) -> Layout {
    Layout {
        cells,
        streams: 1,
        sequences: 1,
        batch: 512,
        keeps_all: false,
        keys: Stored::F16,
        values: Stored::F16,
    }
}

fn cache(facts: &ModelFacts, layout: &Layout) -> u64 {
    (0..cache::layers(facts)).map(|layer| cache::bytes_of(facts, layer, layout)).sum()
}

fn mebibytes(bytes: u64) -> u64 {
    bytes >> 20
}

/// Source: the log in github.com/ggml-org/llama.cpp/pull/6122, Command-R at 4096: `KV self size =
/// 5120.00 MiB`, 1536 + 3584 on two GPUs of 12 and 28 layers.
#[test]
fn keys_and_values_of_command_r_are_those_of_a_published_log() {
    let (facts, layout) = (command_r(), layout(4096));
    assert_eq!(mebibytes(cache(&facts, &layout)), 5120);
    let first: u64 = (0..12).map(|layer| cache::bytes_of(&facts, layer, &layout)).sum();
    assert_eq!(mebibytes(first), 1536);
}

/// Source: the log in github.com/mozilla-ai/llamafile/pull/552, `TriLM` 3.9B at 512: `KV self size =
/// 180.00 MiB`, `CUDA0 compute buffer size = 105.00 MiB` with logits of 512 positions.
#[test]
fn the_buffers_of_trilm_are_near_those_of_a_published_log() {
    let facts = facts(
        "llama",
        50_688,
        &[
            ("block_count", 30),
            ("embedding_length", 3072),
            ("feed_forward_length", 9216),
            ("attention.head_count", 24),
            ("attention.head_count_kv", 24),
        ],
    );
    let layout = layout(512);
    assert_eq!(mebibytes(cache(&facts, &layout)), 180);
    let graph = Graph { batch: 512, outputs: 512, has_flash_attention: false, has_output: true };
    let buffer = mebibytes(compute::buffer(&facts, &layout, &graph, Counted::Reserved));
    assert!((105..=115).contains(&buffer), "{buffer}");
}

/// Source: what llama-server b11434 logs of SmolLM2 135M, `make fit-table`.
#[test]
fn the_buffers_of_smollm2_are_those_that_llama_server_logs() {
    let facts = smollm2();
    let graph = Graph { batch: 512, outputs: 1, has_flash_attention: true, has_output: true };
    let logged = [(512, 1514), (2048, 1664), (8192, 2264)];
    // In hundredths of a MiB.
    for (cells, logged) in logged {
        let bytes = compute::buffer(&facts, &layout(cells), &graph, Counted::Reserved);
        let logged: u64 = (logged << 20) / 100;
        assert!(bytes.abs_diff(logged) < 1 << 18, "{cells}: {bytes} and {logged}");
    }
    let graph = Graph { has_flash_attention: false, ..graph };
    let bytes = compute::buffer(&facts, &layout(4096), &graph, Counted::Reserved);
    assert_eq!(mebibytes(bytes).abs_diff(87), 0, "{bytes}");
}

fn smollm2() -> ModelFacts {
    let kind = |place, ggml_type, dimensions| WeightKind {
        place,
        ggml_type,
        dimensions,
        has_rows_of_eight: dimensions > 1,
    };
    let mut end = 0;
    let mut sum = |kind, bytes| {
        let first = end;
        end += bytes;
        Tensor { name: String::new(), kind, bytes: Bytes(bytes), part: 0, span: (first, end) }
    };
    let facts = facts(
        "llama",
        49_152,
        &[
            ("block_count", 30),
            ("context_length", 8192),
            ("embedding_length", 576),
            ("feed_forward_length", 1536),
            ("attention.head_count", 9),
            ("attention.head_count_kv", 3),
        ],
    );
    let mut weights = vec![sum(kind(Place::Input, 8, 2), 30_081_024)];
    weights.extend((0..30).map(|layer| sum(kind(Place::Layer(layer), 3, 2), 2_216_960)));
    weights.push(sum(kind(Place::Output, 0, 1), 2304));
    ModelFacts { weights, ..facts }
}

/// Windows by layer, from the models' own keys and llama.cpp's defaults.
#[test]
fn layers_with_a_window_keep_the_window_and_a_batch() {
    let gemma = facts(
        "gemma3",
        262_144,
        &[
            ("block_count", 26),
            ("embedding_length", 1152),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 1),
            ("attention.key_length", 256),
            ("attention.value_length", 256),
            ("attention.sliding_window", 512),
        ],
    );
    // Gemma 3 1B: of 26 layers 4 see all; a position of a layer takes 1 KiB.
    let all = layout(8192);
    assert_eq!(cache(&gemma, &all), (4 * 8192 + 22 * 1024) << 10);
    let kept = Layout { keeps_all: true, ..all };
    assert_eq!(cache(&gemma, &kept), (26 * 8192) << 10);
    assert_eq!(cache::checkpoint(&gemma, &kept), 0);
    assert_eq!(cache::checkpoint(&gemma, &all), (22 * 512) << 10);
}

#[test]
fn latent_attention_keeps_no_values_and_a_recurrent_layer_one_state() {
    // DeepSeek V2 Lite: 27 layers of one head, 512 + 64 wide.
    let latent = facts(
        "deepseek2",
        102_400,
        &[
            ("block_count", 27),
            ("embedding_length", 2048),
            ("attention.head_count", 16),
            ("attention.head_count_kv", 1),
            ("attention.key_length", 576),
            ("attention.value_length", 512),
            ("attention.key_length_mla", 192),
            ("attention.value_length_mla", 128),
        ],
    );
    assert_eq!(cache(&latent, &layout(1024)), 27 * 1024 * 576 * 2);
    // Mamba 130M: a state and a convolution, at any context.
    let mamba = facts(
        "mamba",
        50_280,
        &[
            ("block_count", 24),
            ("embedding_length", 768),
            ("attention.head_count", 0),
            ("ssm.conv_kernel", 4),
            ("ssm.inner_size", 1536),
            ("ssm.state_size", 16),
        ],
    );
    assert_eq!(cache(&mamba, &layout(1024)), 24 * (3 * 1536 + 16 * 1536) * 4);
    assert_eq!(cache(&mamba, &layout(1024)), cache(&mamba, &layout(65_536)));
}

fn profile(text: &str) -> Profile {
    let slot: SlotName = "chat".parse().unwrap();
    let mut value = serde_json::json!({
        "slot": slot, "source": "", "model": null, "engine": "Auto", "args": [], "env": {},
        "aliases": [], "capabilities": [], "context": null, "parallel": null, "threads": null,
        "gpu_layers": null, "autostart": false, "essential": false, "max_restarts": 5,
        "start_timeout": {"secs": 1, "nanos": 0}, "stop_timeout": {"secs": 1, "nanos": 0},
        "idle_timeout": null,
    });
    let more: serde_json::Value = serde_json::from_str(text).unwrap();
    for (key, changed) in more.as_object().unwrap() {
        value[key] = changed.clone();
    }
    serde_json::from_value(value).unwrap()
}

fn estimate(text: &str, rung: &Rung, has_gpu: bool) -> Estimate {
    estimate_of(&smollm2(), text, rung, has_gpu)
}

fn estimate_of(facts: &ModelFacts, text: &str, rung: &Rung, has_gpu: bool) -> Estimate {
    let profile = profile(text);
    let help = "--kv-unified\n--cache-ram N\n--ctx-checkpoints N\n";
    need(&NeedInput {
        profile: &profile,
        rung,
        kind: EngineKind::LlamaServer,
        flags: &Flags::parse(help),
        facts: Some(facts),
        files: Some(Bytes(1 << 20)),
        projector: None,
        has_gpu,
    })
}

#[test]
fn sequences_multiply_a_context_that_is_said_and_share_the_models_own() {
    let first = Rung::default();
    let said = estimate(r#"{"context": 2048, "parallel": 4}"#, &first, false);
    assert_eq!(mebibytes(said.host.cache.0), 180);
    let own = estimate(r#"{"parallel": 4}"#, &first, false);
    assert_eq!(mebibytes(own.host.cache.0), 180);
    let given = estimate(r#"{"parallel": 4, "args": ["-c", "512"]}"#, &first, false);
    assert_eq!(mebibytes(given.host.cache.0), 11);
    let cheap = Rung { cache_type: Some(CacheType::Q8_0), ..Rung::default() };
    let cheap = estimate(r#"{"context": 8192, "parallel": 1}"#, &cheap, false);
    assert_eq!(cheap.host.cache.0, 30 * 2 * 192 / 32 * 34 * 8192);
}

#[test]
fn what_args_say_of_kept_prompts_is_what_is_counted() {
    let first = Rung::default();
    let own = estimate(r#"{"context": 2048, "parallel": 4}"#, &first, false);
    assert_eq!(mebibytes(own.host.prompts.0), 180, "as much again as the cache");
    let off = r#"{"context": 2048, "args": ["--cache-ram", "0"]}"#;
    assert_eq!(estimate(off, &first, false).host.prompts, Bytes(0));
    let said = r#"{"context": 2048, "args": ["--cache-ram=100"]}"#;
    assert_eq!(mebibytes(estimate(said, &first, false).host.prompts.0), 100);
}

/// Source: `make fit-table`; llama-server clears a buffer for the logits of a batch, though BERT has none.
#[test]
fn an_encoder_has_room_for_logits_and_keeps_no_prompts() {
    let bert = facts("bert", 49_152, &[("block_count", 6), ("embedding_length", 512)]);
    let host =
        estimate_of(&bert, r#"{"context": 512, "parallel": 4}"#, &Rung::default(), false).host;
    assert_eq!(host.prompts, Bytes(0));
    assert!(mebibytes(host.compute.0) >= 96, "{}", host.compute);
}

#[test]
fn the_workers_encoder_keeps_nothing_and_computes_whole_texts() {
    let numbers =
        [("embedding_length", 384), ("feed_forward_length", 1536), ("context_length", 512)];
    let bert = facts("bert", 30_522, &numbers);
    let host = |text: &str| {
        let profile = profile(text);
        let estimate = need(&NeedInput {
            profile: &profile,
            rung: &Rung::default(),
            kind: EngineKind::Candle,
            flags: &Flags::parse(""),
            facts: Some(&bert),
            files: None,
            projector: None,
            has_gpu: false,
        });
        estimate.host
    };
    let [one, four, eight] =
        [r#"{"parallel": 1}"#, r#"{"parallel": 4}"#, r#"{"parallel": 8}"#].map(host);
    assert_eq!((one.cache, one.compute), (Bytes(0), Bytes(512 * (3 * 1536 + 2 * 384) * 4)));
    assert_eq!(four.compute, Bytes(768 * (3 * 1536 + 2 * 384) * 4));
    assert_eq!(four, eight, "a step has no more texts");
    assert!(host(r#"{"context": 64}"#).compute < one.compute);
    assert_eq!(mebibytes(one.rest.0), 26);
}

#[test]
fn a_damaged_count_of_layers_asks_the_workers_machine_for_no_more_than_the_most() {
    let need = |layers: u64| {
        let numbers = [
            ("block_count", layers),
            ("embedding_length", 576),
            ("attention.head_count", 9),
            ("context_length", 8192),
        ];
        let profile = profile("{}");
        let facts = facts("llama", 49_152, &numbers);
        need(&NeedInput {
            profile: &profile,
            rung: &Rung::default(),
            kind: EngineKind::Candle,
            flags: &Flags::parse(""),
            facts: Some(&facts),
            files: None,
            projector: None,
            has_gpu: false,
        })
    };
    assert_eq!(need(4_000_000_000).host.cache, need(1024).host.cache);
    assert!(need(1024).host.cache > need(30).host.cache);
}

#[test]
fn layers_that_are_offloaded_are_counted_where_they_are() {
    let first = Rung::default();
    let all = estimate(r#"{"context": 2048, "parallel": 1}"#, &first, true);
    let gpu = all.gpu.unwrap();
    // The embedding is the output too, and on both sides.
    assert_eq!((all.host.weights, all.host.cache), (Bytes(30_081_024), Bytes(0)));
    assert_eq!((mebibytes(gpu.weights.0), mebibytes(gpu.cache.0)), (92, 45));
    let half = estimate(r#"{"context": 2048, "parallel": 1, "gpu_layers": 10}"#, &first, true);
    let gpu = half.gpu.unwrap();
    assert_eq!((gpu.weights.0, mebibytes(gpu.cache.0)), (10 * 2_216_960, 15));
    assert_eq!(mebibytes(half.host.cache.0), 30);
    let none = estimate(r#"{"context": 2048, "parallel": 1, "gpu_layers": 0}"#, &first, true);
    assert_eq!(none.gpu, None);
    assert_eq!(none.need().gpu, None);
}

/// Two layers of four experts and a shared one, as Qwen's models have them.
fn experts() -> ModelFacts {
    let of_layer = |layer: u32| {
        [
            ("attn_q", 2, 10),
            ("ffn_up_exps", 3, 1000),
            ("ffn_down_exps", 3, 2000),
            ("ffn_up_shexp", 2, 100),
        ]
        .map(|(part, dimensions, bytes)| (format!("blk.{layer}.{part}.weight"), dimensions, bytes))
    };
    let around = |name: &str, bytes| (name.to_owned(), 2, bytes);
    let mut all = vec![around("token_embd.weight", 7)];
    all.extend((0..2).flat_map(of_layer));
    all.push(around("output.weight", 5));
    let mut end = 0;
    let tensor = |(name, dimensions, bytes): (String, u32, u64)| {
        let (place, first) = (Place::of(&name), end);
        end += bytes;
        let kind = WeightKind { place, ggml_type: 0, dimensions, has_rows_of_eight: true };
        Tensor { name, kind, bytes: Bytes(bytes), part: 0, span: (first, end) }
    };
    let weights = all.into_iter().map(tensor).collect();
    let facts = facts("qwen3moe", 1000, &[("block_count", 2), ("embedding_length", 64)]);
    ModelFacts { weights, ..facts }
}

#[test]
fn tensors_are_counted_where_the_arguments_put_them() {
    let weights = |args: &str, has_gpu| {
        let text = format!(r#"{{"args": {args}}}"#);
        let estimate = estimate_of(&experts(), &text, &Rung::default(), has_gpu);
        (estimate.host.weights.0, estimate.gpu.map(|gpu| gpu.weights.0))
    };
    let all = 7 + 2 * 3110 + 5;
    assert_eq!(weights("[]", true), (7, Some(all - 7)));
    // Without a mapping exactly what is there counts.
    assert_eq!(weights(r#"["--cpu-moe", "--no-mmap"]"#, true), (7 + 6000, Some(220 + 5)));
    assert_eq!(weights(r#"["-ncmoe", "1", "--no-mmap"]"#, true), (7 + 3000, Some(110 + 3110 + 5)));
    assert_eq!(weights(r#"["-ot", "shexp=CPU", "--no-mmap"]"#, true), (7 + 200, Some(all - 207)));
    assert_eq!(weights(r#"["-ot", "token_embd=CUDA0"]"#, true), (0, Some(all)));
    // What is mapped reaches from the embedding to the last expert of the first layer.
    assert_eq!(weights(r#"["-ncmoe", "1"]"#, true).0, 7 + 10 + 3000);
    // Layers of the host can be sent to a GPU as well.
    let sent = r#"["-ngl", "0", "-ot", "exps=CUDA0", "--no-mmap"]"#;
    assert_eq!(weights(sent, true), (all - 6000, Some(6000)));
    assert_eq!(weights(r#"["--cpu-moe"]"#, false), weights("[]", false), "there is one side only");
}

#[test]
fn a_gpu_has_room_for_the_largest_weights_that_it_fetches() {
    let compute = |args: &str| {
        let text = format!(r#"{{"context": 512, "args": {args}}}"#);
        let estimate = estimate_of(&experts(), &text, &Rung::default(), true);
        estimate.gpu.unwrap().compute.0
    };
    let own = compute("[]");
    assert_eq!(compute(r#"["--cpu-moe"]"#), own + 2000);
    assert_eq!(compute(r#"["-ot", "ffn_up_exps=CPU"]"#), own + 1000);
    assert_eq!(compute(r#"["--cpu-moe", "--no-op-offload"]"#), own);
}

#[test]
fn nothing_is_known_where_a_pattern_is_not_understood() {
    let unclear = r#"{"args": ["-ot", "(=CPU"]}"#;
    let estimate = |has_gpu| estimate_of(&experts(), unclear, &Rung::default(), has_gpu);
    assert_eq!(estimate(true).basis, Basis::Unknown);
    assert_eq!(estimate(false).basis, Basis::Header, "without a GPU it does not matter");
}

#[test]
fn what_a_gpu_without_memory_holds_is_the_hosts() {
    let gpu = Some(GpuNeed { spread: Bytes(5), each: Bytes(2) });
    let need = Need { host: Bytes(3), gpu, basis: Basis::Header };
    assert_eq!(need.clone().within_host(), Need { host: Bytes(10), ..need });
    let alone = Need { host: Bytes(3), ..Need::default() };
    assert_eq!(alone.clone().within_host(), alone);
}

#[test]
fn without_a_header_the_files_count_and_without_files_nothing_is_known() {
    let profile = profile("{}");
    let input = NeedInput {
        profile: &profile,
        rung: &Rung::default(),
        kind: EngineKind::Command,
        flags: &Flags::default(),
        facts: None,
        files: Some(Bytes(5)),
        projector: None,
        has_gpu: true,
    };
    assert_eq!(need(&input).need(), Need { host: Bytes(5), gpu: None, basis: Basis::Files });
    let nothing = NeedInput { files: None, ..input };
    assert_eq!(need(&nothing).need(), Need::default());
}
