//! The candle worker: weights are mapped, keys and values are floats, each sequence has its own.
//!
//! Source: `worker/model` of this program.

use super::{Estimate, GpuParts, HostParts, NeedInput, product};
use crate::{
    engine::launch,
    spec::{
        Bytes,
        memory::Basis,
        model::{ModelFacts, Place, Tensor},
    },
};

/// The context when nobody asks for one, unless the model was trained with less.
const USUAL_CONTEXT: u64 = 4096;
/// How many positions are computed at once, of all sequences together.
/// Source: `MOST_ROWS` in `worker/schedule.rs`.
const ROWS: u64 = 256;
/// The program, its heap and its threads.
const PROGRAM: u64 = 20 << 20;
/// A model of more layers is damaged: the worker says so when it is started, and takes nothing.
/// Source: `MOST_LAYERS` in `worker/model/shape.rs`.
const MOST_LAYERS: u64 = 1024;
/// What a token of the vocabulary takes, its text and its places in tables, and what a merge does.
const TOKEN: u64 = 230;
const MERGE: u64 = 150;
/// What the driver and its libraries keep on a GPU for a process.
const DRIVER_CONTEXT: u64 = 512 << 20;
const FLOAT: u64 = 4;
/// The architecture of models in folders, which keep nothing between texts.
const ENCODER: &str = "bert";

pub(super) fn estimate(input: &NeedInput<'_>, facts: &ModelFacts) -> Estimate {
    if facts.architecture == ENCODER {
        return encoder(input, facts);
    }
    let number = |key: &str| facts.number(key).unwrap_or_default();
    let layers = number("block_count").min(MOST_LAYERS);
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

    let is_on_gpu = |tensor: &Tensor| match tensor.kind.place {
        Place::Input => false,
        Place::Layer(layer) => u64::from(layer) >= first_on_gpu,
        Place::Output => has_gpu_output,
    };
    let tied = if has_gpu_output { tied(facts) } else { 0 };
    let compute = compute(facts, width, sequences);
    let host = HostParts {
        weights: Bytes(facts.bytes_of(|tensor| !is_on_gpu(tensor))),
        cache: Bytes(product([of_layer, layers.saturating_sub(on_gpu)])),
        prompts: Bytes(0),
        compute: Bytes(compute),
        rest: Bytes(
            PROGRAM
                .saturating_add(product([facts.vocabulary, TOKEN]))
                .saturating_add(product([facts.merges, MERGE])),
        ),
    };
    let gpu = (on_gpu > 0).then(|| GpuParts {
        weights: Bytes(facts.bytes_of(is_on_gpu).saturating_add(tied)),
        cache: Bytes(product([of_layer, on_gpu])),
        compute: Bytes(compute),
        context: Bytes(DRIVER_CONTEXT),
    });
    Estimate { host, gpu, basis: Basis::Header, measured: None }
}

/// A step takes texts in whole until it has [`ROWS`]; its rows are widest between the matrices of a layer: as they
/// come and are multiplied, their products, what gates those, and the result.
/// Source: `worker/model/encoder.rs`.
fn encoder(input: &NeedInput<'_>, facts: &ModelFacts) -> Estimate {
    let number = |key: &str| facts.number(key).unwrap_or_default();
    let positions = number("context_length");
    let text = input.profile.context.map_or(positions, |asked| positions.min(u64::from(asked)));
    let sequences = u64::from(launch::parallel(input.profile, input.kind));
    let rows = product([sequences, text]).min(ROWS.saturating_add(text));
    let row = product([3, number("feed_forward_length")])
        .saturating_add(product([2, number("embedding_length")]));
    let host = HostParts {
        weights: Bytes(facts.bytes_of(|_| true)),
        compute: Bytes(product([rows, row, FLOAT])),
        rest: Bytes(PROGRAM.saturating_add(product([facts.vocabulary, TOKEN]))),
        ..HostParts::default()
    };
    Estimate { host, gpu: None, basis: Basis::Header, measured: None }
}

/// The rows of a step where they are widest, and logits. Source: `worker/model/host.rs`: what goes through
/// a layer, gates, what they let through, that again in eight bits, the result.
fn compute(facts: &ModelFacts, width: u64, sequences: u64) -> u64 {
    let inner = facts.number("feed_forward_length").unwrap_or_default();
    let row = product([2, inner]).saturating_add(product([2, width]));
    let in_eight_bits = product([ROWS, inner, 9]) / 8;
    let logits = product([2, facts.vocabulary, FLOAT, sequences]);
    product([ROWS, row, FLOAT]).saturating_add(in_eight_bits).saturating_add(logits)
}

/// The embedding, where it is the output as well.
fn tied(facts: &ModelFacts) -> u64 {
    if facts.bytes_of(|Tensor { kind, .. }| kind.place == Place::Output && kind.dimensions == 2) > 0
    {
        return 0;
    }
    facts.bytes_of(|Tensor { kind, .. }| kind.place == Place::Input && kind.dimensions == 2)
}
