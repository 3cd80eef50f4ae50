//! What llama-server computes in: buffers that are laid out once for the largest graph.
//!
//! Source: `sched_reserve` and `output_reserve` in `llama-context.cpp` of llama.cpp b11434 for what is
//! reserved; the sums of the widest steps of a layer were compared with what it logs as `compute
//! buffer size`, see `docs/MEMORY.md`.

use super::{
    cache::{self, Layout},
    product,
};
use crate::spec::model::{ModelFacts, Tensor};

/// Single precision.
const FLOAT: u64 = 4;
/// What the inputs of a product take for each number of theirs, quantised and in half precision.
const QUANTISED: (u64, u64) = (9, 8);
const HALF: (u64, u64) = (2, 1);

/// Architectures that end in an embedding, without logits. Source: `t_logits` in `models/*.cpp`.
pub(super) const ENCODERS: [&str; 9] = [
    "bert",
    "eurobert",
    "gemma-embedding",
    "jina-bert-v2",
    "jina-bert-v3",
    "modern-bert",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
];

/// What a graph is laid out for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Graph {
    /// Positions that are computed at once.
    pub(super) batch: u64,
    /// Positions whose logits are wanted at once.
    pub(super) outputs: u64,
    /// Scores of all positions are not held at once.
    pub(super) has_flash_attention: bool,
    /// The logits are computed here.
    pub(super) has_output: bool,
}

/// What of the buffer counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Counted {
    /// All of it: a GPU's memory is taken when it is reserved.
    Reserved,
    /// What is written to: of the host's memory nothing else is ever there.
    Written,
}

/// Returns the size of the buffer.
pub(super) fn buffer(facts: &ModelFacts, layout: &Layout, graph: &Graph, counted: Counted) -> u64 {
    let batch = graph.batch;
    let number = |key: &str| facts.number(key).unwrap_or_default();
    let width = number("embedding_length");
    let heads = number("attention.head_count");
    let head = facts
        .number("attention.key_length")
        .unwrap_or_else(|| width.checked_div(heads).unwrap_or_default());
    let floats = |numbers: u64| product([numbers, batch, FLOAT]);

    let of_mask = if graph.has_flash_attention { 2 } else { FLOAT };
    let masks = masks(facts, layout);
    let masks = masks
        .iter()
        .fold(0, |sum: u64, cells| sum.saturating_add(product([*cells, batch, of_mask])));
    // (1) Residual, its norm, gate, input and their product. What is reserved has inputs beside it
    // that are embeddings already, which no request of a server is, and gaps between what differs in
    // size.
    let beside = if counted == Counted::Reserved { 3 } else { 0 };
    let widths = |count: u64| product([count.saturating_add(beside), width]);
    let dense = product([3, number("feed_forward_length")]).saturating_add(widths(2));
    let experts = number("expert_used_count");
    let expert = product([experts, 3, number("expert_feed_forward_length")])
        .saturating_add(widths(experts.saturating_add(1)));
    let feed_forward = floats(if experts > 0 { dense.max(expert) } else { dense });
    // (2) Residual, its norm, queries, keys, values, what was attended.
    let queries = product([heads, head]);
    let attended = if counted == Counted::Reserved {
        product([3, queries]).saturating_add(product([4, width]))
    } else {
        let kept = product([facts.number("attention.head_count_kv").unwrap_or(heads), head]);
        product([2, queries]).saturating_add(product([2, kept])).saturating_add(product([2, width]))
    };
    let attention = floats(attended);
    let scores = if graph.has_flash_attention {
        0
    } else {
        let cells = layout.cells;
        product([cells, batch, heads, FLOAT])
    };
    // (3) A recurrent layer's inputs, convolved and scanned.
    let scan = floats(product([6, number("ssm.inner_size")]).saturating_add(product([2, width])));
    // (4) Logits.
    let logits = if graph.has_output {
        let row = facts.vocabulary.saturating_add(product([2, width]));
        product([graph.outputs, row, FLOAT])
    } else {
        0
    };
    let widest = feed_forward.max(attention.saturating_add(scores)).max(scan).max(logits);
    masks.saturating_add(widest)
}

/// What threads of the CPU need beside the buffer: the inputs of a product in the form that goes with its
/// weights. Source: `vec_dot_type` of `ggml-cpu.c`.
pub(super) fn threads(facts: &ModelFacts, batch: u64) -> u64 {
    let widest = ["feed_forward_length", "embedding_length", "expert_feed_forward_length"]
        .iter()
        .filter_map(|key| facts.number(key))
        .max();
    let is_half = |ggml_type: u32| matches!(ggml_type, 1 | 30);
    let has_half =
        facts.bytes_of(|Tensor { kind, .. }| kind.dimensions > 1 && is_half(kind.ggml_type)) > 0;
    let (more, than) = if has_half { HALF } else { QUANTISED };
    product([batch, widest.unwrap_or_default(), more]) / than
}

/// The lengths of the masks: one for layers that see all, one for those with a window.
fn masks(facts: &ModelFacts, layout: &Layout) -> Vec<u64> {
    let mut lengths = Vec::new();
    for layer in 0..cache::layers(facts) {
        let length = cache::cells(facts, layer, layout);
        let key = (cache::window(facts, layer).is_some(), length);
        if !lengths.contains(&key) {
            lengths.push(key);
        }
    }
    lengths.into_iter().map(|(_, length)| length).collect()
}
