//! The candle worker: weights are copied, keys and values are floats, each sequence has its own.
//!
//! Source: `worker/model` of this program.

use super::{Estimate, GpuParts, HostParts, NeedInput, product};
use crate::{
    engine::launch,
    spec::{
        Bytes,
        memory::Basis,
        model::{ModelFacts, Place, WeightKind},
    },
};

/// The context when nobody asks for one, unless the model was trained with less.
const USUAL_CONTEXT: u64 = 4096;
/// How much of a prompt is computed at once.
const PROMPT_PART: u64 = 256;
/// The program, its heap and its threads.
const PROGRAM: u64 = 24 << 20;
/// What a token of the vocabulary takes: its text, its place in tables, its merges.
const TOKEN: u64 = 900;
/// What the driver and its libraries keep on a GPU for a process.
const DRIVER_CONTEXT: u64 = 512 << 20;
const FLOAT: u64 = 4;

pub(super) fn estimate(input: &NeedInput<'_>, facts: &ModelFacts) -> Estimate {
    let number = |key: &str| facts.number(key).unwrap_or_default();
    let layers = number("block_count");
    let width = number("embedding_length");
    let heads = number("attention.head_count").max(1);
    let head = facts.number("attention.key_length").unwrap_or(width / heads);
    let kv_heads = facts.number("attention.head_count_kv").unwrap_or(heads);
    let sequences = u64::from(launch::parallel(input.profile, input.kind));
    let context = input
        .profile
        .context
        .map_or_else(|| number("context_length").min(USUAL_CONTEXT), u64::from);
    let of_layer = product([kv_heads, head, context, 2, FLOAT, sequences]);
    let on_gpu = input.profile.gpu_layers.map_or(0, u64::from).min(layers);
    let first_on_gpu = layers.saturating_sub(on_gpu);
    let has_gpu_output = input.profile.gpu_layers.is_some_and(|asked| u64::from(asked) > layers);

    let is_on_gpu = |kind: &WeightKind| match kind.place {
        Place::Input => false,
        Place::Layer(layer) => u64::from(layer) >= first_on_gpu,
        Place::Output => has_gpu_output,
    };
    let weights = |wanted: &dyn Fn(&WeightKind) -> bool| {
        let sums = facts.weights.iter().filter(|weights| wanted(&weights.kind));
        sums.fold(0, |sum: u64, weights| {
            sum.saturating_add(resident(&weights.kind, weights.bytes.0))
        })
    };
    let tied = second_embedding(facts);
    let host_weights =
        weights(&|kind| !is_on_gpu(kind)).saturating_add(if has_gpu_output { 0 } else { tied });
    let rotations = product([context, head, FLOAT]);
    let host = HostParts {
        weights: Bytes(host_weights.saturating_add(rotations)),
        cache: Bytes(product([of_layer, layers.saturating_sub(on_gpu)])),
        prompts: Bytes(0),
        compute: Bytes(compute(facts, width, sequences)),
        rest: Bytes(PROGRAM.saturating_add(product([facts.vocabulary, TOKEN]))),
    };
    let gpu = (on_gpu > 0).then(|| GpuParts {
        weights: Bytes(facts.bytes_of(is_on_gpu).saturating_add(if has_gpu_output {
            tied
        } else {
            0
        })),
        cache: Bytes(product([of_layer, on_gpu])),
        compute: Bytes(compute(facts, width, sequences).saturating_add(rotations)),
        context: Bytes(DRIVER_CONTEXT),
    });
    Estimate { host, gpu, basis: Basis::Header, measured: None }
}

/// A part of the prompt in the widest step of a layer, and the largest matrix of the layer unpacked.
fn compute(facts: &ModelFacts, width: u64, sequences: u64) -> u64 {
    let inner = facts.number("feed_forward_length").unwrap_or_default();
    let step = product([4, inner]).saturating_add(product([6, width]));
    let rows = product([PROMPT_PART, step, FLOAT]);
    let unpacked = product([2, inner, width, FLOAT]);
    let logits = product([3, facts.vocabulary, FLOAT]);
    product([sequences, rows.saturating_add(unpacked).saturating_add(logits)])
}

/// What weights take once they are in use.
/// Source: `resident_bytes` in `worker/model/linear.rs`; an embedding stays as it is.
fn resident(kind: &WeightKind, bytes: u64) -> u64 {
    if kind.place == Place::Input || kind.dimensions < 2 {
        return bytes;
    }
    let (new, old) = match kind.ggml_type {
        1 | 30 => (2, 1),                                    // F16, BF16
        3 => (22, 20),                                       // Q4_1
        6 => (34, 22),                                       // Q5_0
        7 => (38, 24),                                       // Q5_1
        12 | 14 if cfg!(target_arch = "x86_64") => (23, 10), // Q4_K, Q6_K
        _ => (1, 1),
    };
    product([bytes, new]) / old
}

/// The embedding as output matrix, where its format does not serve for both.
fn second_embedding(facts: &ModelFacts) -> u64 {
    if facts.bytes_of(|kind| kind.place == Place::Output && kind.dimensions == 2) > 0 {
        return 0;
    }
    let sums = facts.weights.iter().filter(|weights| weights.kind.place == Place::Input);
    let serves_both = |ggml_type: u32| matches!(ggml_type, 2 | 8 | 10..=15);
    let copied = sums.filter(|weights| !serves_both(weights.kind.ggml_type)).map(|weights| {
        let as_output = WeightKind { place: Place::Output, ..weights.kind };
        resident(&as_output, weights.bytes.0)
    });
    copied.fold(0, u64::saturating_add)
}
