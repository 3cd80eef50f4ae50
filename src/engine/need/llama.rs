//! llama-server.
//!
//! Source: `server-context.cpp`, `common/arg.cpp`, `llama-model.cpp` and `repack.cpp` of llama.cpp b11434.

use super::{
    Estimate, GpuParts, HostParts, NeedInput,
    arguments::Arguments,
    cache::{self, Layout, Stored},
    compute::{self, Counted, Graph},
    overrides::{Overridden, Overrides, Placed},
    product,
};
use crate::{
    engine::{EngineKind, Flags, launch},
    spec::{
        Bytes,
        ladder::{CacheType, Rung},
        memory::Basis,
        model::{ModelFacts, Place, Tensor},
        profile::{Capability, Profile},
    },
};

/// Its own `--batch-size` and `--ubatch-size`.
const BATCH: u64 = 2048;
const SMALL_BATCH: u64 = 512;
/// Its own `--ctx-checkpoints`.
const CHECKPOINTS: u64 = 32;
/// The most that its prompt cache takes unless it is told otherwise.
const PROMPTS: u64 = 8 << 30;
/// The program, its heap and its threads, once it has served.
const PROGRAM: u64 = 19 << 20;
/// What a token of the vocabulary takes, its text and its places in tables, and what a merge does.
const TOKEN: u64 = 175;
const MERGE: u64 = 180;
/// What a sequence takes for each token of the vocabulary: two lists to draw one from.
const DRAWN: u64 = 24;
/// What a sequence takes beside that: its thread, its requests.
const SEQUENCE: u64 = 256 << 10;
/// What the driver and its libraries keep on a GPU for a process.
/// Source: docs/MEMORY.md, "GPUs".
const DRIVER_CONTEXT: u64 = 512 << 20;
/// What a process that uses a GPU takes of the host for its driver.
const DRIVER_ON_HOST: u64 = 192 << 20;

/// Positions that a GPU must be given at once to fetch weights for them.
/// Source: `GGML_OP_OFFLOAD_MIN_BATCH` in `ggml-cuda.cu`.
const FETCHING: u64 = 32;

/// How weights come into memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Loading {
    Mapped,
    Read,
}

/// What a GPU fetches of weights in host memory, to compute long prompts with them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fetching {
    One,
    None,
}

/// What llama-server is told, and what it makes of it.
struct Settings {
    layout: Layout,
    graph: Graph,
    /// Positions whose logits are kept at once, in host memory.
    outputs: u64,
    /// Layers on GPUs, from the last one back.
    gpu_layers: u64,
    /// The output is on a GPU too.
    has_gpu_output: bool,
    is_cache_on_gpu: bool,
    is_repacked: bool,
    fetching: Fetching,
    /// Weights are mapped from the file, or read.
    loading: Loading,
    /// What the prompt cache may take.
    prompts: u64,
    checkpoints: u64,
}

/// `None` where it is not known on which side tensors are kept.
pub(super) fn estimate(input: &NeedInput<'_>, facts: &ModelFacts) -> Option<Estimate> {
    let settings = settings(input, facts);
    let layers = facts.number("block_count").unwrap_or_default();
    let placed = Placed {
        overridden: overridden(input, facts)?,
        first_on_gpu: layers.saturating_sub(settings.gpu_layers),
        has_gpu_output: settings.has_gpu_output,
    };
    let cache_of = |from: u64, to: u64| {
        (from..to.min(cache::layers(facts))).fold(0, |sum: u64, layer| {
            sum.saturating_add(cache::bytes_of(facts, layer, &settings.layout))
        })
    };
    let cache = cache_of(0, layers);
    let on_gpu = if settings.is_cache_on_gpu { cache_of(placed.first_on_gpu, layers) } else { 0 };
    let buffer = |counted| compute::buffer(facts, &settings.layout, &settings.graph, counted);
    let is_on_gpu = |tensor: &Tensor| placed.is_on_gpu(tensor);
    let tied = tied(facts, |tensor| placed.is_output_on_gpu(tensor));
    let gpu_weights = facts.bytes_of(is_on_gpu).saturating_add(tied);
    let uses_gpu = settings.gpu_layers > 0 || settings.has_gpu_output || gpu_weights > 0;
    let projector = input.projector.unwrap_or_default().0;
    // Checkpoints of prompts that were put aside count there.
    let checkpoints = product([
        settings.checkpoints,
        settings.layout.sequences,
        cache::checkpoint(facts, &settings.layout),
    ]);
    let prompts = settings.prompts.saturating_add(checkpoints);
    let compute = outputs(facts, &settings).saturating_add(if uses_gpu {
        buffer(Counted::Reserved) / 8
    } else {
        let threads = compute::threads(facts, settings.graph.batch);
        threads.saturating_add(buffer(Counted::Written))
    });
    let weights = on_host(facts, &settings, is_on_gpu);
    let weights = if uses_gpu {
        weights
    } else {
        let later = cache.saturating_add(prompts).saturating_add(compute);
        weights.saturating_add(projector).max(while_loading(facts, &settings, later))
    };
    let host = HostParts {
        weights: Bytes(weights),
        cache: Bytes(cache.saturating_sub(on_gpu)),
        prompts: Bytes(prompts),
        compute: Bytes(compute),
        rest: Bytes(rest(facts, &settings, uses_gpu)),
    };
    let gpu = uses_gpu.then(|| GpuParts {
        weights: Bytes(gpu_weights.saturating_add(projector)),
        cache: Bytes(on_gpu),
        compute: Bytes(
            buffer(Counted::Reserved).saturating_add(fetched(facts, &settings, is_on_gpu)),
        ),
        context: Bytes(DRIVER_CONTEXT),
    });
    Some(Estimate { host, gpu, basis: Basis::Header, measured: None })
}

/// Without a GPU there is one side only, whatever is said.
fn overridden<'a>(input: &NeedInput<'_>, facts: &'a ModelFacts) -> Option<Overridden<'a>> {
    if !input.has_gpu {
        return Some(Overridden::default());
    }
    Overrides::read(Arguments(&input.profile.args)).ok()?.among(facts)
}

/// How much the parts of llama-server may take that grow as it is used: the prompt cache, in MiB, and
/// the number of checkpoints, where the model has need of any. Each may take as much again as the cache
/// itself.
pub(in crate::engine) fn limits(
    kind: EngineKind,
    (profile, rung): (&Profile, &Rung),
    flags: &Flags,
    facts: &ModelFacts,
) -> (u64, Option<u64>) {
    let profile = &rung.apply(profile);
    let layout = layout(kind, (profile, rung), flags, facts);
    let cache = (0..cache::layers(facts))
        .fold(0, |sum: u64, layer| sum.saturating_add(cache::bytes_of(facts, layer, &layout)));
    let checkpoint = product([cache::checkpoint(facts, &layout), layout.sequences]);
    let checkpoints = cache.checked_div(checkpoint).map(|fit| fit.clamp(2, CHECKPOINTS));
    (cache.clamp(16 << 20, PROMPTS).div_ceil(1 << 20), checkpoints)
}

fn settings(input: &NeedInput<'_>, facts: &ModelFacts) -> Settings {
    let arguments = Arguments(&input.profile.args);
    let rung = (input.profile, input.rung);
    let layout = layout(input.kind, rung, input.flags, facts);
    let has_output = !compute::ENCODERS.contains(&facts.architecture.as_str());
    // A chat model that may embed as well reserves buffers for it, and touches them when it is asked to.
    let embeds = [Capability::Embed, Capability::Rerank];
    let is_embedding = arguments.has(&["--embeddings", "--embedding"])
        || embeds.iter().any(|one| input.profile.capabilities.contains(one))
        || !has_output;
    let may_embed = input.profile.offers(Capability::Embed);
    // It makes its batch as small as the small one then.
    let outputs = if is_embedding { layout.batch } else { layout.sequences };
    let asked = arguments
        .number(&["--n-gpu-layers", "--gpu-layers", "-ngl"])
        .or(input.profile.gpu_layers.map(u64::from));
    let layers = facts.number("block_count").unwrap_or_default();
    let asked = if input.has_gpu { asked.unwrap_or(u64::MAX) } else { 0 };
    let is_flash_off = matches!(arguments.value(&["--flash-attn", "-fa"]), Some("off" | "0"));
    let (prompts, checkpoints) = limits(input.kind, rung, input.flags, facts);
    let prompts = match arguments.value(&["--cache-ram", "-cram"]) {
        // There is no state of a prompt to put aside.
        _ if !has_output => 0,
        Some(said) => said.parse().unwrap_or(PROMPTS >> 20),
        None if input.flags.names("--cache-ram") => prompts,
        None => 0,
    };
    let has_checkpoints = input.flags.names("--ctx-checkpoints");
    Settings {
        outputs,
        graph: Graph {
            batch: layout.batch,
            outputs: if is_embedding || (may_embed && asked > 0) {
                layout.batch
            } else {
                layout.sequences
            },
            has_flash_attention: !is_flash_off,
            has_output,
        },
        layout,
        gpu_layers: asked.min(layers),
        has_gpu_output: asked > layers,
        is_cache_on_gpu: !arguments.has(&["--no-kv-offload", "-nkvo"]),
        is_repacked: asked == 0 && !arguments.has(&["--no-repack", "-nr"]),
        fetching: if layout.batch >= FETCHING && !arguments.has(&["--no-op-offload"]) {
            Fetching::One
        } else {
            Fetching::None
        },
        loading: match arguments.value(&["--load-mode", "-lm"]) {
            Some("none" | "mlock") => Loading::Read,
            Some(_) | None if arguments.has(&["--no-mmap"]) => Loading::Read,
            Some(_) | None => Loading::Mapped,
        },
        prompts: product([prompts, 1 << 20]),
        checkpoints: arguments
            .number(&["--ctx-checkpoints", "-ctxcp", "--swa-checkpoints"])
            .or(checkpoints.filter(|_| has_checkpoints))
            .unwrap_or_default(),
    }
}

/// Source: `llama_context::llama_context`.
fn layout(
    kind: EngineKind,
    (profile, rung): (&Profile, &Rung),
    flags: &Flags,
    facts: &ModelFacts,
) -> Layout {
    let arguments = Arguments(&profile.args);
    let sequences = u64::from(launch::parallel(profile, kind)).max(1);
    let trained = facts.number("context_length").unwrap_or_default();
    let said = profile.context.map(|context| product([context.into(), sequences]));
    let context = arguments.number(&["--ctx-size", "-c"]).or(said).filter(|context| *context > 0);
    let is_shared = arguments.has(&["--kv-unified", "-kvu"])
        || (profile.context.is_none() && flags.names("--kv-unified"));
    let context = context.unwrap_or(trained).next_multiple_of(cache::STEP);
    let streams = if is_shared { 1 } else { sequences };
    let small = arguments.number(&["--ubatch-size", "-ub"]).unwrap_or(SMALL_BATCH);
    let batch = arguments.number(&["--batch-size", "-b"]).unwrap_or(BATCH);
    let stored = |options: &[&str]| {
        let said = arguments.value(options).or(rung.cache_type.map(CacheType::as_str));
        said.and_then(Stored::named).unwrap_or(Stored::F16)
    };
    Layout {
        cells: (context / streams).next_multiple_of(cache::STEP),
        streams,
        sequences,
        batch: small.min(batch).min(context),
        keeps_all: arguments.has(&["--swa-full"]),
        keys: stored(&["--cache-type-k", "-ctk"]),
        values: stored(&["--cache-type-v", "-ctv"]),
    }
}

/// Logits and embeddings of the positions that are asked for, in host memory. There is room for logits
/// even where the model has none.
fn outputs(facts: &ModelFacts, settings: &Settings) -> u64 {
    let width = facts.number("embedding_length").unwrap_or_default();
    product([settings.outputs, facts.vocabulary.saturating_add(width), 4])
}

/// What weights take while they are loaded, less what comes only `later`: all of the file is mapped.
fn while_loading(facts: &ModelFacts, settings: &Settings, later: u64) -> u64 {
    let all = match settings.loading {
        Loading::Mapped => facts.spanned_by(|_| true),
        Loading::Read => 0,
    };
    all.saturating_add(copied(facts, settings)).saturating_sub(later)
}

/// The program itself, what it knows of the vocabulary, what a sequence needs to draw from it.
fn rest(facts: &ModelFacts, settings: &Settings, uses_gpu: bool) -> u64 {
    let drawn = product([facts.vocabulary, DRAWN]).saturating_add(SEQUENCE);
    PROGRAM
        .saturating_add(product([facts.vocabulary, TOKEN]))
        .saturating_add(product([facts.merges, MERGE]))
        .saturating_add(product([settings.layout.sequences, drawn]))
        .saturating_add(if uses_gpu { DRIVER_ON_HOST } else { 0 })
}

/// Weights in host memory: what is mapped, from the first tensor of a file that is used there to the last,
/// and copies. Source: `llama_model_loader::load_all_data`, which unmaps what lies before and behind.
fn on_host(facts: &ModelFacts, settings: &Settings, is_on_gpu: impl Fn(&Tensor) -> bool) -> u64 {
    let stays = |tensor: &Tensor| {
        let is_moved = settings.is_repacked && is_repacked(tensor) && is_copied(tensor);
        !is_on_gpu(tensor) && !is_moved
    };
    let stays = match settings.loading {
        Loading::Mapped => facts.spanned_by(stays),
        Loading::Read => facts.bytes_of(stays),
    };
    stays.saturating_add(copied(facts, settings))
}

/// The largest of the weights in host memory that a GPU fetches for long prompts: one at a time has room in
/// its buffer. Source: `ggml_backend_sched_split_graph`.
fn fetched(facts: &ModelFacts, settings: &Settings, is_on_gpu: impl Fn(&Tensor) -> bool) -> u64 {
    let is_fetched = |tensor: &&Tensor| {
        let Tensor { kind, .. } = tensor;
        let is_of_layer = matches!(kind.place, Place::Layer(_)) && kind.dimensions > 1;
        settings.fetching == Fetching::One && is_of_layer && !is_on_gpu(tensor)
    };
    let sizes = facts.weights.iter().filter(is_fetched).map(|tensor| tensor.bytes.0);
    sizes.max().unwrap_or_default()
}

/// Copies of weights that the CPU multiplies faster in another order.
fn copied(facts: &ModelFacts, settings: &Settings) -> u64 {
    if !settings.is_repacked {
        return 0;
    }
    let copied = facts.bytes_of(|tensor| is_copied(tensor) && is_repacked(tensor));
    let tied = if has_own_output(facts) {
        0
    } else {
        facts.bytes_of(|tensor| !is_copied(tensor) && is_repacked(tensor))
    };
    copied.saturating_add(tied)
}

/// Rows are looked up in the embedding as it is.
fn is_copied(tensor: &Tensor) -> bool {
    tensor.kind.place != Place::Input
}

/// Source: `ggml_repack_get_optimal_repack_type`.
fn is_repacked(Tensor { kind, .. }: &Tensor) -> bool {
    // Q4_0, Q4_K, IQ4_NL and MXFP4; on ARM also Q5_K, Q6_K and Q8_0.
    let types: &[u32] =
        if cfg!(target_arch = "x86_64") { &[2, 12, 20, 39] } else { &[2, 12, 20, 39, 8, 13, 14] };
    kind.dimensions > 1 && kind.has_rows_of_eight && types.contains(&kind.ggml_type)
}

/// The embedding, where it is the output as well and must be on the GPU for that.
fn tied(facts: &ModelFacts, is_on_gpu: impl Fn(&Tensor) -> bool) -> u64 {
    if has_own_output(facts) {
        return 0;
    }
    facts.bytes_of(|tensor| {
        let Tensor { kind, .. } = tensor;
        kind.place == Place::Input && kind.dimensions == 2 && is_on_gpu(tensor)
    })
}

/// Norms and the like are vectors.
fn has_own_output(facts: &ModelFacts) -> bool {
    facts.bytes_of(|Tensor { kind, .. }| kind.place == Place::Output && kind.dimensions == 2) > 0
}
